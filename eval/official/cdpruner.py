"""CDPruner's selection: a kernel of similarity and relevance, and its greedy MAP estimate pick by pick."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize


def relevance(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """How little each patch is like the question, from 0 to 1 over all views, `(views, tokens)`.

    Args:
        image_embeds: Patches in CLIP's joint space, `(views, tokens, clip_dim)`.
        text_embeds: Pieces of the question, `(pieces, clip_dim)`.
    """
    unlike = -(normalize(image_embeds, dim=-1) @ normalize(text_embeds, dim=-1).T)
    score = unlike.mean(dim=-1)
    return (score - score.min() + 1e-6) / (score.max() - score.min())


def cdpruner(features: torch.Tensor, image_embeds: torch.Tensor, text_embeds: torch.Tensor, count: int) -> torch.Tensor:
    """Tokens of each view in the order of picking, `(views, count)`.

    Args:
        features: Projected features, `(views, tokens, dim)`.
        image_embeds: The same patches in CLIP's joint space, `(views, tokens, clip_dim)`.
        text_embeds: Pieces of the question, `(pieces, clip_dim)`.
        count: Tokens of each view to pick.
    """
    unit = normalize(features.float(), dim=-1)
    weight = relevance(image_embeds.float(), text_embeds.float())
    kernel = weight.unsqueeze(2) * (unit @ unit.transpose(1, 2)) * weight.unsqueeze(1)
    views, tokens = weight.shape
    every = torch.arange(views, device=kernel.device)
    parts = torch.zeros(count, views, tokens, device=kernel.device)
    gain = torch.diagonal(kernel, dim1=1, dim2=2).clone()
    picked = torch.empty(count, views, dtype=torch.long, device=kernel.device)
    for turn in range(count):
        best = gain.argmax(dim=-1)
        picked[turn] = best
        known = torch.einsum("tv,tvn->vn", parts[:turn, every, best], parts[:turn])
        part = (kernel[every, best] - known) / gain[every, best].sqrt().unsqueeze(-1)
        parts[turn] = part
        gain -= part.square()
        gain[every, best] = -float("inf")
    return picked.T
