"""Triton kernels behind the operations, for what is sequential or made of many small launches.

`vtprune.ops` decides when to call them (`use_kernels`); a method or an engine never does. Each kernel computes what
the torch code beside it in `vtprune.ops` computes, which stays the reference and the path of every other device. This
module imports no Triton, so that it can be asked where there is none.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_switched_off = False


def use_kernels(tensor: torch.Tensor) -> bool:
    """Whether operations on this tensor go to a kernel: it holds values on a CUDA device, and Triton is there.

    `VTPRUNE_KERNELS=0` in the environment and `without_kernels` switch them off.
    """
    # Subclasses stand for something else: tensors without values, or values that are spread.
    holds_values = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return (
        holds_values
        and tensor.is_cuda
        and not _switched_off
        and _has_triton()
        and os.environ.get("VTPRUNE_KERNELS") != "0"
    )


@contextmanager
def without_kernels() -> Iterator[None]:
    """Within, operations take their torch path on every device: to compare both.

    Example:
        >>> with without_kernels():
        ...     use_kernels(torch.zeros(1))
        False
    """
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
