"""M3: nested scales of pooled tokens, for models trained with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.ops.pool import block_pool
from vtprune.pruner import Pruner, Reduction
from vtprune.registry import register


@register
@dataclass(frozen=True)
class M3(Pruner):
    """Averages square blocks of projected tokens down to one of the scales that the model was trained with.

    Meets only those sizes: `attainable` tells the one for a budget. With several views (anyres) each is pooled by the
    same kernel, and newline tokens are dropped. The paper's code pools views before they are unpadded and joined; on
    unpadded grids incomplete border blocks are dropped instead.

    Args:
        scales: Tokens a view was trained with, squares. Those whose side does not divide the view's are left out.

    Raises:
        TypeError: `scales` is no tuple of integers.
        ValueError: `scales` is empty or holds a number that is no square.

    Example:
        >>> M3().attainable(576, 100)
        36
    """

    scales: tuple[int, ...] = (1, 9, 36, 144, 576)

    name = "m3"
    paper = "Matryoshka Multimodal Models, ICLR 2025, arXiv 2405.17430"
    year = 2024
    summary = "Averages square blocks of tokens to nested sizes that the model was trained with."
    training_free = False
    merges = True
    golden = "m3.npz"

    def __post_init__(self) -> None:
        if not isinstance(self.scales, tuple) or not all(type(scale) is int for scale in self.scales):
            raise TypeError(f"{self.name}: scales must be a tuple of integers, got {self.scales!r}")
        if not self.scales or any(scale < 1 or math.isqrt(scale) ** 2 != scale for scale in self.scales):
            raise ValueError(f"{self.name}: scales must be one or more squares, 1 or above, got {self.scales!r}")

    def attainable(self, tokens: int, keep: int) -> int:
        """The largest scale not above `keep` for a single square view; `keep` itself where `tokens` is no square.

        Raises:
            ValueError: Every scale is above `keep`.
        """
        side = math.isqrt(tokens)
        if side * side != tokens:
            return keep
        sizes = [(side // kernel) ** 2 for kernel in self._kernels(side)]
        if not any(size <= keep for size in sizes):
            raise ValueError(f"{self.name} cannot keep {keep} of {tokens} tokens; its sizes are {sorted(sizes)}")
        return max(size for size in sizes if size <= keep)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Pools all grids by the kernel that gives `keep` tokens."""
        side = math.isqrt(context.layout.patches_per_view)
        if side * side != context.layout.patches_per_view:
            raise ValueError(
                f"{self.name} needs square encoder views, got {context.layout.patches_per_view} patches a view"
            )
        grids = context.grids
        sizes = {
            sum((grid.shape[0] // kernel) * (grid.shape[1] // kernel) for grid in grids): kernel
            for kernel in self._kernels(side)
            if all(kernel <= min(grid.shape) for grid in grids)
        }
        if keep not in sizes:
            raise ValueError(f"{self.name} cannot keep {keep} tokens; its sizes for this image are {sorted(sizes)}")
        kept, features = [], []
        for grid in grids:
            tokens = grid.flatten()
            pooled, centres = block_pool(context.hidden[:, tokens], grid.shape[0], grid.shape[1], sizes[keep])
            kept.append(tokens[centres])
            features.append(pooled)
        return Reduction(torch.cat(kept).expand(context.batch, -1), features=torch.cat(features, dim=1))

    def _kernels(self, side: int) -> list[int]:
        scales = (math.isqrt(scale) for scale in self.scales)
        return [side // scale for scale in scales if side % scale == 0]
