"""Plain loops of the operations on rater text."""

from __future__ import annotations

import math

import torch


def text_raters(tokens: torch.Tensor, words: torch.Tensor) -> list[int]:
    """SparseVLM's raters among `(length, dim)` words, all of them text, for `(tokens, dim)`."""
    shares = [0.0] * len(words)
    for token in tokens.double():
        logits = [float(token @ word) for word in words.double()]
        powers = [math.exp(logit - max(logits)) for logit in logits]
        for place, power in enumerate(powers):
            shares[place] += power / sum(powers) / len(tokens)
    raters = [place for place, share in enumerate(shares) if share > sum(shares) / len(shares) + 1e-9]
    return raters or list(range(len(words)))


def rater_attention(attention: torch.Tensor, raters: list[int]) -> torch.Tensor:
    """Mean of the rows of `(heads, rows, tokens)` that are named in `raters`."""
    heads, _, tokens = attention.shape
    mean = torch.zeros(heads, tokens, dtype=torch.float64)
    for row in raters:
        mean += attention[:, row].double() / len(raters)
    return mean


def rotary_gravity(rows: list[int], columns: list[int], width: int, theta: float) -> list[list[float]]:
    """Dot products of rotated vectors of ones, over the root of their width."""

    def rotated(position: int) -> list[float]:
        angles = [position * theta ** (-2 * pair / width) for pair in range(width // 2)]
        first = [math.cos(angle) - math.sin(angle) for angle in angles]
        return first + [math.cos(angle) + math.sin(angle) for angle in angles]

    def product(row: int, column: int) -> float:
        pairs = zip(rotated(row), rotated(column), strict=True)
        return sum(one * other for one, other in pairs) / math.sqrt(width)

    return [[product(row, column) for column in columns] for row in rows]
