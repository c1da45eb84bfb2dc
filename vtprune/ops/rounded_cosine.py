"""Cosines whose sums and ties do not depend on the order of summation."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.ops.gram import cosine_gram

_STEPS, _FLOAT32_STEPS = 2.0**30, 2.0**22


@torch.no_grad()
def rounded_cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs, rounded to multiples of 2^-30; 0 where one vector is zero.

    Sums of up to 2^22 of them are exact in float64, so that tokens that tie on paper tie here too, on every device and
    whatever else is in the batch. float64 also keeps autocast from carrying out the product in half precision.

    Args:
        first: `(batch, tokens, dim)`.
        second: `(batch, others, dim)`.

    Returns:
        `(batch, tokens, others)` float64.

    Example:
        >>> rounded_cosine(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0], [0.0, 0.0]]])).round(decimals=6)
        tensor([[[0.9600, 0.0000]]], dtype=torch.float64)
    """
    cosine = normalize(first.double(), dim=-1) @ normalize(second.double(), dim=-1).mT
    return cosine.mul_(_STEPS).round_().div_(_STEPS)


@torch.no_grad()
def rounded_cosine_gram(tokens: torch.Tensor) -> torch.Tensor:
    """`cosine_gram` rounded to multiples of 2^-30, or, where it is in float32, of 2^-22 as kernels round it.

    Args:
        tokens: `(batch, tokens, dim)`.

    Example:
        >>> rounded_cosine_gram(torch.tensor([[[3.0, 4.0], [4.0, 3.0]]])).round(decimals=6)[0, 0].tolist()
        [1.0, 0.96]
    """
    cosine = cosine_gram(tokens)
    steps = _STEPS if cosine.dtype == torch.float64 else _FLOAT32_STEPS
    return cosine.clamp_(-1, 1).mul_(steps).round_().div_(steps)
