"""Options, refusals and edges of HoloV, SCOPE, G-Prune and VScan."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from fakes import ANYRES, SQUARE, FakeContext, random_context
from torch._subclasses.fake_tensor import FakeTensorMode

from vtprune.layout import ImageLayout, grid_layout
from vtprune.ops.coverage import weighted_coverage
from vtprune.ops.share import largest_remainder
from vtprune.pruner import Depths, Pruner, Signal
from vtprune.pruners.gprune import GPrune
from vtprune.pruners.holov import HoloV
from vtprune.pruners.scope import Scope
from vtprune.pruners.vscan import VScan
from vtprune.registry import make_pruner

BIG = grid_layout(12, 12)
NEWLINES = [token for token, patch in enumerate(ANYRES.patches) if patch < 0]
four = pytest.mark.parametrize("pruner", [HoloV(), Scope(), GPrune(), VScan()], ids=lambda pruner: pruner.name)


def first_context(pruner: Pruner, layout: ImageLayout, batch: int = 3) -> FakeContext:
    return random_context(layout, batch, signals=pruner.stage_signals(0), layer=pruner.layers[0])


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("holov", {"chunks": 0}, ValueError, "chunks must be at least 1, got 0"),
        ("holov", {"chunks": 4.0}, TypeError, "chunks must be an integer, got 4.0"),
        ("holov", {"variety": 1.5}, ValueError, r"variety must be in \[0, 1\], got 1.5"),
        ("holov", {"sharpness": 0}, ValueError, "sharpness must be above 0 and finite, got 0"),
        ("holov", {"rank_by": "norm"}, ValueError, "rank_by must be 'attention' or 'score', got 'norm'"),
        ("scope", {"sharpness": -1.0}, ValueError, "sharpness must be above 0 and finite, got -1.0"),
        ("scope", {"combine": "max"}, ValueError, "combine must be 'multiply' or 'add', got 'max'"),
        ("scope", {"parity": 1}, TypeError, "parity must be True or False, got 1"),
        ("gprune", {"threshold": -0.5}, ValueError, r"threshold must be in \[0, 1\], got -0.5"),
        ("gprune", {"temperature": 0.0}, ValueError, "temperature must be above 0 and finite, got 0.0"),
        ("gprune", {"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ("vscan", {"stages": (1, 16)}, ValueError, r"stages must be 0, or 0 and one layer more, got \(1, 16\)"),
        ("vscan", {"stages": (0, 8, 16)}, ValueError, r"one layer more, got \(0, 8, 16\)"),
        ("vscan", {"stages": (0, 0)}, ValueError, r"stages must ascend, got \(0, 0\)"),
        ("vscan", {"stages": 16}, TypeError, "stages must be a tuple of decoder layers or None, got 16"),
        ("vscan", {"factor": 0.5}, ValueError, "factor must be at least 1, got 0.5"),
        ("vscan", {"factor": "3"}, TypeError, "factor must be a number, got '3'"),
        ("vscan", {"local": 1.1}, ValueError, r"local must be in \[0, 1\], got 1.1"),
        ("vscan", {"window": 0}, ValueError, "window must be at least 1, got 0"),
        ("vscan", {"shallow": -1}, ValueError, "shallow must be at least 0, got -1"),
    ],
)
def test_bad_hyper_parameters_are_refused(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        make_pruner(name, **options)


@four
def test_views_share_the_budget_by_their_patches(pruner: Pruner) -> None:
    context = first_context(pruner, ANYRES)
    views = [view.tolist() for view in context.view_tokens]
    for keep in (3, 20, 45):
        patches = keep - (min(6, max(0, keep - 5)) if pruner.name == "gprune" else 0)
        shares = largest_remainder([len(view) for view in views], patches)
        for row in pruner.reduce(context, keep).kept.tolist():
            assert tuple(len(set(row) & set(view)) for view in views) == shares


@pytest.mark.parametrize("pruner", [HoloV(), Scope(), VScan()], ids=lambda pruner: pruner.name)
def test_newlines_come_last(pruner: Pruner) -> None:
    context = first_context(pruner, ANYRES)
    patches = ANYRES.tokens - len(NEWLINES)
    for keep in (1, patches - 1, patches):
        assert not set(NEWLINES) & set(pruner.reduce(context, keep).kept[0].tolist())
    beyond = pruner.reduce(context, patches + 2)
    assert set(NEWLINES) & set(beyond.kept[1].tolist()) == set(NEWLINES[:2])
    if beyond.features is not None:
        place = beyond.kept[1].tolist().index(NEWLINES[0])
        torch.testing.assert_close(beyond.features[1, place], context.hidden[1, NEWLINES[0]])


@pytest.mark.parametrize(("keep", "newlines"), [(1, 0), (5, 0), (6, 1), (10, 5), (11, 6), (30, 6), (69, 6)])
def test_gprune_keeps_newlines_while_every_view_has_a_patch(keep: int, newlines: int) -> None:
    kept = GPrune().reduce(first_context(GPrune(), ANYRES), keep).kept
    for row in kept.tolist():
        assert sorted(set(NEWLINES) & set(row)) == NEWLINES[:newlines]


@four
def test_the_grid_must_be_whole(pruner: Pruner) -> None:
    with pytest.raises(ValueError, match="only 20 of 36 tokens are left"):
        pruner.reduce(FakeContext(SQUARE, {"hidden": torch.randn(3, 20, 16)}), 9)


@pytest.mark.parametrize(
    "pruner", [HoloV(rank_by="score"), Scope(combine="add"), Scope(parity=True), VScan(local=1.0), VScan(local=0.0)]
)
@pytest.mark.parametrize("layout", [SQUARE, ANYRES, grid_layout(1, 3)], ids=["square", "anyres", "three"])
def test_options_meet_every_budget(pruner: Pruner, layout: ImageLayout) -> None:
    context = first_context(pruner, layout)
    for keep in sorted({1, 2, layout.tokens // 2, layout.tokens - 1}):
        for row in pruner.reduce(context, keep).kept.tolist():
            assert len(set(row)) == keep


def test_holov_stands_chunk_by_chunk_best_first() -> None:
    context = first_context(HoloV(), BIG)
    # The second of four chunks of 36 draws so much that it is kept whole.
    context.tensors["encoder_attention"][:, :, 36:72] += 1
    reduction = HoloV(chunks=4).reduce(context, 50)
    assert reduction.ordered
    attention = context.encoder_attention.mean(1)
    for image, row in enumerate(reduction.kept.tolist()):
        chunks = [token // 36 for token in row]
        assert chunks == sorted(chunks)
        assert [token for token in row if token // 36 == 1] == list(range(36, 72))
        for chunk in (0, 2, 3):
            here = [token for token in row if token // 36 == chunk]
            best = attention[image, chunk * 36 : chunk * 36 + 36].argsort(descending=True) + chunk * 36
            assert here == best[: len(here)].tolist()


def test_holov_sharpness_moves_the_quotas() -> None:
    context = first_context(HoloV(), BIG, batch=1)
    # Means of the four chunks: 1.12, 1.37, 1.63 and 1.88 parts of 6.
    context.tensors["encoder_attention"] = torch.linspace(1, 2, 144).expand(1, 4, 144) / 216
    for sharpness, quotas in ((1.0, [7, 9, 11, 13]), (4.0, [2, 5, 12, 21])):
        kept = HoloV(chunks=4, sharpness=sharpness).reduce(context, 40).kept[0].tolist()
        assert [sum(token // 36 == chunk for token in kept) for chunk in range(4)] == quotas


def test_holov_ranks_by_attention_or_by_the_score_with_variety() -> None:
    context = first_context(HoloV(), SQUARE)
    context.tensors["encoder_attention"] = torch.linspace(2, 1, 36).expand(3, 4, 36) / 54
    other = context.images(range(3))
    other.tensors["hidden"] = torch.randn(3, 36, 16)
    first = [list(range(9))] * 3
    assert HoloV(chunks=1, variety=1.0).reduce(context, 9).kept.tolist() == first
    assert HoloV(chunks=1, variety=0.0, rank_by="score").reduce(context, 9).kept.tolist() == first
    pruner = HoloV(chunks=1, variety=1.0, rank_by="score")
    assert pruner.reduce(context, 9).kept.tolist() != first
    assert pruner.reduce(context, 9).kept.tolist() != pruner.reduce(other, 9).kept.tolist()


def test_scope_sums_attention_over_heads() -> None:
    context = first_context(Scope(), SQUARE)
    for combine in ("multiply", "add"):
        kept = Scope(combine=combine, sharpness=2.0).reduce(context, 9).kept
        saliency = context.encoder_attention.sum(1)
        expected = weighted_coverage(context.encoder_features, saliency, 9, sharpness=2.0, add=combine == "add")
        assert kept.tolist() == expected.tolist()
    assert Scope(combine="add").reduce(context, 9).kept.tolist() != Scope().reduce(context, 9).kept.tolist()


def test_scope_goes_on_by_saliency_when_all_is_covered() -> None:
    context = first_context(Scope(), SQUARE)
    context.tensors["encoder_features"] = torch.ones(3, 36, 12)
    falling = context.encoder_attention.sum(1).argsort(dim=1, descending=True)
    assert Scope().reduce(context, 9).kept.tolist() == falling[:, :9].tolist()
    for row, best in zip(Scope(parity=True).reduce(context, 9).kept.tolist(), falling[:, 0].tolist(), strict=True):
        assert row == [best, *(token for token in range(36) if token != best)][:9]


def test_gprune_options_change_the_choice() -> None:
    context = first_context(GPrune(), BIG)
    context.tensors["hidden"] += 3 * torch.randn(3, 9, 16).repeat_interleave(16, dim=1)
    default = GPrune().reduce(context, 20).kept.tolist()
    for other in (GPrune(threshold=0.2), GPrune(temperature=1.0), GPrune(steps=1)):
        assert other.reduce(context, 20).kept.tolist() != default


def test_gprune_prefers_strong_tokens_without_edges_to_shared_ones() -> None:
    context = first_context(GPrune(), grid_layout(1, 5), batch=1)
    context.tensors["hidden"] = torch.tensor([[[5.0, 0, 0], [5, 0, 0], [0, 3, 0], [0, 0, 1], [0, 0, 1]]])
    # Two equal tokens arrive at 5 each and have two edges.
    assert GPrune().reduce(context, 3).kept.tolist() == [[2, 0, 1]]


def test_vscan_schedule_and_presets() -> None:
    assert VScan().schedule(576, 64) == (192, 64)
    assert VScan().schedule(100, 64) == (100, 64)
    assert VScan(factor=1.5).schedule(576, 5) == (8, 5)
    assert VScan(factor=1).schedule(576, 5) == (5, 5)
    assert VScan(stages=(0,)).schedule(576, 64) == (64,)
    assert VScan.presets
    for average, keep in VScan.presets.items():
        first, last = VScan().schedule(576, keep)
        assert (16 * first + 16 * last) / 32 == average


def test_vscan_fits_other_models() -> None:
    assert (VScan().layers, VScan().encoder_layers) == ((0, 16), (5, -2))
    fitted = VScan().fit(Depths(decoder=28, encoder=24))
    assert (fitted.layers, fitted.encoder_layers) == ((0, 14), (5, -2))
    small = VScan().fit(Depths(decoder=4, encoder=2))
    assert (small.layers, small.encoder_layers) == ((0, 2), (0, -2))
    assert VScan().fit(Depths(decoder=32, encoder=27)).encoder_layers == (6, -2)
    chosen = VScan(stages=(0, 3), shallow=7)
    assert chosen.fit(Depths(decoder=28, encoder=24)) == chosen


def test_vscan_stages_need_different_signals() -> None:
    assert VScan().stage_signals(0) == {Signal.ENCODER_LAYERS}
    assert VScan().stage_signals(1) == {Signal.NEXT_STATES}
    assert VScan().stage_signals(0) | VScan().stage_signals(1) == VScan.signals


@pytest.mark.parametrize("keep", range(1, 36))
def test_vscan_second_stage_follows_the_prompt(keep: int) -> None:
    pruner = VScan()
    context = random_context(SQUARE, signals=pruner.stage_signals(1), layer=16)
    reduction = pruner.reduce(context, keep)
    attention = context.next_last_token_attention.mean(1)
    assert reduction.kept.tolist() == attention.argsort(dim=1, descending=True, stable=True)[:, :keep].tolist()
    assert reduction.features is not None
    for image in range(3):
        assert torch.equal(reduction.features[image], context.hidden[image, reduction.kept[image]])
    # Nothing of it needs the whole picture.
    fewer = FakeContext(BIG, context.tensors, signals=pruner.stage_signals(1), layer=16)
    assert pruner.reduce(fewer, keep).kept.tolist() == reduction.kept.tolist()


def test_vscan_second_stage_needs_no_value_on_the_host() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        context = random_context(SQUARE, signals=VScan().stage_signals(1), layer=16).to(torch.device("cuda"))
        assert VScan().reduce(context, 9).kept.device.type == "cuda"


def test_vscan_spreads_local_picks_over_windows() -> None:
    pruner = VScan(local=1.0, window=3)
    context = first_context(pruner, BIG)
    shallow = context.encoder_layer(0).attention.mean(1)
    window = torch.arange(144).view(12, 12) // 36 * 4 + torch.arange(12) // 3
    for keep in (16, 48, 50, 100):
        kept = pruner.reduce(context, keep).kept
        for image, row in enumerate(kept.tolist()):
            counts = Counter(window.flatten()[row].tolist())
            assert len(counts) == 16
            assert max(counts.values()) - min(counts.values()) == (0 if keep % 16 == 0 else 1)
            for number, count in counts.items():
                here = (window.flatten() == number).nonzero().flatten()
                best = here[shallow[image, here].argsort(descending=True)[:count]]
                assert set(best.tolist()) <= set(row)


def test_vscan_windows_lie_within_the_views() -> None:
    pruner = VScan(local=1.0, window=2)
    # Five picks of the thumbnail and four of each crop, whose 4 x 4 patches the unpadding takes a row from.
    kept = pruner.reduce(first_context(pruner, ANYRES), 21).kept
    for row in kept.tolist():
        windows = Counter(
            (patch // 16, patch % 16 // 8, patch % 4 // 2) for patch in (ANYRES.patches[token] for token in row)
        )
        assert len(windows) == 20
    ragged = VScan(local=1.0).reduce(first_context(pruner, grid_layout(3, 7)), 2).kept
    assert all(sum(token % 7 == 6 for token in row) == 1 for row in ragged.tolist())


def test_vscan_looks_everywhere_with_the_deep_layer() -> None:
    context = first_context(VScan(), BIG)
    deep = context.encoder_layer(1).attention.mean(1)
    kept = VScan(local=0.0).reduce(context, 40).kept
    assert kept.tolist() == deep.argsort(dim=1, descending=True)[:, :40].sort(1).values.tolist()
    # Half of the budget, rounded down, is local; the other half never counts a local pick again.
    local = VScan(local=1.0).reduce(context, 50).kept
    both = VScan().reduce(context, 101).kept
    for image in range(3):
        others = [token for token in deep[image].argsort(descending=True).tolist() if token not in local[image]]
        assert both[image].tolist() == sorted([*local[image].tolist(), *others[:51]])


def test_vscan_merges_every_patch_of_a_view_once() -> None:
    context = first_context(VScan(), ANYRES)
    reduction = VScan().reduce(context, 20)
    assert reduction.features is not None
    unit = torch.nn.functional.normalize(context.hidden.double(), dim=-1)
    for view in context.view_tokens:
        for image in range(3):
            mine = [place for place, token in enumerate(reduction.kept[image].tolist()) if token in view.tolist()]
            centres = reduction.kept[image, mine]
            groups: dict[int, list[int]] = {place: [] for place in mine}
            for token in view.tolist():
                if token in centres.tolist():
                    groups[mine[centres.tolist().index(token)]].append(token)
                else:
                    groups[mine[int((unit[image, centres] @ unit[image, token]).argmax())]].append(token)
            for place, members in groups.items():
                expected = context.hidden[image, members].mean(0)
                torch.testing.assert_close(reduction.features[image, place], expected)
