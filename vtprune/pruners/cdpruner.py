"""CDPruner: tokens that bear on the question and differ from each other, by a determinantal point process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from vtprune.context import Context
from vtprune.ops.checks import check_share
from vtprune.ops.dpp import dpp_map
from vtprune.ops.question_relevance import question_relevance
from vtprune.pruner import Pruner, Reduction, Signal, check_flag
from vtprune.registry import register


@register
@dataclass(frozen=True)
class CDPruner(Pruner):
    """Keeps the tokens whose kernel of similarity, weighed by relevance to the question, has a large determinant.

    Picks are made in each encoder view with its share of the budget, in proportion to its tokens. Relevance goes from 0
    to 1 within an image, over all its views, as in the code for one image; a batch of images does not share it here.
    Equal relevance everywhere, for which the code divides by zero, leaves diversity alone to choose. Newline tokens,
    which the code drops, are kept only when the budget exceeds the patches.

    Args:
        negate: Whether the patches least similar to the question are the most relevant ones, as in the code of the
            published numbers (CLIP's patch features run against its text); the text of the paper has it the other way.
        theta: Weight of relevance against diversity, in [0, 1): relevance `r` becomes `exp(theta / (2 - 2 theta) r)`.
            `None`, as in the published code, takes relevance as it is.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> CDPruner(theta=0.8).config()
        {'negate': True, 'theta': 0.8}
    """

    negate: bool = True
    theta: float | None = None

    name = "cdpruner"
    paper = "CDPruner, NeurIPS 2025, arXiv 2506.10967"
    year = 2025
    summary = "Keeps tokens relevant to the question and unlike each other, by a determinantal point process."
    whole_images = True
    signals = frozenset({Signal.CLIP_TEXT, Signal.ENCODER_FEATURES})
    query_aware = True
    golden = "cdpruner.npz"

    def __post_init__(self) -> None:
        check_flag(self.name, "negate", self.negate)
        if self.theta is not None:
            check_share(self.name, "theta", self.theta)
            if self.theta == 1:
                raise ValueError(f"{self.name}: theta must be below 1, got {self.theta!r}; 0.9 is nearly all relevance")

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Picks in all views at once, view by view in the order of picking."""
        views, shares, separators = context.by_view(keep)
        names = pad_sequence(list(views), batch_first=True, padding_value=-1)
        present = None
        if len({len(view) for view in views}) > 1:
            present = (names >= 0).repeat(context.batch, 1)
            names = names.clamp_min(0)
        states, relevance = context.hidden[:, names], self.relevance(context)[:, names]
        picks = dpp_map(states.flatten(0, 1), relevance.flatten(0, 1), max(shares), present)
        picked = names.expand(context.batch, -1, -1).gather(2, picks.unflatten(0, (context.batch, len(views))))
        kept = [picked[:, view, :share] for view, share in enumerate(shares)]
        return Reduction(torch.cat([*kept, separators], dim=1))

    def relevance(self, context: Context) -> torch.Tensor:
        """How much each token bears on the question, from 0 to 1 among the patches, `(batch, tokens)` float64."""
        features = context.clip_project(context.encoder_features)
        relative = question_relevance(
            features, context.clip_text, context.clip_text_mask, context.is_patch, negate=self.negate
        )
        return relative if self.theta is None else torch.exp(relative * (self.theta / (2 - 2 * self.theta)))
