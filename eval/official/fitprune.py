"""FitPrune's selection at one layer: the strongest head of a whole attention map, from the image and from the text."""

from __future__ import annotations

import torch


def fitprune(attention: torch.Tensor, start: int, tokens: int, delete: int) -> torch.Tensor:
    """Tokens that go, lowest score first, `(delete,)`.

    Args:
        attention: Whole map of the layer, `(1, heads, length, length)`.
        start: First slot of the image.
        tokens: Its tokens that are present.
        delete: Tokens to remove.
    """
    strongest = attention[0].max(dim=0).values[:, start : start + tokens]
    own = strongest[start : start + tokens].sum(dim=0) / tokens
    cross = strongest[start + tokens :].sum(dim=0)
    return (own * cross).topk(delete, largest=False).indices
