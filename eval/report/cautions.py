"""What a reader must know before believing a table: what is missing, and what differs between its cells."""

from __future__ import annotations

import json
from collections.abc import Sequence

from vtprune.eval.analysis import SEEDS, Analysis, Section
from vtprune.eval.grid import BASELINES
from vtprune.eval.retained import task_name

_NAMED = 6


def cautions(analysis: Analysis) -> list[str]:
    """One sentence for each thing that is amiss; what is amiss in several places is said once."""
    places: dict[str, list[str]] = {}
    for section in analysis.sections:
        for line in section_cautions(section):
            places.setdefault(line, []).append(f"{section.model_name} on {task_name(section)}")
    found = [f"{_some(where)}: {line}" for line, where in places.items()]
    return [*found, *_of_records(analysis)]


def section_cautions(section: Section) -> list[str]:
    """Those of one model and task, the worst first."""
    lines = []
    if section.failed:
        lines.append(
            f"{len(section.failed)} cells failed: "
            + _some(
                [f"{r['label']} at {r['budget_meaning']} ({r.get('error', 'no reason kept')})" for r in section.failed]
            )
        )
    if not section.entries:
        return lines
    if section.full is None:
        lines.append("the full model was not measured, so that no loss can be told.")
    missing = [name for name in BASELINES if all(entry.pruner != name for entry in section.pruned)]
    if missing and section.pruned:
        lines.append(
            f"MISSING BASELINE {', '.join(missing)}. Without it nobody can tell whether a method is worth its "
            f"effort; run the sweep again with --pruners {','.join(missing)} and the same --output."
        )
    unmatched: dict[str, list[str]] = {}
    counts_needed: set[int] = set()
    for entry in section.pruned:
        if section.full is not None and entry.average_tokens >= section.full.average_tokens:
            continue  # all tokens: the full model is its baseline
        if round(entry.average_tokens) < 1:
            continue  # no budget is that small
        for name in BASELINES:
            if not entry.is_baseline and name not in missing and section.baseline(name, entry) is None:
                unmatched.setdefault(f"{entry.name} ({entry.average_tokens:.0f})", []).append(name)
                counts_needed.add(round(entry.average_tokens))
    if unmatched:
        lines.append(
            "no baseline with as many tokens as these methods really process, mean over the layers in "
            "brackets: "
            + _some(
                [
                    f"{name}: {'all of them' if len(lacking) == len(BASELINES) else ', '.join(lacking)}"
                    for name, lacking in unmatched.items()
                ]
            )
            + f". Measure the baselines with --budgets {','.join(map(str, sorted(counts_needed)))} too."
        )
    few = [entry for entry in section.pruned if entry.draws and len(entry.seeds) < SEEDS]
    if few:
        lines.append(
            f"fewer than {SEEDS} seeds for methods that draw: "
            + _some([f"{entry.name} ({len(entry.seeds)})" for entry in few])
            + "."
        )
    if section.pruned and section.score_metric is None:
        lines.append("no score for single questions is kept, so that nothing is tested or split.")
    elif section.score_metric not in (None, section.metric):
        lines.append(f"questions are compared by {section.score_metric}; {section.metric} is no mean of them.")
    counts = {len(entry.scores) for entry in section.entries if entry.scores}
    if len(counts) > 1:
        lines.append(f"cells answered from {min(counts)} to {max(counts)} questions; pairs use shared ones.")
    if section.pruned and all(entry.prefill_seconds is None for entry in section.entries):
        lines.append("prefill was not timed; FLOPs promise no speed.")
    return lines


def _of_records(analysis: Analysis) -> list[str]:
    lines = []
    for name, what in (("versions", "versions"), ("machine", "machines"), ("batch_size", "batch sizes")):
        values = {
            json.dumps(record[name], sort_keys=True, default=str) for record in analysis.records if name in record
        }
        if len(values) > 1:
            worse = "; times are not comparable" if name != "versions" else ""
            lines.append(f"Cells were measured with {len(values)} different {what}{worse}.")
    return lines


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return "; ".join(names[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
