"""Rater words: against the plain loops, and what holds for every input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.raters import rater_attention, rotary_gravity, text_raters
from vtprune.ops.reference import raters as reference

few = settings(max_examples=40)


def plain(batch: int, rows: int, dim: int) -> torch.Tensor:
    return torch.randn(batch, rows, dim)


def signs(batch: int, rows: int, dim: int) -> torch.Tensor:
    return torch.randint(0, 2, (batch, rows, dim)).float() * 2 - 1


def zeros(batch: int, rows: int, dim: int) -> torch.Tensor:
    return torch.zeros(batch, rows, dim)


def constant(batch: int, rows: int, dim: int) -> torch.Tensor:
    return torch.full((batch, rows, dim), 0.1)


def strided(batch: int, rows: int, dim: int) -> torch.Tensor:
    return torch.randn(dim, rows, 2 * batch)[:, :, ::2].permute(2, 1, 0)


Maker = Callable[[int, int, int], torch.Tensor]
INPUTS: list[tuple[Maker, torch.dtype]] = [
    *((make, torch.float32) for make in (plain, signs, zeros, constant, strided)),
    *((make, dtype) for make in (plain, signs, constant) for dtype in (torch.bfloat16, torch.float16)),
]
inputs = pytest.mark.parametrize(("make", "dtype"), INPUTS)


@inputs
@pytest.mark.parametrize("tokens", [1, 2, 63])
def test_raters_agree_with_the_loop(make: Maker, dtype: torch.dtype, tokens: int) -> None:
    lengths = [11, 4, 1]
    visual, words = make(3, tokens, 8).to(dtype), make(3, 11, 8).to(dtype)
    mask = torch.arange(11) < torch.tensor(lengths)[:, None]
    fast = text_raters(visual, words, mask)
    for picture, length in enumerate(lengths):
        slow = reference.text_raters(visual[picture], words[picture, :length])
        assert fast[picture].nonzero().flatten().tolist() == slow


@pytest.mark.parametrize("garbage", [torch.inf, torch.nan])
def test_masked_words_never_matter(garbage: float) -> None:
    visual, words, mask = plain(2, 20, 8), plain(2, 9, 8), torch.rand(2, 9) < 0.6
    mask[:, 0] = True
    clean = text_raters(visual, words, mask)
    assert torch.equal(text_raters(visual, words.masked_fill(~mask[..., None], garbage), mask), clean)
    assert not bool((clean & ~mask).any())


@pytest.mark.parametrize("make", [zeros, constant])
@pytest.mark.parametrize(("tokens", "length"), [(36, 19), (36, 24), (576, 20)])
def test_equal_words_all_rate(make: Maker, tokens: int, length: int) -> None:
    """Sizes at which plain sums of equal shares differ in their last digit."""
    assert text_raters(make(1, tokens, 8), make(1, length, 8), torch.ones(1, length, dtype=torch.bool)).all()


def test_no_word_is_no_rater() -> None:
    assert not text_raters(plain(2, 5, 8), plain(2, 4, 8), torch.zeros(2, 4, dtype=torch.bool)).any()
    assert text_raters(plain(2, 5, 8), plain(2, 0, 8), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)


def test_autocast_does_not_change_the_raters() -> None:
    visual, words, mask = plain(3, 50, 64), plain(3, 900, 64) / 20, torch.ones(3, 900, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = text_raters(visual, words, mask)
    assert torch.equal(half, text_raters(visual, words, mask))


@few
@given(st.integers(1, 700), st.integers(1, 30), st.integers(1, 4), st.sampled_from([make for make, _ in INPUTS]))
def test_every_prompt_has_raters_of_its_own(tokens: int, length: int, batch: int, make: Maker) -> None:
    visual, words = make(batch, tokens, 4), make(batch, length, 4)
    mask = torch.arange(length) < torch.randint(1, length + 1, (batch, 1))
    together = text_raters(visual, words, mask)
    assert bool(together.any(dim=1).all())
    for picture in range(batch):
        alone = text_raters(visual[picture : picture + 1], words[picture : picture + 1], mask[picture : picture + 1])
        assert torch.equal(alone[0], together[picture])


@inputs
def test_attention_agrees_with_the_loop(make: Maker, dtype: torch.dtype) -> None:
    attention = torch.stack([make(5, 7, 21).to(dtype) for _ in range(3)])
    rated = [[0, 3, 6], [5], []]
    mask = torch.tensor([[row in rows for row in range(7)] for rows in rated])
    fast = rater_attention(attention.masked_fill(~mask[:, None, :, None], torch.nan), mask)
    for picture, rows in enumerate(rated):
        torch.testing.assert_close(fast[picture].double(), reference.rater_attention(attention[picture], rows))


@pytest.mark.parametrize(("width", "theta"), [(2, 10000.0), (16, 10000.0), (64, 500000.0)])
def test_gravity_agrees_with_the_loop(width: int, theta: float) -> None:
    rows, columns = [0, 7, 650, 4000], [0, 3, 35, 610]
    fast = rotary_gravity(torch.tensor([rows]), torch.tensor([columns]), width, theta)
    slow = torch.tensor(reference.rotary_gravity(rows, columns, width, theta), dtype=torch.float64)
    torch.testing.assert_close(fast[0], slow)


def test_one_can_divide_by_gravity() -> None:
    quarter = torch.pi / 2
    offsets = torch.tensor([[0.0, quarter - 1e-9, quarter + 1e-9, 2 * quarter]], dtype=torch.float64)
    gravity = rotary_gravity(torch.zeros(1, 1), offsets, 2, 10000.0) / 2**0.5
    torch.testing.assert_close(gravity.flatten().tolist(), [1.0, 1e-6 / 2**0.5, -1e-6 / 2**0.5, -1.0])
