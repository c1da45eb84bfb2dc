"""The questions that a smaller picture answers already, and the others, after VTC-Bench (arXiv 2510.07143)."""

from __future__ import annotations

from dataclasses import dataclass

from vtprune.eval.analysis import Entry, Section
from vtprune.eval.intervals import Estimate

RIGHT = 0.5
"""Score from which on an answer counts as right, for tasks that give parts of a point."""


@dataclass(frozen=True)
class Split:
    """A method's scores on both groups; `None` for a group without questions.

    Args:
        reference: The down-sampled pictures that made the groups, with as many tokens as the method processes.
        hard: Group A, which they answer wrongly.
        easy: Group B, which they answer rightly: nothing is learned there about the choice of tokens.
        lost: The part of group A that the full model answers rightly, so that only compression can be to blame.
    """

    reference: Entry
    hard: Estimate | None
    easy: Estimate | None
    lost: Estimate | None


def split(section: Section, entry: Entry) -> Split | None:
    """Divides the questions of an entry; `None` if no down-sampled picture with as many tokens was measured."""
    reference = section.baseline("downsample", entry)
    if reference is None or not reference.scores or not entry.scores:
        return None
    hard = [question for question, score in reference.scores.items() if score < RIGHT]
    easy = [question for question, score in reference.scores.items() if score >= RIGHT]
    known = section.full.scores if section.full is not None else {}
    lost = [question for question in hard if known.get(question, 0.0) >= RIGHT]
    return Split(reference, entry.score(hard), entry.score(easy), entry.score(lost))
