"""Tiny random models of the other families: the tokens of transformers, with several pictures of many sizes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

pytest.importorskip("vllm.entrypoints", reason="vLLM has an environment of its own, which .ci/vllm makes")

from serving import folders
from serving.engines import answers, engine

import vtprune
from vtprune.adapters.vllm import ARCHITECTURES
from vtprune.eval.embedded.scenes import render, sample_scene
from vtprune.eval.grid import parse_pruner

MARKS = {
    "llava_next": "<image>",
    "llava_onevision": "<image>",
    "internvl": "<IMG_CONTEXT>",
    "qwen2_5_vl": "<|vision_start|> <|image_pad|> <|vision_end|>",
    "qwen3_vl": "<|vision_start|> <|image_pad|> <|vision_end|>",
}
GRIDS = ("qwen2_5_vl", "qwen3_vl")
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("divprune", 6),
    ("random(seed=2)", 0.5),
    ("visionzip", 8),
    ("tome", 9),
    ("divprune", 1.0),
)


class Served(NamedTuple):
    """A family in both engines."""

    family: str
    llm: Any
    model: Any
    processor: Any


@pytest.fixture(scope="module", params=MARKS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    family = request.param
    torch.manual_seed(1)
    folder: Path = getattr(folders, family)(tmp_path_factory.mktemp(family))
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    options = {"pruner": "divprune", "budget": 6}
    with engine(folder, ARCHITECTURES[family][1], options, max_model_len=512, max_num_batched_tokens=96) as llm:
        yield Served(family, llm, model, processor)


def questions(family: str) -> tuple[list[str], list[list[Image.Image]]]:
    """Prompts with one picture each, and one with two and text around them."""
    rng = random.Random(family)
    sizes = [(64, 64), (90, 50), (60, 130), (100, 100), (48, 96)]
    pictures = [render(sample_scene(rng)).resize(size) for size in sizes]
    mark = MARKS[family]
    prompts = [f"w1 w2 {mark} w{3 + number} w9" for number in range(len(pictures))]
    rows = [[picture] for picture in pictures]
    if family != "llava_onevision":  # transformers gives pictures that share a prompt one view each
        prompts.append(f"w4 {mark} w5 w6 {mark} w7")
        rows.append([pictures[1], pictures[2]])
    return prompts, rows


def expected(served: Served, prompts: list[str], rows: list[list[Image.Image]], pruner: str, budget: Any) -> list[Any]:
    positions: Any = "keep" if served.family in GRIDS else "pack"
    found = []
    with vtprune.pruning(served.model, parse_pruner(pruner), budget=budget, positions=positions), torch.no_grad():
        for prompt, pictures in zip(prompts, rows, strict=True):
            inputs = served.processor(text=[prompt], images=pictures, return_tensors="pt")
            made = served.model.generate(**inputs, max_new_tokens=8, do_sample=False)
            ids = inputs["input_ids"]
            stages = vtprune.report(served.model).stages
            gone = 0 if not stages else stages[0].before - stages[-1].after
            found.append((made[0, ids.shape[1] :].tolist(), ids.shape[1] - gone))
    return found


@pytest.mark.parametrize(("pruner", "budget"), OPTIONS)
def test_answers_are_those_of_transformers(served: Served, pruner: str, budget: Any) -> None:
    prompts, rows = questions(served.family)
    found = answers(served.llm, prompts, rows, {"pruner": pruner, "budget": budget}, tokens=8)
    assert found == expected(served, prompts, rows, pruner, budget)
    assert len({tuple(tokens) for tokens, _ in found}) > 1


@pytest.mark.parametrize("budget", [5, 1.0])
def test_positions_are_those_of_the_whole_prompt(served: Served, budget: Any) -> None:
    """Image, text and image: what the decoder is given, against transformers' own computation, gathered."""
    if served.family not in GRIDS:
        pytest.skip("positions are plain numbers")
    mark = MARKS[served.family]
    _, rows = questions(served.family)
    prompt, pictures = f"w4 {mark} w5 w6 {mark} w7 w8", [rows[2][0], rows[3][0]]
    inputs = served.processor(text=[prompt], images=pictures, return_tensors="pt")
    model = served.model
    with vtprune.pruning(model, "divprune", budget=budget, positions="keep"), torch.no_grad():
        model.generate(**inputs, max_new_tokens=1)
        stages = vtprune.report(model).stages
    ids = inputs["input_ids"][0]
    is_image = ids == model.config.image_token_id
    left = ~is_image
    left[stages[-1].kept[0] if stages else is_image.nonzero().flatten()] = True
    kinds = {} if "mm_token_type_ids" not in inputs else {"mm_token_type_ids": inputs["mm_token_type_ids"]}
    whole, _ = model.model.get_rope_index(inputs["input_ids"], image_grid_thw=inputs["image_grid_thw"], **kinds)
    expected = whole[:, 0, left]

    seen: list[torch.Tensor] = []
    runner = served.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    decoder = runner.model.language_model.model

    def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions: torch.Tensor = kwargs["positions"] if "positions" in kwargs else args[0]
        seen.append(positions.clone())

    # The decoder itself is called past its hooks.
    handle = decoder.layers[0].register_forward_pre_hook(see, with_kwargs=True)
    try:
        answers(served.llm, [prompt], [pictures], {"pruner": "divprune", "budget": budget}, tokens=3)
    finally:
        handle.remove()
    given = torch.cat(seen, dim=1)
    count = int(left.sum())
    assert given[:, :count].tolist() == expected.tolist()
    following = whole.max() + 1 + torch.arange(given.shape[1] - count)
    assert given[:, count:].tolist() == following.expand(3, -1).tolist()
