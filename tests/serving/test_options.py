"""What may be asked of a server, and what is refused before it reaches one; runs without vLLM."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import vtprune.adapters.vllm.command
import vtprune.cli.common
from vtprune.adapters.vllm import ARCHITECTURES, architecture_for
from vtprune.adapters.vllm.command import command, serve_arguments
from vtprune.adapters.vllm.eligibility import Abilities, refusal
from vtprune.adapters.vllm.options import Options
from vtprune.adapters.vllm.plan import Plan, Plans
from vtprune.budget import Budget
from vtprune.eval.embedded import MODEL_DIR
from vtprune.layout import grid_layout
from vtprune.pruner import Depths, Signal
from vtprune.registry import pruner_classes

ABLE = Abilities("VtpruneTest", Depths(8, 6))
DEFAULT = Options.read({"pruner": "divprune", "budget": 64})


def plan(**given: Any) -> Plan:
    return Plan(Options.read(given, DEFAULT), ABLE)


def test_what_is_left_out_is_the_default() -> None:
    assert Options.read(None, DEFAULT) is DEFAULT
    found = Options.read({"budget": 0.25}, DEFAULT)
    assert (found.pruner.name, found.budget) == ("divprune", Budget(ratio=0.25))
    assert Options.read({"pruner": "random(seed=3)"}, DEFAULT).pruner.config() == {"seed": 3}


def test_one_text_for_one_choice() -> None:
    assert Options.read({"budget": 64, "pruner": "divprune"}).text == DEFAULT.text
    assert Options.read({"budget": 32}, DEFAULT).text != DEFAULT.text
    assert Options.read(json.loads(DEFAULT.text)) == DEFAULT


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ("divprune", TypeError, "must be an object"),
        ({"prune": 1}, ValueError, "has no field prune; it has pruner and budget"),
        ({"pruner": None}, ValueError, "has no pruner"),
        ({"pruner": 5}, TypeError, "pruner must be a text"),
        ({"pruner": "divprun"}, ValueError, "did you mean 'divprune'"),
        ({"pruner": "random(sed=1)"}, TypeError, "random has no option sed"),
        ({"pruner": "random(" + "1" * 1000 + ")"}, ValueError, "may be 1000 characters long"),
        ({"budget": 0}, ValueError, "at least 1, got 0"),
        ({"budget": -5}, ValueError, "at least 1, got -5"),
        ({"budget": 1.5}, ValueError, r"in \(0, 1\], got 1.5"),
        ({"budget": True}, TypeError, "budget must be a number"),
        ({"budget": [64]}, TypeError, "budget must be a number"),
        ({"budget": "many"}, ValueError, "'many' is no budget"),
        ({"budget": {"token": 64}}, ValueError, "budget has no field token"),
    ],
)
def test_bad_options(given: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Options.read(given, DEFAULT)


SERVED = set(
    "divprune downsample fastervlm globalcom2 gprune hiprune hired holov m3 pool prumerge prumerge+ random scope "
    "stride tome visionzip vispruner".split()
)
REASONS = {"decoder layer": 13, "looks at the question": 4, "leaves an image no token": 1}


def test_every_method_is_served_or_refused_with_a_reason() -> None:
    found = {name: refusal(cls().fit(ABLE.depths), Budget(tokens=64)) for name, cls in pruner_classes().items()}
    assert {name for name, reason in found.items() if reason is None} == SERVED
    reasons = [reason for reason in found.values() if reason is not None]
    for part, count in REASONS.items():
        assert sum(part in reason for reason in reasons) == count, part
    assert len(reasons) == sum(REASONS.values())


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"pruner": "fastv"}, "fastv removes tokens before decoder layer"),
        ({"pruner": "cdpruner"}, "cdpruner looks at the question"),
        ({"pruner": "drop-all"}, "leaves an image no token"),
        ({"pruner": "divprune/fastv"}, "removes tokens before decoder layer"),
        ({"pruner": "tome(proportional_attention=True)"}, "adds to attention logits"),
        ({"pruner": "prumerge", "budget": "adaptive"}, "an adaptive budget"),
        ({"budget": "flops:0.5"}, "a share of FLOPs"),
        ({"budget": {"tokens": 64, "per": "prompt"}}, "a budget per prompt"),
        ({"pruner": "hiprune(object_layer=9)"}, "looks at encoder layers"),
    ],
)
def test_what_cannot_be_served(given: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plan(**given)


def test_signals_that_a_model_lacks() -> None:
    lacking = Abilities("VtpruneTest", Depths(8, 6), {Signal.PIXELS: "its tower takes pictures of one size"})
    with pytest.raises(ValueError, match="downsample needs the signal 'pixels': its tower takes pictures of one size"):
        Plan(Options.read({"pruner": "downsample"}, DEFAULT), lacking)
    without_cls = Abilities("VtpruneTest", Depths(8, 6), {Signal.ENCODER_CLS: "no CLS"})
    found = Plan(Options.read({"pruner": "visionzip"}, DEFAULT), without_cls)
    assert Signal.ENCODER_CLS not in found.signals
    assert Signal.ENCODER_CLS in plan(pruner="visionzip").signals


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"budget": 64}, 64),
        ({"budget": 0.25}, 144),
        ({"budget": 1000}, 576),
        ({"budget": "average:64"}, 64),
        ({"pruner": "m3"}, 36),
        ({"pruner": "downsample", "budget": 65}, 64),
        ({"pruner": "stride/divprune"}, 64),
    ],
)
def test_one_count_for_all(given: Any, kept: int) -> None:
    assert plan(**given).kept(grid_layout(24, 24)) == kept


def test_plans_of_a_server() -> None:
    plans = Plans(SimpleNamespace(vtprune={"pruner": "divprune", "budget": 64}), ABLE)
    assert plans.requested(None) is plans.of(plans.default.text)
    assert plans.requested({"budget": 32}).kept(grid_layout(24, 24)) == 32
    with pytest.raises(ValueError, match="VtpruneTest needs to know what to keep: --hf-overrides"):
        Plans(SimpleNamespace(), ABLE)


def test_architectures() -> None:
    for model_type, (_, architecture) in ARCHITECTURES.items():
        assert architecture_for(model_type) == architecture
        assert architecture.startswith("Vtprune")  # never in place of vLLM's own
    with pytest.raises(ValueError, match=r"'gemma3' cannot be served pruned; families that can: .*llava"):
        architecture_for("gemma3")


def test_serve_arguments() -> None:
    found = serve_arguments("embedded", "visionzip", "0.25", ["--port", "8001", '--hf-overrides={"rope": 1}', "-q"])
    assert found[:3] == ["serve", str(MODEL_DIR), "--hf-overrides"]
    assert json.loads(found[3]) == {
        "rope": 1,
        "architectures": ["VtpruneLlavaForConditionalGeneration"],
        "vtprune": {"pruner": "visionzip", "budget": "0.25"},
    }
    assert found[4:] == ["--served-model-name", "embedded", "--port", "8001", "-q"]


@pytest.mark.parametrize(
    ("pruner", "others", "match"),
    [
        ("fastv", [], "fastv removes tokens before decoder layer 2"),
        ("divprune", ["--hf-overrides", "x"], "must be a JSON object, got 'x'"),
        ("divprune", ["--hf-overrides"], "must be a JSON object, got ''"),
        ("divprune", ["--hf-overrides", "[1]"], r"must be a JSON object, got '\[1\]'"),
        ("divprune", ["--hf-overrides", '{"architectures": ["X"]}'], "may not name 'architectures'"),
    ],
)
def test_serve_refuses(pruner: str, others: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        serve_arguments("embedded", pruner, "64", others)


def test_the_command_prints_what_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vtprune.cli.common, "find_spec", lambda name: object())
    shown = CliRunner().invoke(vtprune.cli.app, ["serve", "embedded", "--budget", "32", "--print-only", "--port", "1"])
    assert shown.exit_code == 0, shown.output
    words = shlex.split(shown.output)
    assert words[:3] == ["vllm", "serve", str(MODEL_DIR)]
    assert json.loads(words[4])["vtprune"] == {"pruner": "divprune", "budget": "32"}
    assert words[-2:] == ["--port", "1"]


@pytest.mark.parametrize(
    ("installed", "arguments", "message"),
    [
        (None, ["serve", "embedded"], "pip install 'vtprune[vllm]'"),
        (object(), ["serve", "embedded", "--pruner", "fastv"], "fastv removes tokens before decoder layer 2"),
        (object(), ["serve", "embedded", "--budget", "0"], "at least 1, got 0"),
    ],
)
def test_the_command_refuses(
    monkeypatch: pytest.MonkeyPatch, installed: object, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(vtprune.cli.common, "find_spec", lambda name: installed)
    shown = CliRunner().invoke(vtprune.cli.app, arguments)
    assert shown.exit_code == 2
    assert message in shown.output


def test_what_starts_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(vtprune.adapters.vllm.command, "version", lambda name: "0.33.0")
    assert command(["serve", "x", "--port", "1"])[1:] == "-m vllm.entrypoints.cli.main serve x --port 1".split()
    monkeypatch.setattr(vtprune.adapters.vllm.command, "version", version)
    assert command(["serve", "x", "--port", "1"])[1:] == (
        "-m vllm.entrypoints.openai.api_server --model x --port 1".split()
    )
