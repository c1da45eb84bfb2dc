"""The committed models: that they load with no network, answer and match captions."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from vtprune.adapters import check_adapter
from vtprune.eval.embedded import CLIP_DIR, MODEL_DIR, load_model, load_questions
from vtprune.eval.embedded.build import build_models
from vtprune.eval.embedded.feed import QUESTIONS, Batch, example_arrays, fill_example
from vtprune.eval.embedded.scenes import caption, render, sample_scene
from vtprune.eval.embedded.train import (
    SCALES,
    TOKENS,
    Recipe,
    answer_logits,
    kept,
    pooled,
    pooling,
    to_pixels,
    tower_states,
    training_mix,
    whole,
)
from vtprune.eval.embedded.vocabulary import ID, IMAGE, PREFIX, SUFFIX, encode


@pytest.fixture(scope="module")
def loaded(monkeypatch_module: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch_module.setenv("HF_HUB_OFFLINE", "1")
    return load_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def prompt(processor: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text


def test_the_processor_gives_the_trained_prompt(loaded: tuple[Any, Any]) -> None:
    _, processor = loaded
    scene = load_questions()[0].scene
    inputs = processor(images=render(scene), text=prompt(processor, "What color is the circle?"), return_tensors="pt")
    expected = encode(PREFIX) + [ID[IMAGE]] * TOKENS + encode(f"what color is the circle ? {SUFFIX}")
    assert inputs["input_ids"][0].tolist() == expected
    pixels = to_pixels(torch.tensor(np.asarray(render(scene)))[None])
    torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=0, atol=1e-5)


def test_conformance_with_the_real_processor(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    checks = check_adapter(model, processor)
    assert {"keep-all and unwrap are bit-identical"} < {check.name for check in checks}


def test_greedy_answers_are_right(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    asked = load_questions()[:42]  # six of each kind
    inputs = processor(
        images=[render(question.scene) for question in asked],
        text=[prompt(processor, question.question) for question in asked],
        return_tensors="pt",
        padding=True,
    )
    answers = model.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(answers, skip_special_tokens=True)
    right = sum(text == question.answer for text, question in zip(texts, asked, strict=True))
    assert right >= 40


def test_the_folders_are_small() -> None:
    for folder, total in ((MODEL_DIR, 24e6), (CLIP_DIR, 16e6)):
        sizes = [path.stat().st_size for path in folder.iterdir()]
        assert max(sizes) < 16e6
        assert sum(sizes) <= total


def test_clip_matches_captions_to_pictures(loaded: tuple[Any, Any]) -> None:
    from transformers import AutoProcessor, CLIPModel

    clip = CLIPModel.from_pretrained(CLIP_DIR, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(CLIP_DIR)
    rng = random.Random("clip test")
    scenes = [sample_scene(rng) for _ in range(16)]
    captions = [caption(scene, rng) for scene in scenes]
    pictures = [render(scene) for scene in scenes]
    inputs = processor(images=pictures, text=captions, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = clip(**inputs)
    hits = (found.logits_per_image.argmax(1) == torch.arange(16)).sum().item()
    assert hits >= 14
    # The text is pooled at </s>, under either of the rules that transformers applies.
    ids = inputs["input_ids"]
    end = (ids == ID["</s>"]).int().argmax(1)
    with torch.no_grad():
        text = clip.text_model(input_ids=ids, attention_mask=inputs["attention_mask"])
    torch.testing.assert_close(text.pooler_output, text.last_hidden_state[torch.arange(16), end])
    tower = loaded[0].model.vision_tower.state_dict()
    for name, weight in clip.vision_model.state_dict().items():
        torch.testing.assert_close(weight, tower[name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def untrained() -> tuple[Any, Batch, torch.Tensor, torch.Tensor]:
    """An untrained model (all paths matter alike), two examples, their pixels and projected features."""
    torch.manual_seed(0)
    llava, _ = build_models()
    rng = random.Random(5)
    arrays = example_arrays(2)
    for row in range(2):
        fill_example(arrays, row, sample_scene(rng), rng)
    batch = Batch(**{name: torch.tensor(values) for name, values in arrays.items()})
    pixels = to_pixels(batch.pictures)
    with torch.no_grad():
        features = llava.model.multi_modal_projector(tower_states(llava.model.vision_tower, pixels)[1][:, 1:])
    return llava.eval(), batch, pixels, features


def test_a_packed_question_is_trained_as_if_asked_alone(
    untrained: tuple[Any, Batch, torch.Tensor, torch.Tensor],
) -> None:
    llava, batch, pixels, features = untrained
    place = QUESTIONS // 2
    question = batch.questions[:, place].long()
    before = torch.tensor([encode(PREFIX) + [ID[IMAGE]] * TOKENS]).expand(2, -1)
    ids = torch.cat([before, question], 1)
    with torch.no_grad():
        packed = answer_logits(llava, llava.model.language_model, whole(features), batch.questions)[:, place]
        alone = llava(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(packed, alone[:, -question.shape[1] :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_masked_tokens_are_trained_as_if_removed(
    untrained: tuple[Any, Batch, torch.Tensor, torch.Tensor], packed: bool
) -> None:
    llava, batch, _, features = untrained
    valid = torch.rand(2, TOKENS).argsort(1).argsort(1) < 64
    rows = valid.nonzero()[:, 1].view(2, 64)
    embed = llava.get_input_embeddings()
    prefix = embed(torch.tensor(encode(PREFIX))).expand(2, -1, -1)
    first, question = prefix.shape[1], batch.questions[:, 3].long()
    inputs = torch.cat([prefix, features[valid].view(2, 64, -1), embed(question)], 1)
    visual = torch.arange(64).expand(2, -1) if packed else rows
    start = 64 if packed else TOKENS
    after = torch.arange(start, start + question.shape[1]).expand(2, -1)
    positions = torch.cat([torch.arange(first).expand(2, -1), visual + first, after + first], 1)
    length = inputs.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    with torch.no_grad():
        masked = answer_logits(
            llava, llava.model.language_model, kept(features, valid, torch.tensor([packed] * 2)), batch.questions
        )[:, 3]
        hidden = llava.model.language_model(inputs_embeds=inputs, position_ids=positions, attention_mask=mask)
        removed = llava.lm_head(hidden.last_hidden_state)[:, -question.shape[1] :]
    torch.testing.assert_close(masked, removed, rtol=0, atol=1e-5)


def test_pooling_is_the_grid_average() -> None:
    features = torch.randn(2, TOKENS, 8)
    table = pooling(features.device)
    grid = features.transpose(1, 2).unflatten(2, (24, 24))
    for i, side in enumerate(SCALES):
        expected = torch.nn.functional.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2)
        visual = pooled(features, torch.tensor([i, i]), table)
        torch.testing.assert_close(visual.features[:, : side * side], expected)
        assert visual.valid.sum(1).tolist() == visual.end.tolist() == [side * side] * 2


def test_the_training_mix_holds_what_the_card_says() -> None:
    torch.manual_seed(0)
    features = torch.randn(600, TOKENS, 2)
    kept_tokens = training_mix(Recipe(), features, pooling(features.device)).valid.sum(1)
    nested = torch.isin(kept_tokens, torch.tensor([1, 9, 36])).float().mean()
    assert 0.09 < nested < 0.15  # 0.2 * 0.6; the scale 144 cannot be told from 144 random tokens
    assert 0.55 < (kept_tokens == TOKENS).float().mean() < 0.65
