"""PageRank over attention without its maps: logits are computed anew, block by block, for every step of the walk."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

# Up to so many tokens one program walks for a head from the first step to the last.
_TOKENS_OF_ONE_PROGRAM = 256
# What differs from prompt to prompt, for which a kernel is not to be compiled anew.
_SIZES = ["tokens", "first_step", "last_step", "turn"]


def half_page_rank(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scaling: float,
    allowed: torch.Tensor,
    start: torch.Tensor | None = None,
    *,
    steps: int = 5,
    temperature: float = 0.1,
    one_program: bool | None = None,
) -> torch.Tensor:
    """`vtprune.ops.page_rank.attention_page_rank` of half-precision queries and keys, `(batch, tokens)` float64.

    Weights are kept as float32 logarithms, so that nothing vanishes however sharp the softmax. Block sizes depend on
    the width of a head alone: tokens that are absent at the end of a longer batch change no sum.

    Args:
        queries: `(batch, heads, tokens, head_dim)`.
        keys: `(batch, kv_heads, tokens, head_dim)` of the same type.
        scaling: Factor on the dot products.
        allowed: `True` where a query may look at a key, `(batch, tokens, tokens)`.
        start: Weights of the tokens at the start, `(batch, tokens)`; uniform if `None`.
        steps: Steps of the walk.
        temperature: Of the softmax.
        one_program: Whether one program walks for a head, or many with a launch for each step; `None` for the faster.
    """
    batch, heads, tokens, dim = queries.shape
    queries, keys = (states if states.stride(3) == 1 else states.contiguous() for states in (queries, keys))
    allowed = allowed.expand(batch, -1, -1).contiguous().view(torch.uint8)
    # Base-2 logarithms: of the weights, before and after a step in turns, and of the row sums of the map.
    weights = torch.empty(2, batch, heads, tokens, dtype=torch.float32, device=queries.device)
    if start is None:
        weights[0].fill_(-math.log2(tokens))
    else:
        weights[0] = start.double().log2().unsqueeze(1)
    sums = torch.empty(batch, heads, tokens, dtype=torch.float32, device=queries.device)
    ranks = torch.empty(batch, tokens, dtype=torch.float64, device=queries.device)
    width = max(16, triton.next_power_of_2(dim))
    rows, columns = (min(most, max(16, 16384 // width)) for most in (64, 128))
    if one_program is None:
        one_program = tokens <= _TOKENS_OF_ONE_PROGRAM
    programs = 1 if one_program else triton.cdiv(tokens, rows)
    # Step 0 sums up rows.
    spans = [(0, steps)] if one_program else [(step, step) for step in range(steps + 1)]
    with torch.cuda.device_of(queries):
        for span in spans:
            _walk_kernel[(batch * heads, programs)](
                queries,
                keys,
                allowed,
                sums,
                weights,
                scaling / temperature / math.log(2),
                *span,
                tokens,
                dim,
                heads,
                heads // keys.shape[1],
                *queries.stride()[:3],
                *keys.stride()[:3],
                weights.stride(0),
                DIM=width,
                ROWS=rows,
                COLUMNS=columns,
                # Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
                WIDEN=not queries.is_cuda,
                num_warps=4,
                num_stages=2,
            )
        _mean_kernel[(triton.cdiv(tokens, 32), batch)](weights[steps % 2], ranks, heads, tokens, TOKENS=32, num_warps=1)
    return ranks


@triton.jit  # type: ignore[untyped-decorator]
def _states(  # type: ignore[no-untyped-def]
    states, token, stride, tokens, dim, DIM: tl.constexpr, WIDEN: tl.constexpr
):
    """Queries or keys of a block of tokens."""
    channel = tl.arange(0, DIM)
    inside = (token < tokens)[:, None] & (channel < dim)[None, :]
    block = tl.load(states + token.to(tl.int64)[:, None] * stride + channel[None, :], mask=inside, other=0.0)
    if WIDEN:
        block = block.to(tl.float32)
    return block


@triton.jit
def _seen(allowed, row, column, tokens):  # type: ignore[no-untyped-def]
    """Which queries of a block look at which keys of another."""
    inside = (row < tokens)[:, None] & (column < tokens)[None, :]
    return tl.load(allowed + row.to(tl.int64)[:, None] * tokens + column[None, :], mask=inside, other=0) != 0


@triton.jit
def _base(top):  # type: ignore[no-untyped-def]
    """What powers are taken relative to: the highest logarithm so far, if there is one."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_rows(  # type: ignore[no-untyped-def]
    row,
    queries,
    keys,
    allowed,
    sums,
    scale,
    tokens,
    dim,
    query_row,
    key_row,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Logarithms of the row sums of a block of queries, infinite for those that see nothing."""
    query = _states(queries, row, query_row, tokens, dim, DIM, WIDEN)
    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for first in range(0, tokens, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        key = _states(keys, column, key_row, tokens, dim, DIM, WIDEN)
        logits = tl.where(_seen(allowed, row, column, tokens), tl.dot(query, tl.trans(key)) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, axis=1))
        base = _base(higher)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(logits - base[:, None]), axis=1)
        top = higher
    logarithm = top + tl.log2(tl.where(total > 0, total, 1.0))
    tl.store(sums + row, tl.where(total > 0, logarithm, float("inf")), mask=row < tokens)


@triton.jit  # type: ignore[untyped-decorator]
def _walk_to(  # type: ignore[no-untyped-def]
    column,
    queries,
    keys,
    allowed,
    sums,
    before,
    after,
    scale,
    tokens,
    dim,
    query_row,
    key_row,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One step of the walk to a block of keys."""
    key = _states(keys, column, key_row, tokens, dim, DIM, WIDEN)
    top = tl.full([COLUMNS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for first in range(0, tokens, ROWS):
        row = first + tl.arange(0, ROWS)
        query = _states(queries, row, query_row, tokens, dim, DIM, WIDEN)
        weight = tl.load(before + row, mask=row < tokens, other=float("-inf"))
        logarithm = tl.load(sums + row, mask=row < tokens, other=0.0)
        # Taken off first: what dominates a sum has a logit near it, and loses little to rounding.
        logits = tl.dot(query, tl.trans(key)) * scale - logarithm[:, None]
        # Who sees nothing looks at all tokens alike, as in a softmax of equal logits.
        spread = tl.where(logarithm == float("inf"), -tl.log2(tokens * 1.0), float("-inf"))
        arrivals = tl.where(_seen(allowed, row, column, tokens), logits, spread[:, None]) + weight[:, None]
        higher = tl.maximum(top, tl.max(arrivals, axis=0))
        base = _base(higher)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(arrivals - base[None, :]), axis=0)
        top = higher
    # Minus infinity where nothing arrives.
    tl.store(after + column, top + tl.log2(tl.where(total > 0, total, 1.0)), mask=column < tokens)


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def _walk_kernel(  # type: ignore[no-untyped-def]
    queries,
    keys,
    allowed,
    sums,
    weights,
    scale,
    first_step,
    last_step,
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
    WIDEN: tl.constexpr,
):
    """Some steps of the walk of one head; several of them only where one program takes all its blocks."""
    walk = tl.program_id(0).to(tl.int64)
    picture, head = walk // heads, walk % heads
    queries += picture * query_picture + head * query_head
    keys += picture * key_picture + head // group * key_head
    allowed += picture * tokens * tokens
    sums += walk * tokens
    weights += walk * tokens
    for step in range(first_step, last_step + 1):
        if step == 0:
            for first in range(tl.program_id(1) * ROWS, tokens, tl.num_programs(1) * ROWS):
                row = first + tl.arange(0, ROWS)
                _sum_rows(
                    row,
                    queries,
                    keys,
                    allowed,
                    sums,
                    scale,
                    tokens,
                    dim,
                    query_row,
                    key_row,
                    DIM,
                    ROWS,
                    COLUMNS,
                    WIDEN,
                )
        else:
            for first in range(tl.program_id(1) * COLUMNS, tokens, tl.num_programs(1) * COLUMNS):
                column = first + tl.arange(0, COLUMNS)
                before = weights + (step - 1) % 2 * turn
                after = weights + step % 2 * turn
                _walk_to(
                    column,
                    queries,
                    keys,
                    allowed,
                    sums,
                    before,
                    after,
                    scale,
                    tokens,
                    dim,
                    query_row,
                    key_row,
                    DIM,
                    ROWS,
                    COLUMNS,
                    WIDEN,
                )
        # The next step reads what other threads of this program have written.
        tl.debug_barrier()


@triton.jit  # type: ignore[untyped-decorator]
def _mean_kernel(weights, ranks, heads, tokens, TOKENS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The root mean square over heads, squared relative to the peak: squares of nearly nothing would be nothing."""
    picture = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = weights + picture * heads * tokens + token
    peak = tl.full([TOKENS], float("-inf"), dtype=tl.float32)
    for head in range(heads):
        weight = tl.load(column + head * tokens, mask=token < tokens, other=float("-inf"))
        peak = tl.maximum(peak, weight)
    base = _base(peak)
    total = tl.zeros([TOKENS], dtype=tl.float64)
    for head in range(heads):
        weight = tl.load(column + head * tokens, mask=token < tokens, other=float("-inf"))
        total += tl.exp2(2 * (weight - base).to(tl.float64))
    tl.store(
        ranks + picture * tokens + token, tl.exp2(base.to(tl.float64)) * tl.sqrt(total / heads), mask=token < tokens
    )
