"""FitPrune's offline step: what is recorded, and the schedule that comes of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import vtprune
from vtprune.budget import Budget
from vtprune.cli import app
from vtprune.eval.calibrate import Calibration, Example, calibrate
from vtprune.eval.compare import chat_inputs
from vtprune.eval.embedded.scenes import questions, render, sample_scene
from vtprune.eval.grid import parse_pruner
from vtprune.eval.models import LoadedModel, load


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    from tiny_folder import save_tiny_model

    return load(str(save_tiny_model(tmp_path_factory.mktemp("calibrate") / "model")), attn_implementation="eager")


def examples(count: int) -> list[Example]:
    rng = random.Random(5)
    found = []
    for _ in range(count):
        scene = sample_scene(rng)
        found.append((render(scene), rng.choice(questions(scene, rng)).text))
    return found


def test_the_schedule_meets_its_average(loaded: LoadedModel) -> None:
    found = calibrate(loaded, examples(4), Budget(average=15))
    assert found.samples == 4
    assert found.tokens == 36
    assert len(found.shares) == 5
    assert list(found.shares) == sorted(found.shares, reverse=True)
    assert found.average_share * 36 <= 15
    # One step of alpha less would be too much.
    assert found.average_share * 36 > 10
    model: Any = loaded.model
    inputs = chat_inputs(loaded, *examples(1)[0])
    with vtprune.pruning(model, found.pruner, found.keep), torch.no_grad():
        model(**inputs)
        report = vtprune.report(model)
    assert report.average_tokens == pytest.approx(found.average_share * 36, abs=1.5)


def test_what_is_recorded_is_the_models_attention(loaded: LoadedModel) -> None:
    """A layer in which no text token looks at the picture could lose all of it; the recorder must see the real map."""
    (example,) = examples(1)
    model: Any = loaded.model
    inputs = chat_inputs(loaded, *example)
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    visual = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    text = torch.arange(visual.max() + 1, inputs["input_ids"].shape[1])
    from vtprune.adapters import find_adapter
    from vtprune.eval.calibrate import Recorder

    recorder = Recorder().fit(find_adapter(model).depths)
    with vtprune.pruning(model, recorder, "adaptive", positions="keep"), torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    assert sorted(recorder.own) == [1, 2, 3, 4, 5]
    for layer in range(1, 6):
        strongest = maps[layer - 1][0].amax(dim=0)
        own = strongest[visual][:, visual].sum(0) / 36
        cross = strongest[text][:, visual].sum(0)
        torch.testing.assert_close(recorder.own[layer][0][0], own, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(recorder.cross[layer][0][0], cross, atol=1e-5, rtol=1e-4)


def test_flops_are_a_target_too(loaded: LoadedModel) -> None:
    half = calibrate(loaded, examples(2), Budget(flops=0.6))
    most = calibrate(loaded, examples(2), Budget(flops=0.9))
    assert half.average_share < most.average_share < 1


@pytest.mark.parametrize("budget", [Budget(tokens=9), Budget(ratio=0.5), Budget(adaptive=True)])
def test_other_targets_are_refused(loaded: LoadedModel, budget: Budget) -> None:
    with pytest.raises(ValueError, match="write average:192"):
        calibrate(loaded, examples(1), budget)


def test_no_picture_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match="no picture"):
        calibrate(loaded, [], Budget(average=9))


def test_the_command_writes_what_the_sweep_reads(loaded: LoadedModel, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, (picture, _) in enumerate(examples(3)):
        picture.save(pictures / f"{number}.png")
    output = tmp_path / "schedule.json"
    result = CliRunner().invoke(
        app,
        [
            *("calibrate", "--model", loaded.name, "--target", "average:15", "--images", str(pictures)),
            *("--question", "what color is the top ?", "--samples", "2", "--output", str(output)),
        ],
    )
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    assert record["samples"] == 2
    method = parse_pruner(record["pruner"])
    assert isinstance(method, vtprune.pruner_class("fitprune"))
    shares: tuple[float, ...] = method.config()["shares"]
    assert shares == pytest.approx(record["shares"], abs=1e-4)
    refused = CliRunner().invoke(app, ["calibrate", "--model", loaded.name, "--output", str(output)])
    assert refused.exit_code == 2
    assert "--images is missing" in refused.output


def test_calibration_keeps_at_least_one_token() -> None:
    assert Calibration((0.01,), 0.5, 0.5, 1, 36).keep == 1
