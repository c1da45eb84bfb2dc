"""Chunks of consecutive tokens: their scores, their quotas and their best tokens, a launch each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vtprune.kernels.ranking import falling_ranks

LONGEST = 128
"""Tokens of a chunk whose similarities one program can hold."""
MOST_CHUNKS = 64
"""Chunks whose quotas one program can compare."""
_MOST_SCORES = 1 << 14
_EPSILON = tl.constexpr(1e-6)
_LEAST_WEIGHT = tl.constexpr(1e-9)


@triton.jit
def _extent(chunk, tokens, chunks):  # type: ignore[no-untyped-def]
    """Where a chunk starts, and how many tokens it has."""
    size = tokens // chunks
    longer = tokens % chunks
    return chunk * size + tl.minimum(chunk, longer), size + (chunk < longer).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _score_kernel(  # type: ignore[no-untyped-def]
    features,
    attention,
    scores,
    tokens,
    chunks,
    dim,
    per_picture,
    per_token,
    per_channel,
    WEIGHT: tl.constexpr,
    WIDEN: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    picture = tl.program_id(1).to(tl.int64)
    start, size = _extent(tl.program_id(0), tokens, chunks)
    place = tl.arange(0, TOKENS)
    real = place < size
    states = features + picture * per_picture + (start + place).to(tl.int64)[:, None] * per_token
    product = tl.zeros((TOKENS, TOKENS), dtype=tl.float32)
    for first in range(0, dim, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        inside = real[:, None] & (channel < dim)[None, :]
        value = tl.load(states + channel.to(tl.int64)[None, :] * per_channel, mask=inside, other=0.0)
        if WIDEN:
            value = value.to(tl.float32)
        product = tl.dot(value, tl.trans(value), product)
    wide = product.to(tl.float64)
    itself = place[:, None] == place[None, :]
    squares = tl.sum(tl.where(itself, wide, 0.0), axis=0)
    down = tl.sqrt(squares) + _EPSILON
    # The same numbers along the other side.
    across = tl.sqrt(tl.sum(tl.where(itself, wide, 0.0), axis=1)) + _EPSILON
    both = real[:, None] & real[None, :]
    cosine = tl.where(both & (place[:, None] != place[None, :]), wide / (across[:, None] * down[None, :]), 0.0)
    others = tl.maximum(size - 1, 1).to(tl.float64)
    mean = tl.sum(cosine, axis=1) / others
    deviation = tl.where(both, cosine - mean[:, None], 0.0)
    spread = tl.sum(deviation * deviation, axis=1) / others
    given = tl.load(attention + picture * tokens + start + place, mask=real, other=0.0).to(tl.float64) * 1000
    level = tl.sum(tl.abs(given), axis=0) / (tl.sum(spread, axis=0) + _EPSILON * size)
    tl.store(scores + picture * tokens + start + place, given + WEIGHT * spread * level, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def _best(weight, count, CHUNKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 for the `count` highest weights, 0 for the others."""
    chunk = tl.arange(0, CHUNKS)
    ahead = (weight[None, :] > weight[:, None]) | (
        (weight[None, :] == weight[:, None]) & (chunk[None, :] < chunk[:, None])
    )
    return (tl.sum(ahead.to(tl.int32), axis=1) < count).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _quota_kernel(  # type: ignore[no-untyped-def]
    scores,
    quotas,
    tokens,
    chunks,
    budget,
    SHARPNESS: tl.constexpr,
    REALLOCATE: tl.constexpr,
    CHUNKS: tl.constexpr,
    LONGEST: tl.constexpr,
):
    picture = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    exists = chunk < chunks
    start, size = _extent(chunk, tokens, chunks)
    size = tl.where(exists, size, 0)
    place = tl.arange(0, LONGEST)
    token = start[:, None] + place[None, :]
    value = tl.load(scores + picture * tokens + token, mask=place[None, :] < size[:, None], other=0.0)
    weight = tl.sum(value.to(tl.float64), axis=1) / tl.maximum(size, 1).to(tl.float64)
    weight = tl.maximum(weight, 0.0)
    if SHARPNESS != 1:
        weight = tl.where(weight > 0, tl.exp(SHARPNESS * tl.log(tl.where(weight > 0, weight, 1.0))), 0.0)
    weight = weight / (tl.sum(weight, axis=0) + _EPSILON)
    quota = tl.floor(weight * budget).to(tl.int32)
    # Chunks that do not exist come after all others.
    quota += _best(tl.where(exists, weight, -1.0), budget - tl.sum(quota, axis=0), CHUNKS)
    if REALLOCATE:
        quota = tl.minimum(quota, size)
        room = size - quota
        amount = budget - tl.sum(quota, axis=0)
        weight = tl.where(exists, tl.maximum(weight, _LEAST_WEIGHT), 0.0)
        # Chunks fill up in the order of room per weight: a prefix of that order ends up full.
        ratio = tl.where(exists, room.to(tl.float64) / tl.where(exists, weight, 1.0), float("inf"))
        before = (ratio[None, :] < ratio[:, None]) | (
            (ratio[None, :] == ratio[:, None]) & (chunk[None, :] < chunk[:, None])
        )
        left = amount - tl.sum(tl.where(before, room[None, :], 0), axis=1)
        behind = tl.sum(tl.where(before, 0.0, weight[None, :]), axis=1)
        fills = left * weight / tl.where(exists, behind, 1.0) >= room.to(tl.float64) - _EPSILON
        gaps = tl.sum((before & (fills[None, :] == 0)).to(tl.int32), axis=1)
        full = fills & (gaps == 0)
        left_over = amount - tl.sum(tl.where(full, room, 0), axis=0)
        among = tl.where(full, 0.0, weight)
        share = left_over * among / tl.maximum(tl.sum(among, axis=0), _LEAST_WEIGHT)
        poured = tl.where(full, room, tl.floor(share).to(tl.int32))
        rivals = tl.where(exists, tl.where(full, -1.0, among), -2.0)
        quota += poured + _best(rivals, amount - tl.sum(poured, axis=0), CHUNKS)
    tl.store(quotas + picture * chunks + chunk, quota.to(tl.int64), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _pick_kernel(  # type: ignore[no-untyped-def]
    scores, quotas, picks, tokens, chunks, budget, CHUNKS: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr
):
    this = tl.program_id(0)
    picture = tl.program_id(1).to(tl.int64)
    picks += picture * budget
    chunk = tl.arange(0, CHUNKS)
    quota = tl.load(quotas + picture * chunks + chunk, mask=chunk < chunks, other=0)
    _, sizes = _extent(chunk, tokens, chunks)
    quota = tl.minimum(quota, sizes).to(tl.int32)
    first = tl.sum(tl.where(chunk < this, quota, 0), axis=0)
    mine = tl.sum(tl.where(chunk == this, quota, 0), axis=0)
    start, size = _extent(this, tokens, chunks)
    for begin in range(0, size, PLACES):
        place = begin + tl.arange(0, PLACES)
        rank = falling_ranks(scores + picture * tokens + start, place, size, COLUMNS)
        rank = tl.where(mine == size, place, rank)
        token = (start + place).to(tl.int64)
        tl.store(picks + first + rank, token, mask=(place < size) & (rank < mine) & (first + rank < budget))
    if this == chunks - 1:
        for begin in range(first + mine, budget, COLUMNS):
            place = begin + tl.arange(0, COLUMNS)
            tl.store(picks + place, tl.full((COLUMNS,), -1, dtype=tl.int64), mask=place < budget)


def scores_of(features: torch.Tensor, attention: torch.Tensor, chunks: int, weight: float) -> torch.Tensor:
    """What `vtprune.ops.chunks.holistic_scores` returns, of half-precision features in chunks of `LONGEST` at most."""
    batch, tokens, dim = features.shape
    scores = torch.empty((batch, tokens), dtype=torch.float32, device=features.device)
    with torch.cuda.device_of(features):
        _score_kernel[(chunks, batch)](
            features,
            attention.contiguous(),
            scores,
            tokens,
            chunks,
            dim,
            *features.stride(),
            WEIGHT=float(weight),
            # Triton's interpreter multiplies the bits of bfloat16 as they are.
            WIDEN=not features.is_cuda,
            TOKENS=max(16, triton.next_power_of_2(triton.cdiv(tokens, chunks))),
            CHANNELS=64,
            num_warps=4,
        )
    return scores


def can_share(tokens: int, chunks: int) -> bool:
    """Whether `quotas_of` can hold all chunks in one program."""
    longest = triton.next_power_of_2(triton.cdiv(tokens, chunks))
    return chunks <= MOST_CHUNKS and triton.next_power_of_2(chunks) * longest <= _MOST_SCORES


def quotas_of(scores: torch.Tensor, chunks: int, budget: int, *, sharpness: float, reallocate: bool) -> torch.Tensor:
    """What `vtprune.ops.chunks.chunk_quotas` returns."""
    batch, tokens = scores.shape
    quotas = torch.empty((batch, chunks), dtype=torch.int64, device=scores.device)
    with torch.cuda.device_of(scores):
        _quota_kernel[(batch,)](
            scores.contiguous(),
            quotas,
            tokens,
            chunks,
            budget,
            SHARPNESS=float(sharpness),
            REALLOCATE=reallocate,
            CHUNKS=triton.next_power_of_2(chunks),
            LONGEST=triton.next_power_of_2(triton.cdiv(tokens, chunks)),
            num_warps=4,
        )
    return quotas


def picks_of(scores: torch.Tensor, quotas: torch.Tensor, budget: int) -> torch.Tensor:
    """What `vtprune.ops.chunks.best_of_chunks` returns."""
    batch, tokens = scores.shape
    chunks = quotas.shape[1]
    picks = torch.empty((batch, budget), dtype=torch.int64, device=scores.device)
    with torch.cuda.device_of(scores):
        _pick_kernel[(chunks, batch)](
            scores.contiguous(),
            quotas.contiguous(),
            picks,
            tokens,
            chunks,
            budget,
            CHUNKS=triton.next_power_of_2(chunks),
            PLACES=32,
            COLUMNS=128,
            num_warps=4,
        )
    return picks
