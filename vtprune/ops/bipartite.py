"""Bipartite soft matching: pairs of alike tokens become one, in one step for all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from vtprune.ops.gather import as_float


class Matching(NamedTuple):
    """Which tokens become one.

    Args:
        kept: The token that each output row is named after, `(batch, left)`, distinct within a picture.
        source: The output row that each token went to, `(batch, tokens)`.
    """

    kept: torch.Tensor
    source: torch.Tensor


@torch.no_grad()
def bipartite_match(metric: torch.Tensor, merges: int, *, protected: int = 0) -> Matching:
    """Sends `merges` of the tokens at even places to the most similar token at an odd place.

    ToMe (arXiv 2210.09461), section 3: each even token proposes to the odd one with the highest cosine, and the
    `merges` best proposals are carried out. Output rows are the even tokens left, best proposal first, then all odd
    tokens in order. In float64, because alternating by place lets one swapped near-tie change every later round.

    Differs from the paper's code where that is undefined: a zero vector has cosine 0 with everything.

    Args:
        metric: What similarity is measured on, `(batch, tokens, dim)`.
        merges: Tokens to merge away, 0 or more; at most half of the unprotected ones are.
        protected: Tokens at the start (CLS: 1) that neither move nor receive. With any, the even tokens left come in
            their own order.

    Raises:
        ValueError: `merges` or `protected` is negative.

    Example:
        >>> matching = bipartite_match(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [1.0, 0.0]]]), 1)
        >>> matching.kept.tolist(), matching.source.tolist()
        ([[2, 1, 3]], [[2, 1, 0, 2]])
    """
    if merges < 0 or protected < 0:
        raise ValueError(f"merges and protected must be at least 0, got {merges} and {protected}")
    batch, tokens, _ = metric.shape
    merges = min(merges, max(0, tokens - protected) // 2)
    every = torch.arange(tokens, device=metric.device)
    if merges == 0:
        return Matching(every.expand(batch, -1), every.expand(batch, -1))
    even, odd = every[0::2], every[1::2]
    unit = normalize(metric.double(), dim=-1)
    cosine = unit[:, 0::2] @ unit[:, 1::2].mT
    cosine = cosine.masked_fill((even < protected).unsqueeze(1) | (odd < protected), -torch.inf)
    best, partner = cosine.max(dim=2)
    order = best.sort(dim=1, descending=True, stable=True).indices
    stay = order[:, merges:].sort(dim=1).values if protected else order[:, merges:]
    moving = order[:, :merges]
    left = stay.shape[1]
    row = torch.empty(batch, tokens, dtype=torch.int64, device=metric.device)
    row[:, 1::2] = left + every[: len(odd)]
    row.scatter_(1, 2 * stay, every[:left].expand(batch, -1))
    row.scatter_(1, 2 * moving, left + partner.gather(1, moving))
    return Matching(torch.cat([2 * stay, odd.expand(batch, -1)], dim=1), row)


@torch.no_grad()
def every_kth_match(metric: torch.Tensor, k: int) -> Matching:
    """Sends every token to the most similar one among every `k`-th token: the last of each run of `k`.

    The variant of ToMe's code for many merges at once. Unlike there, tokens behind the last whole run are merged too.

    Args:
        metric: What similarity is measured on, `(batch, tokens, dim)`.
        k: Length of a run, 1 to `tokens`.

    Raises:
        ValueError: `k` is out of range.

    Example:
        >>> every_kth_match(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 0.9], [1.0, 0.0]]]), 2).source.tolist()
        [[1, 0, 0, 1]]
    """
    batch, tokens, _ = metric.shape
    if not 1 <= k <= tokens:
        raise ValueError(f"k must be from 1 to {tokens} (the tokens there are), got {k}")
    every = torch.arange(tokens, device=metric.device)
    centres = every[k - 1 :: k]
    unit = normalize(metric.double(), dim=-1)
    nearest = (unit @ unit[:, k - 1 :: k].mT).argmax(dim=2)
    # A centre is its own row even where another centre is a copy of it.
    nearest[:, k - 1 :: k] = every[: len(centres)]
    return Matching(centres.expand(batch, -1), nearest)


def merge_matched(
    matching: Matching, states: torch.Tensor, sizes: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the tokens that a matching makes one, weighted by how many tokens each stands for.

    Args:
        matching: What `bipartite_match` or `every_kth_match` returned.
        states: `(batch, tokens, dim)`.
        sizes: Tokens that each one stands for, `(batch, tokens)`; `None` for the plain mean.

    Returns:
        The merged states `(batch, left, dim)` in the dtype of `states`, and their sizes `(batch, left)`, at least
        float32.

    Example:
        >>> matching = Matching(torch.tensor([[1]]), torch.tensor([[0, 0]]))
        >>> merged, size = merge_matched(matching, torch.tensor([[[1.0], [4.0]]]), torch.tensor([[2.0, 1.0]]))
        >>> merged.item(), size.item()
        (2.0, 3.0)
    """
    batch, left = matching.kept.shape
    weight = torch.ones_like(matching.source, dtype=torch.float32) if sizes is None else as_float(sizes)
    rows = matching.source + left * torch.arange(batch, device=states.device).unsqueeze(1)
    # Sums in float64 hold values of lower precision almost exactly, so that the order of atomic additions, which
    # differs from run to run on a GPU, does not show.
    weighted = (states.double() * weight.double().unsqueeze(-1)).flatten(0, 1)
    total = weighted.new_zeros(batch * left, states.shape[-1]).index_add(0, rows.flatten(), weighted)
    size = weight.new_zeros(batch * left).index_add(0, rows.flatten(), weight.flatten())
    merged = (total / size.double().unsqueeze(-1)).to(states.dtype)
    return merged.unflatten(0, (batch, left)), size.unflatten(0, (batch, left))


def parse_r(merges: int | Sequence[int], layers: int, *, inflect: float = 0.0) -> tuple[int, ...]:
    """Tokens to merge away in each of `layers` layers, as ToMe's code reads its setting `r`.

    Args:
        merges: A mean number for every layer, or the numbers themselves; layers beyond them merge nothing.
        layers: Layers of the tower.
        inflect: From 1 (none at first, twice the mean at last) over 0 (constant) to -1 (the reverse).

    Raises:
        ValueError: There are more numbers than layers, or `inflect` comes with them.

    Example:
        >>> parse_r(4, 3), parse_r(4, 3, inflect=-1.0), parse_r([5, 1], 3)
        ((4, 4, 4), (8, 4, 0), (5, 1, 0))
    """
    if not isinstance(merges, int):
        if len(merges) > layers or inflect:
            raise ValueError(f"one number each for at most {layers} layers and no inflect, got {merges!r}, {inflect!r}")
        return (*merges, *[0] * (layers - len(merges)))
    low = int(merges * (1 - inflect))
    step = (2 * merges - low - low) / max(1, layers - 1)
    return tuple(int(low + step * layer) for layer in range(layers))
