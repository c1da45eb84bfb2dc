"""Determinantal point processes: tokens that are relevant and unlike each other."""

from __future__ import annotations

import torch

from vtprune.kernels import use_kernels
from vtprune.ops.checks import check_keep
from vtprune.ops.gram import cosine_gram

HALF = (torch.bfloat16, torch.float16)
# Bytes of the kernels and factors of the pictures that are worked on at a time.
_ROOM = 2 << 30


def spanned_below(dtype: torch.dtype) -> float:
    """What part of its own entry a token of this type keeps, at most, when others span it."""
    return 1e-5 if dtype in HALF else 1e-9


@torch.no_grad()
def dpp_map(
    tokens: torch.Tensor, relevance: torch.Tensor, keep: int, present: torch.Tensor | None = None
) -> torch.Tensor:
    """Picks tokens greedily so that the determinant of their kernel `diag(r) S diag(r)` stays large.

    CDPruner (arXiv 2506.10967), with the cosines of tokens as `S`: each pick has the largest part that the picked ones
    do not span. A pick adds one row to a Cholesky factor (Chen et al., NeurIPS 2018, algorithm 1), `O(picks tokens)`
    after the kernel's `O(tokens^2 dim)`. In float64, and compared in float32, so that rounding does not choose between
    equal tokens; the cosines of half-precision tokens are summed in float32 (on the CPU, of 192 or more).

    Differs from the paper's code where the picked tokens span all others, as they do beyond the width of the tokens:
    there the rest of the budget goes to the highest relevance, where the code takes roots of negative numbers. A token
    counts as spanned when `1e-9` of its own entry is left; zero vectors are so from the start. In half precision
    `1e-5` is the limit: so far, squared, is a token from itself by the rounding of bfloat16, and less is noise.

    Args:
        tokens: `(batch, tokens, dim)`.
        relevance: `(batch, tokens)`, usually 0 or above.
        keep: Tokens to pick, 1 to `tokens`.
        present: `(batch, tokens)` booleans; an absent token is picked only when no other is left. All are by default.

    Returns:
        `(batch, keep)` int64 in the order of picking.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> states = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
        >>> dpp_map(states, torch.tensor([[1.0, 0.9, 0.5]]), 3).tolist()
        [[0, 2, 1]]
    """
    batch, count, _ = tokens.shape
    check_keep(keep, count)
    floor = spanned_below(tokens.dtype)
    pictures = max(1, _ROOM // (8 * count * (count + keep)))
    picks = []
    for start in range(0, max(1, batch), pictures):
        part = slice(start, start + pictures)
        among = None if present is None else present[part]
        picks.append(_pick(tokens[part], relevance[part], keep, floor, among))
    return picks[0] if len(picks) == 1 else torch.cat(picks)


def _pick(
    tokens: torch.Tensor, relevance: torch.Tensor, keep: int, floor: float, present: torch.Tensor | None
) -> torch.Tensor:
    if not use_kernels(tokens):
        return _pick_one_by_one(cosine_gram(tokens), relevance.double(), keep, floor, present)
    from vtprune.kernels.dpp import greedy_picks
    from vtprune.kernels.gram import cosine_matrix

    cosines = cosine_matrix(tokens) if tokens.dtype in HALF else cosine_gram(tokens)
    return greedy_picks(cosines, relevance, keep, floor, present)


def _pick_one_by_one(
    cosines: torch.Tensor, relevance: torch.Tensor, keep: int, floor: float, present: torch.Tensor | None
) -> torch.Tensor:
    batch, count, _ = cosines.shape
    left = relevance * cosines.diagonal(dim1=1, dim2=2) * relevance
    least = left * floor
    if present is not None:
        left = left.masked_fill(~present, -torch.inf)
    lines, first = cosines.flatten(0, 1), count * torch.arange(batch, device=cosines.device).unsqueeze(1)
    factor = relevance.new_zeros((batch, keep, count))
    picks, gains = [], []
    for step in range(keep):
        # A picked token spans itself, and a comparison with NaN is false: neither can be picked from here on.
        left = torch.where(left > least, left, -torch.inf)
        pick = left.float().argmax(dim=1, keepdim=True)
        gain = left.gather(1, pick)
        done = factor[:, :step]
        spanned = done.gather(2, pick.unsqueeze(-1).expand(-1, step, -1)).mT @ done
        row = relevance.gather(1, pick) * lines.index_select(0, (pick + first).squeeze(1)) * relevance
        row = row.sub_(spanned.squeeze(1)).mul_(gain.rsqrt())
        factor[:, step] = row
        left = left.addcmul_(row, row, value=-1)
        picks.append(pick)
        gains.append(gain)
    return _fill_up(torch.cat(picks, dim=1), torch.cat(gains, dim=1) > 0, relevance, present)


def _fill_up(
    picks: torch.Tensor, is_real: torch.Tensor, relevance: torch.Tensor, present: torch.Tensor | None
) -> torch.Tensor:
    """Puts the most relevant tokens that were not picked in the place of the picks that are not real, at the end."""
    turn = torch.zeros_like(relevance).scatter_add(1, picks, is_real.to(relevance.dtype)).clamp_max(1) * 2
    if present is not None:
        turn = turn + (~present & (turn == 0))
    order = relevance.masked_fill(relevance.isnan(), -torch.inf).sort(dim=1, descending=True, stable=True).indices
    # First the tokens that can be taken, then absent ones, then those that are taken.
    spare = order.gather(1, turn.gather(1, order).sort(dim=1, stable=True).indices)
    place = ((~is_real).cumsum(dim=1) - 1).clamp_min(0)
    return torch.where(is_real, picks, spare.gather(1, place))
