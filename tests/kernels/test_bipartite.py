"""Matching by kernels equals that of the torch code, and rounds from dot products equal rounds of merged tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from vtprune.kernels import without_kernels
from vtprune.kernels.bipartite import carry_out, propose
from vtprune.ops import merge as merge_module
from vtprune.ops.bipartite import _match_with_kernels, _rounds_with_kernels, bipartite_match, merge_rounds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "merges"), [(2, 1), (3, 1), (63, 31), (130, 20)])
def test_matching(tokens: int, merges: int, dtype: torch.dtype) -> None:
    # Vectors of a few signs: cosines tie, and are the same in every precision.
    metric = (torch.randint(0, 2, (2, tokens, 16)).float() * 2 - 1).to(dtype).to(DEVICE)
    found = _match_with_kernels(metric, merges)
    with without_kernels():
        expected = bipartite_match(metric, merges)
    assert torch.equal(found.kept, expected.kept)
    assert torch.equal(found.source, expected.source)


@pytest.mark.parametrize("tokens", [2, 3, 65, 300])
def test_proposals(tokens: int) -> None:
    states = torch.randn(2, tokens, 8, device=DEVICE).double()
    states[:, :: 1 + tokens // 2] = 0
    best, partner = propose(states @ states.mT)
    unit = normalize(states, dim=-1)
    cosine = unit[:, 0::2] @ unit[:, 1::2].mT
    torch.testing.assert_close(best, cosine.amax(dim=2))
    torch.testing.assert_close(cosine.gather(2, partner.unsqueeze(2)).squeeze(2), best)
    assert partner[:, 0].tolist() == [0, 0]  # a zero vector ties with all


def test_what_is_not_a_number_moves_first() -> None:
    products = torch.eye(6, device=DEVICE).unsqueeze(0)
    products[0, 4, 3] = torch.nan
    best, partner = propose(products)
    kept, source = carry_out(best, partner, 6, 1)
    assert (kept.tolist(), source.tolist()) == ([[0, 2, 1, 3, 5]], [[0, 2, 1, 3, 3, 4]])


@settings(max_examples=10)
@given(st.integers(2, 40), st.data())
def test_rounds(tokens: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, tokens - 1))
    per_round = data.draw(st.sampled_from([None, 1, 3]))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    states = torch.randn(2, tokens, 12, dtype=torch.float64).to(DEVICE)
    found = _rounds_with_kernels(states, keep, per_round)
    with without_kernels():
        expected = merge_rounds(states, keep, per_round=per_round)
    torch.testing.assert_close(found, expected)


def test_rounds_of_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.randn(3, 60, 32, device=DEVICE).bfloat16()
    monkeypatch.setattr(merge_module, "use_kernels", lambda tensor: True)
    merged, kept, sizes = _rounds_with_kernels(states, 10, None)
    assert merged.dtype == torch.bfloat16
    assert sizes.sum(dim=1).tolist() == [60, 60, 60]
    with without_kernels():
        expected = merge_rounds(states.double(), 10)
    # No two cosines of these are as near as float32 rounds them.
    assert torch.equal(kept, expected[1])
    torch.testing.assert_close(merged.double(), expected[0], rtol=1e-2, atol=1e-3)
    alone = _rounds_with_kernels(states[1:2], 10, None)
    assert all(torch.equal(one[0], other[1]) for one, other in zip(alone, (merged, kept, sizes), strict=True))
    monkeypatch.setattr("vtprune.kernels.gram.pictures_at_once", lambda count, item=4: 2)
    in_parts = _rounds_with_kernels(states, 10, None)
    assert all(map(torch.equal, in_parts, (merged, kept, sizes)))


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "dim", "keep"), [(576, 4096, 64), (2880, 4096, 320), (8000, 64, 3000)])
def test_on_a_device(tokens: int, dim: int, keep: int) -> None:
    states = torch.randn(2, tokens, dim, device="cuda", dtype=torch.float64)
    merged, kept, sizes = merge_rounds(states, keep)
    with without_kernels():
        expected = merge_rounds(states, keep)
    assert torch.equal(kept, expected[1])
    torch.testing.assert_close((merged, sizes), (expected[0], expected[2]))
    merged, kept, sizes = merge_rounds(states.bfloat16(), keep)
    assert merged.isfinite().all()
    assert (sizes.sum(dim=1) == tokens).all()
    assert all(len(set(row)) == keep for row in kept.tolist())
