"""Budgets: what is accepted, what they say, and the tokens they come to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtprune.budget import Budget, per_layer_tokens
from vtprune.context import Context
from vtprune.costs import DecoderShape, average_tokens, prefill_flops
from vtprune.layout import ImageLayout, Segment
from vtprune.pruner import Pruner, Reduction

VICUNA = DecoderShape(layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, intermediate=11008, vocab=32064)
LAYERS_28 = DecoderShape(layers=28, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=128, vocab=100)


def Image(tokens: int, views: int = 1) -> ImageLayout:
    """A layout of that many tokens; budgets look at nothing else of it."""
    return ImageLayout((Segment(1, tokens),), tuple(range(tokens)), views, tokens)


@dataclass(frozen=True)
class SingleStage(Pruner):
    """Removes tokens once, as FastV and EntropyPrune do."""

    name = "single-stage"
    layer: int = 0

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def reduce(self, context: Context, keep: int) -> Reduction:
        raise NotImplementedError


@dataclass(frozen=True)
class Fixed(SingleStage):
    """Knows only the sizes of a pyramid, as M3 does."""

    name = "fixed"

    def attainable(self, layout: ImageLayout, keep: int) -> int:
        return max(size for size in (1, 9, 36, 144, 576) if size <= keep)


@dataclass(frozen=True)
class Geometric(SingleStage):
    """Removes in three steps down to the budget, each by the same factor."""

    name = "geometric"

    @property
    def layers(self) -> tuple[int, ...]:
        return (2, 8, 16)

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        factor = (keep / tokens) ** (1 / 3)
        return (max(keep, int(tokens * factor)), max(keep, int(tokens * factor**2)), keep)


@dataclass(frozen=True)
class Listed(SingleStage):
    """Published counts after decoder layers 2, 6 and 15, whatever the budget."""

    name = "listed"
    counts: tuple[int, ...] = (309, 204, 113)

    @property
    def layers(self) -> tuple[int, ...]:
        return (3, 7, 16)

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        return self.counts


def resolve(budget: Budget, *images: ImageLayout, pruner: Pruner | None = None, text: int = 60) -> list[int]:
    return budget.resolve(pruner or SingleStage(), images, VICUNA, text)


@pytest.mark.parametrize(
    ("short", "budget"),
    [
        (64, Budget(tokens=64)),
        (1, Budget(tokens=1)),
        (1.0, Budget(ratio=1.0)),
        (0.25, Budget(ratio=0.25)),
        ("64", Budget(tokens=64)),
        ("0.25", Budget(ratio=0.25)),
        ("tokens:64", Budget(tokens=64)),
        ("ratio:1", Budget(ratio=1)),
        ("average:64", Budget(average=64)),
        ("average:63.5", Budget(average=63.5)),
        (" flops:0.3 ", Budget(flops=0.3)),
        (Budget(tokens=3, per="view"), Budget(tokens=3, per="view")),
    ],
)
def test_short_forms(short: Any, budget: Budget) -> None:
    parsed = Budget.parse(short)
    assert parsed == budget
    assert type(parsed.tokens) is type(budget.tokens)


@pytest.mark.parametrize(
    ("short", "error", "message"),
    [
        (True, TypeError, "got True"),
        (None, TypeError, "got None"),
        ([64], TypeError, r"got \[64\]"),
        (0, ValueError, "at least 1, got 0"),
        (-5, ValueError, "at least 1, got -5"),
        (0.0, ValueError, r"\(0, 1\], got 0.0"),
        (1.5, ValueError, r"\(0, 1\], got 1.5.*tokens="),
        (math.nan, ValueError, r"\(0, 1\], got nan"),
        (math.inf, ValueError, r"\(0, 1\], got inf"),
        ("", ValueError, "'' is no budget.*average:64"),
        ("many", ValueError, "'many' is no budget"),
        ("mean:64", ValueError, "'mean:64' is no budget"),
        ("average:nan", ValueError, "'average:nan' is no budget"),
        ("64.0", ValueError, r"\(0, 1\], got 64.0"),
        ("-3", ValueError, "at least 1, got -3"),
        ("tokens:0.5", TypeError, "integer, got 0.5.*ratio="),
    ],
)
def test_bad_short_forms(short: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Budget.parse(short)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "exactly one of tokens, ratio, average, flops, adaptive, got none"),
        ({"tokens": 64, "flops": 0.5}, TypeError, "got tokens and flops"),
        ({"tokens": True}, TypeError, "integer, got True"),
        ({"tokens": 64.0}, TypeError, "integer, got 64.0"),
        ({"tokens": "64"}, TypeError, "integer, got '64'"),
        ({"ratio": True}, TypeError, "number, got True"),
        ({"ratio": "1/4"}, TypeError, "number, got '1/4'"),
        ({"ratio": -0.1}, ValueError, r"\(0, 1\], got -0.1"),
        ({"average": 0}, ValueError, "above 0, got 0"),
        ({"average": math.inf}, ValueError, "above 0, got inf"),
        ({"average": math.nan}, ValueError, "above 0, got nan"),
        ({"flops": 1.01}, ValueError, r"\(0, 1\], got 1.01"),
        ({"flops": 0}, ValueError, r"\(0, 1\], got 0"),
        ({"tokens": 64, "per": "crop"}, ValueError, "'view', 'prompt', got 'crop'"),
        ({"average": 64, "convention": "mean"}, ValueError, "'nominal', got 'mean'"),
        ({"tokens": 64, "convention": "nominal"}, ValueError, "average only, got tokens"),
        ({"flops": 0.5, "per": "view"}, ValueError, "per='view' has no meaning for flops"),
    ],
)
def test_bad_values(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Budget(**options)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(tokens=64), "64 tokens per image"),
        (Budget(tokens=1, per="view"), "1 token per view"),
        (Budget(ratio=0.25), "25% of the tokens of each image"),
        (Budget(ratio=0.07, per="prompt"), "7% of the tokens of each prompt"),
        (Budget(average=64), "64 tokens per image on average over the decoder layers (true)"),
        (
            Budget(average=64.5, convention="nominal"),
            "64.5 tokens per image on average over the decoder layers (nominal)",
        ),
        (Budget(flops=0.3), "30% of the language model's prefill FLOPs of each prompt"),
    ],
)
def test_says_what_it_means(budget: Budget, words: str) -> None:
    assert str(budget) == words


def test_tokens_are_capped_at_the_image() -> None:
    assert resolve(Budget(tokens=64), Image(576), Image(40)) == [64, 40]
    assert resolve(Budget(tokens=10**9), Image(576)) == [576]
    assert resolve(Budget(tokens=64)) == []


def test_per_view_counts_crops() -> None:
    images = (Image(2880, views=5), Image(1728, views=3))
    assert resolve(Budget(tokens=64, per="view"), *images) == [320, 192]
    assert resolve(Budget(tokens=600, per="view"), *images) == [2880, 1728]
    assert resolve(Budget(average=64, per="view"), *images) == [320, 192]
    assert resolve(Budget(ratio=0.25, per="view"), *images) == [720, 432]


@pytest.mark.parametrize(
    ("ratio", "tokens", "keep"),
    [(0.5, 5, 2), (0.5, 7, 4), (0.25, 576, 144), (0.098, 576, 56), (0.001, 576, 1), (1, 576, 576), (1.0, 63, 63)],
)
def test_ratio_rounds_half_to_even(ratio: float, tokens: int, keep: int) -> None:
    assert resolve(Budget(ratio=ratio), Image(tokens)) == [keep]


@pytest.mark.parametrize(
    ("total", "sizes", "keeps"),
    [
        (100, (576,), [100]),
        (100, (300, 100), [75, 25]),
        (10, (100, 100, 100), [4, 3, 3]),
        (7, (400, 350, 250), [3, 2, 2]),
        (5, (5000, 10, 10), [3, 1, 1]),
        (3, (5000, 10, 10), [1, 1, 1]),
        (2000, (5000, 10, 10), [1992, 4, 4]),
        (9999, (500, 10), [500, 10]),
    ],
)
def test_per_prompt_shares_by_size(total: int, sizes: tuple[int, ...], keeps: list[int]) -> None:
    assert resolve(Budget(tokens=total, per="prompt"), *map(Image, sizes)) == keeps


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8), st.integers(0, 4000))
def test_shares_add_up(sizes: list[int], extra: int) -> None:
    total = len(sizes) + extra
    keeps = resolve(Budget(tokens=total, per="prompt"), *map(Image, sizes))
    assert sum(keeps) == min(total, sum(sizes))
    assert all(1 <= keep <= size for keep, size in zip(keeps, sizes, strict=True))
    if min(sizes) * total >= sum(sizes) and total < sum(sizes):
        assert all(abs(keep - total * size / sum(sizes)) < 1 for keep, size in zip(keeps, sizes, strict=True))


def test_too_few_tokens_for_the_images() -> None:
    with pytest.raises(ValueError, match="2 tokens per prompt cannot be shared by 3 images; give at least 3"):
        resolve(Budget(tokens=2, per="prompt"), Image(9), Image(9), Image(9))


def test_ratio_per_prompt() -> None:
    assert resolve(Budget(ratio=0.5, per="prompt"), Image(300), Image(101)) == [150, 50]
    assert resolve(Budget(ratio=0.001, per="prompt"), Image(300), Image(100)) == [1, 1]


@pytest.mark.parametrize(("average", "keep"), [(192, 166), (128, 98), (64, 29)])
def test_average_of_single_stage_methods(average: int, keep: int) -> None:
    """The counts of the official FastV and EntropyPrune settings: layer 2 of 32, 576 tokens."""
    pruner = SingleStage(layer=2)
    assert resolve(Budget(average=average), Image(576), pruner=pruner) == [keep]
    assert average_tokens(per_layer_tokens(pruner, 576, keep, 32)) <= average
    assert average_tokens(per_layer_tokens(pruner, 576, keep + 1, 32)) > average


def test_average_before_the_language_model_is_the_count() -> None:
    assert resolve(Budget(average=64), Image(576), Image(2880)) == [64, 64]
    assert resolve(Budget(average=64.9), Image(576)) == [64]
    assert resolve(Budget(average=576), Image(576), pruner=SingleStage(layer=2)) == [576]
    assert resolve(Budget(average=1e6), Image(576), pruner=Geometric()) == [576]


@pytest.mark.parametrize(
    ("counts", "nominal", "true"),
    [((309, 204, 113), 192.0, 206.5), ((312, 117, 39), 128.6, 145.4), ((82, 32, 18), 64.8, 82.3)],
)
def test_both_conventions_for_published_schedules(counts: tuple[int, ...], nominal: float, true: float) -> None:
    """SparseVLM's own lists; the nominal mean is the one its paper names the setting by."""
    pruner = Listed(counts=counts)
    assert average_tokens(per_layer_tokens(pruner, 576, 64, 32, "nominal")) == pytest.approx(nominal, abs=0.05)
    assert average_tokens(per_layer_tokens(pruner, 576, 64, 32)) == pytest.approx(true, abs=0.05)


def test_nominal_average_keeps_more() -> None:
    pruner = SingleStage(layer=2)
    assert resolve(Budget(average=64, convention="nominal"), Image(576), pruner=pruner) == [47]
    assert (576 + 31 * 47) / 32 <= 64 < (576 + 31 * 48) / 32
    assert per_layer_tokens(SingleStage(layer=0), 9, 4, 3, "nominal") == [4, 4, 4]


def test_layer_counts() -> None:
    assert per_layer_tokens(SingleStage(layer=2), 9, 4, 5) == [9, 9, 4, 4, 4]
    assert per_layer_tokens(SingleStage(layer=2), 9, 4, 5, "nominal") == [9, 4, 4, 4, 4]
    assert per_layer_tokens(SingleStage(layer=2), 9, 9, 5) == [9] * 5
    assert per_layer_tokens(Listed(), 576, 600, 20) == [576] * 20


def test_stage_beyond_the_model() -> None:
    with pytest.raises(ValueError, match=r"before decoder layer 5, but the model's layers are 0 to 4"):
        per_layer_tokens(SingleStage(layer=5), 9, 4, 5)
    with pytest.raises(ValueError, match="3 stages but its schedule has 2 counts"):
        per_layer_tokens(Listed(counts=(5, 4)), 9, 4, 32)


@given(
    st.integers(2, 3000),
    st.floats(0.02, 1),
    st.sampled_from([SingleStage(), SingleStage(layer=2), SingleStage(layer=15), Geometric()]),
    st.sampled_from(["true", "nominal"]),
)
def test_average_is_the_best_not_above(tokens: int, share: float, pruner: Pruner, convention: Any) -> None:
    def mean(keep: int) -> float:
        return average_tokens(per_layer_tokens(pruner, tokens, keep, 32, convention))

    budget = Budget(average=share * tokens, convention=convention)
    if mean(1) > share * tokens:
        with pytest.raises(ValueError, match="out of reach"):
            resolve(budget, Image(tokens), pruner=pruner)
        return
    (keep,) = resolve(budget, Image(tokens), pruner=pruner)
    assert mean(keep) <= share * tokens * (1 + 1e-8)
    assert keep == tokens or mean(keep + 1) > share * tokens


def test_reported_average_gives_the_same_tokens() -> None:
    """The mean of a batch of three images, as a report rounds it, is met again exactly."""
    pruner = SingleStage(layer=3)
    for keep in range(1, 63):
        reported = average_tokens([3 * count for count in per_layer_tokens(pruner, 63, keep, 28)]) / 3
        assert Budget(average=reported).resolve(pruner, [Image(63)], LAYERS_28, 10) == [keep]


def test_average_out_of_reach() -> None:
    pruner = SingleStage(layer=2)
    with pytest.raises(ValueError, match=r"36\.9375, above 20; ask for at least 36\.9375 or prune at an earlier layer"):
        resolve(Budget(average=20), Image(576), pruner=pruner)
    assert resolve(Budget(average=36.9375), Image(576), pruner=pruner) == [1]


def test_average_per_prompt_shrinks_all_images_alike() -> None:
    keeps = resolve(Budget(average=100, per="prompt"), Image(576), Image(288))
    assert keeps == [67, 33]
    assert resolve(Budget(average=864, per="prompt"), Image(576), Image(288)) == [576, 288]


def relative_flops(pruner: Pruner, sizes: list[int], keeps: list[int], text: int) -> float:
    layers = [per_layer_tokens(pruner, size, keep, 32) for size, keep in zip(sizes, keeps, strict=True)]
    lengths = [text + sum(counts) for counts in zip(*layers, strict=True)]
    return prefill_flops(VICUNA, lengths) / prefill_flops(VICUNA, [text + sum(sizes)] * 32)


@pytest.mark.parametrize("pruner", [SingleStage(), SingleStage(layer=2), Geometric()], ids=lambda pruner: pruner.name)
@pytest.mark.parametrize("flops", [0.2, 0.3, 0.5, 0.99])
def test_flops(pruner: Pruner, flops: float) -> None:
    (keep,) = resolve(Budget(flops=flops), Image(576), pruner=pruner)
    assert relative_flops(pruner, [576], [keep], 60) <= flops < relative_flops(pruner, [576], [keep + 1], 60)


def test_flops_of_several_images() -> None:
    keeps = resolve(Budget(flops=0.3), Image(576), Image(288), Image(3))
    assert keeps[0] // 2 == keeps[1]
    assert keeps[2] == 1
    assert 0.295 < relative_flops(SingleStage(), [576, 288, 3], keeps, 60) <= 0.3
    assert resolve(Budget(flops=1), Image(576), Image(288)) == [576, 288]


def test_flops_out_of_reach() -> None:
    """The text alone, and the layers before the first stage, set a floor."""
    with pytest.raises(ValueError, match=r"makes 0\.499708, above 0\.05; ask for at least 0\.4998") as caught:
        resolve(Budget(flops=0.05), Image(576), text=600)
    attainable = float(str(caught.value).partition("at least ")[2].split()[0])
    assert resolve(Budget(flops=attainable), Image(576), text=600) == [1]


def test_only_sizes_that_the_method_has() -> None:
    assert resolve(Budget(tokens=64), Image(576), pruner=Fixed()) == [36]
    assert resolve(Budget(ratio=0.25), Image(576), pruner=Fixed()) == [144]
    assert resolve(Budget(average=64), Image(576), pruner=Fixed()) == [36]
    assert resolve(Budget(tokens=576), Image(576), pruner=Fixed()) == [576]


@dataclass(frozen=True)
class Preset(Geometric):
    """Has a setting of a published table."""

    name = "preset"
    presets: ClassVar[dict[int, int]] = {64: 19}


def test_presets_of_published_tables_hold_for_their_model_alone() -> None:
    nominal = Budget(average=64, convention="nominal")
    assert nominal.resolve(Preset(), [Image(576)], VICUNA, 50) == [19]
    assert Budget.parse("nominal:64") == nominal
    search = nominal.resolve(Geometric(), [Image(576)], VICUNA, 50)
    assert search != [19]
    for images, shape in (([Image(575)], VICUNA), ([Image(576)], LAYERS_28), ([Image(576), Image(400)], VICUNA)):
        expected = nominal.resolve(Geometric(), images, shape, 50)
        assert nominal.resolve(Preset(), images, shape, 50) == expected
    for other in (Budget(average=64), Budget(average=63, convention="nominal"), Budget(average=64.5)):
        assert other.resolve(Preset(), [Image(576)], VICUNA, 50) == other.resolve(Geometric(), [Image(576)], VICUNA, 50)


def test_adaptive_budgets() -> None:
    budget = Budget.parse("adaptive")
    assert budget == Budget(adaptive=True)
    assert str(budget) == "as many tokens as the method finds right"
    assert budget.resolve(SingleStage(), [Image(576), Image(9)], VICUNA, 50) == [576, 9]
    with pytest.raises(TypeError, match="adaptive must be True or left out, got False"):
        Budget(adaptive=False)
    with pytest.raises(ValueError, match="per='view' has no meaning"):
        Budget(adaptive=True, per="view")
    with pytest.raises(TypeError, match="exactly one"):
        Budget(adaptive=True, tokens=9)
