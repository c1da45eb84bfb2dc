"""What PACT, AIM and the smaller picture promise beyond the invariants."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from fakes import ANYRES, SQUARE, FakeContext, random_context

from vtprune.layout import ImageLayout, Segment, grid_layout
from vtprune.ops.distance_clusters import cosine_distance, density_centres
from vtprune.pruner import Depths, Signal
from vtprune.pruners.aim import AIM
from vtprune.pruners.downsample import Downsample, small_grid
from vtprune.pruners.pact import PACT
from vtprune.registry import make_pruner

PATCHES = sum(patch >= 0 for patch in ANYRES.patches)
NEWLINES = {token for token, patch in enumerate(ANYRES.patches) if patch < 0}


def smooth_context(layout: ImageLayout = SQUARE, batch: int = 3) -> FakeContext:
    """Neighbouring tokens have similar keys, so that clusters are several tokens large."""
    context = random_context(layout, batch, signals=PACT.signals, layer=4)
    context.tensors["next_keys"] = torch.randn(batch, 2, layout.tokens, 8).mul(0.5).cumsum(dim=2)
    return context


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("pact", {"layer": 0}, ValueError, "layer must be at least 1, got 0"),
        ("pact", {"layer": 4.0}, TypeError, "layer must be an integer, got 4.0"),
        ("pact", {"keep_share": 1.5}, ValueError, r"keep_share must be in \[0, 1\], got 1.5"),
        ("pact", {"cutoff": 0.0}, ValueError, "cutoff must be above 0 and finite, got 0.0"),
        ("pact", {"recovery": -1}, ValueError, "recovery must be above 0 and finite, got -1"),
        ("pact", {"proportional_attention": 1}, TypeError, "proportional_attention must be True or False, got 1"),
        ("pact", {"parity": None}, TypeError, "parity must be True or False, got None"),
        ("aim", {"merged": 1.25}, ValueError, r"merged must be in \[0, 1\], got 1.25"),
        ("aim", {"stages": (0, 3)}, ValueError, "layer must be at least 1, got 0"),
        ("aim", {"stages": (4, 3)}, ValueError, r"stages must ascend, got \(4, 3\)"),
        ("aim", {"stages": ()}, TypeError, r"stages must be a tuple of decoder layers or None, got \(\)"),
        ("aim", {"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ("aim", {"temperature": 0}, ValueError, "temperature must be above 0 and finite, got 0"),
        ("aim", {"parity": "no"}, TypeError, "parity must be True or False, got 'no'"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        make_pruner(name, **options)


def test_pact_scales_only_to_shallow_models() -> None:
    assert PACT().layers == (4,)
    fitted = {depth: PACT().fit(Depths(depth, 24)).layers[0] for depth in (6, 8, 16, 28, 32)}
    assert fitted == {6: 1, 8: 1, 16: 2, 28: 4, 32: 4}
    assert PACT(layer=3).fit(Depths(8, 24)).layers == (3,)


def test_pact_members_are_all_patches_within_reach() -> None:
    context = smooth_context()
    for keep in (1, 5, 12):
        reduction = PACT(recovery=1e9).reduce(context, keep)
        assert reduction.features is not None
        assert reduction.sizes is not None
        assert reduction.sizes.sum(dim=1).tolist() == [36.0] * 3
        total = (reduction.features * reduction.sizes.unsqueeze(-1)).sum(dim=1)
        torch.testing.assert_close(total, context.hidden.sum(dim=1), rtol=1e-4, atol=1e-4)
        none = PACT(recovery=1e-9).reduce(context, keep)
        assert none.kept.tolist() == reduction.kept.tolist()
        assert none.sizes is not None
        assert none.sizes.sum(dim=1).tolist() == [float(int(36 * 0.55))] * 3


def test_pact_budget_above_the_candidates_is_pruning() -> None:
    context = smooth_context()
    reduction = PACT().reduce(context, 30)
    queries, keys = context.next_unrotated_queries, context.next_unrotated_keys.repeat_interleave(2, dim=1)
    attention = (queries.mean(dim=2, keepdim=True) @ keys.mT * context.scaling).softmax(-1)[:, :, 0].mean(dim=1)
    best = (attention * context.hidden.norm(dim=-1)).topk(30).indices.sort().values
    assert reduction.kept.tolist() == best.tolist()


def test_pact_attention_is_optional() -> None:
    context = smooth_context()
    plain = PACT(proportional_attention=False)
    assert plain.reduce(context, 9).sizes is None
    assert plain.reduce_adaptive(context).sizes is None
    assert plain.reduce(context, 9).kept.tolist() == PACT().reduce(context, 9).kept.tolist()


def test_pact_parity_sets_one_more_aside() -> None:
    context = smooth_context()
    own, official = (PACT(recovery=1e-9, parity=parity).reduce(context, 6) for parity in (False, True))
    assert own.sizes is not None
    assert official.sizes is not None
    assert (own.sizes.sum(dim=1) - official.sizes.sum(dim=1)).tolist() == [1.0] * 3
    assert PACT(keep_share=0.0, parity=True).reduce_adaptive(context).kept.shape == (3, 1)


def test_pact_adaptive_counts_differ_between_images() -> None:
    context = smooth_context(batch=4)
    context.tensors["next_keys"][1] = 1.0
    reduction = PACT(cutoff=0.1).reduce_adaptive(context)
    assert reduction.valid is not None
    assert reduction.features is not None
    assert reduction.sizes is not None
    counts = reduction.valid.sum(dim=1).tolist()
    assert counts[1] == 1
    assert len(set(counts)) > 1
    assert max(counts) == reduction.kept.shape[1]
    for image, count in enumerate(counts):
        alone = PACT(cutoff=0.1).reduce_adaptive(context.images([image]))
        assert alone.features is not None
        valid = reduction.valid[image]
        assert alone.kept[0].tolist() == reduction.kept[image, valid].tolist()
        torch.testing.assert_close(alone.features[0], reduction.features[image, valid])
        exact = PACT(cutoff=0.1).reduce(context.images([image]), count)
        assert exact.kept.tolist() == alone.kept.tolist()
        assert exact.features is not None
        torch.testing.assert_close(exact.features, alone.features)
    assert bool((reduction.sizes >= 1).all())


def test_pact_adaptive_centres_are_those_of_the_rule() -> None:
    context = smooth_context()
    reduction = PACT(keep_share=1.0).reduce_adaptive(context)
    assert reduction.valid is not None
    expected = density_centres(cosine_distance(context.next_keys.transpose(1, 2).flatten(2)), 0.21)
    for image in range(3):
        kept = reduction.kept[image, reduction.valid[image]].tolist()
        assert kept == expected[image].nonzero().flatten().tolist()


def test_pact_leaves_newlines_for_last() -> None:
    context = smooth_context(ANYRES)
    assert not NEWLINES & set(PACT().reduce(context, PATCHES).kept.flatten().tolist())
    assert not NEWLINES & set(PACT().reduce_adaptive(context).kept.flatten().tolist())
    beyond = PACT().reduce(context, PATCHES + 2)
    assert beyond.features is not None
    assert beyond.sizes is not None
    assert beyond.kept[1, -2:].tolist() == sorted(NEWLINES)[:2]
    torch.testing.assert_close(beyond.features[1, -2:], context.hidden[1, sorted(NEWLINES)[:2]])
    assert beyond.sizes[:, -2:].tolist() == [[1.0, 1.0]] * 3


def test_aim_stages_of_other_depths() -> None:
    assert AIM().fit(Depths(28, 24)).layers == (0, *range(14, 21))
    assert AIM().fit(Depths(32, 24)).layers == (0, 16, 17, 18, 19, 21, 22, 23)
    assert AIM().fit(Depths(8, 6)).layers == (0, 4, 5, 6)
    assert AIM().fit(Depths(2, 6)).layers == AIM().fit(Depths(1, 6)).layers == (0, 1)
    assert AIM(stages=(3, 9)).fit(Depths(28, 24)).layers == (0, 3, 9)
    assert AIM().stage_signals(0) == frozenset()
    assert Signal.DECODER_STATES in AIM().stage_signals(1)


@pytest.mark.parametrize("pruner", [AIM(), AIM(merged=0.0), AIM(merged=1.0), AIM(stages=(2, 5, 7))], ids=str)
def test_aim_schedule_ends_at_the_budget(pruner: AIM) -> None:
    for tokens in (2, 7, 36, 576, 2880):
        for keep in {1, 2, tokens // 4, tokens // 3, tokens - 1} - {0}:
            counts = pruner.schedule(tokens, keep)
            assert len(counts) == len(pruner.layers)
            assert counts[-1] == keep
            assert all(tokens >= one >= other >= keep for one, other in pairwise(counts))
    assert AIM().schedule(576, 300) == (300,) * 8
    assert AIM(merged=1.0).schedule(576, 1)[0] == 576
    assert AIM(merged=0.0).schedule(576, 9) == (9,) * 8


def test_aim_merges_plain_means_and_keeps_the_sum_of_pairs() -> None:
    hidden = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])[None]
    context = FakeContext(grid_layout(2, 2), {"hidden": hidden})
    reduction = AIM().reduce(context, 2)
    assert reduction.kept.tolist() == [[1, 3]]
    assert reduction.features is not None
    torch.testing.assert_close(reduction.features, torch.tensor([[[1.0, 0.05], [0.05, 1.0]]]))
    # The second matching takes the means as they are, not by how many tokens they stand for.
    three = torch.tensor([[2.0, 0.0], [4.0, 0.0], [9.0, 0.0]])[None]
    reduction = AIM().reduce(FakeContext(grid_layout(1, 3), {"hidden": three}), 1)
    assert reduction.features is not None
    assert reduction.features.tolist() in ([[[6.0, 0.0]]], [[[4.75, 0.0]]])


def test_aim_later_stages_leave_states_as_they_are() -> None:
    context = random_context(SQUARE, signals=AIM.signals, layer=14)
    reduction = AIM().reduce(context, 9)
    assert reduction.features is not None
    expected = context.hidden.gather(1, reduction.kept.unsqueeze(-1).expand(-1, -1, 16))
    assert torch.equal(reduction.features, expected)
    assert reduction.kept.tolist() == AIM().reduce(context.padded(5), 9).kept.tolist()


def test_aim_does_not_see_padding_behind_the_words() -> None:
    context = random_context(SQUARE, signals=AIM.signals, layer=14)
    other = context.images(range(3))
    absent = torch.zeros(3, 43, dtype=torch.bool).scatter(1, context.text_slots, ~context.text_present)
    assert bool(absent.any())
    for name in ("sequence_queries", "sequence_keys"):
        other.tensors[name].masked_fill_(absent[:, None, :, None], torch.inf)
    assert AIM().reduce(other, 9).kept.tolist() == AIM().reduce(context, 9).kept.tolist()


@pytest.mark.parametrize("options", [{"steps": 1}, {"temperature": 5.0}])
def test_aim_walks_as_it_is_told(options: dict[str, Any]) -> None:
    context = random_context(grid_layout(12, 12), signals=AIM.signals, layer=14)
    assert AIM(**options).reduce(context, 36).kept.tolist() != AIM().reduce(context, 36).kept.tolist()


@pytest.mark.parametrize("words", [slice(0, 2), slice(2, 3)], ids=["before", "behind"])
def test_aim_walks_over_the_words_too(words: slice) -> None:
    context = random_context(grid_layout(12, 12), signals=AIM.signals, layer=14)
    before = AIM().reduce(context, 36).kept
    other = context.images(range(3))
    slots = list(range(*words.indices(7)))
    slots = [slot if slot < 2 else slot + 144 for slot in slots]
    for name in ("sequence_queries", "sequence_keys"):
        other.tensors[name][:, :, slots] = torch.randn_like(other.tensors[name][:, :, slots]) * 3
    assert AIM().reduce(other, 36).kept.tolist() != before.tolist()


def test_aim_leaves_newlines_for_last() -> None:
    for layer in (0, 14):
        context = random_context(ANYRES, signals=AIM.signals, layer=layer)
        assert not NEWLINES & set(AIM().reduce(context, PATCHES).kept.flatten().tolist())
        beyond = AIM().reduce(context, PATCHES + 2)
        assert beyond.features is not None
        for image in range(3):
            newlines = NEWLINES & set(beyond.kept[image].tolist())
            assert newlines == set(sorted(NEWLINES)[:2])
            place = beyond.kept[image].tolist().index(min(newlines))
            torch.testing.assert_close(beyond.features[image, place], context.hidden[image, min(newlines)])


@pytest.mark.parametrize("view_shape", [(24, 24), (16, 16), (18, 32), (27, 20)])
def test_small_grid_is_the_largest_of_its_aspect(view_shape: tuple[int, int]) -> None:
    rows, columns = view_shape
    aspects = range(1, 40)
    allowed = [
        (height, width)
        for height in aspects
        for width in aspects
        if 3 * width * rows <= 4 * height * columns and 3 * height * columns <= 4 * width * rows
    ]
    smallest = min(height * width for height, width in allowed)
    for keep in range(1, 701):
        height, width = small_grid(view_shape, keep)
        assert 1 <= height * width <= keep
        if keep >= smallest:
            assert (height, width) in allowed
            assert height * width == max(h * w for h, w in allowed if h * w <= keep)
        assert small_grid(view_shape, height * width) == (height, width)


def test_small_grid_of_few_patches_takes_the_nearest_aspect() -> None:
    assert small_grid((3, 7), 1) == (1, 1)
    assert small_grid((1, 40), 8) == (1, 8)
    assert small_grid((40, 1), 8) == (8, 1)
    assert small_grid((24, 24), 2) == (1, 1)
    assert small_grid((24, 24), 12) == (3, 4)
    assert small_grid((24, 24), 9) == (3, 3)


def test_downsample_budgets() -> None:
    clip = grid_layout(24, 24)
    budgets = (1, 3, 64, 65, 128, 192, 575, 576, 600)
    assert [Downsample().attainable(clip, keep) for keep in budgets] == [1, 1, 64, 64, 121, 192, 575, 576, 576]
    assert Downsample().attainable(ANYRES, 69) == 64
    context = random_context(SQUARE, signals=Downsample.signals)
    with pytest.raises(ValueError, match=r"cannot keep 5 tokens of a \(6, 6\) grid; the next smaller .* has 4 patches"):
        Downsample().reduce(context, 5)


def test_downsample_encodes_the_small_picture() -> None:
    context = random_context(SQUARE, signals=Downsample.signals)
    reduction = Downsample().reduce(context, 9)
    assert reduction.kept.tolist() == [[7, 9, 11, 19, 21, 23, 31, 33, 35]] * 3
    assert reduction.features is not None
    assert torch.equal(reduction.features, context.encode_smaller(3, 3))


def test_downsample_places_are_distinct_on_any_budget() -> None:
    for layout in (SQUARE, grid_layout(3, 7), ANYRES, newline_layout()):
        context = random_context(layout, 1, signals=Downsample.signals)
        for keep in range(1, layout.tokens):
            if Downsample().attainable(layout, keep) == keep:
                kept = Downsample().reduce(context, keep).kept[0].tolist()
                assert kept == sorted(set(kept))
                assert len(kept) == keep
                outside = set(kept) - set(context.view_tokens[0].tolist())
                assert len(outside) == max(0, keep - len(context.view_tokens[0]))


def test_downsample_takes_newlines_last() -> None:
    for layout, patches in ((newline_layout(), 12), (ANYRES, PATCHES)):
        context = random_context(layout, 1, signals=Downsample.signals)
        newlines = {token for token, patch in enumerate(layout.patches) if patch < 0}
        for keep in range(1, layout.tokens):
            if Downsample().attainable(layout, keep) == keep:
                kept = set(Downsample().reduce(context, keep).kept[0].tolist())
                assert len(kept & newlines) == max(0, keep - patches)


def newline_layout() -> ImageLayout:
    """One view of 3 x 4 patches, each row closed by a newline token: room for a picture larger than the view."""
    patches = [patch for row in range(3) for patch in (*range(4 * row, 4 * row + 4), -1)]
    return ImageLayout((Segment(3, 4, newline=True),), tuple(patches), views=1, patches_per_view=12)
