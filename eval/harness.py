"""lmms-eval's evaluator, driven from Python: finding tasks, and measuring one cell on a model that stays loaded."""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import lmms_eval.api.task
import lmms_eval.evaluator
from lmms_eval.tasks import TaskManager, get_task_dict
from lmms_eval.utils import load_yaml_config
from loguru import logger
from tqdm import tqdm

from vtprune.eval.grid import EVERYTHING, Cell
from vtprune.eval.lmms import Tally, VtpruneModel
from vtprune.eval.lmms_manifests import MODEL_ID
from vtprune.eval.profile import machine, now
from vtprune.eval.statistics import mean_and_error
from vtprune.eval.store import DONE, Record
from vtprune.registry import make_pruner

TASK_FOLDER = Path(__file__).parent / "tasks"

_PICTURE_KEYS = ("picture", "picture_id", "image_id", "imageId", "image_name", "video_id", "videoID")
_NO_METRICS = ("alias", "samples", "sample_len")


class TaskBook:
    """The tasks that can be named: ours, those of `include` folders and, if one of them is asked for, lmms-eval's.

    Args:
        include: Folders with further task files.
    """

    def __init__(self, include: Sequence[Path] = ()) -> None:
        self._folders = [str(TASK_FOLDER), *map(str, include)]
        self._manager = TaskManager(include_path=self._folders, include_defaults=False, model_name=MODEL_ID)
        self._complete = False
        self._loaded: dict[str, Any] = {}

    def resolve(self, names: Sequence[str]) -> list[str]:
        """The single tasks behind names of tasks, groups and tags, each once.

        Raises:
            ValueError: Unknown name; the message suggests near ones.
        """
        # Reading lmms-eval's own task files takes seconds; our own need none of them.
        if any(name not in self._manager.task_index for name in names) and not self._complete:
            self._manager = TaskManager(include_path=self._folders, include_defaults=True, model_name=MODEL_ID)
            self._complete = True
        return list(dict.fromkeys(task for name in names for task in self._members(name)))

    def _members(self, name: str) -> Iterator[str]:
        index = self._manager.task_index
        if name not in index:
            near = difflib.get_close_matches(name, index, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see lmms-eval --tasks list"
            raise ValueError(f"unknown task {name!r}; {hint}")
        entry = index[name]
        if entry["type"] in ("task", "python_task"):
            yield name
            return
        members = entry["task"]
        if members == -1:
            members = load_yaml_config(entry["yaml_path"], mode="simple")["task"]
        for member in members:
            if not isinstance(member, str):
                raise ValueError(f"group {name!r} changes the settings of its tasks; name its tasks one by one")
            yield from self._members(member)

    def digest(self, name: str) -> str:
        """Changes when the task's file or its local data do."""
        path = Path(self._manager.task_index[name]["yaml_path"])
        digest = hashlib.sha256(path.read_bytes())
        config = load_yaml_config(str(path), mode="simple")
        files = (config.get("dataset_kwargs") or {}).get("data_files") or {}
        for file in files.values() if isinstance(files, dict) else [files]:
            if isinstance(file, str) and Path(file).is_file():
                digest.update(Path(file).read_bytes())
        return digest.hexdigest()[:16]

    def load(self, name: str) -> Any:
        """The task with its data, loaded once; so is a failure, which lmms-eval retries for a minute."""
        if name not in self._loaded:
            try:
                self._loaded[name] = get_task_dict([name], self._manager, "chat")[name]
            except Exception as error:
                self._loaded[name] = error
        if isinstance(found := self._loaded[name], Exception):
            raise found
        return found

    @property
    def manager(self) -> Any:
        """lmms-eval's index of the tasks."""
        return self._manager


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps log lines and bars of lmms-eval and datasets out of our own progress display."""

    def hidden(*args: Any, **kwargs: Any) -> Any:
        return tqdm(*args, **{**kwargs, "disable": True})

    logger.disable("lmms_eval")
    shown = datasets.utils.is_progress_bar_enabled()
    datasets.utils.disable_progress_bars()
    try:
        with ExitStack() as stack:
            for module in (lmms_eval.api.task, lmms_eval.evaluator):
                stack.enter_context(mock.patch.object(module, "tqdm", hidden))
            yield
    finally:
        logger.enable("lmms_eval")
        if shown:
            datasets.utils.enable_progress_bars()


def question_count(task: Any, limit: int | None) -> int:
    """Questions that a cell of this task asks."""
    count = len(task.eval_docs)
    return count if limit is None else min(limit, count)


def evaluate(cell: Cell, lm: VtpruneModel, tasks: TaskBook, *, prefill_repeats: int = 0) -> tuple[Record, list[Record]]:
    """Measures one cell; returns its record and one line a question.

    Under `accelerate launch` each process answers its part, and all but the first return nothing.

    Args:
        cell: What to measure.
        lm: The model.
        tasks: Where the task is found.
        prefill_repeats: Timed runs of a batch to its first token, when all is answered.
    """
    start = time.perf_counter()
    # The full model takes the same way as the pruned ones, with a budget that keeps everything.
    lm.prune(cell.method or make_pruner("stride"), cell.budget, cell.positions)
    with quiet():
        output = lmms_eval.evaluator.simple_evaluate(
            model=lm,
            tasks=[tasks.load(cell.task)],
            task_manager=tasks.manager,
            batch_size=lm.batch_size,
            limit=cell.limit,
            bootstrap_iters=1000,
            random_seed=cell.seed,
            numpy_random_seed=cell.seed,
            torch_random_seed=cell.seed,
            fewshot_random_seed=cell.seed,
            process_docs_parallel=1,
        )
    tally = lm.shared_tally()
    prefill = lm.time_prefill(prefill_repeats) if prefill_repeats else None
    if output is None:
        return {}, []
    metrics = read_metrics(output["results"][cell.task])
    names = [entry["metric"] for entry in output["configs"][cell.task].get("metric_list") or []]
    main = next((name for name in names if name in metrics), next(iter(metrics), None))
    if main is None:
        raise RuntimeError(f"task {cell.task} gave no metric")
    samples = [_sample(sample, metrics, tally) for sample in output["samples"][cell.task]]
    record = {
        "key": cell.key,
        "status": DONE,
        **cell.definition(),
        "label": cell.label,
        "budget_meaning": str(cell.budget) if cell.budget != EVERYTHING else "all tokens",
        "positions": tally.positions,
        "layers": tally.layers,
        "tokens_full": tally.tokens / max(1, tally.images),
        "tokens_kept": tally.kept / max(1, tally.images),
        "average_tokens": tally.average / max(1, tally.images),
        "metric": main,
        **metrics[main],
        "n": len(samples),
        "metrics": metrics,
        "kinds": by_kind(samples, main),
        "prefill_flops": tally.prefill_flops / max(1, tally.prompts),
        "kv_bytes": tally.kv_bytes / max(1, tally.prompts),
        "generated_tokens": tally.generated,
        "prefill_seconds": None if prefill is None else prefill.seconds,
        "prefill_batch": None if prefill is None else prefill.batch,
        "seconds": time.perf_counter() - start,
        "generate_seconds": tally.seconds,
        "batch_size": lm.batch_size,
        "device": str(lm.device),
        "versions": versions(),
        **_circumstances(lm),
        "time": now(),
    }
    return record, samples


def _circumstances(lm: VtpruneModel) -> Record:
    """Where the record comes from."""
    found = machine(lm.device)
    return {"machine": found["device"], "threads": found["threads"], "command": found["command"]}


def read_metrics(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Values and standard errors out of lmms-eval's `metric,filter` keys; only the first filter of a metric counts."""
    found: dict[str, dict[str, float | None]] = {}
    for key, value in results.items():
        name, _, filter_name = key.partition(",")
        number = _number(value)
        if not filter_name or "_stderr" in name or name in _NO_METRICS or name in found or number is None:
            continue
        found[name] = {"value": number, "standard_error": _number(results.get(f"{name}_stderr,{filter_name}"))}
    return found


def by_kind(samples: Sequence[Record], metric: str) -> dict[str, dict[str, float | int | None]]:
    """The metric for each kind of question, where the questions of a task have kinds."""
    scores: dict[str, list[float]] = {}
    for sample in samples:
        if sample["kind"] is not None and metric in sample["scores"]:
            scores.setdefault(sample["kind"], []).append(sample["scores"][metric])
    kinds: dict[str, dict[str, float | int | None]] = {}
    for kind, values in scores.items():
        value, error = mean_and_error(values)
        kinds[kind] = {"value": value, "standard_error": error, "n": len(values)}
    return kinds


def _sample(sample: Mapping[str, Any], metrics: Mapping[str, Any], tally: Tally) -> Record:
    doc = sample["doc"]
    answers = sample["filtered_resps"]
    return {
        "doc_id": sample["doc_id"],
        "id": doc.get("id"),
        "kind": doc.get("kind"),
        "target": sample["target"],
        "answer": answers[0] if len(answers) == 1 else answers,
        "scores": {name: score for name in metrics if (score := _score(sample.get(name))) is not None},
        "tokens": (sample.get("token_counts") or [None])[0],
        "picture": _picture(doc),
        **tally.kept_by_question.get(int(sample["doc_id"]), {}),
    }


def _picture(doc: Mapping[str, Any]) -> str | None:
    """What is equal for questions about the same picture, as far as the task's data tell."""
    for name in _PICTURE_KEYS:
        if isinstance(value := doc.get(name), str | int):
            return str(value)
    drawn = doc.get("scene") or doc.get("scenes")
    return hashlib.sha256(str(drawn).encode()).hexdigest()[:12] if drawn else None


def _score(value: Any) -> float | None:
    """A question's score: a number, or, where the metric is made of all questions at once, what it keeps of each."""
    return _number(value.get("score")) if isinstance(value, Mapping) else _number(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, str):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what takes part in a result."""
    import vtprune

    packages = ("torch", "transformers", "lmms-eval", "datasets", "numpy")
    return {
        "vtprune": vtprune.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
