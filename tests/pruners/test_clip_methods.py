"""CDPruner, TRIM and Recoverable Compression beyond what the golden files hold: options, several views, own counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fakes import ANYRES, SQUARE, FakeContext, random_context

from vtprune.layout import ImageLayout, grid_layout
from vtprune.ops.dpp import dpp_map
from vtprune.ops.outliers import iqr_outlier_count, lof_outlier_count
from vtprune.ops.reference.neighbour_merge import neighbour_merge, weighted_rest
from vtprune.ops.reference.seeds import cosine
from vtprune.ops.share import largest_remainder
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction
from vtprune.pruners.cdpruner import CDPruner
from vtprune.pruners.recoverable import Counts, Recoverable
from vtprune.pruners.trim import Trim
from vtprune.registry import make_pruner

METHODS: list[Pruner] = [CDPruner(), Trim(), Recoverable(), Recoverable(parity=True)]
ADAPTIVE: list[Pruner] = [Trim(), Recoverable(), Recoverable(parity=True)]
NEWLINES = [token for token, patch in enumerate(ANYRES.patches) if patch < 0]
PATCHES = ANYRES.tokens - len(NEWLINES)


def named(pruner: Pruner) -> str:
    return f"{pruner.name}{'-parity' * bool(getattr(pruner, 'parity', False))}"


every = pytest.mark.parametrize("pruner", METHODS, ids=named)
adaptive = pytest.mark.parametrize("pruner", ADAPTIVE, ids=named)


def context_for(pruner: Pruner, layout: ImageLayout, batch: int = 3) -> FakeContext:
    return random_context(layout, batch, signals=pruner.signals, layer=0)


def states(reduction: Reduction) -> torch.Tensor:
    assert reduction.features is not None
    return reduction.features


def clip_states(context: FakeContext, *, norm: bool = True) -> torch.Tensor:
    """CLIP's view of each patch, of the encoder's features or, without the norm, of the last layer's output."""
    source = context.encoder_features if norm else context.tensors["encoder_layer0.output"]
    return context.clip_project(source, norm=norm)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("cdpruner", {"theta": 1.0}, ValueError, "theta must be below 1, got 1.0"),
        ("cdpruner", {"theta": -0.5}, ValueError, r"theta must be in \[0, 1\], got -0.5"),
        ("cdpruner", {"theta": "much"}, TypeError, "theta must be a number, got 'much'"),
        ("cdpruner", {"negate": 1}, TypeError, "negate must be True or False, got 1"),
        ("trim", {"negate": None}, TypeError, "negate must be True or False, got None"),
        ("trim", {"cosine": 0}, TypeError, "cosine must be True or False, got 0"),
        ("recoverable", {"vision": 1.5}, ValueError, r"vision must be in \[0, 1\], got 1.5"),
        ("recoverable", {"text": "x"}, TypeError, "text must be a number, got 'x'"),
        ("recoverable", {"vision": 0.8}, ValueError, r"vision \+ text must be at most 1, got 0.8 \+ 0.3"),
        ("recoverable", {"neighbours": 0}, ValueError, "neighbours must be at least 1, got 0"),
        ("recoverable", {"centre_neighbours": 2.0}, TypeError, "centre_neighbours must be an integer, got 2.0"),
        ("recoverable", {"cluster": 0}, ValueError, "cluster must be at least 1, got 0"),
        ("recoverable", {"text_weight": -1}, ValueError, "text_weight must be 0 or above and finite, got -1"),
        ("recoverable", {"text_weight": math.inf}, ValueError, "text_weight must be 0 or above and finite, got inf"),
        ("recoverable", {"text_weight": True}, TypeError, "text_weight must be a number, got True"),
        ("recoverable", {"parity": 0}, TypeError, "parity must be True or False, got 0"),
    ],
)
def test_bad_hyper_parameters_are_refused(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        make_pruner(name, **options)


@every
def test_pruned_tokens_are_refused(pruner: Pruner) -> None:
    context = FakeContext(SQUARE, {"hidden": torch.randn(3, 20, 16)})
    with pytest.raises(ValueError, match="only 20 of 36 tokens are left"):
        pruner.reduce(context, 9)


@every
def test_newline_tokens_come_last(pruner: Pruner) -> None:
    context = context_for(pruner, ANYRES)
    for keep in (1, PATCHES - 1, PATCHES):
        assert not set(NEWLINES) & set(pruner.reduce(context, keep).kept.flatten().tolist())
    beyond = pruner.reduce(context, PATCHES + 2)
    assert beyond.kept[:, PATCHES:].tolist() == [NEWLINES[:2]] * 3
    if pruner.merges:
        # Whole views are left as they are.
        own = context.hidden.gather(1, beyond.kept.unsqueeze(-1).expand(-1, -1, 16))
        torch.testing.assert_close(states(beyond), own)


class Choosy(FakeContext):
    """A context whose projector takes no empty input, as convolutions do not."""

    def project(self, features: torch.Tensor) -> torch.Tensor:
        assert features.shape[1]
        return super().project(features)


@pytest.mark.parametrize(("pruner", "keep"), [(Trim(), PATCHES), (Recoverable(), 1)], ids=["trim", "recoverable"])
def test_nothing_made_is_not_projected(pruner: Pruner, keep: int) -> None:
    context = Choosy(ANYRES, context_for(pruner, ANYRES).tensors)
    kept = pruner.reduce(context, keep).kept
    torch.testing.assert_close(states(pruner.reduce(context, keep)), context.hidden[torch.arange(3)[:, None], kept])


@every
def test_every_view_gets_its_share(pruner: Pruner) -> None:
    context = context_for(pruner, ANYRES)
    shares = largest_remainder([len(view) for view in context.view_tokens], 23)
    for row in pruner.reduce(context, 23).kept.tolist():
        views = [ANYRES.patches[token] // 16 for token in row]
        assert tuple(views.count(view) for view in range(5)) == shares


@adaptive
@pytest.mark.parametrize("layout", [grid_layout(8, 9), ANYRES], ids=["grid", "anyres"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_own_counts_are_those_of_each_image_alone(pruner: Pruner, layout: ImageLayout, dtype: torch.dtype) -> None:
    context = context_for(pruner, layout, 4).to(dtype)
    together = pruner.reduce_adaptive(context)
    assert pruner.is_adaptive
    assert together.valid is not None
    assert states(together).dtype == dtype
    counts = together.valid.sum(dim=1).tolist()
    assert len(set(counts)) > 1
    for image in range(4):
        alone = pruner.reduce_adaptive(context.images([image]))
        assert alone.valid is not None
        names = together.kept[image][together.valid[image]].tolist()
        assert names == alone.kept[0][alone.valid[0]].tolist()
        assert len(set(names)) == counts[image] > 0
        assert not {token for token in names if layout.patches[token] < 0}
        rows = states(together)[image][together.valid[image]]
        torch.testing.assert_close(rows, states(alone)[0][alone.valid[0]])
        assert bool(rows.isfinite().all())


@adaptive
@pytest.mark.parametrize("layout", [SQUARE, ANYRES], ids=["square", "anyres"])
def test_without_outliers_one_token_of_each_view_is_left(pruner: Pruner, layout: ImageLayout) -> None:
    context = context_for(pruner, layout)
    same = {key: torch.zeros_like(tensor) for key, tensor in context.tensors.items()}
    plain = FakeContext(layout, same, projector=context.projector, signals=pruner.signals, layer=0)
    reduction = pruner.reduce_adaptive(plain)
    assert reduction.valid is not None
    assert reduction.valid.sum(dim=1).tolist() == [layout.views] * 3
    assert reduction.kept[0].tolist() == [int(view[-1]) for view in context.view_tokens]


def test_cdpruner_relevance_is_the_negated_mean_over_pieces() -> None:
    context = context_for(CDPruner(), SQUARE)
    context.tensors["clip_text_mask"] = torch.tensor([[True, True], [True, False], [True, True]])
    context.tensors["clip_text"][1, 1] = torch.inf
    relevance = CDPruner().relevance(context)
    paper = CDPruner(negate=False).relevance(context)
    weighed = CDPruner(theta=0.75).relevance(context)
    projected = clip_states(context)
    for image, pieces in enumerate((2, 1, 2)):
        texts = context.clip_text[image, :pieces]
        scores = [-sum(cosine(patch, text) for text in texts) / pieces for patch in projected[image]]
        low, high = min(scores), max(scores)
        expected = torch.tensor([(score - low + 1e-6) / (high - low) for score in scores], dtype=torch.float64)
        torch.testing.assert_close(relevance[image], expected, rtol=1e-6, atol=1e-8)
        turned = torch.tensor([(high - score + 1e-6) / (high - low) for score in scores], dtype=torch.float64)
        torch.testing.assert_close(paper[image], turned, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(weighed[image], (1.5 * expected).exp())


def test_cdpruner_newlines_do_not_stretch_relevance() -> None:
    context = context_for(CDPruner(), ANYRES)
    # All patches point against the question, so that the newline tokens' cosine of 0 lies above them all.
    context.tensors["clip_projection"] = torch.eye(12, 10).expand(3, -1, -1)
    context.tensors["clip_text"] = torch.eye(10)[:2].expand(3, -1, -1)
    states = context.tensors["encoder_features"]
    states[..., :2] = -9 - states[..., :2].abs()
    states[:, NEWLINES] = 0
    for negate in (True, False):
        relevance = CDPruner(negate=negate).relevance(context)[:, context.is_patch[0]]
        assert bool((relevance.amin(dim=1) < 1e-4).all())
        torch.testing.assert_close(relevance.amax(dim=1), torch.ones(3).double(), rtol=0, atol=1e-4)


def test_cdpruner_without_relevance_seeks_variety_alone() -> None:
    context = context_for(CDPruner(), SQUARE)
    context.tensors["clip_text"][:] = 0
    expected = dpp_map(context.hidden, torch.ones(3, 36), 30)
    assert torch.equal(CDPruner().reduce(context, 30).kept, expected)
    assert bool((CDPruner().relevance(context) == 1).all())


def test_cdpruner_picks_in_each_view_as_if_alone() -> None:
    context = context_for(CDPruner(), ANYRES)
    # Beyond the 4 dimensions of the tokens relevance alone chooses.
    context.tensors["hidden"] = torch.randn(3, ANYRES.tokens, 4)
    relevance = CDPruner().relevance(context)
    for keep in (5, 23, 40, 55, 60):
        shares = largest_remainder([len(view) for view in context.view_tokens], keep)
        expected = [
            view[dpp_map(context.hidden[:, view], relevance[:, view], share)]
            for view, share in zip(context.view_tokens, shares, strict=True)
        ]
        assert torch.equal(CDPruner().reduce(context, keep).kept, torch.cat(expected, dim=1))


@pytest.mark.parametrize(
    ("pruner", "sign", "cosine"),
    [(Trim(), -1, False), (Trim(negate=False), 1, False), (Trim(cosine=True), -1, True)],
    ids=["code", "positive", "cosine"],
)
def test_trim_keeps_the_highest_scores_and_the_mean(pruner: Trim, sign: int, cosine: bool) -> None:
    context = context_for(pruner, SQUARE)
    context.tensors["encoder_features"] *= torch.rand(3, 36, 1) * 4
    patches, question = clip_states(context), context.clip_text_truncated.unsqueeze(1)
    if cosine:
        patches, question = (torch.nn.functional.normalize(one, dim=-1) for one in (patches, question))
    order = (sign * (patches * question).sum(-1)).argsort(dim=1, descending=True)
    reduction = pruner.reduce(context, 9)
    assert reduction.ordered
    for image in range(3):
        kept = sorted(order[image, :8].tolist())
        others = [token for token in range(36) if token not in kept]
        assert reduction.kept[image].tolist() == [*kept, others[-1]]
        torch.testing.assert_close(states(reduction)[image, :8], context.hidden[image, kept])
        mean = context.project(context.encoder_features[image, others].mean(0))
        torch.testing.assert_close(states(reduction)[image, 8], mean)


def test_trim_puts_the_means_of_all_views_last() -> None:
    context = context_for(Trim(), ANYRES)
    reduction = Trim().reduce(context, 14)  # 4 tokens of the thumbnail, 3 of two crops, 2 of the others
    kept, places = reduction.kept.split([9, 5], dim=1)
    assert torch.equal(kept, kept.sort(dim=1).values)
    torch.testing.assert_close(states(reduction)[1, :9], context.hidden[1, kept[1]])
    for index, view in enumerate(context.view_tokens):
        others = [token for token in view.tolist() if token not in kept[1].tolist()]
        assert int(places[1, index]) == others[-1]
        mean = context.project(context.encoder_features[1, others].mean(0))
        torch.testing.assert_close(states(reduction)[1, 9 + index], mean)


def test_trim_of_one_token_is_the_mean_of_all() -> None:
    context = context_for(Trim(), SQUARE)
    reduction = Trim().reduce(context, 1)
    assert reduction.kept.tolist() == [[35]] * 3
    torch.testing.assert_close(states(reduction)[:, 0], context.project(context.encoder_features.mean(1)))


def test_trim_ranks_what_the_softmax_rounds_away() -> None:
    context = context_for(Trim(), SQUARE)
    expected = Trim().reduce(context, 30).kept
    context.tensors["clip_text_truncated"] *= 2**12
    assert torch.equal(Trim().reduce(context, 30).kept, expected)


def test_trim_s_own_count_is_that_of_the_quartiles() -> None:
    context = context_for(Trim(), ANYRES)
    scores = -(clip_states(context) * context.clip_text_truncated.unsqueeze(1)).sum(-1)
    counts = torch.stack([iqr_outlier_count(scores[:, view].softmax(1)) for view in context.view_tokens], dim=1)
    reduction = Trim().reduce_adaptive(context)
    assert reduction.valid is not None
    assert reduction.ordered
    for image in range(3):
        names = reduction.kept[image][reduction.valid[image]].tolist()
        assert len(names) == int(counts[image].sum()) + 5
        for view, count in zip(context.view_tokens, counts[image].tolist(), strict=True):
            best = view[stable_topk(scores[image : image + 1, view], count)[0]].tolist()
            assert set(best) <= set(names[:-5])


def test_recoverable_asks_for_the_last_layer() -> None:
    assert Recoverable().encoder_layers == (-1,)


@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        (1, (1, 0, 0, 0)),
        (2, (1, 1, 0, 0)),
        (4, (2, 2, 0, 0)),
        (7, (4, 2, 1, 0)),
        (20, (12, 6, 1, 1)),
        (192, (115, 58, 18, 1)),
    ],
)
def test_recoverable_splits_a_budget(budget: int, counts: tuple[int, ...]) -> None:
    assert Recoverable().split(budget) == counts
    assert Recoverable(vision=1.0, text=0.0).split(budget) == (budget, 0, 0, False)
    assert Recoverable(vision=0.5, text=0.5).split(budget)[2:] == (0, False)
    assert sum(Recoverable(vision=0.0, text=0.0).split(budget)) == budget


def expected_outcome(context: FakeContext, image: int, counts: Counts, parity: bool) -> tuple[list[int], torch.Tensor]:
    """What the method makes of one image of one view, written down from the paper's code."""
    attention = context.tensors["encoder_layer0.joint_attention"][image]
    keys = context.tensors["encoder_layer0.keys"][image].transpose(0, 1).flatten(1)
    width = context.clip_text_last.shape[-1]
    text = torch.tensor(
        [
            cosine(patch, context.clip_text_last[image]) / math.sqrt(width)
            for patch in clip_states(context, norm=False)[image]
        ]
    )
    first = attention.argsort(descending=True)[: counts.vision].tolist()
    second = [token for token in text.argsort(descending=True).tolist() if token not in first][: counts.text]
    kept = sorted([*first, *second])
    rest = [token for token in range(context.tokens) if token not in kept]
    features, weights = context.encoder_features[image, rest], attention[rest]
    places = weights.argsort(descending=True)[: counts.centres].tolist()
    made: list[torch.Tensor] = []
    if places:
        alike = keys[: len(rest)] if parity else keys[rest]
        made += neighbour_merge(features, alike, weights, places, 5, bonus=50 * text[rest])
    if counts.summary:
        left = [place for place in range(len(rest)) if place not in places]
        made.append(weighted_rest(features, weights, left))
        places.append(left[-1])
    rows = [*context.hidden[image, kept], *(context.project(row.float()) for row in made)]
    return [*kept, *(rest[place] for place in places)], torch.stack(rows)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("keep", [9, 20, 40, 71])
def test_recoverable_with_a_budget(parity: bool, keep: int) -> None:
    pruner = Recoverable(cluster=5, parity=parity)
    context = context_for(pruner, grid_layout(8, 9))
    reduction = pruner.reduce(context, keep)
    assert reduction.ordered
    for image in range(3):
        names, rows = expected_outcome(context, image, pruner.split(keep), parity)
        assert reduction.kept[image].tolist() == names
        torch.testing.assert_close(states(reduction)[image], rows)


@pytest.mark.parametrize("parity", [False, True])
def test_recoverable_with_its_own_counts(parity: bool) -> None:
    pruner = Recoverable(cluster=5, parity=parity)
    context = context_for(pruner, grid_layout(8, 9))
    reduction = pruner.reduce_adaptive(context)
    assert reduction.valid is not None
    centres = []
    for image in range(3):
        attention = context.tensors["encoder_layer0.joint_attention"][image : image + 1]
        vision = int(lof_outlier_count(attention, 20))
        order = attention[0].argsort(descending=True).tolist()
        projected, question = clip_states(context, norm=False)[image], context.clip_text_last[image]
        text = torch.tensor([cosine(patch, question) for patch in projected])
        text[order[:vision]] = text.min().item()
        by_text = int((72 - vision) * (int(lof_outlier_count(text[None], 20)) / 72))
        best = [token for token in text.argsort(descending=True).tolist() if token not in order[:vision]][:by_text]
        rest = [token for token in range(72) if token not in {*order[:vision], *best}]
        outliers = int(lof_outlier_count(attention[:, rest], 10))
        # The encoder is 12 wide.
        centres.append(int(12 * (outliers / len(rest))) if parity else outliers)
        counts = Counts(vision, by_text, centres[-1], centres[-1] > 0)
        names, rows = expected_outcome(context, image, counts, parity)
        assert reduction.kept[image][reduction.valid[image]].tolist() == names
        torch.testing.assert_close(states(reduction)[image][reduction.valid[image]], rows)
    assert max(centres) > 0


def test_recoverable_counts_exactly_where_the_code_rounds_a_quotient() -> None:
    context = context_for(Recoverable(), grid_layout(7, 7), 1)
    attention = torch.linspace(0.01, 0.02, 49)[None]
    attention[0, 30] = 0.9
    context.tensors["encoder_layer0.joint_attention"] = attention
    context.tensors["encoder_layer0.output"] = torch.ones(1, 49, 12)
    assert int(49 * (1 / 49)) == 0
    assert Recoverable().reduce_adaptive(context).kept.tolist() == [[30]]
    # What is left is the summary, in the place of the last token.
    assert Recoverable(parity=True).reduce_adaptive(context).kept.tolist() != [[30]]


def test_recoverable_keeps_room_for_the_summary() -> None:
    pruner = Recoverable(parity=True, centre_neighbours=1)
    context = context_for(pruner, grid_layout(1, 9))
    # A wide encoder makes the code ask for more centres than there are tokens.
    context.tensors["encoder_features"] = torch.randn(3, 9, 400)
    context.projector = torch.randn(400, 16)
    attention = torch.tensor([0.1, 0.101, 0.102, 0.103, 0.104, 0.105, 0.106, 0.107, 0.9])
    context.tensors["encoder_layer0.joint_attention"] = attention.expand(3, -1)
    reduction = pruner.reduce_adaptive(context)
    assert reduction.valid is not None
    for names, valid in zip(reduction.kept.tolist(), reduction.valid.tolist(), strict=True):
        assert len(set(names)) == sum(valid) == 9


def test_recoverable_lines_up_several_views() -> None:
    context = context_for(Recoverable(), ANYRES)
    pruner = Recoverable(vision=0.25, text=0.25)
    reduction = pruner.reduce(context, 40)
    shares = largest_remainder([len(view) for view in context.view_tokens], 40)
    counts = [pruner.split(share) for share in shares]
    plain = sum(one.vision + one.text for one in counts)
    kept, places = reduction.kept[:, :plain], reduction.kept[:, plain:]
    assert torch.equal(kept, kept.sort(dim=1).values)
    torch.testing.assert_close(states(reduction)[2, :plain], context.hidden[2, kept[2]])
    views = [ANYRES.patches[token] // 16 for token in places[2].tolist()]
    assert views == [view for view, one in enumerate(counts) for _ in range(one.centres + one.summary)]
