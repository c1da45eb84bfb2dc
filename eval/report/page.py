"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vtprune.eval.analysis import Section
from vtprune.eval.intervals import Estimate
from vtprune.eval.report import sheet, words
from vtprune.eval.report.content import Content
from vtprune.eval.report.examples import Example
from vtprune.eval.report.plot import AXES, Axis, curves, need_plot, pareto
from vtprune.eval.report.rows import Row
from vtprune.eval.retained import Retained, task_name
from vtprune.eval.token_need import TokenNeed


def to_html(content: Content, examples: Sequence[Example] = (), reasons: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        content: What it says.
        examples: Questions with pictures.
        reasons: Why there are no pictures of some tasks.
    """
    own = files("vtprune.eval.report")
    environment = Environment(
        loader=PackageLoader("vtprune.eval.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        content=content,
        examples=examples,
        reasons=reasons,
        style=Markup(own.joinpath("style.css").read_text(encoding="utf-8")),
        script=Markup(own.joinpath("script.js").read_text(encoding="utf-8")),
        words=words,
        models=[Path(str(next(iter(rows[0].entries.values())).record["model"])).name for rows in content.retained],
        retained_tasks=_tasks,
        task_name=task_name,
        filled=sheet.filled,
        verdict=_verdict,
        heat=_heat,
        drawn=_drawn,
        curves=curves,
        need_plot=_need_plot,
        need_columns=sheet.NEED_COLUMNS,
        need_meaning=sheet.NEED_MEANING,
        need_cells=sheet.need_cells,
        match_columns=sheet.MATCH_COLUMNS,
        match_cells=sheet.match_cells,
    )


def _tasks(rows: Sequence[Retained]) -> list[str]:
    return list(dict.fromkeys(task for row in rows for task in row.shares))


def _verdict(column: sheet.Column, row: Row) -> str:
    """Colours differences that chance does not explain."""
    found = None if column.compares is None else column.compares(row)
    if found is None or not found.is_significant:
        return ""
    return "better" if found.mean > 0 else "worse"


def _heat(found: Estimate | None) -> float:
    return 0.0 if found is None else round(max(0.0, min(1.0, found.value)), 3)


def _drawn(section: Section) -> list[tuple[Axis, Markup]]:
    # Everything that is not a number is escaped where it is drawn.
    return [(axis, Markup(svg)) for axis in AXES if (svg := pareto(section, axis)) is not None]


def _need_plot(need: TokenNeed) -> Markup:
    return Markup(need_plot(need))
