"""One stage: the method chooses for each group of equal images, and the sequence is gathered accordingly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from vtprune.engine.sequence import Gather, Tokens, remove
from vtprune.engine.stage_context import StageContext
from vtprune.layout import ImageLayout
from vtprune.pruner import Reduction

if TYPE_CHECKING:
    from vtprune.engine.run import Run


def prune_images(
    run: Run, layer: int, tokens: Tokens, hidden: torch.Tensor, targets: Sequence[int]
) -> tuple[Gather, torch.Tensor]:
    """Lets the method choose, group by group, and gathers the states.

    Args:
        run: The prefill.
        layer: Decoder layer of the stage.
        tokens: The tokens present before it.
        hidden: States that enter the layer, `(batch, length, dim)`.
        targets: Tokens of each image after the stage.

    Returns:
        How slots come from slots, and the states after the stage.

    Raises:
        ValueError: The method returned something else than it was asked for.
    """
    groups: dict[tuple[ImageLayout, int, int], list[int]] = {}
    for image, (layout, count, target) in enumerate(zip(run.layouts, tokens.counts, targets, strict=True)):
        groups.setdefault((layout, count, target), []).append(image)
    chosen: dict[int, torch.Tensor] = {}
    features: dict[int, torch.Tensor] = {}
    offsets = tokens.offsets
    for (_, count, target), images in groups.items():
        if target == count:
            whole = torch.arange(count, device=hidden.device)
            chosen.update({image: whole + offsets[image] for image in images})
            continue
        context = StageContext(run, layer, tokens, hidden, images)
        kept, values, valid = _arranged(run, _reduce(run, context, target), context, target)
        for place, image in enumerate(images):
            here = kept[place]
            value = None if values is None else values[place]
            if valid is not None:
                # Adaptive methods keep a different number in each image; that number must be known here.
                here, value = here[valid[place]], None if value is None else value[valid[place]]
            chosen[image] = here + offsets[image]
            if value is not None:
                features[image] = value
    parts = [chosen[image] for image in range(len(targets))]
    # Slots ascend; a method's own order only decides whose states go into which slot.
    ascending = [part.sort().values for part in parts] if features else parts
    gather = remove(tokens, torch.cat(ascending), [len(part) for part in parts])
    pruned = gather.states(hidden)
    if features:
        original = hidden.flatten(0, 1)[tokens.slots]
        rows = [features.get(image, original[part]) for image, part in enumerate(parts)]
        flat = pruned.flatten(0, 1).index_copy(0, gather.after.slots, torch.cat(rows).to(pruned.dtype))
        pruned = flat.view_as(pruned)
    return gather, pruned


def _reduce(run: Run, context: StageContext, target: int) -> Reduction:
    pruner = run.engine.pruner
    if pruner.merges and run.with_gradient and not torch.is_grad_enabled():
        raise ValueError(
            f"{pruner.name} makes new tokens, whose gradients reentrant checkpointing would lose in this release of "
            "transformers; enable it with use_reentrant=False"
        )
    # Methods choose their own precision; under autocast their scores would be rounded behind their back.
    with torch.autocast(context.hidden.device.type, enabled=False):
        return pruner.reduce(context, target)


def _arranged(
    run: Run, reduction: Reduction, context: StageContext, target: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Kept tokens `(batch, kept)`, their states where these change or move, and validity, in one order."""
    kept, values, valid = reduction.kept, reduction.features, reduction.valid
    name = run.engine.pruner.name
    if kept.dim() != 2 or kept.shape[0] != context.batch:
        raise ValueError(f"{name} must return kept of shape ({context.batch}, kept), got {tuple(kept.shape)}")
    if valid is None and kept.shape[1] != target:
        raise ValueError(f"{name} was asked to keep {target} tokens of each image and kept {kept.shape[1]}")
    if values is not None and values.shape[:2] != kept.shape:
        raise ValueError(f"{name} returned features of shape {tuple(values.shape)} for kept {tuple(kept.shape)}")
    if reduction.ordered and run.engine.positions == "pack":
        if values is None:
            values = context.hidden.gather(1, kept.unsqueeze(-1).expand(-1, -1, context.hidden.shape[-1]))
        return kept, values, valid
    kept, order = kept.sort(dim=1)
    if values is not None:
        values = values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
    return kept, values, None if valid is None else valid.gather(1, order)
