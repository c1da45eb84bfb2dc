"""What a method sees: the tokens of a batch of equally sized images, and the signals that it declared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import torch

from vtprune.layout import ImageLayout
from vtprune.ops.gather import split_by
from vtprune.ops.share import largest_remainder


class EncoderLayer(ABC):
    """One layer of the vision tower as seen by the tokens of a stage; computed when first asked for.

    `has_cls` towers look from their CLS token, others from all patches on average, as `Context.encoder_attention` does.
    Separator tokens get -1 where a probability stands, the lowest finite number as a logit, and zero elsewhere.
    """

    @property
    @abstractmethod
    def attention(self) -> torch.Tensor:
        """Attention each token's patch receives from CLS (or on average), `(batch, heads, tokens)`, probabilities."""

    @property
    @abstractmethod
    def received(self) -> torch.Tensor:
        """Mean attention over all query rows, the CLS row among them, `(batch, heads, tokens)`."""

    @property
    @abstractmethod
    def logits(self) -> torch.Tensor:
        """Scaled dot products of the CLS query with the keys, before the softmax, `(batch, heads, tokens)`.

        Raises:
            ValueError: The tower has no CLS token.
        """

    @property
    @abstractmethod
    def joint_attention(self) -> torch.Tensor:
        """Attention from CLS (or on average) with all heads taken as one of full width, `(batch, tokens)`.

        The softmax runs over all keys, that of CLS included, with the scale `width ** -0.5`.
        """

    @property
    @abstractmethod
    def keys(self) -> torch.Tensor:
        """Keys, `(batch, heads, tokens, head_dim)`."""

    @property
    @abstractmethod
    def output(self) -> torch.Tensor:
        """States that leave the layer, `(batch, tokens, encoder_dim)`."""


class Shares(NamedTuple):
    """A budget divided among the parts of an image.

    Args:
        parts: Token indices of each part.
        counts: Tokens that each part may keep.
        separators: The separator tokens that still fit in, `(batch, any)`; none unless the budget exceeds the patches.
    """

    parts: tuple[torch.Tensor, ...]
    counts: tuple[int, ...]
    separators: torch.Tensor


class Context(ABC):
    """The view of one stage that a method gets; every tensor is computed when it is first asked for.

    All images of a context have the same layout and the same number of present tokens, so that nothing is padded
    here. `batch` counts images, not prompts. Asking for a signal that the method did not declare raises `KeyError`.
    """

    stage: int
    """Number of the stage among those of the method, or of the chain that it is part of."""
    layer: int
    """Decoder layer that the survivors enter; 0 is before the language model."""
    depth: int
    """Decoder layers of the model."""
    batch: int
    """Images in this group."""
    tokens: int
    """Visual tokens of each image that are present at this stage."""
    has_cls: bool
    """Whether the vision tower has a CLS token, from which `encoder_attention` is taken."""
    gives_cls: bool
    """Whether `encoder_cls` is there, for methods that declare it as optional."""
    scaling: float
    """Factor on the dot products of queries and keys in the decoder."""
    layout: ImageLayout
    """Where the image's tokens lie in its raster, as they were before any pruning."""

    @property
    @abstractmethod
    def hidden(self) -> torch.Tensor:
        """States that enter `layer`, `(batch, tokens, dim)`; at layer 0 the projected features."""

    @property
    @abstractmethod
    def origin(self) -> torch.Tensor:
        """Index of each present token among its image's tokens before any pruning, `(batch, tokens)`, ascending."""

    @property
    @abstractmethod
    def is_patch(self) -> torch.Tensor:
        """`False` for newline and separator tokens, `(batch, tokens)`."""

    @property
    @abstractmethod
    def encoder_attention(self) -> torch.Tensor:
        """Attention each token's patch receives in the encoder, `(batch, heads, tokens)`, probabilities.

        From the CLS token where the tower has one, else the mean over all patches, at the layer whose output feeds
        the projector. Separator tokens get -1, below every probability.
        """

    @property
    @abstractmethod
    def encoder_keys(self) -> torch.Tensor:
        """Keys of the same encoder layer, `(batch, heads, tokens, head_dim)`; zero for separator tokens."""

    @property
    @abstractmethod
    def encoder_features(self) -> torch.Tensor:
        """Encoder output before the projector, `(batch, tokens, encoder_dim)`; zero for separator tokens."""

    @property
    @abstractmethod
    def encoder_cls(self) -> torch.Tensor:
        """The CLS token of each view beside those features, `(batch, views, encoder_dim)`."""

    @abstractmethod
    def encoder_layer(self, number: int) -> EncoderLayer:
        """The `number`-th of the tower's layers that the method named in `encoder_layers`."""

    @property
    @abstractmethod
    def image_hash(self) -> torch.Tensor:
        """A number that depends on the pixels alone, `(batch,)` int64: the seed of per-image randomness."""

    @abstractmethod
    def encode_smaller(self, height: int, width: int) -> torch.Tensor:
        """The whole picture shrunk to `height x width` patches, encoded and projected: `(batch, height * width, dim)`.

        Of several views the first one, which shows the whole picture. Needs `Signal.PIXELS`.
        """

    @property
    @abstractmethod
    def clip_text(self) -> torch.Tensor:
        """CLIP text embeddings of the question, one for each piece of it, `(batch, pieces, clip_dim)`.

        A piece is as long as the text tower takes, 77 tokens in CLIP. Not normalised. Needs `Signal.CLIP_TEXT`, as does
        all that is called `clip` below.
        """

    @property
    @abstractmethod
    def clip_text_mask(self) -> torch.Tensor:
        """`True` where `clip_text` holds a piece, `(batch, pieces)`; at least one in each row."""

    @property
    @abstractmethod
    def clip_text_truncated(self) -> torch.Tensor:
        """The CLIP text embedding of the question cut off at what the tower takes, `(batch, clip_dim)`."""

    @property
    @abstractmethod
    def clip_text_last(self) -> torch.Tensor:
        """The projected text state at the last, usually padded, position of the question's first line.

        `(batch, clip_dim)`.
        """

    @abstractmethod
    def clip_project(self, features: torch.Tensor, *, norm: bool = True) -> torch.Tensor:
        """Sends encoder features into CLIP's joint space, `(batch, any, encoder_dim)` to `(batch, any, clip_dim)`.

        Args:
            features: States of the vision tower.
            norm: Whether CLIP's last layer norm comes before the projection.
        """

    @property
    @abstractmethod
    def text(self) -> torch.Tensor:
        """Input embeddings of the prompt, `(batch, length, dim)`; only entries with `text_mask` are text."""

    @property
    @abstractmethod
    def text_mask(self) -> torch.Tensor:
        """`True` where `text` holds a text token, `(batch, length)`; placeholders and padding are `False`."""

    @property
    @abstractmethod
    def inputs(self) -> torch.Tensor:
        """What the decoder was given for all of the image's tokens before any pruning, `(batch, layout.tokens, dim)`.

        Needs `Signal.TEXT_EMBEDDINGS`.
        """

    @property
    @abstractmethod
    def slots(self) -> torch.Tensor:
        """Where each of the image's present tokens stands in the running sequence, `(batch, tokens)`."""

    @property
    @abstractmethod
    def text_slots(self) -> torch.Tensor:
        """Where the text of the prompt stands in the running sequence, ascending, `(batch, texts)`.

        Rows with less text are filled up with other slots at the left, of which `text_present` is `False`.
        """

    @property
    @abstractmethod
    def text_present(self) -> torch.Tensor:
        """`True` where `text_slots` names a text token, `(batch, texts)`; padding and what fills up are `False`."""

    @property
    @abstractmethod
    def text_follows(self) -> torch.Tensor:
        """`True` where `text_slots` names a text token behind the image, `(batch, texts)`."""

    @abstractmethod
    def columns(self, slots: torch.Tensor) -> torch.Tensor:
        """The columns in the padded prompt of slots of the running sequence, `(batch, any)`; the index into `text`.

        Slots without a token, which fill up shorter rows, have the column of some other one.
        """

    @abstractmethod
    def hidden_at(self, slots: torch.Tensor) -> torch.Tensor:
        """States that enter `layer` at slots of the running sequence `(batch, any)`: `(batch, any, dim)`."""

    @abstractmethod
    def final_norm(self, states: torch.Tensor) -> torch.Tensor:
        """The norm that the decoder ends with, of states of any shape `(..., dim)`."""

    @property
    @abstractmethod
    def last_token_attention(self) -> torch.Tensor:
        """Attention from the last prompt token in decoder layer `layer - 1`, `(batch, heads, tokens)`."""

    @property
    @abstractmethod
    def queries(self) -> torch.Tensor:
        """Query states of decoder layer `layer - 1` after rotary, `(batch, heads, tokens, head_dim)`."""

    @property
    @abstractmethod
    def keys(self) -> torch.Tensor:
        """Key states of decoder layer `layer - 1` after rotary, `(batch, kv_heads, tokens, head_dim)`."""

    @abstractmethod
    def attention_from(self, slots: torch.Tensor) -> torch.Tensor:
        """Attention to the image's tokens in decoder layer `layer - 1`, from slots of the running sequence.

        The softmax runs over all that a query may attend to; `(batch, rows)` slots give
        `(batch, heads, rows, tokens)` probabilities. Needs `Signal.DECODER_ATTENTION`.
        """

    @abstractmethod
    def strongest_attention_from(self, slots: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """Of `attention_from`, the strongest head for each pair, summed over the rows of each group that count.

        The whole of the attention need not be in memory. `(batch, rows)` slots and `(batch, groups, rows)` booleans
        give `(batch, groups, tokens)`. Needs `Signal.DECODER_ATTENTION`.
        """

    @abstractmethod
    def queries_at(self, slots: torch.Tensor) -> torch.Tensor:
        """Like `queries`, at slots of the running sequence, `(batch, heads, any, head_dim)`."""

    @abstractmethod
    def keys_at(self, slots: torch.Tensor) -> torch.Tensor:
        """Like `keys`, at slots of the running sequence, `(batch, kv_heads, any, head_dim)`."""

    @property
    @abstractmethod
    def unrotated_last_token_attention(self) -> torch.Tensor:
        """`last_token_attention` from queries and keys without rotary, `(batch, heads, tokens)`.

        Needs `Signal.UNROTATED_STATES`.
        """

    @property
    @abstractmethod
    def next_last_token_attention(self) -> torch.Tensor:
        """Attention from the last prompt token in decoder layer `layer` itself, were nothing removed.

        `(batch, heads, tokens)`. Needs `Signal.NEXT_STATES`.
        """

    @property
    @abstractmethod
    def next_keys(self) -> torch.Tensor:
        """Key states of decoder layer `layer` itself after rotary, `(batch, kv_heads, tokens, head_dim)`.

        Needs `Signal.NEXT_STATES`.
        """

    @property
    @abstractmethod
    def next_unrotated_queries(self) -> torch.Tensor:
        """Query states of decoder layer `layer` itself without rotary, `(batch, heads, tokens, head_dim)`.

        Needs `Signal.NEXT_UNROTATED_STATES`.
        """

    @property
    @abstractmethod
    def next_unrotated_keys(self) -> torch.Tensor:
        """Key states of decoder layer `layer` itself without rotary, `(batch, kv_heads, tokens, head_dim)`.

        Needs `Signal.NEXT_UNROTATED_STATES`.
        """

    @abstractmethod
    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Sends encoder features `(batch, any, encoder_dim)` through the projector: `(batch, any, dim)`."""

    @cached_property
    def grids(self) -> tuple[torch.Tensor, ...]:
        """Token index grids of the untouched image, each `(height, width)`, on the device of the tokens.

        Raises:
            ValueError: Tokens were removed at an earlier stage, so that no grid is left.
        """
        self._require_untouched("a token grid")
        return tuple(grid.to(self.hidden.device) for grid in self.layout.grids)

    @cached_property
    def view_tokens(self) -> tuple[torch.Tensor, ...]:
        """Token indices of each encoder view of the untouched image, on the device of the tokens.

        Raises:
            ValueError: Tokens were removed at an earlier stage.
        """
        self._require_untouched("whole encoder views")
        return tuple(view.to(self.hidden.device) for view in self.layout.view_tokens)

    def by_view(self, keep: int) -> Shares:
        """Divides a budget among the encoder views in proportion to their tokens, separators coming last."""
        return self._share(self.view_tokens, [len(view) for view in self.view_tokens], keep)

    def by_grid(self, keep: int) -> Shares:
        """Divides a budget among the token grids in proportion to their patches; the parts are the grids."""
        return self._share(self.grids, [grid.numel() for grid in self.grids], keep)

    def _share(self, parts: tuple[torch.Tensor, ...], sizes: list[int], keep: int) -> Shares:
        patches = sum(sizes)
        counts = largest_remainder(sizes, min(keep, patches))
        separators = split_by(self.is_patch, patches)[1][:, : keep - min(keep, patches)]
        return Shares(parts, counts, separators)

    def _require_untouched(self, what: str) -> None:
        if self.tokens != self.layout.tokens:
            raise ValueError(
                f"this method needs {what}, but only {self.tokens} of {self.layout.tokens} tokens are left at layer "
                f"{self.layer}; run it as the first stage"
            )
