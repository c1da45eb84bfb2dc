"""M3: nested scales of pooled tokens, for models trained with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.layout import ImageLayout
from vtprune.ops.pool import block_pool
from vtprune.pruner import Pruner, Reduction
from vtprune.registry import register


@register
@dataclass(frozen=True)
class M3(Pruner):
    """Averages square blocks of projected tokens down to one of the scales that the model was trained with.

    Meets only the sizes that follow from them; `attainable` tells the one for a budget. With several views (anyres) all
    grids are pooled by the same kernel, and newline tokens are dropped. The paper's code pools views before they are
    unpadded and joined; here incomplete border blocks of an unpadded grid are dropped.

    Args:
        scales: Tokens a view was trained with, squares. Those whose side does not divide the view's are left out.

    Raises:
        TypeError: `scales` is no tuple of integers.
        ValueError: `scales` is empty or holds a number that is no square.

    Example:
        >>> from vtprune.layout import grid_layout
        >>> M3().attainable(grid_layout(24, 24), 100)
        36
    """

    scales: tuple[int, ...] = (1, 9, 36, 144, 576)

    name = "m3"
    paper = "Matryoshka Multimodal Models, ICLR 2025, arXiv 2405.17430"
    year = 2024
    summary = "Averages square blocks of tokens to nested sizes that the model was trained with."
    whole_images = True
    training_free = False
    merges = True
    golden = "m3.npz"

    def __post_init__(self) -> None:
        if not isinstance(self.scales, tuple) or not all(type(scale) is int for scale in self.scales):
            raise TypeError(f"{self.name}: scales must be a tuple of integers, got {self.scales!r}")
        if not self.scales or any(scale < 1 or math.isqrt(scale) ** 2 != scale for scale in self.scales):
            raise ValueError(f"{self.name}: scales must be one or more squares, 1 or above, got {self.scales!r}")

    def attainable(self, layout: ImageLayout, keep: int) -> int:
        """The largest trained size of the image not above `keep`, or all tokens if there are no more.

        Raises:
            ValueError: Every size is above `keep`, or the views are not square.
        """
        if keep >= layout.tokens:
            return layout.tokens
        sizes = self._sizes(layout)
        if not any(size <= keep for size in sizes):
            raise ValueError(f"{self.name} cannot keep {keep} tokens; its sizes for this image are {sorted(sizes)}")
        return max(size for size in sizes if size <= keep)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Pools all grids by the kernel that gives `keep` tokens."""
        sizes = self._sizes(context.layout)
        if keep not in sizes:
            raise ValueError(f"{self.name} cannot keep {keep} tokens; its sizes for this image are {sorted(sizes)}")
        kept, features = [], []
        for grid in context.grids:
            tokens = grid.flatten()
            pooled, centres = block_pool(context.hidden[:, tokens], grid.shape[0], grid.shape[1], sizes[keep])
            kept.append(tokens[centres])
            features.append(pooled)
        return Reduction(torch.cat(kept).expand(context.batch, -1), features=torch.cat(features, dim=1))

    def _sizes(self, layout: ImageLayout) -> dict[int, int]:
        """Tokens that come out of the image, with the kernel for each."""
        side = math.isqrt(layout.patches_per_view)
        if side * side != layout.patches_per_view:
            raise ValueError(f"{self.name} needs square encoder views, got {layout.patches_per_view} patches a view")
        grids = [(segment.height, segment.width) for segment in layout.segments if segment.width]
        scales = (math.isqrt(scale) for scale in self.scales)
        kernels = [side // scale for scale in scales if side % scale == 0]
        return {
            sum((height // kernel) * (width // kernel) for height, width in grids): kernel
            for kernel in kernels
            if all(kernel <= min(grid) for grid in grids)
        }
