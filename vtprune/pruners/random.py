"""Random tokens, the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

from vtprune.context import Context
from vtprune.ops.checks import check_integer
from vtprune.ops.hashing import random_keys
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal
from vtprune.registry import register


@register
@dataclass(frozen=True)
class Random(Pruner):
    """Keeps tokens at random: the draw depends on the picture and the seed, not on the batch or the device.

    Args:
        seed: Chooses the draw, 0 to 2**63 - 1.

    Example:
        >>> Random(seed=1).config()
        {'seed': 1}
    """

    seed: int = 0

    name = "random"
    paper = "Baseline, without a paper"
    year = 2024
    summary = "Keeps random tokens, drawn anew for each picture."
    signals = frozenset({Signal.IMAGE_HASH})

    def __post_init__(self) -> None:
        check_integer(self.name, "seed", self.seed, low=0, high=2**63 - 1)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the tokens with the highest random numbers."""
        keys = random_keys(context.image_hash, context.origin, self.seed)
        return Reduction(stable_topk(keys, keep))
