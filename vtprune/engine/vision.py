"""What is recorded while the vision tower runs: layouts of the images, and the encoder signals that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch

from vtprune.engine.taps import AttentionStates
from vtprune.layout import ImageLayout
from vtprune.ops.attention import attention_rows, mean_received_attention


@dataclass
class VisionRecord:
    """One run of the vision tower over `len(layouts)` images.

    Encoder tensors are per view, the views of all images one after another; `flat_patches` numbers their patches.
    """

    layouts: Sequence[ImageLayout]
    has_cls: bool
    image_hash: torch.Tensor | None = None
    features: torch.Tensor | None = None
    cls: list[torch.Tensor] = field(default_factory=list)
    states: AttentionStates | None = None
    layer_states: dict[int, AttentionStates] = field(default_factory=dict)
    layer_outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    pixels: torch.Tensor | None = None

    @cached_property
    def view_offsets(self) -> list[int]:
        """First view of each image."""
        offsets, start = [], 0
        for layout in self.layouts:
            offsets.append(start)
            start += layout.views
        return offsets

    @cached_property
    def attention(self) -> torch.Tensor:
        """Attention received by each patch, `(views, patches, heads)`, fp32."""
        return looked_at(_seen(self.states), self.has_cls).transpose(1, 2)

    @cached_property
    def keys(self) -> torch.Tensor:
        """Keys of each patch, `(views, patches, heads, head_dim)`."""
        return _seen(self.states).keys[:, :, int(self.has_cls) :].transpose(1, 2)

    def states_of(self, layer: int) -> AttentionStates:
        """Query and key states of an encoder layer that the method named."""
        return _seen(self.layer_states.get(layer))


def _seen(states: AttentionStates | None) -> AttentionStates:
    if states is None:
        raise RuntimeError(
            "the vision tower's attention was not seen; was the attention implementation changed after wrapping? "
            "Unwrap, change it, wrap again"
        )
    return states


def looked_at(states: AttentionStates, has_cls: bool) -> torch.Tensor:
    """Attention that each patch receives from CLS, or on average without one, `(views, heads, patches)`, fp32."""
    if has_cls:
        return attention_rows(states.queries[:, :, :1], states.keys, states.scaling)[:, :, 0, 1:]
    return mean_received_attention(states.queries, states.keys, states.scaling)


@lru_cache(maxsize=1024)
def patch_numbers(layout: ImageLayout, device: torch.device) -> torch.Tensor:
    """`layout.patches` on a device; kept there, because copying it at each prefill would wait for the device."""
    return torch.tensor(layout.patches, device=device)


@lru_cache(maxsize=1024)
def grids_on(layout: ImageLayout, device: torch.device) -> tuple[torch.Tensor, ...]:
    """`layout.grids` on a device, kept there for the same reason."""
    return tuple(grid.to(device) for grid in layout.grids)


@lru_cache(maxsize=1024)
def view_tokens_on(layout: ImageLayout, device: torch.device) -> tuple[torch.Tensor, ...]:
    """`layout.view_tokens` on a device, kept there for the same reason."""
    return tuple(view.to(device) for view in layout.view_tokens)


def gather_patches(per_view: torch.Tensor, patches: torch.Tensor, fill: float) -> torch.Tensor:
    """Rows of `(views, patches, ...)` at flat patch numbers `(batch, tokens)`; `fill` where the number is negative."""
    flat = per_view.flatten(0, 1)
    rows = flat[patches.clamp_min(0)]
    inside = (patches >= 0).view(*patches.shape, *[1] * (rows.dim() - patches.dim()))
    return rows.masked_fill(~inside, fill)


def hash_pixels(pixel_values: torch.Tensor) -> torch.Tensor:
    """A number per image that depends on its pixels alone, `(images,)` int64.

    The bits of the values are summed with position weights in wrapping integers, so that the order of summation and
    the batch do not matter, and zero padding (missing views) adds nothing.

    Example:
        >>> picture = torch.rand(1, 3, 4, 4)
        >>> bool((hash_pixels(picture) == hash_pixels(torch.cat([picture, picture * 2]))[0]).all())
        True
    """
    flat = pixel_values.flatten(1)
    integers: dict[int, Any] = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = flat.contiguous().view(integers[flat.element_size()]).to(torch.int64)
    weights = torch.arange(flat.shape[1], device=flat.device) * 0x9E3779B97F4A7C1 | 1
    mixed = bits * weights
    return (mixed ^ (mixed >> 29)).sum(dim=1)
