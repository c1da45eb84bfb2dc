"""FitPrune's offline search: against sets of tokens with every alpha tried, and what holds for every record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.fit_schedule import fit_schedule, mean_share, removal_tolerances, shares_at
from vtprune.ops.reference import fit_schedule as reference

Maker = Callable[[int, int], torch.Tensor]


def plain(samples: int, tokens: int) -> torch.Tensor:
    return torch.rand(samples, tokens)


def few_values(samples: int, tokens: int) -> torch.Tensor:
    """0, 1 or 2: all sums are exact, so that ties are plentiful and true."""
    return torch.randint(0, 3, (samples, tokens)).float()


def constant(samples: int, tokens: int) -> torch.Tensor:
    return torch.ones(samples, tokens)


def zero(samples: int, tokens: int) -> torch.Tensor:
    return torch.zeros(samples, tokens)


def strided(samples: int, tokens: int) -> torch.Tensor:
    return torch.rand(tokens, 2 * samples)[:, ::2].T


def last(shares: Sequence[float]) -> float:
    return shares[-1]


@pytest.mark.parametrize("make", [plain, few_values, constant, zero, strided])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("layers", "samples", "tokens"), [(1, 1, 1), (1, 2, 2), (3, 1, 7), (3, 2, 9)])
def test_agrees_with_sets(make: Maker, dtype: torch.dtype, layers: int, samples: int, tokens: int) -> None:
    cross = [make(samples, tokens).to(dtype) for _ in range(layers)]
    own = [make(samples, tokens).to(dtype) for _ in range(layers)]
    for cost in (mean_share, last):
        for limit in (0.3, 0.6, 0.9, 1.0):
            expected = reference.fit_schedule(cross, own, limit, cost)
            if expected is None:
                with pytest.raises(ValueError, match=f"limit {limit} is out of reach"):
                    fit_schedule(cross, own, limit, cost)
            else:
                found = fit_schedule(cross, own, limit, cost)
                assert found.alpha == expected[0]
                assert found.shares == pytest.approx(expected[1], rel=1e-12)


@st.composite
def records(draw: st.DrawFn) -> list[torch.Tensor]:
    """Cross and own scores of a few layers, `(2 * layers)` tensors, often with duplicates, zeros and constants."""
    layers, samples, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 700))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    make = draw(st.sampled_from([plain, few_values, constant, strided]))
    torch.manual_seed(draw(st.integers(0, 999)))
    return [make(samples, tokens).to(dtype) for _ in range(2 * layers)]


@settings(max_examples=40)
@given(records(), st.floats(0.5, 1.0))
def test_finds_the_lowest_alpha_that_meets_the_limit(scores: list[torch.Tensor], limit: float) -> None:
    cross, own = scores[::2], scores[1::2]
    tokens = cross[0].shape[1]
    tolerances = removal_tolerances(cross, own)
    limit = max(limit, mean_share([1 / tokens] * len(cross)))
    found = fit_schedule(cross, own, limit)
    assert 0 <= found.alpha <= 1
    assert list(found.shares) == sorted(found.shares, reverse=True)
    assert 1 / tokens <= found.shares[-1] <= found.shares[0] <= 1
    assert mean_share(found.shares) <= limit
    if found.alpha:
        assert mean_share(shares_at(tolerances, math.nextafter(found.alpha, -1))) > limit


@settings(max_examples=40)
@given(records(), st.floats(0, 1))
def test_what_a_layer_spares_holds_little_attention(scores: list[torch.Tensor], alpha: float) -> None:
    cross, own = scores[:1], scores[1:2]
    gone = removal_tolerances(cross, own)[0] <= alpha
    for received in (cross[0].double(), own[0].double()):
        held = received.masked_fill(~gone, 0).sum(1)
        assert bool((held <= alpha * received.sum(1) * (1 + 1e-12) + 1e-12).all())


@settings(max_examples=20)
@given(records())
def test_samples_do_not_feel_each_other(scores: list[torch.Tensor]) -> None:
    together = removal_tolerances(scores[::2], scores[1::2])
    alone = removal_tolerances([one[:1] for one in scores[::2]], [one[:1] for one in scores[1::2]])
    assert torch.equal(together[:, :1], alone)


def test_only_what_both_scores_spare_goes() -> None:
    """By cross 0 and 1 may go at 0.3, by own 1 and 2."""
    cross, own = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[4.0, 1.0, 2.0, 3.0]])
    assert (removal_tolerances([cross], [own])[0, 0] <= 0.3).tolist() == [False, True, False, False]
    assert fit_schedule([cross], [own], 0.875) == (0.3, (0.75,))


def test_what_is_gone_stays_gone() -> None:
    weak_first, weak_last = torch.tensor([[1.0, 4.0, 4.0, 4.0]]), torch.tensor([[4.0, 4.0, 4.0, 1.0]])
    tolerances = removal_tolerances([weak_first, weak_last], [weak_first, weak_last])
    assert shares_at(tolerances, 0.1) == (0.75, 0.5)


def test_among_equals_the_higher_index_goes_first() -> None:
    same = torch.ones(1, 4)
    assert removal_tolerances([same], [same])[0, 0].tolist() == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("cross", "own", "message"),
    [
        ([], [], "same layers, one or more; got 0 and 0"),
        ([torch.ones(1, 3)], [torch.ones(1, 3)] * 2, "got 1 and 2"),
        ([torch.ones(1, 3)], [torch.ones(1, 4)], r"the first has \(1, 3\), layer 0 has \(1, 4\)"),
        ([torch.ones(3)], [torch.ones(3)], r"one shape \(samples, tokens\).* layer 0 has \(3,\)"),
        ([torch.ones(1, 0)], [torch.ones(1, 0)], r"layer 0 has \(1, 0\)"),
        ([torch.ones(1, 3)] * 2, [torch.ones(1, 3), -torch.ones(1, 3)], "not negative, which those of layer 1 are not"),
        ([torch.full((1, 3), math.nan)], [torch.ones(1, 3)], "finite.* layer 0"),
    ],
)
def test_records_that_do_not_fit_are_refused(cross: list[torch.Tensor], own: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_schedule(cross, own, 0.5)


def test_limit_out_of_reach_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limit 0.2 is out of reach.*the cost is 0.5625"):
        fit_schedule([torch.rand(1, 8)], [torch.rand(1, 8)], 0.2)
