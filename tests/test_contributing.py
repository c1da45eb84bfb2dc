"""The method and the family that CONTRIBUTING.md writes out work as they stand there."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import vtprune
from vtprune import registry
from vtprune.adapters.conformance import oracle_error
from vtprune.method_docs import methods_page

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example() -> str:
    block = TEXT.split("<!-- begin: example -->\n```python\n")[1]
    return block.split("```\n<!-- end: example -->")[0]


@pytest.fixture
def name(tmp_path: Path) -> Iterator[str]:
    """Imports the example as a module of its own, and forgets it again."""
    vtprune.list_pruners()
    known = dict(registry._REGISTRY)
    path = tmp_path / "example_method.py"
    path.write_text(example(), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("example_method", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["example_method"] = module
    try:
        spec.loader.exec_module(module)
        (added,) = set(registry._REGISTRY) - set(known)
        yield added
    finally:
        registry._REGISTRY.clear()
        registry._REGISTRY.update(known)
        del sys.modules["example_method"]


def test_it_is_short() -> None:
    lines = [line for line in example().splitlines() if line.strip()]
    assert len(lines) < 40


@torch.no_grad()
def test_it_runs_by_name(name: str) -> None:
    model: Any = tiny.tiny_llava()
    made = tiny.prompt([1, 1], padding="left")
    assert name in vtprune.list_pruners()
    assert oracle_error(model, made, (), "keep", pruner=vtprune.make_pruner(name)) < 1e-4
    with vtprune.pruning(model, name, 9, order=1.0):
        model(**made)
        report = vtprune.report(model)
    assert [len(row[0]) for row in report.stages[0].images] == [9, 9]
    with pytest.raises(ValueError, match="order must be above 0 and finite, got -1"):
        vtprune.make_pruner(name, order=-1)


def test_documents_would_show_it(name: str) -> None:
    page = methods_page()
    assert f"### {name}" in page
    assert "Of the norm that distance is measured in, above 0." in page


def test_the_family_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import common

    from vtprune.adapters import check_adapter, find_adapter
    from vtprune.adapters import registry as families

    text = TEXT.split("<!-- begin: family -->\n```python\n")[1].split("```\n<!-- end: family -->")[0]
    monkeypatch.setattr(families, "_ADAPTERS", dict(families._ADAPTERS))
    names: dict[str, Any] = {"__name__": "example_family"}
    exec(compile(text, "example_family", "exec"), names)
    cls = names["PaliGemmaLikeAdapter"]
    families._ADAPTERS["paligemma"] = cls
    model = common.build("paligemma")
    assert type(find_adapter(model)) is cls
    module = common.load("paligemma")
    rows = [[common.picture(height, width)] for height, width in module.SIZES]
    inputs, alone = common.together_and_alone(module, model, rows)
    check_adapter(model, inputs=inputs, alone=alone, suppress_tokens=common.MARKS)
    with pytest.raises(ValueError, match="out of reach"):
        vtprune.wrap(model, "fastv", vtprune.Budget(average=2))
