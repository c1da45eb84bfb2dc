"""EntropyPrune: the tokens whose states differ most across heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vtprune.context import Context
from vtprune.ops.checks import check_integer
from vtprune.ops.entropy import matrix_entropy
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal, check_flag, check_layer
from vtprune.registry import register


@register
@dataclass(frozen=True)
class EntropyPrune(Pruner):
    """Keeps the tokens with the highest matrix entropy of their query states in the layer before.

    Args:
        layer: Decoder layer before which tokens are removed, at least 1; the queries are those of layer `layer - 1`.
        normalize_trace: Rank by a true entropy, of unit-trace matrices. Off as in the paper's code, whose ranking
            depends on the scale of the queries.
        channels: Heads whose width is a multiple of this are averaged down to it; others are taken whole.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> EntropyPrune().layers
        (2,)
    """

    layer: int = 2
    normalize_trace: bool = False
    channels: int = 128

    name = "entropyprune"
    paper = "EntropyPrune, EMNLP 2026 Findings, arXiv 2602.17196"
    year = 2026
    summary = "Keeps the tokens whose query states have the highest matrix entropy across heads."
    signals = frozenset({Signal.DECODER_STATES})
    default_positions = "keep"
    golden = "entropyprune.npz"
    presets: ClassVar[Mapping[int, int]] = {192: 166, 128: 98, 64: 29}
    preset_layers = (2,)

    def __post_init__(self) -> None:
        check_layer(self.layer, lowest=1, owner=self.name)
        check_integer(self.name, "channels", self.channels, low=1)
        check_flag(self.name, "normalize_trace", self.normalize_trace)

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer before which tokens are removed."""
        return (self.layer,)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the highest entropies, highest first."""
        group, rest = divmod(context.queries.shape[-1], self.channels)
        entropy = matrix_entropy(
            context.queries, group=1 if rest else max(1, group), normalize_trace=self.normalize_trace
        )
        return Reduction(stable_topk(entropy, keep))
