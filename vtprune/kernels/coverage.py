"""Greedy weighted coverage from whole-numbered cosines, in one launch.

What a candidate would add is kept for every token and only corrected: a pick takes from it what the tokens gave whose
coverage it raises, and those become few soon. The sums are of integers, so that corrections leave no error behind and
nothing depends on how the work is divided. A large picture is shared out to several programs by columns of its matrix;
they agree on each pick across a barrier.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vtprune.kernels.grid import grid_barrier, programs_at_once, together

# Tokens up to which one program works alone on a picture, and the columns of each where there are several.
_ALONE = 1024
_COLUMNS = 128
# Below the score of every token that is there, and above that of a picked one.
_ABSENT = tl.constexpr(-1.7e308)
_NOWHERE = tl.constexpr(2**31 - 1)


def pick_covering(
    cosine: torch.Tensor,
    steps: int,
    weight: torch.Tensor,
    saliency: torch.Tensor,
    keep: int,
    *,
    add: bool,
    fill_by_saliency: bool,
    present: torch.Tensor | None = None,
    columns: int | None = None,
    turns: int | None = None,
) -> torch.Tensor:
    """The picks of `vtprune.ops.coverage`, `(batch, keep)` int64.

    Args:
        cosine: `(batch, tokens, tokens)` int32, in parts of `1 / steps`, from -1 to 1.
        steps: A power of two up to 2^30.
        weight: What the added coverage is multiplied with or added to, `(batch, tokens)` float64 without NaN.
        saliency: `(batch, tokens)` float64 without NaN.
        keep: Tokens to pick.
        add: Add the weight instead of multiplying with it.
        fill_by_saliency: Go on by saliency once no token gains anything.
        present: `(batch, tokens)` booleans.
        columns: Tokens for each program; by default as many as suit the picture.
        turns: Picks in one launch, all by default. Programs that take one turn a launch need not run at once.
    """
    cosine, weight, saliency = cosine.contiguous(), weight.contiguous(), saliency.contiguous()
    there = cosine if present is None else present.contiguous()
    batch, count, _ = cosine.shape
    picks = torch.empty((batch, keep), dtype=torch.int64, device=cosine.device)
    columns = columns or _columns(count, cosine)
    programs = triton.cdiv(count, columns)
    turns = turns if turns and programs > 1 else keep + 1
    block = triton.next_power_of_2(count)
    warps = 16 if programs == 1 or block > 4096 else 8
    # As many rows of the matrix at once as leave 32 numbers of them to each thread.
    rows = min(block, max(1, 1024 * warps // columns))
    pictures = batch if 1 in (programs, turns) else max(1, programs_at_once(cosine) // programs)
    for start in range(0, batch, pictures):
        part = slice(start, start + pictures)
        size = len(picks[part])
        scratch = torch.empty((size, programs, 4, count), dtype=torch.int32, device=cosine.device)
        numbers = torch.empty((size, 2 * count + 8 * programs), dtype=torch.float64, device=cosine.device)
        arrived = torch.zeros(size, dtype=torch.int32, device=cosine.device)
        for first in range(0, keep + 1, turns):
            with torch.cuda.device_of(cosine):
                _cover[(size * programs,)](
                    cosine[part],
                    weight[part],
                    saliency[part],
                    there[part],
                    picks[part],
                    scratch,
                    numbers,
                    arrived,
                    count,
                    keep,
                    first,
                    max(first, 1),
                    min(first + turns, keep + 1),
                    programs,
                    STEPS=steps,
                    ADD=add,
                    FILL=fill_by_saliency,
                    HAS_PRESENT=present is not None,
                    WIDE=triton.cdiv(count, rows) * steps >= 1 << 31,
                    TOKENS=block,
                    COLUMNS=columns,
                    ROWS=rows,
                    PROGRAMS=triton.next_power_of_2(programs),
                    num_warps=warps,
                    **(together(cosine) if programs > 1 else {}),
                )
    return picks


def _columns(count: int, tensor: torch.Tensor) -> int:
    """Columns of each program: all of them, or as few as leave a multiprocessor to every program of a picture."""
    if count <= _ALONE or not tensor.is_cuda:
        return int(triton.next_power_of_2(count))
    columns = _COLUMNS
    while triton.cdiv(count, columns) > programs_at_once(tensor):
        columns *= 2
    return columns


@triton.jit  # type: ignore[untyped-decorator]
def _cover(  # type: ignore[no-untyped-def]
    cosine,
    weight,
    saliency,
    present,
    picks,
    scratch,
    numbers,
    arrived,
    count,
    keep,
    first,
    begin,
    last,
    programs,
    STEPS: tl.constexpr,
    ADD: tl.constexpr,
    FILL: tl.constexpr,
    HAS_PRESENT: tl.constexpr,
    WIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Turns `first` to `last - 1` of all pictures: at turn 0 offers, at each later one a pick and offers for the next.

    Every program knows the coverage of all tokens, and what its own columns would gain.
    """
    picture = (tl.program_id(0) // programs).to(tl.int64)
    program = tl.program_id(0) % programs
    cosine += picture * count * count
    picks += picture * keep
    numbers += picture * (2 * count + 8 * programs)
    offers = numbers + 2 * count
    changed = scratch + (picture * programs + program) * 4 * count
    token = tl.arange(0, TOKENS)
    inside = token < count
    column = program * COLUMNS + tl.arange(0, COLUMNS)
    mine = column < count
    weights = tl.load(weight + picture * count + column, mask=mine, other=0.0)
    saliencies = tl.load(saliency + picture * count + column, mask=mine, other=0.0)

    if first == 0:
        covered = tl.zeros([TOKENS], dtype=tl.int32)
        limit = tl.where(mine, float("inf"), float("-inf")).to(tl.float64)
        if HAS_PRESENT:
            # What is not there counts as covered.
            there = tl.load(present + picture * count + token, mask=inside, other=1)
            covered = tl.where(there != 0, covered, STEPS)
            there = tl.load(present + picture * count + column, mask=mine, other=1)
            limit = tl.where(there != 0, limit, _ABSENT)
        tl.store(changed + token, token, mask=inside)
        tl.store(changed + count + token, covered, mask=inside)
        tl.store(changed + 2 * count + token, tl.full([TOKENS], STEPS, tl.int32), mask=inside)
        gains = _raised(cosine, changed, count, count, column, mine, WIDE, COLUMNS, ROWS)
        pick = _offer(
            offers, 0, gains, weights, saliencies, limit, column, program, programs, STEPS, ADD, FILL, PROGRAMS
        )
    else:
        covered = tl.load(changed + 3 * count + token, mask=inside, other=0)
        gains = tl.load(numbers + column, mask=mine, other=0.0).to(tl.int64)
        limit = tl.load(numbers + count + column, mask=mine, other=float("-inf"))
        pick = program * 0

    for turn in range(begin, last):
        if PROGRAMS > 1:
            if turn > first:
                grid_barrier(arrived + picture, turn, programs)
            pick = _agreed(offers, turn - 1, programs, FILL, PROGRAMS)
        else:
            # All threads have read the changes that are now replaced.
            tl.debug_barrier()
        tl.store(picks + turn - 1, pick.to(tl.int64), mask=program == 0)
        row = tl.load(cosine + pick.to(tl.int64) * count + token, mask=inside, other=0)
        rises = (row > covered).to(tl.int32)
        place = tl.cumsum(rises, axis=0) - 1
        tl.store(changed + place, token, mask=rises != 0)
        tl.store(changed + count + place, covered, mask=rises != 0)
        tl.store(changed + 2 * count + place, row, mask=rises != 0)
        covered = tl.maximum(covered, row)
        gains -= _raised(cosine, changed, count, tl.sum(rises, axis=0), column, mine, WIDE, COLUMNS, ROWS)
        limit = tl.where(column == pick, float("-inf"), limit)
        pick = _offer(
            offers, turn, gains, weights, saliencies, limit, column, program, programs, STEPS, ADD, FILL, PROGRAMS
        )
    if last <= keep:
        tl.store(changed + 3 * count + token, covered, mask=inside)
        tl.store(numbers + column, gains.to(tl.float64), mask=mine)
        tl.store(numbers + count + column, limit, mask=mine)


@triton.jit  # type: ignore[untyped-decorator]
def _raised(  # type: ignore[no-untyped-def]
    cosine,
    changed,
    count,
    total,
    column,
    mine,
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """What each column adds to the coverage of the first `total` tokens listed, between their old and new one."""
    tl.debug_barrier()
    raised = tl.zeros([ROWS, COLUMNS], dtype=tl.int64 if WIDE else tl.int32)
    for start in range(0, total, ROWS):
        listed = start + tl.arange(0, ROWS)
        real = listed < total
        token = tl.load(changed + listed, mask=real, other=0)
        old = tl.load(changed + count + listed, mask=real, other=0)[:, None]
        new = tl.load(changed + 2 * count + listed, mask=real, other=0)[:, None]
        cells = cosine + token.to(tl.int64)[:, None] * count + column[None, :]
        value = tl.load(cells, mask=real[:, None] & mine[None, :], other=0)
        raised += tl.minimum(tl.maximum(value, old), new) - old
    return tl.sum(raised.to(tl.int64), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _offer(  # type: ignore[no-untyped-def]
    offers,
    turn,
    gains,
    weights,
    saliencies,
    limit,
    column,
    program,
    programs,
    STEPS: tl.constexpr,
    ADD: tl.constexpr,
    FILL: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """The best of the program's own candidates, which is the pick if there is no other program."""
    gain = gains.to(tl.float64) * (1 / STEPS)
    score = tl.minimum(gain + weights if ADD else gain * weights, limit)
    best = tl.max(score, axis=0)
    place = tl.min(tl.where(score == best, column, _NOWHERE), axis=0)
    level = tl.minimum(saliencies, limit)
    highest = tl.max(level, axis=0)
    instead = tl.min(tl.where(level == highest, column, _NOWHERE), axis=0)
    if PROGRAMS > 1:
        slot = offers + turn % 2 * 4 * programs + program
        tl.store(slot, best)
        tl.store(slot + programs, place.to(tl.float64))
        tl.store(slot + 2 * programs, highest)
        tl.store(slot + 3 * programs, instead.to(tl.float64))
    if FILL:
        place = tl.where(best > 0, place, instead)
    return place


@triton.jit  # type: ignore[untyped-decorator]
def _agreed(offers, turn, programs, FILL: tl.constexpr, PROGRAMS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The pick that all programs' offers of a turn lead to."""
    slot = tl.arange(0, PROGRAMS)
    known = slot < programs
    offers += turn % 2 * 4 * programs + slot
    score = tl.load(offers, mask=known, other=float("-inf"), cache_modifier=".cg")
    place = tl.load(offers + programs, mask=known, other=0.0, cache_modifier=".cg").to(tl.int32)
    best = tl.max(score, axis=0)
    pick = tl.min(tl.where(known & (score == best), place, _NOWHERE), axis=0)
    if FILL:
        level = tl.load(offers + 2 * programs, mask=known, other=float("-inf"), cache_modifier=".cg")
        place = tl.load(offers + 3 * programs, mask=known, other=0.0, cache_modifier=".cg").to(tl.int32)
        highest = tl.max(level, axis=0)
        instead = tl.min(tl.where(known & (level == highest), place, _NOWHERE), axis=0)
        pick = tl.where(best > 0, pick, instead)
    return pick
