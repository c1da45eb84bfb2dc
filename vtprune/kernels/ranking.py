"""Places in a sorted order by counting who comes before: no sort, no ties left open."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def falling_ranks(values, place, count, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the values at some places of a list stand when it is sorted by falling value, the lower place first.

    What is not a number comes before all numbers, as `torch.sort` has it.

    Args:
        values: Pointer to the list.
        place: Places asked for, a block; those from `count` on get a rank of no meaning.
        count: Length of the list.
        COLUMNS: Values compared at once.
    """
    value = tl.load(values + place, mask=place < count, other=0.0)
    value = tl.where(value == value, value, float("inf"))
    rank = tl.zeros(place.shape, dtype=tl.int32)
    for first in range(0, count, COLUMNS):
        other = first + tl.arange(0, COLUMNS)
        rival = tl.load(values + other, mask=other < count, other=float("-inf"))
        rival = tl.where(rival == rival, rival, float("inf"))
        ahead = (rival[None, :] > value[:, None]) | (
            (rival[None, :] == value[:, None]) & (other[None, :] < place[:, None])
        )
        rank += tl.sum((ahead & (other < count)[None, :]).to(tl.int32), axis=1)
    return rank
