"""Looks over a method's shoulder: what it ranked tokens by, and which tokens it merged into which.

Nothing of it changes what the method chooses: it runs as ever, and what is learnt comes from sorting operations that
are listened to and, for merging methods, from a second call whose gradients tell which tokens went into which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from vtprune.chain import Chain
from vtprune.context import Context
from vtprune.pruner import Pruner, Reduction

_Reduce = Callable[[Any, int], Reduction]

_MOST_SURVIVORS = 640
"""More merged tokens are not told apart: each costs a backward pass."""


@dataclass(frozen=True)
class Watched:
    """One image at one stage, in tokens of the untouched image.

    Args:
        kept: The survivors, ascending.
        scores: Of each present token what the method ranked it by; empty where it did not rank all of them at once.
        owners: Of each present token the survivor that it went into, itself included; tokens that went nowhere are
            missing. Empty for methods that do not merge, and where it cannot be told.
    """

    kept: tuple[int, ...]
    scores: Mapping[int, float] = field(default_factory=dict)
    owners: Mapping[int, int] = field(default_factory=dict)


class Watch:
    """Collects what the methods it watches do in one prefill."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, Watched]] = []
        self._open = True

    def close(self) -> None:
        """Stops collecting; what runs later is not slowed down."""
        self._open = False

    def find(self, stage: int, kept: Iterable[int]) -> Watched:
        """What was seen of the image that kept these tokens in that stage."""
        wanted = tuple(kept)
        for number, seen in self._seen:
            if number == stage and seen.kept == wanted:
                return seen
        return Watched(wanted)

    def follow(self, reduce: _Reduce, context: Context, keep: int, *, merges: bool) -> Reduction:
        """Calls `reduce` and remembers what it did."""
        if not self._open:
            return reduce(context, keep)
        with _Sorting(context.tokens) as sorting:
            reduction = reduce(context, keep)
        owners = _owners(reduce, context, keep) if merges and reduction.features is not None else None
        origin = context.origin.cpu()
        kept = origin.gather(1, reduction.kept.cpu())
        ranked = None if sorting.scores is None else sorting.scores.float().cpu()
        if ranked is not None and len(ranked) != len(origin):
            ranked = None
        for image, names in enumerate(origin.tolist()):
            survivors = kept[image] if reduction.valid is None else kept[image][reduction.valid[image].cpu()]
            scores = {} if ranked is None else dict(zip(names, ranked[image].tolist(), strict=True))
            into = {}
            if owners is not None:
                own = zip(names, owners[image].tolist(), strict=True)
                into = {token: int(kept[image, place]) for token, place in own if place >= 0}
            self._seen.append((context.stage, Watched(tuple(sorted(survivors.tolist())), scores, into)))
        return reduction


def watched(pruner: Pruner, watch: Watch) -> Pruner:
    """The same method, with the watch told of everything that it does."""
    if isinstance(pruner, Chain):
        return dataclasses.replace(pruner, pruners=tuple(watched(part, watch) for part in pruner.pruners))
    cls = type(pruner)

    def reduce(self: Pruner, context: Context, keep: int) -> Reduction:
        return watch.follow(lambda seen, count: cls.reduce(self, seen, count), context, keep, merges=cls.merges)

    kind = type(cls.__name__, (cls,), {"reduce": reduce, "__module__": cls.__module__, "__doc__": cls.__doc__})
    values = {entry.name: getattr(pruner, entry.name) for entry in dataclasses.fields(pruner)}
    made: Pruner = kind(**values)
    return made


class _Sorting(TorchFunctionMode):
    """Remembers the first scores of all tokens that are sorted from high to low."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.scores: torch.Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if self.scores is None and func is torch.sort and options.get("descending") and args:
            values = args[0]
            if values.dim() == 2 and values.shape[1] == self.tokens and values.is_floating_point():
                self.scores = values.detach().clone()
        return func(*args, **options)


class _Leaves:
    """A context whose tokens gradients can be taken by."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.leaves: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._context, name)
        if name in ("hidden", "encoder_features"):
            value = value.detach().clone().requires_grad_()
            self.leaves.append(value)
            setattr(self, name, value)
        return value


def _owners(reduce: _Reduce, context: Context, keep: int) -> torch.Tensor | None:
    """For each token the place in `kept` of the survivor that it weighs most in, -1 for none."""
    try:
        with torch.enable_grad():
            seen = _Leaves(context)
            features = reduce(seen, keep).features
            if features is None or not features.requires_grad or features.shape[1] > _MOST_SURVIVORS:
                return None
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(features.shape[-1], generator=generator).to(features.device)
            values = (features.float() * probe).sum(dim=(0, 2))
            weights = []
            for value in values:
                slopes = torch.autograd.grad(value, seen.leaves, retain_graph=True, allow_unused=True)
                parts = [slope.float().abs().sum(dim=-1) for slope in slopes if slope is not None]
                weights.append(sum(parts[1:], start=parts[0]) if parts else seen.leaves[0].new_zeros(()).float())
            shape = context.origin.shape
            stacked = torch.stack([weight.expand(shape) for weight in weights], dim=2)
    except (RuntimeError, NotImplementedError):
        # An operation without gradients: then nothing can be told.
        return None
    best = stacked.max(dim=2)
    return torch.where(best.values > 0, best.indices, -1)
