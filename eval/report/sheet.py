"""The columns of the main table, in one place for HTML, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vtprune.eval.analysis import Section
from vtprune.eval.paired import Difference
from vtprune.eval.published import Match
from vtprune.eval.report import words
from vtprune.eval.report.rows import Row
from vtprune.eval.token_need import TokenNeed

Cell = tuple[str, float | None]
"""What is read, and what is sorted by."""

NEED_COLUMNS = (
    *("budgets", "oracle, right", "oracle, tokens", "fixed budgets for as many", "gap"),
    *("oracle as good as full, tokens", "cautious oracle, tokens", "never right", "right, then wrong"),
)
NEED_MEANING = (
    "The oracle takes for each question the fewest tokens with which the answer is right, and the fewest there are for "
    "a question that is never right. It knows the answers, so that it is a bound and no method, and lucky guesses "
    "count for it; the cautious one trusts a budget only if all larger ones are right too. Fixed budgets of the "
    "oracle's cost are the mix of the two next ones. Tokens are true means over the decoder layers."
)
MATCH_COLUMNS = ("published as", "tokens", "ours", "benchmark", "published", "reproduced", "gap", "source")


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Args:
        title: Its heading.
        meaning: What that means, in a sentence.
        cell: What stands in a row.
        compares: The comparison that a row's number is the result of.
    """

    title: str
    meaning: str
    cell: Callable[[Row], Cell]
    compares: Callable[[Row], Difference | None] | None = None


def columns(section: Section) -> list[Column]:
    """The columns of a section that have something to tell."""
    percent = section.percent
    unit = " %" if percent else ""

    def score(row: Row) -> Cell:
        return words.score(row.entry.estimate, percent=percent), row.entry.value

    def seeds(row: Row) -> Cell:
        if not row.entry.draws:
            return words.NOTHING, None
        spread = row.entry.seed_spread
        count = len(row.entry.seeds)
        shown = words.number(None if spread is None else (100 if percent else 1) * spread)
        return f"{count} (± {shown})", count

    def to_full(row: Row) -> Cell:
        found = row.to_full
        return words.difference(found, percent=percent), None if found is None else found.mean

    def to_full_p(row: Row) -> Cell:
        p = None if row.to_full is None else row.to_full.corrected
        return words.chance(p), p

    def to_random(row: Row) -> Cell:
        found = row.to_random
        return words.difference(found, percent=percent), None if found is None else found.mean

    def to_random_p(row: Row) -> Cell:
        p = None if row.to_random is None else row.to_random.corrected
        return words.chance(p), p

    def group(name: str) -> Callable[[Row], Cell]:
        def cell(row: Row) -> Cell:
            part = None if row.split is None else getattr(row.split, name)
            if part is None:
                return words.NOTHING, None
            return f"{words.score(part, percent=percent)} (n={part.n})", part.value

        return cell

    def time(row: Row) -> Cell:
        seconds = row.entry.prefill_seconds
        faster = "" if row.speed is None or row.entry.is_full else f" ({row.speed:.2f} x faster)"
        return words.milliseconds(seconds) + faster, seconds

    def flops(row: Row) -> Cell:
        count = row.entry.prefill_flops
        return (words.NOTHING if count is None else f"{count / 1e9:.2f} ({words.share(row.flops)})"), count

    every = [
        Column(f"{section.metric}{unit} [95 %]", "the task's metric with its 95 % interval, mean over seeds", score),
        Column("retained", "share of the full model's value", lambda row: (words.share(row.retained), row.retained)),
        Column(
            "to full [95 %]", "difference to the full model on the same questions", to_full, lambda row: row.to_full
        ),
        Column("p", "of no difference to the full model, two-sided, Holm-corrected over the table", to_full_p),
        Column(
            "to random [95 %]",
            "difference to as many random tokens as the method really processes",
            to_random,
            lambda row: row.to_random,
        ),
        Column("p (random)", "of no difference to random tokens, Holm-corrected over the table", to_random_p),
        Column(
            "tokens, true",
            "visual tokens of a picture, mean over the decoder layers that really process them",
            lambda row: (words.number(row.entry.average_tokens), row.entry.average_tokens),
        ),
        Column(
            "nominal",
            "the same mean as some papers count it: the layer before a removal with what is left",
            lambda row: (words.number(row.entry.nominal_tokens), row.entry.nominal_tokens),
        ),
        Column(
            "left",
            "visual tokens of a picture that the last layer sees",
            lambda row: (words.number(row.entry.tokens_kept), row.entry.tokens_kept),
        ),
        Column("prefill GFLOPs", "of the language model for a prompt, and as a share of the full model's", flops),
        Column("prefill ms", "measured for a prompt, the selection included", time),
        Column(
            "A: small picture wrong", "score where the down-sampled picture of as many tokens is wrong", group("hard")
        ),
        Column(
            "A, full right", "of those, where the full model is right: only compression can be to blame", group("lost")
        ),
        Column("B: small picture right", "score where the down-sampled picture is right already", group("easy")),
        Column("seeds", "runs of a method that draws, and their standard deviation", seeds),
    ]
    return every


def filled(section: Section, rows: list[Row]) -> list[Column]:
    """The columns that hold a number in any row."""
    return [
        column for column in columns(section) if any(column.cell(row)[0] not in (words.NOTHING, "") for row in rows)
    ]


def need_cells(need: TokenNeed) -> list[Cell]:
    """A row under `NEED_COLUMNS`."""
    like_full = need.tokens_like_full
    return [
        (", ".join(f"{tokens:.0f}" for tokens in need.budgets), float(len(need.budgets))),
        (words.share(need.oracle.value), need.oracle.value),
        (words.number(need.oracle.tokens), need.oracle.tokens),
        (words.share(need.fixed_value), need.fixed_value),
        (words.share(need.gap), need.gap),
        (words.number(like_full), like_full),
        (words.number(need.stable.tokens), need.stable.tokens),
        (words.share(need.never), need.never),
        (words.share(need.unstable), need.unstable),
    ]


def match_cells(match: Match) -> list[str]:
    """A row under `MATCH_COLUMNS`."""
    own = match.entry.average_tokens if match.counted == "true" else match.entry.nominal_tokens
    return [
        match.row,
        str(match.tokens),
        f"{words.number(own)} {match.counted}",
        match.benchmark,
        words.number(match.published),
        words.number(match.reproduced),
        f"{match.gap:+.1f}",
        match.source,
    ]
