"""Bipartite soft matching: pairs of alike tokens become one, in one step for all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from vtprune.kernels import use_kernels
from vtprune.ops.checks import check_keep
from vtprune.ops.gather import as_float
from vtprune.ops.merge import group_means


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
    tokens in order. In float64 (by kernels, of half precision, in float32), because alternating by place lets one
    swapped near-tie change every later round.

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
    if use_kernels(metric) and not protected:
        return _match_with_kernels(metric, merges)
    even, odd = every[0::2], every[1::2]
    cosine = _cosines(metric[:, 0::2], metric[:, 1::2])
    if protected:
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
    nearest = _cosines(metric, metric[:, k - 1 :: k]).argmax(dim=2)
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
    return group_means(states, matching.source, matching.kept.shape[1], sizes)


def merge_rounds(
    states: torch.Tensor, keep: int, *, per_round: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matches and merges the tokens themselves, round after round, until `keep` are left.

    By kernels, dot products of merged tokens are sums of those of their members, so that the tokens are read twice in
    all; what a mean is rounded to between two rounds then plays no part in the next.

    Args:
        states: `(batch, tokens, dim)`.
        keep: Tokens to leave, 1 to `tokens`.
        per_round: Tokens merged away in a round at most; `None` for as many as can be.

    Returns:
        The merged states `(batch, keep, dim)` in the dtype of `states`, the token that each is named after and the
        number of tokens that it stands for, `(batch, keep)`.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> merged, kept, sizes = merge_rounds(torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 2.0]]]), 2)
        >>> merged.tolist(), kept.tolist(), sizes.tolist()
        ([[[2.0, 0.0], [0.0, 1.5]]], [[1, 3]], [[2.0, 2.0]])
    """
    check_keep(keep, states.shape[1])
    if keep < states.shape[1] and use_kernels(states):
        return _rounds_with_kernels(states, keep, per_round)
    kept = torch.arange(states.shape[1], device=states.device).expand(len(states), -1)
    merged, sizes = as_float(states), torch.ones_like(kept, dtype=torch.float32)
    while merged.shape[1] > keep:
        matching = bipartite_match(merged, _merges(merged.shape[1], keep, per_round))
        merged, sizes = merge_matched(matching, merged, sizes)
        kept = kept.gather(1, matching.kept)
    return merged.to(states.dtype), kept, sizes


def _merges(tokens: int, keep: int, per_round: int | None) -> int:
    """Tokens merged away in the next round."""
    most = min(tokens - keep, tokens // 2)
    return most if per_round is None else min(most, per_round)


def _cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs, `(batch, first, second)`; 0 where one vector is zero."""
    if use_kernels(first) and first.element_size() == 2:
        from vtprune.kernels.gram import cross_cosine

        return cross_cosine(first, second)
    return normalize(first.double(), dim=-1) @ normalize(second.double(), dim=-1).mT


def _match_with_kernels(metric: torch.Tensor, merges: int) -> Matching:
    from vtprune.kernels.bipartite import carry_out

    best, partner = _cosines(metric[:, 0::2], metric[:, 1::2]).max(dim=2)
    return Matching(*carry_out(best, partner, metric.shape[1], merges))


def _rounds_with_kernels(
    states: torch.Tensor, keep: int, per_round: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from vtprune.kernels.bipartite import carry_out, propose
    from vtprune.kernels.gram import cosine_matrix, pictures_at_once
    from vtprune.kernels.merging import group_sums

    half = states.element_size() == 2
    at_once = pictures_at_once(states.shape[1], 8 if half else 16)
    if len(states) > at_once:
        parts = [
            _rounds_with_kernels(states[first : first + at_once], keep, per_round)
            for first in range(0, len(states), at_once)
        ]
        merged, kept, sizes = (torch.cat(column) for column in zip(*parts, strict=True))
        return merged, kept, sizes
    with torch.no_grad():
        left = states.shape[1]
        kept = source = torch.arange(left, device=states.device).expand(len(states), -1)
        # Cosines times both lengths are dot products; in the first round the lengths make no difference.
        products = cosine_matrix(states) if half else states.double() @ states.double().mT
        lengths = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32) if half else None
        while left > keep:
            merges = _merges(left, keep, per_round)
            best, whom = propose(products)
            stays, goes = carry_out(best, whom, left, merges)
            kept, source = kept.gather(1, stays), goes.gather(1, source)
            left -= merges
            if left > keep:
                rows, _ = group_sums(products, goes, left, weights=lengths, transposed=True)
                products, _ = group_sums(rows, goes, left, weights=lengths)
                lengths = None
    merged, sizes = group_means(states, source, keep)
    return merged, kept, sizes


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
