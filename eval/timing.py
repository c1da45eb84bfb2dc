"""Wall-clock times of functions on a device: warmed up, synchronised, taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

RunT = TypeVar("RunT")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated runs: median, the quartiles around it, and how many runs there were.

    Example:
        >>> str(Timing.of([1.0, 2.0, 3.0, 4.0, 5.0]))
        '3.00 (1.50-4.50)'
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, taken: Sequence[float]) -> Timing:
        """Summarises measured milliseconds; of a single run the quartiles are the run itself."""
        if len(taken) == 1:
            return cls(taken[0], taken[0], taken[0], 1)
        low, median, high = statistics.quantiles(taken, n=4)
        # Quartiles of two runs lie outside of them: a measured bound is the better statement.
        return cls(median, max(low, min(taken)), min(high, max(taken)), len(taken))

    def per(self, count: int) -> Timing:
        """The same for one of `count` equal parts of a run."""
        return Timing(self.median / count, self.low / count, self.high / count, self.runs)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


class Laps:
    """Splits a run into phases as the device sees them, without making it wait where one ends.

    Args:
        device: Where the run takes place; idle when it starts.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: list[tuple[str, Any, Any]] = []
        self._first = self._last = self._now()

    def mark(self, name: str | None, *, since_start: str | None = None, wait: bool = False) -> None:
        """Ends a phase.

        Args:
            name: Its name; `None` if nobody wants to know how long it took.
            since_start: Name of the time from the start of the run until here, if that is wanted too.
            wait: Whether the device is to be idle before the next phase starts, so that the host does not run ahead.
        """
        now = self._now()
        if name is not None:
            self._spans.append((name, self._last, now))
        if since_start is not None:
            self._spans.append((since_start, self._first, now))
        self._last = now
        if wait:
            synchronize(self._device)
            # The device has stood still since, which is not the next phase's.
            self._last = self._now()

    def read(self) -> dict[str, float]:
        """Milliseconds of each named phase; waits for the device."""
        synchronize(self._device)
        return {name: self._between(start, end) for name, start, end in self._spans}

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) if self._device.type == "cuda" else 1e3 * (end - start))

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_in_turns(
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    repeats: int = 20,
    warmup: int = 3,
    limit: float | None = None,
    advance: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Times functions round by round, so that what drifts (clocks, heat, neighbours) meets all of them alike.

    Args:
        runs: The functions by name; each must leave no work behind that the next would pay for.
        device: Where they run.
        repeats: Timed rounds.
        warmup: Rounds before them.
        limit: Seconds of one function's timed runs after which it is left out of further rounds; one timed run is
            always made, and a function whose first warm-up run exceeds the limit is not warmed up further.
        advance: Called after every round, warm-up included.
    """

    def once(run: Callable[[], object]) -> float:
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    taken = _in_turns(runs, once, lambda found: found, repeats, warmup, limit, advance)
    return {name: Timing.of(values) for name, values in taken.items()}


def phases_in_turns(
    runs: Mapping[str, Callable[[Laps], object]],
    device: torch.device,
    *,
    repeats: int = 20,
    warmup: int = 3,
    limit: float | None = None,
    advance: Callable[[], object] | None = None,
    around: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
) -> dict[str, dict[str, Timing]]:
    """The same for functions that mark the ends of their phases: for each function the times of its phases.

    Args:
        runs: The functions by name; each is handed the `Laps` of its run.
        device: Where they run.
        repeats: Timed rounds.
        warmup: Rounds before them.
        limit: As in `time_in_turns`.
        advance: Called after every round, warm-up included.
        around: Contexts in which functions of these names run; entering and leaving them takes no time.
    """
    contexts = {name: (around or {}).get(name, nullcontext) for name in runs}
    pairs = {name: (run, contexts[name]) for name, run in runs.items()}

    def once(pair: tuple[Callable[[Laps], object], Callable[[], AbstractContextManager[object]]]) -> dict[str, float]:
        run, context = pair
        with context():
            synchronize(device)
            laps = Laps(device)
            run(laps)
            return laps.read()

    taken = _in_turns(pairs, once, lambda found: sum(found.values()), repeats, warmup, limit, advance)
    return {
        name: {phase: Timing.of([one[phase] for one in values]) for phase in values[0]}
        for name, values in taken.items()
    }


def time_one(run: Callable[[], object], device: torch.device, *, repeats: int = 20, warmup: int = 3) -> Timing:
    """Times a single function."""
    return time_in_turns({"run": run}, device, repeats=repeats, warmup=warmup)["run"]


def _in_turns(
    runs: Mapping[str, RunT],
    once: Callable[[RunT], Any],
    milliseconds: Callable[[Any], float],
    repeats: int,
    warmup: int,
    limit: float | None,
    advance: Callable[[], object] | None,
) -> dict[str, list[Any]]:
    """What `once` measures of each run in each timed round."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if warmup < 0:
        raise ValueError(f"warmup must be at least 0, got {warmup}")
    longest = float("inf") if limit is None else 1e3 * limit
    warming = dict(runs)
    for _ in range(warmup):
        for name, run in list(warming.items()):
            if milliseconds(once(run)) > longest:
                del warming[name]
        if advance is not None:
            advance()
    found: dict[str, list[Any]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if not found[name] or sum(map(milliseconds, found[name])) < longest:
                found[name].append(once(run))
        if advance is not None:
            advance()
    return found
