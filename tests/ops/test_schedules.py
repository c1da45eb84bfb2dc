"""Schedules between published lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtprune.ops.schedules import interpolated_schedule

LISTS = [(60, 40, 30), (20, 15, 10)]


@pytest.mark.parametrize("scale", [1, 2, 7])
def test_published_lists_are_met_in_proportion(scale: int) -> None:
    for counts in LISTS:
        scaled = tuple(scale * count for count in counts)
        assert interpolated_schedule(LISTS, 100, 100 * scale, counts[-1] * scale) == scaled


def test_counts_run_linearly_between_the_lists() -> None:
    assert interpolated_schedule(LISTS, 100, 100, 20) == (40, 28, 20)  # 27.5 is rounded to the even number
    assert interpolated_schedule(LISTS, 100, 100, 5) == (10, 8, 5)
    assert interpolated_schedule(LISTS, 100, 100, 65) == (80, 70, 65)
    assert interpolated_schedule(LISTS, 100, 100, 100) == (100, 100, 100)


@pytest.mark.parametrize("keep", [0, 101])
def test_budgets_out_of_range_are_refused(keep: int) -> None:
    with pytest.raises(ValueError, match=f"keep must be from 1 to 100 .*, got {keep}"):
        interpolated_schedule(LISTS, 100, 100, keep)


@given(st.integers(1, 3000).flatmap(lambda tokens: st.tuples(st.just(tokens), st.integers(1, tokens))))
def test_counts_never_grow_and_follow_the_budget(sizes: tuple[int, int]) -> None:
    tokens, keep = sizes
    counts = interpolated_schedule(LISTS, 100, tokens, keep)
    assert counts[-1] == keep
    assert list(counts) == sorted(counts, reverse=True)
    assert counts[0] <= tokens
    if keep < tokens:
        more = interpolated_schedule(LISTS, 100, tokens, keep + 1)
        assert all(before <= after for before, after in zip(counts, more, strict=True))
