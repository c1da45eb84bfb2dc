from __future__ import annotations

from pathlib import Path

from made_results import make_results
from PIL import Image

from vtprune.eval.pareto import pareto_lines, plot_pareto


def test_seeds_make_one_point_and_budgets_one_line(tmp_path: Path) -> None:
    records = make_results(tmp_path, ("random", "stride"), (64, 32, 128), seeds=(0, 1, 2)).records
    lines = pareto_lines(records)
    assert list(lines) == ["random", "stride"]
    for points in lines.values():
        assert [point["average_tokens"] for point in points] == [32, 64, 128]
    drawn = [record["value"] for record in records if record["label"] == "random" and record["average_tokens"] == 64]
    assert len(drawn) == 3
    assert abs(lines["random"][1]["value"] - sum(drawn) / 3) < 1e-12


def test_a_picture_is_drawn_where_there_are_points(tmp_path: Path) -> None:
    records = make_results(tmp_path, ("stride",), (64, 32)).records
    assert plot_pareto("scenes", records, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 1000
    nothing = [{**record, "average_tokens": 0.0} for record in records]
    assert not plot_pareto("scenes", nothing, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
