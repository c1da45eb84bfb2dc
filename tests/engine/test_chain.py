"""Methods one after another under one budget, and methods that set their own count."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tiny
import torch

import vtprune
from vtprune.adapters.conformance import oracle_error
from vtprune.chain import Chain
from vtprune.layout import grid_layout
from vtprune.pruner import Depths
from vtprune.registry import make_pruner, pruner_classes

FIRST = "divprune"
ADAPTIVE = [name for name, cls in pruner_classes().items() if cls().is_adaptive]


def can_follow(name: str) -> bool:
    return not make_pruner(name).whole_images


@pytest.mark.parametrize("name", vtprune.list_pruners())
@torch.no_grad()
def test_every_method_follows_another_or_says_why_not(name: str) -> None:
    model: Any = tiny.tiny_llava()
    pruner = make_pruner(name).fit(Depths(6, 3))
    if pruner.whole_images:
        with pytest.raises(ValueError, match=re.escape(f"{pruner.name} needs whole images")):
            make_pruner([FIRST, name])
        return
    chain = make_pruner([FIRST, name])
    made = tiny.prompt([1, 1], padding="left")
    options = tiny.question_side(name)
    assert oracle_error(model, made, (), "pack", pruner=chain, keep=0.25, options=options) < 1e-4
    with vtprune.pruning(model, chain, 9, **options):
        model(**made)
        stages = vtprune.report(model).stages
    assert stages[0].after == 2 * chain.fit(Depths(6, 3)).schedule(36, chain.attainable(grid_layout(6, 6), 9))[0]
    assert stages[-1].after in (0, 18)


@torch.no_grad()
def test_chain_of_three_runs_in_order() -> None:
    model: Any = tiny.tiny_llava()
    made = tiny.prompt([1, 1], padding="left")
    chain = make_pruner(["visionzip", "divprune", vtprune.FastV(layer=3)])
    assert chain.name == "visionzip/divprune/fastv"
    assert chain.layers == (0, 0, 3)
    assert oracle_error(model, made, (), "pack", pruner=chain, keep=0.2, use_cache=True) < 1e-4
    with vtprune.pruning(model, ["visionzip", "divprune", vtprune.FastV(layer=3)], 8):
        model(**made)
        report = vtprune.report(model)
    assert [(stage.layer, stage.before, stage.after) for stage in report.stages] == [
        (0, 72, 44),
        (0, 44, 26),
        (3, 26, 16),
    ]
    assert report.pruner == "visionzip/divprune/fastv"


@torch.no_grad()
def test_a_chain_equals_its_parts() -> None:
    """What the chain keeps is what its second method keeps of what the first one left."""
    model: Any = tiny.tiny_llava()
    made = tiny.prompt([1])
    with vtprune.pruning(model, ["divprune", "random"], 4):
        model(**made)
        first, second = (stage.images[0][0] for stage in vtprune.report(model).stages)
    with vtprune.pruning(model, "divprune", 12):
        model(**made)
        assert torch.equal(vtprune.report(model).stages[0].images[0][0], first)
    assert len(first) == 12
    assert set(second.tolist()) <= set(first.tolist())


def test_joint_budgets() -> None:
    chain = make_pruner("divprune/fastv")
    assert chain.schedule(576, 16) == (96, 16)
    assert Chain(chain.pruners, shares=(3.0,)).schedule(576, 16) == (48, 16)  # type: ignore[attr-defined]
    assert Chain(chain.pruners, shares=(3.0,)).schedule(576, 400) == (576, 400)  # type: ignore[attr-defined]
    dropping = make_pruner("divprune/vtw")
    assert dropping.schedule(576, 64) == (64, 0)
    assert dropping.attainable(grid_layout(24, 24), 64) == 64
    assert chain.config()["pruners"][1] == {"name": "fastv", "layer": 2}


@torch.no_grad()
def test_average_of_a_chain_is_met() -> None:
    model: Any = tiny.tiny_llava()
    with vtprune.pruning(model, ["divprune", "fastv"], vtprune.Budget(average=9)):
        model(**tiny.prompt([1]))
        report = vtprune.report(model)
    assert 8 < report.average_tokens <= 9
    assert len(report.stages) == 2


@pytest.mark.parametrize(
    ("parts", "options", "error", "message"),
    [
        (["divprune"], {}, ValueError, "two methods or more"),
        ([], {}, ValueError, "two methods or more"),
        (["fastv", "divprune"], {}, ValueError, "divprune prunes before layer 0, in front of fastv at layer 2"),
        (["divprune", "nonsense"], {}, ValueError, "unknown pruner 'nonsense'"),
        (["divprune", 3], {}, TypeError, "got 3"),
        (["m3", "fastv"], {}, ValueError, "m3 cannot keep any given number"),
        (["vtw", "vtw"], {}, ValueError, "vtw cannot keep any given number"),
        (["divprune", "fastv"], {"shares": (0.5,)}, ValueError, "shares must be 1 or more"),
        (["divprune", "fastv"], {"shares": (1.0, 2.0)}, ValueError, "one number for each of the first 1"),
    ],
)
def test_refusals(parts: list[Any], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_pruner(parts, **options)


def test_two_stages_before_one_layer_cannot_both_look_behind() -> None:
    with pytest.raises(ValueError, match="give one of them another layer"):
        vtprune.wrap(tiny.tiny_llava(), ["fastv", "entropyprune"], 9)


def test_there_are_adaptive_methods() -> None:
    assert {"prumerge", "trim"} <= set(ADAPTIVE)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("name", ADAPTIVE)
@torch.no_grad()
def test_adaptive_counts_equal_masked(family: str, name: str) -> None:
    model: Any = tiny.tiny_llava_next() if family == "llava_next" else tiny.tiny_llava()
    made = tiny.anyres_prompt([(40, 90), (48, 48)], model) if family == "llava_next" else tiny.prompt([1, 1, 1])
    options = tiny.question_side(name)
    budget: Any = vtprune.Budget(adaptive=True)
    pruner = make_pruner(name)
    for positions in ("keep", "pack"):
        error = oracle_error(model, made, (), positions, keep=budget, pruner=pruner, options=options, use_cache=True)
        assert error < 1e-4
    with vtprune.pruning(model, name, "adaptive", **options):
        model(**made)
        together = vtprune.report(model)
        rows = len(made["input_ids"])
        for row in range(rows):
            (kept,) = together.stages[-1].images[row]
            assert 1 <= len(kept) <= together.layouts[row][0].tokens
            assert len(kept.unique()) == len(kept)
        assert "finds right" in str(together.budget)
        if family == "llava":
            for row in range(rows):
                alone = {key: value[row : row + 1] for key, value in made.items()}
                model(**alone)
                assert torch.equal(vtprune.report(model).stages[-1].images[0][0], together.stages[-1].images[row][0])


def test_methods_without_a_count_refuse_adaptive_budgets() -> None:
    with pytest.raises(ValueError, match="divprune has no token count of its own"):
        vtprune.wrap(tiny.tiny_llava(), "divprune", "adaptive")
