"""A context made of plain tensors, so that methods run without a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from vtprune.context import Context
from vtprune.layout import ImageLayout, Segment, grid_layout
from vtprune.pruner import Signal

_NEEDS = {
    "encoder_attention": Signal.ENCODER_ATTENTION,
    "encoder_keys": Signal.ENCODER_KEYS,
    "encoder_features": Signal.ENCODER_FEATURES,
    "encoder_cls": Signal.ENCODER_CLS,
    "image_hash": Signal.IMAGE_HASH,
    "text": Signal.TEXT_EMBEDDINGS,
    "text_mask": Signal.TEXT_EMBEDDINGS,
    "last_token_attention": Signal.DECODER_ATTENTION,
    "queries": Signal.DECODER_STATES,
    "keys": Signal.DECODER_STATES,
}


class FakeContext(Context):
    """Serves the tensors it is given.

    Args:
        layout: Layout of every image.
        tensors: The signals by their names in `Context`; `hidden` is required.
        projector: Matrix that stands for the projector, `(encoder_dim, dim)`.
        signals: Signals that may be asked for; all by default.
        layer: Decoder layer of the stage.
    """

    def __init__(
        self,
        layout: ImageLayout,
        tensors: dict[str, torch.Tensor],
        *,
        projector: torch.Tensor | None = None,
        signals: frozenset[Signal] | None = None,
        layer: int = 0,
    ) -> None:
        self.layout = layout
        self.tensors = tensors
        self.projector = projector
        self.signals = frozenset(Signal) if signals is None else signals
        self.layer = layer
        self.depth = 4
        self.batch, self.tokens = tensors["hidden"].shape[:2]

    def images(self, which: Sequence[int]) -> FakeContext:
        """The same images in another batch."""
        tensors = {name: tensor[list(which)] for name, tensor in self.tensors.items()}
        return FakeContext(self.layout, tensors, projector=self.projector, signals=self.signals, layer=self.layer)

    def to(self, target: torch.device | torch.dtype) -> FakeContext:
        """The same on another device or in another floating-point type."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            if isinstance(target, torch.dtype) and not tensor.is_floating_point():
                return tensor
            return tensor.to(target)

        return FakeContext(
            self.layout,
            {name: moved(tensor) for name, tensor in self.tensors.items()},
            projector=None if self.projector is None else moved(self.projector),
            signals=self.signals,
            layer=self.layer,
        )

    def _signal(self, name: str) -> torch.Tensor:
        if name in _NEEDS and _NEEDS[name] not in self.signals:
            raise KeyError(f"{name} was asked for without declaring {_NEEDS[name]}")
        return self.tensors[name]

    @property
    def hidden(self) -> torch.Tensor:
        return self._signal("hidden")

    @cached_property
    def origin(self) -> torch.Tensor:
        return torch.arange(self.tokens, device=self.hidden.device).expand(self.batch, -1)

    @cached_property
    def is_patch(self) -> torch.Tensor:
        patches = torch.tensor(self.layout.patches, device=self.hidden.device)
        return (patches >= 0).expand(self.batch, -1)

    @property
    def encoder_attention(self) -> torch.Tensor:
        return self._signal("encoder_attention")

    @property
    def encoder_keys(self) -> torch.Tensor:
        return self._signal("encoder_keys")

    @property
    def encoder_features(self) -> torch.Tensor:
        return self._signal("encoder_features")

    @property
    def encoder_cls(self) -> torch.Tensor:
        return self._signal("encoder_cls")

    @property
    def image_hash(self) -> torch.Tensor:
        return self._signal("image_hash")

    @property
    def text(self) -> torch.Tensor:
        return self._signal("text")

    @property
    def text_mask(self) -> torch.Tensor:
        return self._signal("text_mask")

    @property
    def last_token_attention(self) -> torch.Tensor:
        return self._signal("last_token_attention")

    @property
    def queries(self) -> torch.Tensor:
        return self._signal("queries")

    @property
    def keys(self) -> torch.Tensor:
        return self._signal("keys")

    def project(self, features: torch.Tensor) -> torch.Tensor:
        return features if self.projector is None else features @ self.projector


def random_context(
    layout: ImageLayout, batch: int = 3, *, signals: frozenset[Signal] | None = None, layer: int = 2
) -> FakeContext:
    """Random signals of every kind; separators have no encoder side, and the last words are padding."""
    heads, width, dim, encoder_dim, length = 4, 8, 16, 12, 7
    is_patch = torch.tensor(layout.patches) >= 0
    tokens = layout.tokens
    encoder = torch.randn(batch, tokens, encoder_dim).masked_fill(~is_patch[:, None], 0)
    text_mask = torch.arange(length) < torch.randint(1, length, (batch, 1))
    tensors = {
        "hidden": torch.randn(batch, tokens, dim),
        "encoder_attention": torch.randn(batch, heads, tokens).softmax(-1).masked_fill(~is_patch, -1),
        "encoder_keys": torch.randn(batch, heads, tokens, width).masked_fill(~is_patch[:, None], 0),
        "encoder_features": encoder,
        "encoder_cls": torch.randn(batch, layout.views, encoder_dim),
        "image_hash": torch.randint(-(2**63), 2**63 - 1, (batch,)),
        "text": torch.randn(batch, length, dim),
        "text_mask": text_mask,
        "last_token_attention": torch.randn(batch, heads, tokens).softmax(-1),
        "queries": torch.randn(batch, heads, tokens, width),
        "keys": torch.randn(batch, heads // 2, tokens, width),
    }
    return FakeContext(layout, tensors, projector=torch.randn(encoder_dim, dim), signals=signals, layer=layer)


def anyres_layout() -> ImageLayout:
    """A 4 x 4 thumbnail, then 2 x 2 crops of 4 x 4 patches unpadded to 6 x 8, each row closed by a newline token."""
    patches = list(range(16))
    for row in range(1, 7):
        for column in range(8):
            view = 1 + row // 4 * 2 + column // 4
            patches.append(view * 16 + row % 4 * 4 + column % 4)
        patches.append(-1)
    return ImageLayout((Segment(4, 4), Segment(6, 8, newline=True)), tuple(patches), views=5, patches_per_view=16)


SQUARE = grid_layout(6, 6)
ANYRES = anyres_layout()
