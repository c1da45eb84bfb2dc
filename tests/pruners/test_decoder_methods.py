"""PyramidDrop, FitPrune, FEATHER, VTW and drop-all: options, schedules, refusals and edge cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import ANYRES, SQUARE, FakeContext, random_context

from vtprune.budget import per_layer_tokens
from vtprune.layout import grid_layout
from vtprune.pruner import Depths, Pruner
from vtprune.pruners.drop_all import DropAll
from vtprune.pruners.feather import Feather
from vtprune.pruners.fitprune import FitPrune
from vtprune.pruners.pyramiddrop import PyramidDrop
from vtprune.pruners.vtw import VTW
from vtprune.registry import make_pruner

SHALLOW = Depths(decoder=8, encoder=6)


@pytest.mark.parametrize(
    ("pruner", "default", "shallow"),
    [
        (PyramidDrop(), (8, 16, 24), (2, 4, 6)),
        (FitPrune(), tuple(range(1, 32)), tuple(range(1, 8))),
        (FitPrune(shares=(0.5,) * 7), tuple(range(1, 8)), tuple(range(1, 8))),
        (Feather(), (8, 16), (2, 4)),
        (VTW(), (16,), (4,)),
        (DropAll(), (0,), (0,)),
    ],
    ids=lambda value: value.name if isinstance(value, Pruner) else "",
)
def test_layers_of_the_paper_are_fitted_to_the_model(
    pruner: Pruner, default: tuple[int, ...], shallow: tuple[int, ...]
) -> None:
    assert pruner.layers == default
    fitted = pruner.fit(SHALLOW)
    assert fitted.layers == shallow
    assert type(fitted) is type(pruner)
    assert fitted.fit(Depths(decoder=32, encoder=24)) == fitted


@pytest.mark.parametrize(
    "pruner",
    [PyramidDrop(stages=(1, 2)), FitPrune(stages=(1, 5), shares=(0.5, 0.25)), Feather(stages=(1, 2)), VTW(layer=3)],
    ids=lambda pruner: pruner.name,
)
def test_layers_of_the_user_stay(pruner: Pruner) -> None:
    assert pruner.fit(SHALLOW) == pruner


@pytest.mark.parametrize(
    "pruner",
    [PyramidDrop(), FitPrune(), FitPrune(stages=(1, 2, 3), shares=(1.0, 0.3, 0.1)), Feather()],
    ids=["pyramiddrop", "fitprune", "fitprune-fitted", "feather"],
)
def test_schedules_shrink_to_the_budget(pruner: Pruner) -> None:
    for tokens in (1, 2, 36, 576):
        for keep in sorted({1, tokens // 3 + 1, tokens}):
            counts = pruner.schedule(tokens, keep)
            assert len(counts) == len(pruner.layers)
            assert counts[-1] == keep
            assert list(counts) == sorted(counts, reverse=True)
            assert counts[0] <= tokens
    assert set(pruner.schedule(36, 40)) == {36}


@pytest.mark.parametrize("name", ["fastv", "entropyprune"])
def test_presets_go_with_layer_two_only(name: str) -> None:
    assert make_pruner(name).preset(192, 576, 32) == 166
    assert make_pruner(name, layer=3).preset(192, 576, 32) is None


@pytest.mark.parametrize("average", [192, 128, 64])
def test_pyramiddrop_presets_are_the_largest_of_their_average(average: int) -> None:
    pruner = PyramidDrop.with_presets()
    keep = pruner.preset(average, 576, 32)
    assert keep is not None
    assert PyramidDrop().preset(average, 576, 32) is None
    assert sum(per_layer_tokens(pruner, 576, keep, 32)) <= 32 * average
    assert sum(per_layer_tokens(pruner, 576, keep + 1, 32)) > 32 * average


def test_pyramiddrop_keeps_the_highest_mean_over_heads() -> None:
    attention = torch.tensor([[[0.1, 0.4, 0.1, 0.3], [0.5, 0.1, 0.3, 0.3]]])
    context = FakeContext(
        grid_layout(1, 4),
        {"hidden": torch.zeros(1, 4, 2), "next_last_token_attention": attention},
        signals=PyramidDrop.signals,
    )
    assert PyramidDrop().reduce(context, 3).kept.tolist() == [[0, 3, 1]]


def test_fitprune_scales_a_fitted_schedule() -> None:
    pruner = FitPrune(shares=(0.9, 0.5, 0.2))
    assert pruner.schedule(100, 20) == (90, 50, 20)
    assert pruner.schedule(100, 10) == (45, 25, 10)
    assert pruner.schedule(100, 50) == (100, 100, 50)


def test_fitprune_without_shares_removes_less_early_than_published() -> None:
    """The published numbers for 90 % fewer FLOPs leave 37 of 576 tokens, and 72.8 on average over the layers."""
    assert sum(per_layer_tokens(FitPrune(), 576, 37, 32)) / 32 > 72.8


def fitprune_context(own: list[float], cross: list[float], *, heads: int = 1, text_follows: bool = True) -> FakeContext:
    """Attention `own` from each token, `cross` from the one text token behind; much to the last from those before."""
    tokens = len(own)
    rows = torch.tensor([[*[0.0] * (tokens - 1), 9.0]] * 2 + [own] * tokens + [cross])
    return FakeContext(
        grid_layout(1, tokens),
        {
            "hidden": torch.zeros(1, tokens, 2),
            "attention_map": rows.expand(1, heads, -1, -1),
            "text_mask": torch.tensor([[True, True, text_follows]]),
        },
        signals=FitPrune.signals,
        layer=1,
    )


def test_fitprune_multiplies_both_scores_and_ignores_text_before_the_image() -> None:
    context = fitprune_context([0.1, 0.5, 0.2, 0.3], [0.9, 0.1, 0.3, 0.1])
    assert FitPrune().reduce(context, 3).kept.tolist() == [[0, 2, 1]]


def test_fitprune_takes_the_strongest_head_of_each_pair() -> None:
    context = fitprune_context([0.3, 0.3, 0.3], [0.2, 0.3, 0.4], heads=2)
    context.tensors["attention_map"] = context.tensors["attention_map"].clone()
    context.tensors["attention_map"][0, 1, -1] = torch.tensor([0.5, 0.0, 0.0])
    assert FitPrune().reduce(context, 2).kept.tolist() == [[0, 2]]


def test_fitprune_without_text_behind_goes_by_the_image() -> None:
    context = fitprune_context([0.1, 0.5, 0.2, 0.3], [0.9, 0.1, 0.3, 0.1], text_follows=False)
    assert FitPrune().reduce(context, 3).kept.tolist() == [[1, 3, 2]]


def test_fitprune_keeps_the_highest_products() -> None:
    context = random_context(grid_layout(18, 18), 2, signals=FitPrune.signals, layer=1)
    whole = context.attention_from(context.slots).amax(1).sum(1)
    text = context.attention_from(context.text_slots).amax(1)
    expected = whole * text.masked_fill(~context.text_follows.unsqueeze(-1), 0).sum(1)
    kept = FitPrune().reduce(context, 20).kept
    assert kept.tolist() == expected.sort(dim=1, descending=True, stable=True).indices[:, :20].tolist()


def test_feather_keeps_a_share_first_and_its_square_of_that_then() -> None:
    assert Feather().schedule(1000, 125) == (500, 125)
    assert Feather().schedule(576, 64) == (276, 64)


def test_feather_keeps_the_coarse_grid_at_the_first_stage_alone() -> None:
    pruner = Feather(stages=(2, 5), stride=3)
    context = random_context(SQUARE, signals=Feather.signals, layer=2)
    coarse = [0, 3, 18, 21]
    context.tensors["unrotated_last_token_attention"][:, :, coarse] = 0
    scores = context.unrotated_last_token_attention.mean(1)
    for image in range(3):
        best = scores[image].argsort(descending=True).tolist()
        kept = pruner.reduce(context, 16).kept[image].tolist()
        assert set(kept) == {*coarse, *best[:12]}
    context.layer = 5
    for image in range(3):
        assert pruner.reduce(context, 16).kept[image].tolist() == scores[image].argsort(descending=True)[:16].tolist()


def test_feather_with_too_large_a_grid_goes_by_score_within_it() -> None:
    pruner = Feather(stages=(2, 5), stride=2)
    context = random_context(SQUARE, signals=Feather.signals, layer=2)
    coarse = torch.tensor([0, 2, 4, 12, 14, 16, 24, 26, 28])
    best = coarse[context.unrotated_last_token_attention.mean(1)[:, coarse].argsort(dim=1, descending=True)]
    assert pruner.reduce(context, 5).kept.tolist() == best[:, :5].tolist()


def test_feather_lays_a_grid_over_each_part_of_a_picture() -> None:
    context = random_context(ANYRES, signals=Feather.signals, layer=8)
    coarse = [0, 3, 12, 15, 16, 19, 22, 43, 46, 49]
    kept = Feather().reduce(context, 20).kept
    assert all(set(coarse) < set(row) for row in kept.tolist())


@pytest.mark.parametrize("pruner", [DropAll(), VTW()], ids=lambda pruner: pruner.name)
def test_all_or_nothing(pruner: Pruner) -> None:
    assert [pruner.attainable(SQUARE, keep) for keep in (1, 35, 36, 40)] == [0, 0, 36, 40]
    assert [pruner.schedule(36, keep) for keep in (0, 35, 36, 40)] == [(0,), (0,), (36,), (36,)]
    layer = pruner.layers[0]
    assert per_layer_tokens(pruner, 36, 0, 32) == [36] * layer + [0] * (32 - layer)
    context = random_context(SQUARE, signals=pruner.signals)
    assert pruner.reduce(context, 0).kept.shape == (3, 0)
    with pytest.raises(ValueError, match=f"^{pruner.name}: keep must be 0.*got 9"):
        pruner.reduce(context, 9)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("pyramiddrop", {"stages": (0, 8)}, ValueError, "layer must be at least 1, got 0"),
        ("pyramiddrop", {"stages": (8, 8)}, ValueError, r"stages must ascend, got \(8, 8\)"),
        ("pyramiddrop", {"stages": ()}, TypeError, r"stages must be a tuple of decoder layers or None, got \(\)"),
        ("fitprune", {"stages": [1, 2]}, TypeError, r"stages must be a tuple of decoder layers or None, got \[1, 2\]"),
        ("fitprune", {"shares": [0.5]}, TypeError, r"shares must be a tuple of numbers or None, got \[0.5\]"),
        ("fitprune", {"shares": ()}, TypeError, r"shares must be a tuple of numbers or None, got \(\)"),
        ("fitprune", {"shares": (0.5, "x")}, TypeError, "each of shares must be a number, got 'x'"),
        ("fitprune", {"shares": (0.5, 0)}, ValueError, "each of shares must be above 0 and finite, got 0"),
        (
            "fitprune",
            {"shares": (1.5, 1.0)},
            ValueError,
            r"must be in \(0, 1\] and never rise, got \(1.5, 1.0\)",
        ),
        ("fitprune", {"shares": (0.4, 0.5)}, ValueError, r"never rise, got \(0.4, 0.5\)"),
        ("fitprune", {"shares": (0.5,), "stages": (1, 2)}, ValueError, "one for each of the 2 stages, got 1"),
        ("feather", {"stages": (8,)}, ValueError, r"stages must be two decoder layers, got \(8,\)"),
        ("feather", {"stages": (0, 8)}, ValueError, "layer must be at least 1, got 0"),
        ("feather", {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ("feather", {"stride": 1.5}, TypeError, "stride must be an integer, got 1.5"),
        ("vtw", {"layer": 0}, ValueError, "layer must be at least 1, got 0"),
        ("vtw", {"layer": "x"}, TypeError, "layer must be an integer, got 'x'"),
    ],
)
def test_bad_hyper_parameters_are_refused(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        make_pruner(name, **options)


def test_fitprune_refuses_models_that_it_was_not_fitted_to() -> None:
    with pytest.raises(ValueError, match="one for each of the 7 stages, got 31"):
        FitPrune(shares=(0.5,) * 31).fit(SHALLOW)
    with pytest.raises(ValueError, match="at least 2 decoder layers, got 1"):
        FitPrune().fit(Depths(decoder=1, encoder=1))
