"""DART's selection: pivots with large keys, each of which takes the tokens least like it, one pivot after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def dart_pivots(
    keys: torch.Tensor, start: int, tokens: int, image_pivots: int = 4, text_pivots: int = 4
) -> tuple[list[int], list[int]]:
    """Slots of the sequence with the largest keys among the image and behind it, best first.

    Args:
        keys: Of the layer before, `(1, kv_heads, length, head_dim)`.
        start: First slot of the image.
        tokens: Tokens of the image.
        image_pivots: Pivots among them.
        text_pivots: Pivots behind them.
    """
    length = keys[0].transpose(0, 1).flatten(1).abs().sum(dim=-1)
    image = length[start : start + tokens].topk(image_pivots).indices + start
    text = length[start + tokens :].topk(text_pivots).indices + start + tokens
    return image.tolist(), text.tolist()


def dart(
    hidden: torch.Tensor, pivots: Iterable[int], image_pivots: Sequence[int], start: int, tokens: int, ratio: float
) -> torch.Tensor:
    """Slots of the image's tokens that stay, ascending.

    Args:
        hidden: States behind the final norm, `(1, length, dim)`.
        pivots: All pivots in the order in which they pick.
        image_pivots: Those of them that are tokens of the image.
        start: First slot of the image.
        tokens: Tokens of the image.
        ratio: Share of the tokens to remove.
    """
    order = list(pivots)
    each = int(tokens * (1 - ratio) / len(order))
    kept = set(image_pivots)
    pool = set(range(start, start + tokens)) - kept
    for pivot in order:
        rest = torch.tensor(sorted(pool), device=hidden.device)
        cosine = torch.nn.functional.cosine_similarity(hidden[0, rest], hidden[0, pivot].unsqueeze(0), dim=-1)
        taken = rest[cosine.topk(each, largest=False).indices].tolist()
        kept.update(taken)
        pool.difference_update(taken)
    return torch.tensor(sorted(kept), device=hidden.device)
