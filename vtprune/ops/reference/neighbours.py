"""Plain loops of the operation that finds neighbours on a grid."""

from __future__ import annotations

from collections.abc import Sequence


def grid_neighbours(tokens: Sequence[int], height: int, width: int, *, wrap: bool = False) -> list[list[int]]:
    """Left, right, upper and lower neighbour of each token, the token itself where there is none."""
    found = []
    for token in tokens:
        if wrap:
            found.append([min(max(token + step, 0), height * width - 1) for step in (-1, 1, -width, width)])
            continue
        row, column = divmod(token, width)
        around = []
        for other_row, other_column in ((row, column - 1), (row, column + 1), (row - 1, column), (row + 1, column)):
            inside = 0 <= other_row < height and 0 <= other_column < width
            around.append(other_row * width + other_column if inside else token)
        found.append(around)
    return found
