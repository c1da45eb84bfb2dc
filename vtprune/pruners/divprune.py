"""DivPrune: the most diverse tokens."""

from __future__ import annotations

from dataclasses import dataclass

from vtprune.context import Context
from vtprune.ops.max_min import max_min
from vtprune.pruner import Pruner, Reduction
from vtprune.registry import register


@register
@dataclass(frozen=True)
class DivPrune(Pruner):
    """Keeps a subset whose smallest pairwise cosine distance is large, picked greedily from the projected features.

    Newline tokens compete with the others, as in the paper's code for LLaVA-NeXT.

    Example:
        >>> DivPrune().layers
        (0,)
    """

    name = "divprune"
    paper = "DivPrune, CVPR 2025, arXiv 2503.02175"
    year = 2025
    summary = "Keeps the most diverse tokens by greedy max-min cosine distance."
    golden = "divprune.npz"

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the greedy picks, in their order."""
        return Reduction(max_min(context.hidden, keep))
