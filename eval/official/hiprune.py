"""HiPrune's selection: anchors of a middle layer with their neighbours, registers of a deep layer, view by view."""

from __future__ import annotations

import torch


def hiprune(middle: torch.Tensor, deep: torch.Tensor, count: int, alpha: float = 0.1) -> torch.Tensor:
    """Patches of each view that stay, ascending, `(views, count)`.

    Args:
        middle: Whole map of the object layer, `(views, heads, queries, patches + 1)`.
        deep: The same of the deep layer.
        count: Patches of each view to keep.
        alpha: Share of them for anchors and neighbours.
    """
    found = []
    for view in range(len(middle)):
        objects = middle[view].mean(dim=(0, 1))[1:]
        rest = deep[view].mean(dim=(0, 1))[1:].clone()
        patches, side = len(objects), round(len(objects) ** 0.5)
        anchors = objects.topk(round(count * alpha / 5)).indices
        around = torch.cat([anchors, anchors - 1, anchors + 1, anchors - side, anchors + side])
        chosen = around.clamp(0, patches - 1).unique()
        rest[chosen] -= 1
        registers = rest.topk(count - len(chosen)).indices
        found.append(torch.cat([chosen, registers]).sort().values)
    return torch.stack(found)
