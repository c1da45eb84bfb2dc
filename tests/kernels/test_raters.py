"""Raters and what their rows come to, by kernels as by the torch code."""

from __future__ import annotations

import pytest
import torch

from vtprune.kernels import without_kernels
from vtprune.kernels.raters import mean_rows, raters_of, totals_and_peaks
from vtprune.ops.raters import _MARGIN, attention_peaks, rater_attention, text_raters

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "words", "dim"), [(1, 1, 8), (63, 17, 70), (100, 40, 16)])
@pytest.mark.parametrize("garbage", [0.0, torch.nan])
def test_raters(tokens: int, words: int, dim: int, dtype: torch.dtype, garbage: float) -> None:
    visual = torch.randn(dim, tokens, 2).to(dtype).to(DEVICE).permute(2, 1, 0)
    text = torch.randn(2, words, dim).to(dtype).to(DEVICE)
    mask = torch.rand(2, words, device=DEVICE) < 0.7
    mask[0] = True
    text = text.masked_fill(~mask.unsqueeze(-1), garbage)
    found = raters_of(visual, text, mask, _MARGIN)
    with without_kernels():
        assert torch.equal(found, text_raters(visual, text, mask))
    assert torch.equal(raters_of(visual[1:], text[1:], mask[1:], _MARGIN)[0], found[1])


def test_equal_shares_are_all_raters() -> None:
    visual, text = torch.zeros(1, 40, 8, device=DEVICE).bfloat16(), torch.randn(1, 7, 8, device=DEVICE).bfloat16()
    mask = torch.ones(1, 7, device=DEVICE).bool()
    assert raters_of(visual, text, mask, _MARGIN).all()


@TYPES
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (17, 63), (33, 130)])
def test_rows(rows: int, tokens: int, dtype: torch.dtype) -> None:
    attention = torch.rand(2, 3, tokens, rows).to(dtype).to(DEVICE).mT
    rated = torch.rand(2, rows, device=DEVICE) < 0.6
    rated[1] = False
    attention = attention.masked_fill(~rated[:, None, :, None], torch.nan)
    gravity = torch.rand(2, rows, tokens, device=DEVICE).double() + 0.5
    with without_kernels():
        torch.testing.assert_close(mean_rows(attention, rated), rater_attention(attention, rated))
        torch.testing.assert_close(
            mean_rows(attention, rated, gravity), rater_attention(attention, rated, gravity), rtol=1e-5, atol=1e-7
        )
        torch.testing.assert_close(totals_and_peaks(attention, rated), attention_peaks(attention, rated))


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "words"), [(576, 60), (2880, 200), (16000, 300)])
def test_on_a_device(tokens: int, words: int) -> None:
    visual, text = (torch.randn(2, length, 512, device="cuda").mul(0.1).bfloat16() for length in (tokens, words))
    mask = torch.arange(words, device="cuda") < torch.tensor([[words], [words // 2]], device="cuda")
    attention = torch.rand(2, 8, words, tokens, device="cuda").bfloat16()
    found = text_raters(visual, text, mask)
    by_head, (total, peak) = rater_attention(attention, mask), attention_peaks(attention, mask)
    with without_kernels():
        expected = text_raters(visual, text, mask)
        torch.testing.assert_close(by_head, rater_attention(attention, mask))
        torch.testing.assert_close((total, peak), attention_peaks(attention, mask))
    # A share may lie as near to the mean as float32 rounds it.
    assert int((found != expected).sum()) <= 2
