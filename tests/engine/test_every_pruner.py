"""The invariants for every registered method on every family: a method is tested because it is registered."""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

import vtprune
from vtprune.adapters.conformance import oracle_error

FAMILIES = ["llava", "llava_next"]
SIZES = [(40, 90), (100, 50), (48, 48)]


@cache
def model(family: str, attention: str = "sdpa") -> PreTrainedModel:
    return tiny.tiny_llava_next(attention) if family == "llava_next" else tiny.tiny_llava(attention)


def inputs(family: str, rows: int = 3, padding: str = "left", seed: int = 0) -> dict[str, torch.Tensor]:
    if family == "llava_next":
        return tiny.anyres_prompt(SIZES[:rows], model(family), seed=seed)
    return tiny.prompt([1] * rows, padding=padding if rows > 1 else "none", seed=seed)


def every_pruner(test: Any) -> Any:
    return pytest.mark.parametrize("name", vtprune.list_pruners())(pytest.mark.parametrize("family", FAMILIES)(test))


@every_pruner
@pytest.mark.parametrize("positions", ["keep", "pack"])
@torch.no_grad()
def test_pruned_equals_masked(family: str, name: str, positions: str) -> None:
    for attention in ("sdpa", "eager"):
        for use_cache in (True, False):
            pruner = vtprune.make_pruner(name)
            made = inputs(family)
            error = oracle_error(
                model(family, attention),
                made,
                (),
                positions,
                keep=0.3,
                pruner=pruner,
                use_cache=use_cache,
                options=tiny.question_side(name),
            )
            assert error < 1e-4


@every_pruner
@torch.no_grad()
def test_one_row_and_right_padding_equal_masked(family: str, name: str) -> None:
    pruner = vtprune.make_pruner(name)
    options = tiny.question_side(name)
    assert oracle_error(model(family), inputs(family, 1), (), "keep", pruner=pruner, options=options) < 1e-4
    if family == "llava":
        made = inputs(family, 3, "right")
        assert oracle_error(model(family), made, (), "keep", pruner=pruner, options=options) < 1e-4


@every_pruner
@torch.no_grad()
def test_keep_all_is_bit_identical(family: str, name: str) -> None:
    llava: Any = model(family)
    made = inputs(family)
    plain = llava(**made).logits
    tokens = int((made["input_ids"] == tiny.IMAGE).sum(1).max())
    for budget in (1.0, tokens, tokens + 1, 10**6):
        with vtprune.pruning(llava, name, budget, **tiny.question_side(name)):
            assert torch.equal(llava(**made).logits, plain)
            report = vtprune.report(llava)
            assert report.stages == []
            assert report.average_tokens == pytest.approx(report.visual_tokens / 3)
    text = {"max_new_tokens": 4, "do_sample": False}
    expected = llava.generate(**made, **text)
    with vtprune.pruning(llava, name, 1.0, **tiny.question_side(name)):
        assert torch.equal(llava.generate(**made, **text), expected)


@every_pruner
@torch.no_grad()
def test_exactly_the_budget_survives_and_text_is_untouched(family: str, name: str) -> None:
    llava: Any = model(family)
    made = inputs(family)
    pruner = vtprune.make_pruner(name)
    visual = made["input_ids"] == tiny.IMAGE
    for keep in (5, 9, 20):
        with vtprune.pruning(llava, pruner, keep, **tiny.question_side(name)):
            logits = llava(**made).logits
            report = vtprune.report(llava)
        stage = report.stages[-1]
        for row in range(3):
            expected = pruner.attainable(report.layouts[row][0], keep)
            (kept,) = stage.images[row]
            assert len(kept) == expected
            assert len(kept.unique()) == expected
            assert torch.equal(kept, kept.sort().values)
            assert visual[row, stage.kept[row]].all()
        length = made["input_ids"].shape[1]
        longest = max(length - int(visual[row].sum()) + len(stage.images[row][0]) for row in range(3))
        assert logits.shape[1] == longest


@every_pruner
@torch.no_grad()
def test_kept_set_does_not_depend_on_batch_mates(family: str, name: str) -> None:
    llava: Any = model(family)
    made = inputs(family)
    # As `generate` counts them: a key after rotary, of which some methods take the norm, depends on its position.
    positions = made["attention_mask"].cumsum(1).sub(1).clamp_min(0)
    with vtprune.pruning(llava, name, 9, **tiny.question_side(name)):
        llava(**made, position_ids=positions)
        together = vtprune.report(llava).stages[-1].images
        for row in range(3):
            real = made["attention_mask"][row].bool()
            alone = {"input_ids": made["input_ids"][row][real][None], "attention_mask": real[real].long()[None]}
            alone["pixel_values"] = made["pixel_values"][row : row + 1]
            if family == "llava_next":
                alone["image_sizes"] = made["image_sizes"][row : row + 1]
            llava(**alone)
            assert torch.equal(vtprune.report(llava).stages[-1].images[0][0], together[row][0])


@every_pruner
def test_generate_gives_the_prompt_and_new_tokens(family: str, name: str) -> None:
    llava: Any = model(family)
    made = inputs(family)
    settings: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with vtprune.pruning(llava, name, 9, **tiny.question_side(name)):
        cached = llava.generate(**made, **settings)
        length = made["input_ids"].shape[1]
        assert torch.equal(cached[:, :length], made["input_ids"])
        assert cached.shape[1] == length + 4
        beams = llava.generate(**made, **settings, num_beams=2)
        assert beams.shape == cached.shape
        if not vtprune.pruner_class(name).query_aware:
            # Without a cache a method that looks at the text sees another one in each step.
            assert torch.equal(llava.generate(**made, **settings, use_cache=False), cached)


class CountSyncs(TorchDispatchMode):
    """Counts the operations that wait for the device to know a value or a shape."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            self.counts[name] += 1
        if name in ("index", "index_put", "index_put_"):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.counts["boolean indexing"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", vtprune.list_pruners())
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_prefill_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, name: str, rows: int) -> None:
    # On the CPU the host may look, and operations take shorter ways: here it stands for a device.
    for module in [module for key, module in sys.modules.items() if key.startswith("vtprune.")]:
        if hasattr(module, "is_at_hand"):
            monkeypatch.setattr(module, "is_at_hand", lambda tensor: False)
    llava: Any = model("llava")
    made = tiny.prompt([1] * rows)

    def syncs() -> Counter[str]:
        llava(**made, use_cache=True)  # first, so that tables kept for later are made
        mode = CountSyncs()
        with mode:
            llava(**made, use_cache=True)
        return mode.counts

    stock = syncs()
    with vtprune.pruning(llava, name, 9, images_per_prompt=1, **tiny.question_side(name)):
        assert syncs() - stock == Counter()


def test_the_sync_counter_counts() -> None:
    with CountSyncs() as mode:
        values = torch.arange(4)
        values[values > 1]
        values[0].item()
    assert mode.counts["boolean indexing"] == 1
    assert mode.counts["_local_scalar_dense"] == 1
