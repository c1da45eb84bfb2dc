"""CUDA graphs: recording work once and replaying it without the host launching each kernel."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")

_MODE = "thread_local"
# Bytes of what may be a constant.
_SMALL = 1 << 20
# Operations whose results, or their shapes, the host must know.
_ASKING = (
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "linalg_eigh",
    "_linalg_eigh",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
)


class Pool:
    """Memory that several recordings share, of which no two may run at the same time; made on the current device."""

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        # A pool whose recordings have all gone cannot be recorded into again: this one stays.
        self._stays = torch.cuda.CUDAGraph()
        with (
            _uncollected(),
            torch.inference_mode(False),
            torch.cuda.graph(self._stays, self.handle, capture_error_mode=_MODE),
        ):
            torch.zeros(1, device="cuda")


class Recorded(Generic[T]):
    """Work on the device that was recorded with what it returned, whose tensors each replay fills anew.

    Args:
        work: What to record; called beforehand too, so that whatever is set up once is set up then.
        pool: Where its memory comes from.
        warmup: Calls beforehand.

    Raises:
        Exception: Whatever `work` raises, or the device where it does what cannot be recorded (asks for a value).
    """

    def __init__(self, work: Callable[[], T], pool: Pool, warmup: int = 2) -> None:
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            here = torch.cuda.current_stream()
            aside = torch.cuda.Stream()
            aside.wait_stream(here)
            constants = HostConstants()
            with torch.cuda.stream(aside):
                for _ in range(warmup):
                    with constants:
                        work()
            here.wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            constants.are_kept = True
            watch = Watch()
            with _uncollected(), torch.cuda.graph(self._graph, pool.handle, capture_error_mode=_MODE), watch, constants:
                self.result = work()
            # What the recorded kernels read from lives as long as they, even if a cache of constants lets it go.
            self._read = watch.read, constants

    def replay(self) -> T:
        """Does the work again; its result holds until the next time."""
        self._graph.replay()
        return self.result


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within, nothing is freed behind the back of a recording that freeing breaks, such as another recording."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Watch(TorchDispatchMode):
    """Within, what makes the host wait for the device is an error, before it breaks a recording and its memory.

    `read` gathers the small memory that was read and is not made within: large is that of weights and inputs, which
    their owners keep, or which is to be free when they let it go.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: dict[int, torch.UntypedStorage] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._refuse(func, args, kwargs)
        for memory in _memory_of([*args, *kwargs.values()]):
            if memory.data_ptr() not in self._made and memory.nbytes() <= _SMALL:
                self.read[memory.data_ptr()] = memory
        result = func(*args, **kwargs)
        self._made.update(memory.data_ptr() for memory in _memory_of(result) if memory.data_ptr() not in self.read)
        return result

    @staticmethod
    def _refuse(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        name = func.name().removeprefix("aten::").partition(".")[0]
        asks = name in _ASKING
        if name in ("index", "index_put_"):
            asks = any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1])
        elif name == "repeat_interleave":
            asks = not kwargs.get("output_size")
        elif name == "copy_":
            asks = args[0].is_cpu != args[1].is_cpu
        elif name == "_to_copy":
            # The other way round `HostConstants` sees to it.
            asks = torch.device(kwargs.get("device") or args[0].device).type == "cpu"
        if asks and any(not tensor.is_cpu for tensor in tensors_in(args)):
            raise RuntimeError(f"{func} makes the host wait for the device")


class HostConstants(TorchFunctionMode):
    """Numbers that work brings from the host to the device: the same at each call, they are brought there once."""

    def __init__(self) -> None:
        super().__init__()
        self.are_kept = False
        self._found: dict[Hashable, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [*args, *kwargs.values()]
        tensors = tensors_in(given)
        from_numbers = func in (torch.tensor, torch.as_tensor) and not tensors
        if not from_numbers and not (tensors and all(tensor.is_cpu for tensor in tensors)):
            return func(*args, **kwargs)
        key = str(func), *map(_content, given), *kwargs
        if self.are_kept and key in self._found:
            return self._found[key].clone()
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and not result.is_cpu:
            self._found[key] = result.clone()
        return result


def _memory_of(values: Any) -> list[torch.UntypedStorage]:
    return [tensor.untyped_storage() for tensor in tensors_in(values) if tensor.is_cuda]


def _content(value: Any) -> Hashable:
    return str(value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value), str(
        getattr(value, "dtype", "")
    )


def is_recording() -> bool:
    """Whether somebody is recording on this thread's stream."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def fixed_like(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Memory that recorded work can read from, of another shape; it starts as zeros."""
    with torch.inference_mode(False):
        return torch.zeros(tuple(shape), dtype=tensor.dtype, device=tensor.device)


def put(sources: Iterable[torch.Tensor], targets: Iterable[torch.Tensor], blocked: Iterable[bool]) -> None:
    """Copies tensors to where recorded work reads them, each to the end of a target that may be larger.

    Args:
        sources: What comes in.
        targets: Where it goes.
        blocked: Whether what is free in front is to be the lowest number there is, instead of 0.
    """
    plain: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for source, target, block in zip(sources, targets, blocked, strict=True):
        if source.data_ptr() == target.data_ptr() and source.shape == target.shape:
            continue
        if source.shape != target.shape:
            target.fill_(torch.finfo(target.dtype).min if block and target.is_floating_point() else 0)
            end = tuple(slice(size - own, None) for size, own in zip(target.shape, source.shape, strict=True))
            target = target[end]
        plain[0].append(target)
        plain[1].append(source)
    if plain[0]:
        torch._foreach_copy_(*plain)


def copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies of many tensors, with one allocation and one launch for each number type."""
    found: dict[int, torch.Tensor] = {}
    for dtype in {tensor.dtype for tensor in tensors}:
        own = {id(tensor): tensor for tensor in tensors if tensor.dtype == dtype}
        flat = torch.empty(
            sum(tensor.numel() for tensor in own.values()), dtype=dtype, device=next(iter(own.values())).device
        )
        parts = flat.split([tensor.numel() for tensor in own.values()])
        views = [part.view(tensor.shape) for part, tensor in zip(parts, own.values(), strict=True)]
        torch._foreach_copy_(views, list(own.values()))
        found.update(zip(own, views, strict=True))
    return [found[id(tensor)] for tensor in tensors]


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in any nesting of dictionaries (outputs of models are such), lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, list | tuple) else []


def replaced_in(value: Any, new: dict[int, Any]) -> Any:
    """The same nesting with other objects in the places of those whose `id` is in `new`."""
    if id(value) in new:
        return new[id(value)]
    if isinstance(value, dict):
        items = {name: replaced_in(part, new) for name, part in value.items()}
        return type(value)(**items) if type(value) is not dict else items
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replaced_in(part, new) for part in value))
    return type(value)(replaced_in(part, new) for part in value) if isinstance(value, list | tuple) else value
