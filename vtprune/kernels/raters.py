"""Text that rates the picture: the words' shares of its tokens, and what rows of attention come to."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# More words than that do not fit beside a block of tokens.
MOST_WORDS = 256
_TOKENS = 32


@triton.jit  # type: ignore[untyped-decorator]
def _share_kernel(  # type: ignore[no-untyped-def]
    tokens,
    words,
    present,
    shares,
    count,
    length,
    dim,
    tokens_picture,
    tokens_row,
    tokens_channel,
    words_picture,
    words_row,
    words_channel,
    WIDEN: tl.constexpr,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    part = tl.program_id(0)
    picture = tl.program_id(1).to(tl.int64)
    row = part * TOKENS + tl.arange(0, TOKENS)
    word = tl.arange(0, WORDS)
    is_word = tl.load(present + picture * length + word, mask=word < length, other=0) != 0
    left = tokens + picture * tokens_picture + row.to(tl.int64)[:, None] * tokens_row
    right = words + picture * words_picture + word.to(tl.int64)[None, :] * words_row
    product = tl.zeros((TOKENS, WORDS), dtype=tl.float32)
    for start in range(0, dim, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        inside = channel < dim
        away = channel.to(tl.int64)
        one = tl.load(left + away[None, :] * tokens_channel, mask=inside[None, :] & (row < count)[:, None], other=0.0)
        # What stands at masked words is not even read.
        other = tl.load(right + away[:, None] * words_channel, mask=inside[:, None] & is_word[None, :], other=0.0)
        if WIDEN:
            one = one.to(tl.float32)
            other = other.to(tl.float32)
        product = tl.dot(one, other, product)
    logit = tl.where(is_word[None, :], product.to(tl.float64), float("-inf"))
    highest = tl.max(logit, axis=1)
    power = tl.exp(logit - tl.where(highest == float("-inf"), 0.0, highest)[:, None])
    whole = tl.sum(power, axis=1)
    share = power / tl.where(whole == 0, 1.0, whole)[:, None]
    share = tl.sum(tl.where((row < count)[:, None], share, 0.0), axis=0)
    parts = tl.cdiv(count, TOKENS)
    tl.store(shares + (picture * parts + part) * length + word, share, mask=word < length)


@triton.jit  # type: ignore[untyped-decorator]
def _rater_kernel(shares, present, raters, parts, length, margin, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    picture = tl.program_id(0).to(tl.int64)
    word = tl.arange(0, WORDS)
    is_word = tl.load(present + picture * length + word, mask=word < length, other=0) != 0
    total = tl.zeros((WORDS,), dtype=tl.float64)
    for part in range(0, parts):
        total += tl.load(shares + (picture * parts + part) * length + word, mask=is_word, other=0.0)
    number = tl.maximum(tl.sum(is_word.to(tl.int32), axis=0), 1)
    mean = tl.sum(total, axis=0) / number
    above = is_word & (total > mean + mean * margin)
    rates = tl.where(tl.max(above.to(tl.int32), axis=0) > 0, above, is_word)
    tl.store(raters + picture * length + word, rates.to(tl.int8), mask=word < length)


@triton.jit  # type: ignore[untyped-decorator]
def _row_kernel(  # type: ignore[no-untyped-def]
    attention,
    rated,
    divisor,
    result,
    heads,
    rows,
    tokens,
    per_picture,
    per_head,
    per_row,
    per_token,
    DIVIDED: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    head = tl.program_id(1)
    picture = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    start = attention + picture * per_picture + head.to(tl.int64) * per_head + token.to(tl.int64)[None, :] * per_token
    total = tl.zeros((ROWS, TOKENS), dtype=WIDE)
    number = tl.zeros((ROWS,), dtype=tl.int32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        rates = tl.load(rated + picture * rows + row, mask=row < rows, other=0) != 0
        inside = rates[:, None] & (token < tokens)[None, :]
        value = tl.load(start + row.to(tl.int64)[:, None] * per_row, mask=inside, other=0.0).to(WIDE)
        if DIVIDED:
            place = divisor + (picture * rows + row[:, None]) * tokens + token[None, :]
            value = value / tl.load(place, mask=inside, other=1.0).to(WIDE)
        total += value
        number += rates.to(tl.int32)
    count = tl.maximum(tl.sum(number, axis=0), 1)
    mean = tl.sum(total, axis=0) / count.to(WIDE)
    tl.store(result + (picture * heads + head) * tokens + token, mean, mask=token < tokens)


@triton.jit  # type: ignore[untyped-decorator]
def _peak_kernel(  # type: ignore[no-untyped-def]
    attention,
    rated,
    total,
    peak,
    heads,
    rows,
    tokens,
    per_picture,
    per_head,
    per_row,
    per_token,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    picture = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    start = attention + picture * per_picture + token.to(tl.int64)[None, :] * per_token
    whole = tl.zeros((ROWS, TOKENS), dtype=WIDE)
    highest = tl.zeros((ROWS, TOKENS), dtype=WIDE)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        rates = tl.load(rated + picture * rows + row, mask=row < rows, other=0) != 0
        inside = rates[:, None] & (token < tokens)[None, :]
        value = tl.zeros((ROWS, TOKENS), dtype=WIDE)
        for head in range(0, heads):
            place = start + row.to(tl.int64)[:, None] * per_row + head * per_head
            value += tl.load(place, mask=inside, other=0.0).to(WIDE)
        value = value / heads
        whole += value
        highest = tl.maximum(highest, value)
    tl.store(total + picture * tokens + token, tl.sum(whole, axis=0), mask=token < tokens)
    tl.store(peak + picture * tokens + token, tl.max(highest, axis=0), mask=token < tokens)


def raters_of(tokens: torch.Tensor, words: torch.Tensor, word_mask: torch.Tensor, margin: float) -> torch.Tensor:
    """What `vtprune.ops.raters.text_raters` returns, of half-precision states.

    Args:
        tokens: `(batch, tokens, dim)`.
        words: `(batch, length, dim)` of the same type, 1 to `MOST_WORDS` of them.
        word_mask: `(batch, length)` booleans.
        margin: By what share of the mean a rater exceeds it at least.
    """
    batch, count, dim = tokens.shape
    length = words.shape[1]
    parts = triton.cdiv(count, _TOKENS)
    shares = torch.empty((batch, parts, length), dtype=torch.float64, device=tokens.device)
    result = torch.empty((batch, length), dtype=torch.bool, device=tokens.device)
    present = word_mask.contiguous().view(torch.int8)
    width = max(16, triton.next_power_of_2(length))
    with torch.cuda.device_of(tokens):
        _share_kernel[(parts, batch)](
            tokens,
            words,
            present,
            shares,
            count,
            length,
            dim,
            *tokens.stride(),
            *words.stride(),
            # Triton's interpreter multiplies the bits of bfloat16 as they are.
            WIDEN=not tokens.is_cuda,
            TOKENS=_TOKENS,
            WORDS=width,
            CHANNELS=64,
            num_warps=4,
        )
        _rater_kernel[(batch,)](
            shares, present, result.view(torch.int8), parts, length, margin, WORDS=width, num_warps=4
        )
    return result


def mean_rows(attention: torch.Tensor, rated: torch.Tensor, divisor: torch.Tensor | None = None) -> torch.Tensor:
    """The mean over some rows, head by head; zero where there is none. `(batch, heads, tokens)`, at least float32.

    Args:
        attention: `(batch, heads, rows, tokens)`; what is not rated is not read.
        rated: The rows that count, `(batch, rows)` booleans.
        divisor: What each entry is divided by, `(batch, rows, tokens)`.
    """
    batch, heads, rows, tokens = attention.shape
    wide = torch.float64 if attention.dtype == torch.float64 else torch.float32
    result = torch.empty((batch, heads, tokens), dtype=wide, device=attention.device)
    width = 128
    if result.numel():
        with torch.cuda.device_of(attention):
            _row_kernel[(triton.cdiv(tokens, width), heads, batch)](
                attention,
                rated.contiguous().view(torch.int8),
                attention if divisor is None else divisor.contiguous(),
                result,
                heads,
                rows,
                tokens,
                *attention.stride(),
                DIVIDED=divisor is not None,
                WIDE=tl.float64 if wide == torch.float64 else tl.float32,
                ROWS=16,
                TOKENS=width,
                num_warps=4,
            )
    return result


def totals_and_peaks(attention: torch.Tensor, rated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the mean over heads, its sum over some rows and its highest value in them, `(batch, tokens)` each.

    Args:
        attention: `(batch, heads, rows, tokens)`, nowhere below zero; what is not rated is not read.
        rated: The rows that count, `(batch, rows)` booleans.
    """
    batch, heads, rows, tokens = attention.shape
    wide = torch.float64 if attention.dtype == torch.float64 else torch.float32
    total = torch.empty((batch, tokens), dtype=wide, device=attention.device)
    peak = torch.empty_like(total)
    width = 32
    if total.numel():
        with torch.cuda.device_of(attention):
            _peak_kernel[(triton.cdiv(tokens, width), batch)](
                attention,
                rated.contiguous().view(torch.int8),
                total,
                peak,
                heads,
                rows,
                tokens,
                *attention.stride(),
                WIDE=tl.float64 if wide == torch.float64 else tl.float32,
                ROWS=16,
                TOKENS=width,
                num_warps=4,
            )
    return total, peak
