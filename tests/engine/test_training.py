"""Training-mode forward: labels follow the tokens, gradients match the masked run, checkpointing changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

import vtprune
from vtprune.adapters.conformance import ScatteredPruner, masked_logits


def batch(padding: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs = tiny.prompt([1, 2, 1], padding=padding)
    labels = inputs["input_ids"].clone()
    labels[labels == tiny.IMAGE] = -100
    labels[inputs["attention_mask"] == 0] = -100
    return inputs, labels


def gradients(model: Any) -> list[torch.Tensor]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("stages", [(0,), (2,), (2, 4)], ids=str)
def test_loss_is_that_of_the_masked_run(padding: str, stages: tuple[int, ...]) -> None:
    model: Any = tiny.tiny_llava("sdpa").train()
    inputs, labels = batch(padding)
    with vtprune.pruning(model, ScatteredPruner(stages), 0.3, positions="keep"):
        pruned = model(**inputs, labels=labels)
        report = vtprune.report(model)
    visual = inputs["input_ids"] == tiny.IMAGE
    present = []
    for stage in report.stages:
        here = ~visual
        for row, kept in enumerate(stage.kept):
            here[row, kept] = True
        present.append(here)
    logits = masked_logits(model, inputs, stages, present, "keep")
    total, count = torch.zeros(()), 0
    for row, here in enumerate(present[-1]):
        target = labels[row, here][1:]
        total = total + torch.nn.functional.cross_entropy(logits[row, here][:-1], target, reduction="sum")
        count += int((target != -100).sum())
    torch.testing.assert_close(pruned.loss, total / count)
    pruned.loss.backward()
    ours = gradients(model)
    (total / count).backward()
    for one, other in zip(ours, gradients(model), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["visionzip", "fastv"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing(reentrant: bool, name: str) -> None:
    model: Any = tiny.tiny_llava("sdpa").train()
    inputs, labels = batch("left")
    other = tiny.prompt([1, 1], seed=5)
    with vtprune.pruning(model, name, 9):

        def losses() -> Any:
            # Two passes before one backward: recomputation must find the tokens of the right pass.
            first = model(**inputs, labels=labels, use_cache=False).loss
            second = model(**other, labels=other["input_ids"], use_cache=False).loss
            return first + second

        plain = losses()
        plain.backward()
        expected = gradients(model)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        if reentrant and name == "visionzip" and "__call__" in vars(GradientCheckpointingLayer):
            # This release runs hooks inside the checkpoint: tokens made there cannot send gradients out of it.
            with pytest.raises(ValueError, match="use_reentrant=False"):
                losses()
            return
        checkpointed = losses()
        checkpointed.backward()
    torch.testing.assert_close(plain, checkpointed)
    for one, two in zip(expected, gradients(model), strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-3)


def test_keep_all_loss_is_bit_identical() -> None:
    model: Any = tiny.tiny_llava("sdpa").train()
    inputs, labels = batch("right")
    plain = model(**inputs, labels=labels).loss
    with vtprune.pruning(model, "divprune", 1.0):
        assert torch.equal(model(**inputs, labels=labels).loss, plain)
    with vtprune.pruning(model, "divprune", 9):
        model(**inputs, labels=labels)
    assert torch.equal(model(**inputs, labels=labels).loss, plain)


@torch.no_grad()
def test_hidden_states_and_attentions_shorten_at_the_stage() -> None:
    model: Any = tiny.tiny_llava("eager")
    inputs = tiny.prompt([1, 1])
    length = inputs["input_ids"].shape[1]
    with vtprune.pruning(model, ScatteredPruner((2,)), vtprune.Budget(tokens=9)):
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
    short = length - 27
    assert [state.shape[1] for state in output.hidden_states] == [length] * 3 + [short] * 4
    assert [weights.shape[-1] for weights in output.attentions] == [length] * 2 + [short] * 4


@pytest.mark.parametrize("name", ["visionzip", "divprune", "fastv"])
def test_autocast(name: str) -> None:
    model: Any = tiny.tiny_llava("sdpa").train()
    inputs, labels = batch("left")
    with vtprune.pruning(model, name, 9):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
        plain = model(**inputs, labels=labels).loss
    assert loss.isfinite()
    assert abs(loss - plain) < 0.2
