"""DivPrune's selection: all distances, then one pick after another, each from all rows picked so far."""

from __future__ import annotations

import torch


def divprune(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Tokens picked by greedy max-min distance, in the order of picking, `(count,)`.

    Every turn takes the minimum over the rows of all earlier picks anew.

    Args:
        tokens: Projected features of one image, `(tokens, dim)`.
        count: Tokens to pick.
    """
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    distance = 1.0 - unit @ unit.T
    picked = torch.empty(count, dtype=torch.long, device=tokens.device)
    for turn in range(count):
        if turn == 0:
            apart = torch.topk(distance, k=2, dim=0, largest=False).values[1]
        else:
            apart = torch.index_select(distance, 0, picked[:turn]).min(dim=0).values
        picked[turn] = apart.argmax()
    return picked
