"""FastV: the tokens that the last prompt token attends to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vtprune.context import Context
from vtprune.ops.gather import as_float
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal, check_layer
from vtprune.registry import register


@register
@dataclass(frozen=True)
class FastV(Pruner):
    """Keeps the tokens with the highest attention from the last prompt token in the layer before.

    Args:
        layer: Decoder layer before which tokens are removed, the paper's K, at least 1; attention is that of
            layer `layer - 1`.

    Example:
        >>> FastV(layer=3).layers
        (3,)
    """

    layer: int = 2

    name = "fastv"
    paper = "FastV, ECCV 2024, arXiv 2403.06764"
    year = 2024
    summary = "Keeps the tokens that the last prompt token attends to most in an early decoder layer."
    signals = frozenset({Signal.DECODER_ATTENTION})
    query_aware = True
    default_positions = "keep"
    golden = "fastv.npz"
    presets: ClassVar[Mapping[int, int]] = {192: 166, 128: 98, 64: 30}
    preset_layers = (2,)

    def __post_init__(self) -> None:
        check_layer(self.layer, lowest=1, owner=self.name)

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer before which tokens are removed."""
        return (self.layer,)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the highest mean over heads, best first."""
        return Reduction(stable_topk(as_float(context.last_token_attention).mean(dim=1), keep))
