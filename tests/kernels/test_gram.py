"""Cosines of half-precision tokens: right, symmetric, equal for equal tokens, and free of batch mates."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch.nn.functional import normalize

from vtprune.kernels.gram import (
    COSINE_STEPS,
    _triangle,
    cosine_matrix,
    cross_cosine,
    likeness,
    pictures_at_once,
    whole_cosine_matrix,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
SIZES = pytest.mark.parametrize(("tokens", "dim"), [(1, 5), (63, 16), (64, 128), (130, 200)])


def exact(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return normalize(first.double(), dim=-1) @ normalize(second.double(), dim=-1).mT


def whole_numbers(batch: int, tokens: int, dim: int) -> torch.Tensor:
    """Tokens whose products and sums are exact, with zero vectors and duplicates among them."""
    states = torch.randint(-3, 4, (batch, tokens, dim), device=DEVICE)
    states[:, :: 1 + tokens // 3] = 0
    states[:, 1::7] = states[:, -1:]
    return states


@HALVES
@SIZES
def test_cosines_of_one_set(dtype: torch.dtype, tokens: int, dim: int) -> None:
    states = torch.randn(2, tokens, dim, device=DEVICE).to(dtype)
    cosine = cosine_matrix(states)
    assert cosine.dtype == torch.float32
    torch.testing.assert_close(cosine.double(), exact(states, states), rtol=0, atol=1e-6)
    assert torch.equal(cosine, cosine.mT)
    for picture in range(2):
        assert torch.equal(cosine_matrix(states[picture : picture + 1])[0], cosine[picture])


@HALVES
@SIZES
def test_cosines_of_two_sets(dtype: torch.dtype, tokens: int, dim: int) -> None:
    first, second = (
        torch.randn(2, tokens, dim, device=DEVICE).to(dtype),
        torch.randn(2, 70, dim, device=DEVICE).to(dtype),
    )
    first[0, 0] = 0
    torch.testing.assert_close(cross_cosine(first, second).double(), exact(first, second), rtol=0, atol=1e-6)
    torch.testing.assert_close(cross_cosine(second, first).double(), exact(second, first), rtol=0, atol=1e-6)


@HALVES
@SIZES
def test_equal_tokens_have_equal_rows_and_whole_cosines(dtype: torch.dtype, tokens: int, dim: int) -> None:
    states = whole_numbers(2, tokens, dim).to(dtype)
    cosine = cosine_matrix(states)
    same = (states.unsqueeze(1) == states.unsqueeze(2)).all(-1)
    is_zero = (states == 0).all(-1)
    rows = (cosine.unsqueeze(1) == cosine.unsqueeze(2)).all(-1)
    assert rows[same].all()
    assert torch.equal(cosine[same], (~is_zero).float().unsqueeze(2).expand_as(same)[same])
    assert not cosine[is_zero].any()
    torch.testing.assert_close(cosine.double(), exact(states, states), rtol=0, atol=2.0**-23)
    assert torch.equal(cross_cosine(states, states.flip(1)), cosine.flip(2))


@pytest.mark.parametrize("view", ["channels first", "every other token", "every other channel", "expanded"])
def test_any_memory_layout(view: str) -> None:
    states = torch.randn(2, 70, 36, device=DEVICE).bfloat16()
    if view == "channels first":
        states = states.mT.contiguous().mT
    elif view == "every other token":
        states = states[:, ::2]
    elif view == "every other channel":
        states = states[:, :, ::2]
    else:
        states = states[:1].expand(3, -1, -1)
    assert torch.equal(cosine_matrix(states), cosine_matrix(states.contiguous()))
    assert torch.equal(cross_cosine(states, states), cross_cosine(states.contiguous(), states.contiguous()))


def test_what_is_no_number_touches_its_row_and_column_only() -> None:
    states = torch.randn(1, 70, 40, device=DEVICE).half()
    clean = cosine_matrix(states)
    states[0, 66, 3], states[0, 2, 5] = torch.nan, torch.inf
    cosine = cosine_matrix(states)
    bad = torch.zeros(70, dtype=torch.bool, device=DEVICE)
    bad[[2, 66]] = True
    assert torch.equal(cosine[0].isnan(), bad.unsqueeze(0) | bad.unsqueeze(1))
    assert torch.equal(cosine[0][~bad][:, ~bad], clean[0][~bad][:, ~bad])
    whole = whole_cosine_matrix(states)
    assert not whole[0, bad].any()
    assert not whole[0, :, bad].any()


@SIZES
def test_whole_cosines(tokens: int, dim: int) -> None:
    states = torch.randn(2, tokens, dim, device=DEVICE).bfloat16()
    states[0, -1] = states[0, 0] = 0
    whole = whole_cosine_matrix(states)
    assert whole.dtype == torch.int32
    expected = (cosine_matrix(states).double().clamp(-1, 1) * COSINE_STEPS + 0.5).floor()
    # Up to the rounding of one half added in float32.
    assert (whole - expected).abs().max() <= 1
    assert whole.abs().max() <= COSINE_STEPS
    assert torch.equal(whole, whole.mT)


@pytest.mark.parametrize("some_absent", [False, True])
@SIZES
def test_closest_others(tokens: int, dim: int, some_absent: bool) -> None:
    states = torch.randn(2, tokens, dim, device=DEVICE).bfloat16()
    states[1, 0] = torch.nan
    present = torch.rand(2, tokens, device=DEVICE) < 0.6 if some_absent else None
    cosine, closest = likeness(states, present)
    assert torch.equal(cosine.nan_to_num(nan=9.0), cosine_matrix(states).nan_to_num(nan=9.0))
    hidden = cosine.isnan() | torch.eye(tokens, dtype=torch.bool, device=DEVICE)
    if present is not None:
        hidden |= ~present.unsqueeze(1)
    assert torch.equal(closest.amax(dim=1), cosine.masked_fill(hidden, -torch.inf).amax(dim=2))


@triton.jit  # type: ignore[untyped-decorator]
def _write_places(tiles, rows, columns, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, BLOCK)
    row, column = _triangle(tl.load(tiles + place, mask=place < count, other=0))
    tl.store(rows + place, row, mask=place < count)
    tl.store(columns + place, column, mask=place < count)


def test_numbers_of_tiles_name_the_upper_triangle() -> None:
    # The last columns of a picture of 64 thousand tokens.
    columns = torch.tensor([0, 1, 2, 3, 7, 22, 127, 128, 255, 511, 1022], dtype=torch.int32, device=DEVICE)
    first = columns * (columns + 1) // 2
    tiles = torch.cat([first, first + columns])
    found = torch.empty(2, len(tiles), dtype=torch.int32, device=DEVICE)
    _write_places[(1,)](tiles, found[0], found[1], len(tiles), BLOCK=32)
    assert torch.equal(found[0], torch.cat([columns * 0, columns]))
    assert torch.equal(found[1], torch.cat([columns, columns]))


def test_memory_for_pictures() -> None:
    assert pictures_at_once(16384) == 2
    assert pictures_at_once(16384, 8) == 1
    assert pictures_at_once(100_000) == 1
    assert pictures_at_once(576) > 1000


def test_nothing_to_compare() -> None:
    nothing = torch.empty(0, 5, 8, device=DEVICE).bfloat16()
    assert cosine_matrix(nothing).shape == (0, 5, 5)
    assert cross_cosine(nothing, nothing).shape == (0, 5, 5)


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "tokens", "dim"), [(2, 576, 4096), (1, 2880, 4096), (1, 16384, 64), (3, 1000, 1152)])
def test_large_pictures_on_a_device(batch: int, tokens: int, dim: int) -> None:
    # A common part, as tokens of a picture have one: sums of one sign gather most rounding.
    states = (torch.randn(batch, tokens, dim, device="cuda") + torch.randn(dim, device="cuda")).bfloat16()
    states[:, -1] = states[:, 1]
    cosine = cosine_matrix(states)
    assert torch.equal(cosine, cosine.mT)
    assert torch.equal(cosine[:, -1], cosine[:, 1])
    assert torch.equal(cosine_matrix(states[-1:])[0], cosine[-1])
    for rows in range(0, tokens, 1024):
        part = slice(rows, rows + 1024)
        torch.testing.assert_close(cosine[:, part].double(), exact(states[:, part], states), rtol=0, atol=2e-5)
        crossed = cross_cosine(states[:, part], states[:, :700])
        torch.testing.assert_close(crossed.double(), exact(states[:, part], states[:, :700]), rtol=0, atol=2e-5)
    closest = likeness(states).closest.amax(dim=1)
    cosine.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    assert torch.equal(closest, cosine.amax(dim=2))
