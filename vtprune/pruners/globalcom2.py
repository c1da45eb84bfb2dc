"""GlobalCom2: the thumbnail decides how much each crop keeps, and has a say in which patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from vtprune.context import Context
from vtprune.ops.anyres_quota import crop_weights, holistic_scores, resized_scores, weighted_shares, within_quota
from vtprune.ops.checks import check_positive
from vtprune.ops.gather import split_by
from vtprune.ops.share import largest_remainder
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal, check_flag
from vtprune.registry import register


@register
@dataclass(frozen=True)
class GlobalCom2(Pruner):
    """Keeps the highest scores of the thumbnail, and in crops those that score high there and in the thumbnail.

    A patch's score is the CLS token's raw logit in the encoder's last layer, averaged over heads; the paper speaks of
    attention, its code and so its numbers use logits. For towers without CLS it is minus the cosine between the patch
    and the mean patch of its view. Crops whose part of the thumbnail scores high get more of the budget, `1 + p - 1/n`
    times the average with `p` the softmax over `n` crops; within a crop the sum of its own scores and the resized
    thumbnail's decides. On one view, or on views that are no thumbnail with crops, each view's highest scores stay.

    The thumbnail comes first, best patch first, as in the paper's code, then the crops in raster order. That code takes
    a patch's number among its crop's patches without padding for its place in the whole crop, so that padded pictures
    are put together wrongly; `official_placement` does the same, with the same tokens.

    The code knows a ratio per view instead of a budget: quotas rounded down, never above the crop, newline tokens on
    top. Here the budget, newline tokens in it, is met exactly, and what a full crop cannot take goes to the others.

    Args:
        temperature: Of the softmax over crops, above 0.
        newlines: Keep all newline tokens, as the paper's code does, when at least half of the budget is left for
            patches; otherwise, or with `False`, they are kept only when the budget exceeds the patches.
        official_placement: Put crops together as the paper's code does.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> GlobalCom2(temperature=5.0).encoder_layers
        (-1,)
    """

    temperature: float = 10.0
    newlines: bool = True
    official_placement: bool = False

    name = "globalcom2"
    paper = "GlobalCom2, AAAI 2026, arXiv 2501.05179"
    year = 2026
    summary = "Lets the thumbnail share the budget among crops and weigh their patches."
    whole_images = True
    signals = frozenset({Signal.ENCODER_LAYERS, Signal.ENCODER_FEATURES})
    reorders = True
    golden = "globalcom2.npz"

    def __post_init__(self) -> None:
        check_positive(self.name, "temperature", self.temperature)
        check_flag(self.name, "newlines", self.newlines)
        check_flag(self.name, "official_placement", self.official_placement)

    @property
    def encoder_layers(self) -> tuple[int, ...]:
        """The last layer."""
        return (-1,)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the best of each view within its quota, and the newline tokens that the budget allows."""
        views = context.view_tokens
        sizes = [len(view) for view in views]
        closing = self._closing(context.tokens - sum(sizes), sum(sizes), keep)
        separators = split_by(context.is_patch, sum(sizes))[1]
        scores = [self._scores(context, view) for view in views]
        if context.layout.crops == (0, 0):
            shares = largest_remainder(sizes, keep - closing)
            picks = [view[stable_topk(score, share)] for view, score, share in zip(views, scores, shares, strict=True)]
            return Reduction(torch.cat([*picks, separators[:, :closing]], dim=1))
        overview, quotas = self.quotas(scores[0], context, keep - closing)
        thumbnail = views[0][stable_topk(scores[0], overview)]
        flags = torch.zeros_like(context.is_patch).scatter(1, separators[:, :closing], True)
        seen = self._seen(context, scores[0])
        for crop, (view, own, overall) in enumerate(zip(views[1:], scores[1:], seen, strict=True)):
            flags = flags.index_copy(1, view, within_quota(holistic_scores(own, overall), quotas[:, crop]))
        inside = split_by(flags, keep - overview)[0]
        if self.official_placement:
            place = self._official_places(context, separators).gather(1, inside)
            inside = inside.gather(1, place.argsort(dim=1, stable=True))
        return Reduction(torch.cat([thumbnail, inside], dim=1), ordered=True)

    def quotas(self, scores: torch.Tensor, context: Context, budget: int) -> tuple[int, torch.Tensor]:
        """Tokens of the thumbnail, and of each crop, `(batch, crops)`, that make up a budget of patches.

        Args:
            scores: Scores of the thumbnail, `(batch, patches)`.
            context: The images, with crops.
            budget: Patches to keep.
        """
        height, width = context.layout.view_rectangles[0]
        sizes = [len(view) for view in context.view_tokens]
        overview, rest = largest_remainder([sizes[0], sum(sizes[1:])], budget)
        weights = crop_weights(scores, height, width, context.layout.crops, self.temperature)
        room = torch.stack([weights[:, crop] * size for crop, size in enumerate(sizes[1:])], dim=1)
        return overview, weighted_shares(room, rest, sizes[1:])

    def _closing(self, newlines: int, patches: int, keep: int) -> int:
        """How many newline tokens stay."""
        if self.newlines and 2 * newlines <= keep:
            return newlines
        return max(keep - patches, 0)

    def _scores(self, context: Context, view: torch.Tensor) -> torch.Tensor:
        """Scores of one view's patches, `(batch, patches)`."""
        if context.has_cls:
            return context.encoder_layer(0).logits[:, :, view].double().mean(dim=1)
        features = context.encoder_features[:, view].double()
        return -(normalize(features, dim=2) * normalize(features.mean(dim=1, keepdim=True), dim=2)).sum(dim=2)

    def _seen(self, context: Context, scores: torch.Tensor) -> list[torch.Tensor]:
        """For each crop what the thumbnail scores where its patches are, `(batch, patches)`."""
        rectangles = context.layout.view_rectangles
        row_ends, column_ends = context.layout.crop_ends
        whole = resized_scores(scores, *rectangles[0], row_ends[-1], column_ends[-1])
        seen = []
        for crop, (height, width) in enumerate(rectangles[1:]):
            row, column = divmod(crop, len(column_ends))
            top, left = (0, *row_ends)[row], (0, *column_ends)[column]
            seen.append(whole[:, top : top + height, left : left + width].flatten(1))
        return seen

    def _official_places(self, context: Context, separators: torch.Tensor) -> torch.Tensor:
        """Where the paper's code puts each token on the canvas of whole crops, `(batch, tokens)`."""
        height, width = context.layout.view_shape
        rows, columns = context.layout.crops
        line = columns * width + 1
        places = torch.zeros_like(context.origin)
        for crop, view in enumerate(context.view_tokens[1:]):
            number = torch.arange(len(view), device=view.device)
            row = crop // columns * height + number // width
            place = row * line + crop % columns * width + number % width
            places = places.index_copy(1, view, place.expand(len(places), -1))
        # Rows of padding have no newline token where the model unpads, and lie evenly above and below.
        above = max((rows * height - separators.shape[1]) // 2, 0)
        ends = (torch.arange(separators.shape[1], device=separators.device) + above + 1) * line - 1
        return places.scatter(1, separators, ends.expand(len(places), -1))
