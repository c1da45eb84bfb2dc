"""Functions in the place of methods of single modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def replace_method(module: nn.Module, name: str, by: Callable[..., Any]) -> Callable[[], None]:
    """Puts a function in the place of a method of one module; returns what undoes it.

    Where somebody else has put theirs around it since, that stays: the function is then still called.
    """
    own = module.__dict__.get(name)
    module.__dict__[name] = by

    def undo() -> None:
        if module.__dict__.get(name) is not by:
            return
        if own is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = own

    return undo
