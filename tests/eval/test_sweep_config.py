"""Presets, YAML grids and the command line put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lmms_eval.tasks import TaskManager

from vtprune.eval.grid import parse_pruners
from vtprune.eval.sweep_config import PRESETS, SweepConfig, make_config, read_grid

GRID = """
preset: quick
models: [embedded, some/model]
pruners:
  - divprune
  - {name: fastv, layer: [2, 3]}
  - {name: pyramiddrop, stages: [[[2, 0.5], [4, 0.5]]]}
budgets: [192, 0.25, "average:64"]
seeds: 7
include: tasks
positions: keep
"""


def test_grid_file(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    config = make_config(None, read_grid(path), {})
    assert config.models == ("embedded", "some/model")
    assert config.pruners[:3] == ("divprune", "fastv(layer=2)", "fastv(layer=3)")
    assert config.pruners[3:] == ("pyramiddrop(stages=[[2, 0.5], [4, 0.5]])",)
    assert [method.layers for method in parse_pruners(config.pruners[1:3])] == [(2,), (3,)]
    assert config.budgets == ("192", "0.25", "average:64")
    assert config.tasks == PRESETS["quick"].tasks
    assert config.seeds == (7,)
    assert config.include == (tmp_path / "tasks",)
    assert config.positions == "keep"


def test_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    given = {"budgets": ("8",), "tasks": (), "limit": 3, "baselines": False, "positions": None}
    config = make_config("embedded", read_grid(path), given)
    assert config.budgets == ("8",)
    assert config.tasks == PRESETS["embedded"].tasks
    assert (config.limit, config.baselines, config.positions) == (3, False, "keep")
    assert make_config(None, {}, {}) == SweepConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- divprune", "must hold a mapping"),
        ("prunners: [divprune]", "unknown key 'prunners'"),
        ("pruners: [{layer: 2}]", "mappings with a name"),
        ("seeds: [1, two]", "seeds in .* must be a whole number, got 'two'"),
        ("limit: many", "limit in .* must be a whole number"),
        ("a: [", "is no YAML"),
    ],
)
def test_wrong_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_grid(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nightly", {}, {}), "preset must be one of embedded, quick, paper, video, got 'nightly'"),
        ((None, {"limit": 0}, {}), "limit must be at least 1"),
        ((None, {}, {"prefill_repeats": -1}), "prefill_repeats must be at least 0"),
    ],
)
def test_wrong_values_are_refused(arguments: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(*arguments)


def test_lmms_eval_has_the_tasks_of_the_presets() -> None:
    known = set(TaskManager(include_defaults=True).all_tasks)
    for name, preset in PRESETS.items():
        if name != "embedded":
            assert set(preset.tasks) <= known, name
