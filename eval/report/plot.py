"""Plots as SVG text: a score against what it costs, and how few tokens an oracle needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from vtprune.eval.analysis import Entry, Section
from vtprune.eval.grid import BASELINES
from vtprune.eval.report import words
from vtprune.eval.token_need import Point, TokenNeed

WIDTH, HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 14, 46
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7a3fbf", "#c2185b", "#5b7f00", "#8c564b")
_GREYS = {name: f"var(--baseline-{place})" for place, name in enumerate(BASELINES)}
_DASHES = ("", "6 3", "2 2", "8 3 2 3")
_SMALL = (190, 120)
_MARGIN = 1.06


@dataclass(frozen=True)
class Axis:
    """What a score is plotted against.

    Args:
        key: Short name, for links.
        title: What stands below the axis.
        value: Cost of an entry, `None` if it is unknown.
    """

    key: str
    title: str
    value: Callable[[Entry], float | None]


AXES = (
    Axis("tokens", "visual tokens per image, true mean over the decoder layers", lambda entry: entry.average_tokens),
    Axis("flops", "prefill GFLOPs of the language model per prompt", lambda entry: _scaled(entry.prefill_flops, 1e-9)),
    Axis("time", "measured prefill per prompt in ms, selection included", lambda e: _scaled(e.prefill_seconds, 1e3)),
)


@dataclass(frozen=True)
class Curve:
    """How a method looks in plots and legends."""

    label: str
    color: str
    dash: str
    number: int


def curves(section: Section) -> list[Curve]:
    """A look for each method; baselines are grey."""
    found, place = [], 0
    for number, label in enumerate(section.labels):
        pruner = next(entry.pruner for entry in section.pruned if entry.label == label)
        if pruner in _GREYS:
            found.append(Curve(label, _GREYS[pruner], _DASHES[list(_GREYS).index(pruner)], number))
        else:
            dash = _DASHES[place // len(_COLORS) % len(_DASHES)]
            found.append(Curve(label, _COLORS[place % len(_COLORS)], dash, number))
            place += 1
    return found


def pareto(section: Section, axis: Axis) -> str | None:
    """The score of each entry against its cost with 95 % intervals; the line behind joins what nothing beats.

    Returns:
        `None` if no cost is known.
    """
    points = [(entry, cost) for entry in section.pruned if (cost := axis.value(entry)) is not None]
    if not points:
        return None
    factor = 100 if section.percent else 1
    full = section.full
    shown = [entry for entry, _ in points] + ([full] if full is not None else [])
    ends = [end for entry in shown for end in (entry.value, entry.estimate.low, entry.estimate.high) if end is not None]
    frame = _Frame([cost for _, cost in points], _ticks(factor * min(ends), factor * max(ends)), (WIDTH, HEIGHT))
    title = f"{section.metric} of {section.model_name} on {section.task} against {axis.title}"
    parts = [_open(title, frame.size), frame.grid(), frame.labels(axis.title)]
    if full is not None:
        parts.append(_level(frame, full, factor))
    front = _front([(cost, factor * entry.value) for entry, cost in points])
    if len(front) > 1:
        parts.append(f'<path class="front" d="{frame.steps(front)}"/>')
    for curve in curves(section):
        own = sorted((pair for pair in points if pair[0].label == curve.label), key=lambda pair: pair[1])
        parts.append(_curve(frame, curve, own, factor))
    return "".join([*parts, "</svg>"])


def need_plot(need: TokenNeed) -> str:
    """The oracle, dashed, above fixed budgets; tokens to the right on a logarithmic scale."""
    tokens = [point.tokens for point in (*need.fixed, *need.curve)]
    values = [100 * point.value for point in (*need.fixed, *need.curve)]
    frame = _Frame(tokens, _ticks(min(values), max(values), most=3), _SMALL, small=True)

    def line(points: Iterable[Point], kind: str) -> str:
        places = [(frame.x(point.tokens), frame.y(100 * point.value)) for point in points]
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in places)
        return f'<g class="{kind}"><path d="{_path(places)}"/>{dots}</g>'

    title = f"{need.label}: right answers of an oracle and of fixed budgets, against visual tokens"
    body = [frame.grid(), frame.labels(""), line(need.fixed, "fixed"), line(need.curve, "oracle")]
    return "".join([_open(title, frame.size), *body, "</svg>"])


class _Frame:
    """The place of numbers in a picture: a logarithmic axis to the right, a plain one upwards.

    A cost of zero stands at the left edge, half the smallest other cost away from it.
    """

    def __init__(
        self, costs: Sequence[float], up: Sequence[float], size: tuple[int, int], *, small: bool = False
    ) -> None:
        above = [cost for cost in costs if cost > 0] or [1.0]
        self.low, self.high = min(above) / _MARGIN, max(above) * _MARGIN
        self.across, self.up = _log_ticks(self.low, self.high), up
        if len(above) < len(costs):
            self.low /= 2
            self.across = [0.0, *self.across]
        self.size, self.small = size, small
        margins = (34, 6, 8, 18) if small else (_LEFT, _RIGHT, _TOP, _BOTTOM)
        self.left, self.right = margins[0], size[0] - margins[1]
        self.top, self.bottom = margins[2], size[1] - margins[3]

    def x(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else 0.0
        return self.left + (self.right - self.left) * share

    def y(self, value: float) -> float:
        low, high = self.up[0], self.up[-1]
        return self.bottom - (self.bottom - self.top) * (value - low) / (high - low)

    def grid(self) -> str:
        across = "".join(f"M{self.x(tick):.1f} {self.top}V{self.bottom}" for tick in self.across)
        up = "".join(f"M{self.left} {self.y(tick):.1f}H{self.right}" for tick in self.up)
        return f'<path class="grid" d="{across}{up}"/>'

    def labels(self, title: str) -> str:
        every = -(-len(self.across) // (4 if self.small else 10))
        across = "".join(
            f'<text x="{self.x(tick):.1f}" y="{self.bottom + (12 if self.small else 17)}">{tick:g}</text>'
            for tick in self.across[::every]
        )
        up = "".join(
            f'<text class="up" x="{self.left - 5}" y="{self.y(tick) + 4:.1f}">{tick:g}</text>' for tick in self.up
        )
        name = f'<text x="{(self.left + self.right) / 2:.0f}" y="{self.size[1] - 8}">{escape(title)}</text>'
        return f'<g class="labels">{across}{up}{name if title else ""}</g>'

    def steps(self, points: Sequence[tuple[float, float]]) -> str:
        """Level from each point to the next, where it rises."""
        first = f"M{self.x(points[0][0]):.1f} {self.y(points[0][1]):.1f}"
        return first + "".join(f"H{self.x(x):.1f}V{self.y(y):.1f}" for x, y in points[1:])


def _open(title: str, size: tuple[int, int]) -> str:
    return (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    )


def _level(frame: _Frame, full: Entry, factor: int) -> str:
    height = frame.y(factor * full.value)
    low, high = full.estimate.low, full.estimate.high
    band = ""
    if low is not None and high is not None:
        top, bottom = frame.y(factor * high), frame.y(factor * low)
        band = f'<rect x="{frame.left}" y="{top:.1f}" width="{frame.right - frame.left}" height="{bottom - top:.1f}"/>'
    told = f"full model, {full.average_tokens:.0f} tokens: {words.score(full.estimate, percent=factor == 100)}"
    return (
        f'<g class="full"><title>{escape(told)}</title>{band}<path d="M{frame.left} {height:.1f}H{frame.right}"/></g>'
    )


def _curve(frame: _Frame, curve: Curve, points: Sequence[tuple[Entry, float]], factor: int) -> str:
    places = [(frame.x(cost), frame.y(factor * entry.value)) for entry, cost in points]
    bars, dots = [], []
    for (entry, cost), (x, y) in zip(points, places, strict=True):
        low, high = entry.estimate.low, entry.estimate.high
        if low is not None and high is not None:
            bars.append(f"M{x:.1f} {frame.y(factor * low):.1f}V{frame.y(factor * high):.1f}")
        told = f"{entry.name}: {words.score(entry.estimate, percent=factor == 100)} at {cost:.4g}"
        dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(told)}</title></circle>')
    dash = f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
    return (
        f'<g class="curve" data-curve="{curve.number}" style="--color:{curve.color}">'
        f'<path class="bars" d="{"".join(bars)}"/><path class="line" d="{_path(places)}"{dash}/>{"".join(dots)}</g>'
    )


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) if places else ""


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both cost and score."""
    found: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or value > found[-1][1]:
            found.append((cost, value))
    return found


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two: powers of two, or with steps between where they are close together."""
    powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
    ticks = [2.0**power for power in powers if low <= 2.0**power <= high]
    if len(ticks) > 1:
        return ticks
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [step * 10.0**power for power in tens for step in range(1, 10)]
    ticks = [tick for tick in every if low <= tick <= high]
    return ticks if len(ticks) > 1 else [float(f"{low:.3g}"), float(f"{high:.3g}")]


def _ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round numbers that enclose the values."""
    width = max(high - low, 1e-9 * max(1.0, abs(high)))
    step = 10.0 ** math.floor(math.log10(width / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if step * factor * most >= width)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * tick, 10) for tick in range(first, max(last, first + 1) + 1)]


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value
