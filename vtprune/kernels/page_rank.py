"""PageRank over attention without its maps: logits are computed anew, block by block, for every step of the walk."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

# Up to so many tokens one program walks for a head from the first step to the last.
_TOKENS_OF_ONE_PROGRAM = 256


def half_page_rank(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scaling: float,
    allowed: torch.Tensor,
    start: torch.Tensor | None,
    steps: int,
    temperature: float,
) -> torch.Tensor:
    """`vtprune.ops.page_rank.attention_page_rank` of half-precision queries and keys, `(batch, tokens)` float64.

    Weights are kept as logarithms, so that nothing vanishes however sharp the softmax. Block sizes depend on the width
    of a head alone: tokens that are absent at the end of a longer batch change no sum.

    Args:
        queries: `(batch, heads, tokens, head_dim)`.
        keys: `(batch, kv_heads, tokens, head_dim)`.
        scaling: Factor on the dot products.
        allowed: `True` where a query may look at a key, `(batch, tokens, tokens)`.
        start: Weights of the tokens at the start, `(batch, tokens)`; uniform if `None`.
        steps: Steps of the walk.
        temperature: Of the softmax.
    """
    batch, heads, tokens, dim = queries.shape
    queries, keys = (states if states.stride(3) == 1 else states.contiguous() for states in (queries, keys))
    allowed = allowed.contiguous().view(torch.uint8)
    # Base-2 logarithms of the weights, before and after a step in turns, and of the row sums of the map.
    weights = torch.empty(2, batch, heads, tokens, dtype=torch.float64, device=queries.device)
    if start is None:
        weights[0].fill_(-math.log2(tokens))
    else:
        weights[0] = start.double().log2().unsqueeze(1)
    sums = torch.empty(batch, heads, tokens, dtype=torch.float64, device=queries.device)
    blind = torch.empty(batch, heads, tokens, dtype=torch.float32, device=queries.device)
    ranks = torch.empty(batch, tokens, dtype=torch.float64, device=queries.device)
    width = max(16, triton.next_power_of_2(dim))
    sizes = {"DIM": width, "ROWS": min(64, max(16, 16384 // width)), "COLUMNS": min(128, max(16, 16384 // width))}
    common = (
        queries,
        keys,
        allowed,
        sums,
        blind,
        weights,
        scaling / temperature / math.log(2),
        tokens,
        dim,
        heads,
        heads // keys.shape[1],
        *queries.stride()[:3],
        *keys.stride()[:3],
        weights.stride(0),
    )
    walks = batch * heads
    with torch.cuda.device_of(queries):
        if tokens <= _TOKENS_OF_ONE_PROGRAM:
            _whole_walk[(walks,)](*common, steps, **sizes, num_warps=4, num_stages=2)
        else:
            _row_sums[(walks, triton.cdiv(tokens, sizes["ROWS"]))](*common, **sizes, num_warps=4, num_stages=2)
            for step in range(steps):
                _step[(walks, triton.cdiv(tokens, sizes["COLUMNS"]))](
                    *common, step % 2, **sizes, num_warps=4, num_stages=2
                )
        _over_heads[(triton.cdiv(tokens, 32), batch)](weights[steps % 2], ranks, heads, tokens, TOKENS=32, num_warps=1)
    return ranks


@triton.jit  # type: ignore[untyped-decorator]
def _sum_rows(  # type: ignore[no-untyped-def]
    first_row,
    queries,
    keys,
    allowed,
    sums,
    blind,
    scale,
    tokens,
    dim,
    query_stride,
    key_stride,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Logarithms of the row sums of a block of queries; rows that see nothing look at all alike, as a softmax would."""
    row, channel = first_row + tl.arange(0, ROWS), tl.arange(0, DIM)
    query = tl.load(
        queries + row.to(tl.int64)[:, None] * query_stride + channel[None, :],
        mask=(row < tokens)[:, None] & (channel < dim)[None, :],
        other=0.0,
    )
    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for first in range(0, tokens, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        key = tl.load(
            keys + column.to(tl.int64)[None, :] * key_stride + channel[:, None],
            mask=(column < tokens)[None, :] & (channel < dim)[:, None],
            other=0.0,
        )
        seen = tl.load(
            allowed + row.to(tl.int64)[:, None] * tokens + column[None, :],
            mask=(row < tokens)[:, None] & (column < tokens)[None, :],
            other=0,
        )
        logits = tl.where(seen != 0, tl.dot(query, key) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(logits - base[:, None]), axis=1)
        top = higher
    sees = total > 0
    logarithm = tl.where(sees, top, 0.0).to(tl.float64) + tl.log2(tl.where(sees, total, tokens * 1.0).to(tl.float64))
    tl.store(sums + row, logarithm, mask=row < tokens)
    tl.store(blind + row, tl.where(sees, float("-inf"), 0.0), mask=row < tokens)


@triton.jit  # type: ignore[untyped-decorator]
def _walk_to(  # type: ignore[no-untyped-def]
    first_column,
    queries,
    keys,
    allowed,
    sums,
    blind,
    before,
    after,
    scale,
    tokens,
    dim,
    query_stride,
    key_stride,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One step of the walk to a block of keys."""
    column, channel = first_column + tl.arange(0, COLUMNS), tl.arange(0, DIM)
    key = tl.load(
        keys + column.to(tl.int64)[None, :] * key_stride + channel[:, None],
        mask=(column < tokens)[None, :] & (channel < dim)[:, None],
        other=0.0,
    )
    top = tl.full([COLUMNS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for first in range(0, tokens, ROWS):
        row = first + tl.arange(0, ROWS)
        query = tl.load(
            queries + row.to(tl.int64)[:, None] * query_stride + channel[None, :],
            mask=(row < tokens)[:, None] & (channel < dim)[None, :],
            other=0.0,
        )
        seen = tl.load(
            allowed + row.to(tl.int64)[:, None] * tokens + column[None, :],
            mask=(row < tokens)[:, None] & (column < tokens)[None, :],
            other=0,
        )
        weight = tl.load(before + row, mask=row < tokens, other=float("-inf"))
        logarithm = tl.load(sums + row, mask=row < tokens, other=0.0)
        unseen = tl.load(blind + row, mask=row < tokens, other=float("-inf"))
        # What dominates a sum has a logit near its row's sum: taken off first, so that little is lost of the rest.
        rounded = logarithm.to(tl.float32)
        carried = (weight - (logarithm - rounded.to(tl.float64))).to(tl.float32)
        logits = tl.dot(query, key) * scale - rounded[:, None]
        arrivals = tl.where(seen != 0, logits, (unseen - rounded)[:, None]) + carried[:, None]
        higher = tl.maximum(top, tl.max(arrivals, axis=0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(arrivals - base[None, :]), axis=0)
        top = higher
    arrived = tl.where(total > 0, top, 0.0).to(tl.float64) + tl.log2(tl.where(total > 0, total, 1.0).to(tl.float64))
    tl.store(after + column, tl.where(total > 0, arrived, float("-inf")), mask=column < tokens)


@triton.jit  # type: ignore[untyped-decorator]
def _row_sums(  # type: ignore[no-untyped-def]
    queries,
    keys,
    allowed,
    sums,
    blind,
    weights,
    scale,
    tokens,
    dim,
    heads,
    group,
    query_picture,
    query_head,
    query_row,
    key_picture,
    key_head,
    key_row,
    turn,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    walk = tl.program_id(0).to(tl.int64)
    picture, head = walk // heads, walk % heads
    _sum_rows(
        tl.program_id(1) * ROWS,
        queries + picture * query_picture + head * query_head,
        keys + picture * key_picture + head // group * key_head,
        allowed + picture * tokens * tokens,
        sums + walk * tokens,
        blind + walk * tokens,
        scale,
        tokens,
        dim,
        query_row,
        key_row,
        DIM,
        ROWS,
        COLUMNS,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _step(  # type: ignore[no-untyped-def]
    queries,
    keys,
    allowed,
    sums,
    blind,
    weights,
    scale,
    tokens,
    dim,
    heads,
    group,
    query_picture,
    query_head,
    query_row,
    key_picture,
    key_head,
    key_row,
    turn,
    parity,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    walk = tl.program_id(0).to(tl.int64)
    picture, head = walk // heads, walk % heads
    _walk_to(
        tl.program_id(1) * COLUMNS,
        queries + picture * query_picture + head * query_head,
        keys + picture * key_picture + head // group * key_head,
        allowed + picture * tokens * tokens,
        sums + walk * tokens,
        blind + walk * tokens,
        weights + walk * tokens + parity * turn,
        weights + walk * tokens + (1 - parity) * turn,
        scale,
        tokens,
        dim,
        query_row,
        key_row,
        DIM,
        ROWS,
        COLUMNS,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _whole_walk(  # type: ignore[no-untyped-def]
    queries,
    keys,
    allowed,
    sums,
    blind,
    weights,
    scale,
    tokens,
    dim,
    heads,
    group,
    query_picture,
    query_head,
    query_row,
    key_picture,
    key_head,
    key_row,
    turn,
    steps,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    walk = tl.program_id(0).to(tl.int64)
    picture, head = walk // heads, walk % heads
    queries += picture * query_picture + head * query_head
    keys += picture * key_picture + head // group * key_head
    allowed += picture * tokens * tokens
    sums += walk * tokens
    blind += walk * tokens
    weights += walk * tokens
    for first in range(0, tokens, ROWS):
        _sum_rows(
            first, queries, keys, allowed, sums, blind, scale, tokens, dim, query_row, key_row, DIM, ROWS, COLUMNS
        )
    for step in range(steps):
        # Each step reads what other threads of this program wrote.
        tl.debug_barrier()
        for first in range(0, tokens, COLUMNS):
            _walk_to(
                first,
                queries,
                keys,
                allowed,
                sums,
                blind,
                weights + step % 2 * turn,
                weights + (1 - step % 2) * turn,
                scale,
                tokens,
                dim,
                query_row,
                key_row,
                DIM,
                ROWS,
                COLUMNS,
            )


@triton.jit  # type: ignore[untyped-decorator]
def _over_heads(weights, ranks, heads, tokens, TOKENS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The root mean square over heads, squared relative to the peak: squares of nearly nothing would be nothing."""
    picture = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = weights + picture * heads * tokens + token
    peak = tl.full([TOKENS], float("-inf"), dtype=tl.float64)
    for head in range(heads):
        peak = tl.maximum(peak, tl.load(column + head * tokens, mask=token < tokens, other=float("-inf")))
    base = tl.where(peak == float("-inf"), 0.0, peak)
    total = tl.zeros([TOKENS], dtype=tl.float64)
    for head in range(heads):
        weight = tl.load(column + head * tokens, mask=token < tokens, other=float("-inf"))
        total += tl.exp2(2 * (weight - base))
    mean = tl.sqrt(total / heads)
    tl.store(ranks + picture * tokens + token, tl.exp2(base) * mean, mask=token < tokens)
