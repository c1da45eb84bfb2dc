"""What measures the cells of a sweep one after another in one process: the model stays loaded between them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from vtprune.eval.grid import Cell
from vtprune.eval.models import load
from vtprune.eval.store import FAILED, Record
from vtprune.eval.sweep_config import SweepConfig

if TYPE_CHECKING:
    from vtprune.eval.harness import TaskBook
    from vtprune.eval.lmms import VtpruneModel


class Workbench:
    """Measures cells with lmms-eval; another model replaces the one before.

    Args:
        config: How to load models and to answer.
        tasks: Where tasks are found; by default the folders of `config` are read when the first cell comes.
    """

    def __init__(self, config: SweepConfig, tasks: TaskBook | None = None) -> None:
        self.config = config
        self._tasks = tasks
        self._name: str | None = None
        self._lm: VtpruneModel | None = None

    @property
    def tasks(self) -> TaskBook:
        """The tasks that can be named."""
        if self._tasks is None:
            from vtprune.eval.harness import TaskBook

            self._tasks = TaskBook(self.config.include)
        return self._tasks

    def model(self, name: str) -> VtpruneModel:
        """The model of that name, loaded if it is not the present one.

        Raises:
            ModelError: It cannot be loaded.
        """
        from vtprune.eval.lmms import VtpruneModel

        if self._lm is None or self._name != name:
            # The one before must be gone before there is room for this one.
            self.close()
            self._lm = None
            free()
            config = self.config
            loaded = load(name, device=config.device, dtype=config.dtype, text_tower=config.text_tower)
            self._lm = VtpruneModel(loaded, batch_size=config.batch_size)
            self._lm.reuse_between_cells()
            self._name = name
        return self._lm

    def measure(self, cell: Cell, advance: Callable[[int], None]) -> tuple[Record, list[Record]]:
        """The record of a cell and one line a question.

        Raises:
            Exception: Whatever model, method or task raise.
        """
        from vtprune.eval.harness import evaluate

        digest = self.tasks.digest(self.tasks.resolve([cell.task])[0])
        if digest != cell.task_digest:
            raise ValueError(f"task {cell.task} has other files or data here than where the sweep was started")
        lm = self.model(cell.model)
        lm.on_batch = advance
        return evaluate(cell, lm, self.tasks, prefill_repeats=self.config.prefill_repeats)

    def close(self) -> None:
        """Leaves the model as it was loaded: no hook, and no attention function of ours in the process."""
        if self._lm is not None:
            self._lm.unwrap()

    def attempt(self, cell: Cell, advance: Callable[[int], None]) -> tuple[Record, list[Record]]:
        """As `measure`, but an error becomes a record that tells of it."""
        return attempt(self.measure, cell, advance, self.config.batch_size)


Measure = Callable[[Cell, Callable[[int], None]], tuple[Record, list[Record]]]
"""Measures a cell and says along the way how many questions were answered."""


def attempt(
    measure: Measure, cell: Cell, advance: Callable[[int], None], batch_size: int
) -> tuple[Record, list[Record]]:
    """What `measure` finds, or a record of its failure."""
    start = time.perf_counter()
    try:
        return measure(cell, advance)
    except Exception as error:  # whatever a model, method or task does: the other cells are to go on
        record = failure(cell, f"{type(error).__name__}: {error}", time.perf_counter() - start, batch_size)
    # Outside, so that the error's frames hold no tensors of a device that was full.
    free()
    return record, []


def failure(cell: Cell, reason: str, seconds: float, batch_size: int) -> Record:
    """The record of a cell that could not be measured."""
    from vtprune.eval.harness import versions
    from vtprune.eval.profile import now

    return {
        "key": cell.key,
        "status": FAILED,
        **cell.definition(),
        "label": cell.label,
        "budget_meaning": "all tokens" if cell.method is None else str(cell.budget),
        "error": reason,
        "seconds": seconds,
        "batch_size": batch_size,
        "versions": versions(),
        "time": now(),
    }


def free() -> None:
    """Gives memory back that nobody uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
