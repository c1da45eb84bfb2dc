"""Inputs that operations trip over, for the tests that hold them to their plain loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("plain", "signs", "with_zeros", "constant", "zero", "duplicates")


def tokens_of(kind: str, batch: int, tokens: int, dim: int) -> torch.Tensor:
    """Vectors of a kind; those of signs have exact cosines, so that ties are plentiful and true.

    Strided ones lie in memory in another order, with foreign values in between; a walk takes small steps, so that long
    chains of tokens wait for one another.
    """
    if kind == "plain":
        return torch.randn(batch, tokens, dim)
    if kind in ("constant", "zero"):
        return torch.full((batch, tokens, dim), float(kind == "constant"))
    if kind == "strided":
        return torch.randn(dim, tokens, 2 * batch)[:, :, ::2].permute(2, 1, 0)
    if kind == "walk":
        return torch.randn(batch, tokens, dim).mul(0.3).cumsum(dim=1)
    if kind == "duplicates":
        return torch.randn(batch, tokens, dim)[:, torch.randint(0, tokens, (tokens,))]
    signs = torch.randint(0, 2, (batch, tokens, dim)).float() * 2 - 1
    return signs.masked_fill(torch.rand(batch, tokens, 1) < 0.3, 0) if kind == "with_zeros" else signs


inputs = pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in ("plain", "signs", "with_zeros", "constant", "strided")),
        *((kind, dtype) for kind in ("plain", "with_zeros") for dtype in (torch.bfloat16, torch.float16)),
    ],
    ids=str,
)


def assert_unchanged_by_autocast(everything: Callable[[], Iterable[torch.Tensor]]) -> None:
    expected = [*everything()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [*everything()]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@st.composite
def pictures(draw: st.DrawFn, *, largest: int = 700, dim: int = 8) -> torch.Tensor:
    """`(batch, tokens, dim)` of every kind, type and memory layout."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    batch, tokens = draw(st.integers(1, 4)), draw(st.integers(1, largest))
    states = tokens_of(draw(st.sampled_from(KINDS)), batch, tokens, dim).to(draw(st.sampled_from(DTYPES)))
    return states.mT.contiguous().mT if draw(st.booleans()) else states
