"""Attention by tiles equals the torch code, with every kind of mask, and is free of batch mates."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.kernels import attention as kernels
from vtprune.kernels import without_kernels
from vtprune.ops import attention as ops
from vtprune.ops.attention import QueryRows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = pytest.mark.parametrize("kind", ["open", "causal", "present", "boolean", "additive", "by key"])
LOWEST = torch.finfo(torch.bfloat16).min


def query_rows(
    kind: str,
    *,
    samples: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    length: int = 70,
    cached: int = 0,
    dim: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    device: str = DEVICE,
) -> QueryRows:
    """All rows of random states, as an attention function hands them over: heads lie within a token."""
    keys = torch.randn(samples, cached + length, kv_heads, dim, device=device).to(dtype).transpose(1, 2)
    queries = torch.randn(samples, length, heads, dim, device=device).to(dtype).transpose(1, 2)
    rows = QueryRows(queries, keys, 0.7, causal=kind in ("causal", "present"), first=cached)
    if kind == "present":
        present = torch.rand(samples, cached + length - 1, device=device) < 0.7
        present[:, :1] = True
        return dataclasses.replace(rows, present=present)
    allowed = torch.rand(samples, 1, length, cached + length, device=device) < 0.5
    # A row that may attend to no key.
    allowed[0, 0, 0] = False
    if kind == "boolean":
        return dataclasses.replace(rows, mask=allowed)
    if kind == "by key":
        return dataclasses.replace(rows, mask=allowed[:1, :, -1:])
    if kind == "additive":
        bias = torch.randn(1, heads, length, cached + length, device=device).masked_fill(~allowed[1:], LOWEST)
        return dataclasses.replace(rows, mask=bias.to(dtype))
    return rows


def chosen(rows: QueryRows, samples: list[int], slots: int, targets: int) -> QueryRows:
    """Some rows and keys of some samples."""
    length, count, device = rows.queries.shape[2], rows.keys.shape[2], rows.keys.device
    return dataclasses.replace(
        rows,
        samples=torch.tensor(samples, device=device),
        slots=torch.randint(length, (len(samples), slots), device=device),
        targets=torch.stack([torch.randperm(count, device=device)[:targets] for _ in samples]),
    )


def exact(rows: QueryRows) -> torch.Tensor:
    """The torch code, of which half-precision states make no difference."""
    with without_kernels():
        return ops.attention_of(rows)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-5)


@KINDS
@pytest.mark.parametrize(("length", "cached", "slots"), [(1, 0, 1), (70, 0, 1), (70, 5, 13), (9, 130, 40)])
def test_chosen_rows(kind: str, length: int, cached: int, slots: int) -> None:
    rows = query_rows(kind, length=length, cached=cached)
    some = chosen(rows, [1, 0, 1], slots, max(1, cached + length - 2))
    close(kernels.attention_of(some), exact(some))
    if slots == 1:
        close(kernels.attention_of(rows), exact(rows))


@KINDS
@pytest.mark.parametrize(("length", "cached", "slots"), [(1, 0, 1), (70, 5, 66)])
def test_strongest_heads_summed_over_groups_of_rows(kind: str, length: int, cached: int, slots: int) -> None:
    rows = query_rows(kind, length=length, cached=cached)
    for some in (rows, chosen(rows, [1, 0, 1], slots, max(1, length - 2))):
        counted = torch.rand(some.batch, 2, some.count, device=DEVICE) < 0.6
        with without_kernels():
            expected = ops.strongest_received(some, counted)
        close(kernels.strongest_received(some, counted), expected)


@KINDS
@pytest.mark.parametrize("length", [1, 63, 70])
def test_received_attention(kind: str, length: int) -> None:
    rows = query_rows(kind, length=length)
    expected = exact(rows).sum(dim=2)
    close(kernels.received(rows, None), expected)
    counted = torch.rand(2, 1, length, device=DEVICE) < 0.6
    close(kernels.received(rows, counted), (exact(rows) * counted.unsqueeze(-1)).sum(dim=2))


@pytest.mark.parametrize("dim", [3, 16, 72])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_any_width_and_grouping(dim: int, kv_heads: int) -> None:
    rows = query_rows("causal", heads=3, kv_heads=kv_heads, dim=dim, length=20, dtype=torch.float16)
    close(kernels.attention_of(rows), exact(rows))
    close(kernels.received(rows, None), exact(rows).sum(dim=2))
    counted = torch.ones(2, 1, 20, dtype=torch.bool, device=DEVICE)
    close(kernels.strongest_received(rows, counted)[:, 0], exact(rows).amax(dim=1).sum(dim=1))


def test_channels_apart_in_memory() -> None:
    rows = query_rows("causal", length=20)
    apart = dataclasses.replace(rows, queries=rows.queries.mT.contiguous().mT, keys=rows.keys.mT.contiguous().mT)
    assert torch.equal(kernels.attention_of(apart), kernels.attention_of(rows))


@settings(max_examples=10)
@given(st.integers(1, 90), st.integers(0, 70), st.integers(0, 2**31))
def test_no_picture_feels_its_batch_mates(length: int, cached: int, seed: int) -> None:
    torch.manual_seed(seed)
    rows = chosen(query_rows("present", length=length, cached=cached, dim=8), [1, 0], 3, 5)
    assert rows.samples is not None
    assert rows.slots is not None
    assert rows.targets is not None
    counted = torch.ones(2, 1, 3, dtype=torch.bool, device=DEVICE)
    alone = dataclasses.replace(rows, samples=rows.samples[1:], slots=rows.slots[1:], targets=rows.targets[1:])
    assert torch.equal(kernels.attention_of(rows)[1:], kernels.attention_of(alone))
    assert torch.equal(kernels.strongest_received(rows, counted)[1:], kernels.strongest_received(alone, counted[1:]))


def test_a_mask_of_minus_infinities() -> None:
    rows = query_rows("open", length=70)
    allowed = torch.arange(70, device=DEVICE) > 66
    masked = dataclasses.replace(
        rows, mask=torch.zeros(1, 1, 1, 70, device=DEVICE).masked_fill(~allowed, float("-inf"))
    )
    close(kernels.attention_of(masked), exact(masked))
    close(kernels.received(masked, None), exact(masked).sum(dim=2))


def test_nothing_of_nothing() -> None:
    rows = dataclasses.replace(query_rows("causal"), slots=torch.zeros(2, 0, dtype=torch.long, device=DEVICE))
    assert kernels.attention_of(rows).shape == (2, 4, 0, 70)
    counted = torch.ones(2, 1, 0, dtype=torch.bool, device=DEVICE)
    assert not kernels.strongest_received(rows, counted).any()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["causal", "present", "boolean"])
@pytest.mark.parametrize(("samples", "heads", "kv_heads", "length"), [(8, 32, 32, 636), (1, 28, 4, 2940)])
def test_decoder_layers_on_the_device(kind: str, samples: int, heads: int, kv_heads: int, length: int) -> None:
    rows = query_rows(kind, samples=samples, heads=heads, kv_heads=kv_heads, length=length, dim=128)
    last = dataclasses.replace(rows, slots=torch.full((samples, 1), length - 1, device=DEVICE))
    close(ops.attention_of(last), exact(last))
    some = chosen(rows, list(range(samples)), 100, length - 60)
    close(ops.attention_of(some), exact(some))
    counted = torch.rand(samples, 2, 100, device=DEVICE) < 0.5
    with without_kernels():
        expected = ops.strongest_received(some, counted)
    close(ops.strongest_received(some, counted), expected)


@pytest.mark.gpu
@pytest.mark.parametrize(("length", "heads", "dim"), [(577, 16, 64), (729, 16, 72), (16000, 2, 64), (500, 1, 1024)])
def test_towers_on_the_device(length: int, heads: int, dim: int) -> None:
    rows = query_rows("open", heads=heads, kv_heads=heads, length=length, dim=dim)
    found = ops.received_attention(rows.queries, rows.keys, rows.scaling / 8)
    with without_kernels():
        expected = ops.received_attention(rows.queries, rows.keys, rows.scaling / 8)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
