"""Relevance by kernels is that of the operation, which is that of the plain loop."""

from __future__ import annotations

import pytest
import torch
from awkward import inputs, tokens_of

from vtprune.kernels import without_kernels
from vtprune.kernels.question_relevance import relevance
from vtprune.ops.question_relevance import question_relevance
from vtprune.ops.reference import question_relevance as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_same(
    tokens: torch.Tensor, pieces: torch.Tensor, mask: torch.Tensor, among: torch.Tensor, *, negate: bool = False
) -> torch.Tensor:
    """Of the kernels, which the interpreter runs where there is no device, and of the operation."""
    given = [tensor.to(DEVICE) for tensor in (tokens, pieces, mask, among)]
    with without_kernels():
        expected = question_relevance(*given, negate=negate)
    found = relevance(*given, negate=negate)
    # A cosine next to the middle of two steps may go to either.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, equal_nan=True)
    return found.cpu()


@inputs
@pytest.mark.parametrize("negate", [False, True])
@pytest.mark.parametrize(("count", "words"), [(1, 1), (63, 3)])
def test_equals_the_operation_and_the_loop(kind: str, dtype: torch.dtype, negate: bool, count: int, words: int) -> None:
    tokens, pieces = tokens_of(kind, 2, count, 80).to(dtype), tokens_of(kind, 2, words, 80).to(dtype)
    mask, among = torch.rand(2, words) < 0.7, torch.rand(2, count) < 0.7
    found = assert_same(tokens, pieces, mask, among, negate=negate)
    for picture in range(2):
        there = mask[picture].tolist(), among[picture].tolist()
        slow = reference.question_relevance(tokens[picture], pieces[picture], *there, negate)
        torch.testing.assert_close(found[picture], torch.tensor(slow).double(), rtol=1e-6, atol=1e-7)


def test_goes_from_zero_to_one_among_the_tokens_that_count() -> None:
    tokens, pieces, among = torch.randn(2, 40, 300), torch.randn(2, 2, 300), torch.rand(2, 40) < 0.5
    found = assert_same(tokens, pieces, torch.ones(2, 2, dtype=torch.bool), among)
    for row, counts in zip(found, among, strict=True):
        assert 0 < row[counts].min() < 1e-3
        assert 1 < row[counts].max() < 1.001


def test_equal_tokens_are_equally_relevant_in_whatever_batch_and_order() -> None:
    tokens, pieces = torch.randn(3, 30, 200), torch.randn(3, 2, 200)
    tokens[:, 7] = tokens[:, 22]
    mask, among = torch.rand(3, 4)[:, ::2] < 0.7, torch.ones(3, 30, dtype=torch.bool)
    found = assert_same(tokens, pieces, mask, among)
    assert torch.equal(found[:, 7], found[:, 22])
    turned = assert_same(tokens.flip(1)[1:2], pieces[1:2], mask[1:2], among[:1, :1].expand(1, 30))
    assert torch.equal(turned, found[1:2].flip(1))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("nonsense", [float("nan"), float("inf")])
def test_what_is_no_number(nonsense: float) -> None:
    tokens, pieces = torch.randn(3, 20, 32), torch.randn(3, 2, 32)
    mask, among = torch.tensor([[True, False]]).repeat(3, 1), torch.ones(3, 20, dtype=torch.bool)
    # A masked piece never matters, a token that does not count keeps others as they are.
    pieces[0, 1], tokens[1, 3, 5], tokens[2, 4, 6] = nonsense, nonsense, nonsense
    among[1, 3] = False
    found = assert_same(tokens, pieces, mask, among)
    assert found[0].isfinite().all()
    assert found[1].isfinite().tolist() == [token != 3 for token in range(20)]
    assert found[2].eq(1).all()


@pytest.mark.gpu
@pytest.mark.parametrize(("count", "dim", "words"), [(576, 768, 1), (2880, 768, 4), (16000, 64, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_device(count: int, dim: int, words: int, dtype: torch.dtype) -> None:
    tokens, pieces = torch.randn(3, count, dim).to(dtype), torch.randn(3, words, dim)
    mask, among = torch.ones(3, words, dtype=torch.bool), torch.rand(3, count) < 0.9
    found = assert_same(tokens, pieces, mask, among, negate=True)
    given = [tensor.to(DEVICE) for tensor in (tokens, pieces, mask, among)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        through = question_relevance(*given, negate=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(through.cpu(), found)
