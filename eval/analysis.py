"""A folder of results as people compare it: one entry a method and budget, its seeds pooled, baselines in front."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vtprune.budget import per_layer_tokens
from vtprune.costs import average_tokens
from vtprune.eval.grid import BASELINES, FULL, parse_pruner
from vtprune.eval.intervals import Estimate, estimate, from_error
from vtprune.eval.statistics import spread
from vtprune.eval.store import DONE, Record

SEEDS = 3
"""Runs that a method which draws needs at least."""

_TOKEN_TOLERANCE = 0.1
_TOKEN_SLACK = 2.0


@dataclass(frozen=True)
class Questions:
    """What is known of a task's questions beside the answers.

    Args:
        kinds: Kind of each question, where it has one.
        pictures: Picture of each question; empty where results do not tell.
    """

    kinds: dict[Hashable, str] = field(default_factory=dict)
    pictures: dict[Hashable, Hashable] = field(default_factory=dict)

    @property
    def clusters(self) -> dict[Hashable, Hashable] | None:
        """The pictures, if there is one for several questions."""
        return self.pictures if len(set(self.pictures.values())) < len(self.pictures) else None


@dataclass(frozen=True)
class Run:
    """A cell that ran to its end.

    Args:
        record: Its line in the results.
        folder: Where it lies.
        scores: Score of each question, empty if the task scores the answers all together only.
        metric: Which of the task's metrics those scores are.
    """

    record: Record
    folder: Path
    scores: dict[Hashable, float]
    metric: str | None

    def samples(self) -> Iterator[dict[str, Any]]:
        """What the model answered, read again: kept in memory, the answers of a large sweep would fill it."""
        return read_samples(self.folder, str(self.record["key"]))


@dataclass(frozen=True)
class Entry:
    """A method at a budget on one model and task, with all its seeds.

    Args:
        runs: One a seed, at least one.
        questions: Those of the task.
        positions: The position policy, if the method was run with both.
    """

    runs: tuple[Run, ...]
    questions: Questions
    positions: str | None = None

    @property
    def record(self) -> Record:
        """Of the first seed."""
        return self.runs[0].record

    @property
    def label(self) -> str:
        """The method with its hyper-parameters, and its position policy if that tells it from another entry."""
        label = str(self.record["label"])
        return label if self.positions is None else f"{label}, {self.positions}"

    @property
    def pruner(self) -> str:
        """Name of the method."""
        return str(self.record["pruner"])

    @property
    def budget(self) -> str:
        """The budget in words."""
        return str(self.record["budget_meaning"])

    @property
    def name(self) -> str:
        """Method and budget in a few words."""
        return self.label if self.is_full else f"{self.label} at {self.budget}"

    @property
    def is_full(self) -> bool:
        """Whether this is the model with all its tokens."""
        return self.pruner == FULL

    @property
    def is_baseline(self) -> bool:
        """Whether this is what methods have to beat."""
        return self.pruner in BASELINES

    @property
    def draws(self) -> bool:
        """Whether the outcome depends on the seed."""
        return "seed" in (self.record.get("options") or {})

    @property
    def seeds(self) -> list[int]:
        """Seeds that were run."""
        return [int(run.record["seed"]) for run in self.runs]

    @cached_property
    def value(self) -> float:
        """The task's metric, mean over the seeds."""
        return self._mean("value") or 0.0

    @cached_property
    def seed_spread(self) -> float | None:
        """Standard deviation of the metric over the seeds."""
        return spread([float(run.record["value"]) for run in self.runs])

    @cached_property
    def scores(self) -> dict[Hashable, float]:
        """Score of each question, mean over the seeds that asked it."""
        found: dict[Hashable, list[float]] = {}
        for run in self.runs:
            for question, score in run.scores.items():
                found.setdefault(question, []).append(score)
        return {question: sum(values) / len(values) for question, values in found.items()}

    @cached_property
    def estimate(self) -> Estimate:
        """The metric with its interval: over questions, those about one picture taken together.

        From the record's own standard error where the metric is no mean over questions.
        """
        found = estimate(self.scores, self.questions.clusters)
        if found is not None and abs(found.value - self.value) < 1e-6:
            return found
        errors = [run.record.get("standard_error") for run in self.runs]
        known = [float(error) for error in errors if error is not None]
        n = int(self.record["n"])
        return from_error(self.value, sum(known) / len(known) if known else None, n, n)

    @cached_property
    def average_tokens(self) -> float:
        """Visual tokens of a picture, true mean over the decoder layers."""
        return self._mean("average_tokens") or 0.0

    @cached_property
    def tokens_kept(self) -> float | None:
        """Visual tokens of a picture behind the last stage."""
        return self._mean("tokens_kept")

    @cached_property
    def nominal_tokens(self) -> float | None:
        """The same mean as some papers count it: a layer just before a removal with what is left."""
        return nominal_tokens(self.record)

    @cached_property
    def prefill_flops(self) -> float | None:
        """Of the language model, for a prompt."""
        return self._mean("prefill_flops")

    @cached_property
    def prefill_seconds(self) -> float | None:
        """Measured, for a prompt, the selection included."""
        return self._mean("prefill_seconds")

    def score(self, questions: Iterable[Hashable]) -> Estimate | None:
        """Mean over some of the questions, `None` if it answered none of them."""
        scores = {question: self.scores[question] for question in questions if question in self.scores}
        return estimate(scores, self.questions.clusters)

    @cached_property
    def kind_scores(self) -> dict[str, Estimate]:
        """Mean score for each kind of question."""
        members: dict[str, list[Hashable]] = {}
        for question, kind in self.questions.kinds.items():
            members.setdefault(kind, []).append(question)
        found = {kind: self.score(questions) for kind, questions in members.items()}
        return {kind: score for kind, score in found.items() if score is not None}

    def _mean(self, name: str) -> float | None:
        values = [value for run in self.runs if (value := run.record.get(name)) is not None]
        return sum(map(float, values)) / len(values) if values else None


@dataclass(frozen=True)
class Section:
    """One model on the questions of one task.

    Args:
        entries: The full model first, then the baselines, then the methods as they were run; large budgets first.
        failed: Cells that raised an error.
        questions: Those of the task.
    """

    entries: tuple[Entry, ...]
    failed: tuple[Record, ...]
    questions: Questions

    @property
    def record(self) -> Record:
        """Any of the records."""
        return self.entries[0].record if self.entries else self.failed[0]

    @property
    def model(self) -> str:
        """Name of the model as the user gave it."""
        return str(self.record["model"])

    @property
    def model_name(self) -> str:
        """That without the folders above."""
        return Path(self.model).name or self.model

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.record["task"])

    @property
    def n(self) -> int:
        """Questions asked."""
        return max((int(entry.record["n"]) for entry in self.entries), default=0)

    @property
    def metric(self) -> str:
        """The task's first metric."""
        return str(self.entries[0].record["metric"]) if self.entries else ""

    @property
    def score_metric(self) -> str | None:
        """The metric that questions have one by one."""
        return next((run.metric for entry in self.entries for run in entry.runs if run.metric is not None), None)

    @cached_property
    def percent(self) -> bool:
        """Whether the metric is a share, to be shown in percent."""
        return all(0 <= entry.value <= 1 for entry in self.entries)

    @cached_property
    def full(self) -> Entry | None:
        """The model with all its tokens."""
        return next((entry for entry in self.entries if entry.is_full), None)

    @cached_property
    def pruned(self) -> list[Entry]:
        """The others."""
        return [entry for entry in self.entries if not entry.is_full]

    @property
    def budgets(self) -> list[str]:
        """Budgets in words, in their order."""
        return list(dict.fromkeys(entry.budget for entry in self.pruned))

    @property
    def labels(self) -> list[str]:
        """Methods, baselines first."""
        return list(dict.fromkeys(entry.label for entry in self.pruned))

    def retained(self, entry: Entry) -> float | None:
        """The share of the full model's value that is left."""
        return None if self.full is None or self.full.value == 0 else entry.value / self.full.value

    def baseline(self, name: str, entry: Entry) -> Entry | None:
        """The baseline of that name with as many tokens as an entry really processes, or nearly."""
        near = [
            other
            for other in self.pruned
            if other.pruner == name and same_tokens(other.average_tokens, entry.average_tokens)
        ]
        return min(near, key=lambda other: abs(other.average_tokens - entry.average_tokens), default=None)


@dataclass(frozen=True)
class Analysis:
    """Everything that a folder holds, or several.

    Args:
        folders: Which ones.
        sections: One a model and task, in the order of the results.
    """

    folders: tuple[Path, ...]
    sections: tuple[Section, ...]

    @property
    def records(self) -> list[Record]:
        """Those of all finished cells."""
        return [run.record for section in self.sections for entry in section.entries for run in entry.runs]

    @property
    def failed(self) -> list[Record]:
        """Those of all failed cells."""
        return [record for section in self.sections for record in section.failed]


def same_tokens(first: float, second: float) -> bool:
    """Whether two methods process as good as equally many tokens: a tenth apart at most, or two tokens.

    Down-sampling knows only products of two sides, and whole layers make steps.
    """
    return abs(first - second) <= max(_TOKEN_SLACK, _TOKEN_TOLERANCE * max(first, second))


def read_folder(folder: Path) -> Analysis:
    """Reads what a sweep has written; a sweep that still runs may be read too.

    Raises:
        ValueError: No results there, or none that can be read.
    """
    return read_folders([folder])


def read_folders(folders: Sequence[Path]) -> Analysis:
    """Reads several sweeps as if they were one; of a cell in more than one of them the newest result counts.

    Raises:
        ValueError: As for `read_folder`.
    """
    cells: dict[str, tuple[Path, Record]] = {}
    for folder in folders:
        for record in read_records(folder):
            key = str(record["key"])
            if key not in cells or _age(record) >= _age(cells[key][1]):
                cells[key] = folder, record
    groups: dict[tuple[Hashable, ...], list[tuple[Path, Record]]] = {}
    for folder, record in cells.values():
        groups.setdefault(section_key(record), []).append((folder, record))
    return Analysis(tuple(folders), tuple(_section(group) for group in groups.values()))


def read_records(folder: Path) -> list[Record]:
    """The newest record of each cell, without writing to the folder, which may be someone else's.

    Raises:
        ValueError: As for `read_folder`.
    """
    path = folder / "results.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} holds no results.jsonl; give the output folder of vtprune sweep")
    records: dict[str, Record] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            records[record["key"]] = record
            if record["status"] == DONE:
                _ = record["value"], record["label"], record["task"], record["average_tokens"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"line {number} of {path} is no result of a sweep; remove the line") from error
    if not records:
        raise ValueError(f"{path} is empty; no cell has finished yet")
    return list(records.values())


def read_samples(folder: Path, key: str) -> Iterator[dict[str, Any]]:
    """The answers of a cell, none if their file is missing.

    Raises:
        ValueError: A line that cannot be read.
    """
    path = folder / "samples" / f"{key}.jsonl"
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} of {path} is no answer of a sweep; run that cell again") from error


def section_key(record: Record) -> tuple[Hashable, ...]:
    """What cells must share to be compared: weights, number type, task and questions."""
    names = ("model", "fingerprint", "dtype", "task", "task_digest", "limit")
    return tuple(record.get(name) for name in names)


def entry_key(record: Record) -> tuple[Hashable, ...]:
    """What the seeds of one method at one budget share."""
    return record["label"], record["budget_meaning"], record.get("positions")


def nominal_tokens(record: Record) -> float | None:
    """The nominal mean of visual tokens over the layers, `None` where the record does not tell enough.

    Methods that act before the language model have but one mean. For others the number of layers is needed; older
    records lack it, so that it is found as the one that gives the true mean.
    """
    true, tokens, kept = (record.get(name) for name in ("average_tokens", "tokens_full", "tokens_kept"))
    if true is None or tokens is None or kept is None or record["pruner"] == FULL or tokens == kept:
        return None if true is None else float(true)
    try:
        method = parse_pruner(record["label"])
    except (ValueError, TypeError, KeyError):
        return None
    if set(method.layers) == {0}:
        return float(true)
    whole, left = round(tokens), round(kept)
    known = record.get("layers")
    depths = [known] if known else range(max(method.layers, default=0) + 1, 129)
    # Means over pictures of several sizes are no whole numbers, so that they are met in a known depth alone.
    tolerance = 0.01 * true if known else 0.05
    fitting = []
    for depth in depths:
        with contextlib.suppress(ValueError):
            if abs(average_tokens(per_layer_tokens(method, whole, left, depth)) - true) < tolerance:
                fitting.append(average_tokens(per_layer_tokens(method, whole, left, depth, "nominal")))
    return fitting[0] if len(fitting) == 1 else None


def _age(record: Record) -> tuple[bool, str]:
    """A finished cell counts more than a failed one, a newer one more than an older one."""
    return record["status"] == DONE, str(record.get("time", ""))


def _section(cells: Sequence[tuple[Path, Record]]) -> Section:
    questions = Questions()
    groups: dict[tuple[Hashable, ...], list[Run]] = {}
    metric = None
    for folder, record in cells:
        if record["status"] != DONE:
            continue
        key = (FULL,) if record["pruner"] == FULL else entry_key(record)
        run = _run(folder, record, questions, metric)
        metric = metric or run.metric
        groups.setdefault(key, []).append(run)
    policies: dict[Hashable, set[Hashable]] = {}
    for key in groups:
        policies.setdefault(key[0], set()).add(key[-1])
    entries = [
        Entry(tuple(runs), questions, str(key[-1]) if len(policies[key[0]]) > 1 else None)
        for key, runs in groups.items()
    ]
    failed = tuple(record for _, record in cells if record["status"] != DONE)
    return Section(tuple(_in_order(entries)), failed, questions)


def _in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Methods as they were first run but for what comes in front; of each the largest budget first."""
    labels = list(dict.fromkeys(entry.label for entry in entries))
    return sorted(entries, key=lambda entry: (_rank(entry), labels.index(entry.label), -entry.average_tokens))


def _rank(entry: Entry) -> int:
    order = (FULL, *BASELINES)
    return order.index(entry.pruner) if entry.pruner in order else len(order)


def _run(folder: Path, record: Record, questions: Questions, metric: str | None) -> Run:
    names = list(dict.fromkeys([metric or record["metric"], record["metric"], *record.get("metrics", {})]))
    scores: dict[str, dict[Hashable, float]] = {name: {} for name in names}
    count = 0
    for sample in read_samples(folder, str(record["key"])):
        count += 1
        question = sample["doc_id"]
        for name, score in (sample.get("scores") or {}).items():
            if name in scores:
                scores[name][question] = float(score)
        if sample.get("kind") is not None:
            questions.kinds[question] = str(sample["kind"])
        if sample.get("picture") is not None:
            questions.pictures[question] = sample["picture"]
    complete = next((name for name in names if count and len(scores[name]) == count), None)
    return Run(record, folder, scores[complete] if complete else {}, complete)
