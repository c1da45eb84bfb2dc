"""Every fast operation agrees with its plain loop, on awkward sizes, inputs, types and memory layouts."""

from __future__ import annotations

import pytest
import torch
from awkward import inputs, tokens_of

from vtprune.ops.entropy import _sum_from_eigenvalues, _sum_from_resolvents, matrix_entropy
from vtprune.ops.hashing import random_keys
from vtprune.ops.max_min import max_min
from vtprune.ops.merge import merge_into_targets
from vtprune.ops.pool import block_pool, cell_pool
from vtprune.ops.reference import seeds as reference
from vtprune.ops.residual import drop_redundant
from vtprune.ops.similarity import geometric_blend, min_max, text_relevance
from vtprune.ops.spread import grid_cells
from vtprune.ops.topk import stable_topk

SIZES = [(1, 1), (2, 1), (63, 1), (63, 7), (63, 62)]


sizes = pytest.mark.parametrize(("tokens", "keep"), SIZES)


@inputs
@sizes
def test_stable_topk(kind: str, dtype: torch.dtype, tokens: int, keep: int) -> None:
    scores = tokens_of(kind, 3, tokens, 1).to(dtype)[:, :, 0]
    fast = stable_topk(scores, keep)
    assert fast.tolist() == [reference.stable_topk(row, keep) for row in scores]


@inputs
@sizes
def test_max_min(kind: str, dtype: torch.dtype, tokens: int, keep: int) -> None:
    states = tokens_of(kind, 2, tokens, 16).to(dtype)
    assert max_min(states, keep).tolist() == [reference.max_min(picture, keep) for picture in states]


@pytest.mark.parametrize("per_round", [3, 8])
@inputs
@pytest.mark.parametrize(("tokens", "keep"), [(1, 0), *SIZES])
def test_drop_redundant(kind: str, dtype: torch.dtype, tokens: int, keep: int, per_round: int) -> None:
    states = tokens_of(kind, 2, tokens, 16).to(dtype)
    fast = drop_redundant(states, keep, per_round=per_round)
    assert fast.tolist() == [reference.drop_redundant(picture, keep, per_round=per_round) for picture in states]


@inputs
@pytest.mark.parametrize(("tokens", "targets"), [(1, 0), *SIZES])
def test_merge(kind: str, dtype: torch.dtype, tokens: int, targets: int) -> None:
    features, metric = torch.randn(3, tokens, 5).to(dtype), tokens_of(kind, 3, tokens, 16).to(dtype)
    merged, chosen, assigned = merge_into_targets(features, metric, targets)
    assert merged.dtype == dtype
    for picture in range(3):
        expected, where, went = reference.merge_into_targets(features[picture], metric[picture], targets)
        assert chosen.tolist() == where
        if targets:
            assert assigned[picture].tolist() == went
        torch.testing.assert_close(merged[picture], expected.to(dtype))


@inputs
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("normalize_trace", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 5])
def test_matrix_entropy(kind: str, dtype: torch.dtype, group: int, normalize_trace: bool, heads: int) -> None:
    states = tokens_of(kind, 2 * heads, 9, 8).view(2, heads, 9, 8).to(dtype)
    fast = matrix_entropy(states, group=group, normalize_trace=normalize_trace)
    slow = torch.stack([reference.matrix_entropy(one, group=group, normalize_trace=normalize_trace) for one in states])
    torch.testing.assert_close(fast, slow, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("heads", [1, 2, 8, 32])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 40.0])
def test_entropy_without_eigenvalues(heads: int, scale: float) -> None:
    rows = torch.randn(2, 3, heads, 64, dtype=torch.float64) * scale
    rows = rows - rows.mean(2, keepdim=True)
    gram = rows @ rows.mT / heads
    trace = float(gram.diagonal(dim1=-2, dim2=-1).sum(-1).max())
    difference = (_sum_from_resolvents(gram) - _sum_from_eigenvalues(gram)).abs().max()
    # The eigenvalues are clamped at 1e-10, which adds up to 2.3e-9 for each.
    assert float(difference) <= 1e-7 + 1e-9 * trace


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 63])
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.995, 1.0])
def test_text_relevance(dtype: torch.dtype, tokens: int, quantile: float) -> None:
    visual, words = torch.randn(3, tokens, 16).to(dtype), torch.randn(3, 5, 16).to(dtype)
    lengths = [5, 2, 0]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    fast = text_relevance(visual, words, mask, gate_quantile=quantile)
    for picture, length in enumerate(lengths):
        slow = reference.text_relevance(visual[picture], words[picture, :length], gate_quantile=quantile)
        torch.testing.assert_close(fast[picture].tolist(), slow, rtol=1e-6, atol=1e-9)


def test_padding_words_never_matter() -> None:
    visual, words = torch.randn(2, 63, 16), torch.randn(2, 9, 16)
    mask = torch.arange(9) < torch.tensor([[4], [0]])
    garbage = torch.where(mask[..., None], words, torch.tensor(float("nan")))
    torch.testing.assert_close(
        text_relevance(visual, garbage, mask), text_relevance(visual, words, mask), rtol=0, atol=0
    )
    cut = text_relevance(visual, words[:, :4], mask[:, :4])
    torch.testing.assert_close(text_relevance(visual, words, mask), cut, rtol=1e-12, atol=1e-12)
    assert not text_relevance(visual, words[:, :0], mask[:, :0]).any()


def test_geometric_blend() -> None:
    first, second = torch.rand(3, 63).double(), torch.rand(3, 63).double()
    first[0, 3] = second[1, 5] = 0.0
    for fast, one, other in zip(geometric_blend(first, second), first, second, strict=True):
        torch.testing.assert_close(fast.tolist(), reference.geometric_blend(one.tolist(), other.tolist()))


def test_min_max_of_constants_is_zero() -> None:
    assert not min_max(torch.full((2, 5), 3.0)).any()


@inputs
@pytest.mark.parametrize(
    ("height", "width", "kernel"), [(1, 1, 1), (7, 9, 1), (7, 9, 2), (7, 9, 4), (7, 9, 7), (6, 6, 3)]
)
def test_block_pool(kind: str, dtype: torch.dtype, height: int, width: int, kernel: int) -> None:
    states = tokens_of(kind, 3, height * width, 4).to(dtype)
    pooled, centres = block_pool(states, height, width, kernel)
    assert pooled.dtype == dtype
    slow = torch.stack([reference.block_pool(picture, height, width, kernel) for picture in states])
    torch.testing.assert_close(pooled, slow.to(dtype))
    assert len(set(centres.tolist())) == pooled.shape[1]


@inputs
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (7, 9), (3, 21), (6, 6)])
def test_cell_pool(kind: str, dtype: torch.dtype, height: int, width: int) -> None:
    tokens = height * width
    for count in sorted({1, min(2, tokens), (tokens + 1) // 2, max(1, tokens - 1), tokens}):
        states = tokens_of(kind, 2, tokens, 4).to(dtype)
        pooled, centres = cell_pool(states, height, width, count)
        for picture in range(2):
            slow, where = reference.cell_pool(states[picture], height, width, count)
            torch.testing.assert_close(pooled[picture], slow.to(dtype))
            assert centres.tolist() == where


def test_cell_pool_does_not_see_other_cells() -> None:
    states = torch.ones(1, 7 * 9, 2)
    states[0, 0] = float("nan")
    pooled, _ = cell_pool(states, 7, 9, 11)
    assert pooled.isnan().any(-1).sum() == 1


@pytest.mark.parametrize(("height", "width"), [(7, 9), (24, 24), (2, 30)])
def test_grid_cells(height: int, width: int) -> None:
    for count in range(1, height * width + 1):
        cells = torch.stack(list(grid_cells(height, width, count)), dim=1)
        assert [tuple(cell) for cell in cells.tolist()] == reference.grid_cells(height, width, count)


def test_random_keys() -> None:
    images = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])
    for seed in (0, 1, 2**63 - 1):
        fast = random_keys(images, torch.arange(63).expand(5, -1), seed)
        slow = [[reference.random_key(image, token, seed) for token in range(63)] for image in images.tolist()]
        assert fast.tolist() == slow
