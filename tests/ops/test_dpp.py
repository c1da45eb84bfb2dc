"""Greedy picks of a determinantal point process: against the definition, and what holds for every input."""

from __future__ import annotations

import pytest
import torch
from awkward import assert_unchanged_by_autocast, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.dpp import dpp_map
from vtprune.ops.reference import dpp as reference

INPUTS = [
    *((kind, torch.float32) for kind in ("plain", "signs", "with_zeros", "constant", "strided", "duplicates")),
    *((kind, dtype) for kind in ("plain", "with_zeros") for dtype in (torch.bfloat16, torch.float16)),
]


@pytest.mark.parametrize(("kind", "dtype"), INPUTS)
@pytest.mark.parametrize(("tokens", "keep"), [(1, 1), (2, 1), (2, 2), (23, 7), (23, 22)])
def test_agrees_with_the_definition(kind: str, dtype: torch.dtype, tokens: int, keep: int) -> None:
    states = tokens_of(kind, 3, tokens, 12).to(dtype)
    relevance = torch.stack([torch.rand(tokens), torch.ones(tokens), torch.randint(0, 3, (tokens,)) / 2]).to(dtype)
    fast = dpp_map(states, relevance, keep)
    slow = [reference.dpp_map(one, own, keep) for one, own in zip(states, relevance, strict=True)]
    assert fast.tolist() == slow


pictures = st.tuples(st.integers(1, 700), st.integers(1, 64), st.integers(1, 4), st.integers(0, 2**31))
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@settings(max_examples=12)
@given(pictures, dtypes, st.sampled_from(["plain", "with_zeros", "constant", "duplicates"]), st.floats(0, 1))
def test_picks_are_distinct_nested_and_each_picture_s_own(
    picture: tuple[int, int, int, int], dtype: torch.dtype, kind: str, part: float
) -> None:
    tokens, dim, batch, seed = picture
    torch.manual_seed(seed)
    states, relevance = tokens_of(kind, batch, tokens, dim).to(dtype), torch.rand(batch, tokens)
    keep = max(1, round(part * tokens))
    picks = dpp_map(states, relevance, keep)
    assert picks.shape == (batch, keep)
    for row in picks.tolist():
        assert len(set(row)) == keep
        assert 0 <= min(row) <= max(row) < tokens
    fewer = max(1, keep // 2)
    assert torch.equal(dpp_map(states, relevance, fewer), picks[:, :fewer])
    assert torch.equal(dpp_map(states[-1:], relevance[-1:], keep), picks[-1:])


@pytest.mark.parametrize("dim", [1, 5, 32])
def test_one_of_each_direction_comes_before_any_twin(dim: int) -> None:
    states = torch.eye(dim).repeat(3, 1)[None] * torch.rand(1, 3 * dim, 1)
    relevance = torch.rand(1, 3 * dim)
    picks = dpp_map(states, relevance, 3 * dim)[0].tolist()
    assert {pick % dim for pick in picks[:dim]} == set(range(dim))
    assert all(relevance[0, pick] == relevance[0, pick % dim :: dim].max() for pick in picks[:dim])
    left = [float(relevance[0, pick]) for pick in picks[dim:]]
    assert left == sorted(left, reverse=True)


def test_of_equal_tokens_the_first_is_picked() -> None:
    states = torch.randn(2, 300, 64).repeat_interleave(2, dim=1)
    relevance = torch.rand(2, 300).repeat_interleave(2, dim=1)
    assert not bool((dpp_map(states, relevance, 60) % 2).any())


def test_length_and_unit_of_relevance_do_not_matter() -> None:
    states, relevance = torch.randn(2, 80, 12), torch.rand(2, 80)
    lengths = 2.0 ** torch.randint(-8, 8, (2, 80, 1))
    assert torch.equal(dpp_map(states * lengths, relevance / 1024, 70), dpp_map(states, relevance, 70))


def test_zero_vectors_come_last_by_relevance() -> None:
    states = torch.randn(1, 6, 8)
    states[0, [1, 4]] = 0
    assert dpp_map(states, torch.tensor([[0.5, 0.7, 0.5, 0.5, 0.9, 0.5]]), 6)[0, 4:].tolist() == [4, 1]


@pytest.mark.parametrize("where", ["states", "relevance"])
@pytest.mark.parametrize("nonsense", [float("nan"), float("inf")])
def test_survives_what_is_no_number(where: str, nonsense: float) -> None:
    states, relevance = torch.randn(2, 20, 8), torch.rand(2, 20)
    {"states": states, "relevance": relevance}[where][0, 3] = nonsense
    picks = dpp_map(states, relevance, 20)
    for row in picks.tolist():
        assert sorted(row) == list(range(20))
    others = torch.tensor([token for token in range(20) if token != 3])
    expected = others[dpp_map(states[:1, others], relevance[:1, others], 8)]
    assert torch.equal(picks[:1, :8], expected)


def test_autocast_does_not_lower_the_precision() -> None:
    states, relevance = torch.randn(2, 63, 32), torch.rand(2, 63)
    assert_unchanged_by_autocast(lambda: [dpp_map(states, relevance, 40)])


@pytest.mark.parametrize("keep", [0, 5])
def test_refuses_what_it_cannot_keep(keep: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 4 .*got {keep}"):
        dpp_map(torch.ones(1, 4, 2), torch.ones(1, 4), keep)
