from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vtprune.budget import Budget
from vtprune.eval.grid import (
    DEFAULT_PRUNERS,
    EVERYTHING,
    Cell,
    budget_data,
    method_label,
    parse_budgets,
    parse_pruner,
    parse_pruners,
    split_words,
)
from vtprune.registry import list_pruners, make_pruner


def cell(**changes: Any) -> Cell:
    settings: dict[str, Any] = {
        "model": "embedded",
        "fingerprint": "0",
        "method": make_pruner("fastv"),
        "budget": Budget(tokens=64),
        "positions": None,
        "task": "t",
        "task_digest": "1",
        "limit": None,
        "seed": 0,
        "dtype": "auto",
    }
    return Cell(**(settings | changes))


def test_no_pruner_named_means_a_selection_and_all_means_all() -> None:
    assert [method.name for method in parse_pruners([])] == list(DEFAULT_PRUNERS)
    assert [method.name for method in parse_pruners(["all"])] == list_pruners()
    assert [method.name for method in parse_pruners(["vtw,all"])] == ["vtw", *sorted({*list_pruners()} - {"vtw"})]


def test_chains_are_read_and_labelled() -> None:
    (chain,) = parse_pruners(["visionzip/fastv(layer=3)"])
    assert chain.name == "visionzip/fastv"
    assert method_label(chain) == "visionzip/fastv(layer=3)"
    assert parse_pruner("sparsevlm+").name == "sparsevlm+"


def test_pruners_keep_their_order_and_options() -> None:
    methods = parse_pruners(["stride, fastv(layer=3)", "random"], seed=7)
    assert [method_label(method) for method in methods] == ["stride", "fastv(layer=3)", "random"]
    assert methods[2].config()["seed"] == 7


def test_a_named_seed_wins() -> None:
    assert parse_pruner("random(seed=5)", seed=7).config()["seed"] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fastvv", "did you mean 'fastv'"),
        ("fastv(layer)", "cannot read the options"),
        ("fastv(3)", "cannot read the options"),
        ("fastv(layer=__import__('os'))", "cannot read the options"),
        ("fastv(**{})", "cannot read the options"),
        ("fastv(layer=3", "is no pruner"),
        ("fastv(layer=-1)", "-1"),
    ],
)
def test_wrong_pruner(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pruner(text)


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match="no option depth"):
        parse_pruner("fastv(depth=3)")


def test_budgets() -> None:
    assert parse_budgets(["64,0.25", "full", "average:64"]) == [
        Budget(tokens=64),
        Budget(ratio=0.25),
        Budget(average=64),
    ]
    assert budget_data(Budget(tokens=64)) == {"tokens": 64, "per": "image", "convention": "true"}


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "nan", "many", "tokens:0.5"])
def test_wrong_budget(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse_budgets([text])


def test_words() -> None:
    assert split_words(["a,b(x=1,y=2),", "a", " c "]) == ["a", "b(x=1,y=2)", "c"]


def test_key_is_stable_and_depends_on_everything() -> None:
    base = cell()
    assert base.key == cell().key
    others = {
        "model": "other",
        "fingerprint": "9",
        "method": make_pruner("fastv", layer=3),
        "budget": Budget(tokens=32),
        "positions": "keep",
        "task": "u",
        "task_digest": "2",
        "limit": 5,
        "seed": 1,
        "dtype": "float32",
    }
    assert set(others) == {field.name for field in dataclasses.fields(Cell)}
    keys = [cell(**{name: value}).key for name, value in others.items()]
    assert len({base.key, *keys}) == len(others) + 1


def test_full_cell() -> None:
    full = cell(method=None, budget=EVERYTHING)
    assert (full.pruner, full.label, full.options) == ("full", "full", {})
