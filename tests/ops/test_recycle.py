"""Recovering dropped tokens: against plain loops, and what holds for every input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.recycle import recycle
from vtprune.ops.reference import recycle as reference


def made(kind: str, batch: int, tokens: int, dim: int) -> torch.Tensor:
    signs = torch.randn(batch, tokens, dim).sign()
    kinds = {
        "plain": torch.randn(batch, tokens, dim),
        "signs": signs,
        "zeros": signs.masked_fill(torch.rand(batch, tokens, 1) < 0.3, 0),
        "constant": torch.ones(batch, tokens, dim),
        "strided": torch.randn(dim, tokens, 2 * batch)[:, :, ::2].permute(2, 1, 0),
    }
    return kinds[kind]


INPUTS = [
    *((kind, torch.float32) for kind in ("plain", "signs", "zeros", "constant", "strided")),
    *((kind, dtype) for kind in ("plain", "zeros") for dtype in (torch.bfloat16, torch.float16)),
]


@pytest.mark.parametrize(("kind", "dtype"), INPUTS)
@pytest.mark.parametrize(("tokens", "centres"), [(1, 0), (2, 1), (40, 0), (40, 1), (40, 7), (40, 39)])
@pytest.mark.parametrize("summary", [True, False])
def test_agrees_with_plain_loops(kind: str, dtype: torch.dtype, tokens: int, centres: int, summary: bool) -> None:
    features, keys = made("plain", 2, tokens, 5).to(dtype), made(kind, 2, tokens, 16).to(dtype)
    attention = torch.stack([torch.rand(tokens), torch.randint(1, 4, (tokens,)) / 8]).to(dtype)
    bonus = torch.stack([torch.rand(tokens), torch.zeros(tokens)]).to(dtype)
    fast, places = recycle(features, keys, attention, bonus, centres, cluster=6, summary=summary)
    assert fast.dtype == dtype
    for picture in range(2):
        slow, where = reference.recycle(
            features[picture], keys[picture], attention[picture], bonus[picture], centres, cluster=6, summary=summary
        )
        assert places[picture].tolist() == where
        if where:
            torch.testing.assert_close(fast[picture], torch.stack(slow).to(dtype))


@settings(max_examples=30)
@given(st.integers(1, 700), st.integers(1, 3), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_places_are_distinct_and_every_picture_its_own(
    tokens: int, batch: int, cluster: int, part: float, seed: int
) -> None:
    torch.manual_seed(seed)
    centres = int(part * (tokens - 1))
    features, keys = made("plain", batch, tokens, 6), made("signs", batch, tokens, 4)
    attention, bonus = torch.rand(batch, tokens), torch.rand(batch, tokens)
    new, places = recycle(features, keys, attention, bonus, centres, cluster=cluster)
    assert new.shape == (batch, centres + 1, 6)
    for row in places.tolist():
        assert len(set(row)) == centres + 1
        assert 0 <= min(row) <= max(row) < tokens
    alone, where = recycle(features[:1], keys[:1], attention[:1], bonus[:1], centres, cluster=cluster)
    assert torch.equal(where, places[:1])
    torch.testing.assert_close(alone, new[:1])


def test_no_token_is_needed() -> None:
    empty = torch.empty(2, 0)
    new, places = recycle(torch.empty(2, 0, 3), torch.empty(2, 0, 3), empty, empty, 0, summary=False)
    assert new.shape == (2, 0, 3)
    assert places.shape == (2, 0)


def test_a_large_bonus_chooses_the_neighbours() -> None:
    features = torch.randn(1, 9, 3)
    attention, bonus = torch.full((1, 9), 0.25), torch.zeros(1, 9)
    attention[0, 4], bonus[0, 7] = 0.5, 50.0
    new, _ = recycle(features, torch.randn(1, 9, 3), attention, bonus, 1, cluster=1, summary=False)
    torch.testing.assert_close(new[0, 0], features[0, 4] + 0.25 * features[0, 7])


def test_autocast_does_not_lower_the_precision() -> None:
    features, keys, scores = torch.randn(2, 63, 8), torch.randn(2, 63, 8), torch.rand(2, 63)
    expected = recycle(features, keys, scores, scores, 9)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(recycle(features, keys, scores, scores, 9)[0], expected)


@pytest.mark.parametrize(("centres", "summary", "most"), [(-1, True, 3), (4, True, 3), (5, False, 4)])
def test_refuses_more_centres_than_there_is_room_for(centres: int, summary: bool, most: int) -> None:
    ones = torch.ones(1, 4)
    with pytest.raises(ValueError, match=f"from 0 to {most} .*got {centres}"):
        recycle(torch.ones(1, 4, 2), torch.ones(1, 4, 2), ones, ones, centres, summary=summary)
