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


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", vtprune.list_pruners())
@torch.no_grad()
def test_recorded_prefill(name: str, padding: str) -> None:
    """Every method can be recorded, which forbids synchronisation in it."""
    model: Any = tiny.tiny_llava("sdpa")
    model.cuda()
    prompts = [on_device(tiny.prompt([1, 1], padding=padding, seed=seed)) for seed in range(3)]
    expected = []
    with vtprune.pruning(model, name, 9, images_per_prompt=1, **tiny.question_side(name)):
        for inputs in prompts:
            logits = model(**inputs, use_cache=True).logits
            expected.append((logits, [stage.kept for stage in vtprune.report(model).stages]))
    with (
        vtprune.pruning(model, name, 9, images_per_prompt=1, graph=True, **tiny.question_side(name)),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        for inputs, (logits, kept) in zip(prompts, expected, strict=True):
            found = model(**inputs, use_cache=True).logits
            report = vtprune.report(model)
            assert report.captured
            assert str([stage.kept for stage in report.stages]) == str(kept)
            torch.testing.assert_close(found[:, -8:], logits[:, -8:], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["keep", "pack"])
@pytest.mark.parametrize("name", ["divprune", "fastv", "pyramiddrop", "tome"])
def test_recorded_decoding(name: str, positions: Any, attention: str) -> None:
    model: Any = tiny.tiny_llava(attention)
    model.cuda()
    settings: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    prompts = [on_device(tiny.prompt([1, 2], padding="left", seed=seed)) for seed in range(3)]
    with vtprune.pruning(model, name, 9, positions=positions):
        expected = [model.generate(**inputs, **settings) for inputs in prompts]
    with vtprune.pruning(model, name, 9, positions=positions, graph=True), warnings.catch_warnings():
        warnings.filterwarnings("error", message="vtprune")
        for inputs, tokens in zip(prompts, expected, strict=True):
            assert torch.equal(model.generate(**inputs, **settings), tokens)
            for compiles in (False, True):
                more = {"cache_implementation": "static", "disable_compile": not compiles}
                assert torch.equal(model.generate(**inputs, **settings, **more), tokens)


@torch.no_grad()
def test_a_tower_that_asks_the_device_runs_eagerly() -> None:
    """A recording that fails leaves the device usable, and the model right."""
    model: Any = tiny.tiny_llava("sdpa")
    model.cuda()
    inputs = on_device(tiny.prompt([1, 1]))
    with vtprune.pruning(model, "divprune", 9):
        expected = model(**inputs, use_cache=True).logits
    layer = model.model.vision_tower
    handle = layer.register_forward_hook(lambda module, args, output: output.last_hidden_state.sum().item() and None)
    inner = next(module for name, module in layer.named_modules() if name.endswith("layers.0"))
    second = inner.register_forward_pre_hook(lambda module, args: args[0].sum().item() and None)
    try:
        with vtprune.pruning(model, "divprune", 9, graph=True):
            with pytest.warns(UserWarning, match="the vision tower runs without a graph"):
                found = model(**inputs, use_cache=True).logits
            assert vtprune.report(model).captured
            again = model(**inputs, use_cache=True).logits
    finally:
        handle.remove()
        second.remove()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(found, again)


@torch.no_grad()
def test_a_recorded_prompt_with_too_few_placeholders_is_refused() -> None:
    """Counted beside the vision tower's work, by the model's own check."""
    model: Any = tiny.tiny_llava("sdpa")
    model.cuda()
    inputs = on_device(tiny.prompt([1, 1]))
    with vtprune.pruning(model, "divprune", 9, graph=True):
        expected = model(**inputs).logits
        ids = inputs["input_ids"]
        fewer = torch.where((ids == tiny.IMAGE).cumsum(dim=1) == 1, ids.min(), ids)
        with pytest.raises(ValueError, match="do not match"):
            model(**{**inputs, "input_ids": fewer})
        assert torch.equal(model(**inputs).logits, expected)
