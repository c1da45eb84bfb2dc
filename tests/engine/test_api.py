"""What wrap() accepts and refuses, what a report says, and that failures leave the model as it was."""

from __future__ import annotations

import copy
import gc
import threading
from typing import Any

import pytest
import tiny
import torch
from transformers import CLIPVisionModel, LlamaForCausalLM

import vtprune
from vtprune import Budget
from vtprune.adapters import find_adapter
from vtprune.adapters.conformance import ScatteredPruner, footprint
from vtprune.engine.cache_names import CACHE
from vtprune.pruner import Signal


@pytest.fixture
def llava() -> Any:
    return tiny.tiny_llava("sdpa")


def test_wrap_is_in_place_and_refuses_a_second_time(llava: Any) -> None:
    assert vtprune.wrap(llava, "divprune", budget=9) is llava
    with pytest.raises(ValueError, match=r"wrapped already.*unwrap"):
        vtprune.wrap(llava, "fastv", budget=9)
    assert vtprune.unwrap(llava) is llava
    with pytest.raises(ValueError, match="is not wrapped"):
        vtprune.unwrap(llava)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budget": 0}, ValueError, "got 0"),
        ({"budget": -3}, ValueError, "got -3"),
        ({"budget": float("nan")}, ValueError, "got nan"),
        ({"budget": 1.5}, ValueError, r"got 1\.5"),
        ({"budget": None}, TypeError, "got None"),
        ({"budget": 9, "pruner": "divprun"}, ValueError, "did you mean 'divprune'"),
        ({"budget": 9, "pruner": 7}, TypeError, "got 7"),
        ({"budget": 9, "pruner": vtprune.pruner_class("fastv")}, TypeError, r"FastV\(\)"),
        ({"budget": 9, "positions": "gapped"}, ValueError, "gapped"),
        ({"budget": 9, "pruner": "fastv", "layer": 6}, ValueError, "layers 0 to 5"),
        ({"budget": 9, "pruner": "fastv", "depth": 6}, TypeError, "no option depth"),
        ({"budget": 9, "images_per_prompt": 0}, ValueError, "images_per_prompt"),
        ({"budget": Budget(average=9), "pruner": "fastv"}, ValueError, "out of reach"),
    ],
    ids=str,
)
def test_bad_arguments_change_nothing(llava: Any, arguments: dict[str, Any], error: type, message: str) -> None:
    before = footprint(llava)
    with pytest.raises(error, match=message):
        vtprune.wrap(llava, **{"pruner": "divprune", **arguments})
    assert footprint(llava) == before


def test_unsupported_models_are_refused(llava: Any) -> None:
    with pytest.raises(TypeError, match="Linear"):
        vtprune.wrap(torch.nn.Linear(2, 2), "divprune", budget=9)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is a text model"):
        vtprune.wrap(LlamaForCausalLM(tiny.text_config()), "divprune", budget=9)
    with pytest.raises(ValueError, match="clip_vision_model"):
        vtprune.wrap(CLIPVisionModel(tiny.vision_config()), "divprune", budget=9)
    with pytest.raises(ValueError, match="without a language-model head"):
        vtprune.wrap(llava.model, "divprune", budget=9)


class NeedsCls(ScatteredPruner):
    signals = frozenset({Signal.ENCODER_CLS})


def test_tower_without_cls_is_refused_where_cls_is_needed() -> None:
    siglip: Any = tiny.tiny_llava("sdpa", siglip=True)
    with pytest.raises(ValueError, match=r"encoder_cls.*no CLS"):
        vtprune.wrap(siglip, NeedsCls(), budget=9)
    # VisionZip keeps one more patch in its place.
    for name in ("divprune", "visionzip"):
        with torch.no_grad(), vtprune.pruning(siglip, name, 9):
            siglip(**tiny.prompt([1]))
            assert len(vtprune.report(siglip).stages[0].images[0][0]) == 9


def test_failure_while_attaching_is_rolled_back(llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtprune.engine.engine import Engine

    before = footprint(llava)

    def fail(self: Engine) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(Engine, "_attach_loss", fail)
    with pytest.raises(RuntimeError, match="planted"):
        vtprune.wrap(llava, "fastv", budget=9)
    assert footprint(llava) == before


def test_context_manager_unwraps_after_an_exception(llava: Any) -> None:
    before = footprint(llava)
    with pytest.raises(KeyError), vtprune.pruning(llava, "fastv", 9):
        raise KeyError("user code")
    assert footprint(llava) == before


def test_failing_forward_leaves_a_usable_model(llava: Any) -> None:
    inputs = tiny.prompt([1])
    with torch.no_grad(), vtprune.pruning(llava, "divprune", 9):
        expected = llava(**inputs).logits
        broken = {**inputs, "pixel_values": inputs["pixel_values"][:, :2]}
        with pytest.raises((RuntimeError, ValueError)):
            llava(**broken)
        with pytest.raises(ValueError, match="tokens"):
            llava(**{**inputs, "pixel_values": torch.cat([inputs["pixel_values"]] * 2)})
        assert torch.equal(llava(**inputs).logits, expected)


@torch.no_grad()
def test_report(llava: Any) -> None:
    inputs = tiny.prompt([2, 1], padding="left")
    with vtprune.pruning(llava, ScatteredPruner((2, 4)), Budget(tokens=9), positions="pack"):
        with pytest.raises(ValueError, match="run it first"):
            vtprune.report(llava)
        llava(**inputs)
        report = vtprune.report(llava)
    with pytest.raises(ValueError, match="is not wrapped"):
        vtprune.report(llava)
    assert [(stage.layer, stage.before, stage.after) for stage in report.stages] == [(2, 108, 54), (4, 54, 27)]
    visual = inputs["input_ids"] == tiny.IMAGE
    for stage in report.stages:
        for row in range(2):
            own = visual[row].nonzero().flatten()
            expected = torch.cat([own[36 * j + kept] for j, kept in enumerate(stage.images[row])])
            assert torch.equal(stage.kept[row], expected)
    assert [len(row) for row in report.stages[0].images] == [2, 1]
    assert report.average_tokens == pytest.approx((2 * 36 + 2 * 18 + 2 * 9) / 6)
    assert report.lengths[0] == inputs["input_ids"].shape[1]
    assert report.kv_bytes == sum(report.lengths) * 2 * 2 * 16 * 2 * 4
    data = report.to_dict()
    assert data["budget"] == "9 tokens per image"
    assert data["positions"] == "pack"


@torch.no_grad()
def test_flops_budget_is_met(llava: Any) -> None:
    inputs = tiny.prompt([1, 1], padding="left")
    with vtprune.pruning(llava, "divprune", 1.0):
        llava(**inputs)
        full = vtprune.report(llava).prefill_flops
    with vtprune.pruning(llava, "divprune", Budget(flops=0.6)):
        llava(**inputs)
        share = vtprune.report(llava).prefill_flops / full
    assert 0.5 < share < 0.65


@torch.no_grad()
def test_images_per_prompt_promise(llava: Any) -> None:
    inputs = tiny.prompt([2, 2], padding="left")
    with vtprune.pruning(llava, "divprune", 9):
        asked = llava(**inputs).logits
    with vtprune.pruning(llava, "divprune", 9, images_per_prompt=2):
        assert torch.equal(llava(**inputs).logits, asked)
    with vtprune.pruning(llava, "divprune", 9, images_per_prompt=1), pytest.raises(ValueError, match="was promised"):
        llava(**tiny.prompt([2, 1], padding="left"))


@torch.no_grad()
def test_threads_share_a_wrapped_model(llava: Any) -> None:
    prompts = [tiny.prompt([1], seed=seed) for seed in range(4)]
    with vtprune.pruning(llava, "fastv", 9):
        expected = [llava.generate(**prompt, max_new_tokens=4, do_sample=False) for prompt in prompts]
        found: dict[int, list[torch.Tensor]] = {number: [] for number in range(4)}

        def work(number: int) -> None:
            for _ in range(5):
                found[number].append(llava.generate(**prompts[number], max_new_tokens=4, do_sample=False))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in range(4):
        assert len(found[number]) == 5
        assert all(torch.equal(output, expected[number]) for output in found[number])


@torch.no_grad()
@pytest.mark.parametrize("size", [(56, 40), (8, 8), (48, 96)])
def test_odd_picture_sizes(llava: Any, size: tuple[int, int]) -> None:
    height, width = size
    tokens = (height // 8) * (width // 8)
    inputs = tiny.prompt([1, 1], tokens=tokens)
    inputs["pixel_values"] = torch.randn(2, 3, height, width)
    llava.model.vision_tower.embeddings.forward = _interpolating(llava)
    with vtprune.pruning(llava, "pool", 9):
        llava(**inputs)
        report = vtprune.report(llava)
    assert report.visual_tokens == 2 * tokens
    kept = report.stages[0].after if report.stages else report.visual_tokens
    assert kept == 2 * min(9, tokens)


def _interpolating(llava: Any) -> Any:
    original: Any = type(llava.model.vision_tower.embeddings).forward

    def forward(pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        kwargs["interpolate_pos_encoding"] = True
        return original(llava.model.vision_tower.embeddings, pixel_values, **kwargs)

    return forward


@torch.no_grad()
def test_torch_compile(llava: Any) -> None:
    torch.compiler.reset()
    with vtprune.pruning(llava, ScatteredPruner((0, 2)), 0.3):
        compiled: Any = torch.compile(llava, backend="eager")
        for seed in range(2):
            inputs = tiny.prompt([1, 1], seed=seed)
            torch.testing.assert_close(compiled(**inputs).logits, llava(**inputs).logits)


@torch.no_grad()
def test_flex_attention() -> None:
    inputs = tiny.prompt([1, 1, 1], padding="left")
    logits = []
    for attention in ("flex_attention", "sdpa"):
        model: Any = tiny.tiny_llava(attention)
        with vtprune.pruning(model, "fastv", 9):
            logits.append(model(**inputs).logits)
    real = inputs["attention_mask"][:, -logits[0].shape[1] :].bool()
    torch.testing.assert_close(logits[0][real], logits[1][real], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_bfloat16(llava: Any) -> None:
    llava.to(torch.bfloat16)
    inputs = tiny.prompt([1, 1], padding="left")
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    for name in vtprune.list_pruners():
        with vtprune.pruning(llava, name, 9, **tiny.question_side(name)):
            assert llava(**inputs).logits.isfinite().all()


def test_adapter_knows_both_families(llava: Any) -> None:
    layout = find_adapter(llava).typical_layout()
    assert layout is not None
    assert layout.tokens == 36
    assert find_adapter(tiny.tiny_llava_next()).typical_layout() is None


def test_copying_a_wrapped_model_is_refused(llava: Any) -> None:
    with vtprune.pruning(llava, "divprune", 9), pytest.raises(TypeError, match="unwrap first"):
        copy.deepcopy(llava)
    vtprune.wrap(copy.deepcopy(llava), "pool", 9)


@torch.no_grad()
def test_torch_compile_of_a_method_that_reads_decoder_attention(llava: Any) -> None:
    torch.compiler.reset()
    inputs = tiny.prompt([1, 1])
    with vtprune.pruning(llava, "fastv", 9):
        compiled: Any = torch.compile(llava, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(**inputs).logits, llava(**inputs).logits)
        cache = compiled(**inputs, use_cache=True)[CACHE]
        step = compiled(input_ids=torch.tensor([[5], [6]]), **{CACHE: cache}).logits
        cache = llava(**inputs, use_cache=True)[CACHE]
        torch.testing.assert_close(step, llava(input_ids=torch.tensor([[5], [6]]), **{CACHE: cache}).logits)


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kept: vtprune.Reduction(kept[:, :-1]), "asked to keep 9 tokens of each image and kept 8"),
        (lambda kept: vtprune.Reduction(kept[0]), r"kept of shape \(2, kept\), got \(9,\)"),
        (lambda kept: vtprune.Reduction(kept, features=torch.zeros(2, 3, 64)), r"features of shape \(2, 3, 64\)"),
    ],
    ids=["count", "batch", "features"],
)
def test_a_method_that_returns_nonsense_is_named(llava: Any, change: Any, message: str) -> None:
    class Broken(ScatteredPruner):
        def reduce(self, context: vtprune.Context, keep: int) -> vtprune.Reduction:
            reduction: vtprune.Reduction = change(super().reduce(context, keep).kept)
            return reduction

    with vtprune.pruning(llava, Broken(), 9), pytest.raises(ValueError, match=message):
        llava(**tiny.prompt([1, 1]))


@torch.no_grad()
def test_a_finished_prefill_holds_no_states(llava: Any) -> None:
    from vtprune.engine.run import Run

    def runs() -> set[int]:
        gc.collect()
        return {id(found) for found in gc.get_objects() if isinstance(found, Run)}

    inputs = tiny.prompt([1, 1])
    # Models that other tests left wrapped may still hold one.
    before = runs()
    with vtprune.pruning(llava, "fastv", 9):
        llava(**inputs)
        assert runs() <= before
