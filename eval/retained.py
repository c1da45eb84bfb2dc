"""What is left of the full model's scores, averaged over tasks as papers quote it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from vtprune.eval.analysis import Entry, Section


@dataclass(frozen=True)
class Retained:
    """One method at one budget on all tasks of a model.

    Args:
        label: The method.
        budget: The budget in words.
        shares: For each task what share of the full model's value is left.
        entries: For each task what was measured.
    """

    label: str
    budget: str
    shares: dict[str, float]
    entries: dict[str, Entry]

    @property
    def average(self) -> float:
        """The number that papers quote."""
        return sum(self.shares.values()) / len(self.shares)

    @property
    def average_tokens(self) -> float:
        """True mean of visual tokens, over the tasks."""
        return sum(entry.average_tokens for entry in self.entries.values()) / len(self.entries)

    @property
    def is_baseline(self) -> bool:
        """Whether this is what methods have to beat."""
        return next(iter(self.entries.values())).is_baseline


def model_key(section: Section) -> tuple[Hashable, ...]:
    """What tells models apart."""
    return tuple(section.record.get(name) for name in ("model", "fingerprint", "dtype"))


def by_model(sections: Sequence[Section]) -> list[list[Section]]:
    """The sections of each model."""
    groups: dict[tuple[Hashable, ...], list[Section]] = {}
    for section in sections:
        groups.setdefault(model_key(section), []).append(section)
    return list(groups.values())


def task_name(section: Section) -> str:
    """The task, and how many questions if not all were asked."""
    limit = section.record.get("limit")
    return section.task if limit is None else f"{section.task} ({section.n} questions)"


def retained(sections: Sequence[Section]) -> list[Retained]:
    """Every method and budget on the tasks of one model; tasks whose full model was not measured are left out."""
    shares: dict[tuple[str, str], dict[str, float]] = {}
    entries: dict[tuple[str, str], dict[str, Entry]] = {}
    for section in sections:
        for entry in section.pruned:
            share = section.retained(entry)
            if share is not None:
                key = entry.label, entry.budget
                shares.setdefault(key, {})[task_name(section)] = share
                entries.setdefault(key, {})[task_name(section)] = entry
    return [Retained(*key, shares[key], entries[key]) for key in shares]
