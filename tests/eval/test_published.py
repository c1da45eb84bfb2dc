from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from made_results import make_results

from vtprune.eval.analysis import Section, read_folder
from vtprune.eval.embedded import MODEL_DIR
from vtprune.eval.models import EMBEDDED, fingerprint
from vtprune.eval.published import BENCHMARKS, matches, unmatched_reason
from vtprune.method_docs import published

LLAVA = "llava-hf/llava-1.5-7b-hf"


def section(folder: Path, methods: tuple[str, ...] = ("divprune",), **changes: Any) -> Section:
    make_results(
        folder,
        methods,
        (64,),
        **{"model": LLAVA, "tasks": ("gqa",), "metrics": {"exact_match": {"value": 0.55}}, **changes},
    )
    return read_folder(folder).sections[0]


def test_same_model_task_and_tokens(tmp_path: Path) -> None:
    found = matches(section(tmp_path))
    assert [(match.entry.label, match.row, match.tokens, match.published) for match in found] == [
        ("full", "full model", 576, 61.9),
        ("divprune", "DivPrune re-run", 64, 57.1),
    ]
    assert found[1].reproduced == pytest.approx(55)
    assert found[1].gap == pytest.approx(-2.1)
    assert found[1].benchmark == "GQA"
    assert "RESTORE" in found[1].source


def test_two_metrics_make_one_figure(tmp_path: Path) -> None:
    parts = {
        name: {"value": value} for name, value in (("mme_perception_score", 1400.0), ("mme_cognition_score", 250.5))
    }
    found = matches(section(tmp_path, ("cdpruner", "fastv"), tasks=("mme",), metrics=parts, average_tokens=64.0))
    ours = {(match.row, match.benchmark): match.reproduced for match in found}
    assert ours["CDPruner", "MME (perception)"] == 1400
    assert ours["FastV re-run", "MME"] == 1650.5


def test_percentages_are_compared_as_such(tmp_path: Path) -> None:
    found = matches(section(tmp_path, tasks=("mmbench_en_dev_static",), metrics={"gpt_eval_score": {"value": 61.0}}))
    assert [(match.published, match.reproduced) for match in found] == [(64.7, 61.0), (60.2, 61.0)]


def test_tokens_are_true_ones_or_nominal(tmp_path: Path) -> None:
    """FastV at 38 tokens is what the tables call 64: nominal on 32 layers, one of which is counted short."""
    true = (2 * 576 + 30 * 46.1) / 32
    found = matches(section(tmp_path, ("fastv",), average_tokens=true, tokens_kept=46.0, layers=32, tokens_full=576.0))
    assert {match.counted for match in found if match.entry.label == "fastv"} == {"nominal"}
    assert {match.tokens for match in found if match.entry.label == "fastv"} == {64}


@pytest.mark.parametrize(
    "changes",
    [
        {"average_tokens": 100.0},
        {"tasks": ("vqav2_val",)},
        {"limit": 100},
        {"model": "llava-hf/llava-1.5-13b-hf"},
        {"model": "llava-hf/llava-v1.6-vicuna-7b-hf"},
        {"model": EMBEDDED},
    ],
)
def test_no_figure_for_anything_else(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = matches(section(tmp_path, **changes))
    assert [match for match in found if not match.entry.is_full or "average_tokens" not in changes] == []


def test_embedded_model_under_another_name(tmp_path: Path) -> None:
    folder = tmp_path / "llava-1.5-7b"
    shutil.copytree(MODEL_DIR, folder)
    assert matches(section(tmp_path / "results", model=str(folder), fingerprint=fingerprint(str(folder)))) == []


def test_nested_model_has_figures_of_its_own(tmp_path: Path) -> None:
    m3 = section(tmp_path / "a", ("m3", "divprune"), model="folder/llava-v1.5-7b-m3", average_tokens=36.0)
    assert {match.row for match in matches(m3)} == {"M3"}
    plain = section(tmp_path / "b", ("m3",), average_tokens=36.0)
    assert [match.row for match in matches(plain) if match.entry.label == "m3"] == []


def test_some_questions_are_not_all(tmp_path: Path) -> None:
    assert (
        unmatched_reason(section(tmp_path, limit=40))
        == "published figures are for all questions of gqa, not for 40 of them"
    )
    assert unmatched_reason(section(tmp_path / "all")) is None
    assert unmatched_reason(section(tmp_path / "embedded", limit=40, model=EMBEDDED)) is None


def test_benchmarks_are_columns_and_tasks_of_lmms_eval() -> None:
    spec = find_spec("lmms_eval")
    if spec is None or spec.origin is None:
        pytest.skip("lmms-eval is not installed")
    names = set()
    for path in (Path(spec.origin).parent / "tasks").rglob("*.yaml"):
        names |= set(
            re.findall(r"""^task:\s*["']?([\w.-]+)["']?\s*$""", path.read_text(encoding="utf-8"), re.MULTILINE)
        )
    columns = set(published()[0])
    for column, benchmark in BENCHMARKS.items():
        assert column in columns
        assert set(benchmark.tasks) <= names, column
