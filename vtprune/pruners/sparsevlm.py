"""SparseVLM: tokens that the relevant words attend to, and the best of the others merged into clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_integer, check_share
from vtprune.ops.density_peaks import cluster_means, density_peaks
from vtprune.ops.gather import take
from vtprune.ops.hashing import random_keys
from vtprune.ops.raters import attention_peaks, text_raters
from vtprune.ops.schedules import interpolated_schedule
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Reduction, Signal, StagedPruner
from vtprune.registry import register

_WHOLE = 576
_PUBLISHED = ((82, 32, 18), (249, 55, 27), (312, 117, 39), (309, 204, 113))


@register
@dataclass(frozen=True)
class SparseVLM(StagedPruner):
    """Keeps what the rater words attend to in the layer before, and recycles the best of the rest into clusters.

    Raters are the words behind the image that resemble it more than the average word does, by input embeddings. Each
    stage keeps the tokens with their highest mean attention, in raster order, and puts behind them the means of
    clusters, each in the place of its centre; both together make the budget. At least one token is kept as it is;
    of the counts that meet a budget, the one with fewer clusters is taken. Without text behind the image the first
    tokens are kept.

    The released code (v1.5) uses fixed counts, which are met at 576 tokens and interpolated elsewhere; the paper's
    first version derives them from the rank of the attention. A cluster is the mean of its tokens, where the code
    divides by their number plus 1e-6.

    Args:
        stages: Decoder layers before which tokens are removed, ascending, at least 1. `None` takes 3, 7 and 16 of 32
            layers: the paper prunes after its layers 2, 6 and 15. Three stages follow the published counts, others
            keep the same share each.
        recycled: Share of the removed tokens that is clustered, in [0, 1], rounded down and one more.
        per_cluster: Recycled tokens for each cluster, at least 2; rounded down and one cluster more.
        noise: Height of noise on the densities, in [0, 1]; the paper's code adds 1e-6 of it. Here it depends on a
            token's place alone.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> SparseVLM().schedule(576, 113), SparseVLM().split(576, 309)
        ((309, 204, 113), (300, 9))
    """

    recycled: float = 0.3
    per_cluster: int = 10
    noise: float = 0.0

    name = "sparsevlm"
    paper = "SparseVLM, ICML 2025, arXiv 2410.04417"
    year = 2025
    summary = "Keeps in three layers what the relevant words attend to and merges the best of the rest into clusters."
    signals = frozenset({Signal.TEXT_EMBEDDINGS, Signal.DECODER_ATTENTION})
    query_aware = True
    merges = True
    golden = "sparsevlm.npz"
    paper_stages = (3, 7, 16)
    presets: ClassVar[Mapping[int, int]] = {192: 113, 128: 39, 96: 27, 64: 18}
    preset_layers = (3, 7, 16)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.name, "recycled", self.recycled)
        check_integer(self.name, "per_cluster", self.per_cluster, low=2)
        check_share(self.name, "noise", self.noise)

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        """Tokens after each stage, clusters among them."""
        if len(self.layers) != len(self.paper_stages):
            return super().schedule(tokens, keep)
        return interpolated_schedule(_PUBLISHED, _WHOLE, tokens, keep)

    def split(self, tokens: int, keep: int) -> tuple[int, int]:
        """Kept tokens and clusters that make up `keep` of `tokens`."""
        for kept in range(keep, 0, -1):
            clusters = self._recycled(tokens - kept) // self.per_cluster + 1
            if kept + clusters <= keep:
                return kept, clusters
        return 1, keep - 1

    def scores(self, context: Context) -> torch.Tensor:
        """Mean attention that each token gets from the raters, `(batch, tokens)`."""
        slots = context.text_slots
        words = take(context.text, context.columns(slots))
        raters = text_raters(context.inputs, words, context.text_follows)
        total, _ = attention_peaks(context.attention_from(slots), raters)
        return total / raters.sum(dim=1, keepdim=True).clamp_min(1)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the best tokens and clusters the best of the others."""
        kept, clusters = self.split(context.tokens, keep)
        order = stable_topk(self.scores(context), context.tokens)
        survivors = order[:, :kept].sort(dim=1).values
        if not clusters:
            return Reduction(survivors, features=take(context.hidden, survivors), ordered=True)
        recycled = order[:, kept : kept + self._recycled(context.tokens - kept)]
        points = take(context.hidden, recycled)
        centres, cluster = density_peaks(points, clusters, noise=self._noise(context.origin.gather(1, recycled)))
        merged = cluster_means(points, cluster, clusters)
        return Reduction(
            torch.cat([survivors, recycled.gather(1, centres)], dim=1),
            features=torch.cat([take(context.hidden, survivors), merged], dim=1),
            ordered=True,
        )

    def _recycled(self, removed: int) -> int:
        """How many of the removed tokens are clustered."""
        return min(removed, int(self.recycled * removed) + 1)

    def _noise(self, places: torch.Tensor) -> torch.Tensor | None:
        """Noise in [0, `noise`) for the tokens at some places of the image."""
        if not self.noise:
            return None
        keys = random_keys(places.new_zeros(len(places)), places, seed=0)
        return (keys.double() / 2.0**64 + 0.5) * self.noise
