"""The embedded model in vLLM: for each method the tokens of transformers, from prompts as short as they must be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("vllm.entrypoints", reason="vLLM has an environment of its own, which .ci/vllm makes")

from serving.engines import LLAVA, answers, engine

import vtprune
from vtprune.adapters.vllm.eligibility import refusal
from vtprune.budget import Budget
from vtprune.eval.embedded import MODEL_DIR
from vtprune.eval.grid import parse_pruner
from vtprune.registry import pruner_classes

IMAGE_TOKEN = 3
SERVED = [name for name, cls in pruner_classes().items() if refusal(cls(), Budget(tokens=64)) is None]


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    with engine(MODEL_DIR, LLAVA, {"pruner": "divprune", "budget": 64}) as started:
        yield started


def expected(reference: tuple[Any, Any], prompts: list[str], images: list[Any], pruner: str, budget: Any) -> list[Any]:
    """Greedy answers of transformers, and how long each prompt is once pruned."""
    model, processor = reference
    tokenizer = processor.tokenizer
    found = []
    with vtprune.pruning(model, parse_pruner(pruner), budget=budget, positions="pack"), torch.no_grad():
        for start in range(0, len(prompts), 20):
            part = slice(start, start + 20)
            inputs = processor(text=prompts[part], images=images[part], return_tensors="pt", padding=True)
            made = model.generate(**inputs, max_new_tokens=12, do_sample=False)
            layer = vtprune.report(model).stages
            left = layer[-1].kept if layer else None
            for row, ids in enumerate(inputs["input_ids"]):
                real = int(inputs["attention_mask"][row].sum())
                visual = int((ids == IMAGE_TOKEN).sum())
                kept = visual if left is None else len(left[row])
                answer = made[row, len(ids) :].tolist()
                stop = answer.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in answer else len(answer)
                found.append((answer[:stop], real - visual + kept))
    return found


@pytest.mark.parametrize("pruner", SERVED)
def test_answers_are_those_of_transformers(llm: Any, reference: tuple[Any, Any], asked: Any, pruner: str) -> None:
    prompts, images = asked.prompts[:5], asked.images[:5]
    for budget in (192, 64):
        found = answers(llm, prompts, images, {"pruner": pruner, "budget": budget})
        assert found == expected(reference, prompts, images, pruner, budget)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [192, 64])
@pytest.mark.parametrize("pruner", ["divprune", "visionzip", "pool", "prumerge+"])
def test_a_hundred_answers_are_those_of_transformers(
    llm: Any, reference: tuple[Any, Any], asked: Any, pruner: str, budget: int
) -> None:
    found = answers(llm, asked.prompts, asked.images, {"pruner": pruner, "budget": budget})
    assert found == expected(reference, asked.prompts, asked.images, pruner, budget)
