"""Plain loop of the rounded cosine."""

from __future__ import annotations

import torch


def rounded_cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Cosine of two vectors to the nearest multiple of 2^-30, 0 where one is zero."""
    first, second = first.double(), second.double()
    length = float(first.norm() * second.norm())
    return round(float(first @ second) / length * 2**30) / 2**30 if length > 0 else 0.0
