"""Token counts between those that a paper names: plain numbers, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from vtprune.ops.checks import check_keep


def interpolated_schedule(published: Sequence[tuple[int, ...]], whole: int, tokens: int, keep: int) -> tuple[int, ...]:
    """Tokens left after each stage, between the lists of a paper and in proportion for pictures of other sizes.

    A list is found by its last count and met exactly. Between two lists counts run linearly; below the smallest they
    shrink with it to nothing, above the largest they grow until everything is kept.

    Args:
        published: Tokens after each stage, lists of one length whose numbers never grow.
        whole: Tokens of the pictures for which these lists hold.
        tokens: Tokens of the picture at hand.
        keep: What the last stage leaves, 1 to `tokens`.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> published = [(300, 200, 110)]
        >>> interpolated_schedule(published, 576, 576, 110), interpolated_schedule(published, 576, 72, 7)
        ((300, 200, 110), (19, 13, 7))
    """
    check_keep(keep, tokens)
    stages = len(published[0])
    lists = [(0,) * stages, *sorted(published, key=lambda counts: counts[-1]), (whole,) * stages]
    place = Fraction(keep * whole, tokens)
    above = next(number for number, counts in enumerate(lists) if counts[-1] >= place)
    low, high = lists[above - 1], lists[above]
    share = (place - low[-1]) / (high[-1] - low[-1])
    return tuple(round((less + share * (more - less)) * tokens / whole) for less, more in zip(low, high, strict=True))
