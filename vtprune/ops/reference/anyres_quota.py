"""Plain loops of the operations that share a budget among crops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def cell_owner(height: int, width: int, row_edges: Sequence[float], column_edges: Sequence[float]) -> list[int]:
    """The part of each cell, row by row."""
    owners = []
    for row in range(height):
        for column in range(width):
            band = len([edge for edge in row_edges if edge <= row])
            owners.append(band * (len(column_edges) + 1) + len([edge for edge in column_edges if edge <= column]))
    return owners


def sum_by_owner(values: torch.Tensor, owner: Sequence[int], parts: int) -> list[float]:
    """Sums of `(cells,)` by part."""
    return [
        math.fsum(float(value) for value, part in zip(values, owner, strict=True) if part == wanted)
        for wanted in range(parts)
    ]


def weighted_shares(weights: Sequence[float], total: int, capacity: Sequence[int]) -> list[int]:
    """Gives tokens away one at a time."""
    shares = [0] * len(capacity)
    for _ in range(total):
        open_parts = [part for part, share in enumerate(shares) if share < capacity[part]]
        claims = {part: max(weights[part], 0.0) / (2 * shares[part] + 1) for part in open_parts}
        shares[min(open_parts, key=lambda part: (-claims[part], shares[part], part))] += 1
    return shares


def within_quota(scores: torch.Tensor, quota: int) -> list[bool]:
    """Whether fewer than `quota` of the `(tokens,)` scores come before each."""
    values = scores.tolist()
    flags = []
    for token, score in enumerate(values):
        before = sum(other > score or (other == score and place < token) for place, other in enumerate(values))
        flags.append(before < quota)
    return flags


def crop_weights(
    scores: torch.Tensor, height: int, width: int, crops: tuple[int, int], temperature: float
) -> list[float]:
    """GlobalCom2's weights of the crops from `(height * width,)` scores, cell by cell."""
    rows, columns = crops
    sums = [0.0] * (rows * columns)
    for row in range(height):
        for column in range(width):
            band = min(row // max(height // rows, 1), rows - 1)
            place = min(column // max(width // columns, 1), columns - 1)
            sums[band * columns + place] += float(scores[row * width + column])
    powers = [math.exp((value - max(sums)) / temperature) for value in sums]
    shares = [power / sum(powers) for power in powers]
    return [1 + share - sum(shares) / len(shares) for share in shares]


def resized_scores(scores: torch.Tensor, height: int, width: int, new_height: int, new_width: int) -> list[list[float]]:
    """Bilinear interpolation of `(height * width,)` at every new centre."""

    def along(place: int, old: int, new: int) -> tuple[int, int, float]:
        centre = max((place + 0.5) * old / new - 0.5, 0.0)
        below = min(int(centre), old - 1)
        return below, min(below + 1, old - 1), centre - below

    old = scores.double().view(height, width).tolist()
    resized = []
    for row in range(new_height):
        top, bottom, down = along(row, height, new_height)
        line = []
        for column in range(new_width):
            left, right, across = along(column, width, new_width)
            upper = old[top][left] * (1 - across) + old[top][right] * across
            lower = old[bottom][left] * (1 - across) + old[bottom][right] * across
            line.append(upper * (1 - down) + lower * down)
        resized.append(line)
    return resized


def holistic_scores(local: torch.Tensor, overall: torch.Tensor) -> list[float]:
    """Sum of two `(tokens,)` scores over their lengths."""

    def unit(values: list[float]) -> list[float]:
        length = math.sqrt(math.fsum(value * value for value in values))
        return [value / length if length else 0.0 for value in values]

    return [one + other for one, other in zip(unit(local.tolist()), unit(overall.tolist()), strict=True)]
