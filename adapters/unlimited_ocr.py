"""Unlimited-OCR: lines over all tiles, then lines of the whole picture, a newline after each, then a separator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.step3p7 import crops_first
from vtprune.adapters.towers import find_layers
from vtprune.layout import ImageLayout, Segment

_KIND = "reference_sliding_attention"


@register_adapter
class UnlimitedOcrAdapter(Adapter):
    """`UnlimitedOcrForConditionalGeneration`; views are the tiles in raster order and last the whole picture."""

    model_types = ("unlimited_ocr",)

    @cached_property
    def vision(self) -> Vision:
        """The second tower, whose patches are those of the first one after its convolutions."""
        layers, attentions = find_layers(self.base.get_submodule("vision_tower.vision_encoder"))
        return Vision(layers, attentions, (len(layers) - 1,), cls=0, prefix=1)

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Sides follow from the sizes of the views, the arrangement of tiles is an argument."""
        whole = self._side(inputs["pixel_values"])
        local = inputs.get("pixel_values_local")
        if local is None:
            return [mosaic_layout(0, 0, whole, whole)] * len(counts)
        tile = self._side(local)
        return [
            mosaic_layout(rows if many else 0, columns if many else 0, tile, whole)
            for (columns, rows), many in zip(inputs["patches_grid"], inputs["num_local_patches"], strict=True)
        ]

    def _side(self, pixels: torch.Tensor) -> int:
        """Patches along the side of a view of these pixels, after two convolutions of stride 2."""
        config: Any = self.model.config
        side = int(pixels.shape[-1]) // int(config.vision_config.sam_config.patch_size)
        return -(-side // 4)

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """The tower sees whole pictures first."""
        return crops_first(rows, layouts, 1)

    def window(self, layer: int) -> int | None:
        """None over the prompt; `causal_mask` sees to generated tokens."""
        return None if self.layer_kind(layer) == _KIND else super().window(layer)

    def causal_mask(
        self,
        hidden: torch.Tensor,
        keys: torch.Tensor | None,
        cache: Any,
        layer: int,
        columns: torch.Tensor | None = None,
    ) -> Any:
        """The prompt's tokens are seen by all, those after it within a window, of which the cache holds no more.

        Raises:
            ValueError: The cache is static.
        """
        if cache is None or self.layer_kind(layer) != _KIND or not cache.layers[layer].get_seq_length():
            return super().causal_mask(hidden, keys, cache, layer, columns)
        if getattr(cache, "is_compileable", False):
            raise ValueError(
                f"static caches of {type(self.model).__name__} set the length of the prompt aside beforehand, before "
                "tokens are removed; leave cache_implementation unset"
            )
        for own in cache.layers:
            # Generation told the cache how long the prompt is. Of a pruned one no more will come.
            if getattr(own, "prefill_length", None) is not None:
                own.prefill_length = own.prefill_cumulative_length
        held = cache.layers[layer]
        prompt = held.prefill_length
        batch, length = hidden.shape[:2]
        size, dropped = held.get_mask_sizes(length)
        slots = torch.arange(size, device=hidden.device)
        slots = slots + dropped * (slots >= prompt)
        queries = torch.arange(length, device=hidden.device).unsqueeze(1) + size + dropped - length
        window = int(self.text_config.sliding_window)
        allowed = (slots <= queries) & ((slots < prompt) | (queries - slots < window))
        found = allowed.expand(batch, 1, -1, -1)
        if keys is not None:
            found = found & keys[:, slots][:, None, None]
        if self.text_config._attn_implementation == "eager":
            return torch.zeros_like(found, dtype=hidden.dtype).masked_fill(~found, torch.finfo(hidden.dtype).min)
        return found


@lru_cache(maxsize=1024)
def mosaic_layout(rows: int, columns: int, tile: int, whole: int) -> ImageLayout:
    """The layout of `rows x columns` tiles of `tile x tile` patches and of the picture of `whole x whole` behind them.

    Example:
        >>> mosaic_layout(1, 2, 3, 4).tokens
        42
    """
    size = tile * tile
    segments: list[Segment] = []
    patches: list[int] = []
    if rows * columns:
        numbers = torch.arange(rows * columns * size).view(rows, columns, tile, tile).transpose(1, 2)
        lines = numbers.reshape(rows * tile, columns * tile)
        patches += torch.nn.functional.pad(lines, (0, 1), value=-1).flatten().tolist()
        segments.append(Segment(rows * tile, columns * tile, newline=True))
    lines = torch.arange(whole * whole).view(whole, whole) + rows * columns * size
    patches += [*torch.nn.functional.pad(lines, (0, 1), value=-1).flatten().tolist(), -1]
    segments += [Segment(whole, whole, newline=True), Segment(1, 0, newline=True)]
    shapes = (*[(tile, tile)] * (rows * columns), (whole, whole))
    return ImageLayout(
        tuple(segments),
        tuple(patches),
        views=len(shapes),
        patches_per_view=max(size, whole * whole),
        shapes=shapes,
    )
