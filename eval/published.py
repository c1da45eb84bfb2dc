"""Published figures beside our own, where model, task and tokens are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vtprune.eval.analysis import Entry, Section
from vtprune.eval.models import EMBEDDED, fingerprint
from vtprune.method_docs import published

_TOLERANCE = 0.05
_LLAVA = re.compile(r"llava-?v?1\.5-7b", re.IGNORECASE)
_NESTED = re.compile(r"(?<![a-z0-9])m3(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Benchmark:
    """A column of the published tables as lmms-eval measures it.

    Args:
        title: As papers call it.
        tasks: lmms-eval tasks that ask the same questions of the same split.
        metrics: Their metrics that add up to the figure.
        note: What differs nevertheless.
    """

    title: str
    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    note: str = ""


# VQAv2 and VizWiz are published for test splits, whose answers only their servers know.
BENCHMARKS: Mapping[str, Benchmark] = {
    "gqa": Benchmark("GQA", ("gqa",), ("exact_match",)),
    "mmbench": Benchmark("MMBench", ("mmbench_en_dev_static", "mmbench_en_dev"), ("gpt_eval_score",)),
    "mmbench_cn": Benchmark("MMBench-CN", ("mmbench_cn_dev",), ("gpt_eval_score",)),
    "mme": Benchmark("MME", ("mme",), ("mme_perception_score", "mme_cognition_score")),
    "mme_perception": Benchmark("MME (perception)", ("mme",), ("mme_perception_score",)),
    "pope": Benchmark("POPE", ("pope",), ("pope_f1_score",)),
    "scienceqa": Benchmark("ScienceQA", ("scienceqa_img",), ("exact_match",)),
    "textvqa": Benchmark(
        "TextVQA",
        ("textvqa_val",),
        ("exact_match",),
        "LLaVA's own prompt holds OCR words, which lmms-eval leaves out by default",
    ),
    "vizwiz_val": Benchmark("VizWiz (val)", ("vizwiz_vqa_val",), ("exact_match",)),
}


@dataclass(frozen=True)
class Match:
    """A published figure and ours.

    Args:
        entry: What we measured.
        row: What the published table calls the method.
        tokens: Visual tokens of the published row.
        counted: Whether `"true"` or `"nominal"` tokens of ours are the published ones.
        benchmark: As papers call it.
        published: Their figure.
        reproduced: Ours on the same scale.
        source: Where theirs is from, with what is known about it.
    """

    entry: Entry
    row: str
    tokens: int
    counted: str
    benchmark: str
    published: float
    reproduced: float
    source: str

    @property
    def gap(self) -> float:
        """Ours less theirs."""
        return self.reproduced - self.published


def is_published_model(section: Section) -> bool:
    """Whether the tables are about this model: LLaVA-1.5-7B, and never the embedded one under whatever name."""
    if section.model == EMBEDDED or not _LLAVA.search(Path(section.model).name):
        return False
    return bool(section.record["fingerprint"] != fingerprint(EMBEDDED))


def matches(section: Section) -> list[Match]:
    """Every published figure that a section repeats, in its order; none if only some of the questions were asked."""
    if section.record.get("limit") is not None or not is_published_model(section):
        return []
    nested = bool(_NESTED.search(Path(section.model).name))
    found = []
    for entry in section.entries:
        for row in published():
            # M3's figures are of a model trained for it; the full model's are of the plain one.
            if row["method"] != ("" if entry.is_full else entry.pruner) or nested != (row["method"] == "m3"):
                continue
            counted = _counted(entry, int(row["tokens"]))
            if counted is not None:
                found += _figures(section, entry, row, counted)
    return found


def unmatched_reason(section: Section) -> str | None:
    """Why a section of a published model has no published number beside it."""
    if section.record.get("limit") is not None and is_published_model(section):
        return f"published figures are for all questions of {section.task}, not for {section.n} of them"
    return None


def _counted(entry: Entry, tokens: int) -> str | None:
    for name, own in (("true", entry.average_tokens), ("nominal", entry.nominal_tokens)):
        if own is not None and abs(own - tokens) <= _TOLERANCE * tokens:
            return name
    return None


def _figures(section: Section, entry: Entry, row: Mapping[str, str], counted: str) -> list[Match]:
    found = []
    for column, benchmark in BENCHMARKS.items():
        if section.task not in benchmark.tasks or not row[column]:
            continue
        values = [_value(entry, metric) for metric in benchmark.metrics]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            continue
        theirs, ours = float(row[column]), sum(known)
        scale = 100 if ours <= 1 < theirs else 1
        source = "; ".join(part for part in (row["source"], row["note"], benchmark.note) if part)
        tokens = int(row["tokens"])
        found.append(Match(entry, row["row"], tokens, counted, benchmark.title, theirs, scale * ours, source))
    return found


def _value(entry: Entry, metric: str) -> float | None:
    values = [run.record["metrics"].get(metric, {}).get("value") for run in entry.runs]
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
