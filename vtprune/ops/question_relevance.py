"""How much tokens bear on a question, by their cosines to its pieces."""

from __future__ import annotations

import torch

from vtprune.kernels import use_kernels
from vtprune.ops.rounded_cosine import rounded_cosine


@torch.no_grad()
def question_relevance(
    tokens: torch.Tensor, pieces: torch.Tensor, mask: torch.Tensor, among: torch.Tensor, *, negate: bool = False
) -> torch.Tensor:
    """Mean cosine of each token to the pieces of a question, from 0 to 1 among some of the tokens.

    CDPruner (arXiv 2506.10967), as in its code with `1e-6` above the distance from the lowest. Cosines are rounded as
    by `rounded_cosine`, so that tokens that tie on paper tie here. Where the tokens are all equal, or one of them has
    no number, each is as relevant as any other.

    Args:
        tokens: `(batch, tokens, dim)`.
        pieces: `(batch, pieces, dim)`.
        mask: `True` at pieces, `(batch, pieces)`; others never matter.
        among: `True` at the tokens that range from 0 to 1, `(batch, tokens)`; others may lie outside.
        negate: Whether the least similar tokens are the most relevant ones.

    Returns:
        `(batch, tokens)` float64.

    Example:
        >>> tokens, pieces = torch.eye(2)[None], torch.tensor([[[1.0, 0.0]]])
        >>> here = torch.tensor([[True]])
        >>> question_relevance(tokens, pieces, here, here.expand(1, 2)).round(decimals=4).tolist()
        [[1.0, 0.0]]
    """
    if use_kernels(tokens):
        from vtprune.kernels.question_relevance import relevance

        return relevance(tokens, pieces, mask, among, negate=negate)
    cosines = rounded_cosine(tokens, pieces.masked_fill(~mask.unsqueeze(-1), 0))
    mean = cosines.sum(dim=-1) / mask.sum(dim=-1, keepdim=True).clamp_min(1)
    scores = -mean if negate else mean
    low = scores.masked_fill(~among, torch.inf).amin(dim=-1, keepdim=True)
    high = scores.masked_fill(~among, -torch.inf).amax(dim=-1, keepdim=True)
    return torch.where(high > low, (scores - low + 1e-6) / (high - low), 1)
