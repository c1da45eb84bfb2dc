"""Chunks of consecutive tokens: scores within them, quotas for them, and the best of each."""

from __future__ import annotations

import torch

from vtprune.kernels import use_kernels
from vtprune.ops.checks import check_keep
from vtprune.ops.gather import as_float, split_by

_EPSILON = 1e-6
# So small a weight matters only where all other chunks are full.
_LEAST_WEIGHT = 1e-9


def chunk_grid(tokens: int, chunks: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts a sequence into chunks whose lengths differ by at most one, the longer ones first.

    Returns:
        Token indices `(chunks, longest)`, and which of them are real and not filled up, of the same shape.

    Raises:
        ValueError: `chunks` is not from 1 to `tokens`.

    Example:
        >>> chunk_grid(5, 2)[0].tolist(), chunk_grid(5, 2)[1].tolist()
        ([[0, 1, 2], [3, 4, 4]], [[True, True, True], [True, True, False]])
    """
    if not 1 <= chunks <= tokens:
        raise ValueError(f"chunks must be from 1 to {tokens} (the tokens there are), got {chunks}")
    size, longer = divmod(tokens, chunks)
    chunk = torch.arange(chunks, device=device).unsqueeze(1)
    place = torch.arange(size + (longer > 0), device=device)
    index = chunk * size + chunk.clamp_max(longer) + place
    return index.clamp_max(tokens - 1), place < size + (chunk < longer).long()


@torch.no_grad()
def holistic_scores(
    features: torch.Tensor, attention: torch.Tensor, chunks: int, *, weight: float = 0.09
) -> torch.Tensor:
    """Attention plus how unevenly a token resembles the others of its chunk, brought to the same scale.

    HoloV (arXiv 2510.02912): the spread is the mean squared deviation of the cosines in a token's row of the chunk's
    similarity matrix, whose diagonal is zero and takes part as such in the deviations. A chunk of one token has none.

    Args:
        features: `(batch, tokens, dim)`.
        attention: What each token receives, `(batch, tokens)`.
        chunks: Chunks of consecutive tokens, 1 to `tokens`.
        weight: Of the spread beside the attention.

    Returns:
        `(batch, tokens)` float32, or float64 where `features` already is.

    Raises:
        ValueError: `chunks` is out of range.

    Example:
        >>> features, attention = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]), torch.full((1, 3), 0.001)
        >>> holistic_scores(features, attention, 1)
        tensor([[1.1350, 1.1350, 1.0000]])
    """
    tokens = features.shape[1]
    if use_kernels(features) and features.element_size() == 2 and 1 <= chunks <= tokens:
        from vtprune.kernels.chunks import LONGEST, scores_of

        if -(-tokens // chunks) <= LONGEST:
            return scores_of(features, attention, chunks, weight)
    index, real = chunk_grid(tokens, chunks, features.device)
    size = real.sum(dim=1, keepdim=True)
    others = (size - 1).clamp_min(1)
    # float64 also keeps autocast from carrying out the product in half precision.
    wide = features.double()
    unit = wide / (wide.norm(dim=-1, keepdim=True) + _EPSILON)
    rows = unit[:, index] * real.unsqueeze(-1)
    cosine = rows @ rows.mT
    cosine.diagonal(dim1=2, dim2=3).zero_()
    deviation = (cosine - (cosine.sum(dim=-1) / others).unsqueeze(-1)) * real.unsqueeze(1)
    spread = deviation.square().sum(dim=-1) / others * real
    given = attention.double()[:, index] * 1000 * real
    level = given.abs().sum(dim=-1, keepdim=True) / (spread.sum(dim=-1, keepdim=True) + _EPSILON * size)
    scores: torch.Tensor = (given + weight * spread * level).to(as_float(features).dtype)
    return scores.flatten(1)[:, split_by(real.view(1, -1), tokens)[0][0]]


@torch.no_grad()
def chunk_quotas(
    scores: torch.Tensor, chunks: int, budget: int, *, sharpness: float = 1.0, reallocate: bool = True
) -> torch.Tensor:
    """Shares a budget among chunks in proportion to their mean score, rounded down; one more for the best ones.

    HoloV (arXiv 2510.02912). In the paper's code a chunk may get more than it holds, and that part is lost
    (`reallocate=False`). By default it goes to the chunks with room, in proportion to their weight again, until all
    is given away.

    Args:
        scores: `(batch, tokens)`, 0 or above.
        chunks: Chunks of consecutive tokens, 1 to `tokens`.
        budget: Tokens to share, 0 to `tokens`.
        sharpness: Power of the mean scores.
        reallocate: Whether the quotas are within the sizes and add up to the budget.

    Returns:
        `(batch, chunks)` int64.

    Raises:
        ValueError: `chunks` or `budget` is out of range.

    Example:
        >>> scores = torch.tensor([[8.0, 8.0, 1.0, 1.0, 1.0, 1.0]])
        >>> chunk_quotas(scores, 3, 4).tolist(), chunk_quotas(scores, 3, 4, reallocate=False).tolist()
        ([[2, 1, 1]], [[4, 0, 0]])
    """
    tokens = scores.shape[1]
    check_keep(budget, tokens, lowest=0)
    if use_kernels(scores) and 1 <= chunks <= tokens:
        from vtprune.kernels.chunks import can_share, quotas_of

        if can_share(tokens, chunks):
            return quotas_of(scores, chunks, budget, sharpness=sharpness, reallocate=reallocate)
    index, real = chunk_grid(tokens, chunks, scores.device)
    sizes = real.sum(dim=1)
    mean = (scores.double()[:, index] * real).sum(dim=-1) / sizes
    weight = mean.clamp_min(0) ** sharpness
    weight = weight / (weight.sum(dim=1, keepdim=True) + _EPSILON)
    quotas = (weight * budget).floor().long()
    quotas = quotas + _best(weight, budget - quotas.sum(dim=1, keepdim=True))
    if not reallocate:
        return quotas
    held = torch.minimum(quotas, sizes)
    return held + _pour(weight, sizes - held, budget - held.sum(dim=1, keepdim=True))


def _best(weight: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """1 for the `count` `(batch, 1)` highest weights of each row, 0 for the others."""
    return (weight.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < count).long()


def _pour(weight: torch.Tensor, room: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Shares `amount` `(batch, 1)` by weight among chunks that have room for it in all, none above its room."""
    weight = weight.clamp_min(_LEAST_WEIGHT)
    # Chunks fill up in the order of room per weight: a prefix of that order ends up full.
    order = (room / weight).sort(dim=1, stable=True).indices
    sorted_weight, sorted_room = weight.gather(1, order), room.gather(1, order)
    left = amount - (sorted_room.cumsum(dim=1) - sorted_room)
    behind = sorted_weight.flip(1).cumsum(dim=1).flip(1)
    fills = (left * sorted_weight / behind >= sorted_room - _EPSILON).long().cumprod(dim=1)
    full = torch.zeros_like(fills).scatter(1, order, fills).bool()
    left = amount - (room * full).sum(dim=1, keepdim=True)
    among = weight.masked_fill(full, 0)
    share = left * among / among.sum(dim=1, keepdim=True).clamp_min(_LEAST_WEIGHT)
    # Less than its room goes to each of these, so that one of what rounding down leaves fits in.
    poured = torch.where(full, room, share.floor().long())
    return poured + _best(among.masked_fill(full, -1), amount - poured.sum(dim=1, keepdim=True))


@torch.no_grad()
def best_of_chunks(scores: torch.Tensor, quotas: torch.Tensor, budget: int) -> torch.Tensor:
    """The tokens with the highest scores of each chunk, as many as its quota, chunk by chunk.

    Best first within a chunk, but in the order of the sequence where the quota takes all of it, as HoloV (arXiv
    2510.02912) has it.

    Args:
        scores: `(batch, tokens)`.
        quotas: Tokens of each chunk, `(batch, chunks)`; one above the chunk's size counts as its size.
        budget: Places for them all in each row, 1 to `tokens`.

    Returns:
        `(batch, budget)` int64; the places behind the last pick hold -1.

    Raises:
        ValueError: `budget` is out of range.

    Example:
        >>> best_of_chunks(torch.tensor([[1.0, 3.0, 2.0, 4.0]]), torch.tensor([[1, 3]]), 4).tolist()
        [[1, 2, 3, -1]]
    """
    tokens, chunks = scores.shape[1], quotas.shape[1]
    check_keep(budget, tokens)
    if use_kernels(scores) and 1 <= chunks <= tokens:
        from vtprune.kernels.chunks import picks_of

        return picks_of(scores, quotas, budget)
    index, real = chunk_grid(tokens, chunks, scores.device)
    chunk_scores = as_float(scores)[:, index].masked_fill(~real, -torch.inf)
    rank = chunk_scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    place = torch.arange(index.shape[1], device=index.device)
    rank = torch.where((quotas >= real.sum(dim=1)).unsqueeze(-1), place, rank)
    chosen = real & (rank < quotas.unsqueeze(-1))
    before = torch.arange(chunks, device=index.device).unsqueeze(1) * index.shape[1]
    order = torch.where(chosen, before + rank, index.numel()).flatten(1).argsort(dim=1, stable=True)[:, :budget]
    return index.flatten()[order].masked_fill(~chosen.flatten(1).gather(1, order), -1)
