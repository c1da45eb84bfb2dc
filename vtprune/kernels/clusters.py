"""Clusters around dense tokens: densities, the visits of many cutoffs at once, and the means of the clusters."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# A token's turn and its number share an int32, the number in the lower half.
MOST_TOKENS = (1 << 15) - 1
_SHIFT = tl.constexpr(65536)
_NONE = tl.constexpr(2**31 - 1)
_ONE = tl.constexpr(2.0**30)
# Adding and taking off this rounds a float64 far below it to an integer, halves to the even one.
_ROUNDER = tl.constexpr(1.5 * 2.0**52)


def visit_ranks(distance: torch.Tensor) -> torch.Tensor:
    """The turn of each token when they are visited by falling density, `(batch, tokens)` int32.

    Args:
        distance: Distances of all pairs, `(batch, tokens, tokens)` float32.
    """
    distance = _rows_of(distance)
    batch, tokens, _ = distance.shape
    density = torch.empty(batch, tokens, dtype=torch.int64, device=distance.device)
    block = min(triton.next_power_of_2(tokens), 1024)
    with torch.cuda.device_of(distance):
        _densities[(tokens, batch)](
            distance,
            density,
            tokens,
            distance.stride(0),
            distance.stride(1),
            BLOCK=block,
            num_warps=max(1, block // 256),
        )
        return _ranks_of(density, density, by_index=True)


def cutoff_centres(distance: torch.Tensor, ranks: torch.Tensor, cutoff: float) -> torch.Tensor:
    """`vtprune.ops.distance_clusters.density_centres`, `(batch, tokens)` booleans.

    Args:
        distance: `(batch, tokens, tokens)` float32.
        ranks: Of `visit_ranks`.
        cutoff: Distance up to which a token belongs to a centre before it.
    """
    distance = _rows_of(distance)
    batch, tokens, _ = distance.shape
    centres = torch.empty(batch, 1, tokens, dtype=torch.uint8, device=distance.device)
    found = torch.empty(batch, 1, dtype=torch.int32, device=distance.device)
    block = triton.next_power_of_2(tokens)
    with torch.cuda.device_of(distance):
        _visit[(1, batch)](
            distance,
            ranks,
            distance,
            distance,
            found,
            found,
            centres,
            cutoff,
            tokens,
            tokens,
            distance.stride(0),
            distance.stride(1),
            LADDER=0,
            REFINE=False,
            BLOCK=block,
            num_warps=_warps(block),
        )
    return centres.squeeze(1).bool()


def budget_search(
    distance: torch.Tensor, count: int, cutoff: float, falling: torch.Tensor, shares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`vtprune.ops.distance_clusters.budget_centres`, whose docstring says what comes out.

    One program visits the tokens for one picture and one cutoff; it reads a row of distances for each centre.

    Args:
        distance: `(batch, tokens, tokens)` float32, at most `MOST_TOKENS` tokens.
        count: Centres of each picture.
        cutoff: Tried first.
        falling: Cutoffs that are tried then, float32, at most 127.
        shares: As many factors on the best of them, tried in a second round.
    """
    distance = _rows_of(distance)
    batch, tokens, _ = distance.shape
    ladder, device = falling.numel(), distance.device
    ranks = visit_ranks(distance)
    found = torch.empty(2, batch, ladder + 1, dtype=torch.int32, device=device)
    centres = torch.empty(batch, ladder + 1, tokens, dtype=torch.uint8, device=device)
    scores = torch.empty(batch, tokens, dtype=torch.float32, device=device)
    best = torch.empty(batch, 1, dtype=torch.float32, device=device)
    picks = torch.empty(batch, count, dtype=torch.int64, device=device)
    block = triton.next_power_of_2(tokens)
    strides = distance.stride(0), distance.stride(1)
    with torch.cuda.device_of(distance):
        for refine in (False, True):
            _visit[(ladder + 1, batch)](
                distance,
                ranks,
                falling,
                shares,
                found[0],
                found[int(refine)],
                centres,
                cutoff,
                tokens,
                count,
                *strides,
                LADDER=ladder,
                REFINE=refine,
                BLOCK=block,
                num_warps=_warps(block),
            )
        rows, columns = _tile(tokens)
        grid = (triton.cdiv(tokens, rows), batch)
        _score[grid](
            distance,
            falling,
            shares,
            found,
            found[1],
            centres,
            scores,
            best,
            cutoff,
            tokens,
            *strides,
            LADDER=ladder,
            ROWS=rows,
            COLUMNS=columns,
        )
        order = _ranks_of(scores, ranks, by_index=False)
        _compact[grid](order, picks, tokens, count, ROWS=rows, COLUMNS=columns)
    return picks, best


def half_means(
    features: torch.Tensor, distance: torch.Tensor, centres: torch.Tensor, joins: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`vtprune.ops.distance_clusters.cluster_means` of half-precision features, summed in float32."""
    batch, tokens, dim = features.shape
    count = centres.shape[1]
    features = features if features.stride(2) == 1 else features.contiguous()
    distance, centres = distance.contiguous(), centres.contiguous()
    joins, valid = joins.contiguous().view(torch.uint8), valid.contiguous().view(torch.uint8)
    labels = torch.empty(batch, tokens, dtype=torch.int32, device=features.device)
    means = torch.empty(batch, count, dim, dtype=features.dtype, device=features.device)
    sizes = torch.empty(batch, count, dtype=torch.float32, device=features.device)
    rows, columns = _tile(count)
    with torch.cuda.device_of(features):
        _label[(triton.cdiv(tokens, rows), batch)](
            distance, centres, joins, valid, labels, tokens, count, ROWS=rows, COLUMNS=columns
        )
        wide = min(128, max(16, triton.next_power_of_2(dim)))
        some = min(64, max(16, triton.next_power_of_2(count)))
        _means[(triton.cdiv(dim, wide), triton.cdiv(count, some), batch)](
            features,
            labels,
            means,
            sizes,
            tokens,
            count,
            dim,
            features.stride(0),
            features.stride(1),
            CENTRES=some,
            TOKENS=64,
            DIM=wide,
        )
    return means, sizes


def _rows_of(distance: torch.Tensor) -> torch.Tensor:
    """The same, each row in one piece."""
    return distance if distance.stride(2) == 1 else distance.contiguous()


def _warps(block: int) -> int:
    """One warp up to 512 tokens: what it holds it also reduces without waiting for others."""
    return min(32, max(1, block // 512))


def _tile(columns: int) -> tuple[int, int]:
    """Rows and columns that a program looks at in one piece."""
    return 16, min(256, max(16, triton.next_power_of_2(columns)))


def _ranks_of(values: torch.Tensor, ties: torch.Tensor, *, by_index: bool) -> torch.Tensor:
    """Places of the values by falling size, of equal ones by rising `ties` or index, `(batch, tokens)` int32."""
    batch, tokens = values.shape
    ranks = torch.empty(batch, tokens, dtype=torch.int32, device=values.device)
    rows, columns = _tile(tokens)
    _rank[(triton.cdiv(tokens, rows), batch)](
        values, ties, ranks, tokens, BY_INDEX=by_index, ROWS=rows, COLUMNS=columns
    )
    return ranks


@triton.jit  # type: ignore[untyped-decorator]
def _densities(distance, density, tokens, picture_stride, row_stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The density of one token, in steps of 2^-30: integers, whose sum no order of adding changes."""
    token, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = distance + picture * picture_stride + token.to(tl.int64) * row_stride
    total = tl.zeros([BLOCK], dtype=tl.int64)
    for first in range(0, tokens, BLOCK):
        other = first + tl.arange(0, BLOCK)
        half = tl.load(row + other, mask=other < tokens, other=0.0).to(tl.float64) / 2
        steps = (tl.exp(-(half * half)) * _ONE + _ROUNDER) - _ROUNDER
        total += tl.where(other < tokens, steps, 0.0).to(tl.int64)
    tl.store(density + picture * tokens + token, tl.sum(total, axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _rank(values, ties, ranks, tokens, BY_INDEX: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """For a block of tokens, how many come before each."""
    start = tl.program_id(1).to(tl.int64) * tokens
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = tl.load(values + start + token, mask=token < tokens, other=0)
    turn = token
    if not BY_INDEX:
        turn = tl.load(ties + start + token, mask=token < tokens, other=0)
    before = tl.zeros([ROWS], dtype=tl.int32)
    for first in range(0, tokens, COLUMNS):
        other = first + tl.arange(0, COLUMNS)
        theirs = tl.load(values + start + other, mask=other < tokens, other=0)
        their_turn = other
        if not BY_INDEX:
            their_turn = tl.load(ties + start + other, mask=other < tokens, other=0)
        tied = (theirs[None, :] == mine[:, None]) & (their_turn[None, :] < turn[:, None])
        ahead = ((theirs[None, :] > mine[:, None]) | tied) & (other < tokens)[None, :]
        before += tl.sum(ahead.to(tl.int32), axis=1)
    tl.store(ranks + start + token, before, mask=token < tokens)


@triton.jit  # type: ignore[untyped-decorator]
def _winner(found, LADDER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which cutoff made most centres: the last such one, unless the first is as good."""
    slot = tl.arange(0, 128)
    counts = tl.load(found + slot, mask=slot <= LADDER, other=-1)
    later = tl.where(slot >= 1, counts, -1)
    most = tl.max(later, axis=0)
    last = tl.max(tl.where(later == most, slot, 0), axis=0)
    return tl.where(most > tl.load(found), last, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _best(falling, found, cutoff, LADDER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The cutoff that won the first round."""
    winner = _winner(found, LADDER)
    return tl.where(winner > 0, tl.load(falling + tl.maximum(winner - 1, 0)), cutoff)


@triton.jit  # type: ignore[untyped-decorator]
def _visit(  # type: ignore[no-untyped-def]
    distance,
    ranks,
    falling,
    shares,
    found_first,
    found,
    centres,
    cutoff,
    tokens,
    count,
    picture_stride,
    row_stride,
    LADDER: tl.constexpr,
    REFINE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Visits the tokens of one picture with one cutoff; writes the centres, and their number if none is missing."""
    attempt, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tried = cutoff
    if REFINE:
        tried = _best(falling, found_first + picture * (LADDER + 1), cutoff, LADDER)
        if attempt > 0:
            tried *= tl.load(shares + attempt - 1)
    else:
        if attempt > 0:
            tried = tl.load(falling + attempt - 1)
    token = tl.arange(0, BLOCK)
    present = token < tokens
    turn = tl.load(ranks + picture * tokens + token, mask=present, other=0)
    waiting = tl.where(present, turn * _SHIFT + token, _NONE)
    centre = tl.zeros([BLOCK], dtype=tl.int32)
    made = 0
    first = tl.min(waiting, axis=0)
    while (made < count) & (first < _NONE):
        row = distance + picture * picture_stride + (first % _SHIFT).to(tl.int64) * row_stride
        beyond = tl.load(row + token, mask=present, other=0.0) > tried
        centre = tl.where(waiting == first, 1, centre)
        waiting = tl.where(beyond, waiting, _NONE)
        first = tl.min(waiting, axis=0)
        made += 1
    place = picture * (LADDER + 1) + attempt
    tl.store(found + place, tl.where(first == _NONE, made, 0))
    tl.store(centres + place * tokens + token, centre.to(tl.uint8), mask=present)


@triton.jit  # type: ignore[untyped-decorator]
def _score(  # type: ignore[no-untyped-def]
    distance,
    falling,
    shares,
    found_first,
    found,
    centres,
    scores,
    best,
    cutoff,
    tokens,
    picture_stride,
    row_stride,
    LADDER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What decides about a block of tokens: centre of the winner, of the next lower cutoff, distance to the former."""
    picture = tl.program_id(1).to(tl.int64)
    start = picture * (LADDER + 1)
    base = _best(falling, found_first + start, cutoff, LADDER)
    winner = _winner(found + start, LADDER)
    slot = tl.arange(0, 128)
    tried = base * tl.load(shares + slot - 1, mask=(slot >= 1) & (slot <= LADDER), other=1.0)
    fits = tl.load(found + start + slot, mask=slot <= LADDER, other=0) > 0
    misfit = tl.where(slot <= LADDER, tl.where(fits, -1.0, tried), -2.0)
    below = tl.min(tl.where(misfit == tl.max(misfit, axis=0), slot, 128), axis=0)
    few, many = centres + (start + winner) * tokens, centres + (start + below) * tokens
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = token < tokens
    nearest = tl.full([ROWS], float("inf"), dtype=tl.float32)
    rows = distance + picture * picture_stride + token.to(tl.int64)[:, None] * row_stride
    for first in range(0, tokens, COLUMNS):
        other = first + tl.arange(0, COLUMNS)
        is_centre = tl.load(few + other, mask=other < tokens, other=0) != 0
        near = tl.load(rows + other[None, :], mask=inside[:, None] & is_centre[None, :], other=float("inf"))
        # No distance of a token that is not a number: last, and the places of all stay different.
        nearest = tl.minimum(nearest, tl.min(tl.where(near == near, near, 0.0), axis=1))
    in_few = tl.load(few + token, mask=inside, other=0).to(tl.float32)
    in_many = tl.load(many + token, mask=inside, other=0).to(tl.float32)
    # Distances are at most 2, so that the three ranks do not mix.
    tl.store(scores + picture * tokens + token, 8 * in_few + 4 * in_many + nearest, mask=inside)
    if tl.program_id(0) == 0:
        factor = tl.load(shares + tl.maximum(winner - 1, 0))
        tl.store(best + picture, base * tl.where(winner > 0, factor, 1.0))


@triton.jit  # type: ignore[untyped-decorator]
def _compact(order, picks, tokens, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Writes the first `count` tokens of an order by rising index."""
    picture = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    taken = tl.load(order + picture * tokens + token, mask=token < tokens, other=count) < count
    before = tl.zeros([ROWS], dtype=tl.int32)
    for first in range(0, tokens, COLUMNS):
        other = first + tl.arange(0, COLUMNS)
        theirs = tl.load(order + picture * tokens + other, mask=other < tokens, other=count) < count
        before += tl.sum((theirs[None, :] & (other[None, :] < token[:, None])).to(tl.int32), axis=1)
    tl.store(picks + picture * count + before, token.to(tl.int64), mask=taken)


@triton.jit  # type: ignore[untyped-decorator]
def _label(  # type: ignore[no-untyped-def]
    distance, centres, joins, valid, labels, tokens, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The cluster of each of a block of tokens, -1 for none: a centre's own, of others the nearest, the first such."""
    picture = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = token < tokens
    rows = distance + (picture * tokens + token)[:, None] * count
    nearest = tl.full([ROWS], float("inf"), dtype=distance.dtype.element_ty)
    label = tl.zeros([ROWS], dtype=tl.int32)
    own = tl.full([ROWS], -1, dtype=tl.int32)
    for first in range(0, count, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        counts = tl.load(valid + picture * count + column, mask=column < count, other=0) != 0
        near = tl.load(rows + column[None, :], mask=inside[:, None] & counts[None, :], other=float("inf"))
        least = tl.min(near, axis=1)
        at = tl.min(tl.where(near == least[:, None], column[None, :], count), axis=1)
        label = tl.where(least < nearest, at, label)
        nearest = tl.minimum(nearest, least)
        centre = tl.load(centres + picture * count + column, mask=column < count, other=-1)
        is_own = (centre[None, :] == token[:, None]) & counts[None, :]
        own = tl.maximum(own, tl.max(tl.where(is_own, column[None, :], -1), axis=1))
    joined = tl.load(joins + picture * tokens + token, mask=inside, other=0) != 0
    # A centre may have copies among the centres, and would join the first of them.
    label = tl.where(own >= 0, own, label)
    tl.store(labels + picture * tokens + token, tl.where(joined, label, -1), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _means(  # type: ignore[no-untyped-def]
    features,
    labels,
    means,
    sizes,
    tokens,
    count,
    dim,
    picture_stride,
    row_stride,
    CENTRES: tl.constexpr,
    TOKENS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Sums a block of clusters over a block of dimensions as a product with the matrix of members."""
    picture = tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * DIM + tl.arange(0, DIM)
    cluster = tl.program_id(1) * CENTRES + tl.arange(0, CENTRES)
    total = tl.zeros([CENTRES, DIM], dtype=tl.float32)
    size = tl.zeros([CENTRES], dtype=tl.int32)
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        label = tl.load(labels + picture * tokens + token, mask=token < tokens, other=-1)
        member = cluster[:, None] == label[None, :]
        states = tl.load(
            features + picture * picture_stride + token.to(tl.int64)[:, None] * row_stride + column[None, :],
            mask=(token < tokens)[:, None] & (column < dim)[None, :],
            other=0.0,
        )
        total = tl.dot(tl.where(member, 1.0, 0.0).to(states.dtype), states, total)
        size += tl.sum(member.to(tl.int32), axis=1)
    members = tl.maximum(size, 1).to(tl.float32)
    place = picture * count + cluster
    mask = (cluster < count)[:, None] & (column < dim)[None, :]
    tl.store(
        means + place[:, None] * dim + column[None, :], (total / members[:, None]).to(means.dtype.element_ty), mask
    )
    if tl.program_id(0) == 0:
        tl.store(sizes + place, members, mask=cluster < count)
