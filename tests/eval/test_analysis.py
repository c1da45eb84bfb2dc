from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_results import METRIC, TOKENS, make_results

from vtprune.eval.analysis import Section, nominal_tokens, read_folder, read_folders, same_tokens
from vtprune.eval.retained import by_model, retained
from vtprune.eval.store import FAILED, ResultStore
from vtprune.eval.vtc import split


def only_section(folder: Path) -> Section:
    (section,) = read_folder(folder).sections
    return section


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_baselines_come_first(tmp_path: Path) -> None:
    make_results(tmp_path, ("divprune", "downsample", "random", "visionzip", "stride", "pool"), (64,))
    section = only_section(tmp_path)
    assert [entry.label for entry in section.entries] == [
        *("full", "random", "stride", "pool", "downsample"),
        *("divprune", "visionzip"),
    ]
    assert [entry.is_baseline for entry in section.entries] == [False, *[True] * 4, False, False]


def test_budgets_of_a_method_stand_together(tmp_path: Path) -> None:
    """A sweep measures baselines at further budgets when all else is done."""
    make_results(tmp_path, ("random", "divprune"), (64, 32))
    make_results(tmp_path, ("random",), (192,), full=False)
    found = [(entry.label, round(entry.average_tokens)) for entry in only_section(tmp_path).pruned]
    assert found == [*(("random", tokens) for tokens in (192, 64, 32)), ("divprune", 64), ("divprune", 32)]


def test_seeds_are_pooled(tmp_path: Path) -> None:
    def score(label: str, tokens: float, seed: int, question: int) -> float:
        return float(question < (10, 20, 30)[seed])

    make_results(tmp_path, ("random", "stride"), (64,), score=score, questions=40)
    section = only_section(tmp_path)
    entry = section.pruned[0]
    assert (entry.label, entry.seeds, entry.draws) == ("random", [0, 1, 2], True)
    assert entry.value == pytest.approx(0.5)
    assert entry.seed_spread == pytest.approx(0.25)
    assert [entry.scores[question] for question in (0, 15, 25, 35)] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert not section.pruned[1].draws
    assert section.pruned[1].seed_spread is None


def test_older_results_without_pictures_and_times(tmp_path: Path) -> None:
    store = make_results(tmp_path, ("stride",), (64,), kinds=())
    for path in store.samples.iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [{name: row[name] for name in ("doc_id", "id", "kind", "target", "answer", "scores")} for row in lines]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lacking = [
        {k: v for k, v in record.items() if k not in ("prefill_seconds", "machine")} for record in records(tmp_path)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lacking))
    section = only_section(tmp_path)
    assert section.questions.clusters is None
    assert section.pruned[0].prefill_seconds is None
    assert section.pruned[0].kind_scores == {}
    assert section.pruned[0].estimate.low is not None


def test_questions_about_one_picture_widen_the_interval(tmp_path: Path) -> None:
    def score(label: str, tokens: float, seed: int, question: int) -> float:
        return float(question // 4 % 2)

    make_results(tmp_path / "alone", ("stride",), (64,), score=score)
    make_results(tmp_path / "shared", ("stride",), (64,), score=score, per_picture=4)
    alone, shared = (only_section(tmp_path / name).pruned[0].estimate for name in ("alone", "shared"))
    assert shared.high is not None
    assert alone.high is not None
    assert shared.high > alone.high + 0.05


def test_metric_that_is_no_mean_of_scores(tmp_path: Path) -> None:
    make_results(tmp_path, ("stride",), (64,), value=0.123, standard_error=0.01, metric="f1")
    entry = only_section(tmp_path).pruned[0]
    assert (entry.value, entry.estimate.value) == (0.123, 0.123)
    assert entry.estimate.high == pytest.approx(0.123 + 2.02 * 0.01, abs=1e-3)
    assert only_section(tmp_path).score_metric == METRIC


def test_results_without_answers(tmp_path: Path) -> None:
    make_results(tmp_path, ("stride",), (64,), samples=False)
    section = only_section(tmp_path)
    assert section.score_metric is None
    assert section.pruned[0].estimate.low is not None


def test_models_tasks_and_question_counts_are_kept_apart(tmp_path: Path) -> None:
    make_results(tmp_path, ("stride",), (64,), tasks=("gqa", "pope"))
    make_results(tmp_path, ("pool",), (64,), tasks=("gqa",), model="other", full=False)
    found = read_folder(tmp_path).sections
    assert [(section.model, section.task) for section in found] == [
        ("embedded", "gqa"),
        ("embedded", "pope"),
        ("other", "gqa"),
    ]
    assert found[2].full is None


def test_position_policies_are_kept_apart(tmp_path: Path) -> None:
    make_results(tmp_path, ("stride",), (64,))
    record = next(record for record in records(tmp_path) if record["pruner"] == "stride")
    ResultStore(tmp_path).add({**record, "key": "packed", "positions": "pack"})
    assert [entry.label for entry in only_section(tmp_path).pruned] == ["stride, keep", "stride, pack"]


def test_failed_cells(tmp_path: Path) -> None:
    store = make_results(tmp_path, ("stride",), (64,))
    store.add({**records(tmp_path)[1], "key": "broken", "status": FAILED, "error": "boom"})
    analysis = read_folder(tmp_path)
    assert [record["error"] for record in analysis.failed] == ["boom"]
    assert len(analysis.records) == 2


def test_several_folders_and_the_newest_of_a_cell(tmp_path: Path) -> None:
    make_results(tmp_path / "old", ("stride",), (64,), value=0.1, time="2026-01-01T00:00:00+00:00")
    make_results(tmp_path / "new", ("stride",), (64,), value=0.2, time="2026-02-01T00:00:00+00:00", full=False)
    for folders in (["old", "new"], ["new", "old"]):
        (section,) = read_folders([tmp_path / name for name in folders]).sections
        assert section.full is not None
        assert (section.full.value, section.pruned[0].value) == (0.1, 0.2)


def test_folder_stays_untouched(tmp_path: Path) -> None:
    make_results(tmp_path, ("stride",), (64,))
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*")))
    tmp_path.chmod(0o555)
    try:
        read_folder(tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))) == before


def test_folders_that_hold_no_results(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no results.jsonl; give the output folder"):
        read_folder(tmp_path)
    path = tmp_path / "results.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match="is empty; no cell has finished yet"):
        read_folder(tmp_path)
    for line in ("{half", '{"key": "a"}', '{"key": "a", "status": "done"}', "[]"):
        path.write_text(f"{line}\n")
        with pytest.raises(ValueError, match=r"line 1 of .*results.jsonl is no result of a sweep"):
            read_folder(tmp_path)


def test_answers_that_cannot_be_read(tmp_path: Path) -> None:
    store = make_results(tmp_path, ("stride",), (64,))
    path = next(store.samples.iterdir())
    path.write_text(path.read_text() + "{half")
    with pytest.raises(ValueError, match=f"line 41 of .*{path.name} is no answer of a sweep; run that cell again"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("method", "nominal"),
    [
        ("divprune", 64),
        ("fastv", (1 * 576 + 7 * 64) / 8),
        ("fastv(layer=3)", (2 * 576 + 6 * 64) / 8),
    ],
)
@pytest.mark.parametrize("layers", [8, None])
def test_nominal_tokens(tmp_path: Path, method: str, nominal: float, layers: int | None) -> None:
    make_results(tmp_path, (method,), (64,), layers=layers)
    assert only_section(tmp_path).pruned[0].nominal_tokens == pytest.approx(nominal)


def test_nominal_tokens_of_a_chain() -> None:
    """DivPrune leaves 96 for a budget of 16, FastV the rest before layer 2."""
    record = {"pruner": "divprune/fastv", "label": "divprune/fastv", "tokens_full": 576.0, "tokens_kept": 16.0}
    assert nominal_tokens({**record, "average_tokens": (2 * 96 + 6 * 16) / 8}) == pytest.approx((96 + 7 * 16) / 8)


def test_nominal_tokens_that_nobody_knows() -> None:
    record = {"pruner": "fastv", "label": "fastv", "tokens_full": 576, "tokens_kept": 64, "average_tokens": 100.5}
    assert nominal_tokens(record) is None
    assert nominal_tokens({**record, "label": "gone"}) is None


def test_as_many_tokens() -> None:
    assert same_tokens(30, 32)
    assert same_tokens(5, 4)
    assert not same_tokens(64, 72)
    assert same_tokens(192, 180)


def test_baseline_with_as_many_true_tokens(tmp_path: Path) -> None:
    """FastV on eight layers processes 192 tokens for a budget of 64."""
    make_results(tmp_path, ("random", "fastv", "divprune"), (192, 64))
    section = only_section(tmp_path)
    entries = {(entry.label, entry.budget[:3]): entry for entry in section.pruned}
    matched = section.baseline("random", entries["fastv", "64 "])
    assert matched is entries["random", "192"]
    assert section.baseline("random", entries["divprune", "64 "]) is entries["random", "64 "]
    assert section.baseline("random", entries["fastv", "192"]) is None
    assert section.baseline("pool", entries["divprune", "64 "]) is None


def test_split_by_the_small_picture(tmp_path: Path) -> None:
    """Of 40 questions the small picture answers 30, the full model 35, the method the even ones."""

    def score(label: str, tokens: float, seed: int, question: int) -> float:
        return float({"full": question < 35, "downsample": question < 30, "divprune": question % 2 == 0}[label])

    make_results(tmp_path, ("downsample", "divprune"), (64,), score=score)
    section = only_section(tmp_path)
    found = split(section, section.pruned[1])
    assert found is not None
    parts = [found.hard, found.easy, found.lost]
    assert [(part.value, part.n) for part in parts if part] == [(0.5, 10), (0.5, 30), (0.6, 5)]
    assert found.reference.label == "downsample"


def test_no_split_without_small_pictures_of_as_many_tokens(tmp_path: Path) -> None:
    make_results(tmp_path, ("downsample", "fastv"), (64,))
    section = only_section(tmp_path)
    assert split(section, section.pruned[1]) is None


def test_retained_average_over_tasks(tmp_path: Path) -> None:
    """As papers quote it: the mean of the shares, not the share of the means."""
    for task, full, pruned in (("mme", 1800.0, 1500.0), ("gqa", 0.6, 0.54)):
        make_results(tmp_path, (), (64,), tasks=(task,), value=full)
        make_results(tmp_path, ("stride",), (64,), tasks=(task,), value=pruned, full=False)
    (sections,) = by_model(read_folder(tmp_path).sections)
    (row,) = retained(sections)
    assert row.shares == {"mme": pytest.approx(5 / 6), "gqa": pytest.approx(0.9)}
    assert row.average == pytest.approx((5 / 6 + 0.9) / 2)
    assert not sections[0].percent
    assert sections[1].percent


def test_scores_by_kind(tmp_path: Path) -> None:
    def score(label: str, tokens: float, seed: int, question: int) -> float:
        return float(question % 2 == 0 or tokens == TOKENS)

    make_results(tmp_path, ("stride",), (64,), score=score)
    found = only_section(tmp_path).pruned[0].kind_scores
    assert {kind: (part.value, part.n) for kind, part in found.items()} == {"color": (1.0, 20), "count": (0.0, 20)}
