"""Thinning a ranked list by rounds, all of them in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vtprune.kernels.grid import grid_barrier, programs_at_once, together

# Up to so many members one program is as fast as several, which wait for each other twice a round.
_ALONE = 1024
_SLICE = 128
_MOST_PROGRAMS = 32


@triton.jit  # type: ignore[untyped-decorator]
def _thin_kernel(  # type: ignore[no-untyped-def]
    cosine,
    lists,
    closest,
    result,
    counters,
    members,
    keep,
    per_round,
    programs,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLACES: tl.constexpr,
    CACHE: tl.constexpr,
):
    part = tl.program_id(0)
    picture = tl.program_id(1).to(tl.int64)
    cosine += picture * members * members
    lists += picture * 2 * members
    closest += picture * members
    counters += picture
    width = tl.cdiv(members, programs)
    start = part * width
    stop = tl.minimum(start + width, members)
    for first in range(start, stop, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        tl.store(lists + column, column, mask=column < stop)
    turn = 1
    grid_barrier(counters, turn, programs)
    left = members
    now = 0
    while left > keep:
        odd = left // 2
        even = left - odd
        dropped = tl.minimum(tl.minimum(per_round, left - keep), even)
        before = lists + now * members
        after = lists + (1 - now) * members
        # The cosine of every token, whatever its place, to the nearest at an odd one: whole rows, read in line.
        for first in range(start, stop, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            best = tl.full((ROWS, COLUMNS), float("-inf"), dtype=cosine.dtype.element_ty)
            for row in range(0, odd, ROWS):
                place = row + tl.arange(0, ROWS)
                token = tl.load(before + 2 * place + 1, mask=place < odd, other=0, cache_modifier=CACHE)
                inside = (place < odd)[:, None] & (column < stop)[None, :]
                value = tl.load(cosine + token[:, None] * members + column[None, :], mask=inside, other=float("-inf"))
                # What is not a number counts as redundant, and goes first.
                best = tl.maximum(best, tl.where(value == value, value, float("inf")))
            tl.store(closest + column, tl.max(best, axis=0), mask=column < stop)
        grid_barrier(counters, turn + 1, programs)
        share = tl.cdiv(even, programs)
        last = tl.minimum((part + 1) * share, even)
        for first in range(part * share, last, PLACES):
            place = first + tl.arange(0, PLACES)
            token = tl.load(before + 2 * place, mask=place < last, other=0, cache_modifier=CACHE)
            value = tl.load(closest + token, mask=place < last, other=0.0, cache_modifier=CACHE)
            rank = tl.zeros((PLACES,), dtype=tl.int32)
            for begin in range(0, even, COLUMNS):
                other = begin + tl.arange(0, COLUMNS)
                its = tl.load(before + 2 * other, mask=other < even, other=0, cache_modifier=CACHE)
                rival = tl.load(closest + its, mask=other < even, other=float("-inf"), cache_modifier=CACHE)
                ahead = (rival[None, :] > value[:, None]) | (
                    (rival[None, :] == value[:, None]) & (other[None, :] < place[:, None])
                )
                rank += tl.sum((ahead & (other < even)[None, :]).to(tl.int32), axis=1)
            tl.store(after + rank - dropped, token, mask=(place < last) & (rank >= dropped))
        share = tl.cdiv(odd, programs)
        last = tl.minimum((part + 1) * share, odd)
        for first in range(part * share, last, COLUMNS):
            place = first + tl.arange(0, COLUMNS)
            token = tl.load(before + 2 * place + 1, mask=place < last, other=0, cache_modifier=CACHE)
            tl.store(after + even - dropped + place, token, mask=place < last)
        turn += 2
        grid_barrier(counters, turn, programs)
        left -= dropped
        now = 1 - now
    share = tl.cdiv(keep, programs)
    last = tl.minimum((part + 1) * share, keep)
    for first in range(part * share, last, COLUMNS):
        place = first + tl.arange(0, COLUMNS)
        token = tl.load(lists + now * members + place, mask=place < last, other=0, cache_modifier=CACHE)
        tl.store(result + picture * keep + place, token.to(tl.int64), mask=place < last)


def thin(cosine: torch.Tensor, keep: int, per_round: int) -> torch.Tensor:
    """The rounds of `vtprune.ops.residual.drop_redundant` on given cosines.

    Args:
        cosine: Cosines of the members in ranked order, `(batch, members, members)`, symmetric, float32 or float64.
        keep: Members to keep, 1 to `members`.
        per_round: Members dropped each round.

    Returns:
        Positions in the given list, `(batch, keep)` int64, in the order of the last round.
    """
    cosine = cosine.contiguous()
    batch, members, _ = cosine.shape
    device = cosine.device
    most = programs_at_once(cosine)
    programs = 1 if members <= _ALONE else min(triton.cdiv(members, _SLICE), _MOST_PROGRAMS, most)
    result = torch.empty((batch, keep), dtype=torch.int64, device=device)
    lists = torch.empty((batch, 2, members), dtype=torch.int32, device=device)
    closest = torch.empty((batch, members), dtype=cosine.dtype, device=device)
    counters = torch.zeros(batch, dtype=torch.int32, device=device)
    # Programs that wait for each other must all run at once; those of a picture alone need not.
    pictures = batch if programs == 1 else max(1, most // programs)
    with torch.cuda.device_of(cosine):
        for first in range(0, batch, max(1, pictures)):
            some = slice(first, first + pictures)
            _thin_kernel[(programs, len(counters[some]))](
                cosine[some],
                lists[some],
                closest[some],
                result[some],
                counters[some],
                members,
                keep,
                per_round,
                programs,
                ROWS=64 if cosine.dtype == torch.float32 else 32,
                COLUMNS=256 if programs == 1 else 128,
                PLACES=32,
                CACHE="" if programs == 1 else ".cg",
                num_warps=16 if programs == 1 else 8,
                **({} if programs == 1 else together(cosine)),
            )
    return result
