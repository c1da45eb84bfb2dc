"""M3's reduction: average pooling of the grid."""

from __future__ import annotations

import torch


def m3(features: torch.Tensor, scale: int) -> torch.Tensor:
    """Features `(batch, side * side, dim)` pooled to about `scale` tokens, borders that do not fill a block cut off."""
    batch, tokens, dim = features.shape
    side = round(tokens**0.5)
    kernel = side // round(scale**0.5)
    grid = features.view(batch, side, side, dim).permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(grid, kernel).flatten(2).transpose(1, 2)
