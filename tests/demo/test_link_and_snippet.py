from __future__ import annotations

import contextlib
import io
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

import vtprune
from vtprune.budget import Budget
from vtprune.demo.examples import load_examples
from vtprune.demo.snippet import snippet
from vtprune.demo.state import LinkState
from vtprune.eval.models import load
from vtprune.registry import make_pruner


@pytest.mark.parametrize(
    "state",
    [
        LinkState(),
        LinkState("fastv(layer=3)", "average:96", "keep", "how many & which = ?", 5),
        LinkState("divprune/pyramiddrop(stages=(2, 4))", "16", "pack", "ünïcode “?”", 7),
        LinkState(tab="compare", compare="random,prumerge+"),
    ],
)
def test_a_link_gives_the_state_back(state: LinkState) -> None:
    assert LinkState.from_query(dict(parse_qsl(state.to_query())), 8) == (state, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "nothing"),
        ("method", "fastv(layer=__import__('os'))"),
        ("budget", "-3"),
        ("budget", "lots"),
        ("positions", "both"),
        ("example", "8"),
        ("example", "-1"),
        ("tab", "cellar"),
        ("compare", "random,nothing"),
    ],
)
def test_nonsense_in_a_link_is_ignored_and_said(name: str, value: str) -> None:
    state, ignored = LinkState.from_query({name: value, "question": "q"}, 8)
    assert state == LinkState(question="q")
    assert len(ignored) == 1
    assert name in ignored[0]


def test_an_upload_leaves_no_example_in_the_link() -> None:
    assert "example" not in LinkState(example=None).to_query()


def test_the_program_says_what_the_model_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load_examples(1)[0]
    example.picture.save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    code = snippet("embedded", example.question, [vtprune.FastV(layer=3)], [Budget(tokens=48)], positions="pack")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "snippet", "exec"), {})
    answer, report = output.getvalue().splitlines()
    assert answer == example.truth(example.question) == "orange"
    assert report == "Report(fastv, 48 tokens per image, positions=pack, layer 3: 576 -> 48)"


def test_the_program_tries_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load_examples(1)[0]
    example.picture.save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    code = snippet(
        "embedded", example.question, [vtprune.CDPruner(), vtprune.FastV()], [Budget(tokens=n) for n in (9, 8)]
    )
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "snippet", "exec"), {})
    reports = [line for line in output.getvalue().splitlines() if line.startswith("Report(")]
    assert [report[7 : report.index(" tokens")] for report in reports] == [
        "cdpruner, 9",
        "cdpruner, 8",
        "fastv, 9",
        "fastv, 8",
    ]


def test_the_program_reads_a_video() -> None:
    code = snippet("some/model", "what?", [vtprune.FastV()], [Budget(tokens=8)], pictures=0, text_tower="some/clip")
    compile(code, "snippet", "exec")
    assert '{"type": "video", "video": "video.mp4"}, {"type": "text"' in code
    assert "text_tower='some/clip'" in code


def test_the_program_names_what_was_changed() -> None:
    code = snippet("some/model", 'it\'s "what" ?', [make_pruner("divprune/fastv")], [Budget(average=64)], pictures=2)
    compile(code, "snippet", "exec")
    assert "[vtprune.DivPrune(), vtprune.FastV()], vtprune.Budget(average=64), processor" in code
    assert "from_pretrained('some/model'" in code
    assert code.count("Image.open") == 2


def test_examples_know_the_answers() -> None:
    examples = load_examples()
    assert len(examples) == 8
    for example in examples:
        assert example.truth(example.question) is not None
    first = examples[0]
    assert first.truth("What color is the diamond?") == "orange"
    assert first.truth("who painted this?") is None


def test_model_name_in_programs_is_known() -> None:
    assert load().name == "embedded"
