"""Accuracy of a model on all held-out questions: ``python -m vtprune.eval.embedded.score --model FOLDER``.

For people who train the model; it needs no lmms-eval. The answers are those of ``generate`` through the library's
engine, full and at budgets, and the same scenes and prompts as those of the lmms-eval tasks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import vtprune
from vtprune.eval.embedded import MODEL_DIR, load_questions
from vtprune.eval.embedded.lessons import LESSONS
from vtprune.eval.embedded.question_sets import read_task
from vtprune.eval.embedded.scenes import Scene, render

Scores = dict[str, dict[str, dict[str, float]]]
"""By task, by kind (or level, or ``EVERY``), by method: percent right."""

EVERY = "every"
"""All questions of a task; ``all`` is a kind of ``count``."""


@dataclass(frozen=True)
class Asked:
    """A held-out question of any task."""

    task: str
    groups: tuple[str, ...]
    """Kind, and level if the task has levels."""
    question: str
    answer: str
    scenes: tuple[Scene, ...]


def held_out(limit: int | None = None) -> list[Asked]:
    """Questions of all tasks; the first ``limit`` of each."""
    found = [
        Asked("scenes", (question.kind,), question.question, question.answer, (question.scene,))
        for question in load_questions()[:limit]
    ]
    for task in LESSONS:
        found += [
            Asked(task, (question.kind, question.level), question.question, question.answer, question.scenes)
            for question in read_task(task)[:limit]
        ]
    return found


def _batches(asked: Sequence[Asked], size: int) -> Iterator[list[Asked]]:
    """Neighbours with equally many pictures."""
    for count in (1, 2):
        alike = [question for question in asked if len(question.scenes) == count]
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _prepare(processor: Any, batch: Sequence[Asked]) -> Any:
    prompts = []
    for asked in batch:
        content: list[dict[str, str]] = [{"type": "image"} for _ in asked.scenes]
        content.append({"type": "text", "text": asked.question})
        prompts.append(
            processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        )
    pictures = [render(scene) for asked in batch for scene in asked.scenes]
    return processor(images=pictures, text=prompts, padding=True, return_tensors="pt")


def score(
    model: Any, processor: Any, asked: Sequence[Asked], *, pruner: str, budgets: Sequence[int], batch_size: int
) -> Scores:
    """Accuracy in percent of the full model and at each budget (tokens per picture)."""
    batches = [(batch, _prepare(processor, batch)) for batch in _batches(asked, batch_size)]
    scores: Scores = {}
    for budget in (None, *budgets):
        name = "full" if budget is None else f"{pruner} {budget}"
        if budget is not None:
            vtprune.wrap(model, pruner, budget)
        try:
            hits = [hit for batch, inputs in batches for hit in _answer(model, processor, batch, inputs)]
        finally:
            if budget is not None:
                vtprune.unwrap(model)
        ordered = [question for batch, _ in batches for question in batch]
        for question, hit in zip(ordered, hits, strict=True):
            for group in (EVERY, *question.groups):
                sums = scores.setdefault(question.task, {}).setdefault(group, {})
                sums[name] = sums.get(name, 0.0) + hit
    for task, groups in scores.items():
        for group, sums in groups.items():
            count = sum(group in (EVERY, *question.groups) for question in asked if question.task == task)
            groups[group] = {name: round(100 * total / count, 1) for name, total in sums.items()}
    return scores


@torch.inference_mode()
def _answer(model: Any, processor: Any, batch: Sequence[Asked], inputs: Any) -> list[bool]:
    inputs = inputs.to(model.device, dtype=model.dtype)
    output = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(output, skip_special_tokens=True)
    return [text == question.answer for text, question in zip(texts, batch, strict=True)]


def score_folder(
    folder: Path,
    device: torch.device,
    *,
    pruner: str = "divprune",
    budgets: Sequence[int] = (192, 64),
    batch_size: int = 60,
    limit: int | None = None,
) -> Scores:
    """``score`` of a model's folder in the stored number type, on a CPU in fp32."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    dtype: Any = torch.float32 if device.type == "cpu" else "auto"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval().to(device)
    processor = AutoProcessor.from_pretrained(folder)
    return score(model, processor, held_out(limit), pruner=pruner, budgets=budgets, batch_size=batch_size)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder of the model")
    parser.add_argument("--pruner", default="divprune")
    parser.add_argument("--budgets", type=int, nargs="*", default=[192, 64], help="tokens per picture")
    parser.add_argument("--batch-size", type=int, default=60)
    parser.add_argument("--limit", type=int, help="questions of each task; default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    scores = score_folder(
        arguments.model,
        torch.device(arguments.device),
        pruner=arguments.pruner,
        budgets=arguments.budgets,
        batch_size=arguments.batch_size,
        limit=arguments.limit,
    )
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
