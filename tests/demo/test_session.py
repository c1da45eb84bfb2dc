from __future__ import annotations

import math
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vtprune
from vtprune.budget import Budget
from vtprune.demo.session import Ask, DemoError, Outcome, Partial, Setting, Stop, Stopped, Studio
from vtprune.demo.sheet import sheet
from vtprune.eval.compare import compare
from vtprune.eval.models import load
from vtprune.layout import grid_layout
from vtprune.registry import make_pruner


@pytest.fixture(scope="module")
def studio(tiny_folder: Path) -> Studio:
    return Studio(load(str(tiny_folder), device="cpu"))


def noise(seed: int = 2) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8))


def ask(*seeds: int, tokens: int = 6) -> Ask:
    return Ask(tuple(noise(seed) for seed in seeds or (2,)), "what color is", tokens)


def setting(method: str, budget: int = 9) -> Setting:
    return Setting(make_pruner(method), Budget(tokens=budget))


def last(studio: Studio, question: Ask, chosen: Setting) -> Outcome:
    *_, found = studio.look(question, chosen)
    assert isinstance(found, Outcome)
    return found


def is_bare(studio: Studio) -> bool:
    """Whether nothing is left on the model."""
    try:
        vtprune.report(studio.loaded.model)
    except ValueError as error:
        return "is not wrapped" in str(error)
    return False


@pytest.mark.parametrize("method", ["divprune", "fastv", "pyramiddrop", "visionzip"])
def test_it_says_what_the_command_line_says(studio: Studio, method: str) -> None:
    found = last(studio, ask(), setting(method))
    known = compare(studio.loaded, noise(), "what color is", make_pruner(method), Budget(tokens=9), max_new_tokens=6)
    assert (found.full.answer, found.pruned.answer) == (known.full.answer, known.pruned.answer)
    assert list(found.stages[-1].images[0].kept) == known.kept
    assert (found.pruned.prefill_flops, found.pruned.kv_bytes) == (known.pruned.prefill_flops, known.pruned.kv_bytes)
    assert np.array_equal(np.asarray(found.seen[0]), np.asarray(known.seen))
    assert found.tokens_per_layer[-1] == 9
    assert is_bare(studio)


def test_answers_stream(studio: Studio) -> None:
    steps = list(studio.look(ask(), setting("stride")))
    partial, found = steps[:-1], steps[-1]
    assert isinstance(found, Outcome)
    assert all(isinstance(step, Partial) for step in partial)
    texts = [step.full for step in partial if isinstance(step, Partial) and step.pruned is None]
    assert len(texts) > 2
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == found.full.answer
    assert [step.pruned for step in partial if isinstance(step, Partial)][-1] == found.pruned.answer


def test_several_pictures(studio: Studio) -> None:
    found = last(studio, ask(1, 2, 3), setting("fastv"))
    assert found.tokens == 3 * 36
    assert [len(image.kept) for image in found.stages[-1].images] == [9, 9, 9]
    assert [image.scores != {} for image in found.stages[-1].images] == [True] * 3
    for seed, picture in zip((1, 2, 3), found.seen, strict=True):
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(noise(seed))).max() <= 1


def test_film(studio: Studio, film_folder: Path) -> None:
    assert not studio.takes_videos()
    cinema = Studio(load(str(film_folder), device="cpu"))
    assert cinema.takes_videos()
    frames = tuple(noise(seed).resize((112, 84)) for seed in range(6))
    question = Ask((), "what color is", 4, film=frames)
    (layout,) = cinema.probe(question)
    assert len(layout.grids) == 3
    found = last(cinema, question, setting("divprune", 20))
    assert found.layouts == (layout,)
    assert len(found.stages[-1].images[0].kept) == 20
    assert found.seen == (frames,)
    assert sheet([found]).width > 3 * 300
    with pytest.raises(DemoError, match="no visual tokens"):
        studio.probe(question)


def test_budget_that_keeps_everything(studio: Studio) -> None:
    found = last(studio, ask(), setting("divprune", 99))
    assert found.same
    assert found.stages[-1].images[0].kept == tuple(range(36))


def test_agreement_is_the_probability_of_the_full_answer(studio: Studio) -> None:
    """With all tokens the greedy answer's own probability, recomputed here step by step without a cache."""
    everything, few = studio.compare(ask(), [setting("stride", 36), setting("stride", 4)])
    model: Any = studio.loaded.model
    from vtprune.eval.compare import chat_inputs, generate

    inputs = chat_inputs(studio.loaded, noise(), "what color is")
    ids = generate(studio.loaded, inputs, 6)
    total = 0.0
    with torch.no_grad():
        for number, token in enumerate(ids):
            tokens = torch.cat([inputs["input_ids"], ids[None, :number]], dim=1)
            logits = model(input_ids=tokens, pixel_values=inputs["pixel_values"]).logits[0, -1]
            total += float(logits.double().log_softmax(-1)[token])
    assert everything.agreement is not None
    assert math.isclose(everything.agreement, total, rel_tol=1e-3)
    assert few.agreement is not None
    assert few.agreement != everything.agreement


def test_plan(studio: Studio) -> None:
    layout = grid_layout(6, 6)
    assert studio.plan(setting("divprune"), layout) == (9,) * 6
    assert studio.plan(Setting(make_pruner("fastv", layer=3), Budget(average=24)), layout) == (36,) * 3 + (12,) * 3
    with pytest.raises(DemoError, match="layers are 0 to 5"):
        studio.plan(Setting(make_pruner("fastv", layer=9), Budget(tokens=9)), layout)
    assert studio.probe(ask()) == (layout,)
    assert studio.probe(ask(1, 2)) == (layout, layout)


@pytest.mark.parametrize(
    ("question", "chosen", "words"),
    [
        (Ask((), "what"), setting("stride"), "no picture yet"),
        (Ask((noise(),), "  "), setting("stride"), "Type a question"),
        (ask(), Setting(make_pruner("fastv", layer=9), Budget(tokens=9)), "fastv prunes before decoder layer 9, but"),
        (ask(), setting("cdpruner"), "CLIP"),
    ],
)
def test_what_cannot_be_is_said(studio: Studio, question: Ask, chosen: Setting, words: str) -> None:
    with pytest.raises(DemoError, match=words):
        list(studio.look(question, chosen))
    assert is_bare(studio)
    assert last(studio, ask(), setting("stride")).pruned.tokens == 9


def test_out_of_memory_is_said_and_leaves_nothing(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(studio.loaded.model, "generate", full)
        with pytest.raises(DemoError, match="Out of memory: ask about fewer or smaller pictures"):
            list(studio.look(ask(), setting("stride")))
    assert is_bare(studio)
    assert last(studio, ask(), setting("stride")).pruned.tokens == 9


def test_stop_ends_an_answer_at_the_next_token(studio: Studio) -> None:
    stop = Stop()
    steps = studio.look(ask(tokens=400), setting("stride"), stop)
    assert isinstance(next(steps), Partial)
    stop.ask()
    rest: list[Partial | Outcome] = []
    with pytest.raises(Stopped):
        rest.extend(steps)
    assert len(rest) < 100
    assert is_bare(studio)


def test_a_visitor_who_leaves_frees_the_model(studio: Studio) -> None:
    steps = studio.look(ask(tokens=2000), setting("stride"))
    next(steps)
    steps.close()
    start = time.monotonic()
    assert last(studio, ask(), setting("stride")).pruned.tokens == 9
    assert time.monotonic() - start < 10


def test_visitors_at_once_get_what_each_gets_alone(studio: Studio) -> None:
    jobs = [(ask(seed), setting(method)) for seed, method in enumerate(("divprune", "fastv", "tome", "pyramiddrop"))]
    alone = [last(studio, *job) for job in jobs]
    together: dict[int, Outcome] = {}

    def run(number: int) -> None:
        together[number] = last(studio, *jobs[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, one in enumerate(alone):
        assert together[number].pruned.answer == one.pruned.answer
        assert together[number].full.answer == one.full.answer
        assert together[number].stages == one.stages
