"""A conversation on one cache: pictures that come in a later turn are pruned as in one pass, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.test_families import model
from zoo import common

import vtprune
from vtprune.adapters.conformance import ScatteredPruner
from vtprune.engine.cache_names import CACHE

# One kind of decoder each: plain, windows, experts with chunks, short convolutions, linear attention without M-RoPE.
CAUSAL = ["idefics3", "aya_vision", "llama4", "lfm2_vl", "mistral3", "step3p7"]
BIDIRECTIONAL = ["gemma3"]


def turns(name: str) -> tuple[Any, list[Any], Any]:
    """The model, two turns with a picture each, and both turns in one prompt."""
    module, call = common.load(name), model(name)
    first, second = (common.picture(*size, seed=3) for size in module.SIZES[:2])
    parts = [module.inputs(call, [[first]], seed=1), module.inputs(call, [[second]], seed=2)]
    whole = module.inputs(call, [[first, second]], seed=1)
    whole |= {
        key: torch.cat([part[key] for part in parts], dim=1)
        for key in parts[0]
        if parts[0][key].shape == parts[0]["input_ids"].shape
    }
    return call, parts, whole


@pytest.mark.parametrize("positions", ["keep", "pack"])
@pytest.mark.parametrize("stages", [(0,), (1, 3)], ids=str)
@pytest.mark.parametrize("name", [name for name in CAUSAL if name in common.model_types()])
@torch.no_grad()
def test_two_turns_are_one_prompt(name: str, stages: tuple[int, ...], positions: Any) -> None:
    call, (first, second), whole = turns(name)
    with vtprune.pruning(call, ScatteredPruner(stages), 0.4, positions=positions):
        cache = getattr(call(**first, use_cache=True), CACHE)
        second["attention_mask"] = whole["attention_mask"]
        continued = call(**second, **{CACHE: cache}).logits
        together = call(**whole).logits
    torch.testing.assert_close(continued[:, -1], together[:, -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name in BIDIRECTIONAL if name in common.model_types()])
@torch.no_grad()
def test_pictures_seen_in_both_directions_are_refused_in_a_later_turn(name: str) -> None:
    call, (first, second), whole = turns(name)
    with vtprune.pruning(call, ScatteredPruner((1,)), 0.4):
        cache = getattr(call(**first, use_cache=True), CACHE)
        second["attention_mask"] = whole["attention_mask"]
        with pytest.raises(ValueError, match="attend to later ones"):
            call(**second, **{CACHE: cache})
