"""What SparseVLM, SparseVLM+, MustDrop and DART promise beyond the invariants of all methods."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import pytest
import torch
from fakes import ANYRES, PREFIX, SQUARE, FakeContext, random_context

from vtprune.budget import per_layer_tokens
from vtprune.layout import grid_layout
from vtprune.ops.raters import rotary_gravity, text_raters
from vtprune.pruner import Depths, Pruner
from vtprune.pruners.dart import DART
from vtprune.pruners.mustdrop import MustDrop
from vtprune.pruners.sparsevlm import SparseVLM
from vtprune.pruners.sparsevlm_plus import SparseVLMPlus
from vtprune.registry import make_pruner

PUBLISHED = {
    "sparsevlm": {192: (309, 204, 113), 128: (312, 117, 39), 96: (249, 55, 27), 64: (82, 32, 18)},
    "sparsevlm+": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
STAGED = (SparseVLM(), SparseVLMPlus(), MustDrop())
staged = pytest.mark.parametrize("pruner", STAGED, ids=lambda pruner: pruner.name)


def context_for(pruner: Pruner, layout: Any = SQUARE) -> FakeContext:
    return random_context(layout, signals=pruner.signals, layer=pruner.layers[0])


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        *(
            case
            for name in ("sparsevlm", "sparsevlm+", "mustdrop")
            for case in (
                (name, {"stages": (0, 3)}, ValueError, "layer must be at least 1, got 0"),
                (name, {"stages": (7, 3)}, ValueError, r"stages must ascend, got \(7, 3\)"),
                (name, {"stages": ()}, TypeError, r"stages must be a tuple of decoder layers or None, got \(\)"),
                (name, {"stages": 3}, TypeError, "stages must be a tuple of decoder layers or None, got 3"),
            )
        ),
        ("sparsevlm", {"recycled": 1.5}, ValueError, r"recycled must be in \[0, 1\], got 1.5"),
        ("sparsevlm", {"per_cluster": 1}, ValueError, "per_cluster must be at least 2, got 1"),
        ("sparsevlm", {"noise": -1e-6}, ValueError, r"noise must be in \[0, 1\], got -1e-06"),
        ("sparsevlm+", {"heads": 0}, ValueError, "heads must be at least 1, got 0"),
        ("sparsevlm+", {"theta": 0.0}, ValueError, "theta must be above 0 and finite, got 0.0"),
        ("mustdrop", {"global_threshold": 0}, ValueError, "global_threshold must be above 0 and finite, got 0"),
        ("mustdrop", {"individual_threshold": -1.0}, ValueError, "individual_threshold must be above 0 .* got -1.0"),
        ("mustdrop", {"protected": 2}, ValueError, r"protected must be in \[0, 1\], got 2"),
        ("dart", {"layer": 0}, ValueError, "layer must be at least 1, got 0"),
        ("dart", {"image_pivots": 0}, ValueError, "image_pivots must be at least 1, got 0"),
        ("dart", {"text_pivots": -1}, ValueError, "text_pivots must be at least 0, got -1"),
    ],
)
def test_bad_hyper_parameters_are_refused(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(name)}: .*{message}"):
        make_pruner(name, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schedules_are_met(name: str) -> None:
    pruner = make_pruner(name)
    assert pruner.layers == (3, 7, 16)
    assert set(pruner.presets) == set(PUBLISHED[name])
    for average, keep in pruner.presets.items():
        assert pruner.schedule(576, keep) == PUBLISHED[name][average]
        assert pruner.schedule(2880, 5 * keep) == tuple(5 * count for count in PUBLISHED[name][average])
        nominal = per_layer_tokens(pruner, 576, keep, 32, "nominal")
        assert sum(nominal) / 32 == pytest.approx(average, abs=0.95)


@staged
@pytest.mark.parametrize("tokens", [9, 36, 256, 576, 2880])
def test_schedules_fall_and_follow_the_budget(pruner: Pruner, tokens: int) -> None:
    costs = []
    for keep in range(1, tokens):
        counts = pruner.schedule(tokens, keep)
        assert len(counts) == len(pruner.layers)
        assert list(counts) == sorted(counts, reverse=True)
        assert counts[0] <= tokens
        assert counts[-1] == keep
        costs.append(sum(per_layer_tokens(pruner, tokens, keep, 32)))
    assert costs == sorted(costs)


@staged
def test_layers_are_those_of_the_paper_at_its_depth(pruner: Pruner) -> None:
    assert pruner.fit(Depths(decoder=32, encoder=24)).layers == pruner.layers
    deeper = pruner.fit(Depths(decoder=64, encoder=24)).layers
    assert deeper == tuple(2 * layer for layer in pruner.layers)
    chosen = make_pruner(pruner.name, stages=(2, 5))
    assert chosen.fit(Depths(decoder=64, encoder=24)).layers == (2, 5)
    assert chosen.schedule(576, 144) == (288, 144)
    with pytest.raises(ValueError, match="stages do not fit into 3 layers"):
        pruner.fit(Depths(decoder=3, encoder=24))


@pytest.mark.parametrize(
    ("tokens", "keep", "split"),
    [
        *((576, 309, (300, 9)), (309, 204, (200, 4)), (204, 113, (110, 3))),
        *((576, 312, (303, 9)), (312, 117, (110, 7)), (117, 39, (36, 3))),
        *((576, 249, (238, 11)), (249, 55, (48, 7)), (55, 27, (26, 1))),
        *((576, 82, (66, 16)), (82, 32, (30, 2)), (32, 18, (17, 1))),
        *((576, 575, (574, 1)), (576, 19, (1, 18)), (576, 10, (1, 9)), (576, 1, (1, 0)), (2, 1, (1, 0))),
    ],
)
def test_sparsevlm_splits_as_the_official_counts(tokens: int, keep: int, split: tuple[int, int]) -> None:
    assert SparseVLM().split(tokens, keep) == split


@pytest.mark.parametrize(
    "pruner", [SparseVLM(), SparseVLM(recycled=0.0), SparseVLM(recycled=1.0, per_cluster=2)], ids=str
)
@pytest.mark.parametrize("tokens", [2, 3, 36, 577])
def test_sparsevlm_always_meets_the_budget(pruner: SparseVLM, tokens: int) -> None:
    for keep in range(1, tokens):
        kept, clusters = pruner.split(tokens, keep)
        assert kept + clusters == keep
        assert kept >= 1
        removed = tokens - kept
        recycled = min(removed, int(pruner.recycled * removed) + 1)
        assert clusters <= recycled
        assert clusters == recycled // pruner.per_cluster + 1 or kept == 1


def rated(context: FakeContext) -> torch.Tensor:
    """SparseVLM's scores of a fake context, image by image."""
    scores = []
    for image in range(context.batch):
        words = context.text_follows[image].nonzero().flatten()
        embeddings = context.text[image, words]
        raters = text_raters(context.inputs[image][None], embeddings[None], torch.ones(1, len(words)).bool())[0]
        rows = context.text_slots[image, words[raters]]
        scores.append(context.tensors["attention_map"][image][:, rows].mean(dim=(0, 1)))
    return torch.stack(scores)


def test_sparsevlm_keeps_raster_order_and_then_clusters() -> None:
    pruner = SparseVLM()
    context = context_for(pruner)
    scores = rated(context)
    torch.testing.assert_close(pruner.scores(context), scores)
    reduction = pruner.reduce(context, 12)
    kept, clusters = pruner.split(36, 12)
    assert (kept, clusters) == (11, 1)
    assert reduction.ordered
    assert reduction.features is not None
    for image in range(3):
        best = scores[image].argsort(descending=True)
        assert reduction.kept[image, :kept].tolist() == best[:kept].sort().values.tolist()
        recycled = best[kept : kept + 8]  # int(0.3 * 25) + 1
        assert reduction.kept[image, kept] in recycled
        torch.testing.assert_close(reduction.features[image, kept], context.hidden[image, recycled].mean(0))
        torch.testing.assert_close(
            reduction.features[image, :kept], context.hidden[image, reduction.kept[image, :kept]]
        )


def test_sparsevlm_keeps_one_token_as_it_is() -> None:
    pruner = SparseVLM()
    context = context_for(pruner)
    reduction = pruner.reduce(context, 1)
    best = rated(context).argmax(dim=1)
    assert reduction.kept.tolist() == best[:, None].tolist()
    assert reduction.features is not None
    torch.testing.assert_close(reduction.features[:, 0], context.hidden[torch.arange(3), best])


def test_sparsevlm_recycles_more_on_demand() -> None:
    context = context_for(SparseVLM())
    assert SparseVLM(recycled=1.0, per_cluster=2).split(36, 30) == (23, 7)
    reduction = SparseVLM(recycled=1.0, per_cluster=2).reduce(context, 30)
    assert all(len(set(row)) == 30 for row in reduction.kept.tolist())


def test_noise_depends_on_the_place_alone() -> None:
    context = context_for(SparseVLM(), grid_layout(12, 12))
    context.tensors["hidden"] = torch.arange(144)[None, :, None] % 2 * torch.ones(3, 144, 16)
    context.tensors["attention_map"] = torch.ones_like(context.tensors["attention_map"])
    plain, noisy = SparseVLM(), SparseVLM(noise=1e-6)
    kept, clusters = plain.split(144, 60)
    assert clusters > 1
    # Two points, many times: without noise all are as dense and the first are centres, with it one of each kind leads.
    assert plain.reduce(context, 60).kept[0].tolist() == list(range(60))
    found = noisy.reduce(context, 60).kept
    assert found[0].tolist() == found[1].tolist() != list(range(60))
    assert found[0, :kept].tolist() == list(range(kept))
    assert sum(found[0, kept : kept + 2].tolist()) % 2 == 1


@pytest.mark.parametrize(
    "pruner", [SparseVLM(), SparseVLMPlus(), MustDrop(protected=0.0)], ids=lambda pruner: pruner.name
)
def test_without_text_behind_the_image_the_first_tokens_stay(pruner: Pruner) -> None:
    context = context_for(pruner)
    context.tensors["text_mask"][1, PREFIX:] = False
    reduction = pruner.reduce(context, 12)
    expected = list(range(12))
    kept = 11 if pruner.merges else 12
    assert sorted(reduction.kept[1].tolist())[:kept] == expected[:kept]
    assert sorted(reduction.kept[0].tolist())[:kept] != expected[:kept]


def test_mustdrop_scores_nothing_without_text_behind_the_image() -> None:
    context = context_for(MustDrop())
    context.tensors["text_mask"][1, PREFIX:] = False
    assert MustDrop().scores(context)[1].tolist() == [0.0] * 36


@pytest.mark.parametrize("pruner", [SparseVLM(), SparseVLMPlus(), MustDrop(), DART()], ids=lambda pruner: pruner.name)
def test_text_before_the_image_says_nothing(pruner: Pruner) -> None:
    context = context_for(pruner)
    before = pruner.reduce(context, 12).kept.tolist()
    for signal in ("text", "attention_map", "sequence_keys", "sequence_hidden"):
        states = context.tensors[signal]
        rows = 1 if signal in ("text", "sequence_hidden") else 2
        states.narrow(rows, 0, PREFIX).fill_(torch.nan)
    assert pruner.reduce(context, 12).kept.tolist() == before


def test_sparsevlm_plus_looks_at_the_loudest_heads() -> None:
    context = context_for(SparseVLMPlus())
    assert torch.equal(SparseVLMPlus().scores(context), SparseVLMPlus(heads=4).scores(context))
    slots, columns = context.text_slots, context.columns(context.text_slots)
    gravity = rotary_gravity(columns, context.columns(context.slots), 8, 10000.0)
    corrected = context.attention_from(slots) / gravity[:, None]
    for image in range(3):
        words = context.text_follows[image].nonzero().flatten()
        mask = torch.ones(1, len(words), dtype=torch.bool)
        raters = words[text_raters(context.inputs[image][None], context.text[image, words][None], mask)[0]]
        heads = corrected[image][:, raters].mean(1)
        loud = heads.sum(1).argsort(descending=True)
        for count in (1, 2, 4):
            scores = SparseVLMPlus(heads=count).scores(context)[image]
            torch.testing.assert_close(scores.double(), heads[loud[:count]].mean(0))


def test_sparsevlm_plus_knows_the_rotary_base() -> None:
    context = context_for(SparseVLMPlus())
    context.tensors["attention_map"] = torch.ones_like(context.tensors["attention_map"])
    assert not torch.equal(SparseVLMPlus(theta=2.0).scores(context), SparseVLMPlus().scores(context))


def test_mustdrop_ranks_by_the_threshold_that_is_exceeded_more() -> None:
    pruner = MustDrop(protected=0.0)
    context = context_for(pruner)
    attention = context.attention_from(context.text_slots).mean(1) * context.text_follows[..., None]
    share = attention.sum(1) / attention.sum((1, 2))[:, None]
    scores = torch.maximum(share / 0.011, attention.amax(1) / 0.01)
    torch.testing.assert_close(pruner.scores(context), scores)
    assert pruner.reduce(context, 7).kept.tolist() == scores.argsort(dim=1, descending=True)[:, :7].tolist()


def test_mustdrop_protects_its_key_set() -> None:
    pruner = MustDrop(protected=0.2)
    context = context_for(pruner)
    scores, looked_at = pruner.scores(context), context.encoder_layer(0).attention.mean(1)
    for image in range(3):
        key = looked_at[image].topk(8).indices.tolist()  # 7.2 is rounded up
        by_score = scores[image].argsort(descending=True).tolist()
        ranked = [token for token in by_score if token in key] + [token for token in by_score if token not in key]
        for keep in (1, 7, 8, 9, 20):
            assert pruner.reduce(context, keep).kept[image].tolist() == ranked[:keep]
    assert pruner.encoder_layers == (-1,)
    assert MustDrop(protected=0.0).encoder_layers == ()


class Pruned(FakeContext):
    """A later stage, at which the tokens named in `origin` are left."""

    @cached_property
    def is_patch(self) -> torch.Tensor:
        return (torch.tensor(self.layout.patches) >= 0)[self.tensors["origin"]]


def left_of(context: FakeContext, kept: torch.Tensor) -> Pruned:
    """What MustDrop sees once the tokens `(batch, kept)`, ascending, are left."""
    tensors = {"origin": kept, "text_mask": context.tensors["text_mask"]}
    for name, dim in (("hidden", 1), ("encoder_layer0.attention", 2), ("attention_map", 3)):
        states = context.tensors[name]
        index = kept.view(len(kept), *[1] * (dim - 1), -1, *[1] * (states.dim() - dim - 1))
        tensors[name] = states.take_along_dim(index, dim)
    # Rows of the map are slots of the sequence, of which the removed tokens are gone.
    before, gone = PREFIX + kept.shape[1], context.tokens - kept.shape[1]
    rows = tensors["attention_map"]
    tensors["attention_map"] = torch.cat([rows[:, :, :before], rows[:, :, before + gone :]], dim=2)
    return Pruned(context.layout, tensors, signals=context.signals, layer=7)


def test_mustdrop_knows_the_key_set_at_later_stages() -> None:
    pruner = MustDrop(protected=0.2)
    context = context_for(pruner)
    key = context.encoder_layer(0).attention.mean(1).topk(8).indices
    kept = pruner.reduce(context, 20).kept.sort(dim=1).values
    last = kept.gather(1, pruner.reduce(left_of(context, kept), 9).kept)
    for image in range(3):
        assert set(key[image].tolist()) < set(last[image].tolist())


def test_mustdrop_never_protects_separators() -> None:
    pruner = MustDrop(protected=1.0)
    context = context_for(pruner, ANYRES)
    patches = int(context.is_patch[0].sum())
    assert bool(context.is_patch.gather(1, pruner.reduce(context, patches).kept).all())
    later = left_of(context, torch.arange(ANYRES.tokens - 30, ANYRES.tokens).expand(3, -1))
    patches = int(later.is_patch[0].sum())
    assert 0 < patches < 30
    assert bool(later.is_patch.gather(1, pruner.reduce(later, patches).kept).all())


def test_mustdrop_counts_by_its_thresholds() -> None:
    context = context_for(MustDrop())
    scores, looked_at = MustDrop().scores(context), context.encoder_layer(0).attention.mean(1)
    key = torch.zeros(3, 36, dtype=torch.bool).scatter(1, looked_at.topk(3).indices, True)  # ceil(0.08 * 36)
    middle = float(scores.median())
    pruner = MustDrop(global_threshold=0.011 * middle, individual_threshold=0.01 * middle)
    reduction = pruner.reduce_adaptive(context)
    assert reduction.valid is not None
    counts = reduction.valid.sum(1).tolist()
    assert len(set(counts)) > 1
    for image in range(3):
        found = reduction.kept[image, reduction.valid[image]]
        assert found.tolist() == ((scores[image] >= middle) | key[image]).nonzero().flatten().tolist()


def test_mustdrop_keeps_the_best_token_where_none_reaches_a_threshold() -> None:
    pruner = MustDrop(global_threshold=1e6, individual_threshold=1e6, protected=0.0)
    context = context_for(pruner)
    reduction = pruner.reduce_adaptive(context)
    assert reduction.valid is not None
    assert reduction.kept[reduction.valid].tolist() == pruner.scores(context).argmax(dim=1).tolist()


def test_dart_takes_the_largest_keys_as_pivots() -> None:
    pruner = DART()
    context = context_for(pruner, grid_layout(12, 12))
    norms = context.keys.abs().sum((1, 3))
    words = context.keys_at(context.text_slots).abs().sum((1, 3))
    for keep in (1, 3, 4, 5, 30):
        pivots = pruner.pivots(context, keep)
        kept = pruner.reduce(context, keep).kept
        for image in range(3):
            largest = norms[image].topk(min(4, keep)).indices.sort().values.tolist()
            assert pivots.image[image].tolist() == largest
            assert set(largest) <= set(kept[image].tolist())
            follows = context.text_follows[image]
            count = min(4, int(follows.sum()))
            slots = context.text_slots[image, words[image].masked_fill(~follows, -1).topk(count).indices]
            assert pivots.text[image, pivots.live[image]].tolist() == slots.sort().values.tolist()


def test_dart_gives_every_pivot_its_share() -> None:
    pruner = DART(image_pivots=1, text_pivots=1)
    context = context_for(pruner)
    pivots = pruner.pivots(context, 8)
    unit = torch.nn.functional.normalize(context.hidden, dim=-1)
    word = torch.nn.functional.normalize(context.hidden_at(pivots.text), dim=-1)
    for image in range(3):
        first = int(pivots.image[image, 0])
        expected = {first}
        # The odd one of seven goes to the first pivot.
        for state, share in ((unit[image, first], 4), (word[image, 0], 3)):
            cosine = unit[image] @ state
            left = [token for token in cosine.argsort().tolist() if token not in expected]
            expected |= set(left[:share])
        assert set(pruner.reduce(context, 8).kept[image].tolist()) == expected


def test_dart_manages_with_little_text_or_none() -> None:
    pruner = DART()
    context = context_for(pruner)
    context.tensors["text_mask"][1] = False
    context.tensors["text_mask"][2] = torch.arange(7) <= PREFIX
    live = pruner.pivots(context, 12).live
    assert live.sum(1).tolist()[1:] == [0, 1]
    kept = pruner.reduce(context, 12).kept
    assert all(len(set(row)) == 12 for row in kept.tolist())
    assert DART(text_pivots=99).pivots(context, 12).live.sum(1).tolist() == context.text_follows.sum(1).tolist()
    alone = DART(text_pivots=0)
    assert alone.reduce(context, 12).kept[1].tolist() == kept[1].tolist()
    assert alone.reduce(context, 12).kept[0].tolist() != kept[0].tolist()
