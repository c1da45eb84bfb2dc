"""Cosines of all pairs of half-precision tokens, on tensor cores.

Products are of the values as they are and are summed in float32; only the sums are divided by the lengths, so that
nothing is rounded to half precision on the way. Each sum runs over the channels in one order, wherever in a tile and
in whatever batch its pair stands: equal tokens have equal rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

COSINE_STEPS = 1 << 22
"""In how many parts of one `whole_cosine_matrix` counts: about what float32 sums over thousands of channels resolve."""


class Likeness(NamedTuple):
    """Cosines within pictures, and how near each token comes to any other.

    Attributes:
        cosine: `(batch, tokens, tokens)`.
        closest: Highest cosine of each token to the others of one stretch, `(batch, stretches, tokens)`; -inf where
            none of them is present and a number.
    """

    cosine: torch.Tensor
    closest: torch.Tensor


def cosine_matrix(tokens: torch.Tensor) -> torch.Tensor:
    """Cosines of all tokens with each other, exactly symmetric.

    Zero vectors have cosine 0 with everything, themselves included; what is not a number makes its row and column so.
    The diagonal is computed as every other entry, so that it equals the entries of duplicates, and is 1 within
    rounding.

    Args:
        tokens: `(batch, tokens, dim)` in bfloat16 or float16.

    Returns:
        `(batch, tokens, tokens)` float32.
    """
    cosine, _ = _symmetric(tokens, None, whole=False, closest=False)
    return cosine


def whole_cosine_matrix(tokens: torch.Tensor) -> torch.Tensor:
    """`cosine_matrix` in parts of `1 / COSINE_STEPS`, rounded and within one: sums of them are exact.

    What is not a number counts as 0.

    Args:
        tokens: `(batch, tokens, dim)` in bfloat16 or float16.

    Returns:
        `(batch, tokens, tokens)` int32.
    """
    cosine, _ = _symmetric(tokens, None, whole=True, closest=False)
    return cosine


def likeness(tokens: torch.Tensor, present: torch.Tensor | None = None) -> Likeness:
    """`cosine_matrix` and, without another look at it, the highest cosine of each token to others that are present.

    Args:
        tokens: `(batch, tokens, dim)` in bfloat16 or float16.
        present: `(batch, tokens)` booleans.
    """
    cosine, closest = _symmetric(tokens, present, whole=False, closest=True)
    return Likeness(cosine, closest)


def cross_cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosines of all tokens of one set with all of another; 0 where one vector is zero.

    Args:
        first: `(batch, tokens, dim)` in bfloat16 or float16.
        second: `(batch, others, dim)` of the same type.

    Returns:
        `(batch, tokens, others)` float32.
    """
    first, second = _rows_in_line(first), _rows_in_line(second)
    batch, count, dim = first.shape
    others = second.shape[1]
    cosine = torch.empty((batch, count, others), dtype=torch.float32, device=first.device)
    if cosine.numel():
        block, options = _tiles(max(count, others), first)
        with torch.cuda.device_of(first):
            _cross_tiles[(triton.cdiv(count, block) * triton.cdiv(others, block), batch)](
                first,
                second,
                _squared_lengths(first),
                _squared_lengths(second),
                cosine,
                count,
                others,
                dim,
                first.stride(0),
                first.stride(1),
                second.stride(0),
                second.stride(1),
                BLOCK=block,
                EVEN=dim % options["CHUNK"] == 0,
                **options,
            )
    return cosine


def pictures_at_once(count: int, item: int = 4) -> int:
    """How many pictures' matrices of `count` tokens, `item` bytes an entry, fit into two gibibytes; at least one."""
    return max(1, (2 << 30) // max(1, count * count * item))


def _symmetric(
    tokens: torch.Tensor, present: torch.Tensor | None, *, whole: bool, closest: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = _rows_in_line(tokens)
    batch, count, dim = tokens.shape
    block, options = _tiles(count, tokens)
    blocks = triton.cdiv(count, block)
    cosine = torch.empty((batch, count, count), dtype=torch.int32 if whole else torch.float32, device=tokens.device)
    nearest = torch.empty((batch, blocks if closest else 0, count), dtype=torch.float32, device=tokens.device)
    if cosine.numel():
        with torch.cuda.device_of(tokens):
            _symmetric_tiles[(blocks * (blocks + 1) // 2, batch)](
                tokens,
                _squared_lengths(tokens),
                tokens if present is None else present.contiguous(),
                cosine,
                nearest,
                count,
                dim,
                tokens.stride(0),
                tokens.stride(1),
                HAS_PRESENT=present is not None,
                WHOLE=whole,
                CLOSEST=closest,
                STEPS=COSINE_STEPS,
                BLOCK=block,
                EVEN=dim % options["CHUNK"] == 0,
                **options,
            )
    return cosine, nearest


def _rows_in_line(tokens: torch.Tensor) -> torch.Tensor:
    return tokens if tokens.stride(-1) == 1 else tokens.contiguous()


def _tiles(count: int, tokens: torch.Tensor) -> tuple[int, dict[str, int]]:
    """Side of a tile, and how it is worked on: small ones while a picture has too few to occupy a device."""
    # Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
    widen = {"WIDEN": not tokens.is_cuda}
    if count <= 1024:
        return 64, {"CHUNK": 128, "num_warps": 4, "num_stages": 3, **widen}
    return 128, {"CHUNK": 64, "num_warps": 8, "num_stages": 3, **widen}


def _squared_lengths(tokens: torch.Tensor) -> torch.Tensor:
    """Sums of squares, `(batch, tokens)` float32."""
    batch, count, dim = tokens.shape
    squares = torch.empty((batch, count), dtype=torch.float32, device=tokens.device)
    rows = 4
    _sum_squares[(triton.cdiv(count, rows), batch)](
        tokens, squares, count, dim, tokens.stride(0), tokens.stride(1), ROWS=rows, CHUNK=1024
    )
    return squares


@triton.jit  # type: ignore[untyped-decorator]
def _sum_squares(  # type: ignore[no-untyped-def]
    tokens, squares, count, dim, picture_stride, token_stride, ROWS: tl.constexpr, CHUNK: tl.constexpr
):
    """Sums of squares of a few tokens."""
    picture = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHUNK)
    row = tokens + picture * picture_stride + token.to(tl.int64)[:, None] * token_stride + channel[None, :]
    total = tl.zeros([ROWS, CHUNK], dtype=tl.float32)
    for start in range(0, dim, CHUNK):
        inside = (token < count)[:, None] & (channel + start < dim)[None, :]
        value = tl.load(row + start, mask=inside, other=0.0).to(tl.float32)
        total += value * value
    tl.store(squares + picture * count + token, tl.sum(total, axis=1), mask=token < count)


@triton.jit  # type: ignore[untyped-decorator]
def _cosines(  # type: ignore[no-untyped-def]
    first,
    second,
    first_squares,
    second_squares,
    rows,
    columns,
    first_stride,
    second_stride,
    dim,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Cosines of the named tokens of two sets, a tile of them."""
    channel = tl.arange(0, CHUNK)
    left = first + rows.to(tl.int64)[:, None] * first_stride + channel[None, :]
    right = second + columns.to(tl.int64)[None, :] * second_stride + channel[:, None]
    product = tl.zeros([BLOCK, BLOCK], dtype=tl.float32)
    for start in range(0, dim, CHUNK):
        if EVEN:
            one = tl.load(left + start)
            other = tl.load(right + start)
        else:
            inside = channel + start < dim
            one = tl.load(left + start, mask=inside[None, :], other=0.0)
            other = tl.load(right + start, mask=inside[:, None], other=0.0)
        if WIDEN:
            one = one.to(tl.float32)
            other = other.to(tl.float32)
        product = tl.dot(one, other, product)
    # One exact root of both squares, so that sums of whole numbers give whole cosines.
    length = tl.sqrt_rn(tl.load(first_squares + rows)[:, None] * tl.load(second_squares + columns)[None, :])
    return tl.where(length == 0, 0.0, tl.div_rn(product, tl.where(length == 0, 1.0, length)))


@triton.jit  # type: ignore[untyped-decorator]
def _cross_tiles(  # type: ignore[no-untyped-def]
    first,
    second,
    first_squares,
    second_squares,
    cosine,
    count,
    others,
    dim,
    first_picture,
    first_stride,
    second_picture,
    second_stride,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One tile of the cosines of two sets."""
    picture = tl.program_id(1).to(tl.int64)
    across = tl.cdiv(others, BLOCK)
    row = tl.program_id(0) // across * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    # What lies beyond the last token is computed for the last one again and not stored.
    value = _cosines(
        first + picture * first_picture,
        second + picture * second_picture,
        first_squares + picture * count,
        second_squares + picture * others,
        tl.minimum(row, count - 1),
        tl.minimum(column, others - 1),
        first_stride,
        second_stride,
        dim,
        BLOCK,
        CHUNK,
        EVEN,
        WIDEN,
    )
    place = cosine + (picture * count + row[:, None]) * others + column[None, :]
    tl.store(place, value, mask=(row < count)[:, None] & (column < others)[None, :])


@triton.jit
def _triangle(tile):  # type: ignore[no-untyped-def]
    """Row and column of a tile when those on and above the diagonal are numbered column by column."""
    column = ((tl.sqrt(8.0 * tile + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The root is rounded, so that a neighbour may be the right column.
    column -= (column * (column + 1) // 2 > tile).to(tl.int32)
    column += ((column + 1) * (column + 2) // 2 <= tile).to(tl.int32)
    return tile - column * (column + 1) // 2, column


@triton.jit  # type: ignore[untyped-decorator]
def _symmetric_tiles(  # type: ignore[no-untyped-def]
    tokens,
    squares,
    present,
    cosine,
    closest,
    count,
    dim,
    picture_stride,
    token_stride,
    HAS_PRESENT: tl.constexpr,
    WHOLE: tl.constexpr,
    CLOSEST: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One tile on or above the diagonal and its mirror image; the highest cosine in each of their rows."""
    picture = tl.program_id(1).to(tl.int64)
    down, across = _triangle(tl.program_id(0))
    row = down * BLOCK + tl.arange(0, BLOCK)
    column = across * BLOCK + tl.arange(0, BLOCK)
    rows, columns = tl.minimum(row, count - 1), tl.minimum(column, count - 1)
    states = tokens + picture * picture_stride
    squares += picture * count
    value = _cosines(
        states, states, squares, squares, rows, columns, token_stride, token_stride, dim, BLOCK, CHUNK, EVEN, WIDEN
    )
    inside = (row < count)[:, None] & (column < count)[None, :]
    cosine += picture * count * count
    place = cosine + row.to(tl.int64)[:, None] * count + column[None, :]
    mirrored = cosine + column.to(tl.int64)[None, :] * count + row[:, None]
    if WHOLE:
        bounded = tl.where(value == value, tl.minimum(tl.maximum(value, -1.0), 1.0), 0.0)
        stored = tl.floor(bounded * STEPS + 0.5).to(tl.int32)
    else:
        stored = value
    tl.store(place, stored, mask=inside)
    if down < across:
        tl.store(mirrored, stored, mask=inside)
    if CLOSEST:
        from_rows = inside & (row[:, None] != column[None, :]) & (value == value)
        from_columns = from_rows
        if HAS_PRESENT:
            present += picture * count
            from_rows &= (tl.load(present + columns) != 0)[None, :]
            from_columns &= (tl.load(present + rows) != 0)[:, None]
        closest += picture * tl.cdiv(count, BLOCK) * count
        tl.store(closest + across * count + row, tl.max(tl.where(from_rows, value, float("-inf")), 1), mask=row < count)
        if down < across:
            best = tl.max(tl.where(from_columns, value, float("-inf")), 0)
            tl.store(closest + down * count + column, best, mask=column < count)
