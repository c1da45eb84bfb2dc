from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import MODEL_REGISTRY_V2
from PIL import Image

import vtprune
from vtprune.budget import Budget
from vtprune.eval.harness import TaskBook, quiet
from vtprune.eval.lmms import VtpruneModel
from vtprune.eval.lmms_manifests import MODEL_ID, manifests
from vtprune.eval.models import LoadedModel, load
from vtprune.pruner import Signal
from vtprune.registry import make_pruner


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    return load(str(tiny_folder), device="cpu")


@pytest.fixture(autouse=True)
def _unwrapped(loaded: LoadedModel) -> Iterator[None]:
    """Leaves the shared model as it was, also after a failure."""
    yield
    with contextlib.suppress(ValueError):
        vtprune.unwrap(loaded.model)


@pytest.fixture
def lm(loaded: LoadedModel) -> VtpruneModel:
    return VtpruneModel(loaded, batch_size=3)


def requests(count: int, **generation: Any) -> tuple[list[Instance], dict[str, Any]]:
    """Questions of different lengths about different pictures, and where the model finds their documents."""
    generator = torch.Generator().manual_seed(5)
    docs = []
    for number in range(count):
        pixels = torch.randint(0, 256, (40 + 8 * number, 60, 3), generator=generator, dtype=torch.uint8)
        docs.append({"picture": Image.fromarray(pixels.numpy()), "text": "what color is " * (number % 3 + 1)})

    def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": doc["picture"]}, {"type": "text", "text": doc["text"]}]
        return [{"role": "user", "content": content}]

    arguments = {"max_new_tokens": 4, **generation}
    instances = [
        Instance(
            request_type="generate_until",
            arguments=("", messages, dict(arguments), number, "t", "test"),
            idx=0,
            metadata={"task": "t", "doc_id": number, "repeats": 1},
        )
        for number in range(count)
    ]
    return instances, {"t": {"test": docs}}


def answers(lm: VtpruneModel, count: int = 7, **generation: Any) -> list[GenerationResult]:
    instances, lm.task_dict = requests(count, **generation)
    return lm.generate_until(instances)


@pytest.mark.parametrize("pruner", [None, "divprune", "fastv"])
def test_answers_do_not_depend_on_the_batch(loaded: LoadedModel, lm: VtpruneModel, pruner: str | None) -> None:
    if pruner is not None:
        lm.prune(make_pruner(pruner), Budget(tokens=9))
    lm.batch_size = 1
    alone = answers(lm)
    lm.batch_size = 3
    together = answers(lm)
    assert alone == together
    assert len({answer.text for answer in alone}) > 1


def test_counts_what_the_language_model_sees(lm: VtpruneModel, tiny: ModuleType) -> None:
    full = [answer.token_counts for answer in answers(lm)]
    lm.prune(make_pruner("stride"), Budget(tokens=9))
    before = [answer.token_counts for answer in answers(lm)]
    lm.prune(make_pruner("fastv"), Budget(tokens=9))
    inside = [answer.token_counts for answer in answers(lm)]
    for whole, early, late in zip(full, before, inside, strict=True):
        assert whole is not None
        assert early is not None
        assert late is not None
        assert whole.input_tokens - early.input_tokens == tiny.TOKENS - 9
        # Two layers of six see all 36 tokens, four see 9: 18 on average.
        assert whole.input_tokens - late.input_tokens == tiny.TOKENS - 18
        assert 1 <= early.output_tokens <= 4
    assert (lm.tally.prompts, lm.tally.images, lm.tally.tokens, lm.tally.kept) == (7, 7, 7 * 36, 7 * 9)


def test_progress_and_order_with_mixed_arguments(lm: VtpruneModel) -> None:
    plain = answers(lm)
    steps: list[int] = []
    lm.on_batch = steps.append
    instances, lm.task_dict = requests(7)
    for number in (1, 4):
        instances[number].arguments[2]["max_new_tokens"] = 1
    mixed = lm.generate_until(instances)
    assert sum(steps) == 7
    for number, (long, short) in enumerate(zip(plain, mixed, strict=True)):
        assert (long == short) is (number not in (1, 4))


def test_text_only_prompts(lm: VtpruneModel) -> None:
    lm.prune(make_pruner("stride"), Budget(tokens=9))
    instances, lm.task_dict = requests(2)
    for instance in instances:
        arguments = list(instance.arguments)
        arguments[1] = lambda doc: [{"role": "user", "content": [{"type": "text", "text": doc["text"]}]}]
        instance.arguments = tuple(arguments)
    found = lm.generate_until(instances)
    assert [answer.token_counts.input_tokens for answer in found if answer.token_counts] == [5, 8]
    assert lm.tally.images == 0


def test_failure_in_generate_is_raised(lm: VtpruneModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lm.model, "generate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        answers(lm)


def test_model_outlives_the_evaluation(lm: VtpruneModel, tiny: ModuleType, tiny_tasks: Path) -> None:
    tasks = TaskBook([tiny_tasks])
    names = tasks.resolve([tiny.TASK])
    assert names == [tiny.TASK]
    # lmms-eval's own clean() deletes every attribute that is a module.
    lm.__dict__["network"] = lm.model
    found = []
    with quiet():
        for _ in range(2):
            output = simple_evaluate(model=lm, tasks=[tasks.load(tiny.TASK)], task_manager=tasks.manager)
            found.append([sample["filtered_resps"] for sample in output["samples"][tiny.TASK]])
    assert lm.__dict__["network"] is lm.model
    assert len(found[0]) == 10
    assert found[0] == found[1]


def test_lmms_eval_finds_the_class_by_its_id(tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path) -> None:
    """As `lmms-eval --model vtprune --model_args ...` does."""
    for manifest in manifests():
        MODEL_REGISTRY_V2.register_manifest(manifest, overwrite=True)
    tasks = TaskBook([tiny_tasks])
    with quiet():
        output = simple_evaluate(
            model=MODEL_ID,
            model_args=f"pretrained={tiny_folder},pruner=fastv,layer=3,budget=9,positions=keep,dtype=float32",
            tasks=tasks.resolve([tiny.TASK]),
            task_manager=tasks.manager,
            batch_size=4,
            device="cpu",
            limit=4,
        )
    samples = output["samples"][tiny.TASK]
    assert len(samples) == 4
    assert output["results"][tiny.TASK]["exact_match,none"] >= 0
    assert all(sample["token_counts"][0]["input_tokens"] < 36 for sample in samples)


def test_system_prompt(lm: VtpruneModel) -> None:
    assert lm.system_prompt is None
    plain = answers(lm, 1)[0].token_counts
    lm.system_prompt = "the color"
    longer = answers(lm, 1)[0].token_counts
    assert plain is not None
    assert longer is not None
    assert longer.input_tokens == plain.input_tokens + 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pruner": "divprune"}, ValueError, "go together"),
        ({"budget": 9}, ValueError, "go together"),
        ({"layer": 3}, TypeError, "unknown arguments layer"),
        ({"pruner": "divprun", "budget": 9}, ValueError, "did you mean"),
        ({"pruner": "fastv", "budget": 9, "depth": 1}, TypeError, "no option depth"),
        ({"pruner": "fastv", "budget": 9, "budget_kind": "percent"}, ValueError, "budget_kind"),
        ({"pruner": "fastv", "budget": 0}, ValueError, "at least 1"),
        ({"batch_size": "auto"}, ValueError, "batch_size"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_wrong_arguments(loaded: LoadedModel, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VtpruneModel(loaded, **arguments)


@pytest.mark.parametrize(
    ("arguments", "budget"),
    [
        ({"budget": 9}, Budget(tokens=9)),
        ({"budget": 0.25}, Budget(ratio=0.25)),
        ({"budget": 20, "budget_kind": "average"}, Budget(average=20)),
        ({"budget": 9, "budget_per": "prompt"}, Budget(tokens=9, per="prompt")),
        ({"budget": "flops:0.5"}, Budget(flops=0.5)),
    ],
)
def test_budget_arguments(loaded: LoadedModel, arguments: dict[str, Any], budget: Budget) -> None:
    answers(VtpruneModel(loaded, pruner="stride", **arguments), 1)
    assert vtprune.report(loaded.model).budget == budget


@pytest.mark.parametrize("pruner", vtprune.list_pruners())
def test_reuse_between_cells_changes_nothing(loaded: LoadedModel, pruner: str) -> None:
    """For every method: what it keeps and what is answered is the same with remembered encoder states."""
    method, budget = make_pruner(pruner), Budget(tokens=9)
    loaded = replace(loaded, text_tower=tiny.text_tower())
    # Methods that look at several encoder layers, or encode another picture, need the whole tower each time.
    hits = 0 if method.signals & {Signal.ENCODER_LAYERS, Signal.PIXELS} else 3
    found = []
    for reuse in (False, True):
        made = VtpruneModel(loaded, batch_size=3)
        if reuse:
            made.reuse_between_cells()
            made.prune(make_pruner("stride"), Budget(tokens=4))
            answers(made)
            assert made.memo.hits == 0
        made.prune(method, budget)
        told = answers(made)
        kept = [[image.tolist() for image in row] for row in vtprune.report(loaded.model).stages[-1].images]
        found.append((told, kept))
        if reuse:
            assert made.memo.hits == hits
        vtprune.unwrap(loaded.model)
    assert found[0] == found[1]


def test_reuse_stops_at_its_limit(loaded: LoadedModel) -> None:
    made = VtpruneModel(loaded, batch_size=3)
    one_batch = 2 * 3 * 37 * 32 * 4
    made.reuse_between_cells(limit=2 * one_batch)
    made.prune(make_pruner("stride"), Budget(tokens=4))
    answers(made, 9)
    answers(made, 9)
    assert made.memo.hits == 2
    layers = loaded.model.model.vision_tower.encoder.layers
    assert not any("forward" in vars(layer) for layer in layers)
