"""Invariants 1 and 2 on scattered kept sets: pruned equals masked, keep-all is bit-identical, unwrap leaves nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import tiny
import torch
from transformers import PreTrainedModel

import vtprune
from vtprune.adapters import check_adapter
from vtprune.adapters.conformance import ScatteredPruner, footprint, oracle_error

TOLERANCE = 1e-4
STAGES = [(0,), (2,), (2, 4), (0, 3, 5)]


@cache
def model(attention: str, family: str = "llava") -> PreTrainedModel:
    return tiny.tiny_llava_next(attention) if family == "llava_next" else tiny.tiny_llava(attention)


def inputs(images: list[int], padding: str, mask: bool) -> dict[str, torch.Tensor]:
    return tiny.prompt(images, padding=padding, mask=mask)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["keep", "pack"])
@pytest.mark.parametrize("stages", STAGES, ids=str)
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize(
    ("images", "padding", "mask"),
    [
        ([1], "none", True),
        ([1], "none", False),
        ([1, 1, 1], "none", False),
        ([1, 1, 1], "left", True),
        ([1, 1, 1], "right", True),
        ([3], "none", True),
        ([2, 0, 1], "left", True),
        ([2, 1, 0], "right", True),
    ],
    ids=["one", "one-no-mask", "three-no-mask", "left", "right", "three-images", "ragged-left", "ragged-right"],
)
@torch.no_grad()
def test_pruned_equals_masked(
    attention: str,
    positions: str,
    stages: tuple[int, ...],
    use_cache: bool,
    images: list[int],
    padding: str,
    mask: bool,
) -> None:
    error = oracle_error(model(attention), inputs(images, padding, mask), stages, positions, use_cache=use_cache)
    assert error < TOLERANCE


@pytest.mark.parametrize("stages", STAGES, ids=str)
@pytest.mark.parametrize("positions", ["keep", "pack"])
@pytest.mark.parametrize("mask", [True, False], ids=["mask", "no-mask"])
@torch.no_grad()
def test_training_mode_without_cache_does_not_fall_into_the_packed_sequence_trap(
    stages: tuple[int, ...], positions: str, mask: bool
) -> None:
    llava = tiny.tiny_llava("sdpa").train()
    error = oracle_error(llava, tiny.prompt([1, 1], mask=mask), stages, positions, use_cache=False)
    assert error < TOLERANCE


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_conformance_suite(family: str, attention: str) -> None:
    llava = model(attention, family)
    if family == "llava_next":
        made = tiny.anyres_prompt([(40, 90), (100, 50), (48, 48)], llava)
    else:
        made = tiny.prompt([1, 2, 1], padding="left")
    checks = check_adapter(llava, inputs=made)
    assert len(checks) > 12


def test_conformance_suite_finds_a_broken_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from vtprune.engine.sequence import Tokens

    right = Tokens.last_but_one_dim

    def shifted(self: Tokens, values: torch.Tensor) -> torch.Tensor:
        return right(self, values.roll(1, dims=-2))

    monkeypatch.setattr(Tokens, "last_but_one_dim", shifted)
    with pytest.raises(AssertionError, match="pruned equals masked"):
        check_adapter(model("sdpa"), inputs=tiny.prompt([1, 1], padding="left"))


@torch.no_grad()
def test_packed_sequence_trap_is_real() -> None:
    """Without care transformers isolates the pieces between gaps; the day it stops, this test may go."""
    llava: Any = tiny.tiny_llava("sdpa").model.language_model
    hidden = torch.randn(1, 6, 64)
    gapped = torch.tensor([[0, 1, 2, 7, 8, 9]])
    trapped = llava(inputs_embeds=hidden, position_ids=gapped, use_cache=False).last_hidden_state
    ones = torch.ones(1, 6, dtype=torch.long)
    free = llava(inputs_embeds=hidden, position_ids=gapped, attention_mask=ones, use_cache=False).last_hidden_state
    assert (trapped - free).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("name", vtprune.list_pruners())
@torch.no_grad()
def test_unwrap_leaves_nothing(family: str, name: str) -> None:
    llava: Any = model("sdpa", family)
    made = tiny.prompt([1, 1]) if family == "llava" else tiny.anyres_prompt([(48, 96), (96, 48)], llava)
    plain = llava(**made).logits
    before = footprint(llava)
    vtprune.wrap(llava, name, 9, **tiny.question_side(name))
    try:
        llava(**made)
    finally:
        assert vtprune.unwrap(llava) is llava
    assert footprint(llava) == before
    assert torch.equal(llava(**made).logits, plain)


@torch.no_grad()
def test_ragged_reduction_equals_masked() -> None:
    from dataclasses import dataclass
    from typing import ClassVar

    from vtprune import Context, Reduction

    @dataclass(frozen=True)
    class Ragged(ScatteredPruner):
        name: ClassVar[str] = "ragged"

        def reduce(self, context: Context, keep: int) -> Reduction:
            kept = super().reduce(context, keep).kept
            wanted = torch.arange(1, context.batch + 1).unsqueeze(1) * 2
            return Reduction(kept, valid=torch.arange(keep) < wanted)

    for images, padding in (([1, 1, 1], "left"), ([1, 1, 1], "right"), ([3], "none"), ([2, 1], "none")):
        for stages in ((0,), (2, 4)):
            for positions in ("keep", "pack"):
                made = tiny.prompt(images, padding=padding if len(set(images)) == 1 else "left")
                error = oracle_error(model("sdpa"), made, (), positions, pruner=Ragged(stages), use_cache=True)
                assert error < TOLERANCE
    llava: Any = model("sdpa")
    with vtprune.pruning(llava, Ragged((0,)), 20):
        llava(**tiny.prompt([1, 1, 1]))
        assert [len(row[0]) for row in vtprune.report(llava).stages[0].images] == [2, 4, 6]
