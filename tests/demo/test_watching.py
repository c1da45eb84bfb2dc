from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vtprune
from vtprune.demo.watching import Watch, Watched, watched
from vtprune.eval.compare import chat_inputs
from vtprune.eval.models import LoadedModel, load
from vtprune.pruner import Pruner
from vtprune.registry import make_pruner, pruner_classes
from vtprune.reporting import Report

TOKENS = 36


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    return load(str(tiny_folder), device="cpu")


@pytest.fixture(scope="module")
def inputs(loaded: LoadedModel) -> Any:
    rng = np.random.default_rng(2)
    pictures = [Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(2)]
    return chat_inputs(loaded, pictures, "what color is")


def prefill(loaded: LoadedModel, inputs: Any, method: Pruner, budget: int = 9) -> tuple[torch.Tensor, Report]:
    model: Any = loaded.model
    with vtprune.pruning(model, method, budget, processor=loaded.processor), torch.no_grad():
        logits = model(**inputs).logits
        return logits, vtprune.report(model)


def seen_by(loaded: LoadedModel, inputs: Any, method: Pruner, budget: int = 9) -> list[list[Watched]]:
    """For each stage what was seen of each picture."""
    watch = Watch()
    _, report = prefill(loaded, inputs, watched(method, watch), budget)
    return [
        [watch.find(number, tokens.tolist()) for tokens in stage.images[0]]
        for number, stage in enumerate(report.stages)
    ]


# A tiny model has no CLIP beside it.
METHODS = [name for name, cls in pruner_classes().items() if vtprune.Signal.CLIP_TEXT not in cls.signals]


@pytest.mark.parametrize("name", [*METHODS, "divprune/fastv"])
def test_watching_changes_nothing(loaded: LoadedModel, inputs: Any, name: str) -> None:
    plain, report = prefill(loaded, inputs, make_pruner(name))
    other, seen = prefill(loaded, inputs, watched(make_pruner(name), Watch()))
    assert torch.equal(plain, other)
    assert report.config == seen.config
    assert str(report) == str(seen)


def test_scores_are_what_tokens_are_chosen_by(loaded: LoadedModel, inputs: Any) -> None:
    for picture in seen_by(loaded, inputs, make_pruner("fastv"))[0]:
        assert sorted(picture.scores) == list(range(TOKENS))
        best = sorted(picture.scores, key=lambda token: -picture.scores[token])[:9]
        assert tuple(sorted(best)) == picture.kept


def test_scores_of_a_later_stage_are_of_the_tokens_that_were_left(loaded: LoadedModel, inputs: Any) -> None:
    first, second, *_ = seen_by(loaded, inputs, make_pruner("pyramiddrop"))
    for before, after in zip(first, second, strict=True):
        assert set(after.scores) == set(before.kept)
        assert set(after.kept) < set(before.kept)


def test_methods_without_scores_have_none(loaded: LoadedModel, inputs: Any) -> None:
    for name in ("divprune", "stride"):
        assert all(not picture.scores for picture in seen_by(loaded, inputs, make_pruner(name))[0])


def test_groups_of_pooling_are_its_squares(loaded: LoadedModel, inputs: Any) -> None:
    for picture in seen_by(loaded, inputs, make_pruner("pool"))[0]:
        assert len(picture.owners) == TOKENS
        by_owner: dict[int, set[tuple[int, int]]] = {}
        for token, owner in picture.owners.items():
            by_owner.setdefault(owner, set()).add((token // 6 // 2, token % 6 // 2))
        assert sorted(by_owner) == list(picture.kept)
        assert all(len(squares) == 1 for squares in by_owner.values())


@pytest.mark.parametrize("name", ["tome", "visionzip", "prumerge"])
def test_groups_of_merging_methods(loaded: LoadedModel, inputs: Any, name: str) -> None:
    for picture in seen_by(loaded, inputs, make_pruner(name))[0]:
        assert set(picture.owners.values()) <= set(picture.kept)
        assert len(picture.owners) > len(picture.kept)


def test_methods_that_drop_have_no_groups(loaded: LoadedModel, inputs: Any) -> None:
    assert all(not picture.owners for picture in seen_by(loaded, inputs, make_pruner("fastv"))[0])


def test_a_closed_watch_sees_nothing(loaded: LoadedModel, inputs: Any) -> None:
    watch = Watch()
    watch.close()
    _, report = prefill(loaded, inputs, watched(make_pruner("fastv"), watch))
    kept = report.stages[0].images[0][0].tolist()
    assert watch.find(0, kept) == Watched(tuple(kept))
