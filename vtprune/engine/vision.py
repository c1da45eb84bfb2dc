"""What is recorded while the vision tower runs: layouts of the images, and the encoder signals that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from vtprune.engine.taps import AttentionStates
from vtprune.layout import ImageLayout
from vtprune.ops.attention import attention_rows, received_attention

if TYPE_CHECKING:
    from vtprune.adapters.base import Adapter, Borders


@dataclass
class VisionRecord:
    """One run of the vision tower: what it was given, and what was seen of it.

    What comes from the tower is brought to patches: those of all images, one after another.

    Args:
        adapter: Knows how the tower's rows become patches.
        kind: `"image"` or `"video"`.
        inputs: The arguments of the method that encodes.
        layouts: Of the entries of the image features.
        arranged: Whether the adapter has seen the prompt that they belong to.
    """

    adapter: Adapter
    kind: str
    inputs: dict[str, Any]
    layouts: Sequence[ImageLayout] = ()
    arranged: bool = False
    image_hash: torch.Tensor | None = None
    features: torch.Tensor | None = None
    cls_states: list[torch.Tensor] = field(default_factory=list)
    calls: dict[int, list[AttentionStates]] = field(default_factory=dict)
    outputs: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    @cached_property
    def borders(self) -> Borders:
        """What makes several entries one image."""
        return self.adapter.borders_of(self.kind, self.inputs)

    @property
    def pixels(self) -> torch.Tensor:
        """The pixels as the processor made them."""
        found = next(value for name, value in self.inputs.items() if name.startswith("pixel_values"))
        assert isinstance(found, torch.Tensor)
        return found

    @cached_property
    def view_offsets(self) -> list[int]:
        """First view of each image."""
        return _starts(layout.views for layout in self.layouts)

    @cached_property
    def patch_offsets(self) -> list[int]:
        """First patch of each image."""
        return _starts(layout.total_patches for layout in self.layouts)

    @cached_property
    def attention(self) -> torch.Tensor:
        """Attention received by each patch in the layer that feeds the projector, `(patches, heads)`, fp32."""
        return self.looked_at(self.adapter.vision.features[-1])

    @cached_property
    def keys(self) -> torch.Tensor:
        """Keys of each patch in that layer, `(patches, heads, head_dim)`."""
        return self.keys_of(self.adapter.vision.features[-1])

    @cached_property
    def patch_features(self) -> torch.Tensor:
        """Rows that the projector was given, `(patches, encoder_dim)`."""
        assert self.features is not None
        return self.features.flatten(0, -2)

    @cached_property
    def cls(self) -> torch.Tensor:
        """The CLS token of each view beside those features, `(views, encoder_dim)`."""
        return torch.cat(self.cls_states, dim=-1)

    def states_of(self, layer: int) -> list[AttentionStates]:
        """Query and key states of an encoder layer, one for each call of its attention."""
        if layer not in self.calls:
            raise RuntimeError(
                "the vision tower's attention was not seen; was the attention implementation changed after wrapping? "
                "Unwrap, change it, wrap again"
            )
        return self.calls[layer]

    def looked_at(self, layer: int) -> torch.Tensor:
        """Attention that each patch receives from CLS, or on average without one, `(patches, heads)`, fp32."""
        if not self.adapter.vision.has_cls:
            return self.received(layer)
        row = self.adapter.vision.cls
        found = []
        for states in self.states_of(layer):
            cls = states.queries[:, :, row:][:, :, :1] if row else states.queries[:, :, :1]
            found.append(attention_rows(cls, states.keys, states.scaling)[:, :, 0])
        return self._patches([values.transpose(1, 2) for values in found])

    def received(self, layer: int) -> torch.Tensor:
        """Attention that each patch receives on average over the rows of its view, `(patches, heads)`, fp32.

        Towers that attend within windows give nothing from outside the window; of merged patches this is the mean.
        """
        return self._received(
            [(states.queries, states.keys, states.scaling) for states in self.states_of(layer)], layer
        )

    def joint_received(self, layer: int) -> torch.Tensor:
        """`received` with all heads taken as one of full width, `(patches, 1)`."""
        return self._received([joint_heads(states) for states in self.states_of(layer)], layer)

    def _received(self, calls: Sequence[tuple[torch.Tensor, torch.Tensor, float]], layer: int) -> torch.Tensor:
        found = [
            received_attention(queries, keys, scaling, _mask(states)).transpose(1, 2)
            for (queries, keys, scaling), states in zip(calls, self.states_of(layer), strict=True)
        ]
        values = self._patches(found)
        counts: list[tuple[int, int]] = []
        extra = self.adapter.vision.extra_rows
        for layout in self.layouts:
            largest = self.adapter.view_rows(layout, self.inputs) - extra
            counts += [(size, size * largest // layout.patches_per_view + extra) for size in layout.view_sizes]
        if len({rows for _, rows in counts}) == 1:
            return values / counts[0][1]
        parts = values.split([size for size, _ in counts])
        return torch.cat([part / rows for part, (_, rows) in zip(parts, counts, strict=True)])

    def keys_of(self, layer: int) -> torch.Tensor:
        """Keys of each patch in an encoder layer, `(patches, heads, head_dim)`."""
        return self._patches([states.keys.transpose(1, 2) for states in self.states_of(layer)])

    def output_of(self, layer: int) -> torch.Tensor:
        """States that leave an encoder layer, `(patches, encoder_dim)`."""
        found = [output if output.dim() == 3 else output.unsqueeze(0) for output in self.outputs[layer]]
        lengths = [states.queries.shape[2] for states in self.states_of(layer)]
        if len(found) == 1 and found[0].shape[0] == 1 and len(lengths) > 1:
            # Views packed into one row are cut where attention cut them, so that each loses its own registers.
            found = list(found[0].split(lengths, dim=1))
        return self._patches(found)

    def traverse(self, visit: Callable[[torch.Tensor], torch.Tensor], pixels: bool) -> VisionRecord:
        """The same with what `visit` makes of each tensor that was seen; of those it was given with `pixels` alone.

        What is read on the host is left as it is.
        """
        host = self.adapter.host_arguments
        return VisionRecord(
            self.adapter,
            self.kind,
            {
                name: visit(value) if pixels and isinstance(value, torch.Tensor) and name not in host else value
                for name, value in self.inputs.items()
            },
            self.layouts,
            self.arranged,
            None if self.image_hash is None else visit(self.image_hash),
            None if self.features is None else visit(self.features),
            [visit(states) for states in self.cls_states],
            {layer: [states.traverse(visit) for states in calls] for layer, calls in self.calls.items()},
            {layer: [visit(states) for states in outputs] for layer, outputs in self.outputs.items()},
        )

    @property
    def host_values(self) -> tuple[str, ...]:
        """What it was given that is read on the host."""
        given = (self.inputs.get(name) for name in sorted(self.adapter.host_arguments))
        return tuple(str(value.tolist()) for value in given if isinstance(value, torch.Tensor) and value.is_cpu)

    def take_over(self, seen: VisionRecord) -> None:
        """Takes what was seen of the tower in a call like the one that this is a record of."""
        self.calls, self.outputs, self.cls_states = dict(seen.calls), dict(seen.outputs), list(seen.cls_states)
        if seen.features is not None:
            self.features = seen.features

    def patches(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Brings `(views, rows, ...)` of several calls to patches."""
        return self._patches(values)

    def _patches(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        flat = [self.adapter.vision.patches(value).flatten(0, 1) for value in values]
        rows = flat[0] if len(flat) == 1 else torch.cat(flat)
        patches = self.adapter.cells(rows, self.layouts, self.inputs)
        expected = sum(layout.total_patches for layout in self.layouts)
        if patches.shape[0] != expected:
            raise RuntimeError(
                f"{type(self.adapter).__name__} expected {expected} patches in the vision tower and saw "
                f"{patches.shape[0]}; this is a bug in the adapter or an unsupported setting of the model"
            )
        return patches


def _starts(sizes: Iterable[int]) -> list[int]:
    return list(accumulate(sizes, initial=0))[:-1]


def _mask(states: AttentionStates) -> torch.Tensor | None:
    mask = states.mask
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return mask[:, None, None, :].bool()
    return mask if isinstance(mask, torch.Tensor) and mask.dim() == 4 else None


def joint_heads(states: AttentionStates) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Queries and keys with all heads side by side as one, `(views, 1, rows, width)`, and the scale for that width."""
    repeat = states.queries.shape[1] // states.keys.shape[1]
    keys = states.keys.repeat_interleave(repeat, dim=1)
    queries, keys = (part.transpose(1, 2).flatten(2).unsqueeze(1) for part in (states.queries, keys))
    return queries, keys, queries.shape[-1] ** -0.5


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


def gather_patches(values: torch.Tensor, patches: torch.Tensor, fill: float) -> torch.Tensor:
    """Rows of `(patches, ...)` at patch numbers `(batch, tokens)`; `fill` where the number is negative."""
    rows = values[patches.clamp_min(0)]
    inside = (patches >= 0).view(*patches.shape, *[1] * (rows.dim() - patches.dim()))
    return rows.masked_fill(~inside, fill)


def hash_pictures(pictures: torch.Tensor | Sequence[torch.Tensor], layouts: Sequence[ImageLayout]) -> torch.Tensor:
    """`hash_pixels` of each image, however the processor packs them, `(images,)`.

    Args:
        pictures: One entry an image; or views of all images in rows that are filled up with zeros,
            `(rows, views, channels, height, width)`; or patches of all images, one after another, `(patches, ...)`.
        layouts: Of the images.

    Raises:
        ValueError: The pictures lie in none of these ways.
    """
    images = len(layouts)
    if not isinstance(pictures, torch.Tensor):
        return torch.cat([hash_pixels(picture.unsqueeze(0)) for picture in pictures])
    if pictures.shape[0] == images:
        return hash_pixels(pictures)
    if pictures.dim() > 3 and pictures.shape[0] * pictures.shape[1] >= images:
        views = hash_pixels(pictures.flatten(0, 1))
        return views[views != 0][:images]
    patches = pictures.flatten(0, -2)
    sizes = [layout.total_patches for layout in layouts]
    each = patches.shape[0] // sum(sizes)
    if not each or each * sum(sizes) != patches.shape[0]:
        raise ValueError(f"pixels of shape {tuple(pictures.shape)} are not those of {images} images")
    counts = [size * each for size in sizes]
    place = torch.cat([torch.arange(count, device=patches.device) for count in counts])
    mixed = hash_pixels(patches) * (place * 0x9E3779B97F4A7C1 | 1)
    return torch.stack([part.sum() for part in (mixed ^ (mixed >> 29)).split(counts)])


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
