"""What is on screen as the query of a link, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from vtprune.budget import Budget
from vtprune.demo.options import OptionError, from_text
from vtprune.eval.grid import parse_positions
from vtprune.registry import list_pruners

LONGEST = 2000
"""Characters of a question, so that links stay links."""


TABS = ("look", "compare", "sweep", "layers")


@dataclass(frozen=True)
class LinkState:
    """All but the picture of an upload, which no link can carry.

    Args:
        method: As `vtprune run --pruner` takes it.
        budget: As `vtprune run --budget` takes it.
        positions: `"keep"`, `"pack"` or empty for the method's own.
        question: What is asked.
        example: Number of the example picture; `None` for an upload.
        tab: Which one is open, one of `TABS`.
        compare: Methods to compare, with commas between them.
    """

    method: str = "divprune"
    budget: str = "64"
    positions: str = ""
    question: str = ""
    example: int | None = 0
    tab: str = TABS[0]
    compare: str = ""

    def to_query(self) -> str:
        """Everything that is not empty, as `name=value&...`.

        Example:
            >>> LinkState(method="fastv(layer=3)", question="what color ?").to_query()
            'method=fastv%28layer%3D3%29&budget=64&question=what+color+%3F&example=0'
        """
        values = {
            "method": self.method,
            "budget": self.budget,
            "positions": self.positions,
            "question": self.question[:LONGEST],
            "example": "" if self.example is None else str(self.example),
            "tab": "" if self.tab == TABS[0] else self.tab,
            "compare": self.compare,
        }
        return urlencode({name: value for name, value in values.items() if value})

    @classmethod
    def from_query(cls, query: Mapping[str, str], examples: int) -> tuple[LinkState, list[str]]:
        """The state that a link asks for, and what of it was ignored because it makes no sense.

        Args:
            query: Names and values.
            examples: How many example pictures there are.
        """
        state, ignored = cls(), []
        if text := query.get("method"):
            try:
                from_text(text)
                state = replace(state, method=text)
            except OptionError as error:
                ignored.append(f"method: {error}")
        if text := query.get("budget"):
            try:
                Budget.parse(text)
                state = replace(state, budget=text)
            except (TypeError, ValueError) as error:
                ignored.append(f"budget: {error}.")
        if text := query.get("positions"):
            try:
                state = replace(state, positions=parse_positions(text) or "")
            except ValueError as error:
                ignored.append(f"{error}.")
        if text := query.get("example"):
            if text.isdecimal() and int(text) < examples:
                state = replace(state, example=int(text))
            else:
                ignored.append(f"example must be 0 to {examples - 1}, got {text!r}.")
        if text := query.get("tab"):
            if text in TABS:
                state = replace(state, tab=text)
            else:
                ignored.append(f"tab must be one of {', '.join(TABS)}, got {text!r}.")
        if text := query.get("compare"):
            unknown = [name for name in text.split(",") if name not in list_pruners()]
            if unknown:
                ignored.append(f"compare: no method is called {unknown[0]!r}.")
            else:
                state = replace(state, compare=text)
        return replace(state, question=query.get("question", "")[:LONGEST]), ignored
