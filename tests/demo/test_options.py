from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import vtprune
from vtprune.chain import Chain
from vtprune.demo.options import OptionError, build, fields, from_text, to_text
from vtprune.registry import pruner_classes


@pytest.mark.parametrize("name", list(pruner_classes()))
def test_every_method_has_a_form_that_gives_it_back(name: str) -> None:
    cls = pruner_classes()[name]
    form = fields(name)
    assert [field.name for field in form] == [field.name for field in dataclasses.fields(cls)]
    for field in form:
        assert field.help, f"the docstring of {name} does not speak of {field.name}"
        assert field.read(field.show(field.default)) == field.default
    assert build([name], {name: {field.name: field.show(field.default) for field in form}}) == cls()


def test_ranges_are_those_of_the_docstring() -> None:
    found = {(name, field.name): field.range for name in pruner_classes() for field in fields(name)}
    assert found["visionzip", "contextual"] == "in [0, 1]"
    assert found["cdpruner", "theta"] == "in [0, 1)"
    assert found["fastv", "layer"] == found["feather", "stride"] == found["dart", "image_pivots"] == "1 or more"
    assert found["scope", "sharpness"] == "above 0"
    assert found["holov", "rank_by"] == "attention or score"
    assert found["hiprune", "parity"] == ""


@pytest.mark.parametrize("name", list(pruner_classes()))
def test_what_lies_outside_the_shown_range_is_refused_by_the_method_too(name: str) -> None:
    """A range that the form invents would keep visitors from what the method can do."""
    for field in fields(name):
        if field.kind not in ("integer", "number") or field.low is None:
            continue
        below = field.low if field.open_low else field.low - 1
        with pytest.raises(ValueError, match=field.name):
            vtprune.make_pruner(name, **{field.name: int(below) if field.kind == "integer" else below})
        if field.high is not None:
            above = field.high if field.open_high else field.high + 1
            with pytest.raises(ValueError, match=field.name):
                vtprune.make_pruner(name, **{field.name: above})


@pytest.mark.parametrize(
    ("name", "option", "value", "words"),
    [
        ("visionzip", "contextual", 1.5, r"contextual must be in \[0, 1\], got 1.5"),
        ("visionzip", "contextual", "much", "contextual must be a number, got 'much'"),
        ("visionzip", "contextual", "nan", "must be a number"),
        ("cdpruner", "theta", 1, r"theta must be in \[0, 1\), got 1"),
        ("fastv", "layer", 0, "layer must be 1 or more, got 0"),
        ("fastv", "layer", 2.5, "layer must be a whole number, got 2.5"),
        ("holov", "rank_by", "luck", "rank_by must be attention or score, got 'luck'"),
        ("hiprune", "parity", "perhaps", "parity must be yes or no"),
        ("pyramiddrop", "stages", "2, x", "stages must be numbers with commas"),
        ("pyramiddrop", "stages", "4, 2", r"stages must ascend, got \(4, 2\)"),
        ("random", "seed", -1, "seed"),
        ("fastv", "depth", 1, "fastv has no option 'depth'"),
    ],
)
def test_what_cannot_be_is_said(name: str, option: str, value: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        build([name], {name: {option: value}})


def test_entries_become_values() -> None:
    assert build(["pyramiddrop"], {"pyramiddrop": {"stages": "2, 4"}}) == vtprune.PyramidDrop(stages=(2, 4))
    assert build(["pyramiddrop"], {"pyramiddrop": {"stages": "(3,)"}}) == vtprune.PyramidDrop(stages=(3,))
    assert build(["pyramiddrop"], {"pyramiddrop": {"stages": " "}}) == vtprune.PyramidDrop()
    assert build(["fastv"], {"fastv": {"layer": "3"}}) == vtprune.FastV(layer=3)
    assert build(["fastv"], {"fastv": {"layer": ""}}) == vtprune.FastV()


def test_several_names_make_a_chain() -> None:
    chain = build(["divprune", "fastv"], {"fastv": {"layer": 3}})
    assert isinstance(chain, Chain)
    assert to_text(chain) == "divprune/fastv(layer=3)"
    assert from_text(to_text(chain)) == (["divprune", "fastv"], {"fastv": {"layer": 3}})
    with pytest.raises(OptionError, match="put divprune first"):
        build(["fastv", "divprune"])
    with pytest.raises(OptionError, match="Pick a method"):
        build([])


def test_text_that_is_no_method() -> None:
    for text in ("nothing", "fastv(", "fastv(layer=0)", ""):
        with pytest.raises(OptionError):
            from_text(text)
