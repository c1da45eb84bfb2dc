"""Plain loop of the picks over windows."""

from __future__ import annotations

from collections.abc import Sequence


def spread_over_windows(scores: Sequence[float], windows: Sequence[int], keep: int) -> list[int]:
    """Rounds over the windows, in each of which every window gives its best remaining token, until `keep` are found."""

    def falling(tokens: list[int]) -> list[int]:
        return sorted(tokens, key=lambda token: (-scores[token], token))

    ranked = [falling([token for token, its in enumerate(windows) if its == window]) for window in set(windows)]
    picks: list[int] = []
    while len(picks) < keep:
        picks += falling([window.pop(0) for window in ranked if window])
    return picks[:keep]
