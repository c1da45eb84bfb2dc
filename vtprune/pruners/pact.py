"""PACT: tokens that carry little are set aside, the others clustered around dense keys."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch

from vtprune.context import Context
from vtprune.ops.attention import attention_rows
from vtprune.ops.checks import check_positive, check_share
from vtprune.ops.distance_clusters import budget_centres, cluster_means, cosine_distance, density_centres
from vtprune.ops.gather import split_by, take
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Depths, Pruner, Reduction, Signal, check_flag, check_layer, scale_layers
from vtprune.registry import register

_PAPER_LAYER = 4
# Entries of the matrices of distances that exist at once, 2 GiB in float32.
_DISTANCES_AT_ONCE = 1 << 29


class _Ranked(NamedTuple):
    """All patches of an image, the `candidates` first, both parts in raster order.

    Args:
        tokens: Their indices among the image's tokens, `(batch, patches)`.
        candidates: How many may become centres.
    """

    tokens: torch.Tensor
    candidates: int


@register
@dataclass(frozen=True)
class PACT(Pruner):
    """Sets aside unimportant patches, clusters the keys of the others and keeps the means of the clusters.

    Importance (EUTI) is the attention of the mean query without rotary, softmax over the patches alone, mean over
    heads, times the norm of the state. Among the most important ones the centres are those of `density_centres`; the
    others join their nearest centre, and so does what was set aside within `recovery` times the cutoff. A cluster's
    plain mean takes the place of its centre.

    The count that the paper's cutoff makes is that of the adaptive budget. For an exact budget the cutoff of each image
    is moved until it makes so many centres (`budget_centres`), and the reach of recovery with it; all else stays, so
    that a budget equal to the paper's count gives the paper's clusters. A budget above `keep_share` of the patches
    makes each of that many most important patches a centre.

    The paper prunes LLaVA-OneVision and Qwen2-VL before layer 4; up to 32 layers that stays, shallower models get their
    share. Newline tokens are neither clustered nor counted, and kept only when the budget exceeds the patches.

    Args:
        layer: Decoder layer before which tokens are removed, at least 1; `None` for the paper's 4.
        keep_share: Share of the patches that can become centres, in [0, 1]; rounded down, but never below one.
        cutoff: Distance `1 - cosine` up to which a patch belongs to a denser centre, above 0.
        recovery: Patches set aside join a centre within this multiple of the cutoff, above 0.
        proportional_attention: Whether each survivor weighs in attention as the patches that it stands for.
        parity: Set aside one patch more: without its option against numerical instability the official code keeps
            what scores above the last patch it should keep.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> PACT().fit(Depths(decoder=28, encoder=24)).layers, PACT().fit(Depths(decoder=8, encoder=6)).layers
        ((4,), (1,))
    """

    layer: int | None = None
    keep_share: float = 0.55
    cutoff: float = 0.21
    recovery: float = 1.5
    proportional_attention: bool = True
    parity: bool = False

    name = "pact"
    paper = "PACT, CVPR 2025, arXiv 2504.08966"
    year = 2025
    summary = "Sets aside tokens of little importance and merges the others around dense keys of an early layer."
    whole_images = True
    signals = frozenset({Signal.NEXT_STATES, Signal.NEXT_UNROTATED_STATES})
    merges = True
    default_positions = "keep"
    golden = "pact.npz"

    def __post_init__(self) -> None:
        if self.layer is not None:
            check_layer(self.layer, lowest=1, owner=self.name)
        check_share(self.name, "keep_share", self.keep_share)
        check_positive(self.name, "cutoff", self.cutoff)
        check_positive(self.name, "recovery", self.recovery)
        check_flag(self.name, "proportional_attention", self.proportional_attention)
        check_flag(self.name, "parity", self.parity)

    def fit(self, depths: Depths) -> Self:
        """Moves the paper's layer to the depth of the model."""
        if self.layer is not None:
            return self
        return dataclasses.replace(self, layer=scale_layers((_PAPER_LAYER,), depths.decoder, 32)[0])

    @property
    def weighs_attention(self) -> bool:
        """Whether attention is proportional."""
        return self.proportional_attention

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer before which tokens are removed."""
        return (_PAPER_LAYER if self.layer is None else self.layer,)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Clusters with the cutoff that makes as many centres as the budget."""
        patches, separators = self._patches(context)
        budget = min(keep, patches.shape[1])
        ranked = self._rank(context, patches, least=budget)
        at_once = max(1, _DISTANCES_AT_ONCE // patches.shape[1] ** 2)
        parts = []
        for first in range(0, context.batch, at_once):
            part = slice(first, first + at_once)
            tokens = ranked.tokens[part]
            distance = cosine_distance(_at(context.next_keys[part], tokens))
            block = distance[:, : ranked.candidates, : ranked.candidates]
            centres, cutoff = budget_centres(block, budget, self.cutoff)
            every = torch.ones_like(centres, dtype=torch.bool)
            means, sizes = self._means(
                take(context.hidden[part], tokens), distance, ranked.candidates, centres, every, cutoff
            )
            parts.append((tokens.gather(1, centres), means, sizes))
        kept, features, sizes = (
            torch.cat(values) if len(parts) > 1 else values[0] for values in zip(*parts, strict=True)
        )
        separators = separators[:, : keep - budget]
        features = torch.cat([features, take(context.hidden, separators)], dim=1)
        sizes = torch.cat([sizes, sizes.new_ones(separators.shape)], dim=1)
        return Reduction(
            torch.cat([kept, separators], dim=1),
            features=features,
            sizes=sizes if self.proportional_attention else None,
        )

    def reduce_adaptive(self, context: Context) -> Reduction:
        """Clusters with the paper's cutoff, whatever number of centres that makes."""
        tokens, candidates = self._rank(context, self._patches(context)[0], least=1)
        distance = cosine_distance(_at(context.next_keys, tokens))
        is_centre = density_centres(distance[:, :candidates, :candidates], self.cutoff)
        counts = is_centre.sum(dim=1, keepdim=True)
        centres, _ = split_by(is_centre, int(counts.max()))
        valid = torch.arange(centres.shape[1], device=centres.device) < counts
        cutoff = distance.new_full((context.batch, 1), self.cutoff)
        means, sizes = self._means(take(context.hidden, tokens), distance, candidates, centres, valid, cutoff)
        return Reduction(
            tokens.gather(1, centres),
            features=means,
            sizes=sizes if self.proportional_attention else None,
            valid=valid,
        )

    def _patches(self, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches and separators of the images."""
        return split_by(context.is_patch, sum(grid.numel() for grid in context.grids))

    def _rank(self, context: Context, patches: torch.Tensor, least: int) -> _Ranked:
        """Divides the patches by importance, with at least `least` candidates."""
        count = patches.shape[1]
        candidates = max(least, int(count * self.keep_share) - int(self.parity))
        top = stable_topk(_importance(context, patches), candidates)
        is_candidate = torch.zeros(patches.shape, dtype=torch.bool, device=patches.device).scatter(1, top, True)
        return _Ranked(patches.gather(1, torch.cat(split_by(is_candidate, candidates), dim=1)), candidates)

    def _means(
        self,
        states: torch.Tensor,
        distance: torch.Tensor,
        candidates: int,
        centres: torch.Tensor,
        valid: torch.Tensor,
        cutoff: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and sizes of the clusters around `centres`, which are places among the candidates."""
        count = states.shape[1]
        distance = distance.gather(2, centres.unsqueeze(1).expand(-1, count, -1))
        nearest = distance.masked_fill(~valid.unsqueeze(1), torch.inf).amin(dim=2)
        is_candidate = torch.arange(count, device=centres.device) < candidates
        joins = is_candidate | (nearest <= self.recovery * cutoff)
        return cluster_means(states, distance, centres, joins, valid)


def _at(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """States of all heads beside one another at some tokens, `(batch, any, heads * head_dim)`."""
    by_token = states.transpose(1, 2)
    index = tokens[:, :, None, None].expand(-1, -1, *by_token.shape[2:])
    return by_token.gather(1, index).flatten(2)


@torch.no_grad()
def _importance(context: Context, patches: torch.Tensor) -> torch.Tensor:
    """The EUTI score of the patches, `(batch, patches)`."""
    queries, keys, hidden = context.next_unrotated_queries, context.next_unrotated_keys, context.hidden
    if patches.shape[1] < context.tokens:
        hidden = take(hidden, patches)
        queries, keys = (
            states.gather(2, patches[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))
            for states in (queries, keys)
        )
    full = torch.float64 if queries.dtype == torch.float64 else torch.float32
    with torch.autocast(keys.device.type, enabled=False):
        query = queries.mean(dim=2, keepdim=True, dtype=full)
        attention = attention_rows(query, keys, context.scaling)
    norm: torch.Tensor = torch.linalg.vector_norm(hidden, dim=-1, dtype=full)
    return attention[:, :, 0].mean(dim=1) * norm
