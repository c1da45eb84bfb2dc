"""Sharing a budget among crops: equal to the plain loops, exact for every input, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from awkward import assert_unchanged_by_autocast
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.anyres_quota import (
    cell_owner,
    crop_weights,
    holistic_scores,
    resized_scores,
    sum_by_owner,
    weighted_shares,
    within_quota,
)
from vtprune.ops.reference import anyres_quota as reference

few = settings(max_examples=40)


def plain(batch: int, tokens: int) -> torch.Tensor:
    return torch.randn(batch, tokens)


def signs(batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(-1, 2, (batch, tokens)).float()


def constant(batch: int, tokens: int) -> torch.Tensor:
    return torch.ones(batch, tokens)


def strided(batch: int, tokens: int) -> torch.Tensor:
    return torch.randn(tokens, 2 * batch)[:, ::2].T


def zero(batch: int, tokens: int) -> torch.Tensor:
    return torch.zeros(batch, tokens)


inputs = pytest.mark.parametrize(
    ("make", "dtype"),
    [
        *((make, torch.float32) for make in (plain, signs, constant, strided, zero)),
        *((plain, dtype) for dtype in (torch.bfloat16, torch.float16)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
Maker = Callable[[int, int], torch.Tensor]
GRIDS = [(1, 1, (1, 1)), (7, 9, (2, 2)), (6, 6, (3, 1)), (5, 5, (1, 4)), (2, 3, (4, 1))]


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(1, 1, [], []), (7, 9, [2, 5.5], [3]), (3, 2, [1, 1], [0.5, 9]), (4, 5, [], [1, 2, 3, 4])],
)
def test_cell_owner(height: int, width: int, rows: list[float], columns: list[float]) -> None:
    fast = cell_owner(height, width, rows, columns, "cpu")
    assert fast.dtype == torch.int64
    assert fast.tolist() == reference.cell_owner(height, width, rows, columns)


@inputs
def test_sum_by_owner(make: Maker, dtype: torch.dtype) -> None:
    values, owner = make(3, 63).to(dtype), torch.randint(0, 5, (63,))
    fast = sum_by_owner(values, owner, 6)
    for row, sums in zip(values, fast.tolist(), strict=True):
        torch.testing.assert_close(sums, reference.sum_by_owner(row, owner.tolist(), 6))


@inputs
@pytest.mark.parametrize("capacity", [[1], [5, 0, 9], [12, 12, 12, 12], [2, 30, 1, 30, 7]])
def test_weighted_shares(make: Maker, dtype: torch.dtype, capacity: list[int]) -> None:
    weights = make(3, len(capacity)).to(dtype)
    for total in sorted({0, 1, sum(capacity) // 2, sum(capacity) - 1, sum(capacity)}):
        fast = weighted_shares(weights, total, capacity).tolist()
        assert fast == [reference.weighted_shares(row, total, capacity) for row in weights.double().tolist()]


@inputs
@pytest.mark.parametrize("tokens", [1, 2, 63])
def test_within_quota(make: Maker, dtype: torch.dtype, tokens: int) -> None:
    scores, quota = make(4, tokens).to(dtype), torch.tensor([0, 1, tokens // 2, tokens + 3])
    fast = within_quota(scores, quota).tolist()
    assert fast == [reference.within_quota(row, int(count)) for row, count in zip(scores, quota, strict=True)]


@inputs
@pytest.mark.parametrize(("height", "width", "crops"), GRIDS)
@pytest.mark.parametrize("temperature", [0.5, 10.0])
def test_crop_weights(
    make: Maker, dtype: torch.dtype, height: int, width: int, crops: tuple[int, int], temperature: float
) -> None:
    scores = make(2, height * width).to(dtype)
    fast = crop_weights(scores, height, width, crops, temperature)
    for row, weights in zip(scores, fast.tolist(), strict=True):
        torch.testing.assert_close(weights, reference.crop_weights(row, height, width, crops, temperature))


@inputs
@pytest.mark.parametrize("new", [(1, 1), (3, 20), (12, 12), (7, 9)])
def test_resized_scores(make: Maker, dtype: torch.dtype, new: tuple[int, int]) -> None:
    scores = make(2, 63).to(dtype)
    fast = resized_scores(scores, 7, 9, *new)
    assert fast.shape == (2, *new)
    for row, resized in zip(scores, fast.tolist(), strict=True):
        torch.testing.assert_close(torch.tensor(resized), torch.tensor(reference.resized_scores(row, 7, 9, *new)))


@inputs
def test_holistic_scores(make: Maker, dtype: torch.dtype) -> None:
    local, overall = make(3, 63).to(dtype), plain(3, 63).to(dtype)
    for one, other, fast in zip(local, overall, holistic_scores(local, overall).tolist(), strict=True):
        torch.testing.assert_close(fast, reference.holistic_scores(one, other))


@st.composite
def sharings(draw: st.DrawFn) -> tuple[torch.Tensor, int, list[int]]:
    """Weights with many ties and zeros, a budget, and parts of different size, some of them empty."""
    capacity = draw(st.lists(st.integers(0, 200), min_size=1, max_size=6))
    batch = draw(st.integers(1, 4))
    values = st.one_of(st.integers(0, 3).map(float), st.floats(0, 1e6, width=32))
    weights = draw(st.lists(values, min_size=batch * len(capacity), max_size=batch * len(capacity)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    return torch.tensor(weights).view(batch, -1).to(dtype), draw(st.integers(0, sum(capacity))), capacity


@few
@given(sharings())
def test_shares_are_exact_and_proportional(sharing: tuple[torch.Tensor, int, list[int]]) -> None:
    weights, total, capacity = sharing
    shares = weighted_shares(weights, total, capacity)
    assert shares.sum(dim=1).tolist() == [total] * len(weights)
    for row, given_out in zip(weights.double().tolist(), shares.tolist(), strict=True):
        for part, share in enumerate(given_out):
            assert 0 <= share <= capacity[part]
            for other, its in enumerate(given_out):
                # Webster's rule leaves no token that another part with room deserves more.
                if its < capacity[other] and share > 0:
                    assert row[part] / (2 * share - 1) >= row[other] / (2 * its + 1)


@few
@given(st.integers(1, 700), st.integers(0, 700), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_quota_is_met_by_the_highest(tokens: int, quota: int, tied: bool, dtype: torch.dtype) -> None:
    scores = (signs(2, tokens) if tied else strided(2, tokens)).to(dtype)
    flags = within_quota(scores, torch.tensor([quota, 1]))
    assert flags.sum(dim=1).tolist() == [min(quota, tokens), 1]
    low = scores[0].masked_fill(~flags[0], torch.inf).min()
    assert bool((scores[0][~flags[0]] <= low).all())


@few
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 60), st.integers(1, 60))
def test_resizing_keeps_constants_and_bounds(height: int, width: int, new_height: int, new_width: int) -> None:
    scores = torch.rand(1, height * width)
    resized = resized_scores(scores, height, width, new_height, new_width)
    assert float(scores.min()) - 1e-6 <= float(resized.min()) <= float(resized.max()) <= float(scores.max()) + 1e-6
    torch.testing.assert_close(resized_scores(scores, height, width, height, width).flatten(1), scores.double())


def test_no_number_among_the_weights_leaves_the_total_exact() -> None:
    weights = torch.tensor([[float("nan"), 1.0, float("inf")]])
    assert weighted_shares(weights, 7, [3, 3, 3]).sum().item() == 7


def test_autocast_does_not_lower_the_precision() -> None:
    scores = torch.randn(2, 36)

    def everything() -> list[torch.Tensor]:
        return [
            crop_weights(scores, 6, 6, (2, 2), 10.0),
            resized_scores(scores, 6, 6, 9, 11),
            holistic_scores(scores, scores.flip(1)),
        ]

    assert_unchanged_by_autocast(everything)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weighted_shares(torch.ones(1, 2), 9, [4, 4]), "from 0 to 8 .*got 9"),
        (lambda: weighted_shares(torch.ones(1, 3), 1, [4, 4]), "3 weights for 2 parts"),
    ],
)
def test_refusals_name_the_value_and_the_range(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
