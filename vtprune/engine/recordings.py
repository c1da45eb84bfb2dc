"""What was recorded of one engine's work in one thread, and why something was not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from vtprune.engine.capture import Pool, Recorded
from vtprune.engine.decode_slots import SlotPool
from vtprune.engine.side_stream import SideStream

if TYPE_CHECKING:
    from vtprune.engine.engine import Engine

T = TypeVar("T")


@dataclass(frozen=True)
class Graph:
    """How `vtprune.wrap(..., graph=...)` records.

    Args:
        bucket: Prompts are filled up to a multiple of so many tokens, so that one recording serves several lengths;
            1 records each length by itself.
        limit: Recordings of a kind that are kept, the least recently used goes; each holds the memory of its results.

    Raises:
        TypeError: A field is no integer.
        ValueError: A field is below 1.

    Example:
        >>> Graph(bucket=32)
        Graph(bucket=32, limit=16)
    """

    bucket: int = 16
    limit: int = 16

    def __post_init__(self) -> None:
        for name in ("bucket", "limit"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Graph: {name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"Graph: {name} must be at least 1, got {value!r}")


class Refused(Exception):
    """Why something is not recorded."""


@dataclass
class Recordings:
    """The recordings of one thread; several threads may run one model, and each has memory of its own to write to.

    `is_busy` while the vision side is recorded as a whole, its tower with it.
    """

    limit: int
    slots: SlotPool = field(default_factory=SlotPool)
    side: SideStream = field(default_factory=SideStream)
    is_busy: bool = False
    _found: dict[str, OrderedDict[Hashable, Any]] = field(default_factory=dict)

    @cached_property
    def pool(self) -> Pool:
        """The memory that all recordings share: a thread replays one after another."""
        return Pool()

    def get(self, kind: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was made for a key, or is made now; the reason where it could not be.

        Raises:
            Refused: It could not be recorded, now or before.
        """
        every = self._found.setdefault(kind, OrderedDict())
        if key not in every:
            try:
                every[key] = make()
            except Exception as error:  # whatever a model does that cannot be recorded
                first = str(error).strip().partition("\n")[0]
                # Memory that a broken recording was given is lost to it.
                self.__dict__.pop("pool", None)
                reason = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {first}"
                every[key] = Refused(reason)
            while len(every) > self.limit:
                every.popitem(last=False)
        every.move_to_end(key)
        found = every[key]
        if isinstance(found, Refused):
            raise found
        return found

    def record(self, work: Callable[[], T], warmup: int = 2) -> Recorded[T]:
        """Records work in the memory that all recordings share."""
        return Recorded(work, self.pool, warmup)


class Recorder:
    """Records one part of an engine's work.

    Args:
        engine: The engine of the wrapped model.
        settings: How to record.
    """

    def __init__(self, engine: Engine, settings: Graph) -> None:
        self._engine = engine
        self._settings = settings

    @property
    def recordings(self) -> Recordings:
        local = self._engine.local
        if local.recordings is None:
            local.recordings = Recordings(self._settings.limit)
        found: Recordings = local.recordings
        return found

    def _check_spread(self) -> None:
        devices = {parameter.device for parameter in self._engine.adapter.base.parameters()}
        if len(devices) > 1:
            raise Refused(f"the model is spread over {len(devices)} devices")


def check_devices(tensors: Iterable[torch.Tensor]) -> None:
    """Refuses inputs that are not on a CUDA device.

    Raises:
        Refused: With the reason.
    """
    for tensor in tensors:
        if not tensor.is_cuda:
            raise Refused(f"graphs need a CUDA device, and an input is on {tensor.device}")
    if torch.is_autocast_enabled("cuda"):
        raise Refused("autocast is on; load the model in the number type that it is to run in")


def signature(value: Any) -> Hashable:
    """What a recording takes for granted of an argument."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    return value if isinstance(value, Hashable) else repr(value)


def weights_of(module: nn.Module) -> Hashable:
    """Where a module's weights lie: recordings read them there."""
    first = next(module.parameters())
    return first.data_ptr(), first.dtype, first.device
