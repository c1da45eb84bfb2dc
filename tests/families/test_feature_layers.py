"""The layers that an adapter says feed the projector are those whose outputs it is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.test_families import TYPES, is_refused, model
from zoo import common

from vtprune.adapters import find_adapter


def seen_by(module: torch.nn.Module, inputs: bool, found: list[torch.Tensor]) -> Any:
    def take(_module: Any, given: tuple[Any, ...], output: Any) -> None:
        states = given[0] if inputs else output
        found.append((states if isinstance(states, torch.Tensor) else states[0]).flatten(0, -2).float())

    return module.register_forward_hook(take)


@pytest.mark.parametrize("name", TYPES)
@torch.no_grad()
def test_the_projector_is_given_what_the_feature_layers_put_out(name: str) -> None:
    if reason := is_refused(name):
        pytest.skip(reason)
    call: Any = model(name)
    vision = find_adapter(call).vision
    if vision.projector is None or len(vision.layers) < 2:
        pytest.skip("no projector that maps one row to one token")
    module = common.load(name)
    given: list[torch.Tensor] = []
    outputs: list[list[torch.Tensor]] = [[] for _ in vision.layers]
    handles = [seen_by(vision.projector, True, given)]
    handles += [seen_by(layer, False, found) for layer, found in zip(vision.layers, outputs, strict=True)]
    try:
        call(**module.inputs(call, [[common.picture(*module.SIZES[0])]]))
    finally:
        for handle in handles:
            handle.remove()
    width = outputs[0][0].shape[-1]
    features = given[0][:, -width:]
    likeness = []
    for found in outputs:
        rows = torch.cat(found)
        # A norm may lie between; CLS rows may be left out. What counts is which layer comes nearest.
        products = torch.nn.functional.normalize(features, dim=-1) @ torch.nn.functional.normalize(rows, dim=-1).T
        likeness.append(products.amax(dim=1).mean().item())
    assert likeness.index(max(likeness)) == vision.features[-1]
