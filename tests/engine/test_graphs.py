"""What surrounds recorded passes, with recordings that are simply done again; real ones are in test_gpu.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from transformers import StaticCache

import vtprune
from vtprune.engine import graphs, prefill_recorder, recordings, vision_recorder


class Again:
    """Stands for `Recorded` where there is no CUDA device: does the work anew, from the same memory."""

    count = 0
    _engine: Any = None

    def __init__(self, work: Callable[[], Any], pool: Any, warmup: int = 2) -> None:
        type(self).count += 1
        self._work = work
        for _ in range(warmup - 1):
            work()
        self.result = work()

    def replay(self) -> Any:
        local = self._engine.local
        before = local.open, local.run
        with torch.no_grad():
            self.result = self._work()
        local.open, local.run = before  # a real replay runs no Python
        return self.result


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Again]:
    def attach(self: graphs.Graphs) -> Any:
        Again._engine = self._engine
        return attach_graphs(self)

    attach_graphs = graphs.Graphs.attach
    monkeypatch.setattr(graphs.Graphs, "attach", attach)
    monkeypatch.setattr(recordings, "Recorded", Again)
    for part in (graphs, vision_recorder, prefill_recorder):
        monkeypatch.setattr(part, "check_devices", lambda tensors: None)
    monkeypatch.setattr(recordings.Recordings, "pool", None)
    Again.count = 0
    return Again


SETTINGS: dict[str, Any] = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False}


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", vtprune.list_pruners())
@torch.no_grad()
def test_a_recorded_prefill_is_the_eager_one(recorded: type[Again], name: str, padding: str) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    other, inputs = (tiny.prompt([1, 1], padding=padding, seed=seed) for seed in range(2))
    with vtprune.pruning(model, name, 9, **tiny.question_side(name)):
        expected = model(**inputs, use_cache=True)
        wanted = vtprune.report(model)
    with vtprune.pruning(model, name, 9, graph=True, **tiny.question_side(name)):
        model(**other, use_cache=True)
        found = model(**inputs, use_cache=True)
        report = vtprune.report(model)
    assert report.captured
    assert not wanted.captured
    assert recorded.count == 2
    assert found.logits.shape == expected.logits.shape
    # The words behind the picture: what stands at padding means nothing.
    torch.testing.assert_close(found.logits[:, -8:], expected.logits[:, -8:], atol=2e-5, rtol=1e-5)
    for layer, same in zip(found.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert layer.keys.shape == same.keys.shape
        torch.testing.assert_close(layer.values[:, :, -8:], same.values[:, :, -8:], atol=2e-5, rtol=1e-5)
    assert str(report.to_dict()) == str(wanted.to_dict())
    for ours, theirs in zip(report.stages, wanted.stages, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.kept, theirs.kept, strict=True))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("positions", ["keep", "pack"])
@pytest.mark.parametrize("name", ["divprune", "fastv", "pyramiddrop", "tome"])
def test_generate(recorded: type[Again], name: str, positions: Any, cache: str) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    for seed in range(2):
        inputs = tiny.prompt([1, 2], padding="left", seed=seed)
        with vtprune.pruning(model, name, 9, positions=positions):
            expected = model.generate(**inputs, **SETTINGS)
        more = {} if cache == "dynamic" else {"cache_implementation": "static"}
        with vtprune.pruning(model, name, 9, positions=positions, graph=True):
            for _ in range(2):
                assert torch.equal(model.generate(**inputs, **SETTINGS, **more), expected)
                assert vtprune.report(model).captured


@torch.no_grad()
def test_one_recording_serves_a_bucket(recorded: type[Again]) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    prompts = [tiny.prompt([1], between=between, mask=mask) for between in (3, 4, 5, 9) for mask in (True, False)]
    expected = []
    for inputs in prompts:
        with vtprune.pruning(model, "fastv", 9):
            expected.append(model(**inputs, use_cache=True).logits)
    with vtprune.pruning(model, "fastv", 9, graph=vtprune.Graph(bucket=64)):
        for inputs, logits in zip(prompts, expected, strict=True):
            found = model(**inputs, use_cache=True).logits
            assert found.shape == logits.shape
            torch.testing.assert_close(found, logits, atol=2e-5, rtol=1e-5)
    # The tower, and the decoder for masks of integers and of booleans.
    assert recorded.count == 3


@torch.no_grad()
def test_results_outlive_the_next_replay(recorded: type[Again]) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    first, second = (tiny.prompt([1, 1], padding="left", seed=seed) for seed in (1, 2))
    with vtprune.pruning(model, "divprune", 9, graph=True):
        output = model(**first, use_cache=True)
        report = vtprune.report(model)
        kept = [row.clone() for row in report.stages[0].kept]
        keys = output.past_key_values.layers[0].keys.clone()
        model(**second, use_cache=True)
        assert torch.equal(output.past_key_values.layers[0].keys, keys)
        assert all(torch.equal(a, b) for a, b in zip(report.stages[0].kept, kept, strict=True))


@torch.no_grad()
def test_two_static_caches_live_at_once(recorded: type[Again]) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    prompts = [tiny.prompt([1], seed=seed) for seed in (1, 2)]

    def start(inputs: dict[str, torch.Tensor]) -> tuple[Any, torch.Tensor]:
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
        logits = model(**inputs, past_key_values=cache, use_cache=True).logits
        return cache, logits[:, -1:].argmax(-1)

    def steps(cache: Any, token: torch.Tensor, count: int) -> list[int]:
        found = []
        for _ in range(count):
            token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            found.append(int(token))
        return found

    with vtprune.pruning(model, "fastv", 9, graph=True):
        alone = [steps(*start(inputs), 6) for inputs in prompts]
        (one, first), (two, second) = (start(inputs) for inputs in prompts)
        mixed = [steps(one, first, 3), steps(two, second, 6)]
        mixed[0] += steps(one, torch.tensor([[mixed[0][-1]]]), 3)
    assert mixed == alone


def test_a_full_static_cache_is_refused(recorded: type[Again]) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    inputs = tiny.prompt([1])
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), vtprune.pruning(model, "fastv", 9, graph=True):
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=length + 1)
        token = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        model(input_ids=token, past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match=f"made for {length + 1} tokens"):
            model(input_ids=token, past_key_values=cache, use_cache=True)


@torch.no_grad()
def test_loss_of_a_recorded_prefill(recorded: type[Again]) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    inputs = tiny.prompt([1, 2], padding="left")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with vtprune.pruning(model, "divprune", 9):
        expected = model(**inputs, labels=labels).loss
    with vtprune.pruning(model, "divprune", 9, graph=True):
        torch.testing.assert_close(model(**inputs, labels=labels).loss, expected)


@torch.no_grad()
def test_a_budget_that_keeps_everything(recorded: type[Again]) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    inputs = tiny.prompt([1, 1], padding="left")
    expected = model(**inputs, use_cache=True).logits
    with vtprune.pruning(model, "divprune", 36, graph=True):
        torch.testing.assert_close(model(**inputs, use_cache=True).logits, expected, atol=2e-5, rtol=1e-5)
        static = model.generate(**inputs, **SETTINGS, cache_implementation="static")
    assert torch.equal(static, model.generate(**inputs, **SETTINGS))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_anyres(recorded: type[Again], attention: str) -> None:
    model: Any = tiny.tiny_llava_next(attention)
    inputs = tiny.anyres_prompt([(40, 90), (100, 50), (48, 48)], model)
    with vtprune.pruning(model, "visionzip", 9):
        expected = model(**inputs, use_cache=True).logits[:, -5:]
    with vtprune.pruning(model, "visionzip", 9, graph=True):
        for _ in range(2):
            found = model(**inputs, use_cache=True).logits[:, -5:]
        assert vtprune.report(model).captured
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


def test_what_cannot_be_recorded_runs_and_is_told_once() -> None:
    model: Any = tiny.tiny_llava("sdpa")
    inputs = tiny.prompt([1])
    with torch.no_grad(), vtprune.pruning(model, "divprune", 9):
        expected = model(**inputs).logits
    with torch.no_grad(), vtprune.pruning(model, "divprune", 9, graph=True):
        with pytest.warns(UserWarning, match="needs? a CUDA device, and an input is on cpu"):
            found = model(**inputs).logits
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(**inputs)
        assert not vtprune.report(model).captured
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("budget", "arguments", "reason"),
    [
        (9, {"output_hidden_states": True}, "output_hidden_states is asked for"),
        ("adaptive", {}, "adaptive budget"),
    ],
)
def test_reasons(recorded: type[Again], budget: Any, arguments: dict[str, Any], reason: str) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    with (
        torch.no_grad(),
        vtprune.pruning(model, "prumerge", budget, graph=True),
        pytest.warns(UserWarning, match=reason),
    ):
        model(**tiny.prompt([1]), **arguments)


def test_gradients_are_a_reason(recorded: type[Again]) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    with vtprune.pruning(model, "divprune", 9, graph=True), pytest.warns(UserWarning, match="gradients are enabled"):
        model(**tiny.prompt([1]))


@torch.no_grad()
def test_pictures_of_other_sizes_have_a_recording_of_their_own(recorded: type[Again]) -> None:
    """The model reads sizes on the host: what it makes of them is part of a recording."""
    model: Any = tiny.tiny_llava_next("sdpa")
    prompts = [tiny.anyres_prompt(sizes, model) for sizes in ([(40, 90)], [(90, 40)], [(80, 180)], [(40, 90)])]
    with vtprune.pruning(model, "visionzip", 20):
        expected = [model(**inputs).logits for inputs in prompts]
    with vtprune.pruning(model, "visionzip", 20, graph=True):
        for inputs, logits in zip(prompts, expected, strict=True):
            torch.testing.assert_close(model(**inputs).logits[:, -5:], logits[:, -5:], atol=2e-5, rtol=1e-5)
            assert vtprune.report(model).captured


@torch.no_grad()
def test_the_tower_alone_is_recorded_where_what_is_around_it_cannot_be(
    recorded: type[Again], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    inputs = tiny.prompt([1, 1])
    with vtprune.pruning(model, "visionzip", 9):
        expected = model(**inputs).logits

    class First(Again):
        def __init__(self, work: Callable[[], Any], pool: Any, warmup: int = 2) -> None:
            super().__init__(work, pool, warmup)
            if type(self).count == 1:
                raise RuntimeError("asks the device")

    monkeypatch.setattr(recordings, "Recorded", First)
    with vtprune.pruning(model, "visionzip", 9, graph=True):
        with pytest.warns(UserWarning, match="the vision side as a whole runs without a graph.*asks the device"):
            model(**inputs)
        again = model(**inputs).logits
        assert vtprune.report(model).captured
    assert First.count == 3
    torch.testing.assert_close(again[:, -8:], expected[:, -8:], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_work_that_fails_to_record_runs_eagerly(recorded: type[Again], monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    inputs = tiny.prompt([1])
    with vtprune.pruning(model, "divprune", 9):
        expected = model(**inputs).logits

    class Broken(Again):
        def __init__(self, work: Callable[[], Any], pool: Any, warmup: int = 2) -> None:
            work()
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(recordings, "Recorded", Broken)
    reason = "RuntimeError: operation not permitted when stream is capturing$"
    with vtprune.pruning(model, "divprune", 9, graph=True), pytest.warns(UserWarning, match=reason):
        found = model(**inputs).logits
    assert torch.equal(found, expected)


def test_unwrapping_leaves_nothing(recorded: type[Again]) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    with torch.no_grad():
        model(**tiny.prompt([1]))  # installs what transformers itself installs
    before = {id(module): set(module.__dict__) for module in model.modules()}
    with torch.no_grad(), vtprune.pruning(model, "divprune", 9, graph=True):
        model(**tiny.prompt([1]))
    after = {id(module): set(module.__dict__) for module in model.modules()}
    assert not {name for module, names in after.items() for name in names ^ before[module]}


@pytest.mark.parametrize("graph", [1, "yes", None])
def test_refused_settings(graph: Any) -> None:
    with pytest.raises(TypeError, match="graph must be True, False or a Graph"):
        vtprune.wrap(tiny.tiny_llava("sdpa"), "divprune", 9, graph=graph)


@pytest.mark.parametrize(("field", "value", "error"), [("bucket", 0, ValueError), ("limit", 1.5, TypeError)])
def test_refused_fields(field: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"Graph: {field} must be"):
        vtprune.Graph(**{field: value})
