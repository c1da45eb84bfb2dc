"""VScan's first stage: a loop over windows, a look at the whole picture, and merging behind the projector."""

from __future__ import annotations

import torch


def vscan(
    features: torch.Tensor, shallow: torch.Tensor, deep: torch.Tensor, count: int, window: int = 6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches that stay, ascending, `(kept,)`, and their features with the others merged in, `(kept, dim)`.

    Args:
        features: Projected features of one view, `(patches, dim)`.
        shallow: CLS attention of a shallow encoder layer, `(heads, patches)`.
        deep: The same of the last but one.
        count: Patches to keep; fewer come back where the windows do not divide their half.
        window: Side of a window in patches.
    """
    near, far = shallow.mean(dim=0), deep.mean(dim=0).clone()
    side = round(len(near) ** 0.5)
    numbers = torch.arange(len(near), device=near.device).view(side, side)
    corners = [(row, column) for row in range(0, side, window) for column in range(0, side, window)]
    each = int(count * 0.5) // len(corners)
    local = []
    for row, column in corners:
        inside = numbers[row : row + window, column : column + window].flatten()
        local.append(inside[near[inside].topk(each).indices])
    windows = torch.cat(local)
    far[windows] = 0
    mask = torch.zeros(len(near), dtype=torch.bool, device=near.device)
    mask[windows] = True
    mask[far.topk(count - int(count * 0.5)).indices] = True
    kept, dropped = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
    unit = features / features.norm(dim=-1, keepdim=True)
    home = (unit[dropped] @ unit[kept].T).argmax(dim=-1)
    merged = features[kept].clone()
    merged.index_add_(0, home, features[dropped])
    sizes = torch.ones(len(kept), dtype=features.dtype, device=features.device)
    sizes.index_add_(0, home, torch.ones_like(home, dtype=features.dtype))
    return kept, merged / sizes.unsqueeze(-1)
