"""The tables that `python -m vtprune.docs` writes from a sweep's results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from made_results import make_results

from vtprune.docs import (
    METHODS,
    MODELS,
    README,
    pruner_table,
    replace_block,
)
from vtprune.docs import RECORDS as MODEL_RECORDS
from vtprune.eval.analysis import read_folder
from vtprune.method_docs import methods_page, option_text, presets_table, published
from vtprune.model_docs import family_list, models_page, supported
from vtprune.registry import list_pruners, pruner_classes
from vtprune.result_docs import kinds_table, result_blocks, sweep_table


def record(label: str, budget: str, value: float, kept: float, average: float, status: str = "done") -> dict[str, Any]:
    return {
        "label": label,
        "budget_meaning": budget,
        "status": status,
        "value": value,
        "standard_error": 0.01,
        "tokens_kept": kept,
        "average_tokens": average,
        "kinds": {"color": {"value": value}, "word": {"value": 1.0}},
    }


RECORDS = [
    record("full", "all tokens", 0.9, 576, 576),
    record("pool", "64 tokens per image", 0.8, 64, 64),
    record("fastv", "64 tokens per image", 0.7, 64, 192),
    record("fastv", "32 tokens per image", 0.1, 32, 168, status="failed"),
]


def test_sweep_table_shows_finished_cells_and_true_averages() -> None:
    assert sweep_table(RECORDS).splitlines() == [
        "| method | 64 tokens per image |",
        "|---|--:|",
        "| full model, 576 tokens | 90.0 ± 1.0 |",
        "| `pool` | 80.0 ± 1.0 (64) |",
        "| `fastv` | 70.0 ± 1.0 (192 on average) |",
    ]


def test_sweep_table_needs_the_full_model() -> None:
    with pytest.raises(ValueError, match="full model"):
        sweep_table(RECORDS[1:])


def test_kinds_table_takes_one_budget() -> None:
    assert kinds_table(RECORDS, "64 tokens per image").splitlines() == [
        "| 64 tokens per image | color | word |",
        "|---|--:|--:|",
        "| `full` | 90 | 100 |",
        "| `pool` | 80 | 100 |",
        "| `fastv` | 70 | 100 |",
    ]


LEVEL_VALUES = {"easy": 0.9, "middle": 0.6, "hard": 0.3}
BUDGETS = ("64 tokens per image", "32 tokens per image")


def test_results_are_means_over_tasks_and_differences_from_random_at_the_same_true_tokens(tmp_path: Path) -> None:
    def score(label: str, tokens: float, seed: int, question: int) -> float:
        # FastV keeps 64 behind layer 2 of 8, which is 192 on average; random with 192 answers half, with 64 a quarter.
        right = {"full": 40, "fastv": 30, "random": {192: 20, 64: 10, 32: 0}.get(int(tokens), 0), "divprune": 20}
        return float(question < right.get(label, 0))

    tasks = ("vtprune_scenes", "vtprune_count")
    make_results(tmp_path, ("random", "divprune"), (192, 64, 32), tasks=tasks, score=score)
    make_results(tmp_path, ("fastv",), (64, 32), tasks=tasks, score=score, full=False)
    blocks = result_blocks(read_folder(tmp_path), budgets=BUDGETS, detail=BUDGETS[0])
    assert "| full model, all tokens | 100.0 | 100.0 |" in blocks["mean"]
    assert "| `random` | 25.0 (64) | 0.0 (32) |" in blocks["mean"]
    assert "| `fastv` | 75.0 (192) | 75.0 (168) |" in blocks["mean"]
    assert "`random`" not in blocks["random"]
    rows = {line.split("`")[1]: line for line in blocks["random"].splitlines() if "`" in line}
    assert rows["divprune"].startswith("| `divprune` | **+25.0 ± ")
    assert rows["divprune"].split("|")[3].strip().startswith("**+50.0")
    assert rows["fastv"].startswith("| `fastv` | **+25.0 ± ")
    assert rows["fastv"].split("|")[3] == "  "
    assert "| full model | 576 | 100.0 | 100.0 |" in blocks["tasks"]
    assert "| `fastv` | 192 | 75.0 | 75.0 |" in blocks["tasks"]
    assert blocks["run"].startswith("30 cells, 80 questions a method and budget")
    # One budget or the full model: 64 tokens suffice for 30 questions, 576 for the others.
    assert "| `fastv` | 270 | 100.0 |" in blocks["needs"]


def test_levels_are_those_of_the_metrics(tmp_path: Path) -> None:
    metrics = {
        "exact_match": {"value": 0.5},
        **{f"exact_match_{name}": {"value": v} for name, v in LEVEL_VALUES.items()},
    }
    make_results(tmp_path, ("random",), (64,), metrics=metrics)
    blocks = result_blocks(read_folder(tmp_path), budgets=BUDGETS[:1], detail=BUDGETS[0])
    assert "| `random` | 90.0 | 60.0 | 30.0 |" in blocks["levels"]


def test_results_need_the_full_model_and_random(tmp_path: Path) -> None:
    make_results(tmp_path, ("divprune",), (64,))
    with pytest.raises(ValueError, match="lack the full model or random"):
        result_blocks(read_folder(tmp_path), budgets=BUDGETS, detail=BUDGETS[0])


def test_replace_block_needs_its_marks() -> None:
    text = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n"
    assert replace_block(text, "x", "new") == "a\n<!-- begin: x -->\nnew\n<!-- end: x -->\nb\n"
    with pytest.raises(ValueError, match="begin: y"):
        replace_block(text, "y", "new")


def test_the_written_pages_are_those_of_the_registry() -> None:
    assert METHODS.read_text(encoding="utf-8") == methods_page(), "run python -m vtprune.docs"
    readme = README.read_text(encoding="utf-8")
    assert replace_block(readme, "pruners", pruner_table()) == readme, "run python -m vtprune.docs"


def test_the_page_of_models_is_that_of_the_records() -> None:
    records = json.loads(MODEL_RECORDS.read_text(encoding="utf-8"))
    assert MODELS.read_text(encoding="utf-8") == models_page(records), "run python -m vtprune.docs"
    readme = README.read_text(encoding="utf-8")
    assert replace_block(readme, "models", family_list(records)) == readme, "run python -m vtprune.docs"


def test_the_records_cover_every_model_type() -> None:
    """Each image-text-to-text type of the recorded release is there; what passes has a tiny model that tests run."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    from zoo import common

    records = json.loads(MODEL_RECORDS.read_text(encoding="utf-8"))
    if records["environments"]["cpu"]["transformers"] == transformers.__version__:
        assert set(records["types"]) == set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    passing = supported(records)
    assert len(passing) >= 60
    known = {name for name in common.model_types() if hasattr(common.load(name), "inputs")}
    assert set(passing) & set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) <= known
    for name, record in records["types"].items():
        here = record["environments"]["cpu"]
        assert name in passing or here.get("refused"), name


def test_a_failed_run_is_no_support() -> None:
    about = {"class": "A", "adapter": "generic", "kinds": ["image"], "merge": 1, "cls": False, "recurrent": False}
    about |= {"windows": False, "experts": False, "last_stage": False, "missing": {}, "methods": {"fastv": "runs"}}
    runs = {"sdpa": {"error": 1e-6, "limits": []}, "eager": {"failed": "AssertionError: off by 3"}}
    environment = {"transformers": "5", "torch": "2", "device": "cpu"}
    types: dict[str, Any] = {"a": {"about": about, "environments": {"cpu": {"runs": runs}}}}
    records = {"environments": {"cpu": environment}, "types": types}
    assert supported(records) == []
    assert "| `a` | eager: AssertionError: off by 3 |" in models_page(records)
    runs["eager"] = {"error": 2e-6, "limits": []}
    assert supported(records) == ["a"]
    assert "| `a` | generic | images | received | plain | - | sdpa, eager (2e-06) |" in models_page(records)


def test_every_published_figure_names_a_method_and_its_source() -> None:
    rows = published()
    assert {row["method"] for row in rows} <= {"", *list_pruners()}
    assert all(row["source"] for row in rows)
    figures = [row[column] for row in rows for column in row if column not in ("method", "row", "source", "note")]
    assert all(float(figure) > 0 for figure in figures if figure)
    assert "CDPruner" in methods_page()


def test_every_option_is_explained() -> None:
    """A field that the docstring does not tell of would leave a cell of the page empty."""
    for name, cls in pruner_classes().items():
        for field in dataclasses.fields(cls):
            assert option_text(cls, field.name), f"{name}: {field.name}"


def test_presets_are_named_after_their_means() -> None:
    for line in presets_table().splitlines()[2:]:
        name, named, _, _, nominal, true = (cell.strip() for cell in line.strip("|").split("|"))
        assert min(abs(float(named) - float(mean)) for mean in (nominal, true)) < 1.1, name


def test_presets_hold_for_the_layers_of_their_tables_alone() -> None:
    for name, cls in pruner_classes().items():
        for average, keep in cls.presets.items():
            pruner = cls.with_presets()
            assert pruner.preset(average, 576, 32) == keep
            assert pruner.preset(average, 577, 32) is None
            assert pruner.preset(average, 576, 28) is None
            assert pruner.preset_layers == pruner.layers, name
