"""Dot products and cosines of all tokens of a picture with each other."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

# Rows of a strip on the CPU: few enough to leave out most of what lies below the diagonal, and not so few that a
# product takes another path, which would sum in another order.
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
    strips = count // _ROWS if rows.device.type == "cpu" else 1
    if strips < 2:
        return _symmetric(rows @ rows.mT)
    products = rows.new_empty(batch, count, count)
    for strip in range(strips):
        start, stop = strip * count // strips, (strip + 1) * count // strips
        found = rows[:, start:stop] @ rows[:, start:].mT
        own, behind = found.split([stop - start, count - stop], dim=2)
        products[:, start:stop, start:stop] = _symmetric(own)
        products[:, start:stop, stop:] = behind
        products[:, stop:, start:stop] = behind.mT
    return products


def cosine_gram(tokens: torch.Tensor) -> torch.Tensor:
    """Cosines of all tokens with each other, exactly symmetric; 0 where one vector is zero.

    In float64, which also keeps autocast from carrying out the product in half precision. On the CPU, those of many
    tokens in half precision are summed in float32, as kernels do on a device.

    Args:
        tokens: `(batch, tokens, dim)`.

    Example:
        >>> cosine_gram(torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])).tolist()
        [[[1.0, 0.0], [0.0, 0.0]]]
    """
    if tokens.element_size() == 2 and tokens.device.type == "cpu" and tokens.shape[1] >= 2 * _ROWS:
        with torch.autocast("cpu", enabled=False):
            return gram(normalize(tokens.float(), dim=-1))
    return gram(normalize(tokens.double(), dim=-1))


def _symmetric(square: torch.Tensor) -> torch.Tensor:
    return torch.maximum(square, square.mT)
