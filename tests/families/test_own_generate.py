"""Models with a `generate` of their own, which goes around their forward: it prunes as well, also with beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from zoo import common

import vtprune
from vtprune.adapters.conformance import ScatteredPruner

NAMES = sorted({"blip-2", "instructblip", "instructblipvideo"} & set(common.model_types()))
SETTINGS: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_generate_prunes(name: str, beams: int) -> None:
    module = common.load(name)
    call: Any = common.build(name)
    inputs = module.inputs(call, [[common.picture(*size, seed=seed)] for seed, size in enumerate(module.SIZES)])
    settings = SETTINGS | {"num_beams": beams, "suppress_tokens": list(common.MARKS)}
    with vtprune.pruning(call, ScatteredPruner(), 5):
        made = call.generate(**inputs, **settings)
        kept = vtprune.report(call).stages[0].images
    assert [[len(image) for image in row] for row in kept] == [[5]] * len(module.SIZES) * beams
    assert made.shape == (len(module.SIZES), inputs["input_ids"].shape[1] + 3)
    assert "generate" not in call.__dict__


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_first_new_word_is_that_of_a_forward_pass(name: str) -> None:
    module = common.load(name)
    call: Any = common.build(name)
    inputs = module.inputs(call, [[common.picture(*size, seed=seed)] for seed, size in enumerate(module.SIZES)])
    settings = SETTINGS | {"suppress_tokens": list(common.MARKS)}
    with vtprune.pruning(call, ScatteredPruner(), 5):
        made = call.generate(**inputs, **settings)
        logits = call(**inputs).logits[:, -1, : common.MARKS.start].clone()
    # Token 2 ends a prompt, which generation keeps from here.
    logits[:, common.EOS] = -torch.inf
    assert torch.equal(made[:, inputs["input_ids"].shape[1]], logits.argmax(-1))
