"""What a server or a request asks for: a pruner and a budget, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from vtprune.budget import Budget
from vtprune.eval.grid import parse_pruner
from vtprune.pruner import Pruner

KEY = "vtprune"
"""The name of these options in `--hf-overrides`, in `mm_processor_kwargs`, and beside the pixels on their way."""

_FIELDS = ("pruner", "budget")
_LONGEST = 1000


@dataclass(frozen=True)
class Options:
    """One way of pruning.

    Args:
        text: The options as JSON in one spelling; it travels with each image and is part of its hash.
        pruner: The method, not yet fitted to a model.
        budget: Tokens that stay.
    """

    text: str
    pruner: Pruner
    budget: Budget

    @classmethod
    def read(cls, given: object, default: Options | None = None) -> Options:
        """Reads `{"pruner": "divprune", "budget": 64}`; what is left out is that of `default`.

        A pruner is written as on the command line, `"random(seed=3)"` or `"stride/divprune"`. A budget is a number of
        tokens, a ratio, a text such as `"0.25"`, or the fields of `Budget`, `{"tokens": 64, "per": "view"}`.

        Raises:
            TypeError: Something of the wrong type.
            ValueError: Unknown or missing fields, or a value out of range.
        """
        if given is None and default is not None:
            return default
        if not isinstance(given, Mapping):
            raise TypeError(f'{KEY} must be an object such as {{"pruner": "divprune", "budget": 64}}, got {given!r}')
        if unknown := sorted(map(str, given.keys() - set(_FIELDS))):
            raise ValueError(f"{KEY} has no field {', '.join(unknown)}; it has {' and '.join(_FIELDS)}")
        known: dict[str, Any] = {} if default is None else json.loads(default.text)
        chosen = {**known, **given}
        for name in _FIELDS:
            if chosen.get(name) is None:
                raise ValueError(f'{KEY} has no {name}; write {{"pruner": "divprune", "budget": 64}}')
        text = json.dumps(chosen, sort_keys=True, default=str)
        if len(text) > _LONGEST:
            raise ValueError(f"{KEY} may be {_LONGEST} characters long, got {len(text)}")
        return read_text(text)


@lru_cache(maxsize=1024)
def read_text(text: str) -> Options:
    """The options that a text made by `Options.read` stands for."""
    chosen = json.loads(text)
    pruner, budget = chosen["pruner"], chosen["budget"]
    if not isinstance(pruner, str):
        raise TypeError(f"{KEY}: pruner must be a text such as 'divprune' or 'random(seed=3)', got {pruner!r}")
    if isinstance(budget, bool) or not isinstance(budget, int | float | str | Mapping):
        raise TypeError(f"{KEY}: budget must be a number, a text or the fields of a Budget, got {budget!r}")
    return Options(text, parse_pruner(pruner), _budget(budget))


def _budget(given: int | float | str | Mapping[str, Any]) -> Budget:
    if not isinstance(given, Mapping):
        return Budget.parse(given)
    known = [field.name for field in fields(Budget)]
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(f"{KEY}: budget has no field {', '.join(unknown)}; it has {', '.join(known)}")
    return Budget(**given)
