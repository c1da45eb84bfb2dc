"""Relevance to a prompt and the blend of scores by kernels equal those of the torch code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.kernels import without_kernels
from vtprune.kernels.relevance import blend, relevance
from vtprune.ops.similarity import _cosines, spread_blend, text_relevance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SETTINGS = {
    "word_temperature": 0.05,
    "token_temperature": 0.05,
    "sharpness": 1.3,
    "gate_quantile": 0.3,
    "gate_factor": 0.5,
}


@settings(max_examples=15)
@given(st.integers(1, 70), st.integers(1, 20), st.sampled_from([0.0, 0.3, 0.77, 1.0]), st.data())
def test_any_prompt(tokens: int, words: int, quantile: float, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    visual, textual = torch.randn(2, tokens, 12).to(DEVICE), torch.randn(2, words, 12).to(DEVICE)
    mask = torch.rand(2, words, device=DEVICE) < 0.7
    textual = textual.masked_fill(~mask.unsqueeze(-1), torch.nan)
    chosen = {**SETTINGS, "gate_quantile": quantile}
    found = relevance(_cosines(visual, textual, mask), mask, **chosen)
    with without_kernels():
        torch.testing.assert_close(found, text_relevance(visual, textual, mask, **chosen), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tokens", [1, 2, 63, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blend(tokens: int, dtype: torch.dtype) -> None:
    first, second = torch.rand(2, tokens, device=DEVICE).to(dtype), torch.rand(2, tokens, device=DEVICE).double()
    with without_kernels():
        torch.testing.assert_close(blend(first, second), spread_blend(first, second))
    assert torch.equal(blend(first[1:], second[1:])[0], blend(first, second)[1])


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "words"), [(576, 60), (2880, 200), (16000, 77)])
def test_on_a_device(tokens: int, words: int) -> None:
    visual, textual = (torch.randn(2, length, 256, device="cuda") for length in (tokens, words))
    mask = torch.arange(words, device="cuda") < torch.tensor([[words], [words // 2]], device="cuda")
    found = text_relevance(visual, textual, mask)
    half = text_relevance(visual.bfloat16(), textual.bfloat16(), mask)
    attention = torch.rand(2, tokens, device="cuda")
    blended = spread_blend(attention, found)
    with without_kernels():
        torch.testing.assert_close(found, text_relevance(visual, textual, mask), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(blended, spread_blend(attention, found))
        expected = text_relevance(visual.bfloat16(), textual.bfloat16(), mask)
    torch.testing.assert_close(half, expected, rtol=1e-3, atol=1e-4)
