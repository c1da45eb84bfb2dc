"""Scores, quotas and picks of chunks by kernels equal those of the torch code."""

from __future__ import annotations

import pytest
import torch
from awkward import tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.kernels import without_kernels
from vtprune.kernels.chunks import can_share, picks_of, quotas_of, scores_of
from vtprune.ops.chunks import best_of_chunks, chunk_quotas, holistic_scores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("tokens", "chunks", "dim"), [(1, 1, 5), (63, 8, 70), (63, 63, 8), (100, 1, 33)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scores(tokens: int, chunks: int, dim: int, dtype: torch.dtype) -> None:
    features = tokens_of("strided", 2, tokens, dim).to(dtype).to(DEVICE)
    features[:, 0] = 0
    attention = torch.rand(2, tokens, device=DEVICE)
    found = scores_of(features, attention, chunks, 0.09)
    with without_kernels():
        torch.testing.assert_close(found, holistic_scores(features, attention, chunks), rtol=1e-4, atol=1e-5)
    assert torch.equal(scores_of(features[1:], attention[1:], chunks, 0.09)[0], found[1])


@settings(max_examples=25)
@given(st.integers(1, 60), st.data())
def test_quotas_and_picks(tokens: int, data: st.DataObject) -> None:
    chunks = data.draw(st.integers(1, tokens))
    budget = data.draw(st.integers(1, tokens))
    reallocate = data.draw(st.booleans())
    sharpness = data.draw(st.sampled_from([1.0, 3.0]))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    # Steep scores: some chunks fill up.
    scores = (torch.randn(2, tokens) * 3).exp()
    if data.draw(st.booleans()):
        scores = torch.randint(0, 3, (2, tokens)).float()
    scores = scores.to(DEVICE)
    quotas = quotas_of(scores, chunks, budget, sharpness=sharpness, reallocate=reallocate)
    with without_kernels():
        expected = chunk_quotas(scores, chunks, budget, sharpness=sharpness, reallocate=reallocate)
        picks = best_of_chunks(scores, expected, budget)
    assert torch.equal(quotas, expected)
    assert torch.equal(picks_of(scores, expected, budget), picks)


def test_more_than_fits_goes_another_way() -> None:
    assert can_share(2880, 32)
    assert not can_share(20000, 2)
    assert not can_share(2880, 65)


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "chunks", "budget"), [(576, 8, 64), (2880, 40, 320), (16000, 128, 1000)])
def test_on_a_device(tokens: int, chunks: int, budget: int) -> None:
    features = torch.randn(2, tokens, 1024 if tokens < 9000 else 64, device="cuda").bfloat16()
    attention = torch.rand(2, tokens, device="cuda")
    scores = holistic_scores(features, attention, chunks)
    quotas = chunk_quotas(scores, chunks, budget)
    picks = best_of_chunks(scores, quotas, budget)
    with without_kernels():
        torch.testing.assert_close(scores, holistic_scores(features, attention, chunks), rtol=1e-4, atol=1e-5)
        assert torch.equal(quotas, chunk_quotas(scores, chunks, budget))
        assert torch.equal(picks, best_of_chunks(scores, quotas, budget))
