"""Relevance of tokens to the pieces of a question: one launch for the cosines, one that spreads them.

In float64, since the rounding of cosines to multiples of 2^-30 only makes ties true where their errors are far below.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_STEPS = tl.constexpr(2.0**30)
# Added and taken away, it leaves a float64 rounded to whole numbers, halves to even.
_WHOLE = tl.constexpr(1.5 * 2.0**52)
_SHORTEST = tl.constexpr(1e-12)


@triton.jit  # type: ignore[untyped-decorator]
def _mean_kernel(  # type: ignore[no-untyped-def]
    tokens,
    pieces,
    mask,
    scores,
    count,
    words,
    dim,
    token_picture,
    token_stride,
    piece_picture,
    piece_stride,
    NEGATE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Mean rounded cosine of a few tokens to the pieces that are there."""
    picture = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = token < count
    channel = tl.arange(0, CHUNK)
    rows = tokens + picture * token_picture + token.to(tl.int64)[:, None] * token_stride + channel[None, :]
    total = tl.zeros([ROWS], tl.float64)
    there = tl.zeros([ROWS], tl.int32)
    for word in range(0, words):
        if tl.load(mask + picture * words + word) != 0:
            piece = pieces + picture * piece_picture + word * piece_stride + channel
            product = tl.zeros([ROWS, CHUNK], tl.float64)
            squares = tl.zeros([ROWS, CHUNK], tl.float64)
            others = tl.zeros([CHUNK], tl.float64)
            for start in range(0, dim, CHUNK):
                known = channel + start < dim
                one = tl.load(rows + start, mask=inside[:, None] & known[None, :], other=0).to(tl.float64)
                other = tl.load(piece + start, mask=known, other=0).to(tl.float64)
                product += one * other[None, :]
                squares += one * one
                others += other * other
            length = tl.sqrt(tl.sum(squares, axis=1))
            other_length = tl.sqrt(tl.sum(others, axis=0))
            # A comparison with NaN is false, so that no number stays none.
            length = tl.where(length < _SHORTEST, _SHORTEST, length)
            other_length = tl.where(other_length < _SHORTEST, _SHORTEST, other_length)
            cosine = tl.sum(product, axis=1) / length / other_length
            total += (cosine * _STEPS + _WHOLE - _WHOLE) / _STEPS
            there += 1
    mean = total / tl.maximum(there, 1).to(tl.float64)
    if NEGATE:
        mean = -mean
    tl.store(scores + picture * count + token, mean, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _spread_kernel(  # type: ignore[no-untyped-def]
    scores, among, result, count, among_stride, among_step, CHUNK: tl.constexpr
):
    """From the lowest to the highest of the scores that are among, 0 to 1; 1 everywhere where that is no stretch."""
    picture = tl.program_id(0).to(tl.int64)
    scores += picture * count
    result += picture * count
    among += picture * among_stride
    lane = tl.arange(0, CHUNK)
    lowest = tl.full([CHUNK], float("inf"), tl.float64)
    highest = tl.full([CHUNK], float("-inf"), tl.float64)
    nonsense = tl.zeros([CHUNK], tl.int32)
    for start in range(0, count, CHUNK):
        token = start + lane
        inside = token < count
        score = tl.load(scores + token, mask=inside, other=0)
        counts = inside & (tl.load(among + token * among_step, mask=inside, other=0) != 0)
        # A comparison with NaN is false: such a score leaves both as they are.
        lowest = tl.where(counts & (score < lowest), score, lowest)
        highest = tl.where(counts & (score > highest), score, highest)
        nonsense = tl.where(counts & (score != score), 1, nonsense)
    low = tl.min(lowest, axis=0)
    high = tl.max(highest, axis=0)
    spread = (high > low) & (tl.max(nonsense, axis=0) == 0)
    length = tl.where(spread, high - low, 1.0)
    for start in range(0, count, CHUNK):
        token = start + lane
        score = tl.load(scores + token, mask=token < count, other=0)
        relative = tl.where(spread, (score - low + 1e-6) / length, 1.0)
        tl.store(result + token, relative, mask=token < count)


def relevance(
    tokens: torch.Tensor, pieces: torch.Tensor, mask: torch.Tensor, among: torch.Tensor, *, negate: bool
) -> torch.Tensor:
    """See `vtprune.ops.question_relevance.question_relevance`."""
    tokens = tokens if tokens.stride(-1) == 1 else tokens.contiguous()
    pieces = pieces if pieces.stride(-1) == 1 else pieces.contiguous()
    batch, count, dim = tokens.shape
    scores = tokens.new_empty((batch, count), dtype=torch.float64)
    result = torch.empty_like(scores)
    if not result.numel():
        return result
    rows = 4
    with torch.cuda.device_of(tokens):
        _mean_kernel[(triton.cdiv(count, rows), batch)](
            tokens,
            pieces,
            mask.contiguous(),
            scores,
            count,
            pieces.shape[1],
            dim,
            *tokens.stride()[:2],
            *pieces.stride()[:2],
            NEGATE=negate,
            ROWS=rows,
            CHUNK=256,
        )
        _spread_kernel[(batch,)](scores, among, result, count, *among.stride(), CHUNK=1024)
    return result
