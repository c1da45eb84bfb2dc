"""What PruMerge, PruMerge+ and ToMe promise beyond the invariants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import ANYRES, SQUARE, FakeContext, random_context
from torch._subclasses.fake_tensor import FakeTensorMode

from vtprune.layout import ImageLayout, Segment, grid_layout
from vtprune.ops.reference import bipartite as slow_bipartite
from vtprune.ops.reference import neighbour_merge as slow
from vtprune.ops.reference.seeds import stable_topk
from vtprune.pruner import Pruner, Reduction
from vtprune.pruners.prumerge import PruMerge
from vtprune.pruners.prumerge_plus import PruMergePlus
from vtprune.pruners.tome import ToMe
from vtprune.registry import make_pruner

NEWLINES = [token for token, patch in enumerate(ANYRES.patches) if patch < 0]
PATCHES = ANYRES.tokens - len(NEWLINES)
METHODS = (
    *(PruMerge(), PruMerge(average=True), PruMergePlus(), PruMergePlus(parity=True), ToMe()),
    *(ToMe(per_round=3), ToMe(ordered=True)),
)
methods = pytest.mark.parametrize("pruner", METHODS, ids=str)
prumerges = pytest.mark.parametrize(
    "pruner", [PruMerge(), PruMergePlus(), PruMergePlus(parity=True)], ids=["prumerge", "plus", "parity"]
)


def context_for(pruner: Pruner, layout: ImageLayout, batch: int = 3) -> FakeContext:
    return random_context(layout, batch, signals=pruner.signals, layer=0)


def attention_of(context: FakeContext) -> torch.Tensor:
    return context.tensors["encoder_layer0.joint_attention"]


def features_of(reduction: Reduction) -> torch.Tensor:
    assert reduction.features is not None
    return reduction.features


def expected_of(
    context: FakeContext, image: int, centres: list[int], neighbours: int = 32, average: bool = False
) -> torch.Tensor:
    """The official tokens of a plain picture, projected: merged centres, then the rest."""
    features, attention = context.encoder_features[image], attention_of(context)[image]
    keys = context.tensors["encoder_layer0.keys"][image].transpose(0, 1).flatten(1)
    rest = [patch for patch in range(len(features)) if patch not in centres]
    rows = [slow.weighted_rest(features, attention, rest, average=average).unsqueeze(0)]
    if centres:
        rows.insert(0, slow.neighbour_merge(features, keys, attention, centres, neighbours, average=average))
    return context.project(torch.cat(rows).float())


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("prumerge", {"neighbours": -1}, ValueError, "neighbours must be at least 0, got -1"),
        ("prumerge", {"neighbours": 2.0}, TypeError, "neighbours must be an integer, got 2.0"),
        ("prumerge", {"average": 1}, TypeError, "average must be True or False, got 1"),
        (r"prumerge\+", {"neighbours": -3}, ValueError, "neighbours must be at least 0, got -3"),
        (r"prumerge\+", {"spatial": 1.5}, ValueError, r"spatial must be in \[0, 1\], got 1.5"),
        (r"prumerge\+", {"spatial": None}, TypeError, "spatial must be a number, got None"),
        (r"prumerge\+", {"parity": "yes"}, TypeError, "parity must be True or False, got 'yes'"),
        ("tome", {"per_round": 0}, ValueError, "per_round must be at least 1, got 0"),
        ("tome", {"per_round": True}, TypeError, "per_round must be an integer, got True"),
        ("tome", {"proportional_attention": 1}, TypeError, "proportional_attention must be True or False, got 1"),
        ("tome", {"ordered": None}, TypeError, "ordered must be True or False, got None"),
    ],
)
def test_bad_hyper_parameters_are_refused(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        make_pruner(name.replace("\\", ""), **options)


@methods
@pytest.mark.parametrize("layout", [SQUARE, grid_layout(3, 7), ANYRES], ids=["square", "wide", "anyres"])
def test_every_budget_is_met(pruner: Pruner, layout: ImageLayout) -> None:
    context = context_for(pruner, layout, batch=2)
    for keep in range(1, layout.tokens, 1 if layout is SQUARE else 5):
        reduction = pruner.reduce(context, keep)
        assert features_of(reduction).shape == (2, keep, 16)
        assert all(len(set(row)) == keep for row in reduction.kept.tolist())
        assert bool(features_of(reduction).isfinite().all())


@methods
def test_newline_tokens_come_last(pruner: Pruner) -> None:
    context = context_for(pruner, ANYRES)
    for keep in (1, PATCHES - 1, PATCHES):
        assert not set(NEWLINES) & set(pruner.reduce(context, keep).kept[0].tolist())
    beyond = pruner.reduce(context, PATCHES + 2)
    assert beyond.kept[1, -2:].tolist() == NEWLINES[:2]
    torch.testing.assert_close(features_of(beyond)[:, -2:], context.hidden[:, NEWLINES[:2]], rtol=0, atol=0)


@methods
def test_views_do_not_see_each_other(pruner: Pruner) -> None:
    context = context_for(pruner, ANYRES)
    before = pruner.reduce(context, 32)
    for view, tokens in enumerate(context.view_tokens):
        own = torch.isin(before.kept[0], tokens)
        assert int(own.sum()) == (8 if view == 0 else 6)
        changed = context.images(range(3))
        for name in ("hidden", "encoder_features"):
            changed.tensors[name][:, tokens] += 1.0
        after = pruner.reduce(changed, 32)
        moved = ~(features_of(after)[0] == features_of(before)[0]).all(-1)
        assert bool((torch.isin(after.kept[0], tokens) | ~moved).all())
        assert bool(moved[own].all())


@pytest.mark.parametrize(
    "pruner", [PruMergePlus(parity=True), ToMe(per_round=20, proportional_attention=True)], ids=str
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_value_is_needed_on_the_host(pruner: Pruner, device: str) -> None:
    # The defaults are tested with all methods.
    with FakeTensorMode(allow_non_fake_inputs=True):
        reduction = pruner.reduce(context_for(pruner, ANYRES).to(torch.device(device)), 20)
    assert reduction.kept.shape == (3, 20)


@methods
def test_the_grid_is_needed(pruner: Pruner) -> None:
    with pytest.raises(ValueError, match="only 20 of 36 tokens are left"):
        pruner.reduce(FakeContext(SQUARE, {"hidden": torch.randn(3, 20, 16)}), 9)


@pytest.mark.parametrize("average", [False, True])
def test_prumerge_merges_into_the_most_attended(average: bool) -> None:
    pruner = PruMerge(neighbours=5, average=average)
    context = context_for(pruner, SQUARE)
    reduction = pruner.reduce(context, 9)
    assert reduction.ordered
    for image, kept in enumerate(reduction.kept.tolist()):
        best = stable_topk(attention_of(context)[image], 9)
        assert kept == best
        expected = expected_of(context, image, best[:8], neighbours=5, average=average)
        torch.testing.assert_close(features_of(reduction)[image], expected)


@prumerges
def test_a_budget_of_one_is_the_token_of_the_rest(pruner: PruMerge) -> None:
    context = context_for(pruner, SQUARE)
    reduction = pruner.reduce(context, 1)
    assert reduction.kept[:, 0].tolist() == attention_of(context).argmax(1).tolist()
    for image in range(3):
        torch.testing.assert_close(features_of(reduction)[image], expected_of(context, image, []))


@prumerges
def test_attention_of_towers_without_cls_is_as_good(pruner: PruMerge) -> None:
    context = context_for(pruner, SQUARE)
    without = context.images(range(3))
    without.has_cls = False
    assert torch.equal(features_of(pruner.reduce(without, 9)), features_of(pruner.reduce(context, 9)))


def test_prumerge_keeps_outliers_when_free() -> None:
    context = context_for(PruMerge(), SQUARE, batch=4)
    attention = torch.rand(4, 36) * 0.01 + 1.0
    for image, outliers in enumerate([(3, 30, 8), (), (35,), (1, 2)]):
        for rank, patch in enumerate(outliers):
            attention[image, patch] = 9.0 - rank
    attention[1] = 1.0
    context.tensors["encoder_layer0.joint_attention"] = attention
    reduction = PruMerge().reduce_adaptive(context)
    assert reduction.valid is not None
    # The token of the rest is one more; without outliers there is one patch beside it.
    assert reduction.valid.sum(1).tolist() == [4, 2, 2, 3]
    assert reduction.kept[0, :3].tolist() == [3, 30, 8]
    for image, centres in enumerate([[3, 30, 8], [0], [35], [1, 2]]):
        valid = reduction.valid[image]
        kept = reduction.kept[image, valid].tolist()
        assert kept[:-1] == centres
        assert len(set(kept)) == len(kept)
        torch.testing.assert_close(features_of(reduction)[image, valid], expected_of(context, image, centres))


@pytest.mark.parametrize("layout", [SQUARE, ANYRES, grid_layout(1, 1), grid_layout(1, 2), grid_layout(1, 5)], ids=str)
@pytest.mark.parametrize("pruner", [PruMerge(), PruMergePlus()], ids=lambda pruner: pruner.name)
def test_free_counts_do_not_depend_on_batch_mates(pruner: PruMerge, layout: ImageLayout) -> None:
    context = context_for(pruner, layout, batch=6)
    together = pruner.reduce_adaptive(context)
    assert together.valid is not None
    assert together.ordered
    counts = set()
    for image in range(6):
        alone = pruner.reduce_adaptive(context.images([image]))
        assert alone.valid is not None
        here, there = together.valid[image], alone.valid[0]
        kept = together.kept[image, here]
        counts.add(len(kept))
        assert 1 <= len(kept) == len(set(kept.tolist()))
        assert not set(kept.tolist()) & {token for token, patch in enumerate(layout.patches) if patch < 0}
        assert kept.tolist() == alone.kept[0, there].tolist()
        torch.testing.assert_close(features_of(together)[image, here], features_of(alone)[0, there])
    assert len(counts) > 1 or layout.tokens < 6


def test_plus_adds_a_denser_sample_when_free() -> None:
    layout = grid_layout(12, 12)
    context = context_for(PruMergePlus(), layout, batch=1)
    attention = torch.linspace(0.010, 0.011, 144)[torch.randperm(144)][None]
    outliers = [70, 12, 143, 5, 99, 31]
    attention[0, outliers] = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    context.tensors["encoder_layer0.joint_attention"] = attention
    reduction = PruMergePlus().reduce_adaptive(context)
    # A ratio of 6 / 144 has the step 24, whose third is 8.
    sample = [patch for patch in range(0, 143, 8) if patch not in outliers]
    kept = reduction.kept[0].tolist()
    assert kept[:-1] == outliers + sample
    assert kept[-1] == max(set(range(144)) - set(kept[:-1]), key=lambda patch: float(attention[0, patch]))
    torch.testing.assert_close(features_of(reduction)[0], expected_of(context, 0, outliers + sample))


def test_plus_never_samples_the_last_patch() -> None:
    context = context_for(PruMergePlus(), grid_layout(1, 13), batch=1)
    context.tensors["encoder_layer0.joint_attention"] = torch.tensor([[1.0] + [0.01] * 12])
    assert PruMergePlus().reduce_adaptive(context).kept[0, :-1].tolist() == [0, 4, 8]


def test_plus_samples_all_patches_where_a_quarter_stands_out() -> None:
    context = context_for(PruMergePlus(), grid_layout(1, 13), batch=1)
    context.tensors["encoder_layer0.joint_attention"] = torch.tensor([[1.0, 0.9, 0.8] + [0.01] * 10])
    assert PruMergePlus().reduce_adaptive(context).kept[0].tolist() == list(range(13))


def test_a_view_without_tokens_is_passed_over() -> None:
    layout = ImageLayout((Segment(2, 4),), tuple(range(8)), views=2, patches_per_view=8)
    for pruner in (PruMerge(), PruMergePlus(), ToMe()):
        context = context_for(pruner, layout)
        assert pruner.reduce(context, 5).kept.shape == (3, 5)
        if pruner.is_adaptive:
            assert pruner.reduce_adaptive(context).kept.shape[1] >= 2


def test_plus_fills_the_budget_evenly_from_what_attention_left() -> None:
    context = context_for(PruMergePlus(), grid_layout(12, 12))
    assert PruMergePlus().split(33) == (8, 24)
    reduction = PruMergePlus().reduce(context, 33)
    for image, kept in enumerate(reduction.kept.tolist()):
        best = stable_topk(attention_of(context)[image], 144)
        others = sorted(best[8:])
        spaced = [others[136 * place // 24] for place in range(24)]
        assert kept[:-1] == best[:8] + spaced
        assert kept[-1] == next(patch for patch in best[8:] if patch not in spaced)
        torch.testing.assert_close(features_of(reduction)[image], expected_of(context, image, best[:8] + spaced))


def test_plus_without_samples_is_prumerge() -> None:
    context = context_for(PruMerge(), ANYRES)
    plain, plus = PruMerge().reduce(context, 40), PruMergePlus(spatial=0.0).reduce(context, 40)
    assert torch.equal(plain.kept, plus.kept)
    assert torch.equal(features_of(plain), features_of(plus))


@pytest.mark.parametrize(("budget", "split"), [(1, (0, 0)), (2, (1, 0)), (3, (1, 1)), (5, (1, 3)), (129, (32, 96))])
def test_plus_splits_as_it_does_when_free(budget: int, split: tuple[int, int]) -> None:
    assert PruMergePlus().split(budget) == split
    assert PruMergePlus(spatial=1.0).split(budget) == (min(1, budget - 1), max(0, budget - 2))
    assert PruMergePlus(spatial=0.0).split(budget) == (budget - 1, 0)


def test_plus_in_parity_repeats_patches() -> None:
    pruner = PruMergePlus(parity=True)
    context = context_for(pruner, SQUARE, batch=1)
    # The sample of 6 is 3, 9, 15, 21, 27, 33; two of these are attended too.
    best = [9, 1, 33, 20, 7, 2]
    context.tensors["encoder_layer0.joint_attention"][0, best] = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    reduction = pruner.reduce(context, 13)
    order = stable_topk(attention_of(context)[0], 36)
    sample = [3, 9, 15, 21, 27, 33]
    spare = [patch for patch in order if patch not in {*best, *sample}]
    kept = reduction.kept[0].tolist()
    assert kept == [*best, 3, spare[0], 15, 21, 27, spare[1], spare[2]]
    # The second of two equal tokens has the first among its neighbours, and the other way round.
    torch.testing.assert_close(features_of(reduction)[0, 0], features_of(reduction)[0, 7])
    assert not torch.equal(features_of(reduction)[0, 1], features_of(reduction)[0, 7])
    # As many patches as were repeated, and patch 0 with the zeros, are missing at the start.
    rest = sorted(set(range(36)) - {*best, *sample, 0})[1:]
    total = slow.weighted_rest(context.encoder_features[0], attention_of(context)[0], rest)
    torch.testing.assert_close(features_of(reduction)[0, -1], context.project(total.float()))


@pytest.mark.parametrize(("per_round", "rounds"), [(None, (18, 9, 4)), (10, (10, 10, 8, 3)), (4, (4,) * 7 + (3,))])
def test_tome_merges_round_after_round(per_round: int | None, rounds: tuple[int, ...]) -> None:
    pruner = ToMe(per_round=per_round, proportional_attention=True)
    assert pruner.weighs_attention
    context = context_for(pruner, SQUARE)
    reduction = pruner.reduce(context, 36 - sum(rounds))
    assert not reduction.ordered
    assert reduction.sizes is not None
    for image in range(3):
        states, sizes, places = context.hidden[image].double(), [1.0] * 36, list(range(36))
        for merges in rounds:
            kept, source = slow_bipartite.bipartite_match(states, merges)
            states, sizes = slow_bipartite.merge_matched(source, states, sizes)
            places = [places[token] for token in kept]
        assert reduction.kept[image].tolist() == places
        assert reduction.sizes[image].tolist() == sizes
        torch.testing.assert_close(features_of(reduction)[image], states.float())


def test_tome_gives_sizes_only_for_proportional_attention() -> None:
    context = context_for(ToMe(), ANYRES)
    plain = ToMe().reduce(context, PATCHES + 2)
    assert plain.sizes is None
    assert not ToMe().weighs_attention
    sizes = ToMe(proportional_attention=True).reduce(context, 20).sizes
    assert sizes is not None
    assert sizes.sum(1).tolist() == [PATCHES] * 3
    sizes = ToMe(proportional_attention=True).reduce(context, PATCHES + 2).sizes
    assert sizes is not None
    assert sizes.tolist() == [[1.0] * (PATCHES + 2)] * 3


def test_tome_can_leave_the_official_order() -> None:
    context = context_for(ToMe(), SQUARE)
    raster, official = ToMe().reduce(context, 24), ToMe(ordered=True).reduce(context, 24)
    assert official.ordered
    assert not raster.ordered
    assert torch.equal(raster.kept, official.kept)
    odd = official.kept[:, 6:]
    assert odd.tolist() == [list(range(1, 36, 2))] * 3
    assert bool((official.kept[:, :6] % 2 == 0).all())


def test_tome_does_not_round_between_rounds() -> None:
    context = context_for(ToMe(), SQUARE).to(torch.bfloat16)
    exact = ToMe().reduce(context.to(torch.float32), 5)
    rounded = ToMe().reduce(context, 5)
    assert torch.equal(rounded.kept, exact.kept)
    assert torch.equal(features_of(rounded), features_of(exact).bfloat16())
