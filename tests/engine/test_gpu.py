"""The engine on a CUDA device: conformance, no added synchronisation, static caches as `generate` compiles them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tiny
import torch

import vtprune
from vtprune.adapters import check_adapter
from vtprune.pruner import Signal

pytestmark = pytest.mark.gpu


def on_device(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cuda() for name, value in inputs.items()}


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_conformance(attention: str) -> None:
    model: Any = tiny.tiny_llava(attention)
    model.cuda()
    check_adapter(model, inputs=tiny.prompt([1, 2, 1], padding="left"), tolerance=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_conformance_anyres(attention: str) -> None:
    model: Any = tiny.tiny_llava_next(attention)
    model.cuda()
    check_adapter(model, inputs=tiny.anyres_prompt([(40, 90), (100, 50), (48, 48)], model), tolerance=1e-3)


@pytest.mark.parametrize("name", vtprune.list_pruners())
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_wrapping_adds_no_synchronisation(name: str, rows: int) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    model.cuda()
    inputs = on_device(tiny.prompt([1] * rows))

    def syncs() -> int:
        for _ in range(2):
            model(**inputs, use_cache=True)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model(**inputs, use_cache=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)

    stock = syncs()
    # Reading the question copies the prompt's ids to the host, and those of its words back.
    reading = 4 if Signal.CLIP_TEXT in vtprune.pruner_class(name).signals else 0
    with vtprune.pruning(model, name, 9, images_per_prompt=1, **tiny.question_side(name)):
        assert syncs() <= stock + reading


@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_static_cache_as_generate_compiles_it(name: str) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    model.cuda()
    inputs = on_device(tiny.prompt([1, 1], padding="left"))
    settings: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with vtprune.pruning(model, name, 9, **tiny.question_side(name)):
        dynamic = model.generate(**inputs, **settings)
        static = model.generate(**inputs, **settings, cache_implementation="static")
    assert torch.equal(dynamic, static)
