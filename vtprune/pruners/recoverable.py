"""Recoverable Compression: outstanding tokens by vision and by text, and the others recovered in a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from vtprune.context import Context
from vtprune.ops.checks import check_integer, check_number, check_share
from vtprune.ops.gather import split_by, take
from vtprune.ops.neighbour_merge import neighbour_merge, weighted_rest
from vtprune.ops.outliers import lof_outlier_count
from vtprune.ops.rounded_cosine import rounded_cosine
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal, check_flag
from vtprune.registry import register


class Counts(NamedTuple):
    """How many tokens of a view are kept by attention and by text, and made: centres and, perhaps, a summary."""

    vision: int
    text: int
    centres: int
    summary: bool


class _Signals(NamedTuple):
    """Of all tokens: attention and text similarity `(batch, tokens)`, keys and features `(batch, tokens, any)`."""

    attention: torch.Tensor
    text: torch.Tensor
    keys: torch.Tensor
    features: torch.Tensor

    def of(self, view: torch.Tensor, images: slice = slice(None)) -> _Signals:
        """The same of some tokens of some images."""
        return _Signals(*(signal[images, view] for signal in self))


class _Outcome(NamedTuple):
    """Tokens kept `(batch, kept)`, features made `(batch, made, encoder_dim)` and the tokens they replace."""

    kept: torch.Tensor
    made: torch.Tensor
    places: torch.Tensor


@register
@dataclass(frozen=True)
class Recoverable(Pruner):
    """Keeps what the last encoder layer attends to and what is close to the question, and makes a few of the rest.

    Works on each encoder view with its share of the budget, in proportion to its tokens. Kept patches come in raster
    order, unchanged; then, view by view, centres by falling attention, each itself plus its neighbours times their
    attention, and a summary of what is neither kept nor a centre. A centre takes its own place, the summary that of the
    last patch in it. Without a centre there is no summary. Newline tokens are kept, at the end, only when the budget
    exceeds the patches.

    The method has no budget of its own: without one (`reduce_adaptive`) local outlier factors of attention and of text
    similarity say how many are kept and how many centres there are, as in the paper; a view without outliers leaves its
    summary alone. With a budget its parts have fixed shares.

    Two slips of the official code are corrected unless `parity`: keys of the dropped tokens are looked up at positions
    in the list of dropped tokens, so that they belong to other patches; and the share of outliers among them counts
    centres out of the feature width instead of their number.

    Args:
        vision: Share of a budget kept by attention, in [0, 1], rounded half to even.
        text: Share of a budget kept by text, in [0, 1], rounded together with `vision`; what is left of the budget goes
            to centres and the summary. The defaults are near the method's own counts on the recorded inputs.
        neighbours: Neighbours of the local outlier factors of attention and text, at least 1.
        centre_neighbours: Neighbours of the local outlier factors among dropped tokens, at least 1.
        cluster: Neighbours that a centre takes in, at least 1.
        text_weight: Weight of text similarity beside the cosine of keys in the choice of those, 0 or above.
        parity: Whether to do as the official code does where it slips.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> Recoverable().split(64), Recoverable().split(1)
        (Counts(vision=38, text=20, centres=5, summary=True), Counts(vision=1, text=0, centres=0, summary=False))
    """

    vision: float = 0.6
    text: float = 0.3
    neighbours: int = 20
    centre_neighbours: int = 10
    cluster: int = 32
    text_weight: float = 50.0
    parity: bool = False

    name = "recoverable"
    paper = "Recoverable Compression, AAAI 2025, arXiv 2409.01179"
    year = 2025
    summary = "Keeps what stands out to the encoder and to the question, and recovers the rest in a few tokens."
    whole_images = True
    signals = frozenset({Signal.ENCODER_LAYERS, Signal.ENCODER_FEATURES, Signal.CLIP_TEXT})
    query_aware = True
    merges = True
    golden = "recoverable_compression.npz"

    def __post_init__(self) -> None:
        check_share(self.name, "vision", self.vision)
        check_share(self.name, "text", self.text)
        if self.vision + self.text > 1:
            raise ValueError(f"{self.name}: vision + text must be at most 1, got {self.vision!r} + {self.text!r}")
        for count in ("neighbours", "centre_neighbours", "cluster"):
            check_integer(self.name, count, getattr(self, count), low=1)
        if not 0 <= check_number(self.name, "text_weight", self.text_weight) < float("inf"):
            raise ValueError(f"{self.name}: text_weight must be 0 or above and finite, got {self.text_weight!r}")
        check_flag(self.name, "parity", self.parity)

    @property
    def encoder_layers(self) -> tuple[int, ...]:
        """The tower's last layer."""
        return (-1,)

    def split(self, budget: int) -> Counts:
        """What a view's budget goes to; the first token beyond those that are kept is a centre."""
        vision = round(budget * self.vision)
        kept = round(budget * (self.vision + self.text))
        made = budget - kept
        return Counts(vision, kept - vision, min(made, max(1, made - 1)), made > 1)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Compresses each view with fixed counts."""
        views, shares, separators = context.by_view(keep)
        signals = self._signals(context)
        outcomes = []
        for view, share in zip(views, shares, strict=True):
            counts = self.split(share) if share < len(view) else Counts(share, 0, 0, False)
            outcomes.append(self._compress(signals.of(view), view, counts))
        kept, features = _lined_up(context, context.hidden, outcomes)
        return Reduction(
            torch.cat([kept, separators], dim=1),
            features=torch.cat([features, take(context.hidden, separators)], dim=1),
            ordered=True,
        )

    def reduce_adaptive(self, context: Context) -> Reduction:
        """Compresses each view of each image with its own numbers of outliers."""
        signals = self._signals(context)
        views = [view for view in context.view_tokens if len(view)]
        rows = []
        for image in range(context.batch):
            here = slice(image, image + 1)
            outcomes = []
            for view in views:
                own = signals.of(view, here)
                outcomes.append(self._compress(own, view, self._outliers(own)))
            rows.append(_lined_up(context, context.hidden[here], outcomes))
        kept, features = zip(*((names[0], states[0]) for names, states in rows), strict=True)
        lengths = torch.tensor([len(names) for names in kept], device=context.hidden.device)
        return Reduction(
            pad_sequence(list(kept), batch_first=True),
            features=pad_sequence(list(features), batch_first=True),
            valid=torch.arange(max(map(len, kept)), device=lengths.device) < lengths.unsqueeze(1),
            ordered=True,
        )

    def _signals(self, context: Context) -> _Signals:
        layer = context.encoder_layer(0)
        # The code projects the tower's last states without the norm that CLIP has there.
        patches = context.clip_project(layer.output, norm=False)
        cosine = rounded_cosine(patches, context.clip_text_last.unsqueeze(1)).squeeze(-1)
        return _Signals(
            attention=layer.joint_attention,
            text=cosine * patches.shape[-1] ** -0.5,
            keys=layer.keys.transpose(1, 2).flatten(2),
            features=context.encoder_features,
        )

    def _compress(self, signals: _Signals, view: torch.Tensor, counts: Counts) -> _Outcome:
        """Keeps and makes the given numbers of tokens of one view."""
        kept, rest = _outstanding(signals, counts.vision, counts.text)
        attention, features = signals.attention.gather(1, rest), take(signals.features, rest)
        keys = signals.keys[:, : rest.shape[1]] if self.parity else take(signals.keys, rest)
        bonus = self.text_weight * signals.text.gather(1, rest)
        places = stable_topk(attention, counts.centres)
        made = neighbour_merge(features, keys, attention, places, self.cluster, bonus=bonus)
        if counts.summary:
            left = torch.ones_like(rest, dtype=torch.bool).scatter(1, places, False)
            last = torch.where(left, torch.arange(rest.shape[1], device=rest.device), -1).amax(dim=1, keepdim=True)
            made = torch.cat([made, weighted_rest(features, attention, left)], dim=1)
            places = torch.cat([places, last], dim=1)
        return _Outcome(view[kept], made, view[rest.gather(1, places)])

    def _outliers(self, signals: _Signals) -> Counts:
        """What stands out in one view of one image."""
        attention, text, _, features = signals
        tokens = attention.shape[1]
        vision = self._part(tokens, int(lof_outlier_count(attention, self.neighbours)), tokens)
        by_attention = stable_topk(attention, vision)
        evened = text.scatter(1, by_attention, text.amin(dim=1, keepdim=True).expand_as(by_attention))
        by_text = self._part(tokens - vision, int(lof_outlier_count(evened, self.neighbours)), tokens)
        left = attention.gather(1, _outstanding(signals, vision, by_text)[1])
        dropped = left.shape[1]
        outliers = int(lof_outlier_count(left, self.centre_neighbours))
        centres = self._part(features.shape[-1] if self.parity else dropped, outliers, dropped)
        # The summary needs a token whose place it takes.
        centres = min(centres, dropped - 1)
        return Counts(vision, by_text, centres, centres > 0 or vision + by_text == 0)

    def _part(self, size: int, count: int, total: int) -> int:
        """`count` of `total`, of another size; the code goes through a quotient, whose rounding can cost one token."""
        return int(size * (count / total)) if self.parity else size * count // total


def _outstanding(signals: _Signals, vision: int, text: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens highest by attention and, of the others, by text; and those that are neither. Both ascending."""
    by_attention = stable_topk(signals.attention, vision)
    by_text = stable_topk(signals.text.scatter(1, by_attention, -torch.inf), text)
    is_kept = torch.zeros_like(signals.attention, dtype=torch.bool)
    return split_by(is_kept.scatter(1, torch.cat([by_attention, by_text], dim=1), True), vision + text)


def _lined_up(
    context: Context, hidden: torch.Tensor, outcomes: Sequence[_Outcome]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and states of all views: what was kept in raster order, then what was made."""
    kept = torch.cat([outcome.kept for outcome in outcomes], dim=1).sort(dim=1).values
    made = torch.cat([outcome.made for outcome in outcomes], dim=1)
    states = [take(hidden, kept)]
    if made.shape[1]:
        states.append(context.project(made).to(hidden.dtype))
    return torch.cat([kept, *(outcome.places for outcome in outcomes)], dim=1), torch.cat(states, dim=1)
