"""The rows of a table: what was measured of each method, and how it compares."""

from __future__ import annotations

from dataclasses import dataclass

from vtprune.eval.analysis import Entry, Section
from vtprune.eval.paired import Difference, correct, paired_difference
from vtprune.eval.vtc import Split, split


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        entry: What was measured.
        retained: Share of the full model's value that is left.
        to_full: Difference to the full model.
        to_random: Difference to random tokens, as many as the method really processes.
        random: Those random tokens.
        split: Scores where a smaller picture fails and where it does not.
        flops: Prefill FLOPs as a share of the full model's.
        speed: How much faster than the full model prefill was measured, the selection included.
    """

    entry: Entry
    retained: float | None
    to_full: Difference | None
    to_random: Difference | None
    random: Entry | None
    split: Split | None
    flops: float | None
    speed: float | None


def table_rows(section: Section) -> list[Row]:
    """All rows of a section; p values are corrected over all comparisons of the section, of both kinds."""
    full = section.full
    pictures = section.questions.clusters
    compared: list[Difference | None] = []
    randoms: list[Entry | None] = []
    for entry in section.entries:
        known = full is not None and not entry.is_full
        compared.append(paired_difference(entry.scores, full.scores, pictures) if known and full else None)
        random = None if entry.is_full or entry.pruner == "random" else section.baseline("random", entry)
        randoms.append(random)
        compared.append(paired_difference(entry.scores, random.scores, pictures) if random else None)
    corrected = correct(compared)
    return [
        Row(
            entry,
            section.retained(entry),
            corrected[2 * place],
            corrected[2 * place + 1],
            randoms[place],
            None if entry.is_full else split(section, entry),
            _share(entry.prefill_flops, full.prefill_flops if full else None),
            _share(full.prefill_seconds if full else None, entry.prefill_seconds),
        )
        for place, entry in enumerate(section.entries)
    ]


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
