"""Cosines whose sums and ties do not depend on the order of summation."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.ops.gram import gram

_STEPS = 2.0**30


@torch.no_grad()
def rounded_cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs, rounded to multiples of 2^-30; 0 where one vector is zero.

    Sums of up to 2^22 of them are exact in float64, so that tokens that tie on paper tie here too, on every device and
    whatever else is in the batch. float64 also keeps autocast from carrying out the product in half precision.

    Args:
        first: `(batch, tokens, dim)`.
        second: `(batch, others, dim)`. If it is `first` itself, the result is exactly symmetric.

    Returns:
        `(batch, tokens, others)` float64.

    Example:
        >>> rounded_cosine(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0], [0.0, 0.0]]])).round(decimals=6)
        tensor([[[0.9600, 0.0000]]], dtype=torch.float64)
    """
    unit = normalize(first.double(), dim=-1)
    cosine = gram(unit) if second is first else unit @ normalize(second.double(), dim=-1).mT
    return cosine.mul_(_STEPS).round_().div_(_STEPS)
