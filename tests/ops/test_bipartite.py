"""Bipartite soft matching: equal to its plain loop, and what holds for every input."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from awkward import assert_unchanged_by_autocast, inputs, pictures, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.bipartite import Matching, bipartite_match, every_kth_match, merge_matched, parse_r
from vtprune.ops.reference import bipartite as reference

few = settings(max_examples=60)


def assert_same(fast: Matching, picture: int, slow: tuple[list[int], list[int]]) -> None:
    assert (fast.kept[picture].tolist(), fast.source[picture].tolist()) == slow


@inputs
@pytest.mark.parametrize("protected", [0, 1, 2])
@pytest.mark.parametrize(("tokens", "merges"), [(1, 1), (2, 1), (3, 1), (36, 0), (36, 7), (37, 18), (37, 99)])
def test_match(kind: str, dtype: torch.dtype, tokens: int, merges: int, protected: int) -> None:
    metric = tokens_of(kind, 3, tokens, 16).to(dtype)
    fast = bipartite_match(metric, merges, protected=protected)
    for picture in range(3):
        assert_same(fast, picture, reference.bipartite_match(metric[picture], merges, protected=protected))


@inputs
@pytest.mark.parametrize(("tokens", "k"), [(1, 1), (2, 1), (2, 2), (36, 4), (37, 4), (37, 37), (37, 20)])
def test_every_kth(kind: str, dtype: torch.dtype, tokens: int, k: int) -> None:
    metric = tokens_of(kind, 2, tokens, 16).to(dtype)
    fast = every_kth_match(metric, k)
    for picture in range(2):
        assert_same(fast, picture, reference.every_kth_match(metric[picture], k))


@inputs
def test_merging_two_rounds(kind: str, dtype: torch.dtype) -> None:
    states = tokens_of(kind, 3, 37, 16).to(dtype)
    first = bipartite_match(states, 15)
    once, sizes = merge_matched(first, states)
    second = bipartite_match(once, 9)
    twice, total = merge_matched(second, once, sizes)
    assert twice.dtype == dtype
    for picture in range(3):
        slow, slow_sizes = reference.merge_matched(first.source[picture].tolist(), states[picture])
        torch.testing.assert_close(once[picture], slow.to(dtype))
        assert sizes[picture].tolist() == slow_sizes
        slow, slow_sizes = reference.merge_matched(second.source[picture].tolist(), once[picture], slow_sizes)
        torch.testing.assert_close(twice[picture], slow.to(dtype))
        assert total[picture].tolist() == slow_sizes


@few
@given(pictures(dim=4), st.data())
def test_every_token_goes_somewhere(metric: torch.Tensor, data: st.DataObject) -> None:
    batch, tokens, _ = metric.shape
    merges, protected = data.draw(st.integers(0, tokens)), data.draw(st.integers(0, 3))
    matching = bipartite_match(metric, merges, protected=protected)
    left = tokens - min(merges, max(0, tokens - protected) // 2)
    assert matching.kept.shape == (batch, left)
    for kept, source in zip(matching.kept.tolist(), matching.source.tolist(), strict=True):
        assert len(set(kept)) == left
        assert [source[token] for token in kept] == list(range(left))
        assert set(range(min(protected, tokens))) <= set(kept)
        moved = set(range(tokens)) - set(kept)
        assert all(token % 2 == 0 and kept[source[token]] % 2 == 1 for token in moved)
        assert all(kept[source[token]] >= protected for token in moved)


@few
@given(pictures(dim=4), st.data())
def test_merging_keeps_the_total(states: torch.Tensor, data: st.DataObject) -> None:
    batch, tokens, _ = states.shape
    sizes = torch.randint(1, 9, (batch, tokens)).float()
    wide = states.double()
    matching = bipartite_match(states, data.draw(st.integers(0, tokens)))
    merged, total = merge_matched(matching, wide, sizes)
    assert total.sum(1).tolist() == sizes.sum(1).tolist()
    expected = (wide * sizes.double().unsqueeze(-1)).sum(1)
    torch.testing.assert_close((merged * total.double().unsqueeze(-1)).sum(1), expected, rtol=1e-9, atol=1e-9)
    rounded, _ = merge_matched(matching, states, sizes)
    torch.testing.assert_close(rounded, merged.to(states.dtype))


def test_batch_mates_do_not_matter() -> None:
    metric = torch.randn(4, 63, 8)
    together = bipartite_match(metric, 20)
    merged, sizes = merge_matched(together, metric)
    for picture in range(4):
        alone = bipartite_match(metric[picture : picture + 1], 20)
        assert torch.equal(alone.source[0], together.source[picture])
        states, size = merge_matched(alone, metric[picture : picture + 1])
        assert torch.equal(states[0], merged[picture])
        assert torch.equal(size[0], sizes[picture])


def test_a_broken_token_does_not_spread() -> None:
    states = torch.randn(2, 20, 4)
    states[1, 3] = torch.inf
    matching = bipartite_match(torch.randn(2, 20, 4), 8)
    merged, _ = merge_matched(matching, states)
    broken = (~merged.isfinite().all(-1)).nonzero().tolist()
    assert broken == [[1, int(matching.source[1, 3])]]


def test_gradients_are_shares() -> None:
    states = torch.randn(1, 4, 2).requires_grad_()
    matching = Matching(torch.tensor([[1, 3]]), torch.tensor([[0, 0, 0, 1]]))
    merged, _ = merge_matched(matching, states, torch.tensor([[1.0, 2.0, 1.0, 5.0]]))
    merged.sum().backward()
    assert states.grad is not None
    assert states.grad[0].tolist() == [[0.25, 0.25], [0.5, 0.5], [0.25, 0.25], [1.0, 1.0]]


def test_autocast_does_not_lower_the_precision() -> None:
    states = torch.randn(2, 63, 32) + 3.0  # cosines so close to each other that half precision swaps them

    def everything() -> list[torch.Tensor]:
        matching = bipartite_match(states, 30)
        return [*matching, *every_kth_match(states, 9), *merge_matched(matching, states)]

    assert_unchanged_by_autocast(everything)


@few
@given(st.integers(0, 40), st.integers(1, 40), st.floats(-1, 1))
def test_schedule_keeps_its_mean(mean: int, layers: int, inflect: float) -> None:
    schedule = parse_r(mean, layers, inflect=inflect)
    assert len(schedule) == layers
    assert min(schedule) >= 0
    if layers > 1:
        # Both ends and every layer are rounded down.
        assert mean * layers - 2 * layers <= sum(schedule) <= mean * layers + layers
    steps = [other - one for one, other in pairwise(schedule)]
    assert all(step >= 0 for step in steps) if inflect >= 0 else all(step <= 0 for step in steps)


def test_schedule_of_single_numbers() -> None:
    assert parse_r([3, 2], 4) == parse_r((3, 2), 4) == (3, 2, 0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bipartite_match(torch.ones(1, 4, 2), -1), "at least 0, got -1 and 0"),
        (lambda: bipartite_match(torch.ones(1, 4, 2), 1, protected=-2), "at least 0, got 1 and -2"),
        (lambda: every_kth_match(torch.ones(1, 4, 2), 5), "from 1 to 4 .*got 5"),
        (lambda: every_kth_match(torch.ones(1, 4, 2), 0), "from 1 to 4 .*got 0"),
        (lambda: parse_r([1, 2, 3], 2), r"at most 2 layers .*got \[1, 2, 3\]"),
        (lambda: parse_r([1], 2, inflect=0.5), r"no inflect, got \[1\], 0.5"),
    ],
)
def test_refusals_name_the_value_and_the_range(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
