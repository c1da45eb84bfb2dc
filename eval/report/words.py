"""Numbers as people read them, the same in every kind of document."""

from __future__ import annotations

from vtprune.eval.intervals import Estimate
from vtprune.eval.paired import Difference

NOTHING = "-"


def number(value: float | None, digits: int = 1) -> str:
    """A number or a dash."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def score(estimate: Estimate | None, *, percent: bool) -> str:
    """A value with its interval, as in `85.7 [79.0, 90.5]`."""
    if estimate is None:
        return NOTHING
    factor = 100 if percent else 1
    value = f"{factor * estimate.value:.1f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{factor * estimate.low:.1f}, {factor * estimate.high:.1f}]"


def difference(found: Difference | None, *, percent: bool) -> str:
    """A difference with its interval, as in `-4.3 [-9.1, 0.4]`."""
    if found is None:
        return NOTHING
    factor = 100 if percent else 1
    value = f"{factor * found.mean:+.1f}"
    if found.low is None or found.high is None:
        return value
    return f"{value} [{factor * found.low:.1f}, {factor * found.high:.1f}]"


def chance(p: float | None) -> str:
    """A p value.

    Example:
        >>> chance(0.00002), chance(0.0312), chance(1.0)
        ('<0.001', '0.031', '1.000')
    """
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def share(value: float | None) -> str:
    """A share in percent."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def milliseconds(seconds: float | None) -> str:
    """A time."""
    return NOTHING if seconds is None else f"{1e3 * seconds:.1f}"
