"""Further training: pairs of pictures are seen as in a real prompt, old weights stay, folders have the shipped form."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from vtprune.eval.embedded import CLIP_DIR, MODEL_DIR
from vtprune.eval.embedded.build import build_models, load_models
from vtprune.eval.embedded.continuing import Continuation, Course
from vtprune.eval.embedded.feed import NO_KIND, Batch, Form, example_arrays
from vtprune.eval.embedded.mixture import ALL_KINDS, PAIRS, SINGLES
from vtprune.eval.embedded.score import Asked, held_out, score
from vtprune.eval.embedded.train import (
    TOKENS,
    Recipe,
    answer_logits,
    answer_targets,
    in_turn,
    kept,
    main,
    pooling,
    right,
    to_pixels,
    tower_states,
    training_mix,
    whole,
)
from vtprune.eval.embedded.vocabulary import ID, IMAGE, PREFIX, encode


def examples(form: Form, count: int) -> Batch:
    arrays = example_arrays(count, form)
    for row in range(count):
        form.draw(arrays, row, random.Random(f"examples/{row}"))
    return Batch(**{name: torch.tensor(values) for name, values in arrays.items()})


@pytest.fixture(scope="module")
def pairs() -> tuple[Any, Batch, torch.Tensor, torch.Tensor]:
    """An untrained model (all paths matter alike), two pairs, their pixels and projected features."""
    torch.manual_seed(0)
    llava, _ = build_models()
    batch = examples(PAIRS, 2)
    pixels = to_pixels(batch.pictures.flatten(0, 1))
    with torch.no_grad():
        features = llava.model.multi_modal_projector(tower_states(llava.model.vision_tower, pixels)[1][:, 1:])
    return llava.eval(), batch, pixels, features


def test_a_question_on_two_pictures_is_trained_as_if_asked_alone(
    pairs: tuple[Any, Batch, torch.Tensor, torch.Tensor],
) -> None:
    llava, batch, pixels, features = pairs
    question = batch.questions[:, 5].long()
    ids = torch.cat([torch.tensor([encode(PREFIX) + [ID[IMAGE]] * 2 * TOKENS]).expand(2, -1), question], 1)
    with torch.no_grad():
        packed = answer_logits(llava, llava.model.language_model, in_turn(whole(features), 2), batch.questions)[:, 5]
        alone = llava(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(packed, alone[:, -question.shape[1] :], rtol=0, atol=1e-5)


def test_pictures_in_turn_keep_their_places() -> None:
    features = torch.randn(4, TOKENS, 2)
    valid = torch.zeros(4, TOKENS, dtype=torch.bool)
    valid[:, ::4] = True
    packed = torch.tensor([False, False, True, True])
    visual = in_turn(kept(features, valid, packed), 2)
    assert visual.end.tolist() == [2 * TOKENS, TOKENS // 2]
    assert torch.equal(visual.features[1, TOKENS:], features[3])
    found = [places[mask].tolist() for places, mask in zip(visual.positions, visual.valid, strict=True)]
    assert found == [list(range(0, 2 * TOKENS, 4)), list(range(TOKENS // 2))]


def test_the_pictures_of_a_prompt_lose_equally_many_tokens() -> None:
    torch.manual_seed(0)
    features = torch.randn(200, TOKENS, 2)
    visual = training_mix(Recipe(), features, pooling(features.device), 2)
    counts = visual.valid.sum(1).view(-1, 2)
    assert torch.equal(counts[:, 0], counts[:, 1])
    assert len(counts[:, 0].unique()) > 10
    thinned = counts[:, 0] == counts[:, 0].clamp(65, 400)
    first, second = visual.valid.view(-1, 2, TOKENS)[thinned].unbind(1)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("form", [SINGLES, PAIRS], ids=["singles", "pairs"])
def test_examples_hold_questions_of_every_kind(form: Form) -> None:
    arrays = example_arrays(1, form)
    kinds: set[int] = set()
    for number in range(120):
        form.draw(arrays, 0, random.Random(f"kinds/{number}"))
        asked = arrays["kinds"][0] != NO_KIND
        assert asked.sum() >= 3
        assert (arrays["starts"][0] < arrays["questions"].shape[-1]).sum() == asked.sum()
        assert ((arrays["questions"][0] == ID["</s>"]).sum(1) == asked).all()
        kinds.update(arrays["kinds"][0][asked].tolist())
    expected = {n for n, kind in enumerate(ALL_KINDS) if kind.startswith("compare/") == (form is PAIRS)}
    assert kinds == expected


def test_old_weights_stay_and_new_words_get_rows() -> None:
    from transformers import CLIPModel, LlavaForConditionalGeneration

    llava, clip = load_models(MODEL_DIR, CLIP_DIR)
    assert llava.model.vision_tower is clip.vision_model
    for model, kind, folder in ((llava, LlavaForConditionalGeneration, MODEL_DIR), (clip, CLIPModel, CLIP_DIR)):
        grown = model.state_dict()
        for name, weight in kind.from_pretrained(folder, dtype=torch.float32).state_dict().items():
            assert torch.equal(grown[name][: len(weight)] if weight.ndim else grown[name], weight), name
    assert llava.lm_head.weight.shape[0] == llava.config.text_config.vocab_size == len(ID)
    assert llava.lm_head.weight[-1].any()


def test_a_folder_with_other_words_is_refused(tmp_path: Path) -> None:
    words = {"vocab": {"<pad>": 0, "zebra": 1}}
    for name in ("model", "clip"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": words}))
    with pytest.raises(ValueError, match="trained with other words, such as 'zebra'"):
        load_models(tmp_path / "model", tmp_path / "clip")


@pytest.mark.parametrize(
    ("given", "message"),
    [({"seconds": 0.0}, "seconds must be above 0, got 0.0"), ({"tower_share": 1.0}, r"\[0, 1\), got 1.0")],
)
def test_a_course_without_time_is_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Course(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--continue-from", "nowhere", "--output", "out"], "nowhere is no folder of a model"),
        (["--continue-from", str(MODEL_DIR)], "name another folder"),
        (["--continue-from", str(MODEL_DIR), "--output", "out", "--seconds", "-1"], "seconds must be above 0, got -1"),
    ],
)
def test_bad_options_are_refused_before_work(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", *options])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the models after a step of either stage."""
    output = tmp_path_factory.mktemp("continued")
    course = Course(
        seconds=0.1, tower_share=0.5, tower_batch=2, singles=2, pairs=1, pool=64, pair_pool=64, warmup=1, head_start=0
    )
    training = Continuation(course, MODEL_DIR, output, 2, torch.device("cpu"), time.monotonic(), fast=False)
    training.run()
    return output


@pytest.mark.parametrize(("shipped", "name"), [(MODEL_DIR, "model"), (CLIP_DIR, "clip")])
def test_the_folders_have_the_shipped_form(continued: Path, shipped: Path, name: str) -> None:
    from safetensors import safe_open

    files = {path.name for path in (continued / name).iterdir()}
    assert files == {path.name for path in shipped.iterdir()} - {"README.md"}
    assert all(path.stat().st_size < 16e6 for path in (continued / name).iterdir())
    for path in (continued / name).glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.bfloat16}  # noqa: SIM118
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (shipped, continued / name))
    assert new["text_config"].pop("vocab_size") == len(ID)
    assert old["text_config"].pop("vocab_size") <= len(ID)
    for config in (old, new):
        config.pop("transformers_version")
    assert new == old


def test_both_models_learned_and_share_their_tower(continued: Path) -> None:
    llava, clip = load_models(continued / "model", continued / "clip")
    old_llava, old_clip = load_models(MODEL_DIR, CLIP_DIR)
    for new, old, name in (
        (clip, old_clip, "vision_model.encoder.layers.0.mlp.fc1.weight"),
        (clip, old_clip, "text_projection.weight"),
        (llava, old_llava, "model.multi_modal_projector.linear_1.weight"),
        (llava, old_llava, "lm_head.weight"),
    ):
        assert not torch.equal(new.state_dict()[name], old.state_dict()[name]), name
    from transformers import CLIPModel

    apart = CLIPModel.from_pretrained(continued / "clip", dtype=torch.float32).vision_model.state_dict()
    for name, weight in llava.model.vision_tower.state_dict().items():
        assert torch.equal(weight, apart[name]), name


def test_repeated_steps_learn_the_answers_on_pairs() -> None:
    torch.manual_seed(0)
    llava, _ = load_models(MODEL_DIR, CLIP_DIR)
    batch = examples(PAIRS, 1)
    with torch.no_grad():
        states = tower_states(llava.model.vision_tower, to_pixels(batch.pictures[0]))[1]
        features = llava.model.multi_modal_projector(states[:, 1:65])  # enough to learn by heart
    trained = [*llava.model.language_model.parameters(), *llava.lm_head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    target = answer_targets(batch)
    hits = []
    for _ in range(12):
        logits = answer_logits(llava, llava.model.language_model, in_turn(whole(features), 2), batch.questions)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 2), target.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hits.append(int((right(logits, target) & (batch.kinds != NO_KIND)).sum()))
    assert hits[-1] >= hits[0] + 3


def test_scores_are_shares_of_right_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        Asked("detail", ("word", "easy"), "which word is written ?", "rocket", ()),
        Asked("detail", ("word", "hard"), "which word is written ?", "pocket", ()),
        Asked("count", ("all", "hard"), "how many objects are there ?", "3", ()),
    ]
    monkeypatch.setattr("vtprune.eval.embedded.score._batches", lambda asked, size: iter([list(asked)]))
    monkeypatch.setattr("vtprune.eval.embedded.score._prepare", lambda processor, batch: None)
    monkeypatch.setattr("vtprune.eval.embedded.score._answer", lambda *given: [True, False, True])
    scores = score(None, None, asked, pruner="divprune", budgets=(), batch_size=3)
    assert scores["detail"] == {
        "every": {"full": 50.0},
        "word": {"full": 50.0},
        "easy": {"full": 100.0},
        "hard": {"full": 0.0},
    }
    assert scores["count"] == {name: {"full": 100.0} for name in ("every", "all", "hard")}


def test_all_held_out_questions_are_scored() -> None:
    asked = held_out()
    tasks = {question.task for question in asked}
    assert tasks == {"scenes", "detail", "ground", "count", "compare"}
    assert len(asked) == 420 + 240 + 216 + 240 + 288
    assert {len(question.scenes) for question in asked} == {1, 2}
    assert len(held_out(3)) == 15
