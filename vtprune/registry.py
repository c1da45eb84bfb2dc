"""The one list of pruning methods; tests, documentation and the command line read it."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

from vtprune.pruner import Pruner

ENTRY_POINT_GROUP = "vtprune.pruners"

_REGISTRY: dict[str, type[Pruner]] = {}
_discovered = False

PrunerT = TypeVar("PrunerT", bound=type[Pruner])


def register(cls: PrunerT) -> PrunerT:
    """Class decorator that makes a method available by its `name`.

    Raises:
        TypeError: `cls` is no `Pruner` or lacks one of the class variables `name`, `paper`, `year`, `summary`.
        ValueError: The name is taken by another class.
    """
    if not (isinstance(cls, type) and issubclass(cls, Pruner)):
        raise TypeError(f"register takes a subclass of vtprune.Pruner, got {cls!r}")
    missing = [field for field in ("name", "paper", "year", "summary") if not hasattr(cls, field)]
    if missing:
        raise TypeError(f"{cls.__name__} must define {', '.join(missing)} before it can be registered")
    known = _REGISTRY.get(cls.name)
    if known is not None and f"{known.__module__}.{known.__qualname__}" != f"{cls.__module__}.{cls.__qualname__}":
        raise ValueError(
            f"pruner name {cls.name!r} is taken by {known.__module__}.{known.__qualname__}; "
            f"choose another name for {cls.__module__}.{cls.__qualname__}"
        )
    _REGISTRY[cls.name] = cls
    return cls


def _discover() -> None:
    """Imports the shipped methods and those that installed packages announce."""
    global _discovered
    if _discovered:
        return
    _discovered = True
    import vtprune.pruners

    for module in pkgutil.iter_modules(vtprune.pruners.__path__, "vtprune.pruners."):
        importlib.import_module(module.name)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        loaded = entry.load()
        if isinstance(loaded, type) and issubclass(loaded, Pruner):
            register(loaded)


def pruner_classes() -> dict[str, type[Pruner]]:
    """All registered methods, by name, sorted."""
    _discover()
    return dict(sorted(_REGISTRY.items()))


def list_pruners() -> list[str]:
    """Names of all registered methods, sorted.

    Example:
        >>> "divprune" in list_pruners()
        True
    """
    return list(pruner_classes())


def pruner_class(name: str) -> type[Pruner]:
    """The class registered under `name`.

    Raises:
        ValueError: No method has that name; the message suggests near ones.
    """
    classes = pruner_classes()
    if name in classes:
        return classes[name]
    near = difflib.get_close_matches(name, classes, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(classes)}"
    raise ValueError(f"unknown pruner {name!r}; {hint}")


def make_pruner(pruner: str | Pruner | Sequence[str | Pruner], **options: Any) -> Pruner:
    """Turns a name (with hyper-parameters), a ready instance or a list of either into a method.

    A list, or names joined by `/`, is a `Chain`: its methods run one after another under one budget.

    Raises:
        TypeError: Neither a name nor a `Pruner`, or a hyper-parameter that the method does not have.
        ValueError: Unknown name, or a hyper-parameter out of range.

    Example:
        >>> make_pruner("fastv", layer=3).layers
        (3,)
    """
    if isinstance(pruner, Pruner):
        if options:
            raise TypeError(f"options {sorted(options)} go with a pruner's name, not with the instance {pruner!r}")
        return pruner
    if isinstance(pruner, str) and "/" in pruner:
        pruner = pruner.split("/")
    if isinstance(pruner, list | tuple):
        from vtprune.chain import Chain

        return Chain(tuple(make_pruner(part) for part in pruner), **options)
    if isinstance(pruner, str):
        cls = pruner_class(pruner)
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(options) - known):
            raise TypeError(f"{pruner} has no option {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}")
        return cls(**options)
    if isinstance(pruner, type) and issubclass(pruner, Pruner):
        raise TypeError(f"got the class {pruner.__name__}; pass an instance, {pruner.__name__}(), or its name")
    raise TypeError(f"pruner must be a name, a vtprune.Pruner or a list of these, got {pruner!r}")
