"""CLIP's joint space: our towers against transformers' and open_clip's own, and what is refused."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoProcessor, CLIPConfig, CLIPModel, CLIPVisionConfig, SiglipVisionConfig

import vtprune.text_tower as text_tower_module
from vtprune.eval.embedded import CLIP_DIR, MODEL_DIR, load_model
from vtprune.eval.embedded.build import build_models
from vtprune.eval.embedded.scenes import caption, render, sample_scene
from vtprune.text_tower import TextTower, load_text_tower

LENGTH = 64
"""Positions of the embedded CLIP's text tower."""
LONG = " ".join(f"is the red star at the top left or is there {number} ?" for number in range(1, 13))


@pytest.fixture(scope="module")
def clip() -> Any:
    return CLIPModel.from_pretrained(CLIP_DIR, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(CLIP_DIR)


@pytest.fixture(scope="module")
def tower() -> TextTower:
    return load_text_tower("embedded", None)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    rng = random.Random("text tower")
    return [caption(sample_scene(rng), rng) for _ in range(6)]


def rows(ids: list[int], length: int) -> torch.Tensor:
    """The ids with zeros behind them, in rows."""
    padded = ids + [0] * (-len(ids) % length)
    return torch.tensor(padded).view(-1, length)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_short_texts_are_embedded_as_clip_does(
    clip: Any, processor: Any, tower: TextTower, captions: list[str]
) -> None:
    inputs = processor(text=captions, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = clip.get_text_features(**inputs).pooler_output
    found = tower.encode(captions)
    assert found.pieces.shape == (6, 1, tower.dim)
    assert bool(found.mask.all())
    close(found.pieces[:, 0], expected)
    assert float(found.pieces.norm(dim=-1).std()) > 1e-3  # not normalised


def test_long_texts_come_in_pieces(clip: Any, processor: Any, tower: TextTower, captions: list[str]) -> None:
    ids = processor.tokenizer(LONG)["input_ids"]
    pieces = rows(ids, LENGTH)
    assert len(pieces) == 3
    mask = rows([1] * len(ids), LENGTH)
    with torch.no_grad():
        expected = clip.get_text_features(input_ids=pieces, attention_mask=mask).pooler_output
    found = tower.encode([captions[0], LONG])
    assert found.mask.tolist() == [[True, False, False], [True, True, True]]
    close(found.pieces[1], expected)
    close(found.pieces[0, 0], tower.encode(captions[:1]).pieces[0, 0])
    assert not found.pieces[0, 1:].any()
    exact = " ".join(LONG.split()[: LENGTH - 2])  # begin and end fill the row
    assert tower.encode([exact]).mask.tolist() == [[True]]
    assert tower.encode([exact + " star"]).mask.tolist() == [[True, True]]


@pytest.mark.parametrize("text", ["where is the red star ?", LONG])
def test_truncated_is_clips_own_embedding(clip: Any, processor: Any, tower: TextTower, text: str) -> None:
    inputs = processor.tokenizer([text], truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        expected = clip.get_text_features(**inputs).pooler_output
    close(tower.encode(["what color is it ?", text]).truncated[1], expected[0])


@pytest.mark.parametrize("text", ["where is the red star ?", LONG, "\n where is it ?\nanswer with a word", ""])
def test_last_is_the_padded_end_of_the_first_line(clip: Any, processor: Any, tower: TextTower, text: str) -> None:
    inputs = processor.tokenizer(
        [text.strip().split("\n")[0]], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        states = clip.text_model(input_ids=inputs["input_ids"]).last_hidden_state
        expected = clip.text_projection(states[:, -1])
    found = tower.encode(["is there a star ?", text])
    close(found.last[1], expected[0])
    assert (found.last[0] - found.last[1]).abs().max() > 1e-2


def test_the_projection_is_clips(clip: Any, tower: TextTower) -> None:
    pixels = torch.randn(2, 3, 192, 192)
    with torch.no_grad():
        states = clip.vision_model(pixels).last_hidden_state
        expected = clip.get_image_features(pixels).pooler_output
        plain = clip.visual_projection(states)
    found = tower.project(states)
    assert found.shape == (2, 577, 128)
    close(found[:, 0], expected)
    close(tower.project(states, norm=False), plain)
    assert tower.vision_width == states.shape[-1]


def test_pictures_match_their_captions_in_the_llavas_tower(tower: TextTower) -> None:
    model, processor = load_model(dtype=torch.float32)
    rng = random.Random("clip test")
    scenes = [sample_scene(rng) for _ in range(8)]
    texts = [caption(scene, rng) for scene in scenes]
    pixels = processor.image_processor([render(scene) for scene in scenes], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = model.model.vision_tower(pixels).last_hidden_state
    pictures = nn.functional.normalize(tower.project(states[:, 0]), dim=-1)
    words = nn.functional.normalize(tower.encode(texts).pieces[:, 0], dim=-1)
    best = (pictures @ words.mT).argmax(1)
    assert int((best == torch.arange(8)).sum()) >= 7


def test_number_type_and_autocast(tower: TextTower, captions: list[str]) -> None:
    half = load_text_tower("embedded", None).to(torch.bfloat16)
    found = half.encode(captions)
    expected = tower.encode(captions)
    assert found.pieces.dtype == found.last.dtype == torch.bfloat16
    torch.testing.assert_close(found.pieces.float(), expected.pieces, rtol=0.1, atol=0.1)
    features = torch.randn(2, 5, 256)
    projected = tower.project(features)
    assert half.project(features).dtype == torch.bfloat16
    assert tower.project(features.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tower.encode(captions).last, expected.last)
        assert torch.equal(tower.project(features), projected)


@pytest.mark.gpu
def test_the_tower_moves_as_a_whole(tower: TextTower, captions: list[str]) -> None:
    moved = load_text_tower("embedded", None).to("cuda")
    found, expected = moved.encode([LONG, *captions]), tower.encode([LONG, *captions])
    features = torch.randn(2, 5, 256)
    assert torch.equal(found.mask.cpu(), expected.mask)
    for on_gpu, on_cpu in [
        (found.pieces, expected.pieces),
        (found.last, expected.last),
        (moved.project(features.to("cuda")), tower.project(features)),
    ]:
        assert on_gpu.is_cuda
        close(on_gpu.cpu(), on_cpu)


def test_nothing_is_trained(tower: TextTower) -> None:
    assert not tower.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    features = torch.randn(1, 2, 256, requires_grad=True)
    assert not tower.project(features).requires_grad
    assert not tower.encode(["star"]).pieces.requires_grad


def test_no_text(tower: TextTower) -> None:
    with pytest.raises(ValueError, match="no text"):
        tower.encode([])


def vision(width: int, layers: int, patch: int, size: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, patch_size=patch, image_size=size
    )


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (vision(768, 12, 32, 224), "ViT-B-32/openai"),
        (vision(768, 12, 16, 224), "ViT-B-16/openai"),
        (vision(1024, 24, 14, 224), "ViT-L-14/openai"),
        (vision(1024, 24, 14, 336), "ViT-L-14-336/openai"),
    ],
)
def test_the_default_follows_the_sizes(
    config: CLIPVisionConfig, name: str, tower: TextTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(source: str) -> TextTower:
        asked.append(source)
        projection = nn.Linear(config.hidden_size, 4, bias=False)
        return TextTower(tower.text, lambda texts: [], tower.visual_norm, projection, length=77, padding=0)

    monkeypatch.setattr(text_tower_module, "_from_open_clip", load)
    load_text_tower(None, config)
    assert asked == [name]


def test_the_embedded_model_has_its_default(tower: TextTower, captions: list[str]) -> None:
    model, _ = load_model()
    found = load_text_tower(None, model.config.vision_config)
    assert torch.equal(found.encode(captions).pieces, tower.encode(captions).pieces)
    assert load_text_tower(found, model.config.vision_config) is found


def test_a_folder(tmp_path: Path, processor: Any, captions: list[str]) -> None:
    _, small = build_models()
    config = CLIPConfig(text_config=small.config.text_config, vision_config=vision(64, 2, 8, 48), projection_dim=24)
    saved = CLIPModel(config).eval()
    saved.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    found = load_text_tower(tmp_path, vision(64, 2, 8, 48))
    assert (found.vision_width, found.dim) == (64, 24)
    inputs = processor(text=captions, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = saved.get_text_features(**inputs).pooler_output
    close(found.encode(captions).pieces[:, 0], expected)
    with pytest.raises(ValueError, match=r"width 64, the model's has width 256; text_tower= takes"):
        load_text_tower(str(tmp_path), vision(256, 6, 8, 192))
    with pytest.raises(ValueError, match=r"width 64, the model's has width 256; text_tower= takes"):
        load_text_tower(found, vision(256, 6, 8, 192))


def test_folders_without_clip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it holds a llava model, not a CLIPModel; text_tower= takes"):
        load_text_tower(MODEL_DIR, None)
    with pytest.raises(ValueError, match=r"cannot load a text tower from '.*text_tower= takes"):
        load_text_tower(tmp_path, None)


def test_no_default() -> None:
    with pytest.raises(ValueError, match=r"hidden_size=64, num_hidden_layers=2, patch_size=8, .*text_tower= takes"):
        load_text_tower(None, vision(64, 2, 8, 48))


@pytest.mark.parametrize("source", [None, "embedded", str(CLIP_DIR)])
def test_other_towers_have_no_joint_space(source: str | None) -> None:
    config = SiglipVisionConfig(hidden_size=256, num_hidden_layers=6, patch_size=8, image_size=192)
    with pytest.raises(ValueError, match=r"is a siglip_vision_model.*text_tower="):
        load_text_tower(source, config)


def test_a_tower_of_the_users_own_fits_where_its_width_does(tower: TextTower) -> None:
    config = SiglipVisionConfig(hidden_size=256, num_attention_heads=4)
    assert load_text_tower(tower, config) is tower


def test_open_clip_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"'ViT-B-32/openai' is no folder, and open_clip.*vtprune\[clip\]"):
        load_text_tower("ViT-B-32/openai", None)


# What follows needs open_clip; nothing is downloaded, so that its weights are random.


@pytest.fixture(scope="module")
def open_clip() -> Any:
    return pytest.importorskip("open_clip", reason="open_clip is not installed: pip install 'vtprune[clip]'")


def small_clip(kind: Any, **vision: Any) -> Any:
    """A model of open_clip's with its vocabulary and length; more embedding than at first, so that texts differ."""
    torch.manual_seed(0)
    tower = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 48}
    text = {"width": 64, "heads": 2, "layers": 2}
    model = kind(32, tower | vision, text, quick_gelu=True).eval()
    for name, weight in model.named_parameters():
        if "embedding" in name:
            weight.data.mul_(30)
    return model


@pytest.fixture(scope="module")
def base(open_clip: Any) -> tuple[Any, Any]:
    return small_clip(open_clip.CLIP), open_clip.get_tokenizer("ViT-B-32")


def test_open_clip_encodes_as_it_does_itself(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    tower = text_tower_module.from_open_clip(model, tokenizer)
    texts = ["What color is the car?", "", "two dogs &amp; a cat"]
    with torch.no_grad():
        expected = model.encode_text(tokenizer(texts))
    found = tower.encode(texts)
    assert found.pieces.shape == (3, 1, 32)
    close(found.pieces[:, 0], expected)
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.abs().max()

    # Three rows: begin and end stand in the outer ones, the middle one is pooled at its largest id.
    words = "what is written on the large sign beside the road " * 20
    ids = [tokenizer.sot_token_id, *tokenizer.encode(words), tokenizer.eot_token_id]
    with torch.no_grad():
        expected = model.encode_text(rows(ids, 77))
    found = tower.encode([words])
    assert found.mask.tolist() == [[True, True, True]]
    close(found.pieces[0], expected)


def test_open_clips_last_position(base: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = base
    tower = text_tower_module.from_open_clip(model, tokenizer)
    texts = ["What color is the car?\nAnswer with a word.", "long words " * 60]
    ids = tokenizer(["What color is the car?", texts[1]])
    end = tokenizer.eot_token_id
    ids[0, ids[0].argmax() :] = end
    assert int(ids[1, -1]) == end
    monkeypatch.setattr(model, "text_pool_type", "last")
    with torch.no_grad():
        expected = model.encode_text(ids)
    monkeypatch.undo()
    close(tower.encode(texts).last, expected)


def test_open_clip_projects_as_it_does_itself(base: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = base
    tower = text_tower_module.from_open_clip(model, tokenizer)
    assert (tower.vision_width, tower.dim) == (64, 32)
    seen = []
    handle = model.visual.ln_post.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    monkeypatch.setattr(model.visual, "output_tokens", True)
    with torch.no_grad():
        pooled, tokens = model.visual(torch.randn(2, 3, 48, 48))
        expected = tokens @ model.visual.proj
    handle.remove()
    found = tower.project(seen[0])
    close(found[:, 0], pooled)
    close(found[:, 1:], expected)
    close(tower.project(seen[0], norm=False), (seen[0] @ model.visual.proj).detach())


def test_open_clip_in_half_precision(open_clip: Any, base: tuple[Any, Any]) -> None:
    tower = text_tower_module.from_open_clip(small_clip(open_clip.CLIP), base[1])
    expected = tower.encode(["a dog"]).pieces
    found = tower.to(torch.bfloat16).encode(["a dog"])
    assert "text.mask" in dict(tower.named_buffers())  # else it stays behind when the tower moves
    assert found.pieces.dtype == found.last.dtype == torch.bfloat16
    torch.testing.assert_close(found.pieces.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "quick"),
    [
        ("ViT-L-14-336/openai", True),
        ("ViT-L-14-336-quickgelu/openai", True),
        ("ViT-B-32/laion2b_s34b_b79k", False),
    ],
)
def test_weights_get_the_activation_they_were_trained_with(
    open_clip: Any, base: tuple[Any, Any], name: str, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def create(model_name: str, **options: Any) -> Any:
        asked.append((model_name, options))
        return base[0]

    monkeypatch.setattr(open_clip, "create_model", create)
    assert load_text_tower(name, vision(64, 2, 16, 48)).vision_width == 64
    model, _, tag = name.partition("/")
    assert asked == [(model, {"pretrained": tag, "force_quick_gelu": quick})]


def test_names_that_open_clip_does_not_have(open_clip: Any) -> None:
    with pytest.raises(ValueError, match=r"'nobody/nothing' is no folder, and open_clip has no 'nobody'; text_tower="):
        load_text_tower("nobody/nothing", None)
    with pytest.raises(ValueError, match=r"open_clip has 'ViT-L-14-336' with the tags openai; text_tower="):
        load_text_tower("ViT-L-14-336", None)


def test_weights_that_cannot_be_had(open_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no network\nand a second line")

    monkeypatch.setattr(open_clip, "create_model", create)
    with pytest.raises(ValueError, match=r"cannot load text tower 'ViT-B-32/openai': no network; text_tower="):
        load_text_tower("ViT-B-32/openai", None)


def test_other_models_of_open_clip(open_clip: Any, base: tuple[Any, Any]) -> None:
    def changed(name: str, value: object) -> Any:
        model = small_clip(open_clip.CLIP)
        setattr(model, name, value)
        return model

    others = [
        small_clip(open_clip.CLIP, pool_type="avg"),
        small_clip(open_clip.CLIP, final_ln_after_pool=True),
        small_clip(open_clip.CLIP, attentional_pool=True, attn_pooler_heads=2),
        small_clip(open_clip.CLIP, layers=[1, 1, 1, 1], image_size=64),
        small_clip(open_clip.CustomTextCLIP),
        changed("text_pool_type", "eos"),
        changed("text_projection", None),
        changed("visual", nn.Linear(1, 1)),
        nn.Linear(1, 1),
    ]
    for other in others:
        with pytest.raises(ValueError, match=rf"{type(other).__name__} with \w+ is no plain CLIP.*text_tower="):
            text_tower_module.from_open_clip(other, base[1])
    with pytest.raises(ValueError, match="is no plain CLIP"):
        text_tower_module.from_open_clip(base[0], object())
