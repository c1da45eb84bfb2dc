"""Cells of a sweep on a Ray cluster: one actor a GPU keeps its model, a cell whose machine is lost goes to another."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from vtprune.eval.grid import Cell
from vtprune.eval.store import Record
from vtprune.eval.sweep import Advance, Begin, End
from vtprune.eval.sweep_config import SweepConfig
from vtprune.eval.workbench import Workbench, failure

LOCAL = "local"
"""An address: a cluster of this machine alone, started for the sweep."""

_PATIENCE = 10.0
"""Seconds between looks at actors that have not started yet."""


class Worker:
    """What runs in an actor: a workbench of its own."""

    def __init__(self, config: SweepConfig) -> None:
        self._bench = Workbench(config)

    def ready(self) -> bool:
        """Returns once the process runs."""
        return True

    def measure(self, cell: Cell) -> tuple[Record, list[Record]]:
        """The record of a cell, done or failed, and one line a question."""
        return self._bench.attempt(cell, lambda done: None)


@dataclass
class _Turn:
    """A cell on its way, and how often a machine was lost over it."""

    cell: Cell
    lost: int = 0


class RayPool:
    """Spreads cells over a Ray cluster, for `Sweep.run(spread=...)`.

    Results come back to the process that started the sweep, which alone writes them: a cell is recorded once, however
    often it was begun.

    Args:
        config: Handed to the actors. Models, task folders and text towers must be found under the same names on every
            machine.
        address: Of a running cluster, such as `"auto"` or `"ray://host:10001"`; `"local"` starts one here.
        workers: Actors; by default one for each GPU of the cluster, or for each machine where it has none.
        cpus: CPU cores of an actor.
        retries: How often a cell is begun anew because its machine was lost; then it is recorded as failed.
        console: Where losses are told.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: No cluster at that address.
        ValueError: A number out of range.
    """

    def __init__(
        self,
        config: SweepConfig,
        address: str = LOCAL,
        *,
        workers: int | None = None,
        cpus: int = 1,
        retries: int = 3,
        console: Console | None = None,
    ) -> None:
        for name, value, least in (("workers", workers, 1), ("cpus", cpus, 1), ("retries", retries, 0)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        import ray

        self._ray = ray
        self._config = config
        self._retries = retries
        self._console = console or Console(stderr=True)
        if not ray.is_initialized():
            own: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {"address": address}
            ray.init(**own, log_to_driver=False, logging_level=logging.ERROR)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        alive = sum(node["Alive"] for node in ray.nodes())
        self.workers = workers or gpus or alive
        self._options: dict[str, Any] = {
            "num_cpus": cpus,
            "num_gpus": 1 if gpus else 0,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
        }

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def __call__(self, cells: Sequence[Cell], begin: Begin, advance: Advance, end: End) -> None:
        """Measures all cells; see `vtprune.eval.sweep.Spread`."""
        ray = self._ray
        # Cells of a model stand together, so that an actor seldom loads another one.
        waiting = deque(_Turn(cell) for cell in cells)
        starting: dict[Any, Any] = {}
        running: dict[Any, tuple[Any, _Turn]] = {}
        actor_class = ray.remote(Worker)

        def start() -> None:
            actor = actor_class.options(**self._options).remote(self._actor_config)
            starting[actor.ready.remote()] = actor

        def give(actor: Any) -> None:
            if waiting:
                turn = waiting.popleft()
                begin(turn.cell)
                running[actor.measure.remote(turn.cell)] = actor, turn
            else:
                ray.kill(actor)

        told = False
        for _ in range(min(self.workers, len(cells))):
            start()
        try:
            while waiting or running:
                found, _ = ray.wait([*starting, *running], num_returns=1, timeout=_PATIENCE)
                if not found and not running and not told:
                    self._console.print("waiting for the cluster to have room for a worker", markup=False)
                    told = True
                for reference in found:
                    if reference in starting:
                        actor = starting.pop(reference)
                        try:
                            ray.get(reference)
                        except ray.exceptions.RayError as error:
                            self._console.print(f"a worker could not start: {_first_line(error)}", markup=False)
                            if not starting and not running:
                                raise ConnectionError(f"no worker could start: {_first_line(error)}") from error
                            continue
                        give(actor)
                        continue
                    actor, turn = running.pop(reference)
                    try:
                        record, samples = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        self._lost(turn, error, waiting, end)
                        with contextlib.suppress(ray.exceptions.RayError):
                            ray.kill(actor)
                        if waiting:
                            start()
                        continue
                    end(turn.cell, record, samples)
                    give(actor)
        finally:
            for actor in [*starting.values(), *(actor for actor, _ in running.values())]:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(actor)

    @property
    def _actor_config(self) -> SweepConfig:
        """Where an actor works its own folders count, and it writes no results."""
        return replace(self._config, include=tuple(folder.absolute() for folder in self._config.include))

    def _lost(self, turn: _Turn, error: Exception, waiting: deque[_Turn], end: End) -> None:
        turn.lost += 1
        what = f"{turn.cell.label}, {turn.cell.budget}"
        if turn.lost > self._retries:
            reason = f"lost with its machine {turn.lost} times: {_first_line(error)}"
            end(turn.cell, failure(turn.cell, reason, 0.0, self._config.batch_size), [])
            return
        self._console.print(f"machine lost during {what}; it is begun anew: {_first_line(error)}", markup=False)
        waiting.appendleft(turn)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
