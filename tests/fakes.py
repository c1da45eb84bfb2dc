"""A context made of plain tensors, so that methods run without a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from vtprune.context import Context, EncoderLayer
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
    "clip_text": Signal.CLIP_TEXT,
    "clip_text_mask": Signal.CLIP_TEXT,
    "clip_text_truncated": Signal.CLIP_TEXT,
    "clip_text_last": Signal.CLIP_TEXT,
    "clip_projection": Signal.CLIP_TEXT,
    "inputs": Signal.TEXT_EMBEDDINGS,
    "pixels": Signal.PIXELS,
    "attention_map": Signal.DECODER_ATTENTION,
    "sequence_queries": Signal.DECODER_STATES,
    "sequence_keys": Signal.DECODER_STATES,
    "unrotated_last_token_attention": Signal.UNROTATED_STATES,
    "next_last_token_attention": Signal.NEXT_STATES,
    "next_keys": Signal.NEXT_STATES,
    "next_unrotated_queries": Signal.NEXT_UNROTATED_STATES,
    "next_unrotated_keys": Signal.NEXT_UNROTATED_STATES,
}
PREFIX = 2
"""Text slots before the image in a fake prompt, unless it is padded; the other text stands behind it."""


class FakeEncoderLayer(EncoderLayer):
    """Serves `encoder_layer<number>.<name>` of a fake context."""

    def __init__(self, context: FakeContext, number: int) -> None:
        self._context = context
        self._number = number

    def _of(self, name: str) -> torch.Tensor:
        if Signal.ENCODER_LAYERS not in self._context.signals:
            raise KeyError(f"{name} was asked for without declaring {Signal.ENCODER_LAYERS}")
        return self._context.tensors[f"encoder_layer{self._number}.{name}"]

    @property
    def attention(self) -> torch.Tensor:
        return self._of("attention")

    @property
    def received(self) -> torch.Tensor:
        return self._of("received")

    @property
    def logits(self) -> torch.Tensor:
        if not self._context.has_cls:
            raise ValueError("the tower has no CLS token")
        return self._of("logits")

    @property
    def joint_attention(self) -> torch.Tensor:
        return self._of("joint_attention")

    @property
    def keys(self) -> torch.Tensor:
        return self._of("keys")

    @property
    def output(self) -> torch.Tensor:
        return self._of("output")


class FakeContext(Context):
    """Serves the tensors it is given.

    The running sequence is `prefix` text slots, the image's tokens, then the rest of the text.

    Args:
        layout: Layout of every image.
        tensors: The signals by their names in `Context`; `hidden` is required. Methods of `Context` are served from
            `attention_map` `(batch, heads, length, tokens)`, `sequence_hidden`, `sequence_queries`, `sequence_keys`
            (over the whole running sequence), `clip_projection` `(batch, encoder_dim, clip_dim)` and `pixels` (what
            `encode_smaller` pools, `(batch, side * side, dim)`); encoder layers from `encoder_layer<number>.<name>`.
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
        has_cls: bool = True,
        scaling: float = 1.0,
        prefix: int = PREFIX,
    ) -> None:
        self.layout = layout
        self.has_cls = self.gives_cls = has_cls
        self.scaling = scaling
        self.prefix = prefix
        self.tensors = tensors
        self.projector = projector
        self.signals = frozenset(Signal) if signals is None else signals
        self.layer = layer
        self.depth = 4
        self.stage = 0
        self.batch, self.tokens = tensors["hidden"].shape[:2]

    def images(self, which: Sequence[int]) -> FakeContext:
        """The same images in another batch."""
        tensors = {name: tensor[list(which)] for name, tensor in self.tensors.items()}
        return FakeContext(
            self.layout,
            tensors,
            projector=self.projector,
            signals=self.signals,
            layer=self.layer,
            has_cls=self.has_cls,
            scaling=self.scaling,
            prefix=self.prefix,
        )

    def padded(self, columns: int) -> FakeContext:
        """The same prompt with padding at the left, in which nonsense stands."""
        amounts = {"text": -2, "text_mask": -1, "attention_map": -2, "sequence_hidden": -2}
        amounts |= {"sequence_queries": -2, "sequence_keys": -2}
        tensors = dict(self.tensors)
        for name, dim in amounts.items():
            if name in tensors:
                shape = list(tensors[name].shape)
                shape[dim] = columns
                fill = torch.inf if tensors[name].is_floating_point() else 0
                tensors[name] = torch.cat([tensors[name].new_full(shape, fill), tensors[name]], dim=dim)
        return FakeContext(
            self.layout,
            tensors,
            projector=self.projector,
            signals=self.signals,
            layer=self.layer,
            has_cls=self.has_cls,
            scaling=self.scaling,
            prefix=self.prefix + columns,
        )

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
            has_cls=self.has_cls,
            scaling=self.scaling,
            prefix=self.prefix,
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

    def encoder_layer(self, number: int) -> EncoderLayer:
        return FakeEncoderLayer(self, number)

    def encode_smaller(self, height: int, width: int) -> torch.Tensor:
        pixels = self._signal("pixels")
        side = round(pixels.shape[1] ** 0.5)
        grid = pixels.transpose(1, 2).unflatten(2, (side, side)).float()
        small = torch.nn.functional.adaptive_avg_pool2d(grid, (height, width))
        return small.flatten(2).transpose(1, 2).to(pixels.dtype)

    @property
    def clip_text(self) -> torch.Tensor:
        return self._signal("clip_text")

    @property
    def clip_text_mask(self) -> torch.Tensor:
        return self._signal("clip_text_mask")

    @property
    def clip_text_truncated(self) -> torch.Tensor:
        return self._signal("clip_text_truncated")

    @property
    def clip_text_last(self) -> torch.Tensor:
        return self._signal("clip_text_last")

    def clip_project(self, features: torch.Tensor, *, norm: bool = True) -> torch.Tensor:
        if norm:
            features = torch.nn.functional.layer_norm(features, features.shape[-1:])
        return features @ self._signal("clip_projection").to(features.dtype)

    @property
    def inputs(self) -> torch.Tensor:
        return self._signal("inputs")

    @cached_property
    def slots(self) -> torch.Tensor:
        return self.prefix + self.origin

    @cached_property
    def text_slots(self) -> torch.Tensor:
        texts = self.tensors["text_mask"].shape[1]
        here = torch.arange(texts, device=self.hidden.device).expand(self.batch, -1)
        return torch.where(here < self.prefix, here, here + self.tokens)

    @property
    def text_present(self) -> torch.Tensor:
        return self.tensors["text_mask"]

    @cached_property
    def text_follows(self) -> torch.Tensor:
        return self.text_present & (self.text_slots >= self.prefix + self.tokens)

    def columns(self, slots: torch.Tensor) -> torch.Tensor:
        # The words alone stand in `text` of a fake context, which has no columns for the image.
        return torch.where(slots < self.prefix, slots, (slots - self.tokens).clamp_min(self.prefix))

    def hidden_at(self, slots: torch.Tensor) -> torch.Tensor:
        states = self._signal("sequence_hidden")
        return states.gather(1, slots.unsqueeze(-1).expand(-1, -1, states.shape[-1]))

    def final_norm(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def attention_from(self, slots: torch.Tensor) -> torch.Tensor:
        return self._at("attention_map", slots)

    def strongest_attention_from(self, slots: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        strongest = self.attention_from(slots).amax(dim=1).unsqueeze(1)
        return strongest.masked_fill(~counted.unsqueeze(-1), 0).sum(dim=2)

    def queries_at(self, slots: torch.Tensor) -> torch.Tensor:
        return self._at("sequence_queries", slots)

    def keys_at(self, slots: torch.Tensor) -> torch.Tensor:
        return self._at("sequence_keys", slots)

    def _at(self, name: str, slots: torch.Tensor) -> torch.Tensor:
        states = self._signal(name)
        return states.gather(2, slots[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[-1]))

    @property
    def unrotated_last_token_attention(self) -> torch.Tensor:
        return self._signal("unrotated_last_token_attention")

    @property
    def next_last_token_attention(self) -> torch.Tensor:
        return self._signal("next_last_token_attention")

    @property
    def next_keys(self) -> torch.Tensor:
        return self._signal("next_keys")

    @property
    def next_unrotated_queries(self) -> torch.Tensor:
        return self._signal("next_unrotated_queries")

    @property
    def next_unrotated_keys(self) -> torch.Tensor:
        return self._signal("next_unrotated_keys")

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
    text_mask = torch.arange(length) < torch.randint(PREFIX + 1, length, (batch, 1))
    clip_dim, pieces, whole = 10, 2, tokens + length
    clip_text_mask = torch.arange(pieces) < torch.randint(1, pieces + 1, (batch, 1))
    layers: dict[str, torch.Tensor] = {}
    for number in range(3):
        logits = torch.randn(batch, heads, tokens) * 2
        layers |= {
            f"encoder_layer{number}.attention": logits.softmax(-1).masked_fill(~is_patch, -1),
            f"encoder_layer{number}.received": torch.rand(batch, heads, tokens).masked_fill(~is_patch, -1),
            f"encoder_layer{number}.logits": logits.masked_fill(~is_patch, torch.finfo(torch.float32).min),
            f"encoder_layer{number}.joint_attention": logits.sum(1).softmax(-1).masked_fill(~is_patch, -1),
            f"encoder_layer{number}.keys": torch.randn(batch, heads, tokens, width).masked_fill(~is_patch[:, None], 0),
            f"encoder_layer{number}.output": torch.randn(batch, tokens, encoder_dim).masked_fill(~is_patch[:, None], 0),
        }
    attention_map = torch.randn(batch, heads, whole, whole).softmax(-1)[..., PREFIX : PREFIX + tokens]
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
        "clip_text": torch.randn(batch, pieces, clip_dim),
        "clip_text_mask": clip_text_mask,
        "clip_text_truncated": torch.randn(batch, clip_dim),
        "clip_text_last": torch.randn(batch, clip_dim),
        "clip_projection": torch.randn(encoder_dim, clip_dim).expand(batch, -1, -1),
        "inputs": torch.randn(batch, tokens, dim),
        "pixels": torch.randn(batch, 36, dim),
        "attention_map": attention_map,
        "sequence_hidden": torch.randn(batch, whole, dim),
        "sequence_queries": torch.randn(batch, heads, whole, width),
        "sequence_keys": torch.randn(batch, heads // 2, whole, width),
        "unrotated_last_token_attention": torch.randn(batch, heads, tokens).softmax(-1),
        "next_last_token_attention": torch.randn(batch, heads, tokens).softmax(-1),
        "next_keys": torch.randn(batch, heads // 2, tokens, width),
        "next_unrotated_queries": torch.randn(batch, heads, tokens, width),
        "next_unrotated_keys": torch.randn(batch, heads // 2, tokens, width),
        **layers,
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
    return ImageLayout(
        (Segment(4, 4), Segment(6, 8, newline=True)), tuple(patches), views=5, patches_per_view=16, crops=(2, 2)
    )


SQUARE = grid_layout(6, 6)
ANYRES = anyres_layout()
