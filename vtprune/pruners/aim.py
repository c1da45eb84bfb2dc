"""AIM: alike tokens merged before the language model, PageRank over attention in its later layers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch

from vtprune.context import Context
from vtprune.ops.bipartite import bipartite_match, merge_matched
from vtprune.ops.checks import check_integer, check_positive, check_share
from vtprune.ops.gather import as_float, split_by, take
from vtprune.ops.page_rank import attention_page_rank
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Depths, Pruner, Reduction, Signal, check_flag, check_stages
from vtprune.registry import register

_PAPER_STAGES = tuple(range(14, 21))
_PAPER_DEPTH = 28


@register
@dataclass(frozen=True)
class AIM(Pruner):
    """Merges pairs of alike tokens before the language model, then drops by PageRank, a little in each later layer.

    The merge is bipartite matching on the projected features with plain means, repeated until `merged` of the tokens
    are left (halves, then quarters, in the paper). A merged token takes the place of the one at the odd place; the
    second matching goes through the tokens in the official order, the unmerged ones by falling similarity and then the
    others, but what comes out stands in raster order unless `parity` is set.

    From layer 14 of 28 on, importance is `attention_page_rank` of the layer before over this image's tokens and the
    words of the prompt, before and behind it; other images of the prompt are left out. Words are never removed.

    The paper keeps `1 - (l - 13) / 8` of the merged tokens from layer l on and none from layer 21 on. Here the
    stages go down in equal steps from the merged tokens to the budget, which stays to the end: a budget of 1/8 of
    the merged tokens, 18 of 576, is the paper's up to there. A budget of `merged` of the tokens or more is met by the
    merge alone. Models with too few layers get fewer stages.

    The official code prunes by a mask: positions are packed after the merge and keep their gaps later. One policy holds
    for all stages here; the default is right for the merge, which removes most.

    Newline tokens are neither merged nor kept, unless the budget of the stage exceeds the patches.

    Args:
        merged: Share of the tokens that the merge leaves, in [0, 1], but never fewer than the budget; 1 for no merge.
        stages: Decoder layers before which tokens are dropped after the merge, ascending, 1 or above; `None` for the
            paper's, moved to the depth of the model.
        steps: Steps of PageRank, at least 1.
        temperature: Of the softmax over the attention logits, above 0.
        parity: The official order of the merged tokens in the sequence, where positions are packed.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> AIM().layers
        (0, 14, 15, 16, 17, 18, 19, 20)
        >>> AIM().schedule(576, 18), AIM().schedule(576, 192)[:2]
        ((144, 126, 108, 90, 72, 54, 36, 18), (192, 192))
    """

    merged: float = 0.25
    stages: tuple[int, ...] | None = None
    steps: int = 5
    temperature: float = 0.1
    parity: bool = False

    name = "aim"
    paper = "AIM, ICCV 2025, arXiv 2412.03248"
    year = 2024
    summary = "Merges alike tokens before the language model and drops more in its later layers by PageRank."
    whole_images = True
    signals = frozenset({Signal.DECODER_STATES})
    query_aware = True
    merges = True
    golden = "aim.npz"

    def __post_init__(self) -> None:
        check_share(self.name, "merged", self.merged)
        check_stages(self.stages, lowest=1, owner=self.name)
        check_integer(self.name, "steps", self.steps, low=1)
        check_positive(self.name, "temperature", self.temperature)
        check_flag(self.name, "parity", self.parity)

    def fit(self, depths: Depths) -> Self:
        """Moves the paper's stages to the depth of the model; those that fall together become one."""
        if self.stages is not None:
            return self
        scaled = {max(1, round(layer * depths.decoder / _PAPER_DEPTH)) for layer in _PAPER_STAGES}
        return dataclasses.replace(self, stages=tuple(sorted(scaled)))

    @property
    def layers(self) -> tuple[int, ...]:
        """Before the language model, then the later stages."""
        return (0, *(_PAPER_STAGES if self.stages is None else self.stages))

    def stage_signals(self, stage: int) -> frozenset[Signal]:
        """The merge needs nothing but the tokens themselves."""
        return self.signals if stage else frozenset()

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        """The merged tokens, then equal steps down to `keep`."""
        merged = max(keep, round(tokens * self.merged))
        steps = len(self.layers) - 1
        return tuple(merged - (merged - keep) * step // steps for step in range(steps + 1))

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Merges before the language model, drops later."""
        if context.layer == 0:
            return self._merge(context, keep)
        # Newline tokens go first: below every importance.
        scores = self._importance(context).masked_fill(~context.is_patch, -1)
        kept = stable_topk(scores, keep)
        return Reduction(kept, features=take(context.hidden, kept))

    def _merge(self, context: Context, keep: int) -> Reduction:
        """Matches over and over until the budget is met; one matching merges away at most half."""
        patches = sum(grid.numel() for grid in context.grids)
        places, separators = split_by(context.is_patch, patches)
        separators = separators[:, : keep - min(keep, patches)]
        states = as_float(take(context.hidden, places))
        while states.shape[1] > keep:
            matching = bipartite_match(states, states.shape[1] - keep)
            states, _ = merge_matched(matching, states)
            places = places.gather(1, matching.kept)
        features = torch.cat([states.to(context.hidden.dtype), take(context.hidden, separators)], dim=1)
        return Reduction(torch.cat([places, separators], dim=1), features=features, ordered=self.parity)

    def _importance(self, context: Context) -> torch.Tensor:
        """PageRank of the image's tokens, `(batch, tokens)`."""
        slots = torch.cat([context.slots, context.text_slots], dim=1)
        present = torch.cat([torch.ones_like(context.slots, dtype=torch.bool), context.text_present], dim=1)
        absent = ~present[:, None, :, None]
        ranks = attention_page_rank(
            context.queries_at(slots).masked_fill(absent, 0),
            context.keys_at(slots).masked_fill(absent, 0),
            context.scaling,
            (slots.unsqueeze(1) <= slots.unsqueeze(2)) & present.unsqueeze(1),
            present.double() / present.sum(dim=1, keepdim=True),
            steps=self.steps,
            temperature=self.temperature,
        )
        return ranks[:, : context.tokens]
