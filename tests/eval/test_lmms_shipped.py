"""lmms-eval's own chat classes with pruned visual tokens."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import MODEL_REGISTRY_V2, get_model

import vtprune
from vtprune.eval.harness import TaskBook, quiet
from vtprune.eval.lmms_manifests import SHIPPED, manifests


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    for manifest in manifests():
        MODEL_REGISTRY_V2.register_manifest(manifest, overwrite=True)


def answers(model: str, arguments: str, tiny: ModuleType, tasks: Path, *, batch_size: int = 1) -> list[dict[str, Any]]:
    """What lmms-eval logs of the first questions, in their order."""
    book = TaskBook([tasks])
    with quiet():
        output = simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=book.resolve([tiny.TASK]),
            task_manager=book.manager,
            batch_size=batch_size,
            device="cpu",
            limit=5,
        )
    samples: list[dict[str, Any]] = sorted(output["samples"][tiny.TASK], key=lambda sample: int(sample["doc_id"]))
    return samples


def texts(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["filtered_resps"][0] for sample in samples]


def seen(samples: list[dict[str, Any]]) -> list[int]:
    return [sample["token_counts"][0]["input_tokens"] for sample in samples]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_id_has_its_class(name: str) -> None:
    found = get_model(f"vtprune_{name}")
    assert found.__name__ == SHIPPED[name].class_name
    assert found.__mro__[1].__name__ == SHIPPED[name].name
    assert not found.is_simple


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("pruning", ["", ",pruner=fastv,layer=3,budget=9,positions=keep"], ids=["full", "pruned"])
@pytest.mark.parametrize("name", ["llava_hf", "huggingface"])
def test_answers_equal_those_of_the_plain_id(
    name: str, pruning: str, batch_size: int, tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path
) -> None:
    # The class takes bfloat16 and nothing else.
    dtype = "" if name == "huggingface" else ",dtype=float32"
    plain = f"pretrained={tiny_folder},dtype={'bfloat16' if name == 'huggingface' else 'float32'}{pruning}"
    expected = answers("vtprune", plain, tiny, tiny_tasks, batch_size=batch_size)
    found = answers(
        f"vtprune_{name}", f"pretrained={tiny_folder}{dtype}{pruning}", tiny, tiny_tasks, batch_size=batch_size
    )
    assert texts(found) == texts(expected)
    assert any(texts(found))
    assert sum(seen(found)) == pytest.approx(sum(seen(expected)), abs=batch_size)
    if batch_size == 1:
        assert seen(found) == seen(expected)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_qwen_prompts_are_those_of_the_shipped_class(
    batch_size: int, tiny: ModuleType, tiny_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("decord")
    folder = tiny.save_tiny_qwen(tmp_path_factory.mktemp("tiny-qwen") / "model")
    arguments = f"pretrained={folder},min_pixels=3136,max_pixels=50176"
    stock = answers("qwen2_5_vl", f"{arguments},device_map=cpu", tiny, tiny_tasks, batch_size=batch_size)
    full = answers("vtprune_qwen2_5_vl", arguments, tiny, tiny_tasks, batch_size=batch_size)
    assert texts(full) == texts(stock)
    pruned = answers(
        "vtprune_qwen2_5_vl", f"{arguments},pruner=divprune,budget=9", tiny, tiny_tasks, batch_size=batch_size
    )
    assert all(few < many - 20 for few, many in zip(seen(pruned), seen(full), strict=True))
    assert texts(pruned) != texts(full)


def test_failures_are_counted_and_end_the_run(
    tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped class logs them and goes on with empty answers."""
    from transformers import LlavaForConditionalGeneration

    generate, calls = LlavaForConditionalGeneration.generate, []

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) in (2, 4):
            raise torch.OutOfMemoryError("no room")
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", failing)
    arguments = f"pretrained={tiny_folder},dtype=float32,pruner=divprune,budget=9"
    with pytest.raises(RuntimeError, match="2 of 5 generations failed, the first with OutOfMemoryError: no room"):
        answers("vtprune_llava_hf", arguments, tiny, tiny_tasks)


def test_a_model_that_always_fails_is_given_up(
    tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlavaForConditionalGeneration

    def failing(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise ValueError("broken")

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", failing)
    monkeypatch.setattr("vtprune.eval.lmms_shipped._HOPELESS", 2)
    with pytest.raises(RuntimeError, match="2 of 2 generations failed"):
        answers("vtprune_llava_hf", f"pretrained={tiny_folder},dtype=float32", tiny, tiny_tasks)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ("pruner=divprune", ValueError, "pruner and budget go together"),
        ("pruner=divprune,budget=9,layer=3", TypeError, "layer"),
        ("unheard=3", TypeError, "unknown arguments unheard"),
        ("pruner=nothing,budget=9", ValueError, "nothing"),
    ],
)
def test_wrong_arguments_are_refused_before_loading(
    arguments: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        get_model("vtprune_llava_hf").create_from_arg_string(f"pretrained={tmp_path / 'none'},{arguments}")


def test_report_of_the_wrapped_model(tiny_folder: Path) -> None:
    lm = get_model("vtprune_llava_hf").create_from_arg_string(
        f"pretrained={tiny_folder},pruner=fastv,layer=2,budget=9", {"device": "cpu", "batch_size": 2}
    )
    assert lm.batch_size == 2
    assert lm._runner.is_pruned
    vtprune.unwrap(lm.model)
