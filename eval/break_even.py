"""From how many visual tokens on pruning pays on a machine, worked out from measured times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vtprune.budget import Budget

_REACH = 4
"""How far beyond the measured number of tokens the answer may lie, as a factor."""
_STEPS = 512


@dataclass(frozen=True)
class Curve:
    """The unwrapped language model's prefill by its number of visual tokens, in milliseconds.

    Args:
        points: Tokens and times, ascending in tokens.

    Example:
        >>> Curve.of({0: 10.0, 100: 10.0, 200: 20.0}).at(150)
        15.0
    """

    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, times: Mapping[int, float]) -> Curve:
        """From measured times; a longer prompt that seems faster is taken to be as fast, that being noise."""
        points, highest = [], 0.0
        for tokens, time in sorted(times.items()):
            highest = max(highest, time)
            points.append((float(tokens), highest))
        return cls(tuple(points))

    @property
    def last(self) -> float:
        """The most tokens that were measured."""
        return self.points[-1][0]

    def at(self, tokens: float) -> float:
        """Between two points and beyond the last one along a straight line; before the first one its time."""
        if tokens <= self.points[0][0] or len(self.points) == 1:
            return self.points[0][1]
        pairs = list(zip(self.points, self.points[1:], strict=False))
        (left, low), (right, high) = next((pair for pair in pairs if tokens <= pair[1][0]), pairs[-1])
        return low + (high - low) * (tokens - left) / (right - left)


@dataclass(frozen=True)
class Pruning:
    """What a method was measured to do to a prompt, taken to other numbers of visual tokens.

    Args:
        tokens: Visual tokens of a prompt when it was measured.
        visual: Those left at each decoder layer.
        fixed: Whether the budget is a number of tokens, rather than a share of them.
        overhead: Milliseconds that it took longer than the language model on the tokens that are left: selection,
            gathering, hooks, and what the vision side took longer.
    """

    tokens: int
    visual: tuple[int, ...]
    fixed: bool
    overhead: float

    def left(self, tokens: float) -> list[float]:
        """Visual tokens at each layer of a prompt that has `tokens` of them."""
        keep, share = min(self.visual), tokens / self.tokens
        if not self.fixed:
            return [count * share for count in self.visual]
        if tokens <= keep:
            return [tokens] * len(self.visual)
        if self.tokens == keep:
            return [keep] * len(self.visual)
        # What is left in between by methods of several stages moves with the prompt.
        return [keep + (count - keep) * (tokens - keep) / (self.tokens - keep) for count in self.visual]

    def time(self, curve: Curve, tokens: float) -> float:
        """Milliseconds of selection and prefill; a selection among more tokens takes longer in proportion."""
        return ideal_time(curve, self.left(tokens)) + self.overhead * max(1.0, tokens / self.tokens)

    def pays_from(self, curve: Curve) -> int | None:
        """The fewest visual tokens from which on it is faster than to prefill all; `None` if it never is."""
        reach = _REACH * curve.last
        found = None
        for step in range(_STEPS, 0, -1):
            tokens = reach * step / _STEPS
            if self.time(curve, tokens) >= curve.at(tokens):
                break
            found = tokens
        return None if found is None else max(1, round(found))


def ideal_time(curve: Curve, visual: Sequence[float]) -> float:
    """The language model's time where each layer sees another number of visual tokens: the mean of its times."""
    return sum(map(curve.at, visual)) / len(visual)


def pruning_of(record: Mapping[str, Any], curve: Curve, mode: str) -> Pruning | None:
    """Reads a measured row; `None` where that mode was not measured."""
    measured = record["measured"].get(mode, {})
    if "pruned" not in measured or "full" not in measured:
        return None
    visual = tuple(max(0, length - record["text_tokens"]) for length in record["lengths"])
    full, pruned, ideal = (measured.get(name) for name in ("full", "pruned", "ideal"))
    # The ideal was timed in the same rounds, the curve earlier.
    language = ideal_time(curve, visual) if ideal is None else ideal["prefill"]["median"]
    overhead = pruned["prefill"]["median"] - language
    if full["vision"] is not None and pruned["vision"] is not None and pruned["vision"]["low"] > full["vision"]["high"]:
        overhead += pruned["vision"]["median"] - full["vision"]["median"]
    budget = Budget(**record["budget"])
    fixed = budget.tokens is not None or budget.average is not None
    return Pruning(record["tokens"], visual, fixed, max(0.0, overhead))


def reach(curve: Curve) -> int:
    """Up to how many tokens an answer of `Pruning.pays_from` may lie."""
    return round(_REACH * curve.last)
