"""Products of all tokens with each other, at sizes at which the CPU takes them in strips."""

from __future__ import annotations

import pytest
import torch
from awkward import assert_unchanged_by_autocast, tokens_of
from torch.nn.functional import normalize

from vtprune.ops.coverage import _add_between_, _cosines
from vtprune.ops.gram import cosine_gram, gram
from vtprune.ops.rounded_cosine import rounded_cosine_gram

COUNTS = pytest.mark.parametrize("count", [1, 95, 192, 401])


@COUNTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_a_product_and_is_symmetric(count: int, dtype: torch.dtype) -> None:
    rows = tokens_of("strided", 2, count, 40).to(dtype)
    found = gram(rows)
    assert torch.equal(found, found.mT)
    torch.testing.assert_close(found, rows @ rows.mT)


def test_what_is_no_number_stays_in_its_row_and_column() -> None:
    rows = torch.randn(1, 200, 8)
    rows[0, 150, 3] = torch.nan
    is_odd = torch.arange(200) == 150
    assert torch.equal(gram(rows)[0].isnan(), is_odd | is_odd.unsqueeze(1))


@COUNTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cosines(count: int, dtype: torch.dtype) -> None:
    tokens = torch.randn(2, count, 40).to(dtype)
    tokens[:, ::7] = 0
    unit = normalize(tokens.double(), dim=-1)
    found = cosine_gram(tokens)
    assert found.dtype == (torch.float32 if dtype != torch.float32 and count >= 192 else torch.float64)
    torch.testing.assert_close(found.double(), unit @ unit.mT, rtol=0, atol=1e-6)
    assert not found[:, ::7].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_tokens_have_equal_rows_whatever_else_is_in_the_batch(dtype: torch.dtype) -> None:
    names = torch.randint(0, 250, (250,))
    first = (names.unsqueeze(1) == names).long().argmax(dim=1)
    tokens = torch.randn(3, 250, 64).to(dtype)[:, names]
    for found in (rounded_cosine_gram(tokens), _cosines(tokens)):
        assert torch.equal(found, found[:, first])
        assert float(found.abs().max()) <= 1
    assert torch.equal(rounded_cosine_gram(tokens)[1:2], rounded_cosine_gram(tokens[1:2]))


def test_autocast_does_not_lower_the_precision() -> None:
    tokens = torch.randn(1, 200, 16)
    assert_unchanged_by_autocast(lambda: [cosine_gram(tokens), cosine_gram(tokens.bfloat16())])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_coverage_is_added_up_as_all_rows_would_tell(dtype: torch.dtype) -> None:
    cosine = _cosines(torch.randn(2, 300, 16).to(dtype))
    before = cosine[:, 0].clamp_min(0)
    after = torch.maximum(before, cosine[:, 1])
    whole = [torch.maximum(cosine, covered.unsqueeze(1)) - covered.unsqueeze(1) for covered in (before, after)]
    expected = (whole[0].double() - whole[1].double()).sum(dim=2)
    gain = torch.zeros_like(expected)
    _add_between_(gain, cosine, before, after, 1)
    assert torch.equal(gain, expected)
    _add_between_(gain, cosine, before, after, -1)
    assert not gain.any()
