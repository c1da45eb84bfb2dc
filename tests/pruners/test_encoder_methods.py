"""Options, edges and refusals of the methods that choose by the encoder's attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import ANYRES, SQUARE, FakeContext, random_context
from torch._subclasses.fake_tensor import FakeTensorMode

from vtprune.layout import ImageLayout, Segment
from vtprune.ops.residual import drop_redundant
from vtprune.pruner import Depths, Pruner
from vtprune.pruners.fastervlm import FasterVLM
from vtprune.pruners.globalcom2 import GlobalCom2
from vtprune.pruners.hiprune import HiPrune
from vtprune.pruners.hired import HiRED
from vtprune.pruners.vispruner import VisPruner
from vtprune.registry import make_pruner

NEWLINES = [token for token, patch in enumerate(ANYRES.patches) if patch < 0]
LOWEST = torch.finfo(torch.float32).min
STRIP = ImageLayout(
    (Segment(4, 4), Segment(4, 6)),
    (*range(16), *(16 * (1 + c // 4) + 4 * row + c % 4 for row in range(4) for c in range(3, 9))),
    views=4,
    patches_per_view=16,
    crops=(1, 3),
)
"""A thumbnail and three crops side by side; padding leaves one column of the first and one of the last."""
TOWER = ImageLayout(
    (Segment(4, 4), Segment(6, 4)),
    (*range(16), *(16 * (1 + r // 4) + 4 * (r % 4) + column for r in range(3, 9) for column in range(4))),
    views=4,
    patches_per_view=16,
    crops=(3, 1),
)
"""The same with crops one below another."""
LOOSE = ImageLayout((Segment(4, 4),) * 3, tuple(range(48)), views=3, patches_per_view=16)
"""Three views, none of them a thumbnail."""


def context_for(pruner: Pruner, layout: ImageLayout, batch: int = 3) -> FakeContext:
    return random_context(layout, batch, signals=pruner.signals | pruner.optional_signals)


def by_view(layout: ImageLayout, kept: list[int]) -> list[list[int]]:
    """The kept tokens of each view, in their order."""
    return [
        [token for token in kept if layout.patches[token] // layout.patches_per_view == view]
        for view in range(layout.views)
    ]


def best(scores: torch.Tensor, among: torch.Tensor, count: int) -> list[int]:
    """The `count` tokens of `among` with the highest of all tokens' scores, best first."""
    picks: list[int] = among[scores[among].argsort(descending=True)[:count]].tolist()
    return picks


def canvas(row: int, column: int) -> int:
    """The token at a place of the unpadded 6 x 8 canvas of `ANYRES`."""
    return 16 + 9 * row + column


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("vispruner", {"important": 1.5}, ValueError, r"important must be in \[0, 1\], got 1.5"),
        ("vispruner", {"important": "all"}, TypeError, "important must be a number, got 'all'"),
        ("vispruner", {"per_round": 0}, ValueError, "per_round must be at least 1, got 0"),
        ("hiprune", {"alpha": -0.1}, ValueError, r"alpha must be in \[0, 1\], got -0.1"),
        ("hiprune", {"object_layer": -1}, ValueError, "object_layer must be at least 0, got -1"),
        ("hiprune", {"object_layer": 8.0}, TypeError, "object_layer must be an integer, got 8.0"),
        ("hiprune", {"parity": 1}, TypeError, "parity must be True or False, got 1"),
        ("hired", {"alpha": float("nan")}, ValueError, r"alpha must be in \[0, 1\], got nan"),
        ("hired", {"parity": None}, TypeError, "parity must be True or False, got None"),
        ("globalcom2", {"temperature": 0}, ValueError, "temperature must be above 0 and finite, got 0"),
        ("globalcom2", {"newlines": 48}, TypeError, "newlines must be True or False, got 48"),
        ("globalcom2", {"official_placement": "yes"}, TypeError, "official_placement must be True or False, got 'yes'"),
    ],
)
def test_bad_hyper_parameters_are_refused(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        make_pruner(name, **options)


@pytest.mark.parametrize("pruner", [FasterVLM(), VisPruner(), HiPrune(), HiRED(), GlobalCom2()], ids=lambda p: p.name)
def test_pruned_tokens_are_refused(pruner: Pruner) -> None:
    with pytest.raises(ValueError, match="only 20 of 36 tokens are left"):
        pruner.reduce(FakeContext(SQUARE, {"hidden": torch.randn(3, 20, 16)}), 9)


@pytest.mark.parametrize(
    "pruner",
    [
        FasterVLM(),
        VisPruner(),
        HiPrune(),
        HiPrune(parity=True),
        HiRED(),
        HiRED(parity=True),
        GlobalCom2(newlines=False),
    ],
    ids=str,
)
def test_newline_tokens_come_last(pruner: Pruner) -> None:
    context = context_for(pruner, ANYRES)
    for keep, expected in ((1, []), (31, []), (64, []), (66, NEWLINES[:2])):
        reduction = pruner.reduce(context, keep)
        kept = reduction.kept if reduction.valid is None else reduction.kept[reduction.valid]
        assert sorted(set(NEWLINES) & set(kept.flatten().tolist())) == expected


@pytest.mark.parametrize(
    "layout", [SQUARE, ANYRES, STRIP, TOWER, LOOSE], ids=["square", "anyres", "strip", "tower", "loose"]
)
@pytest.mark.parametrize(
    "pruner",
    [
        FasterVLM(),
        VisPruner(important=0.3, per_round=3),
        HiPrune(alpha=1.0),
        HiPrune(alpha=0.0, parity=True),
        HiRED(alpha=0.0),
        HiRED(alpha=1.0),
        GlobalCom2(official_placement=True),
        GlobalCom2(newlines=False, temperature=0.01),
    ],
    ids=str,
)
def test_every_option_keeps_the_budget(pruner: Pruner, layout: ImageLayout) -> None:
    context = context_for(pruner, layout)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in context.tensors.items()}
    for here in (context, FakeContext(layout, zeros), FakeContext(layout, context.tensors, has_cls=False)):
        for keep in range(1, layout.tokens, 5):
            kept = pruner.reduce(here, keep).kept
            assert kept.shape == (3, keep)
            for row in kept.tolist():
                assert len(set(row)) == keep
                assert 0 <= min(row) <= max(row) < layout.tokens


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("layout", [ANYRES, STRIP], ids=["anyres", "strip"])
@pytest.mark.parametrize(
    "pruner",
    [HiPrune(parity=True), HiRED(parity=True), GlobalCom2(official_placement=True), GlobalCom2(newlines=False)],
    ids=str,
)
def test_no_option_needs_a_value_on_the_host(pruner: Pruner, layout: ImageLayout, device: str) -> None:
    assert layout.view_tokens
    with FakeTensorMode(allow_non_fake_inputs=True):
        kept = pruner.reduce(context_for(pruner, layout).to(torch.device(device)), 21).kept
    assert kept.shape == (3, 21)
    assert kept.device.type == device


def test_fastervlm_keeps_the_highest_of_each_view() -> None:
    context = context_for(FasterVLM(), ANYRES)
    kept = FasterVLM().reduce(context, 32).kept
    for image in range(3):
        scores = context.encoder_attention[image].mean(0)
        expected = [best(scores, view, share) for view, share in zip(ANYRES.view_tokens, (8, 6, 6, 6, 6), strict=True)]
        assert kept[image].tolist() == [token for part in expected for token in part]


def test_vispruner_goes_from_attention_to_difference() -> None:
    context = context_for(VisPruner(), SQUARE)
    order = torch.tensor([best(row.mean(0), torch.arange(36), 36) for row in context.encoder_attention])
    assert VisPruner(important=1.0).reduce(context, 9).kept.tolist() == order[:, :9].tolist()
    kept = VisPruner(important=0.4, per_round=5).reduce(context, 10).kept
    assert kept[:, :4].tolist() == order[:, :4].tolist()
    for image in range(3):
        others = order[image, 4:]
        left = drop_redundant(context.encoder_features[image : image + 1, others], 6, per_round=5)[0]
        assert kept[image, 4:].tolist() == others[left].tolist()


def test_vispruner_treats_views_one_by_one() -> None:
    context = context_for(VisPruner(), ANYRES)
    pruner = VisPruner(per_round=1)
    before = by_view(ANYRES, pruner.reduce(context, 32).kept[0].tolist())
    assert [len(view) for view in before] == [8, 6, 6, 6, 6]
    context.tensors["encoder_features"][0, ANYRES.view_tokens[2]] = torch.randn(12, 12)
    after = by_view(ANYRES, pruner.reduce(context, 32).kept[0].tolist())
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False, True, True]


def hiprune_context(middle: dict[int, float], deep: dict[int, float], layout: ImageLayout = SQUARE) -> FakeContext:
    """Attention received by single tokens, alike in both heads and zero elsewhere."""
    tensors = {"hidden": torch.zeros(1, layout.tokens, 1)}
    for number, values in enumerate((middle, deep)):
        received = torch.zeros(1, 2, layout.tokens)
        for token, value in values.items():
            received[..., token] = value
        tensors[f"encoder_layer{number}.received"] = received
    return FakeContext(layout, tensors, signals=HiPrune.signals)


def test_hiprune_keeps_anchors_neighbours_and_registers() -> None:
    context = hiprune_context({14: 0.5, 15: 0.4}, {30: 0.5, 35: 0.4, 14: 0.9, 3: 0.3})
    # A budget of 10 with half of it around anchors gives one anchor.
    assert sorted(HiPrune(alpha=0.5).reduce(context, 10).kept[0].tolist()) == [0, 1, 3, 8, 13, 14, 15, 20, 30, 35]
    assert sorted(HiPrune(alpha=0.0).reduce(context, 3).kept[0].tolist()) == [14, 30, 35]


def test_hiprune_neighbours_stay_in_their_row_unless_as_published() -> None:
    registers = {20: 0.5, 21: 0.4, 22: 0.3, 23: 0.2, 26: 0.1, 27: 0.05}
    at_the_end_of_a_row = hiprune_context({11: 0.5}, registers)
    kept = sorted(HiPrune(alpha=0.5).reduce(at_the_end_of_a_row, 8).kept[0].tolist())
    assert kept == [5, 10, 11, 17, 20, 21, 22, 23]
    published = sorted(HiPrune(alpha=0.5, parity=True).reduce(at_the_end_of_a_row, 8).kept[0].tolist())
    assert published == [5, 10, 11, 12, 17, 20, 21, 22]
    in_the_first_row = hiprune_context({4: 0.5}, registers)
    kept = sorted(HiPrune(alpha=0.5).reduce(in_the_first_row, 6).kept[0].tolist())
    assert kept == [3, 4, 5, 10, 20, 21]
    published = sorted(HiPrune(alpha=0.5, parity=True).reduce(in_the_first_row, 6).kept[0].tolist())
    assert published == [0, 3, 4, 5, 10, 20]


def test_hiprune_prefers_anchors_when_the_budget_is_small() -> None:
    context = hiprune_context({14: 0.5, 28: 0.4, 0: 0.3}, {20: 0.9, 34: 0.8, 35: 1.0})
    assert sorted(HiPrune(alpha=1.0).reduce(context, 3).kept[0].tolist()) == [8, 14, 20]
    assert sorted(HiPrune(alpha=1.0).reduce(context, 8).kept[0].tolist()) == [8, 13, 14, 15, 20, 22, 28, 34]


def test_hiprune_neighbours_lie_in_the_same_view() -> None:
    middle = {canvas(1, 3): 0.5}
    kept = HiPrune(alpha=1.0).reduce(hiprune_context(middle, {canvas(1, 4): 0.0}, ANYRES), 27).kept[0].tolist()
    # Every view has its anchor; that of crop 0 stands at its right border.
    assert [len(view) for view in by_view(ANYRES, kept)] == [7, 5, 5, 5, 5]
    expected = {canvas(1, 3), canvas(1, 2), canvas(0, 3), canvas(2, 3), canvas(0, 0)}
    assert set(by_view(ANYRES, kept)[1]) == expected


def test_hiprune_fits_the_tower() -> None:
    assert HiPrune().encoder_layers == (8, -2)
    assert HiPrune().fit(Depths(decoder=32, encoder=24)).encoder_layers == (8, -2)
    assert HiPrune().fit(Depths(decoder=32, encoder=6)).encoder_layers == (2, -2)
    assert HiPrune().fit(Depths(decoder=2, encoder=1)).encoder_layers == (0, -2)
    chosen = HiPrune(object_layer=15).fit(Depths(decoder=32, encoder=24))
    assert chosen.encoder_layers == (15, -2)


def hired_context(layout: ImageLayout, marked: list[int]) -> FakeContext:
    """Random late attention; early attention is highest at the named tokens of the thumbnail."""
    context = context_for(HiRED(), layout)
    early = torch.rand(3, 4, layout.tokens) * 0.1
    early[..., marked] += 1
    context.tensors["encoder_layer0.attention"] = early
    return context


@pytest.mark.parametrize(
    ("pruner", "signal"),
    [
        (HiRED(), "encoder_layer1.attention"),
        (HiRED(alpha=1.0), "encoder_layer1.attention"),
        (GlobalCom2(), "encoder_layer0.logits"),
    ],
    ids=str,
)
def test_one_view_and_views_without_a_thumbnail_keep_their_best(pruner: Pruner, signal: str) -> None:
    context = context_for(pruner, SQUARE)
    scores = context.tensors[signal].mean(1)
    assert pruner.reduce(context, 9).kept.tolist() == [best(row, torch.arange(36), 9) for row in scores]
    context = context_for(pruner, LOOSE)
    scores = context.tensors[signal].mean(1)
    expected = [[token for view in LOOSE.view_tokens for token in best(row, view, 4)] for row in scores]
    assert pruner.reduce(context, 12).kept.tolist() == expected


def test_hired_gives_the_budget_to_the_crop_that_the_first_layer_points_at() -> None:
    # Rows 0 and 1, columns 2 and 3 of the thumbnail are the crop at the upper right; as many marks lie at the left.
    upper_right, upper_left, lower_left = [2, 3, 6, 7], [0, 1], [8, 9]
    context = hired_context(ANYRES, upper_right + upper_left + lower_left)
    late = context.tensors["encoder_layer1.attention"].mean(1)
    kept = HiRED().reduce(context, 17).kept
    for image in range(3):
        views = by_view(ANYRES, kept[image].tolist())
        assert [len(view) for view in views] == [8, 2, 5, 2, 0]
        for number, tokens in enumerate(views):
            assert set(tokens) == set(best(late[image], ANYRES.view_tokens[number], len(tokens)))


def test_hired_takes_runs_for_crops_and_loses_tokens_as_published() -> None:
    # Four runs of four: a quarter each for the first two, half of the marks in the third.
    context = hired_context(ANYRES, [0, 1, 4, 5, 8, 9, 10, 11])
    reduction = HiRED(parity=True).reduce(context, 19)
    assert reduction.valid is not None
    # 9 for the thumbnail; of the other 10 the crops get 2.5, 2.5, 5 and 0.
    assert reduction.valid.sum(dim=1).tolist() == [18, 18, 18]
    for row, valid in zip(reduction.kept, reduction.valid, strict=True):
        assert [len(view) for view in by_view(ANYRES, row[valid].tolist())] == [9, 2, 2, 5, 0]
        assert len(set(row.tolist())) == 19
    exact = by_view(ANYRES, HiRED().reduce(context, 19).kept[0].tolist())
    # Where the crops really lie, four marks are at the upper left, two each at the lower ones.
    assert [len(view) for view in exact] == [9, 5, 0, 3, 2]


def test_hired_without_marks_shares_evenly_or_gives_nothing_as_published() -> None:
    context = hired_context(ANYRES, [])
    views = by_view(ANYRES, HiRED(alpha=1.0).reduce(context, 26).kept[0].tolist())
    assert [len(view) for view in views] == [16, 3, 3, 2, 2]
    assert not HiRED(alpha=1.0, parity=True)._quotas(torch.zeros(1, 4), 10, [12] * 4).any()


def test_hired_knows_where_a_padded_crop_lies_in_the_picture() -> None:
    assert STRIP.view_rectangles == ((4, 4), (4, 1), (4, 4), (4, 1))
    # Of six columns the middle crop has four, which are the two inner ones of the thumbnail.
    context = hired_context(STRIP, [row * 4 + column for row in range(4) for column in (1, 2)])
    kept = HiRED().reduce(context, 12).kept
    assert [[len(view) for view in by_view(STRIP, row)] for row in kept.tolist()] == [[6, 0, 6, 0]] * 3
    assert TOWER.view_rectangles == ((4, 4), (1, 4), (4, 4), (1, 4))
    context = hired_context(TOWER, list(range(4, 12)))
    kept = HiRED().reduce(context, 12).kept
    assert [[len(view) for view in by_view(TOWER, row)] for row in kept.tolist()] == [[6, 0, 6, 0]] * 3


def test_hired_passes_on_what_a_full_view_cannot_take() -> None:
    context = hired_context(ANYRES, [2, 3, 6, 7])
    assert [len(view) for view in by_view(ANYRES, HiRED(alpha=0.75).reduce(context, 60).kept[0].tolist())] == [
        *(16, 11, 12, 11, 10)
    ]
    assert len(by_view(ANYRES, HiRED(alpha=0.0).reduce(context, 60).kept[0].tolist())[0]) == 12


def test_globalcom2_without_cls_looks_for_the_unusual() -> None:
    context = context_for(GlobalCom2(), SQUARE)
    context.has_cls = False
    features = context.encoder_features
    unlike = -torch.cosine_similarity(features, features.mean(1, keepdim=True), dim=2)
    assert GlobalCom2().reduce(context, 9).kept.tolist() == [best(row, torch.arange(36), 9) for row in unlike]


def globalcom2_context(layout: ImageLayout, thumbnail: dict[int, float]) -> FakeContext:
    """Small random logits; those of single tokens are set."""
    context = context_for(GlobalCom2(), layout)
    logits = torch.rand(3, 4, layout.tokens) * 0.1
    for token, value in thumbnail.items():
        logits[..., token] = value
    is_patch = torch.tensor(layout.patches) >= 0
    context.tensors["encoder_layer0.logits"] = logits.masked_fill(~is_patch, LOWEST)
    return context


def test_globalcom2_gives_more_to_crops_whose_part_scores_high() -> None:
    even = globalcom2_context(ANYRES, {})
    kept = GlobalCom2(newlines=False).reduce(even, 32).kept[0].tolist()
    assert [len(view) for view in by_view(ANYRES, kept)] == [8, 6, 6, 6, 6]
    # p is about 1 for the second crop: 1.75 times the average, the others 0.75 times.
    uneven = globalcom2_context(ANYRES, {2: 1000.0})
    kept = GlobalCom2(newlines=False).reduce(uneven, 32).kept[0].tolist()
    assert [len(view) for view in by_view(ANYRES, kept)] == [8, 5, 10, 5, 4]
    kept = GlobalCom2(newlines=False, temperature=1e9).reduce(uneven, 32).kept[0].tolist()
    assert [len(view) for view in by_view(ANYRES, kept)] == [8, 6, 6, 6, 6]
    # Crops with fewer patches get fewer tokens.
    kept = GlobalCom2().reduce(globalcom2_context(STRIP, {}), 20).kept[0].tolist()
    assert [len(view) for view in by_view(STRIP, kept)] == [8, 2, 8, 2]
    # The second crop has only 12 patches for 1.75 times 9.5 tokens; the others share the rest.
    kept = GlobalCom2(newlines=False).reduce(uneven, 51).kept[0].tolist()
    assert [len(view) for view in by_view(ANYRES, kept)] == [13, 9, 12, 9, 8]


def test_globalcom2_weighs_patches_by_the_thumbnail_too() -> None:
    # The thumbnail points at the upper left corner, the crop itself at the upper right one, first weakly.
    for own, expected in ((0.11, canvas(0, 0)), (0.5, canvas(0, 3))):
        context = globalcom2_context(ANYRES, {0: 50.0, canvas(0, 3): own})
        kept = by_view(ANYRES, GlobalCom2(newlines=False).reduce(context, 4).kept[0].tolist())
        assert kept[1] == [expected]


def test_globalcom2_lines_up_the_thumbnail_by_score_and_crops_in_raster_order() -> None:
    context = context_for(GlobalCom2(), ANYRES)
    reduction = GlobalCom2().reduce(context, 38)
    assert reduction.ordered
    logits = context.tensors["encoder_layer0.logits"].mean(1)
    for image in range(3):
        thumbnail, rest = reduction.kept[image].split([8, 30])
        assert thumbnail.tolist() == best(logits[image], torch.arange(16), 8)
        assert rest.tolist() == sorted(rest.tolist())
        assert set(NEWLINES) < set(rest.tolist())


def test_globalcom2_official_placement_moves_tokens_but_keeps_them() -> None:
    context = context_for(GlobalCom2(), ANYRES)
    for keep in (21, 38, 63):
        right, wrong = (GlobalCom2(official_placement=flag).reduce(context, keep).kept for flag in (False, True))
        assert right.tolist() != wrong.tolist()
        assert right.sort(dim=1).values.tolist() == wrong.sort(dim=1).values.tolist()
    # All 12 patches of each crop without its padding fill the first three of its four rows, so that the rows of the
    # lower crops begin one row of the canvas late and the newline of the upper crops' last row follows two newlines.
    everything = GlobalCom2(official_placement=True).reduce(context, 69).kept[0].tolist()
    left_out = set(range(70)) - set(everything)
    lower = [token for token in everything if token >= 16]
    newline = [canvas(row, 8) for row in range(6)]
    rows = [[canvas(row, column) for column in range(8)] for row in range(6)]
    # The canvas has eight rows of patches; the picture's newlines end its rows 1 to 6.
    official = [*rows[0], *rows[1], newline[0], *rows[2], newline[1], newline[2]]
    official += [*rows[3], newline[3], *rows[4], newline[4], *rows[5], newline[5]]
    assert lower == [token for token in official if token not in left_out]


@pytest.mark.parametrize(("keep", "newlines"), [(11, 0), (12, 6), (13, 6), (40, 6), (69, 6)])
def test_globalcom2_keeps_newlines_when_half_of_the_budget_is_left(keep: int, newlines: int) -> None:
    context = context_for(GlobalCom2(), ANYRES)
    kept = GlobalCom2().reduce(context, keep).kept
    assert [len(set(NEWLINES) & set(row)) for row in kept.tolist()] == [newlines] * 3
