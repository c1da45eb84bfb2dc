"""What a pruning method is: hyper-parameters, declared needs, and one function from a context to kept tokens."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

import torch

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
    IMAGE_HASH = "image_hash"
    TEXT_EMBEDDINGS = "text_embeddings"
    DECODER_ATTENTION = "decoder_attention"
    DECODER_STATES = "decoder_states"


@dataclass(frozen=True)
class Reduction:
    """The outcome of one stage for a batch of images that have the same number of tokens.

    Args:
        kept: Which of the present tokens live on, `(batch, kept)`, distinct within an image, any order.
        features: New states for the survivors, `(batch, kept, dim)`, row by row as `kept` (merging methods); `None`
            leaves each survivor as it is. A merged token takes the place of the token named in `kept`.
        valid: `(batch, kept)` booleans when images keep different numbers of tokens (adaptive methods); `False`
            entries are ignored. Costs one host synchronisation; leave `None` for fixed budgets.
        ordered: Keep the order of `kept` in the sequence where positions are packed. By default survivors stand in
            raster order.
    """

    kept: torch.Tensor
    features: torch.Tensor | None = None
    valid: torch.Tensor | None = None
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
    training_free: ClassVar[bool] = True
    query_aware: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    default_positions: ClassVar[str] = "pack"
    golden: ClassVar[str | None] = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers before which tokens are removed, ascending; 0 is before the language model."""
        return (0,)

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

    @abstractmethod
    def reduce(self, context: Context, keep: int) -> Reduction:
        """Chooses `keep` of the `context.tokens` tokens of every image.

        Args:
            context: The images of one group, all with the same number of tokens.
            keep: Tokens to keep, at least 1 and fewer than `context.tokens`.
        """

    def config(self) -> dict[str, Any]:
        """The hyper-parameters as plain data, for logs and result files."""
        return dataclasses.asdict(self)


def check_layer(layer: int, *, lowest: int = 0, owner: str) -> None:
    """Refuses a decoder layer that is no integer or lies below `lowest`."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"{owner}: layer must be an integer, got {layer!r}")
    if layer < lowest:
        raise ValueError(f"{owner}: layer must be at least {lowest}, got {layer}; layer k means before decoder layer k")
