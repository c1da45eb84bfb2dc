"""SparseVLM+: tokens that the relevant words attend to beyond what their distance explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_integer, check_positive
from vtprune.ops.gather import take
from vtprune.ops.raters import rater_attention, rotary_gravity, text_raters
from vtprune.ops.schedules import interpolated_schedule
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Reduction, Signal, StagedPruner
from vtprune.registry import register

_WHOLE = 576
_PUBLISHED = ((66, 34, 20), (246, 54, 28), (238, 108, 60), (300, 200, 118))


@register
@dataclass(frozen=True)
class SparseVLMPlus(StagedPruner):
    """Keeps what the rater words attend to in the layer before, once the pull of near positions is divided out.

    Attention probabilities are divided by what rotary positions alone give for their distance, which can be near zero
    or negative (here never nearer to zero than 1e-6); the heads that then give the picture most count. Raters are those
    of SparseVLM; nothing is merged. Distances are those of places in the prompt. Without text behind the image the
    first tokens are kept. Counts are the released code's at 576 tokens and interpolated elsewhere.

    Args:
        stages: Decoder layers before which tokens are removed, ascending, at least 1. `None` takes 3, 7 and 16 of 32
            layers: the paper prunes after its layers 2, 6 and 15. Three stages follow the published counts, others
            keep the same share each.
        heads: Heads that count, at least 1; all of them where a model has fewer.
        theta: Base of the rotary frequencies, above 0.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> SparseVLMPlus().schedule(576, 60)
        (238, 108, 60)
    """

    heads: int = 14
    theta: float = 10000.0

    name = "sparsevlm+"
    paper = "SparseVLM+, arXiv 2410.04417"
    year = 2025
    summary = "Keeps in three layers what the relevant words attend to, with the pull of near positions divided out."
    signals = frozenset({Signal.TEXT_EMBEDDINGS, Signal.DECODER_ATTENTION, Signal.DECODER_STATES})
    query_aware = True
    default_positions = "keep"
    golden = "sparsevlm_plus.npz"
    paper_stages = (3, 7, 16)
    presets: ClassVar[Mapping[int, int]] = {192: 118, 128: 60, 96: 28, 64: 20}
    preset_layers = (3, 7, 16)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self.name, "heads", self.heads, low=1)
        check_positive(self.name, "theta", self.theta)

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        """Tokens after each stage."""
        if len(self.layers) != len(self.paper_stages):
            return super().schedule(tokens, keep)
        return interpolated_schedule(_PUBLISHED, _WHOLE, tokens, keep)

    def scores(self, context: Context) -> torch.Tensor:
        """Mean corrected attention that each token gets from the raters, `(batch, tokens)`."""
        slots = context.text_slots
        columns = context.columns(slots)
        raters = text_raters(context.inputs, take(context.text, columns), context.text_follows)
        width = context.queries.shape[-1]
        gravity = rotary_gravity(columns, context.columns(context.slots), width, self.theta)
        by_head = rater_attention(context.attention_from(slots), raters, gravity)
        heads = stable_topk(by_head.sum(dim=2), min(self.heads, by_head.shape[1]))
        return take(by_head, heads).mean(dim=1)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the best tokens."""
        return Reduction(stable_topk(self.scores(context), keep))
