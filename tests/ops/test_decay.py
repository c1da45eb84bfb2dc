"""Geometric token counts: against every number tried, and what a schedule must be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.decay import geometric_counts
from vtprune.ops.reference import decay as reference


@pytest.mark.parametrize("tokens", [1, 2, 7, 63])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_agrees_with_every_number_tried(tokens: int, steps: int) -> None:
    for keep in range(1, tokens + 1):
        assert list(geometric_counts(tokens, keep, steps)) == reference.geometric_counts(tokens, keep, steps)


@pytest.mark.parametrize(
    ("tokens", "keep", "counts"),
    [(576, 72, (288, 144, 72)), (1000, 1, (100, 10, 1)), (343, 8, (98, 28, 8)), (22, 15, (18, 15)), (49, 1, (7, 1))],
)
def test_even_counts_are_not_missed(tokens: int, keep: int, counts: tuple[int, ...]) -> None:
    assert geometric_counts(tokens, keep, len(counts)) == counts


@settings(max_examples=80)
@given(st.integers(1, 700).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.integers(1, 63))
def test_is_a_schedule(sizes: tuple[int, int], steps: int) -> None:
    tokens, keep = sizes
    counts = geometric_counts(tokens, keep, steps)
    assert len(counts) == steps
    assert counts[-1] == keep
    assert list(counts) == sorted(counts, reverse=True)
    assert counts[0] <= tokens
    if keep < tokens:
        more = geometric_counts(tokens, keep + 1, steps)
        assert all(one <= other for one, other in zip(counts, more, strict=True))


def test_more_than_all_is_all() -> None:
    assert geometric_counts(9, 12, 2) == (9, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((9, 0, 2), "keep must be from 1 to 9 .*, got 0"), ((9, 3, 0), "steps must be at least 1, got 0")],
)
def test_refusals(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geometric_counts(*arguments)
