"""FitPrune: a few tokens less after every decoder layer, by a schedule that is fitted to the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_positive
from vtprune.ops.decay import geometric_counts
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Depths, Pruner, Reduction, Signal, check_stages
from vtprune.registry import register

_DEPTH = 32


@register
@dataclass(frozen=True)
class FitPrune(Pruner):
    """Removes, after every decoder layer, the tokens that neither the other visual tokens nor the text attend to.

    The score is the attention received from the image's tokens times that from the text behind it, both of the
    strongest head for each pair. Where no text follows the image, the first factor decides alone. All tokens of an
    image compete, newline tokens too.

    The official code removes tokens inside layer l, between its attention and its MLP. Here they go before layer l + 1.
    Survivors are the same: the MLP treats each token by itself, and the keys of layer l stay complete either way. The
    removal inside the last layer, which changes no output, falls away.

    How many tokens go at each layer is to be fitted to the model (`vtprune.ops.fit_schedule`); the published numbers
    are for LLaVA-1.5-7B alone. Without `shares` every layer keeps one same share of its tokens, which is our choice
    and not the paper's: less is removed early than by the published numbers.

    Args:
        stages: Decoder layers before which tokens are removed, ascending, 1 or more; attention is that of the layer
            before. `None` takes every layer from 1 on.
        shares: Tokens left after each stage as a share of all, in (0, 1], never rising. Other budgets than the last
            of them scale all by one factor, to at most all tokens. `None` lets tokens decay geometrically.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> FitPrune(shares=(0.5, 0.25, 0.125)).schedule(576, 72), FitPrune(shares=(0.5, 0.25)).schedule(576, 36)
        ((288, 144, 72), (72, 36))
    """

    stages: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None

    name = "fitprune"
    paper = "FitPrune, AAAI 2025, arXiv 2409.10197"
    year = 2025
    summary = "Removes a few tokens after every decoder layer, those that neither image nor text attends to."
    signals = frozenset({Signal.DECODER_ATTENTION})
    query_aware = True
    default_positions = "keep"
    golden = "fitprune.npz"

    def __post_init__(self) -> None:
        check_stages(self.stages, lowest=1, owner=self.name)
        if self.shares is None:
            return
        if not isinstance(self.shares, tuple) or not self.shares:
            raise TypeError(f"{self.name}: shares must be a tuple of numbers or None, got {self.shares!r}")
        for share in self.shares:
            check_positive(self.name, "each of shares", share)
        if self.shares[0] > 1 or list(self.shares) != sorted(self.shares, reverse=True):
            raise ValueError(f"{self.name}: shares must be in (0, 1] and never rise, got {self.shares!r}")
        if len(self.shares) != len(self.layers):
            raise ValueError(
                f"{self.name}: shares must be one for each of the {len(self.layers)} stages, got {len(self.shares)}; "
                f"fit them to this model or name the stages they are for"
            )

    def fit(self, depths: Depths) -> Self:
        """Takes a stage before every layer of the model but the first.

        Raises:
            ValueError: `shares` of a model with another number of layers, or a model with one layer only.
        """
        if self.stages is not None:
            return self
        if depths.decoder < 2:
            raise ValueError(f"{self.name} needs at least 2 decoder layers, got {depths.decoder}")
        return dataclasses.replace(self, stages=tuple(range(1, depths.decoder)))

    @property
    def layers(self) -> tuple[int, ...]:
        """The stages; until the method is fitted those that `shares` speaks of, or those of 32 layers."""
        if self.stages is not None:
            return self.stages
        return tuple(range(1, _DEPTH if self.shares is None else len(self.shares) + 1))

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        """The fitted counts scaled to the budget, rounded to whole tokens; a geometric decay without them."""
        if self.shares is None:
            return geometric_counts(tokens, keep, len(self.layers))
        return tuple(min(tokens, round(keep * share / self.shares[-1])) for share in self.shares)

    def scores(self, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention that each token receives from the image's tokens and from the text behind them.

        Returns:
            Self and cross score, each `(batch, tokens)`; without such text the latter is 1 everywhere.
        """
        follows = context.text_follows
        slots = torch.cat([context.slots, context.text_slots], dim=1)
        everywhere = torch.ones_like(context.slots, dtype=torch.bool)
        none, none_of_text = torch.zeros_like(everywhere), torch.zeros_like(follows)
        counted = torch.stack([torch.cat([everywhere, none_of_text], dim=1), torch.cat([none, follows], dim=1)], dim=1)
        own, cross = context.strongest_attention_from(slots, counted).unbind(dim=1)
        return own / context.tokens, torch.where(follows.any(dim=1, keepdim=True), cross, 1.0)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the highest products, best first."""
        own, cross = self.scores(context)
        return Reduction(stable_topk(own * cross, keep))
