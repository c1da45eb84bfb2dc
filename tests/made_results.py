"""Result folders made up for tests of what reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vtprune.budget import Budget
from vtprune.eval.grid import EVERYTHING, FULL, budget_data, method_label, parse_pruner
from vtprune.eval.store import DONE, ResultStore

METRIC = "exact_match"
TOKENS, LAYERS, SIDE = 576, 8, 24
FLOPS_PER_TOKEN = 17_000_000

Scorer = Callable[[str, float, int, int], float]
"""From method, true tokens, seed and question to a score."""


def likely(label: str, tokens: float, seed: int, question: int) -> float:
    """Right more often with more tokens; the same draw decides for all methods, so that they mostly agree."""
    luck = random.Random(f"{question} {label} {seed}").random() * 0.4 + random.Random(question).random() * 0.6
    return float(luck < 0.35 + 0.65 * (tokens / TOKENS) ** 0.3 or tokens == TOKENS)


def make_results(
    folder: Path,
    methods: Sequence[str] = ("random", "stride", "pool", "downsample", "divprune"),
    budgets: Sequence[int] = (64, 32),
    *,
    tasks: Sequence[str] = ("vtprune_scenes",),
    seeds: Sequence[int] = (0, 1, 2),
    questions: int = 40,
    score: Scorer = likely,
    full: bool = True,
    model: str = "embedded",
    per_picture: int = 1,
    kinds: Sequence[str] = ("color", "count"),
    samples: bool = True,
    **fields: Any,
) -> ResultStore:
    """Writes what a sweep would; methods that draw get all seeds, others the first.

    Args:
        folder: Of the results.
        methods: As on the command line.
        budgets: Tokens a picture.
        tasks: Names of tasks.
        seeds: Of methods that draw.
        questions: Asked of each task.
        score: Makes up the scores.
        full: Whether the full model was measured.
        model: Its name.
        per_picture: Questions about one picture.
        kinds: In turns.
        samples: Whether the answers are kept.
        fields: Further fields of each record, or others for those it has.
    """
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    lines = []
    for task in tasks:
        grid: list[tuple[str, int, int]] = [(FULL, TOKENS, seeds[0])] if full else []
        for method in methods:
            for seed in seeds if method.startswith("random") else seeds[:1]:
                grid += [(method, budget, seed) for budget in budgets]
        for method, budget, seed in grid:
            record, answers = _cell(method, budget, seed, task, questions, score, model, per_picture, kinds)
            record |= fields
            lines.append(record)
            if samples:
                _write(folder / "samples" / f"{record['key']}.jsonl", answers, "w")
    # Not with the store, which reads all it has for each cell that it adds.
    _write(folder / "results.jsonl", lines, "a")
    return ResultStore(folder)


def _write(path: Path, rows: Iterable[dict[str, Any]], mode: str) -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _cell(
    method: str,
    budget: int,
    seed: int,
    task: str,
    questions: int,
    score: Scorer,
    model: str,
    per_picture: int,
    kinds: Sequence[str],
) -> tuple[dict[str, Any], Iterable[dict[str, Any]]]:
    pruner = None if method == FULL else parse_pruner(method, seed=seed)
    layer = 0 if pruner is None else pruner.layers[0]
    average = (layer * TOKENS + (LAYERS - layer) * budget) / LAYERS
    label = FULL if pruner is None else method_label(pruner)
    scores = [score(label, average, seed, question) for question in range(questions)]
    mean = sum(scores) / questions
    chosen = random.Random(f"{label} {seed}")
    answers = [
        {
            "doc_id": question,
            "id": str(question),
            "kind": kinds[question % len(kinds)] if kinds else None,
            "target": "yes",
            "answer": "yes" if value >= 0.5 else "no",
            "scores": {METRIC: value},
            "picture": f"picture-{question // per_picture}",
            "kept": [sorted(chosen.sample(range(TOKENS), budget))] if label != "pool" else [None],
            "grid": [[SIDE, SIDE]],
        }
        for question, value in enumerate(scores)
    ]
    allowance = EVERYTHING if pruner is None else Budget(tokens=budget)
    return {
        "key": "-".join(f"{label} {budget} {seed} {task}".replace("(", " ").replace(")", " ").split()),
        "status": DONE,
        "model": model,
        "fingerprint": "made up",
        "pruner": FULL if pruner is None else pruner.name,
        "options": {} if pruner is None else pruner.config(),
        "budget": budget_data(allowance),
        "positions": "keep",
        "task": task,
        "task_digest": None,
        "limit": None,
        "seed": seed,
        "dtype": "auto",
        "label": label,
        "budget_meaning": "all tokens" if pruner is None else str(allowance),
        "tokens_full": float(TOKENS),
        "tokens_kept": float(budget),
        "average_tokens": average,
        "metric": METRIC,
        "value": mean,
        "standard_error": 0.02,
        "n": questions,
        "metrics": {METRIC: {"value": mean, "standard_error": 0.02}},
        "kinds": {},
        "prefill_flops": FLOPS_PER_TOKEN * average,
        "prefill_seconds": 0.001 + 1e-5 * average,
        "batch_size": 32,
        "device": "cpu",
        "versions": {"vtprune": "0.1.0"},
        "machine": {"device": "a made-up machine"},
        "command": "vtprune sweep --made-up",
        "time": "2026-11-28T18:00:00+00:00",
    }, answers
