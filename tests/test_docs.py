"""The tables that `python -m vtprune.docs` writes from a sweep's results."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import transformers

from vtprune.docs import (
    METHODS,
    MODELS,
    README,
    kinds_table,
    pruner_table,
    replace_block,
    sweep_page,
    sweep_table,
)
from vtprune.docs import RECORDS as MODEL_RECORDS
from vtprune.method_docs import methods_page, option_text, presets_table, published
from vtprune.model_docs import family_list, models_page, supported
from vtprune.registry import list_pruners, pruner_classes


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


def test_sweep_page_says_what_loses_to_random() -> None:
    budget = "64 tokens per image"
    records = [{**RECORDS[0], "n": 400, "versions": {"vtprune": "1", "torch": "2", "transformers": "5"}}]
    records += [record(name, budget, value, 64, 64) for name, value in (("random", 0.7), ("fastv", 0.6), ("pool", 0.9))]
    records += [record("stride", budget, 0.71, 64, 64)]
    page = sweep_page(records)
    assert "* loses: `fastv` (-10.0)" in page
    assert "* no clear difference: `stride` (+1.0)" in page
    assert "* wins: `pool` (+20.0)" in page
    assert "torch 2" in page


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
