"""Which values the host has at hand."""

from __future__ import annotations

import torch


def is_at_hand(tensor: torch.Tensor) -> bool:
    """Whether the host may look at the values without waiting for a device, so that sizes can depend on them.

    Example:
        >>> is_at_hand(torch.zeros(1)), is_at_hand(torch.zeros(1, device="meta"))
        (True, False)
    """
    # Subclasses stand for something else: tensors without values, or values that are spread.
    return tensor.device.type == "cpu" and type(tensor) in (torch.Tensor, torch.nn.Parameter)
