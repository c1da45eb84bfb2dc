"""What a method sees: the tokens of a batch of equally sized images, and the signals that it declared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch

from vtprune.layout import ImageLayout


class Context(ABC):
    """The view of one stage that a method gets; every tensor is computed when it is first asked for.

    All images of a context have the same layout and the same number of present tokens, so that nothing is padded
    here. `batch` counts images, not prompts. Asking for a signal that the method did not declare raises `KeyError`.
    """

    layer: int
    """Decoder layer that the survivors enter; 0 is before the language model."""
    depth: int
    """Decoder layers of the model."""
    batch: int
    """Images in this group."""
    tokens: int
    """Visual tokens of each image that are present at this stage."""
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

    @property
    @abstractmethod
    def image_hash(self) -> torch.Tensor:
        """A number that depends on the pixels alone, `(batch,)` int64: the seed of per-image randomness."""

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

    def _require_untouched(self, what: str) -> None:
        if self.tokens != self.layout.tokens:
            raise ValueError(
                f"this method needs {what}, but only {self.tokens} of {self.layout.tokens} tokens are left at layer "
                f"{self.layer}; run it as the first stage"
            )
