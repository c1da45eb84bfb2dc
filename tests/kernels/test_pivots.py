"""Pivots that pick by a kernel pick what they pick by the torch code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.kernels import without_kernels
from vtprune.kernels.pivots import pick_unlike
from vtprune.ops.pivots import _cosines, unlike_pivots

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@settings(max_examples=20)
@given(st.integers(1, 70), st.integers(1, 9), st.sampled_from([torch.float32, torch.bfloat16]), st.data())
def test_any_tokens(tokens: int, pivots: int, dtype: torch.dtype, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    # Signs: cosines tie, and are the same in every precision.
    states, centres = (
        (torch.randint(0, 2, (2, length, 16)).float() * 2 - 1).to(dtype).to(DEVICE) for length in (tokens, pivots)
    )
    live = torch.rand(2, pivots, device=DEVICE) < 0.7
    live[:, 0] = True
    taken = torch.rand(2, tokens, device=DEVICE) < 0.3
    count = data.draw(st.integers(0, int((~taken).sum(dim=1).min())))
    found = pick_unlike(_cosines(centres, states), live, taken, count)
    with without_kernels():
        assert torch.equal(found, unlike_pivots(states, centres, count, live=live, taken=taken))
    assert found.sum(dim=1).tolist() == [count, count]


def test_what_is_not_a_number_is_picked_last() -> None:
    cosine = torch.tensor([[[torch.nan, 1.0, 0.5, -1.0]]], device=DEVICE)
    live, taken = torch.ones(1, 1, device=DEVICE).bool(), torch.zeros(1, 4, device=DEVICE).bool()
    assert pick_unlike(cosine, live, taken, 3).tolist() == [[False, True, True, True]]


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "dim", "count"), [(576, 4096, 56), (2880, 4096, 300), (16000, 64, 900)])
def test_on_a_device(tokens: int, dim: int, count: int) -> None:
    states, centres = (torch.randn(2, length, dim, device="cuda") for length in (tokens, 8))
    live = torch.ones(2, 8, device="cuda").bool()
    live[1, 3] = False
    taken = torch.zeros(2, tokens, device="cuda").bool()
    taken[:, :8] = True
    found = unlike_pivots(states, centres, count, live=live, taken=taken)
    with without_kernels():
        assert torch.equal(found, unlike_pivots(states, centres, count, live=live, taken=taken))
    assert (
        unlike_pivots(states.bfloat16(), centres.bfloat16(), count, live=live, taken=taken).sum(dim=1) == count
    ).all()
