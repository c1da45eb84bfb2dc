"""The library's own selection, run on the features of vLLM's tower: a prompt of visual tokens and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from vtprune.adapters.vllm.plan import Plan
from vtprune.engine.images import Images
from vtprune.engine.selection import Step, prune_images
from vtprune.engine.sequence import Tokens, start_tokens
from vtprune.engine.vision import VisionRecord


class Left(NamedTuple):
    """What is left of an image.

    Args:
        states: For the decoder, `(kept, dim)`.
        origin: Which of its tokens they are, or in the places of which they stand, `(kept,)`.
    """

    states: torch.Tensor
    origin: torch.Tensor


def prune_features(
    features: Sequence[torch.Tensor], entries: Sequence[range], record: VisionRecord, plan: Plan, positions: str
) -> list[Left]:
    """What is left of images that are encoded.

    Args:
        features: Tokens of each image, `(tokens, dim)`, as the decoder would get them.
        entries: The entries of the record that each image is made of.
        record: What was seen of the tower.
        plan: What to keep.
        positions: `"pack"` or `"keep"`: whether tokens that are left close up on others that are gone.

    Raises:
        RuntimeError: The method kept another number of tokens than it was to.
    """
    if not features:
        return []
    images = Images()
    for numbers in entries:
        images.add(0, record, numbers)
    schedules = [plan.schedule(layout) for layout in images.layouts]
    hidden = torch.cat(list(features)).unsqueeze(0)
    visual = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    tokens = start_tokens(visual, images.rows, [layout.tokens for layout in images.layouts])
    run: Any = _Features(images, hidden, tokens, plan, record, positions)
    for stage in range(len(plan.pruner.layers)):
        step = Step(stage, tuple(schedule[stage] for schedule in schedules))
        gather, hidden = prune_images(run, 0, step, tokens, hidden, _no_layer_ahead)
        tokens = gather.after
    wanted = [schedule[-1] for schedule in schedules]
    if list(tokens.counts) != wanted:
        raise RuntimeError(f"{plan.pruner.name} was to leave {wanted} tokens of each image and left {tokens.counts}")
    return [Left(*parts) for parts in zip(hidden[0].split(wanted), tokens.origin.split(wanted), strict=True)]


class _Features:
    """What a stage asks of the run that it is part of, where there are image features but no decoder."""

    def __init__(
        self,
        images: Images,
        hidden: torch.Tensor,
        tokens: Tokens,
        plan: Plan,
        record: VisionRecord,
        positions: str,
    ) -> None:
        adapter = record.adapter
        self.images = images
        self.layouts = images.layouts
        self.with_gradient = False
        self._hidden, self._start = hidden, tokens
        projector = adapter.vision.projector
        self.engine = SimpleNamespace(
            adapter=adapter,
            layers=range(plan.abilities.depths.decoder),
            pruner=plan.pruner,
            positions=positions,
            project=(lambda features: features) if projector is None else projector.forward,
            signals=plan.signals,
            vision=adapter.vision,
        )

    def visual_inputs(self, images: Sequence[int]) -> torch.Tensor:
        """The features of all tokens of images of one layout, `(images, tokens, dim)`."""
        return self._hidden[0][self._start.of_images(self._start.slots, images)]


def _no_layer_ahead(rotated: bool) -> Any:
    raise RuntimeError("no decoder layer has run yet when an image is encoded")
