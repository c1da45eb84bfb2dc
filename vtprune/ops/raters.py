"""Text that rates the picture: which words do so, and what they attend to."""

from __future__ import annotations

import math

import torch

from vtprune.ops.gather import as_float

# A quotient of attention and gravity stays finite with it; gravity of a plain offset is rarely below 1e-3.
_LEAST_GRAVITY = 1e-6


@torch.no_grad()
def text_raters(tokens: torch.Tensor, words: torch.Tensor, word_mask: torch.Tensor) -> torch.Tensor:
    """Words that the picture resembles more than the average word, `(batch, length)` booleans.

    SparseVLM (arXiv 2410.04417, section 3.2): each token shares itself out among the words by a softmax of plain
    dot products; a word is a rater if its mean share exceeds the mean over words. Where no share does (a single word,
    equal words) all words rate, which the paper's code leaves undefined; a prompt without words has no rater. What
    stands at masked words never matters.

    Args:
        tokens: What the language model was given for the picture, `(batch, tokens, dim)`.
        words: Its input embeddings of the text, `(batch, length, dim)`.
        word_mask: `True` at words, `(batch, length)`.

    Example:
        >>> words = torch.tensor([[[3.0, 0.0], [0.0, 3.0], [2.9, 0.0], [9.0, 9.0]]])
        >>> text_raters(torch.tensor([[[1.0, 0.0]]]), words, torch.tensor([[True, True, True, False]])).tolist()
        [[True, False, True, False]]
    """
    # Autocast would carry out the product in half precision even for float32 operands.
    with torch.autocast(tokens.device.type, enabled=False):
        logits = as_float(tokens) @ as_float(words).mT
    # The lowest finite number: -inf would turn a prompt without words into NaN.
    logits = logits.masked_fill(~word_mask.unsqueeze(1), torch.finfo(logits.dtype).min)
    shares = logits.double().softmax(dim=-1).mean(dim=1).masked_fill(~word_mask, 0)
    mean = shares.sum(dim=1, keepdim=True) / word_mask.sum(dim=1, keepdim=True).clamp_min(1)
    # Shares that are all equal must not exceed their mean by rounding.
    raters = (shares > mean * (1 + 1e-9)) & word_mask
    return torch.where(raters.any(dim=1, keepdim=True), raters, word_mask)


def rater_attention(attention: torch.Tensor, raters: torch.Tensor) -> torch.Tensor:
    """Mean attention of the raters, head by head; zero where there is no rater.

    Args:
        attention: `(batch, heads, rows, tokens)`; rows that are no rater may hold anything.
        raters: `(batch, rows)` booleans.

    Returns:
        `(batch, heads, tokens)`.

    Example:
        >>> attention = torch.tensor([[[[0.25, 0.75], [0.75, 0.25], [9.0, 9.0]]]])
        >>> rater_attention(attention, torch.tensor([[True, True, False]])).tolist()
        [[[0.5, 0.5]]]
    """
    total = as_float(attention).masked_fill(~raters[:, None, :, None], 0).sum(dim=2)
    return total / raters.sum(dim=1).clamp_min(1)[:, None, None]


@torch.no_grad()
def rotary_gravity(rows: torch.Tensor, columns: torch.Tensor, width: int, theta: float) -> torch.Tensor:
    """What rotary positions alone make of a dot product: that of vectors of ones at two positions, over `sqrt(width)`.

    SparseVLM+ (arXiv 2410.04417): `2 / sqrt(width) * sum over i of cos((row - column) * theta ** (-2 i / width))`. It
    falls with the offset and can be negative; values nearer to zero than 1e-6 are moved there, keeping their sign, so
    that one can divide by it.

    Args:
        rows: Positions of the queries, `(batch, rows)`.
        columns: Positions of the keys, `(batch, tokens)`.
        width: Width of a head, even.
        theta: Base of the rotary frequencies.

    Returns:
        `(batch, rows, tokens)` float64.

    Example:
        >>> rotary_gravity(torch.tensor([[7]]), torch.tensor([[7]]), 16, 10000.0).round(decimals=6).item()
        4.0
    """
    powers = torch.arange(0, width, 2, device=rows.device, dtype=torch.float64) / width
    frequencies = theta**-powers
    query, key = (positions.double().unsqueeze(-1) * frequencies for positions in (rows, columns))
    cosines = query.cos() @ key.cos().mT + query.sin() @ key.sin().mT
    gravity = 2 / math.sqrt(width) * cosines
    return torch.where(gravity < 0, gravity.clamp_max(-_LEAST_GRAVITY), gravity.clamp_min(_LEAST_GRAVITY))
