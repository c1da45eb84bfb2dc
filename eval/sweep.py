"""A grid of methods, budgets and tasks on one loaded model: measured cell by cell, kept on disk, resumed at will."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vtprune.budget import Budget
from vtprune.eval.analysis import same_tokens
from vtprune.eval.grid import (
    BASELINES,
    DEFAULT_PRUNERS,
    EVERYTHING,
    FULL,
    Cell,
    draws,
    method_label,
    parse_budgets,
    parse_positions,
    parse_pruners,
    split_words,
    with_seed,
)
from vtprune.eval.models import check_device, check_dtype, fingerprint
from vtprune.eval.pareto import plot_pareto
from vtprune.eval.processes import rank, share
from vtprune.eval.store import DONE, FAILED, Record, ResultStore
from vtprune.eval.sweep_config import DEFAULT_TASK, SweepConfig
from vtprune.eval.tables import accuracy_table, kind_table, unique
from vtprune.eval.workbench import Measure, Workbench, attempt
from vtprune.pruner import Pruner

if TYPE_CHECKING:
    from vtprune.eval.harness import TaskBook

Begin = Callable[[Cell], None]
Advance = Callable[[int], None]
End = Callable[[Cell, Record, list[Record]], None]
Spread = Callable[[Sequence[Cell], Begin, Advance, End], None]
"""Measures cells and says when one begins, how many questions were answered, and what each came to."""


@dataclass(frozen=True)
class Plan:
    """What a sweep would do.

    Args:
        cells: Of the grid; baselines at further true averages of tokens come on top.
        pending: Those that no earlier run finished.
        questions: Of each task.
        asked: Questions that all pending cells ask together.
        seconds: How long that takes at most in one process of this machine: pruned models are faster than the full one.
    """

    cells: int
    pending: int
    questions: dict[str, int]
    asked: int
    seconds: float


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
        self._positions = parse_positions(config.positions)
        check_dtype(config.dtype)
        check_device(config.device)
        words = split_words(config.pruners) or DEFAULT_PRUNERS
        methods = self._methods([*BASELINES, *words] if config.baselines else words)
        budgets = parse_budgets(config.budgets)
        for folder in config.include:
            if not folder.is_dir():
                raise ValueError(f"task folder {folder} does not exist")
        self._fingerprints = {model: fingerprint(model) for model in config.models}
        self.tasks = _task_book(config.include)
        self.names = self.tasks.resolve(split_words(config.tasks) or [DEFAULT_TASK])
        grid = [(None, EVERYTHING), *((method, budget) for method in methods for budget in budgets)]
        self.cells = [
            self._cell(model, method, budget, task)
            for model in config.models
            for task in self.names
            for method, budget in grid
        ]
        self.store = ResultStore(config.output)
        self._bench = Workbench(config, self.tasks)

    @property
    def pending(self) -> list[Cell]:
        """Cells that no earlier run finished."""
        return [cell for cell in self.cells if self.store.finished(cell.key) is None]

    def prepare(self) -> Measure | None:
        """Loads the first model, if there is a cell to measure, and returns what measures cells with lmms-eval.

        Raises:
            ModelError: The model cannot be loaded.
        """
        if not self.pending:
            return None
        with self.console.status(f"loading {self.pending[0].model}"):
            self._bench.model(self.pending[0].model)
        return self._bench.measure

    def run(self, measure: Measure | None = None, *, spread: Spread | None = None) -> Outcome:
        """Measures the cells that no earlier run finished; a cell that fails is recorded and the rest goes on.

        Args:
            measure: Measures a cell; by default a `Workbench` in this process.
            spread: Measures many cells elsewhere instead, and hands over each as it is done.

        Raises:
            KeyboardInterrupt: The user stopped it; what was finished is on disk.
            OSError: The results cannot be written, such as on a full disk.
        """
        reused = {cell.key for cell in self.cells} - {cell.key for cell in self.pending}
        if reused and self.pending:
            self.console.print(f"{len(reused)} of {len(self.cells)} cells were finished earlier and are reused.")
        if spread is None:
            spread = functools.partial(one_after_another, measure or self._bench.measure, self.config.batch_size)
        try:
            self._measure(self.pending, spread)
            # Until nothing is missing: a baseline that knows only some sizes may miss the average it is asked for.
            while self.config.baselines and (matching := self._matching()):
                self.cells += matching
                reused |= {cell.key for cell in matching if self.store.finished(cell.key) is not None}
                self._measure([cell for cell in matching if cell.key not in reused], spread)
        finally:
            self._bench.close()
        records = [record for cell in self.cells if (record := self.store.get(cell.key)) is not None]
        return Outcome(records, reused, self._plots(records))

    def plan(self) -> Plan:
        """What is still to be measured, and how long that takes at most.

        Seconds a question are known from cells of the folder that are finished; else the full model answers a few
        questions of the first task, which loads it.

        Raises:
            ModelError: A model cannot be loaded.
        """
        seconds: dict[str, float] = {}
        for model in dict.fromkeys(cell.model for cell in self.pending):
            known = [
                record["seconds"] / record["n"]
                for record in self.store.records
                if record["model"] == model and record["status"] == DONE and record.get("n")
            ]
            seconds[model] = max(known) if known else self._probe(model)
        self._bench.close()
        return Plan(
            cells=len(self.cells),
            pending=len(self.pending),
            questions={task: self._count(task) for task in self.names},
            asked=sum(self._count(cell.task) for cell in self.pending),
            seconds=sum(self._count(cell.task) * seconds[cell.model] for cell in self.pending),
        )

    def _probe(self, model: str) -> float:
        """Seconds that the full model takes for a question, the second time."""
        count = min(self.config.batch_size, self._count(self.names[0]))
        cell = replace(self._cell(model, None, EVERYTHING, self.names[0]), limit=count)
        with self.console.status(f"{model} answers {count} questions"):
            self._bench.measure(cell, lambda done: None)
            start = time.perf_counter()
            self._bench.measure(cell, lambda done: None)
        return (time.perf_counter() - start) / count

    def _methods(self, words: Iterable[str]) -> list[Pruner]:
        found = []
        for method in parse_pruners(list(words), seed=self.config.seeds[0]):
            again = [with_seed(method, seed) for seed in self.config.seeds[1:]] if draws(method) else []
            found += [method, *again]
        # A baseline may have been named too.
        return list({(method_label(method), str(method.config())): method for method in found}.values())

    def _cell(self, model: str, method: Pruner | None, budget: Budget, task: str) -> Cell:
        return Cell(
            model=model,
            fingerprint=self._fingerprints[model],
            method=method,
            budget=budget,
            positions=self._positions,
            task=task,
            task_digest=self.tasks.digest(task),
            limit=self.config.limit,
            seed=method.config()["seed"] if method is not None and draws(method) else self.config.seeds[0],
            dtype=self.config.dtype,
        )

    def _matching(self) -> list[Cell]:
        """Baselines at true averages of visual tokens that other methods came to and nothing measured so far gives."""
        found = []
        known = {cell.key for cell in self.cells}
        for model in self.config.models:
            for task in self.names:
                done = [
                    record
                    for cell in self.cells
                    if (cell.model, cell.task) == (model, task) and (record := self.store.finished(cell.key))
                ]
                wanted = [record["average_tokens"] for record in done if record["pruner"] not in (*BASELINES, FULL)]
                # Each baseline for itself: those that know only some sizes come to other averages than asked.
                for name in BASELINES:
                    have = [record["average_tokens"] for record in done if record["pruner"] == name]
                    for average in sorted(set(map(round, wanted))):
                        if average < 1 or any(same_tokens(average, other) for other in have):
                            continue
                        cells = [self._cell(model, m, Budget(average), task) for m in self._methods([name])]
                        if any(cell.key in known for cell in cells):
                            continue  # it was asked for that many and came to other ones
                        have.append(average)
                        found += cells
        return found

    def _measure(self, pending: list[Cell], spread: Spread) -> None:
        if not pending:
            return
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
        with Progress(*columns, console=self.console, speed_estimate_period=900, disable=rank() > 0) as progress:
            bar = progress.add_task("", total=sum(counts[cell.task] for cell in pending))
            finished = 0
            expected = 0

            def begin(cell: Cell) -> None:
                place = f"{finished + 1}/{len(pending)} {cell.label}"
                progress.update(bar, description=place if cell.method is None else f"{place}, {cell.budget}")

            def end(cell: Cell, record: Record, samples: list[Record]) -> None:
                nonlocal finished, expected
                if record.get("status") == FAILED:
                    progress.console.print(f"[red]failed[/] {cell.label}, {cell.budget}: {escape(record['error'])}")
                if rank() == 0:
                    self.store.add(record, samples)
                finished += 1
                expected += counts[cell.task]
                progress.update(bar, completed=expected)

            spread(pending, begin, lambda done: progress.advance(bar, done), end)
        if share(None)[1:]:
            self.store.reread()

    def _count(self, task: str) -> int:
        from vtprune.eval.harness import question_count, quiet

        try:
            with quiet():
                return question_count(self.tasks.load(task), self.config.limit)
        except Exception:
            # The task's cells will meet the same error and record it.
            return self.config.limit or 1

    def _plots(self, records: Sequence[Record]) -> dict[str, Path]:
        found = {}
        several = len(self.names) * len(self.config.models) > 1
        for number, model in enumerate(self.config.models):
            for task in self.names:
                own = [record for record in records if (record["model"], record["task"]) == (model, task)]
                name = f"pareto-{number + 1}-{task}" if len(self.config.models) > 1 else f"pareto-{task}"
                path = self.config.output / f"{name if several else 'pareto'}.png"
                if rank() == 0 and plot_pareto(task, own, path):
                    found[f"{model}, {task}" if len(self.config.models) > 1 else task] = path
        return found


def one_after_another(
    measure: Measure, batch_size: int, cells: Sequence[Cell], begin: Begin, advance: Advance, end: End
) -> None:
    """Measures cells in this process."""
    for cell in cells:
        begin(cell)
        end(cell, *attempt(measure, cell, advance, batch_size))


def print_plan(plan: Plan, sweep: Sweep, console: Console | None = None) -> None:
    """Prints what a sweep would measure."""
    console = console or Console()
    for task, count in plan.questions.items():
        console.print(f"{task}: {count} questions")
    further = ", and baselines at true averages of tokens that come out" if sweep.config.baselines else ""
    console.print(
        f"{plan.cells} cells, {plan.cells - plan.pending} of them finished{further}; "
        f"{plan.asked} questions to answer, at most {duration(plan.seconds)} in one process."
    )


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(42), duration(600), duration(9000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Prints a table a task, one by kind of question, and where the files are."""
    models = unique([record["model"] for record in outcome.records])
    for model, task in itertools.product(models, unique([record["task"] for record in outcome.records])):
        records = [record for record in outcome.records if (record["model"], record["task"]) == (model, task)]
        if len(models) > 1:
            console.print(f"[bold]{escape(model)}")
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
