from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vtprune.cli import app
from vtprune.registry import list_pruners


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, *words: str) -> None:
    """One line on standard error, exit code 2, nothing else."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("vtprune: ")
    for word in words:
        assert word in result.stderr


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").resize((60, 48)).save(path)
    return path


def test_help_names_the_commands() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for command in ("list", "run", "check", "sweep", "profile", "calibrate", "demo"):
        assert f" {command} " in result.stdout
        assert call(command, "--help").exit_code == 0


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, vtprune.cli, typer.testing as t; t.CliRunner().invoke(vtprune.cli.app, ['--help']); "
        "print([name for name in ('matplotlib', 'datasets', 'gradio', 'lmms_eval') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_check_runs_the_invariants() -> None:
    result = call("check", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["passes"]
    assert record["adapter"] == "LlavaAdapter"
    assert len(record["checks"]) > 12
    assert record["missing_signals"] == {}
    told = call("check", "--tolerance", "1e-9")
    assert told.exit_code == 1
    assert "pruned equals masked" in told.stderr
    assert "allowed 1e-09" in told.stderr


def test_check_refuses_what_is_no_model(tmp_path: Path) -> None:
    refused(call("check", "--model", tmp_path), "config.json")


def test_list_json() -> None:
    rows = json.loads(call("list", "--json").stdout)
    assert [row["name"] for row in rows] == list_pruners()
    fastv = next(row for row in rows if row["name"] == "fastv")
    assert fastv["layers"] == [2]
    assert fastv["training_free"] is True
    assert {"year", "signals", "query_aware", "merges", "paper", "summary", "options"} <= set(fastv)


def test_list_table() -> None:
    result = call("list")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in list_pruners())


def run(folder: Path, picture: Path, output: Path, *more: object) -> Result:
    return call("run", "--image", picture, "--model", folder, "--output", output, "--max-new-tokens", 2,
                "--device", "cpu", *more)  # fmt: skip


def test_run(tiny_folder: Path, picture: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "kept.png"
    arguments = ("--question", "what color is", "--pruner", "fastv(layer=3)", "--budget", 9)
    result = run(tiny_folder, picture, overlay, *arguments)
    assert result.exit_code == 0, result.output
    for words in ("answer", "visual tokens", "22.5", "GFLOPs", "time to first token", "kept.png"):
        assert words in result.stdout
    with Image.open(overlay) as drawn:
        assert drawn.width >= 768


def test_run_json(tiny_folder: Path, picture: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "kept.png"
    arguments = ("--question", "what color", "--budget", "0.25", "--positions", "keep", "--json")
    result = run(tiny_folder, picture, overlay, *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["tokens_full"], found["full"]["tokens"], found["pruned"]["tokens"]) == (36, 36, 9)
    assert (found["positions"], found["overlay"]) == ("keep", str(overlay))
    assert len(found["kept"]) == 9
    assert overlay.is_file()


def test_run_shows_brackets_as_they_are(tiny_folder: Path, picture: Path, tmp_path: Path) -> None:
    result = run(tiny_folder, picture, tmp_path / "o.png", "--question", "[/bold] what", "--budget", 9)
    assert result.exit_code == 0, result.output
    assert "[/bold] what" in result.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--image": "missing.png"}, ["missing.png", "does not exist"]),
        ({"--image": "{text}"}, ["no picture in a format"]),
        ({"--image": "{dot}"}, ["1 x 1 pixels"]),
        ({"--image": "{moving}"}, ["animation of 2 frames"]),
        ({"--question": " "}, ["--question is missing"]),
        ({"--pruner": "divprun"}, ["unknown pruner 'divprun'", "did you mean 'divprune'"]),
        ({"--pruner": "fastv(layer=99)"}, ["layer 99", "0 to 5"]),
        ({"--pruner": "fastv(depth=1)"}, ["no option depth", "layer"]),
        ({"--budget": "0"}, ["at least 1", "got 0"]),
        ({"--budget": "1.5"}, ["ratio", "(0, 1]"]),
        ({"--budget": "lots"}, ["'lots' is no budget"]),
        ({"--positions": "drop"}, ["positions must be keep or pack", "'drop'"]),
        ({"--model": "nobody/nothing"}, ["'nobody/nothing'"]),
        ({"--model": "{empty}"}, ["config.json"]),
        ({"--dtype": "int4"}, ["dtype must be one of", "'int4'"]),
        ({"--device": "warp"}, ["device 'warp'"]),
        ({"--output": "{empty}"}, ["is a folder"]),
        ({"--output": "no/such/kept.png"}, ["folder no/such", "does not exist"]),
    ],
)
def test_run_refuses(
    tiny_folder: Path, picture: Path, tmp_path: Path, change: dict[str, str], words: list[str]
) -> None:
    places = {name: tmp_path / name for name in ("text", "dot", "moving", "empty")}
    places["text"].write_text("hello")
    Image.new("RGB", (1, 1)).save(places["dot"], "PNG")
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(places["moving"], "GIF", save_all=True, append_images=frames[1:])
    places["empty"].mkdir()
    arguments: dict[str, Any] = {
        "--image": picture,
        "--question": "what",
        "--model": tiny_folder,
        "--budget": "9",
        "--output": tmp_path / "kept.png",
        "--device": "cpu",
    }
    arguments |= {name: value.format(**places) for name, value in change.items()}
    result = call("run", *[word for pair in arguments.items() for word in pair])
    refused(result, *words)
    assert not (tmp_path / "kept.png").exists()


def test_run_needs_a_picture_for_other_models(tiny_folder: Path) -> None:
    refused(call("run", "--model", tiny_folder, "--question", "what"), "--image is missing")


def sweep(tiny: ModuleType, folder: Path, tasks: Path, output: Path, *more: object) -> Result:
    return call("sweep", "--model", folder, "--tasks", tiny.TASK, "--include-path", tasks, "--output", output,
                "--device", "cpu", "--batch-size", 5, "--no-baselines", "--prefill-repeats", 0, *more)  # fmt: skip


def test_sweep(tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path) -> None:
    arguments = ("--pruners", "stride,random", "--budgets", "9", "--limit", 4, "--seeds", 0)
    result = sweep(tiny, tiny_folder, tiny_tasks, tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    assert "3 cells, 0 of them from an earlier run; 0 failed." in result.stdout
    for name in ("pareto.png", "report.html", "report.md", "report.csv"):
        assert str(tmp_path / "out" / name) in result.stdout
        assert (tmp_path / "out" / name).is_file()
    again = sweep(tiny, tiny_folder, tiny_tasks, tmp_path / "out", *arguments, "--json")
    records = json.loads(again.stdout)
    assert [record["pruner"] for record in records] == ["full", "stride", "random"]
    assert records == [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]


def test_sweep_with_a_failed_cell_says_so(
    tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path
) -> None:
    result = sweep(
        tiny, tiny_folder, tiny_tasks, tmp_path, "--pruners", "fastv(layer=99)", "--budgets", 9, "--limit", 2
    )
    assert result.exit_code == 1
    assert "1 failed" in result.stdout
    assert "layer 99" in result.stderr


def test_interrupted_sweep(
    tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vtprune.eval.harness.evaluate", interrupted)
    result = sweep(tiny, tiny_folder, tiny_tasks, tmp_path, "--pruners", "stride", "--budgets", 9)
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pruners", "strid"], ["did you mean 'stride'"]),
        (["--budgets", "64,-1"], ["at least 1", "-1"]),
        (["--limit", "0"], ["limit must be at least 1"]),
        (["--seeds", "0,one"], ["seeds must be whole numbers", "'one'"]),
        (["--preset", "nightly"], ["embedded, quick, paper, video", "'nightly'"]),
        (["--grid", "{file}"], ["must hold a mapping"]),
        (["--output", "{file}"], ["file"]),
        (["--model", "nobody/nothing"], ["'nobody/nothing'"]),
    ],
)
def test_sweep_refuses(
    tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = [word.format(file=tmp_path / "file") for word in arguments]
    refused(sweep(tiny, tiny_folder, tiny_tasks, tmp_path / "out", *arguments), *words)
    assert not (tmp_path / "out").exists()


def profile(folder: Path, *more: object) -> Result:
    grid = ("--pruners", "stride,fastv(layer=3)", "--budgets", 9, "--batches", "1,2", "--text-tokens", 12)
    quick = ("--repeats", 1, "--warmup", 0, "--decode", 1, "--device", "cpu")
    return call("profile", "--model", folder, *grid, *quick, *more)


def test_profile(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = ("--output", tmp_path / "out", "--plot", tmp_path / "times.png")
    result = profile(tiny_folder, *arguments)
    assert result.exit_code == 0, result.output
    for words in ("36 -> 9", "fastv(layer=3)", "ideal", "KV", "pays", "torch", "times.png", "profile.jsonl"):
        assert words in result.stdout
    assert "6/6" in result.stderr
    with Image.open(tmp_path / "times.png") as drawn:
        assert drawn.width > 1000
    again = profile(tiny_folder, *arguments, "--json")
    found = json.loads(again.stdout)
    assert [(row["batch"], row["label"]) for row in found["rows"]] == [
        (batch, label) for batch in (1, 2) for label in ("stride", "fastv(layer=3)")
    ]
    lines = [json.loads(line) for line in (tmp_path / "out" / "profile.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name != "break_even"} for row in found["rows"]]
    assert rows == [line for line in lines if line["kind"] == "row"]
    assert set(found["machine"]) >= {"device", "torch", "transformers", "vtprune", "command", "time"}


def test_interrupted_profile_shows_what_is_there(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtprune.eval.profiling import measure_row

    def stop_at_fastv(prompt: Any, method: Any, *more: Any) -> Any:
        if method.name == "fastv":
            raise KeyboardInterrupt
        return measure_row(prompt, method, *more)

    monkeypatch.setattr("vtprune.eval.profile.measure_row", stop_at_fastv)
    result = profile(tiny_folder)
    assert result.exit_code == 130
    assert "finished rows are kept" in result.stderr
    assert "stride" in result.stdout


def test_profile_with_a_failed_row_says_so(tiny_folder: Path) -> None:
    result = profile(tiny_folder, "--pruners", "fastv(layer=99)")
    assert result.exit_code == 1
    assert "layer 99" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "llava-9", "--model", "embedded"], ["unknown config 'llava-9'", "llava-1.5-7b"]),
        (["--budgets", "2.5"], ["ratio", "(0, 1]", "2.5"]),
        (["--graph"], ["graph needs a CUDA device", "cpu"]),
        (["--batches", "0"], ["at least 1", "'0'"]),
        (["--layers", "2"], ["--config"]),
        (["--plot", "no/such/plot.png"], ["folder no/such", "does not exist"]),
        (["--model", "nobody/nothing"], ["'nobody/nothing'"]),
    ],
)
def test_profile_refuses(tiny_folder: Path, arguments: list[str], words: list[str]) -> None:
    refused(profile(tiny_folder, *arguments), *words)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("vtprune.cli.common.find_spec", lambda name: None if name == "lmms_eval" else real(name))
    refused(call("sweep"), "needs lmms-eval", "pip install 'vtprune[eval]'")
    monkeypatch.setattr("vtprune.cli.common.find_spec", lambda name: None if name == "matplotlib" else real(name))
    refused(call("profile", "--plot", "plot.png"), "needs matplotlib", "pip install 'vtprune[eval]'")
