"""One stage: the method chooses for each group of equal images, and the sequence is gathered accordingly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from vtprune.engine.sequence import Gather, Tokens, remove
from vtprune.engine.stage_context import Ahead, StageContext
from vtprune.layout import ImageLayout
from vtprune.pruner import Reduction

if TYPE_CHECKING:
    from vtprune.engine.run import Run


class Step(NamedTuple):
    """One stage of the plan of a prefill.

    Args:
        stage: Its number among the method's stages.
        targets: Tokens of each image after it; `None` where the method itself decides.
    """

    stage: int
    targets: tuple[int, ...] | None


def prune_images(
    run: Run, layer: int, step: Step, tokens: Tokens, hidden: torch.Tensor, ahead: Ahead
) -> tuple[Gather, torch.Tensor]:
    """Lets the method choose, group by group, and gathers the states.

    Args:
        run: The prefill.
        layer: Decoder layer of the stage.
        step: The stage, and what is to be left after it.
        tokens: The tokens present before it.
        hidden: States that enter the layer, `(batch, length, dim)`.
        ahead: Query and key states of `layer` itself, were nothing removed; with or without rotary.

    Returns:
        How slots come from slots, and the states after the stage.

    Raises:
        ValueError: The method returned something else than it was asked for.
    """
    groups: dict[tuple[str, ImageLayout, int, int | None], list[int]] = {}
    for image, (layout, count) in enumerate(zip(run.layouts, tokens.counts, strict=True)):
        target = None if step.targets is None else step.targets[image]
        groups.setdefault((run.images.records[image].kind, layout, count, target), []).append(image)
    parts: dict[int, _Part] = {}
    offsets = tokens.offsets
    streams, hidden = hidden, run.engine.adapter.plane(hidden)
    for (_, _, count, target), images in groups.items():
        if target == count or count == 0:
            whole = torch.arange(count, device=hidden.device)
            parts.update({image: _Part(whole + offsets[image], None, None) for image in images})
        elif target == 0:
            none = torch.empty(0, dtype=torch.long, device=hidden.device)
            parts.update({image: _Part(none, None, None) for image in images})
        else:
            context = StageContext(run, step.stage, layer, tokens, hidden, images, ahead)
            arranged = _arranged(run, _reduce(run, context, target), context, target)
            parts.update({image: part.behind(offsets[image]) for image, part in zip(images, arranged, strict=True)})
    ordered = [parts[image] for image in range(len(run.layouts))]
    changes = any(part.features is not None for part in ordered)
    # Slots ascend; a method's own order only decides whose states go into which slot.
    ascending = [part.kept.sort().values if changes else part.kept for part in ordered]
    gather = remove(tokens, torch.cat(ascending), [len(part.kept) for part in ordered])
    pruned = gather.states(streams)
    if changes:
        original = hidden.flatten(0, 1)[tokens.slots]
        rows = [original[part.kept] if part.features is None else part.features for part in ordered]
        flat = pruned.flatten(0, 1).index_copy(0, gather.after.slots, torch.cat(rows).to(pruned.dtype))
        pruned = flat.view_as(pruned)
    if any(part.sizes is not None for part in ordered):
        sizes = [
            torch.ones(len(part.kept), device=hidden.device) if part.sizes is None else part.sizes for part in ordered
        ]
        gather = replace(gather, after=gather.after.weighed(torch.cat(sizes)))
    return gather, pruned


class _Part(NamedTuple):
    """What is left of one image: numbers of visual tokens, and their states and sizes where these change."""

    kept: torch.Tensor
    features: torch.Tensor | None
    sizes: torch.Tensor | None

    def behind(self, offset: int) -> _Part:
        return self._replace(kept=self.kept + offset)


def _reduce(run: Run, context: StageContext, target: int | None) -> Reduction:
    pruner = run.engine.pruner
    if pruner.merges and run.with_gradient and not torch.is_grad_enabled():
        raise ValueError(
            f"{pruner.name} makes new tokens, whose gradients reentrant checkpointing would lose in this release of "
            "transformers; enable it with use_reentrant=False"
        )
    # Methods choose their own precision; under autocast their scores would be rounded behind their back.
    with torch.autocast(context.hidden.device.type, enabled=False):
        return pruner.reduce_adaptive(context) if target is None else pruner.reduce(context, target)


def _arranged(run: Run, reduction: Reduction, context: StageContext, target: int | None) -> list[_Part]:
    """What is left of each image of a group, in one order."""
    kept, values, valid, sizes = reduction.kept, reduction.features, reduction.valid, reduction.sizes
    name = run.engine.pruner.name
    if kept.dim() != 2 or kept.shape[0] != context.batch:
        raise ValueError(f"{name} must return kept of shape ({context.batch}, kept), got {tuple(kept.shape)}")
    if valid is None and target is not None and kept.shape[1] != target:
        raise ValueError(f"{name} was asked to keep {target} tokens of each image and kept {kept.shape[1]}")
    if values is not None and values.shape[:2] != kept.shape:
        raise ValueError(f"{name} returned features of shape {tuple(values.shape)} for kept {tuple(kept.shape)}")
    if sizes is not None and sizes.shape != kept.shape:
        raise ValueError(f"{name} returned sizes of shape {tuple(sizes.shape)} for kept {tuple(kept.shape)}")
    if sizes is not None and not run.engine.pruner.weighs_attention:
        raise ValueError(f"{name} returned sizes but its weighs_attention is False")
    if reduction.ordered and run.engine.positions == "pack":
        if values is None:
            values = context.hidden.gather(1, kept.unsqueeze(-1).expand(-1, -1, context.hidden.shape[-1]))
    else:
        kept, order = kept.sort(dim=1)
        if values is not None:
            values = values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
        sizes = None if sizes is None else sizes.gather(1, order)
        valid = None if valid is None else valid.gather(1, order)
    parts = []
    for place in range(context.batch):
        # Adaptive methods keep a different number in each image; that number must be known here.
        here = slice(None) if valid is None else valid[place]
        parts.append(
            _Part(
                kept[place][here],
                None if values is None else values[place][here],
                None if sizes is None else sizes[place][here],
            )
        )
    return parts
