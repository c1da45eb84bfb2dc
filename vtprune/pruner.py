"""What a pruning method is: hyper-parameters, declared needs, and one function from a context to kept tokens."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch

from vtprune.ops.decay import geometric_counts

if TYPE_CHECKING:
    from vtprune.context import Context
    from vtprune.layout import ImageLayout


class Signal(StrEnum):
    """What a method may look at; the engine collects only what the chosen method declares.

    The tokens' own states (`Context.hidden`) need no declaration: at decoder layer 0 they are the projected features.
    """

    ENCODER_ATTENTION = "encoder_attention"
    ENCODER_KEYS = "encoder_keys"
    ENCODER_FEATURES = "encoder_features"
    ENCODER_CLS = "encoder_cls"
    ENCODER_LAYERS = "encoder_layers"
    IMAGE_HASH = "image_hash"
    PIXELS = "pixels"
    CLIP_TEXT = "clip_text"
    TEXT_EMBEDDINGS = "text_embeddings"
    DECODER_ATTENTION = "decoder_attention"
    DECODER_STATES = "decoder_states"
    UNROTATED_STATES = "unrotated_states"
    NEXT_STATES = "next_states"
    NEXT_UNROTATED_STATES = "next_unrotated_states"


class Depths(NamedTuple):
    """How deep a model is: a method that names layers of the paper's model is fitted to it.

    Args:
        decoder: Layers of the language model.
        encoder: Layers of the vision tower.
    """

    decoder: int
    encoder: int


@dataclass(frozen=True)
class Reduction:
    """The outcome of one stage for a batch of images that have the same number of tokens.

    Args:
        kept: Which of the present tokens live on, `(batch, kept)`, distinct within an image, any order.
        features: New states for the survivors, `(batch, kept, dim)`, row by row as `kept` (merging methods); `None`
            leaves each survivor as it is. A merged token takes the place of the token named in `kept`.
        valid: `(batch, kept)` booleans when images keep different numbers of tokens (adaptive methods); `False`
            entries are ignored. Costs one host synchronisation; leave `None` for fixed budgets.
        sizes: How many tokens each survivor stands for, `(batch, kept)`, for proportional attention: from this stage on
            its logarithm is added to every attention logit of the survivor as a key. `None` for plain attention.
        ordered: Keep the order of `kept` in the sequence where positions are packed. By default survivors stand in
            raster order.
    """

    kept: torch.Tensor
    features: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    ordered: bool = False


@dataclass(frozen=True)
class Pruner(ABC):
    """Base class of all methods: a frozen dataclass whose fields are the method's hyper-parameters.

    A subclass fills the class variables, registers itself with `vtprune.register` and writes `reduce`. It knows no
    model: everything it may look at comes through the context.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    summary: ClassVar[str]
    signals: ClassVar[frozenset[Signal]] = frozenset()
    optional_signals: ClassVar[frozenset[Signal]] = frozenset()
    """What the method looks at where the model has it, such as a CLS token, and does without elsewhere."""
    training_free: ClassVar[bool] = True
    query_aware: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    reorders: ClassVar[bool] = False
    """Whether survivors may stand in another order than that of the raster where positions are packed."""
    default_positions: ClassVar[str] = "pack"
    golden: ClassVar[str | None] = None
    whole_images: ClassVar[bool] = False
    """Whether the method needs all tokens of an image, as they lie in its raster, so that nothing can come before."""
    presets: ClassVar[Mapping[int, int]] = {}
    """Budgets of published tables: nominal average -> tokens kept at the end, for 576 tokens and 32 layers."""
    preset_layers: ClassVar[tuple[int, ...] | None] = None
    """The only `layers` that `presets` belong to; `None` for any."""

    def fit(self, depths: Depths) -> Self:
        """The same method with layers that suit a model; those the user chose stay.

        Methods whose paper names layers of one model scale them here. Until then `layers` and `encoder_layers` are
        those of the paper's model.
        """
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers before which tokens are removed, ascending; 0 is before the language model.

        A layer may be named twice: its stages then run one after another.
        """
        return (0,)

    @property
    def encoder_layers(self) -> tuple[int, ...]:
        """Layers of the vision tower that `Context.encoder_layer` serves, in its order; negative from the last one.

        Asked for only of methods that declare `Signal.ENCODER_LAYERS`.
        """
        return ()

    def stage_signals(self, stage: int) -> frozenset[Signal]:
        """The signals that a stage looks at; `signals` unless stages differ."""
        return self.signals

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        """Tokens of one image left after each stage, for `tokens` at the start and the budget `keep`."""
        return (keep,) * len(self.layers)

    def attainable(self, layout: ImageLayout, keep: int) -> int:
        """The largest budget not above `keep` that the method can meet exactly; `keep` unless its sizes are fixed.

        Args:
            layout: The image, nothing of it removed yet.
            keep: The budget that was asked for, 1 or more.

        Raises:
            ValueError: The method can keep no so small number of tokens.
        """
        return keep

    def stage_encoder_layers(self, stage: int) -> tuple[int, ...]:
        """The layers that `Context.encoder_layer` serves to a stage; `encoder_layers` unless stages differ."""
        return self.encoder_layers

    @property
    def weighs_attention(self) -> bool:
        """Whether reductions carry `sizes`, which needs an attention implementation with additive masks."""
        return False

    @abstractmethod
    def reduce(self, context: Context, keep: int) -> Reduction:
        """Chooses `keep` of the `context.tokens` tokens of every image.

        Args:
            context: The images of one group, all with the same number of tokens.
            keep: Tokens to keep, at least 1 and fewer than `context.tokens`.
        """

    def reduce_adaptive(self, context: Context) -> Reduction:
        """Keeps as many tokens as the method itself finds right, at least one; for `Budget(adaptive=True)`.

        Methods with a count of their own override it; images may keep different numbers by `Reduction.valid`.

        Raises:
            ValueError: The method has no count of its own.
        """
        raise ValueError(f"{self.name} has no token count of its own; give a budget such as 64")

    @property
    def is_adaptive(self) -> bool:
        """Whether the method can choose the number of tokens itself."""
        return type(self).reduce_adaptive is not Pruner.reduce_adaptive

    def preset(self, average: float, tokens: int, depth: int) -> int | None:
        """The budget with which published tables reach a nominal average; `None` where there is none.

        Args:
            average: Tokens on average over the decoder layers, counted nominally.
            tokens: Tokens of the image; published tables speak of 576.
            depth: Decoder layers; published tables speak of 32.
        """
        if (tokens, depth, average % 1) != (576, 32, 0) or self.preset_layers not in (None, self.layers):
            return None
        return self.presets.get(round(average))

    @classmethod
    def with_presets(cls) -> Self:
        """The variant of the method that `presets` speaks of; the default one unless published settings differ."""
        return cls()

    def config(self) -> dict[str, Any]:
        """The hyper-parameters as plain data, for logs and result files."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class StagedPruner(Pruner):
    """Base class of methods whose paper names several decoder layers of one model.

    A subclass fills `paper_stages`, and `paper_depth` where that model has other than 32 layers.

    Args:
        stages: Decoder layers before which tokens are removed, ascending, 1 or more. `None` takes the paper's, scaled
            to the model.

    Raises:
        TypeError: `stages` is no tuple of integers.
        ValueError: A layer below 1, or stages that do not ascend.
    """

    stages: tuple[int, ...] | None = None

    paper_stages: ClassVar[tuple[int, ...]]
    paper_depth: ClassVar[int] = 32

    def __post_init__(self) -> None:
        check_stages(self.stages, lowest=1, owner=self.name)

    def fit(self, depths: Depths) -> Self:
        """Moves the paper's stages to the same relative depth."""
        if self.stages is not None:
            return self
        return dataclasses.replace(self, stages=scale_layers(self.paper_stages, depths.decoder, self.paper_depth))

    @property
    def layers(self) -> tuple[int, ...]:
        """The stages, or the paper's until the method is fitted."""
        return self.paper_stages if self.stages is None else self.stages

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        """One share for all stages, each count rounded down."""
        return geometric_counts(tokens, keep, len(self.layers))


def check_layer(layer: int, *, lowest: int = 0, owner: str) -> None:
    """Refuses a decoder layer that is no integer or lies below `lowest`."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"{owner}: layer must be an integer, got {layer!r}")
    if layer < lowest:
        raise ValueError(f"{owner}: layer must be at least {lowest}, got {layer}; layer k means before decoder layer k")


def check_flag(owner: str, name: str, value: object) -> None:
    """Refuses a hyper-parameter that is neither `True` nor `False`."""
    if not isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be True or False, got {value!r}")


def check_stages(stages: object, *, lowest: int = 0, owner: str) -> None:
    """Refuses stages that are no ascending tuple of decoder layers, `lowest` or above; `None` is allowed."""
    if stages is None:
        return
    if not isinstance(stages, tuple) or not stages:
        raise TypeError(f"{owner}: stages must be a tuple of decoder layers or None, got {stages!r}")
    for layer in stages:
        check_layer(layer, lowest=lowest, owner=owner)
    if list(stages) != sorted(set(stages)):
        raise ValueError(f"{owner}: stages must ascend, got {stages!r}")


def scale_layers(layers: tuple[int, ...], depth: int, paper_depth: int, *, lowest: int = 1) -> tuple[int, ...]:
    """Moves the layers of a paper's model to the same relative depth of another one, distinct and ascending.

    Args:
        layers: Ascending layers of the paper's model.
        depth: Layers of the model at hand.
        paper_depth: Layers of the paper's model.
        lowest: The first layer allowed.

    Raises:
        ValueError: The model has too few layers for that many stages.

    Example:
        >>> scale_layers((8, 16, 24), 32, 32), scale_layers((8, 16, 24), 8, 32)
        ((8, 16, 24), (2, 4, 6))
    """
    if depth - lowest < len(layers):
        raise ValueError(f"{len(layers)} stages do not fit into {depth} layers; name fewer stages")
    scaled: list[int] = []
    for layer in layers:
        below = scaled[-1] + 1 if scaled else lowest
        scaled.append(max(below, round(layer * depth / paper_depth)))
    highest = depth
    for place in reversed(range(len(scaled))):
        highest = min(highest - 1, scaled[place])
        scaled[place] = highest
    return tuple(scaled)
