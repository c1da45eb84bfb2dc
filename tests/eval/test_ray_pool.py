"""A sweep on a real Ray cluster of two machines (processes here), one of which is lost."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from vtprune.eval.grid import Cell
from vtprune.eval.store import DONE, FAILED, Record, ResultStore
from vtprune.eval.sweep import Advance, Begin, End, Sweep
from vtprune.eval.sweep_config import SweepConfig

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from vtprune.eval.ray_pool import RayPool  # noqa: E402


def started(start: Callable[[], Any]) -> Any:
    """Ray gives its own helper processes 15 s to import what they need, which a busy machine may not do at once."""
    for attempt in range(3):
        try:
            return start()
        except Exception:
            if attempt == 2:
                raise
    return None


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    found = started(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}))
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def config(tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path) -> SweepConfig:
    return SweepConfig(
        models=(str(tiny_folder),),
        pruners=("divprune", "random", "fastv(layer=99)"),
        budgets=("18", "9"),
        tasks=(tiny.TASK,),
        include=(tiny_tasks,),
        output=tmp_path / "ray",
        batch_size=5,
        device="cpu",
        seeds=(0, 1),
        baselines=False,
        prefill_repeats=0,
    )


def comparable(records: Sequence[Record]) -> list[dict[str, Any]]:
    names = ("key", "status", "value", "kinds", "tokens_kept", "average_tokens", "label", "error")
    return [{name: record.get(name) for name in names} for record in records]


def test_a_lost_machine_costs_no_cell(cluster: Cluster, config: SweepConfig) -> None:
    other = started(lambda: cluster.add_node(num_cpus=1))
    text = io.StringIO()
    console = Console(file=text, width=200)
    sweep = Sweep(config, console=console)
    begun: list[str] = []
    ended: list[str] = []

    with RayPool(config, cluster.address, console=console) as pool:
        assert pool.workers == 2

        def spread(cells: Sequence[Cell], begin: Begin, advance: Advance, end: End) -> None:
            def watched_begin(cell: Cell) -> None:
                begun.append(cell.key)
                begin(cell)

            def watched_end(cell: Cell, record: Record, samples: list[Record]) -> None:
                end(cell, record, samples)
                ended.append(cell.key)
                # Both work on something now, or will in a moment.
                if len(ended) == 2:
                    cluster.remove_node(other, allow_graceful=False)

            pool(cells, watched_begin, advance, watched_end)

        outcome = sweep.run(spread=spread)
    assert sorted(ended) == sorted(cell.key for cell in sweep.cells)
    assert len(begun) > len(ended), text.getvalue()
    assert "begun anew" in text.getvalue()
    assert [record["status"] for record in outcome.records].count(FAILED) == 2
    assert all("99" in record["error"] for record in outcome.failed)
    here = Sweep(SweepConfig(**{**vars(config), "output": config.output.parent / "here"}), console=console)
    alone = here.run()
    assert comparable(outcome.records) == comparable(alone.records)
    for record in alone.records:
        if record["status"] == DONE:
            name = f"{record['key']}.jsonl"
            assert (sweep.store.samples / name).read_text() == (here.store.samples / name).read_text()
    assert len(ResultStore(config.output).records) == len(sweep.cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"workers": 0}, "workers must be at least 1"), ({"retries": -1}, "retries must be at least 0")],
)
def test_numbers_out_of_range(config: SweepConfig, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RayPool(config, **arguments)
    assert not ray.is_initialized()
