"""Sharing a budget among the crops of a picture by what its thumbnail says, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate, normalize

from vtprune.ops.checks import check_keep
from vtprune.ops.topk import stable_topk


def cell_owner(
    height: int, width: int, row_edges: Sequence[float], column_edges: Sequence[float], device: torch.device | str
) -> torch.Tensor:
    """The part that each cell of a cut grid lies in, `(height * width,)`; parts count in raster order.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        row_edges: Ascending; a row with index `edge` or more lies behind that cut.
        column_edges: The same for columns.
        device: Where the result is made.

    Example:
        >>> cell_owner(2, 3, [1], [1.5], "cpu").tolist()
        [0, 0, 1, 2, 2, 3]
    """
    row = torch.zeros(height, dtype=torch.long, device=device)
    column = torch.zeros(width, dtype=torch.long, device=device)
    for edge in row_edges:
        row = row + (torch.arange(height, device=device) >= edge)
    for edge in column_edges:
        column = column + (torch.arange(width, device=device) >= edge)
    return (row.unsqueeze(1) * (len(column_edges) + 1) + column).flatten()


def sum_by_owner(values: torch.Tensor, owner: torch.Tensor, parts: int) -> torch.Tensor:
    """Sums `values` `(batch, cells)` over the cells of each part: `(batch, parts)` float64.

    Example:
        >>> sum_by_owner(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([1, 0, 1]), 2).tolist()
        [[2.0, 5.0]]
    """
    # Adding with atomics would make the sums depend on timing, a matrix product on the batch size.
    mine = owner == torch.arange(parts, device=owner.device).unsqueeze(1)
    return values.double().unsqueeze(1).masked_fill(~mine, 0).sum(dim=2)


@torch.no_grad()
def weighted_shares(weights: torch.Tensor, total: int, capacity: Sequence[int]) -> torch.Tensor:
    """Splits `total` among parts in proportion to weights that are known on the device only.

    Webster's rule: token after token goes to the part with the highest `weight / (2 tokens + 1)` that has room. Shares
    are thus rounded, not rounded down, add up to `total`, and what a full part cannot take goes to the others. Among
    equals the part with fewer tokens comes first, then the earlier one; parts without weight get what no other can
    take.

    Args:
        weights: `(batch, parts)`; negative ones count as 0.
        total: Tokens to share out, 0 to the sum of `capacity`.
        capacity: The most that each part takes.

    Returns:
        `(batch, parts)` int64.

    Raises:
        ValueError: `total` is out of range, or the number of weights is not that of capacities.

    Example:
        >>> weighted_shares(torch.tensor([[3.0, 1.0, 1.0]]), 10, [4, 9, 9]).tolist()
        [[4, 3, 3]]
    """
    parts = len(capacity)
    if weights.shape[1] != parts:
        raise ValueError(f"{weights.shape[1]} weights for {parts} parts")
    check_keep(total, sum(capacity), lowest=0)
    step = torch.arange(max(capacity), device=weights.device)
    room = torch.stack([step < size for size in capacity], dim=1)
    claim = weights.double().clamp_min(0).unsqueeze(1) / (2 * step + 1).unsqueeze(1)
    claim = claim.masked_fill(~room, -torch.inf).flatten(1)
    won = torch.zeros_like(claim, dtype=torch.long).scatter(1, stable_topk(claim, total), 1)
    shares: torch.Tensor = won.unflatten(1, room.shape).sum(dim=1)
    return shares


@torch.no_grad()
def within_quota(scores: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
    """Flags of the `quota` highest scores of each row, the lower index first among equals.

    Args:
        scores: `(batch, tokens)`.
        quota: `(batch,)` integers; below 0 counts as 0, above the tokens as all of them.

    Returns:
        `(batch, tokens)` booleans.

    Example:
        >>> within_quota(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([1])).tolist()
        [[False, True, False]]
    """
    rank = stable_topk(scores, scores.shape[1]).argsort(dim=1)
    flags: torch.Tensor = rank < quota.unsqueeze(1)
    return flags


@torch.no_grad()
def crop_weights(
    scores: torch.Tensor, height: int, width: int, crops: tuple[int, int], temperature: float
) -> torch.Tensor:
    """How much more, or less, than the average each crop deserves: `1 + p - mean(p)`, never below 0.

    GlobalCom2 (arXiv 2501.05179): `p` is the softmax over crops of the sum of the thumbnail's scores there, divided by
    a temperature. Rows and columns are cut into equal parts, what division leaves over goes to the last one.

    Args:
        scores: Scores of the thumbnail, `(batch, height * width)`.
        height: Rows of the thumbnail.
        width: Columns of the thumbnail.
        crops: Rows and columns of crops.
        temperature: Above 0.

    Returns:
        `(batch, crops)` float64, crops in raster order.

    Example:
        >>> crop_weights(torch.zeros(1, 16), 4, 4, (2, 2), 10.0).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    rows, columns = crops
    row_edges = [max(height // rows, 1) * row for row in range(1, rows)]
    column_edges = [max(width // columns, 1) * column for column in range(1, columns)]
    owner = cell_owner(height, width, row_edges, column_edges, scores.device)
    share = (sum_by_owner(scores, owner, rows * columns) / temperature).softmax(dim=1)
    return 1 + share - share.mean(dim=1, keepdim=True)


@torch.no_grad()
def resized_scores(scores: torch.Tensor, height: int, width: int, new_height: int, new_width: int) -> torch.Tensor:
    """Bilinear resize of a score map with half-pixel centres, `(batch, new_height, new_width)` float64.

    Args:
        scores: `(batch, height * width)` in raster order.
        height: Rows of the map.
        width: Columns of the map.
        new_height: Rows that come out, 1 or more.
        new_width: Columns that come out, 1 or more.

    Example:
        >>> resized_scores(torch.tensor([[0.0, 1.0]]), 1, 2, 1, 4).tolist()
        [[[0.0, 0.25, 0.75, 1.0]]]
    """
    grid = scores.double().unflatten(1, (1, height, width))
    return interpolate(grid, (new_height, new_width), mode="bilinear", align_corners=False).squeeze(1)


def holistic_scores(local: torch.Tensor, overall: torch.Tensor) -> torch.Tensor:
    """Sum of two scores `(batch, tokens)`, each brought to unit length over the tokens: float64.

    Example:
        >>> holistic_scores(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).tolist()
        [[0.6, 0.8]]
    """
    return normalize(local.double(), dim=1) + normalize(overall.double(), dim=1)
