"""Token counts that shrink by one factor from stage to stage: plain numbers, no tensors."""

from __future__ import annotations

from vtprune.ops.checks import check_keep


def geometric_counts(tokens: int, keep: int, steps: int) -> tuple[int, ...]:
    """Tokens left after each of `steps` removals that all keep one same share, rounded down; the last is `keep`.

    Computed in whole numbers, so that a count that comes out even is not missed by rounding.

    Args:
        tokens: Tokens at the start, 1 or more.
        keep: Tokens at the end, 1 or more; from `tokens` on nothing is removed.
        steps: Removals, 1 or more.

    Raises:
        ValueError: A number out of range.

    Example:
        >>> geometric_counts(576, 72, 3)
        (288, 144, 72)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    keep = min(keep, tokens)
    check_keep(keep, tokens)
    counts = []
    for step in range(1, steps + 1):
        # count <= tokens * (keep / tokens) ** (step / steps), both sides to the power of `steps`; the search
        # starts below what rounding can have made of it.
        bound = tokens ** (steps - step) * keep**step
        count = int(tokens * (keep / tokens) ** (step / steps)) - 1
        while (count + 1) ** steps <= bound:
            count += 1
        counts.append(count)
    return tuple(counts)
