"""The published loops and vtprune's selections are asked the same, and choose the same where they should."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

import vtprune
from vtprune.eval import selection_benchmark as benchmark
from vtprune.eval.official.calls import OFFICIAL
from vtprune.eval.random_models import Architecture, random_prompts
from vtprune.eval.selection_benchmark import Row, Selection, anew, measure, parse_methods, parse_sizes, to_markdown
from vtprune.eval.timing import Timing
from vtprune.pruner import Pruner, Reduction

SIDE, KEEP, VIEWS = 64, 16, 5


@cache
def model(anyres: bool) -> Any:
    """Views of 8 x 8 patches under a decoder of eight layers, as many heads as the published code counts with."""
    vision: Any = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        projection_dim=32,
    )
    text: Any = tiny.text_config(num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=8)
    sizes: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": tiny.IMAGE}
    if anyres:
        config = LlavaNextConfig(**sizes, image_grid_pinpoints=[[2 * SIDE, 2 * SIDE]])
        return tiny._build(LlavaNextForConditionalGeneration, config, "sdpa")
    return tiny._build(LlavaForConditionalGeneration, LlavaConfig(**sizes), "sdpa")


def pixels(anyres: bool, batch: int) -> dict[str, torch.Tensor]:
    if anyres:
        sizes = torch.tensor([[2 * SIDE, 2 * SIDE]] * batch)
        return {"pixel_values": torch.randn(batch, VIEWS, 3, SIDE, SIDE), "image_sizes": sizes}
    return {"pixel_values": torch.randn(batch, 3, SIDE, SIDE)}


@torch.no_grad()
def both(name: str, anyres: bool, keep: int, **fields: Any) -> tuple[Selection, list[Reduction], list[list[Any]]]:
    """What vtprune's stages and the published loop make of two pictures."""
    loaded = model(anyres)
    pruner = vtprune.make_pruner(name, **fields)
    selection = Selection(loaded, pruner, random_prompts(loaded, 2, 20, pixels(anyres, 2)), keep)
    return selection, selection.choose(), selection.official()()


def as_tokens(found: torch.Tensor, views: tuple[torch.Tensor, ...]) -> set[int]:
    """Numbers of tokens from masks or numbers, of the tokens or view by view."""
    if found.dim() == 1:
        return set((found.nonzero().flatten() if found.dtype == torch.bool else found).tolist())
    rows = [row.nonzero().flatten() if row.dtype == torch.bool else row for row in found]
    return {token for view, row in zip(views, rows, strict=True) for token in view[row].tolist()}


EXACT = (
    "cdpruner divprune entropyprune fastervlm fastv flashvlm globalcom2 gprune hiprune hired holov pyramiddrop scope "
    "sparsevlm+ vispruner"
).split()


@pytest.mark.parametrize("name", EXACT)
def test_selections_agree(name: str) -> None:
    selection, reductions, official = both(name, False, KEEP)
    for stage, (reduction, (context, _)) in enumerate(zip(reductions, selection.seen, strict=True)):
        views = anew(context).view_tokens if context.layer == 0 else ()
        for image, results in enumerate(official):
            assert as_tokens(results[stage], views) == set(reduction.kept[image].tolist())


@pytest.mark.parametrize("name", "cdpruner divprune fastervlm fastv hiprune pyramiddrop scope vispruner".split())
def test_selections_agree_on_views(name: str) -> None:
    selection, reductions, official = both(name, True, VIEWS * KEEP)
    for stage, (reduction, (context, _)) in enumerate(zip(reductions, selection.seen, strict=True)):
        views = anew(context).view_tokens if context.layer == 0 else ()
        for image, results in enumerate(official):
            assert as_tokens(results[stage], views) == set(reduction.kept[image].tolist())


def test_sparsevlm_keeps_the_same_before_clusters() -> None:
    selection, reductions, official = both("sparsevlm", False, KEEP)
    pruner: Any = selection.pruner
    for stage, (reduction, (context, keep)) in enumerate(zip(reductions, selection.seen, strict=True)):
        kept, _ = pruner.split(context.tokens, keep)
        for image, results in enumerate(official):
            assert as_tokens(results[stage], ()) == set(reduction.kept[image, :kept].tolist())


def test_fitprune_removes_the_rest() -> None:
    selection, reductions, official = both("fitprune", False, KEEP)
    for stage, (reduction, (context, _)) in enumerate(zip(reductions, selection.seen, strict=True)):
        for image, results in enumerate(official):
            rest = set(range(context.tokens)) - as_tokens(results[stage], ())
            assert rest == set(reduction.kept[image].tolist())


def test_trim_keeps_the_same_before_the_mean() -> None:
    selection, reductions, official = both("trim", False, KEEP)
    views = anew(selection.seen[0][0]).view_tokens
    for image, results in enumerate(official):
        assert as_tokens(results[0], views) == set(reductions[0].kept[image, :-1].tolist())


@pytest.mark.parametrize("name", ["prumerge", "visionzip"])
def test_merged_features_agree(name: str) -> None:
    selection, reductions, official = both(name, False, KEEP)
    assert reductions[0].features is not None
    for image, results in enumerate(official):
        made = results[0][0] if name == "prumerge" else results[0]
        with torch.no_grad():
            projected = selection.seen[0][0].project(made)
        torch.testing.assert_close(projected[0], reductions[0].features[image], rtol=1e-3, atol=1e-4)


def test_recovered_features_agree() -> None:
    # No recorded case makes a centre.
    selection, reductions, official = both("recoverable", False, 2 * KEEP, parity=True)
    pruner: Any = selection.pruner
    assert pruner.split(2 * KEEP).centres > 1
    assert reductions[0].features is not None
    for image, results in enumerate(official):
        with torch.no_grad():
            projected = selection.seen[0][0].project(results[0][0][None])
        torch.testing.assert_close(projected[0], reductions[0].features[image], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["aim", "m3", "tome"])
def test_merged_states_agree(name: str) -> None:
    _, reductions, official = both(name, False, KEEP)
    assert reductions[0].features is not None
    for image, results in enumerate(official):
        made, expected = (states[states[:, 0].argsort()] for states in (results[0][0], reductions[0].features[image]))
        torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4)


def test_counts_come_near_the_budget() -> None:
    _, _, official = both("dart", False, 28)
    assert [len(results[0]) for results in official] == [28, 28]
    for name, keep in (("recoverable", KEEP), ("prumerge+", KEEP)):
        for results in both(name, False, keep)[2]:
            assert abs(results[0][0].shape[-2] - keep) <= 2
    for results in both("pact", False, KEEP)[2]:
        assert 1 <= len(results[0].sizes) <= KEEP
    for results in both("mustdrop", False, KEEP)[2]:
        assert len(results) == 4
    # The thumbnail's and the crops' patches, and the newlines of all rows of the canvas.
    for results in both("globalcom2", True, VIEWS * KEEP)[2]:
        assert 0 <= VIEWS * KEEP - len(results[0].sequence) <= VIEWS


def test_both_stages_of_vscan_and_aim() -> None:
    # As many tokens as windows: the published code keeps fewer where they do not divide.
    for name, keep, fields, whole in (("vscan", 11, {"window": 2}, 0), ("aim", 8, {}, 1)):
        selection, reductions, official = both(name, False, keep, **fields)
        assert len(official[0]) == len(reductions) == len(selection.seen) > 1
        for stage in range(whole, len(reductions)):
            views = () if stage else anew(selection.seen[0][0]).view_tokens
            for image, results in enumerate(official):
                assert as_tokens(results[stage], views) == set(reductions[stage].kept[image].tolist())


@pytest.mark.parametrize("anyres", [False, True])
@pytest.mark.parametrize("name", OFFICIAL)
def test_every_loop_is_measured(name: str, anyres: bool) -> None:
    loaded, keep = model(anyres), KEEP * (VIEWS if anyres else 1)
    inputs = random_prompts(loaded, 1, 20, pixels(anyres, 1))
    pruner = vtprune.make_pruner(name, **({"window": 2} if name == "vscan" else {}))
    row = measure(loaded, pruner, inputs, keep, repeats=1, warmup=0)
    assert not row.notes
    assert row.official is not None
    assert row.eager is not None
    assert row.ratio == pytest.approx(row.official.median / row.eager.median)
    # Newlines close the rows of the crops.
    assert (row.batch, row.tokens) == (1, SIDE * VIEWS + 16 if anyres else SIDE)
    assert row.keep <= keep


def test_contexts_derive_anew() -> None:
    loaded = model(False)
    inputs = random_prompts(loaded, 1, 20, pixels(False, 1))
    selection = Selection(loaded, vtprune.make_pruner("visionzip"), inputs, KEEP)
    context = selection.seen[0][0]
    assert "attention" not in vars(context._record)
    fresh = anew(context)
    assert fresh.encoder_attention.shape == (1, 2, 64)
    assert "encoder_attention" in vars(fresh)
    assert "attention" in vars(fresh._record)
    assert "encoder_attention" not in vars(context)
    assert "attention" not in vars(context._record)


def test_model_is_left_alone() -> None:
    loaded = model(False)
    inputs = random_prompts(loaded, 1, 20, pixels(False, 1))
    with torch.no_grad():
        before = loaded(**inputs).logits
        Selection(loaded, vtprune.make_pruner("fastv"), inputs, KEEP)
        assert torch.equal(loaded(**inputs).logits, before)


class Broken(Pruner):
    """A method whose selection fails behind its first call."""

    name = "divprune"
    paper = summary = ""
    year = 2026

    def reduce(self, context: Any, keep: int) -> Reduction:
        raise RuntimeError("no selection today")


def test_failures_are_noted() -> None:
    loaded = model(False)
    row = measure(loaded, Broken(), random_prompts(loaded, 1, 20, pixels(False, 1)), KEEP)
    assert row.notes == {"prefill": "RuntimeError: no selection today"}
    assert [row.official, row.eager, row.captured, row.ratio] == [None] * 4


def test_ratio_is_to_the_better_time() -> None:
    def row(*medians: float | None) -> Row:
        official, eager, captured = (
            None if median is None else Timing(median, median, median, 1) for median in medians
        )
        return Row("x", 1, 576, 64, 1, official, eager, captured)

    assert row(6.0, 3.0, 1.5).ratio == 4
    assert row(6.0, 3.0, None).ratio == 2
    assert row(None, 3.0, 1.5).ratio is None
    assert row(6.0, None, None).ratio is None


def test_markdown() -> None:
    def row(name: str, batch: int, eager: float, captured: float | None) -> Row:
        official, *own = (None if time is None else Timing(time, time, time, 3) for time in (8.0, eager, captured))
        return Row(name, batch, 576, 64, 1, official, own[0], own[1])

    lines = to_markdown(
        [row("fastv", 8, 4.0, 2.0), row("aim", 8, 3.0, 1.0), row("m3", 1, 5.0, None)], 50.0
    ).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["`m3`", "`aim`", "`fastv`"]
    assert lines[2].endswith("| - | 10.0 % | 1.6 x |")
    assert lines[4].endswith("| 2.00 (2.00-2.00) | 4.0 % | 4.0 x |")


def test_arguments() -> None:
    assert parse_sizes("576:64,2880:320") == [(576, 64), (2880, 320)]
    assert parse_methods("all") == vtprune.list_pruners()
    with pytest.raises(ValueError, match="'576' is no size"):
        parse_sizes("576")
    with pytest.raises(ValueError, match="'100:10' cannot be measured; tokens before are 576 or 2880"):
        parse_sizes("100:10")
    with pytest.raises(ValueError, match="'576:576' cannot be measured"):
        parse_sizes("576:576")
    with pytest.raises(ValueError, match="unknown pruner 'randon'; did you mean 'random'"):
        parse_methods("divprune,randon")


def test_a_method_without_a_published_loop() -> None:
    found = model(False)
    inputs = random_prompts(found, 1, 8, pixels(False, 1))
    row = measure(found, vtprune.make_pruner("stride"), inputs, 16, repeats=1)
    assert (row.official, row.ratio, row.notes) == (None, None, {"official": "ValueError: no published loop"})
    assert row.eager is not None


def test_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "random_model", lambda name, *_, **__: model(name == "llava-next-7b"))
    monkeypatch.setattr(
        benchmark,
        "ARCHITECTURES",
        {
            name: Architecture("", lambda layers: None, lambda batch, *_, anyres=anyres: pixels(anyres, batch))
            for name, anyres in (("llava-1.5-7b", False), ("llava-next-7b", True))
        },
    )
    file = tmp_path / "rows.json"
    benchmark.main(f"--methods fastv,vispruner --sizes 576:16,2880:80 --batches 1,2 --repeats 2 --json {file}".split())
    assert "vispruner" in capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    assert [(row["method"], row["batch"], row["keep"]) for row in rows] == [
        (name, batch, keep) for keep in (16, 80) for batch in (1, 2) for name in ("fastv", "vispruner")
    ]
    assert all(row["official"]["median"] > 0 and row["ratio"] > 0 for row in rows)


def test_every_method_with_a_golden_has_a_loop() -> None:
    from vtprune.registry import pruner_classes

    assert {name for name, cls in pruner_classes().items() if cls.golden} == set(OFFICIAL)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OFFICIAL)
def test_on_the_gpu(name: str) -> None:
    loaded = model(False).to("cuda")
    try:
        inputs = {key: value.cuda() for key, value in random_prompts(loaded, 2, 20, pixels(False, 2)).items()}
        pruner = vtprune.make_pruner(name, **({"window": 2} if name == "vscan" else {}))
        row = measure(loaded, pruner, inputs, KEEP, repeats=2, warmup=1)
    finally:
        loaded.to("cpu")
    assert not row.notes
    assert row.captured is not None
