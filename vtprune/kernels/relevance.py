"""Relevance of tokens to a prompt: everything behind the cosines in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# A picture's tokens are held by one program, and a row of words by a part of it.
MOST_TOKENS = 1 << 14
MOST_WORDS = 1 << 10
_EPSILON = tl.constexpr(1e-6)


@triton.jit
def _spread(values, inside):  # type: ignore[no-untyped-def]
    """`vtprune.ops.similarity.min_max` of the values that are inside."""
    low = tl.min(tl.where(inside, values, float("inf")), axis=0)
    high = tl.max(tl.where(inside, values, float("-inf")), axis=0)
    return (values - low) / (high - low + _EPSILON)


@triton.jit  # type: ignore[untyped-decorator]
def _relevance_kernel(  # type: ignore[no-untyped-def]
    cosine,
    present,
    selected,
    result,
    tokens,
    words,
    WORD_TEMPERATURE: tl.constexpr,
    TOKEN_TEMPERATURE: tl.constexpr,
    SHARPNESS: tl.constexpr,
    QUANTILE: tl.constexpr,
    FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    picture = tl.program_id(0).to(tl.int64)
    cosine += picture * tokens * words
    selected += picture * tokens
    word = tl.arange(0, WORDS)
    is_word = tl.load(present + picture * words + word, mask=word < words, other=0) != 0
    for first in range(0, tokens, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < tokens)[:, None] & is_word[None, :]
        value = tl.load(cosine + row.to(tl.int64)[:, None] * words + word[None, :], mask=inside, other=0.0)
        # Words are normalised once more by the largest of their lengths, all of them 1, and a little.
        value = value.to(tl.float64) / (1 + _EPSILON)
        logit = tl.where(inside, value / WORD_TEMPERATURE, float("-inf"))
        highest = tl.max(logit, axis=1)
        power = tl.exp(logit - tl.where(highest == float("-inf"), 0.0, highest)[:, None])
        whole = tl.sum(power, axis=1)
        soft = tl.sum(power * value, axis=1) / tl.where(whole == 0, 1.0, whole)
        tl.store(selected + row, soft, mask=row < tokens)
    tl.debug_barrier()
    token = tl.arange(0, TOKENS)
    inside = token < tokens
    logit = tl.load(selected + token, mask=inside, other=float("-inf")) / TOKEN_TEMPERATURE
    power = tl.exp(logit - tl.max(logit, axis=0))
    share = power / tl.sum(power, axis=0)
    sharp = tl.where(share > 0, tl.exp(SHARPNESS * tl.log(tl.where(share > 0, share, 1.0))), 0.0)
    sharp = tl.where(inside, _spread(sharp, inside), float("inf"))
    rank = tl.cast(tokens - 1, tl.float64) * QUANTILE
    below = rank.to(tl.int32)
    between = rank - below.to(tl.float64)
    # Numbers from zero on are in the order of their bits: the highest with at most `below` smaller ones, bit by bit.
    bits = sharp.to(tl.int64, bitcast=True)
    bound = tl.full((), 0, dtype=tl.int64)
    step = tl.full((), 1, dtype=tl.int64) << 62
    while step > 0:
        fits = tl.sum((bits < bound + step).to(tl.int32), axis=0) <= below
        bound = tl.where(fits, bound + step, bound)
        step = step >> 1
    lower = bound.to(tl.float64, bitcast=True)
    repeated = tl.sum((bits <= bound).to(tl.int32), axis=0) > below + 1
    upper = tl.min(tl.where(bits > bound, sharp, float("inf")), axis=0)
    upper = tl.where(repeated | (below + 1 >= tokens), lower, upper)
    gate = tl.where(between < 0.5, lower + between * (upper - lower), upper - (upper - lower) * (1 - between))
    gated = _spread(tl.where(sharp < gate, sharp * FACTOR, sharp), inside)
    any_word = tl.max(is_word.to(tl.int32), axis=0)
    tl.store(result + picture * tokens + token, tl.where(any_word > 0, gated, 0.0), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _blend_kernel(first, second, result, tokens, TOKENS: tl.constexpr):  # type: ignore[no-untyped-def]
    picture = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, TOKENS)
    inside = token < tokens
    one = tl.load(first + picture * tokens + token, mask=inside, other=1.0).to(tl.float64)
    other = tl.load(second + picture * tokens + token, mask=inside, other=1.0).to(tl.float64)
    one = _spread(one, inside)
    one = tl.log(tl.maximum(tl.where(inside, one, 1.0), _EPSILON))
    other = tl.log(tl.maximum(other, _EPSILON))
    blended = _spread(tl.exp(0.5 * one + 0.5 * other), inside)
    tl.store(result + picture * tokens + token, blended, mask=inside)


def relevance(
    cosine: torch.Tensor,
    word_mask: torch.Tensor,
    *,
    word_temperature: float,
    token_temperature: float,
    sharpness: float,
    gate_quantile: float,
    gate_factor: float,
) -> torch.Tensor:
    """What `vtprune.ops.similarity.text_relevance` returns, from the cosines of tokens and words.

    Args:
        cosine: `(batch, tokens, words)` float32 or float64, at most `MOST_TOKENS` and 1 to `MOST_WORDS`.
        word_mask: `True` at words, `(batch, words)`.
        word_temperature: This and the others are those of `text_relevance`.
        token_temperature: Of the softmax over tokens.
        sharpness: Exponent.
        gate_quantile: Relevance below it is damped.
        gate_factor: What it is multiplied by.
    """
    cosine = cosine.contiguous()
    batch, tokens, words = cosine.shape
    result = torch.empty((batch, tokens), dtype=torch.float64, device=cosine.device)
    width = triton.next_power_of_2(words)
    with torch.cuda.device_of(cosine):
        _relevance_kernel[(batch,)](
            cosine,
            word_mask.contiguous().view(torch.int8),
            torch.empty_like(result),
            result,
            tokens,
            words,
            WORD_TEMPERATURE=float(word_temperature),
            TOKEN_TEMPERATURE=float(token_temperature),
            SHARPNESS=float(sharpness),
            QUANTILE=float(gate_quantile),
            FACTOR=float(gate_factor),
            ROWS=max(1, 4096 // width),
            WORDS=width,
            TOKENS=triton.next_power_of_2(tokens),
            num_warps=16,
        )
    return result


def blend(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """What `vtprune.ops.similarity.spread_blend` returns.

    Args:
        first: Scores `(batch, tokens)`, at most `MOST_TOKENS`.
        second: Others.
    """
    batch, tokens = first.shape
    result = torch.empty((batch, tokens), dtype=torch.float64, device=first.device)
    with torch.cuda.device_of(first):
        _blend_kernel[(batch,)](
            first.contiguous(),
            second.contiguous(),
            result,
            tokens,
            TOKENS=triton.next_power_of_2(tokens),
            num_warps=8,
        )
    return result
