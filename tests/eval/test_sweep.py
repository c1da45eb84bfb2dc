from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from vtprune.eval.grid import BASELINES, FULL, Cell
from vtprune.eval.store import DONE, FAILED, Record
from vtprune.eval.sweep import Sweep, print_outcome, print_plan
from vtprune.eval.sweep_config import SweepConfig

PRUNERS = ("divprune", "random", "fastv(layer=3)")
BUDGETS = ("18", "9")


class FakeModel:
    """Makes up results, and remembers which cells were asked for."""

    def __init__(self, fault: dict[int, BaseException] | None = None) -> None:
        self.fault = fault or {}
        self.cells: list[Cell] = []

    def __call__(self, cell: Cell, advance: Callable[[int], None]) -> tuple[Record, list[Record]]:
        self.cells.append(cell)
        if len(self.cells) in self.fault:
            raise self.fault[len(self.cells)]
        advance(10)
        tokens = float(cell.budget.tokens or 36)
        value = 0.9 if cell.method is None else 0.5 + 0.01 * tokens + 0.01 * len(cell.pruner)
        kinds = {"color": {"value": value, "standard_error": 0.1, "n": 10}}
        record = {
            "key": cell.key,
            "status": DONE,
            **cell.definition(),
            "label": cell.label,
            "budget_meaning": "all tokens" if cell.method is None else str(cell.budget),
            "metric": "exact_match",
            "value": value,
            "standard_error": 0.02,
            "n": 10,
            "kinds": kinds,
            "average_tokens": tokens,
        }
        return record, [{"doc_id": 0, "answer": "yes"}]


@pytest.fixture
def config(tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path) -> SweepConfig:
    return SweepConfig(
        models=(str(tiny_folder),),
        pruners=PRUNERS,
        budgets=BUDGETS,
        tasks=(tiny.TASK,),
        include=(tiny_tasks,),
        output=tmp_path / "out",
        batch_size=3,
        device="cpu",
        seeds=(0,),
        baselines=False,
        prefill_repeats=0,
    )


@pytest.fixture
def quiet_console() -> Console:
    return Console(file=io.StringIO(), width=120)


def changed(config: SweepConfig, **changes: Any) -> SweepConfig:
    return SweepConfig(**{**vars(config), **changes})


def test_grid_has_every_combination_and_one_full_cell(config: SweepConfig, quiet_console: Console) -> None:
    cells = Sweep(config, console=quiet_console).cells
    assert [(cell.label, str(cell.budget)[:2]) for cell in cells] == [
        (FULL, "10"),
        *((pruner, budget.ljust(2)) for pruner in PRUNERS for budget in BUDGETS),
    ]


def test_outcome_files(config: SweepConfig, quiet_console: Console) -> None:
    sweep = Sweep(config, console=quiet_console)
    outcome = sweep.run(FakeModel())
    assert not outcome.failed
    assert [record["key"] for record in outcome.records] == [cell.key for cell in sweep.cells]
    assert len(list(sweep.store.samples.iterdir())) == len(sweep.cells)
    assert list(outcome.images.values()) == [config.output / "pareto.png"]
    with Image.open(config.output / "pareto.png") as plot:
        assert plot.format == "PNG"
        assert len(plot.convert("RGB").getcolors(1 << 20) or []) > 100


def test_table(config: SweepConfig) -> None:
    text = io.StringIO()
    console = Console(file=text, width=160)
    print_outcome(Sweep(config, console=console).run(FakeModel()), console)
    shown = text.getvalue()
    lines = shown.splitlines()
    assert next(line for line in lines if "full model" in line).count("90.0 ± 2.0") == len(BUDGETS)
    assert "76.0 ± 2.0" in next(line for line in lines if "divprune" in line and "±" in line)
    assert any(line.split()[:1] == ["fastv(layer=3)"] for line in lines)
    assert "18 tokens per image" in shown
    assert "n=10" in shown
    assert "7 cells, 0 of them from an earlier run; 0 failed." in shown


def test_best_of_a_budget_is_marked(config: SweepConfig) -> None:
    text = io.StringIO()
    console = Console(file=text, width=160, force_terminal=True, color_system="standard")
    print_outcome(Sweep(config, console=console).run(FakeModel()), console)
    marked = [line for line in text.getvalue().splitlines() if "\x1b[1;32m" in line and "±" in line]
    assert len(marked) == 1
    assert marked[0].lstrip().startswith("divprune")
    assert marked[0].count("\x1b[1;32m") == len(BUDGETS)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit()])
def test_resume_repeats_no_finished_cell(config: SweepConfig, quiet_console: Console, stop: BaseException) -> None:
    first = FakeModel({4: stop})
    with pytest.raises(type(stop)):
        Sweep(config, console=quiet_console).run(first)
    second = FakeModel()
    sweep = Sweep(config, console=quiet_console)
    outcome = sweep.run(second)
    assert len(outcome.records) == len(sweep.cells)
    assert len(outcome.reused) == 3
    finished = [cell.key for cell in first.cells[:3]]
    assert [cell.key for cell in second.cells] == [cell.key for cell in sweep.cells if cell.key not in finished]
    third = FakeModel()
    assert len(Sweep(config, console=quiet_console).run(third).reused) == len(sweep.cells)
    assert third.cells == []


def test_other_questions_are_other_cells(config: SweepConfig, quiet_console: Console) -> None:
    Sweep(config, console=quiet_console).run(FakeModel())
    for change in ({"limit": 5}, {"seeds": (1,)}, {"positions": "keep"}, {"dtype": "float32"}):
        assert len(Sweep(changed(config, **change), console=quiet_console).pending) == 7, change
    assert Sweep(changed(config, batch_size=7), console=quiet_console).pending == []


def test_changed_task_data_are_other_cells(
    config: SweepConfig, quiet_console: Console, tiny: ModuleType, tmp_path: Path
) -> None:
    other = changed(config, include=(tiny.save_questions(tmp_path / "other", 8),))
    keys = {cell.key for cell in Sweep(config, console=quiet_console).cells}
    assert keys.isdisjoint(cell.key for cell in Sweep(other, console=quiet_console).cells)


def test_failing_cell_does_not_stop_the_rest(config: SweepConfig, quiet_console: Console) -> None:
    model = FakeModel({3: RuntimeError("out of memory [and more]")})
    sweep = Sweep(config, console=quiet_console)
    outcome = sweep.run(model)
    assert len(model.cells) == len(sweep.cells)
    assert [record["error"] for record in outcome.failed] == ["RuntimeError: out of memory [and more]"]
    assert outcome.failed[0]["key"] == sweep.cells[2].key
    assert "out of memory [and more]" in quiet_console.file.getvalue()  # type: ignore[attr-defined]
    print_outcome(outcome, quiet_console)
    assert "failed" in quiet_console.file.getvalue()  # type: ignore[attr-defined]
    again = FakeModel()
    assert not Sweep(config, console=quiet_console).run(again).failed
    assert [cell.key for cell in again.cells] == [sweep.cells[2].key]


def test_all_cells_fail(config: SweepConfig, quiet_console: Console) -> None:
    model = FakeModel({number: ValueError("no") for number in range(1, 8)})
    outcome = Sweep(config, console=quiet_console).run(model)
    assert len(outcome.failed) == 7
    assert outcome.images == {}
    print_outcome(outcome, quiet_console)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pruners": ("divprun",)}, "did you mean 'divprune'"),
        ({"budgets": ("0",)}, "at least 1"),
        ({"tasks": ("tiny_scene",)}, "unknown task 'tiny_scene'; did you mean 'tiny_scenes'"),
        ({"seeds": ()}, "seeds must not be empty"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"positions": "drop"}, "keep or pack"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"device": "warp"}, "device 'warp' cannot be used"),
        ({"models": ("no/such/folder",)}, "neither 'embedded'"),
        ({"include": (Path("nowhere"),)}, "nowhere does not exist"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    config: SweepConfig, quiet_console: Console, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Sweep(changed(config, **change), console=quiet_console)
    assert not config.output.exists()


def test_unwritable_output(config: SweepConfig, quiet_console: Console, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Sweep(changed(config, output=tmp_path / "file" / "out"), console=quiet_console)


def test_real_sweep(config: SweepConfig, quiet_console: Console, tiny: ModuleType) -> None:
    """The whole way through lmms-eval with a model, in two processors' worth of batches."""
    sweep = Sweep(changed(config, pruners=("divprune", "fastv")), console=quiet_console)
    outcome = sweep.run(sweep.prepare())
    assert not outcome.failed
    full, div, _, fast, _ = outcome.records
    assert (full["pruner"], full["tokens_kept"], full["average_tokens"]) == (FULL, tiny.TOKENS, tiny.TOKENS)
    assert (div["tokens_full"], div["tokens_kept"], div["average_tokens"]) == (tiny.TOKENS, 18, 18)
    # fastv removes before layer 2 of 6.
    assert (fast["tokens_kept"], fast["average_tokens"]) == (18, (2 * 36 + 4 * 18) / 6)
    assert div["prefill_flops"] < fast["prefill_flops"] < full["prefill_flops"]
    for record in outcome.records:
        assert record["status"] == DONE
        assert record["metric"] == "exact_match"
        assert record["n"] == 10
        assert record["positions"] in ("keep", "pack")
        assert sum(kind["n"] for kind in record["kinds"].values()) == 10
        assert {"torch", "transformers", "lmms-eval", "vtprune"} <= set(record["versions"])
        assert record["seconds"] > 0
    lines = (sweep.store.samples / f"{div['key']}.jsonl").read_text().splitlines()
    assert len(lines) == 10
    assert '"input_tokens"' in lines[0]


def test_method_that_does_not_fit_the_model_fails_alone(config: SweepConfig, quiet_console: Console) -> None:
    sweep = Sweep(changed(config, pruners=("fastv(layer=99)", "stride"), budgets=("9",)), console=quiet_console)
    outcome = sweep.run(sweep.prepare())
    assert [record["status"] for record in outcome.records] == [DONE, FAILED, DONE]
    assert "99" in outcome.failed[0]["error"]


def test_seeds_of_methods_that_draw(config: SweepConfig, quiet_console: Console) -> None:
    sweep = Sweep(changed(config, seeds=(3, 5, 8)), console=quiet_console)
    assert [cell.seed for cell in sweep.cells if cell.pruner == "random"] == [3, 3, 5, 5, 8, 8]
    assert {cell.seed for cell in sweep.cells if cell.pruner != "random"} == {3}
    assert len({cell.key for cell in sweep.cells}) == len(sweep.cells) == 1 + 2 * 5
    outcome = sweep.run(FakeModel())
    text = io.StringIO()
    print_outcome(outcome, Console(file=text, width=160))
    assert sum(line.split()[:1] == ["random"] and "±" in line for line in text.getvalue().splitlines()) == 1


def test_baselines_meet_every_budget_and_true_average(config: SweepConfig, quiet_console: Console) -> None:
    class Late(FakeModel):
        """Removes tokens late, so that more of them are seen on average."""

        def __call__(self, cell: Cell, advance: Callable[[int], None]) -> tuple[Record, list[Record]]:
            record, samples = super().__call__(cell, advance)
            if cell.pruner == "fastv":
                record["average_tokens"] += 6.2
            return record, samples

    sweep = Sweep(changed(config, baselines=True, pruners=("fastv",), seeds=(0, 1)), console=quiet_console)
    first = len(sweep.cells)
    outcome = sweep.run(Late())
    assert first == 1 + 2 * (len(BASELINES) + 2)
    by_budget: dict[int | float | None, list[str]] = {}
    for record in outcome.records:
        by_budget.setdefault(record["budget"].get("tokens"), []).append(record["pruner"])
    every = sorted([*BASELINES, "random"])
    # True averages are 24.2 and 15.2.
    assert sorted(by_budget[24]) == sorted(by_budget[15]) == every
    assert sorted(by_budget[18]) == sorted(by_budget[9]) == sorted([*every, "fastv"])
    again = Late()
    assert len(Sweep(sweep.config, console=quiet_console).run(again).reused) == len(outcome.records)
    assert again.cells == []


def test_a_baseline_that_came_to_other_tokens_stands_for_itself_alone(
    config: SweepConfig, quiet_console: Console
) -> None:
    class Late(FakeModel):
        def __call__(self, cell: Cell, advance: Callable[[int], None]) -> tuple[Record, list[Record]]:
            record, samples = super().__call__(cell, advance)
            if cell.pruner in ("fastv", "downsample") and record["average_tokens"] == 18:
                record["average_tokens"] = 24
            return record, samples

    sweep = Sweep(
        changed(config, baselines=True, pruners=("fastv",), budgets=("18",), seeds=(0,)), console=quiet_console
    )
    added = [record["pruner"] for record in sweep.run(Late()).records if record["budget"].get("tokens") == 24]
    assert sorted(added) == sorted(name for name in BASELINES if name != "downsample")


def test_a_baseline_that_missed_an_average_is_asked_for_the_next(config: SweepConfig, quiet_console: Console) -> None:
    class Coarse(FakeModel):
        """Down-samples to 20 tokens where 24 are asked for; other methods process 24 and 26."""

        def __call__(self, cell: Cell, advance: Callable[[int], None]) -> tuple[Record, list[Record]]:
            record, samples = super().__call__(cell, advance)
            if cell.pruner == "fastv":
                record["average_tokens"] = 24 if record["budget"]["tokens"] == 9 else 26
            if cell.pruner == "downsample" and record["average_tokens"] == 24:
                record["average_tokens"] = 20
            return record, samples

    sweep = Sweep(changed(config, baselines=True, pruners=("fastv",), seeds=(0,)), console=quiet_console)
    asked: dict[str, list[int]] = {name: [] for name in BASELINES}
    for record in sweep.run(Coarse()).records:
        if record["pruner"] in BASELINES and record["budget"]["tokens"] > 18:
            asked[record["pruner"]].append(record["budget"]["tokens"])
    assert asked == {name: [24, 26] if name == "downsample" else [24] for name in BASELINES}
    again = Coarse()
    Sweep(sweep.config, console=quiet_console).run(again)
    assert again.cells == []


def test_several_models(
    config: SweepConfig, quiet_console: Console, tiny: ModuleType, tmp_path: Path, tiny_folder: Path
) -> None:
    other = tiny.save_tiny_model(tmp_path / "other")
    (other / "more.json").write_text("{}")
    both = changed(config, models=(str(tiny_folder), str(other)), pruners=("stride",), budgets=("9",))
    sweep = Sweep(both, console=quiet_console)
    outcome = sweep.run(sweep.prepare())
    assert [record["model"] for record in outcome.records] == [str(tiny_folder)] * 2 + [str(other)] * 2
    assert not outcome.failed
    assert len(outcome.images) == 2
    print_outcome(outcome, quiet_console)
    assert str(other) in quiet_console.file.getvalue()  # type: ignore[attr-defined]


def test_plan_measures_nothing_twice(config: SweepConfig, quiet_console: Console) -> None:
    sweep = Sweep(config, console=quiet_console)
    plan = sweep.plan()
    assert (plan.cells, plan.pending, plan.asked) == (7, 7, 70)
    assert plan.questions == {config.tasks[0]: 10}
    assert plan.seconds > 0
    assert sweep.store.records == []
    sweep.run(FakeModel())
    print_plan(Sweep(config, console=quiet_console).plan(), sweep, quiet_console)
    assert "7 cells, 7 of them finished; 0 questions to answer, at most 0 s in one process." in (
        quiet_console.file.getvalue()  # type: ignore[attr-defined]
    )


def test_record_tells_where_it_comes_from(config: SweepConfig, quiet_console: Console) -> None:
    sweep = Sweep(changed(config, pruners=("divprune",), budgets=("9",), prefill_repeats=1), console=quiet_console)
    full, pruned = sweep.run(sweep.prepare()).records
    assert full["machine"] == pruned["machine"] != ""
    assert pruned["prefill_batch"] == 8
    assert 0 < pruned["prefill_seconds"] < 5
    samples = [json.loads(line) for line in (sweep.store.samples / f"{pruned['key']}.jsonl").open()]
    for sample in samples:
        assert sample["grid"] == [[6, 6]]
        assert len(sample["kept"][0]) == 9
        assert sample["kept"][0] == sorted(sample["kept"][0])
        assert sample["picture"]
    whole = [json.loads(line) for line in (sweep.store.samples / f"{full['key']}.jsonl").open()]
    assert all(sample["kept"] == [None] for sample in whole)
