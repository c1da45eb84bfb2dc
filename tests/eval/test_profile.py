"""Profiles on tiny models: what is counted and compared; times themselves are nobody's promise here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from rich.console import Console

import vtprune
from vtprune.adapters import find_adapter
from vtprune.budget import Budget
from vtprune.engine import graphs, prefill_recorder, recordings, vision_recorder
from vtprune.eval import profile as profiles
from vtprune.eval import profiling
from vtprune.eval.break_even import Curve, Pruning
from vtprune.eval.grid import parse_pruner
from vtprune.eval.profile import Found, Profile, ProfileConfig
from vtprune.eval.profile_markdown import to_markdown
from vtprune.eval.profile_report import break_even_lines, pays_from, plot_profile, print_found, to_data
from vtprune.eval.profiling import (
    EAGER,
    FULL,
    GRAPH,
    IDEAL,
    PRUNED,
    Fed,
    Prompt,
    Settings,
    Stock,
    measure_curve,
    measure_row,
)
from vtprune.eval.random_models import ARCHITECTURES, random_model, random_prompts, random_text_tower, word_tokenizer
from vtprune.eval.timing import Laps, Timing, phases_in_turns, time_in_turns, time_one

CPU = torch.device("cpu")
QUICK = Settings(repeats=1, warmup=0, decode_tokens=2)


# Timing.


def test_rounds_are_interleaved() -> None:
    calls: list[str] = []
    rounds: list[int] = []
    runs: dict[str, Callable[[], object]] = {name: partial(calls.append, name) for name in "ab"}
    found = time_in_turns(runs, CPU, repeats=3, warmup=2, advance=lambda: rounds.append(len(calls)))
    assert calls == list("ab" * 5)
    assert rounds == [2, 4, 6, 8, 10]
    assert {name: timing.runs for name, timing in found.items()} == {"a": 3, "b": 3}


def test_slow_functions_stop_early() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.02)

    found = time_in_turns({"slow": slow, "fast": lambda: calls.append("fast")}, CPU, repeats=4, warmup=3, limit=0.01)
    assert found["slow"].runs == 1
    assert found["fast"].runs == 4
    assert calls.count("slow") == 2
    assert found["slow"].median >= 20


@pytest.mark.parametrize(
    ("taken", "expected"),
    [([5.0], (5, 5, 5)), ([1.0, 3.0], (2, 1, 3)), ([1.0, 2.0, 3.0], (2, 1, 3)), ([4.0] * 9, (4, 4, 4))],
)
def test_quartiles(taken: list[float], expected: tuple[float, ...]) -> None:
    timing = Timing.of(taken)
    assert (timing.median, timing.low, timing.high) == expected
    assert timing.per(2).median == timing.median / 2


@pytest.mark.parametrize(("name", "value"), [("repeats", 0), ("warmup", -1)])
def test_refused_rounds(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least .*got {value}"):
        time_one(lambda: None, CPU, **{name: value})


def test_phases() -> None:
    inside: list[bool] = []
    open_now = False

    @contextmanager
    def around() -> Iterator[None]:
        nonlocal open_now
        open_now = True
        time.sleep(0.05)
        yield
        open_now = False

    def run(laps: Laps) -> None:
        inside.append(open_now)
        time.sleep(0.02)
        laps.mark("first")
        laps.mark("second", since_start="both", wait=True)
        time.sleep(0.03)
        laps.mark(None)

    found = phases_in_turns({"run": run}, CPU, repeats=2, warmup=1, around={"run": around})["run"]
    assert inside == [True] * 3
    assert set(found) == {"first", "second", "both"}
    assert 20 <= found["first"].median <= found["both"].median < 50
    assert found["second"].median < 10


# One row.


def question(name: str) -> dict[str, Any]:
    return {} if name == "random/fastv" else tiny.question_side(name)


def measured(model: Any, name: str, budget: Budget, settings: Settings = QUICK, rows: int = 2) -> Any:
    prompt = Prompt(model, tiny.prompt([1] * rows, mask=False), settings, question(name))
    return measure_row(prompt, parse_pruner(name), budget)


def traces(model: Any) -> list[tuple[set[str], int]]:
    """The attributes and the number of hooks of each module."""
    return [
        (set(module.__dict__), len(module._forward_pre_hooks) + len(module._forward_hooks))
        for module in model.modules()
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["divprune", "fastv", "pyramiddrop", "cdpruner", "random/fastv", "tome"])
def test_the_ideal_holds_as_many_tokens(name: str, attention: str) -> None:
    model: Any = tiny.tiny_llava(attention)
    with torch.no_grad():
        model(**tiny.prompt([1]))  # transformers leaves a mark of its own in the first run
    before = traces(model)
    row = measured(model, name, Budget(tokens=9))
    found = row.measured[EAGER]
    assert row.notes == {}
    assert set(found) == {FULL, PRUNED, IDEAL}
    assert (row.tokens, row.keep, row.text_tokens) == (36, 9, 13)
    assert found[PRUNED].kv_bytes == found[IDEAL].kv_bytes == row.nominal_kv_bytes[1]
    assert found[FULL].kv_bytes == row.nominal_kv_bytes[0] > row.nominal_kv_bytes[1]
    assert row.flops[0] > row.flops[1]
    assert all(one.decode is not None and one.vision is not None and one.peak_bytes is None for one in found.values())
    assert row.selection.median > 0
    assert traces(model) == before


def test_the_layers_of_the_ideal_see_those_lengths() -> None:
    model: Any = tiny.tiny_llava("eager")
    prompt = Prompt(model, tiny.prompt([1], mask=False), QUICK)
    seen: list[tuple[int, int]] = []
    attentions: list[Any] = [layer.self_attn for layer in find_adapter(model).layers]
    handles = [
        attention.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(
                (kwargs["hidden_states"].shape[1], kwargs["attention_mask"].shape[-1])
            ),
            with_kwargs=True,
        )
        for attention in attentions
    ]
    fed = Fed(prompt, [40, 40, 20, 10, 10, 10])
    with torch.no_grad(), fed.ready():
        cache, token = fed.first_token(Laps(CPU))
        fed.step(cache, token)
    for handle in handles:
        handle.remove()
    assert seen[:6] == [(length, length) for length in (40, 40, 20, 10, 10, 10)]
    assert seen[6:] == [(1, length + 1) for length in (40, 40, 20, 10, 10, 10)]


@torch.no_grad()
def test_fed_all_tokens_it_is_the_model() -> None:
    model: Any = tiny.tiny_llava("sdpa")
    prompt = Prompt(model, tiny.prompt([1, 1], mask=False), QUICK)
    fed, stock = Fed(prompt, [prompt.length] * 6), Stock(prompt)
    with fed.ready(), stock.ready():
        (ours, token), (theirs, expected) = fed.first_token(Laps(CPU)), stock.first_token(Laps(CPU))
        assert torch.equal(token, expected)
        for one, other in zip(ours.layers, theirs.layers, strict=True):
            assert torch.equal(one.keys, other.keys)
        assert torch.equal(fed.step(ours, token), stock.step(theirs, expected))


@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_static_caches(name: str) -> None:
    row = measured(tiny.tiny_llava("sdpa"), name, Budget(tokens=9), Settings(1, 0, 2, static=True))
    assert row.notes == {}
    assert all(one.decode is not None for one in row.measured[EAGER].values())


@pytest.mark.parametrize("name", ["divprune", "vtw"])
def test_decoding_can_be_left_out(name: str) -> None:
    row = measured(tiny.tiny_llava("sdpa"), name, Budget(tokens=9), Settings(1, 0, 0))
    assert all(one.decode is None for one in row.measured[EAGER].values())


def test_adaptive_budgets_and_all_tokens() -> None:
    model: Any = tiny.tiny_llava("sdpa")
    row = measured(model, "prumerge", Budget(adaptive=True))
    assert row.keep < 36
    row = measured(model, "divprune", Budget(ratio=1.0))
    assert row.keep == 36
    assert row.flops[0] == row.flops[1]


def test_other_families() -> None:
    model: Any = tiny.tiny_llava_next("sdpa")
    inputs = tiny.anyres_prompt([(40, 90), (40, 90)], model)
    del inputs["attention_mask"]
    row = measure_row(Prompt(model, inputs, QUICK), vtprune.make_pruner("divprune"), Budget(tokens=9))
    assert row.notes == {}
    assert row.measured[EAGER][IDEAL].kv_bytes == row.measured[EAGER][PRUNED].kv_bytes


def test_what_cannot_be_fed_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    prompt = Prompt(model, tiny.prompt([1], mask=False), QUICK)
    prompt._given = {}
    row = measure_row(prompt, vtprune.make_pruner("divprune"), Budget(tokens=9))
    assert set(row.measured[EAGER]) == {FULL, PRUNED}
    assert "cannot be fed" in row.notes["eager ideal"]


class Again:
    """Stands for `Recorded` where there is no CUDA device: does the work anew."""

    def __init__(self, work: Callable[[], Any], pool: Any, warmup: int = 2) -> None:
        self._work = work
        for _ in range(warmup):
            work()
        self.result = work()

    def replay(self) -> Any:
        with torch.no_grad():
            self.result = self._work()
        return self.result


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_graphs(monkeypatch: pytest.MonkeyPatch, name: str, static: bool) -> None:
    for module in (recordings, profiling):
        monkeypatch.setattr(module, "Recorded", Again)
    for part in (graphs, vision_recorder, prefill_recorder):
        monkeypatch.setattr(part, "check_devices", lambda tensors: None)
    monkeypatch.setattr(recordings.Recordings, "pool", None)
    monkeypatch.setattr(Prompt, "pool", None)
    row = measured(tiny.tiny_llava("sdpa"), name, Budget(tokens=9), Settings(1, 0, 2, graph=True, static=static))
    assert row.notes == {}
    found = row.measured[GRAPH]
    assert set(found) == {FULL, PRUNED, IDEAL}
    assert found[PRUNED].kv_bytes == found[IDEAL].kv_bytes == row.nominal_kv_bytes[1]
    assert all((one.decode is not None) == static for one in found.values())
    assert row.recorded_selection is not None


def test_without_graphs_the_reason_is_noted() -> None:
    with pytest.warns(UserWarning, match="CUDA"):
        vtprune.wrap(tiny.tiny_llava("sdpa"), "divprune", 9, graph=True)(**tiny.prompt([1]))
    prompt = Prompt(tiny.tiny_llava("sdpa"), tiny.prompt([1], mask=False), QUICK)
    options: dict[str, Any] = {"images_per_prompt": 1}
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"needs? a CUDA device"):
        profiling._recorded_engine(prompt, vtprune.make_pruner("divprune"), Budget(tokens=9), options)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["divprune", "fastv", "cdpruner"])
def test_on_a_gpu(name: str) -> None:
    model: Any = tiny.tiny_llava("sdpa")
    model.cuda()
    inputs = {key: value.cuda() for key, value in tiny.prompt([1, 1], mask=False).items()}
    prompt = Prompt(model, inputs, Settings(3, 1, 2, graph=True, static=True), question(name))
    row = measure_row(prompt, parse_pruner(name), Budget(tokens=9))
    assert row.notes == {}
    assert row.recorded_selection is not None
    for found in row.measured.values():
        assert set(found) == {FULL, PRUNED, IDEAL}
        assert found[PRUNED].kv_bytes == found[IDEAL].kv_bytes == row.nominal_kv_bytes[1]
        assert all(one.decode is not None and one.peak_bytes for one in found.values())
    curve = measure_curve(prompt, [9, 36])
    assert {mode: list(times) for mode, times in curve.items()} == {EAGER: [9, 36], GRAPH: [9, 36]}


# Break-even.

FLAT_THEN_RISING = Curve.of({0: 10.0, 100: 10.0, 500: 50.0})


def test_curve() -> None:
    assert Curve.of({0: 10.0, 50: 9.0, 100: 20.0}).at(75) == 15
    assert [FLAT_THEN_RISING.at(tokens) for tokens in (-5, 0, 300, 700)] == [10, 10, 30, 70]


@pytest.mark.parametrize(
    ("pruning", "expected"),
    [
        # 10 ms for what is left and 5 of overhead: faster than the rest from 150 tokens on.
        (Pruning(500, (100, 100), fixed=True, overhead=5.0), 150),
        # Without overhead as soon as there is more than what is left to prefill.
        (Pruning(500, (100, 100), fixed=True, overhead=0.0), 100),
        # Half of the layers see everything: (10 + P) / 2 + 5 < P from P = 20 on.
        (Pruning(500, (500, 100), fixed=True, overhead=5.0), 200),
        # Beyond what was measured the selection takes longer in proportion, and never pays.
        (Pruning(500, (100, 100), fixed=True, overhead=60.0), None),
        (Pruning(500, (500, 500), fixed=False, overhead=0.0), None),
        # A fifth is left, which costs 10 ms up to 500 tokens.
        (Pruning(500, (100, 100), fixed=False, overhead=5.0), 150),
    ],
)
def test_break_even(pruning: Pruning, expected: int | None) -> None:
    found = pruning.pays_from(FLAT_THEN_RISING)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert abs(found - expected) <= 2000 / 512 + 1


# Grids.


def config(**changes: Any) -> ProfileConfig:
    return ProfileConfig(
        **{
            "pruners": ("divprune,fastv",),
            "budgets": ("9",),
            "batches": ("1,2",),
            "text_tokens": 14,
            "device": "cpu",
            "repeats": 1,
            "warmup": 0,
            "decode_tokens": 1,
            **changes,
        }
    )


def quiet() -> Console:
    return Console(quiet=True)


def run(**changes: Any) -> Found:
    profile = Profile(config(**changes), console=quiet())
    profile.prepare()
    return profile.run()


@pytest.fixture(scope="module")
def found(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run(model=str(tiny_folder), output=tmp_path_factory.mktemp("profile"))


def test_profile(found: Found) -> None:
    assert [(row["batch"], row["pruner"], row["status"]) for row in found.rows] == [
        (batch, name, "done") for batch in (1, 2) for name in ("divprune", "fastv")
    ]
    assert found.failed == []
    assert all(abs(row["text_tokens"] - 14) <= 1 and row["tokens"] == 36 for row in found.rows)
    assert list(found.curve(2, EAGER)) == [1, 2, 4, 9, 18, 27, 36]
    assert found.curve(2, GRAPH) == {}
    for name in ("device", "torch", "transformers", "vtprune", "python", "command", "time"):
        assert found.machine[name]
    assert all(record["machine"] == found.machine for record in (*found.rows, *found.curves))


def test_profile_resumes(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = profiling.measure_row

    def interrupted(prompt: Any, method: Any, *more: Any) -> Any:
        if calls == ["divprune"]:
            raise KeyboardInterrupt
        calls.append(method.name)
        return real(prompt, method, *more)

    monkeypatch.setattr(profiles, "measure_row", interrupted)
    profile = Profile(config(model=str(tiny_folder), output=tmp_path, batches=("2",)), console=quiet())
    profile.prepare()
    with pytest.raises(KeyboardInterrupt):
        profile.run()
    assert [row["pruner"] for row in profile.found.rows] == ["divprune"]
    lines = [json.loads(line) for line in (tmp_path / "profile.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["curve", "row"]
    monkeypatch.setattr(profiles, "measure_row", real)
    again = run(model=str(tiny_folder), output=tmp_path, batches=("2",))
    assert len(again.reused) == 2
    assert [row["pruner"] for row in again.rows] == ["divprune", "fastv"]
    assert again.rows[0] == lines[1]
    # Other settings are other measurements.
    assert run(model=str(tiny_folder), output=tmp_path, batches=("2",), decode_tokens=0).reused == set()


def test_a_row_that_fails_leaves_the_others(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = profiling.measure_row

    def small(prompt: Any, method: Any, *more: Any) -> Any:
        if method.name == "stride":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(prompt, method, *more)

    monkeypatch.setattr(profiles, "measure_row", small)
    found = run(model=str(tiny_folder), output=tmp_path, pruners=("stride,fastv(layer=99),divprune",),
                batches=("1",))  # fmt: skip
    assert [row["status"] for row in found.rows] == ["failed", "failed", "done"]
    assert found.rows[0]["error"] == "out of memory"
    assert "99" in found.rows[1]["error"]
    console = Console(width=200, record=True, quiet=True)
    console.quiet = False
    with console.capture() as told:
        print_found(found, console)
    assert "failed stride, 9 tokens per image, batch 1: out of memory" in told.get()
    assert run(model=str(tiny_folder), output=tmp_path, pruners=("stride",), batches=("1",)).failed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "llava-9"}, "unknown config 'llava-9'; there are llava-1.5-7b"),
        ({"budgets": ("1.5",)}, r"ratio must be in \(0, 1\], got 1.5"),
        ({"budgets": ("0",)}, "at least 1, got 0"),
        ({"budgets": ()}, "at least one budget"),
        ({"pruners": ("divprun",)}, "did you mean 'divprune'"),
        ({"batches": ("1,0",)}, "batch size must be an integer of at least 1, got '0'"),
        ({"batches": ("few",)}, "got 'few'"),
        ({"batches": ()}, "at least one batch size"),
        ({"graph": True}, "graph needs a CUDA device, and the model would run on cpu"),
        ({"layers": 2}, "--config"),
        ({"config": "llava-1.5-7b", "layers": 0}, "layers must be at least 1, got 0"),
        ({"config": "llava-1.5-7b", "model": "some/model"}, "not both"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"text_tokens": 1}, "text_tokens must be at least 2, got 1"),
        ({"decode_tokens": -1}, "decode_tokens must be at least 0, got -1"),
        ({"dtype": "int4"}, "'int4'"),
        ({"device": "warp"}, "'warp'"),
        ({"positions": "drop"}, "'drop'"),
        ({"model": "nobody/nothing"}, "'nobody/nothing'"),
    ],
)
def test_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Profile(config(**{"output": tmp_path / "out", **changes}), console=quiet())
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "profile.jsonl").write_text('{"key": "a", "status": "done"}\nnothing\n')
    with pytest.raises(ValueError, match=r"line 2 of .*profile\.jsonl is no result of a profile"):
        Profile(config(output=tmp_path), console=quiet())


# For people.


def test_tables(found: Found) -> None:
    console = Console(width=220)
    with console.capture() as told:
        print_found(found, console)
    text = told.get()
    for words in ("36 -> 9", "divprune", "fastv", "unpruned", "ideal", "KV, MiB", "torch", "transformers"):
        assert words in text
    assert "divprune, 9 tokens per image, batch 2, eager: pays" in text
    data = json.loads(json.dumps(to_data(found)))
    assert set(data) == {"machine", "rows", "curves"}
    assert all(set(row["break_even"]) == {EAGER} for row in data["rows"])


def made(found: Found, first_token: dict[int, tuple[float, float]], overhead: float) -> Found:
    """The same with other times: of the unpruned and the pruned model by batch size; what is left is free."""
    rows: list[Any] = json.loads(json.dumps([row for row in found.rows if row["pruner"] == "divprune"]))
    for row in rows:
        measured = row["measured"][EAGER]
        full, pruned = first_token[row["batch"]]
        measured[FULL]["first_token"]["median"] = full
        measured[PRUNED]["first_token"]["median"] = pruned
        measured[PRUNED]["vision"] = measured[FULL]["vision"]
        measured[PRUNED]["prefill"]["median"] = measured[IDEAL]["prefill"]["median"] + overhead
    curves: list[Any] = json.loads(json.dumps(found.curves))
    for curve in curves:
        for tokens, timing in curve["prefill"][EAGER].items():
            timing["median"] = float(tokens)
    return Found(found.machine, rows, curves)


def test_markdown(found: Found) -> None:
    text = to_markdown(found)
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 2
    assert len({line.count("|") for line in tables[0]}) == 1
    row = next(row for row in found.rows if row["status"] == "done")
    prefill = row["measured"][EAGER][PRUNED]["prefill"]
    assert f"{prefill['median']:.2f} ({prefill['low']:.2f}-{prefill['high']:.2f})" in tables[0][2]
    assert f"{row['measured'][EAGER][FULL]['kv_bytes'] / 2**20:.0f}" in tables[1][2].split(" | ")
    assert found.machine["command"] in text


def test_break_even_is_told(found: Found) -> None:
    # One millisecond a token: 9 tokens and 11 of overhead make 20.
    known = made(found, {1: (36.0, 40.0), 2: (36.0, 20.0)}, overhead=11.0)
    tokens = pays_from(known, known.rows[0], EAGER)
    assert isinstance(tokens, int)
    assert abs(tokens - 20) <= 1
    lines = break_even_lines(known, known.rows)
    assert f"divprune, 9 tokens per image, batch 1, eager: pays from about {tokens} visual tokens on" in lines
    assert (
        "divprune, 9 tokens per image, eager: with 36 visual tokens the first token comes sooner from batch 2 on"
        in (lines)
    )
    slow = made(found, {1: (36.0, 40.0), 2: (36.0, 50.0)}, overhead=60.0)
    assert pays_from(slow, slow.rows[0], EAGER) == "never"
    lines = break_even_lines(slow, slow.rows)
    assert any("batch 1, eager: pays never on this machine (up to 144 visual tokens)" in line for line in lines)
    assert any("sooner at no batch size up to 2" in line for line in lines)


def test_plot(found: Found, tmp_path: Path) -> None:
    assert plot_profile(found, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as drawn:
        assert drawn.width > 1200
    assert not plot_profile(Found(found.machine), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


# Random weights.


@pytest.mark.parametrize(("name", "tokens"), [(name, 2928 if "next" in name else 576) for name in ARCHITECTURES])
def test_architectures(name: str, tokens: int) -> None:
    model = random_model(name, torch.device("meta"), torch.bfloat16, layers=2)
    assert len(find_adapter(model).layers) == 2
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())
    pixels = {
        key: value.to("meta") if key == "pixel_values" else value
        for key, value in ARCHITECTURES[name].pixels(2, CPU, torch.bfloat16).items()
    }
    layouts = find_adapter(model).layouts("image", [], pixels)
    assert [layout.tokens for layout in layouts] == [tokens] * 2


def test_random_prompts() -> None:
    model: Any = tiny.tiny_llava("sdpa")
    model.config.image_token_id = 298
    inputs = random_prompts(model, 3, 20, {"pixel_values": torch.randn(3, 3, 48, 48)})
    assert inputs["input_ids"].shape == (3, 56)
    assert ((inputs["input_ids"] == 298).sum(1) == 36).all()
    assert inputs["input_ids"][:, :10].lt(250).all()


def test_random_text_tower() -> None:
    tower = random_text_tower(tiny.tiny_llava("sdpa"))
    pooled = tower.encode(["w1 w2", "w3"])
    assert pooled[0].shape[-1] == 768
    assert word_tokenizer()("w7 w9")["input_ids"] == [7, 9]
