"""Dot products of all tokens of a picture with each other."""

from __future__ import annotations

import torch

# Rows of a strip on the CPU: few enough to leave out most of what lies below the diagonal.
_ROWS = 96


def gram(rows: torch.Tensor) -> torch.Tensor:
    """`rows @ rows.mT`, exactly symmetric, which a product of matrices is not; on the CPU each pair is computed once.

    Args:
        rows: `(batch, tokens, dim)`.

    Example:
        >>> gram(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])).tolist()
        [[[5.0, 3.0], [3.0, 9.0]]]
    """
    batch, count, _ = rows.shape
    if rows.device.type != "cpu" or count <= _ROWS:
        return _symmetric(rows @ rows.mT)
    products = rows.new_empty(batch, count, count)
    for start in range(0, count, _ROWS):
        stop = start + _ROWS
        strip = rows[:, start:stop] @ rows[:, start:].mT
        products[:, start:stop, stop:] = strip[:, :, _ROWS:]
        products[:, stop:, start:stop] = strip[:, :, _ROWS:].mT
        products[:, start:stop, start:stop] = _symmetric(strip[:, :, :_ROWS])
    return products


def _symmetric(square: torch.Tensor) -> torch.Tensor:
    return torch.maximum(square, square.mT)
