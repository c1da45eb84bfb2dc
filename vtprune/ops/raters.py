"""Text that rates the picture: which words do so, and what they attend to."""

from __future__ import annotations

import math

import torch

from vtprune.kernels import use_kernels
from vtprune.ops.gather import as_float

# A quotient of attention and gravity stays finite with it; gravity of a plain offset is rarely below 1e-3.
_LEAST_GRAVITY = 1e-6
# Shares that are all equal must not exceed their mean by rounding.
_MARGIN = 1e-9


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
    if use_kernels(tokens) and tokens.element_size() == 2 and tokens.dtype == words.dtype:
        from vtprune.kernels.raters import MOST_WORDS, raters_of

        if 0 < words.shape[1] <= MOST_WORDS:
            return raters_of(tokens, words, word_mask, _MARGIN)
    # Autocast would carry out the product in half precision even for float32 operands.
    with torch.autocast(tokens.device.type, enabled=False):
        logits = as_float(tokens) @ as_float(words).mT
    # The lowest finite number: -inf would turn a prompt without words into NaN.
    logits = logits.masked_fill(~word_mask.unsqueeze(1), torch.finfo(logits.dtype).min)
    shares = logits.double().softmax(dim=-1).mean(dim=1).masked_fill(~word_mask, 0)
    mean = shares.sum(dim=1, keepdim=True) / word_mask.sum(dim=1, keepdim=True).clamp_min(1)
    raters = (shares > mean * (1 + _MARGIN)) & word_mask
    return torch.where(raters.any(dim=1, keepdim=True), raters, word_mask)


@torch.no_grad()
def rater_attention(attention: torch.Tensor, raters: torch.Tensor, gravity: torch.Tensor | None = None) -> torch.Tensor:
    """Mean attention of the raters, head by head; zero where there is no rater.

    Args:
        attention: `(batch, heads, rows, tokens)`; rows that are no rater may hold anything.
        raters: `(batch, rows)` booleans.
        gravity: What the attention is divided by, `(batch, rows, tokens)`, as `rotary_gravity` returns it.

    Returns:
        `(batch, heads, tokens)`.

    Example:
        >>> attention = torch.tensor([[[[0.25, 0.75], [0.75, 0.25], [9.0, 9.0]]]])
        >>> rater_attention(attention, torch.tensor([[True, True, False]])).tolist()
        [[[0.5, 0.5]]]
    """
    if use_kernels(attention):
        from vtprune.kernels.raters import mean_rows

        return mean_rows(attention, raters, gravity)
    attention = as_float(attention)
    if gravity is not None:
        attention = attention / gravity.unsqueeze(1).to(attention.dtype)
    total = attention.masked_fill(~raters[:, None, :, None], 0).sum(dim=2)
    return total / raters.sum(dim=1).clamp_min(1)[:, None, None]


@torch.no_grad()
def attention_peaks(attention: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the mean over heads, the sum over some rows and the highest value in them; zero where there is no such row.

    Args:
        attention: `(batch, heads, rows, tokens)`, probabilities; rows that do not count may hold anything.
        rows: Those that count, `(batch, rows)` booleans.

    Returns:
        `(batch, tokens)` each, at least float32.

    Example:
        >>> attention = torch.tensor([[[[0.25, 0.75], [0.75, 0.25], [9.0, 9.0]]]])
        >>> total, peak = attention_peaks(attention, torch.tensor([[True, True, False]]))
        >>> total.tolist(), peak.tolist()
        ([[1.0, 1.0]], [[0.75, 0.75]])
    """
    if use_kernels(attention):
        from vtprune.kernels.raters import totals_and_peaks

        return totals_and_peaks(attention, rows)
    mean = as_float(attention).mean(dim=1).masked_fill(~rows.unsqueeze(-1), 0)
    return mean.sum(dim=1), mean.amax(dim=1)


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
    powers = torch.arange(0, width, 2, device=rows.device, dtype=torch.float64) / -width
    # All queries, then all keys; cos(a - b) = cos a cos b + sin a sin b as one product.
    angles = torch.cat([rows, columns], dim=1).double().unsqueeze(-1) * theta**powers
    waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
    gravity = waves[:, : rows.shape[1]] @ waves[:, rows.shape[1] :].mT * (2 / math.sqrt(width))
    return torch.where(gravity < 0, gravity.clamp_max(-_LEAST_GRAVITY), gravity.clamp_min(_LEAST_GRAVITY))
