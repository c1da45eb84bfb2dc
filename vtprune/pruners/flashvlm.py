"""FlashVLM: what the prompt speaks of and the encoder attends to, then what differs from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_integer, check_positive, check_share
from vtprune.ops.gather import split_by, take
from vtprune.ops.residual import drop_redundant
from vtprune.ops.similarity import spread_blend, text_relevance
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal
from vtprune.registry import register


@register
@dataclass(frozen=True)
class FlashVLM(Pruner):
    """Keeps tokens by CLS attention times text relevance, and fills the rest of the budget with dissimilar ones.

    Newline tokens are kept only when the budget exceeds the patches. The method is sensitive to rounding: a swapped
    near-tie among scores changes several of the dissimilar picks.

    Args:
        important: Share of the budget that goes to the highest scores, in [0, 1]; rounded down.
        word_temperature: Of the soft selection over the prompt's words, above 0.
        token_temperature: Of the softmax over tokens, above 0.
        sharpness: Exponent of relevance, above 0.
        gate_quantile: Relevance below this quantile is damped, in [0, 1].
        gate_factor: What it is multiplied by, in [0, 1].
        per_round: Tokens dropped between two comparisons of the dissimilar ones, at least 1.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> FlashVLM(important=0.75).important
        0.75
    """

    important: float = 0.5
    word_temperature: float = 0.05
    token_temperature: float = 0.01
    sharpness: float = 2.5
    gate_quantile: float = 0.995
    gate_factor: float = 0.1
    per_round: int = 8

    name = "flashvlm"
    paper = "FlashVLM, arXiv 2512.20561"
    year = 2025
    summary = "Keeps tokens that the text and the encoder point at, then those least similar to the rest."
    whole_images = True
    signals = frozenset({Signal.ENCODER_ATTENTION, Signal.ENCODER_FEATURES, Signal.TEXT_EMBEDDINGS})
    query_aware = True
    golden = "flashvlm.npz"

    def __post_init__(self) -> None:
        for share in ("important", "gate_quantile", "gate_factor"):
            check_share(self.name, share, getattr(self, share))
        for positive in ("word_temperature", "token_temperature", "sharpness"):
            check_positive(self.name, positive, getattr(self, positive))
        check_integer(self.name, "per_round", self.per_round, low=1)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the important tokens, then the dissimilar ones."""
        patches = sum(grid.numel() for grid in context.grids)
        budget = min(keep, patches)
        patch, separator = split_by(context.is_patch, patches)
        attention = context.encoder_attention.double().mean(dim=1).gather(1, patch)
        relevance = text_relevance(
            take(context.hidden, patch),
            context.text,
            context.text_mask,
            word_temperature=self.word_temperature,
            token_temperature=self.token_temperature,
            sharpness=self.sharpness,
            gate_quantile=self.gate_quantile,
            gate_factor=self.gate_factor,
        )
        order = patch.gather(1, stable_topk(spread_blend(attention, relevance), patches))
        important = int(budget * self.important)
        others = order[:, important:]
        left = drop_redundant(take(context.encoder_features, others), budget - important, per_round=self.per_round)
        kept = [order[:, :important], others.gather(1, left), separator[:, : keep - budget]]
        return Reduction(torch.cat(kept, dim=1))
