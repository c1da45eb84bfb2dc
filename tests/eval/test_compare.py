from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vtprune
from vtprune.budget import Budget
from vtprune.eval.compare import compare
from vtprune.eval.models import LoadedModel, load
from vtprune.registry import make_pruner


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    return load(str(tiny_folder), device="cpu")


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_both_runs(loaded: LoadedModel) -> None:
    found = compare(
        loaded, noise(48, 48), "what color is", make_pruner("fastv", layer=3), Budget(tokens=9), max_new_tokens=3
    )
    assert (found.full.tokens, found.full.average_tokens) == (36, 36)
    assert (found.pruned.tokens, found.pruned.average_tokens) == (9, (3 * 36 + 3 * 9) / 6)
    assert found.pruned.prefill_flops < found.full.prefill_flops
    assert found.pruned.kv_bytes < found.full.kv_bytes
    assert len(found.kept) == 9
    assert found.method == "fastv(layer=3)"
    assert json.loads(json.dumps(found.to_dict()))["pruned"]["tokens"] == 9
    with pytest.raises(ValueError, match="is not wrapped"):
        vtprune.unwrap(loaded.model)


def test_seen_picture_is_what_the_encoder_got(loaded: LoadedModel) -> None:
    square = compare(loaded, noise(48, 48), "where", make_pruner("stride"), Budget(tokens=9), max_new_tokens=1)
    assert np.abs(np.asarray(square.seen).astype(int) - np.asarray(noise(48, 48))).max() <= 1
    wide = compare(loaded, noise(96, 48), "where", make_pruner("stride"), Budget(tokens=9), max_new_tokens=1)
    middle = np.asarray(noise(96, 48))[:, 24:72]
    assert np.abs(np.asarray(wide.seen).astype(int) - middle).max() <= 1


def test_budget_that_keeps_everything(loaded: LoadedModel) -> None:
    found = compare(loaded, noise(48, 48), "where", make_pruner("divprune"), Budget(tokens=99), max_new_tokens=3)
    assert found.pruned.answer == found.full.answer
    assert found.kept == list(range(36))
