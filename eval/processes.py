"""The processes that `accelerate launch` started: which one this is, and what all of them have to say."""

from __future__ import annotations

from typing import TypeVar

import torch

T = TypeVar("T")


def rank() -> int:
    """The number of this process among them."""
    return torch.distributed.get_rank() if _is_distributed() else 0


def share(value: T) -> list[T]:
    """What each process has to say, known to all of them."""
    if not _is_distributed():
        return [value]
    found = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
