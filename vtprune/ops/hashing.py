"""Random numbers that depend on a picture and a token alone: same on every device, whatever else is in the batch."""

from __future__ import annotations

import torch


def _signed(value: int) -> int:
    """The int64 with the bits of the unsigned `value`."""
    return value - (1 << 64) if value >> 63 else value


# Increment and multipliers of the SplitMix64 generator (Steele, Lea and Flood, OOPSLA 2014).
_INCREMENT = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift to the right that fills with zeros; torch's own repeats the sign bit."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix(values: torch.Tensor) -> torch.Tensor:
    """Scrambles int64 values one by one, a bijection; the finaliser of SplitMix64 with wrapping arithmetic.

    Example:
        >>> mix(torch.tensor([0, 1])).tolist()
        [0, 6238072747940578789]
    """
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    return values ^ _shift(values, 31)


def random_keys(image: torch.Tensor, token: torch.Tensor, seed: int) -> torch.Tensor:
    """One random int64 for every token of every picture.

    Args:
        image: `(batch,)` int64, a number of the picture.
        token: `(batch, tokens)` int64, a number of the token within its picture.
        seed: Chooses another independent draw.

    Returns:
        `(batch, tokens)` int64.

    Example:
        >>> first = random_keys(torch.tensor([7, 8]), torch.arange(4).expand(2, 4), seed=0)
        >>> bool((first[1:] == random_keys(torch.tensor([8]), torch.arange(4)[None], seed=0)).all())
        True
    """
    stream = mix(mix(image + _INCREMENT) ^ seed)
    return mix(stream[:, None] + (token + 1) * _INCREMENT)
