"""Plots for the browser: agreement against the number of tokens, and the tokens that each layer sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

_WIDTH, _HEIGHT = 640, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 34, 52


@dataclass(frozen=True)
class Point:
    """One budget of a sweep.

    Args:
        tokens: Visual tokens at the end.
        agreement: Log-probability of the full model's answer.
        answer: What the pruned model says.
        same: Whether that is what the full model says.
    """

    tokens: int
    agreement: float
    answer: str
    same: bool


def budgets(tokens: int, points: int = 10) -> list[int]:
    """Budgets for a sweep, falling from all tokens to a few by about the same factor.

    Example:
        >>> budgets(576, 6)
        [576, 231, 93, 37, 15, 6]
    """
    if tokens <= points:
        return list(range(tokens, 0, -1))
    lowest = max(1, tokens // 96)
    steps = [round(tokens * (lowest / tokens) ** (step / (points - 1))) for step in range(points)]
    return sorted(set(steps), reverse=True)


def flips(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Neighbouring points, from many tokens to few, between which the answer changes."""
    ordered = sorted(points, key=lambda point: -point.tokens)
    return [(more, fewer) for more, fewer in pairwise(ordered) if more.answer != fewer.answer]


def flip_text(points: Sequence[Point]) -> str:
    """Where the answer changes, in words."""
    found = flips(points)
    if not points:
        return ""
    if not found:
        return "The answer never changes." if len(points) > 1 else ""
    first = found[0]
    text = (
        f"The answer changes between {first[0].tokens} and {first[1].tokens} tokens: "
        f"“{first[0].answer}” becomes “{first[1].answer}”."
    )
    return text + (f" It changes {len(found)} times in all." if len(found) > 1 else "")


def sweep_svg(points: Sequence[Point], most: int, chosen: int | None = None) -> str:
    """Agreement against tokens on a logarithmic axis; each point can be clicked or reached by the keyboard.

    Args:
        points: Those measured so far.
        most: Tokens of the unpruned prompt, the right end of the axis.
        chosen: Index of the point whose overlay is shown.
    """
    floor = _floor(points)
    fewest = min((point.tokens for point in points), default=1)

    def x(tokens: float) -> float:
        low, high = math.log(max(1, fewest)), math.log(max(most, fewest + 1))
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log(max(1, tokens)) - low) / (high - low)

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * max(value, floor) / floor

    parts = [
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" '
        'aria-label="Log-probability of the full model\'s answer against visual tokens">',
        f'<text class="axis" x="{_LEFT}" y="18">log-probability of the answer that all tokens give</text>',
        f'<text class="axis" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">visual tokens that stay</text>',
    ]
    for value in _ticks(floor):
        parts.append(f'<path class="tick" d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text class="number" x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{_number(value)}</text>'
        )
    for tokens in sorted({point.tokens for point in points}):
        parts.append(
            f'<text class="number" x="{x(tokens):.1f}" y="{_HEIGHT - _BOTTOM + 20}" '
            f'text-anchor="middle">{tokens}</text>'
        )
    ordered = sorted(points, key=lambda point: point.tokens)
    for more, fewer in flips(points):
        middle = (x(more.tokens) + x(fewer.tokens)) / 2
        parts.append(f'<path class="flip" d="M{middle:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
    line = " ".join(f"{x(point.tokens):.1f},{y(point.agreement):.1f}" for point in ordered)
    parts.append(f'<polyline class="line" points="{line}"/>')
    for number, point in enumerate(points):
        kind = "same" if point.same else "other"
        said = escape(f"{point.tokens} tokens: {point.answer}, log-probability {point.agreement:.3g}", quote=True)
        mark = f'cx="{x(point.tokens):.1f}" cy="{y(point.agreement):.1f}"'
        pressed = "true" if number == chosen else "false"
        parts.append(
            f'<g class="point {kind}" role="button" tabindex="0" aria-pressed="{pressed}" aria-label="{said}" '
            f'data-point="{number}"><circle class="halo" {mark} r="14"/><circle class="dot" {mark} r="7"/>'
            f"<title>{said}</title></g>"
        )
    return "".join(parts) + "</svg>"


def layers_svg(tokens_per_layer: Sequence[int], tokens: int, entered: int | None = None) -> str:
    """A bar for each decoder layer, as high as the visual tokens that it processed.

    Args:
        tokens_per_layer: Visual tokens of each layer.
        tokens: Those of the unpruned prompt, the height of a full bar.
        entered: The layer to mark.
    """
    height, width = 110, 640
    step = width / max(1, len(tokens_per_layer))
    said = ", ".join(map(str, tokens_per_layer))
    parts = [
        f'<svg class="plot layers" viewBox="0 0 {width} {height + 22}" role="img" '
        f'aria-label="Visual tokens in each decoder layer: {said}">'
    ]
    for layer, count in enumerate(tokens_per_layer):
        share = count / max(1, tokens)
        left, top = layer * step + 2, height * (1 - share)
        marked = " marked" if layer == entered else ""
        parts.append(f'<rect class="room" x="{left:.1f}" y="0" width="{step - 4:.1f}" height="{height}"/>')
        parts.append(
            f'<rect class="bar{marked}" x="{left:.1f}" y="{top:.1f}" width="{step - 4:.1f}" '
            f'height="{height * share:.1f}"><title>layer {layer}: {count} tokens</title></rect>'
        )
        parts.append(
            f'<text class="number" x="{left + step / 2 - 2:.1f}" y="{height + 17}" text-anchor="middle">{layer}</text>'
        )
    return "".join(parts) + "</svg>"


def _ticks(floor: float) -> list[float]:
    """Round numbers from 0 down to the lower end of the axis, three to six of them."""
    size = 10.0 ** math.floor(math.log10(-floor))
    step = next(size * factor for factor in (0.2, 0.5, 1, 2) if -floor / (size * factor) < 6)
    return [-step * number for number in range(int(-floor / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.3g}" if value else "0"


def _floor(points: Sequence[Point]) -> float:
    """The lower end of the axis: a little below the worst point, so that small differences show."""
    worst = min((point.agreement for point in points), default=-1.0)
    return min(1.15 * worst, -0.1)
