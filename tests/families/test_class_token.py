"""Towers with a class token: the adapter names its row, the one that no picture changes before the first layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.test_families import TYPES, is_refused, model
from zoo import common

from vtprune.adapters import find_adapter


@pytest.mark.parametrize("name", TYPES)
@torch.no_grad()
def test_the_row_of_the_class_token_is_the_same_for_all_pictures(name: str) -> None:
    if reason := is_refused(name):
        pytest.skip(f"{name} is refused: {reason}")
    call: Any = model(name)
    vision = find_adapter(call).vision
    if vision.cls is None:
        pytest.skip("the tower has no class token")
    module, entered = common.load(name), []

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.append(args[0] if args else next(iter(kwargs.values())))

    handle = vision.layers[0].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        for seed in (1, 2):
            call(**module.inputs(call, [[common.picture(*module.SIZES[0], seed=seed)]]))
    finally:
        handle.remove()
    one, other = entered[0][0], entered[len(entered) // 2][0]
    same = (one == other).all(-1)
    assert bool(same[vision.cls])
    assert not bool(vision.patches(same[None]).any())
