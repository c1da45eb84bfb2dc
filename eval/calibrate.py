"""FitPrune's offline step: how much attention the visual tokens of a model receive, and the schedule that follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL import Image

import vtprune
from vtprune.adapters import find_adapter
from vtprune.budget import Budget
from vtprune.context import Context
from vtprune.costs import prefill_flops
from vtprune.eval.compare import chat_inputs
from vtprune.eval.models import LoadedModel
from vtprune.ops.fit_schedule import fit_schedule, mean_share
from vtprune.pruner import Pruner, Reduction
from vtprune.pruners.fitprune import FitPrune

Example = tuple[Image.Image, str]
"""A picture and a question."""


@dataclass(frozen=True)
class Recorder(FitPrune):
    """Keeps every token and records the attention it receives, layer by layer."""

    name: ClassVar[str] = "fitprune-recorder"

    own: dict[int, list[torch.Tensor]] = field(default_factory=dict, compare=False)
    cross: dict[int, list[torch.Tensor]] = field(default_factory=dict, compare=False)

    def reduce_adaptive(self, context: Context) -> Reduction:
        own, cross = self.scores(context)
        self.own.setdefault(context.layer, []).append(own.cpu())
        self.cross.setdefault(context.layer, []).append(cross.cpu())
        return Reduction(torch.arange(context.tokens, device=context.hidden.device).expand(context.batch, -1))


@dataclass(frozen=True)
class Calibration:
    """A schedule fitted to a model.

    Args:
        shares: Tokens left after each decoder layer but the last, as a share of all: `FitPrune(shares=...)`.
        alpha: Share of each layer's attention that removed tokens may hold.
        average_share: Visual tokens that a layer processes on average, as a share of all.
        samples: Pictures that were looked at.
        tokens: Visual tokens of each.
    """

    shares: tuple[float, ...]
    alpha: float
    average_share: float
    samples: int
    tokens: int

    @property
    def pruner(self) -> Pruner:
        """The method with this schedule."""
        return FitPrune(shares=self.shares)

    @property
    def keep(self) -> int:
        """The budget that gives the schedule as it was fitted: tokens left at the end."""
        return max(1, round(self.shares[-1] * self.tokens))


@torch.no_grad()
def calibrate(
    loaded: LoadedModel, examples: Iterable[Example], budget: Budget, *, advance: Callable[[], None] | None = None
) -> Calibration:
    """Runs the unpruned model on examples and fits FitPrune's schedule to a mean or a share of FLOPs.

    Args:
        loaded: The model.
        examples: Pictures with questions; all must come to the same number of visual tokens.
        budget: `Budget(average=...)` or `Budget(flops=...)`.
        advance: Called after each example.

    Raises:
        ValueError: Another kind of budget, no example, or examples of different token counts.
    """
    if budget.average is None and budget.flops is None:
        raise ValueError(f"a schedule is fitted to an average or to a share of FLOPs, got {budget}; write average:192")
    shape = find_adapter(loaded.model).shape
    recorder = Recorder().fit(find_adapter(loaded.model).depths)
    texts: list[int] = []
    tokens = 0
    with vtprune.pruning(loaded.model, recorder, Budget(adaptive=True), positions="keep"):
        for picture, question in examples:
            inputs = chat_inputs(loaded, picture, question)
            model: Any = loaded.model
            model(**inputs)
            report = vtprune.report(model)
            if tokens and report.visual_tokens != tokens:
                raise ValueError(
                    f"pictures of {tokens} and of {report.visual_tokens} visual tokens cannot be averaged; give "
                    "pictures of one size"
                )
            tokens = report.visual_tokens
            texts.append(inputs["input_ids"].shape[1] - tokens)
            if advance is not None:
                advance()
    if not texts:
        raise ValueError("there is no picture to calibrate with")
    own, cross = ([torch.cat(scores[layer]) for layer in recorder.layers] for scores in (recorder.own, recorder.cross))
    text = round(sum(texts) / len(texts))
    whole = prefill_flops(shape, [text + tokens] * shape.layers)

    def flops(shares: Any) -> float:
        lengths = [text + round(tokens * share) for share in (1.0, *shares)]
        return prefill_flops(shape, lengths) / whole

    if budget.flops is not None:
        fitted = fit_schedule(cross, own, budget.flops, flops)
    else:
        assert budget.average is not None
        fitted = fit_schedule(cross, own, budget.average / tokens)
    return Calibration(fitted.shares, fitted.alpha, mean_share(fitted.shares), len(texts), tokens)
