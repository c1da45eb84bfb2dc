"""A grid of methods, budgets and tasks on one loaded model: measured cell by cell, kept on disk, resumed at will."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vtprune.eval.grid import EVERYTHING, Cell, parse_budgets, parse_positions, parse_pruners, split_words
from vtprune.eval.models import EMBEDDED, check_device, check_dtype, fingerprint, load
from vtprune.eval.pareto import plot_pareto
from vtprune.eval.store import DONE, FAILED, Record, ResultStore
from vtprune.eval.tables import accuracy_table, kind_table, unique

if TYPE_CHECKING:
    from vtprune.eval.harness import TaskBook

DEFAULT_TASK = "vtprune_scenes"
DEFAULT_BUDGETS = ("192", "128", "64", "32")

Evaluate = Callable[[Cell, Callable[[int], None]], tuple[Record, list[Record]]]
"""Measures a cell and says along the way how many questions were answered."""


@dataclass(frozen=True)
class SweepConfig:
    """What the user asks for, in words; `Sweep` reads and checks it.

    Args:
        model: `"embedded"`, a folder or a hub id.
        pruners: Such as `("divprune", "fastv(layer=3)", "visionzip/pyramiddrop")`; `"all"` means every registered one,
            none a selection that runs in minutes (`vtprune.eval.grid.DEFAULT_PRUNERS`).
        budgets: Such as `("64", "0.25", "average:64")`; the full model is always measured too.
        tasks: lmms-eval tasks, groups or tags.
        limit: Questions per task, `None` for all.
        output: Folder of the results.
        batch_size: Questions answered together.
        device: Such as `"cuda:0"`; by default the accelerator, if there is one.
        dtype: Number type of the weights, `"auto"` for that of the checkpoint.
        seed: Of sampling and of methods that draw.
        positions: `"keep"`, `"pack"` or `None` for each method's own default.
        include: Folders with further lmms-eval task files.
        text_tower: CLIP text tower for methods that need one; by default the one that fits the model.
    """

    model: str = EMBEDDED
    pruners: tuple[str, ...] = ()
    budgets: tuple[str, ...] = DEFAULT_BUDGETS
    tasks: tuple[str, ...] = (DEFAULT_TASK,)
    limit: int | None = None
    output: Path = Path("results/sweep")
    batch_size: int = 32
    device: str | None = None
    dtype: str = "auto"
    seed: int = 0
    positions: str | None = None
    include: tuple[Path, ...] = ()
    text_tower: str | None = None


@dataclass
class Outcome:
    """What a sweep came to.

    Args:
        records: One for each cell of the grid, in its order.
        reused: Keys of cells that an earlier run had finished.
        images: Plots, by task.
    """

    records: list[Record]
    reused: set[str]
    images: dict[str, Path] = field(default_factory=dict)

    @property
    def failed(self) -> list[Record]:
        """The cells that raised an error."""
        return [record for record in self.records if record["status"] == FAILED]


class Sweep:
    """A checked grid, ready to run.

    Raises:
        ValueError: An unknown pruner, task, model, device or a number out of range.
        TypeError: A hyper-parameter that a method does not have.
        OSError: The output folder cannot be written.
    """

    def __init__(self, config: SweepConfig, *, console: Console | None = None) -> None:
        self.config = config
        self.console = console or Console(stderr=True)
        for name, value in (("limit", config.limit), ("batch_size", config.batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        positions = parse_positions(config.positions)
        check_dtype(config.dtype)
        check_device(config.device)
        methods = parse_pruners(config.pruners, seed=config.seed)
        budgets = parse_budgets(config.budgets)
        for folder in config.include:
            if not folder.is_dir():
                raise ValueError(f"task folder {folder} does not exist")
        weights = fingerprint(config.model)
        self.tasks = _task_book(config.include)
        names = self.tasks.resolve(split_words(config.tasks) or [DEFAULT_TASK])
        self.cells = [
            Cell(
                model=config.model,
                fingerprint=weights,
                method=method,
                budget=budget,
                positions=positions,
                task=task,
                task_digest=self.tasks.digest(task),
                limit=config.limit,
                seed=config.seed,
                dtype=config.dtype,
            )
            for task in names
            for method, budget in [(None, EVERYTHING), *((m, b) for m in methods for b in budgets)]
        ]
        self.store = ResultStore(config.output)

    @property
    def pending(self) -> list[Cell]:
        """Cells that no earlier run finished."""
        return [cell for cell in self.cells if self.store.finished(cell.key) is None]

    def prepare(self) -> Evaluate | None:
        """Loads the model, if there is a cell to measure, and returns what measures cells with lmms-eval.

        Raises:
            ModelError: The model cannot be loaded.
        """
        return self._loaded_evaluator() if self.pending else None

    def run(self, evaluate: Evaluate | None = None) -> Outcome:
        """Measures the cells that no earlier run finished; a cell that fails is recorded and the rest goes on.

        Args:
            evaluate: Measures a cell; by default what `prepare` returns.

        Raises:
            KeyboardInterrupt: The user stopped it; what was finished is on disk.
            OSError: The results cannot be written, such as on a full disk.
        """
        pending = self.pending
        reused = {cell.key for cell in self.cells} - {cell.key for cell in pending}
        if pending:
            if reused:
                self.console.print(f"{len(reused)} of {len(self.cells)} cells were finished earlier and are reused.")
            self._measure(pending, evaluate or self._loaded_evaluator())
        records = [record for cell in self.cells if (record := self.store.get(cell.key)) is not None]
        outcome = Outcome(records, reused)
        names = unique([cell.task for cell in self.cells])
        for task in names:
            path = self.config.output / ("pareto.png" if len(names) == 1 else f"pareto-{task}.png")
            if plot_pareto(task, [record for record in records if record["task"] == task], path):
                outcome.images[task] = path
        return outcome

    def _measure(self, pending: list[Cell], evaluate: Evaluate) -> None:
        counts = {task: self._count(task) for task in unique([cell.task for cell in pending])}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        # Cells differ in speed, so the remaining time is judged by the last quarter of an hour and not by seconds.
        with Progress(*columns, console=self.console, speed_estimate_period=900) as progress:
            bar = progress.add_task("", total=sum(counts[cell.task] for cell in pending))
            expected = 0
            for number, cell in enumerate(pending, start=1):
                place = f"{number}/{len(pending)} {cell.label}"
                progress.update(bar, description=place if cell.method is None else f"{place}, {cell.budget}")
                start = time.perf_counter()
                try:
                    record, samples = evaluate(cell, lambda done: progress.advance(bar, done))
                except Exception as error:
                    record, samples = self._failure(cell, error, time.perf_counter() - start), []
                    progress.console.print(f"[red]failed[/] {cell.label}, {cell.budget}: {escape(record['error'])}")
                self.store.add(record, samples)
                expected += counts[cell.task]
                progress.update(bar, completed=expected)

    def _count(self, task: str) -> int:
        from vtprune.eval.harness import question_count, quiet

        try:
            with quiet():
                return question_count(self.tasks.load(task), self.config.limit)
        except Exception:
            # The task's cells will meet the same error and record it.
            return self.config.limit or 1

    def _loaded_evaluator(self) -> Evaluate:
        from vtprune.eval.harness import evaluate
        from vtprune.eval.lmms import VtpruneModel

        config = self.config
        with self.console.status(f"loading {config.model}"):
            loaded = load(config.model, device=config.device, dtype=config.dtype, text_tower=config.text_tower)
        lm = VtpruneModel(loaded, batch_size=config.batch_size)
        lm.reuse_between_cells()

        def measure(cell: Cell, advance: Callable[[int], None]) -> tuple[Record, list[Record]]:
            lm.on_batch = advance
            return evaluate(cell, lm, self.tasks)

        return measure

    def _failure(self, cell: Cell, error: Exception, seconds: float) -> Record:
        from vtprune.eval.harness import now, versions

        return {
            "key": cell.key,
            "status": FAILED,
            **cell.definition(),
            "label": cell.label,
            "budget_meaning": "all tokens" if cell.method is None else str(cell.budget),
            "error": f"{type(error).__name__}: {error}",
            "seconds": seconds,
            "batch_size": self.config.batch_size,
            "versions": versions(),
            "time": now(),
        }


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Prints a table a task, one by kind of question, and where the files are."""
    for task in unique([record["task"] for record in outcome.records]):
        records = [record for record in outcome.records if record["task"] == task]
        console.print(accuracy_table(task, records))
        kinds = kind_table(task, records)
        if kinds is not None:
            console.print(kinds)
    done = [record for record in outcome.records if record["status"] == DONE]
    console.print(
        f"{len(done)} cells, {len(outcome.reused)} of them from an earlier run; {len(outcome.failed)} failed."
    )


def _task_book(include: tuple[Path, ...]) -> TaskBook:
    from vtprune.eval.harness import TaskBook

    return TaskBook(include)
