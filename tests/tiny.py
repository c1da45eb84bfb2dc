"""Tiny random models and hand-made prompts: no download, no tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

import vtprune
from vtprune.pruner import Pruner, Signal
from vtprune.text_tower import TextTower

IMAGE = 299
PAD = 0
LAYERS = 6
PINPOINTS = [[48, 96], [96, 48], [96, 96], [48, 144]]


def text_config(**changes: Any) -> LlamaConfig:
    """A decoder of six layers with grouped-query heads."""
    settings: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**(settings | changes))


def vision_config() -> CLIPVisionConfig:
    """A tower of three layers with a CLS token; 48 x 48 pictures, 36 patches."""
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=48,
        patch_size=8,
        projection_dim=32,
    )


def tiny_llava(attention: str = "sdpa", *, siglip: bool = False, **text: Any) -> PreTrainedModel:
    """LLaVA-1.5 in miniature: 36 visual tokens."""
    tower: Any = vision_config()
    more: dict[str, Any] = {}
    if siglip:
        tower = SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=48,
            patch_size=8,
        )
        more = {"vision_feature_select_strategy": "full"}
    config = LlavaConfig(vision_config=tower, text_config=text_config(**text), image_token_index=IMAGE, **more)
    return _build(LlavaForConditionalGeneration, config, attention)


def tiny_llava_next(attention: str = "sdpa") -> PreTrainedModel:
    """LLaVA-NeXT in miniature: a thumbnail of 36 tokens and up to four crops."""
    config = LlavaNextConfig(
        vision_config=vision_config(),
        text_config=text_config(),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    return _build(LlavaNextForConditionalGeneration, config, attention)


def _build(cls: Any, config: Any, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = cls._from_config(config, attn_implementation=attention).eval()
    # Weights as initialised make nearly uniform attention; larger ones make every token matter.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(3)
    return model


def prompt(
    images: list[int],
    *,
    tokens: int = 36,
    padding: str = "none",
    seed: int = 0,
    mask: bool = True,
    between: int = 3,
) -> dict[str, torch.Tensor]:
    """Prompts with the given number of images each, and random pictures.

    Args:
        images: Images of each row.
        tokens: Visual tokens of an image.
        padding: `"left"`, `"right"` or `"none"`; rows get text of different lengths unless it is `"none"`.
        seed: For text and pictures.
        mask: Whether to return the attention mask.
        between: Text tokens after each image.
    """
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> torch.Tensor:
        return torch.randint(3, 298, (count,), generator=generator)

    rows = []
    for number, count in enumerate(images):
        extra = 0 if padding == "none" else 3 * number
        parts = [torch.tensor([1]), words(4 + extra)]
        for _ in range(count):
            parts += [torch.full((tokens,), IMAGE), words(between)]
        rows.append(torch.cat([*parts, words(5)]))
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    attention = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if padding != "right" else slice(0, len(row))
        ids[number, place] = row
        attention[number, place] = 1
    inputs = {"input_ids": ids}
    if mask:
        inputs["attention_mask"] = attention
    if sum(images):
        inputs["pixel_values"] = torch.randn(sum(images), 3, 48, 48, generator=generator)
    return inputs


def anyres_prompt(sizes: list[tuple[int, int]], model: PreTrainedModel, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """One picture a row, of the given sizes (height, width), left padded, for the tiny LLaVA-NeXT."""
    from vtprune.adapters import find_adapter

    generator = torch.Generator().manual_seed(seed)
    image_sizes = torch.tensor(sizes)
    layouts = find_adapter(model).layouts("image", [], {"image_sizes": image_sizes})
    rows = []
    for layout in layouts:
        text = torch.randint(3, 298, (9,), generator=generator)
        rows.append(torch.cat([torch.tensor([1]), text[:4], torch.full((layout.tokens,), IMAGE), text[4:]]))
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=PAD) for row in rows])
    views = max(layout.views for layout in layouts)
    pixels = torch.randn(len(sizes), views, 3, 48, 48, generator=generator)
    for number, layout in enumerate(layouts):
        pixels[number, layout.views :] = 0
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "pixel_values": pixels,
        "image_sizes": image_sizes,
    }


class TinyText(nn.Module):
    """The mean of random embeddings, and the one of the last position."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(300, 16)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.embedding(ids)
        return states.mean(1), states[:, -1]


@cache
def text_tower() -> TextTower:
    """CLIP's text side for the tiny vision tower, with random weights."""
    torch.manual_seed(1)
    norm, projection = nn.LayerNorm(32), nn.Linear(32, 16, bias=False)

    def tokenize(texts: Any) -> list[list[int]]:
        return [[1, *(3 + sum(map(ord, word)) % 290 for word in text.split()), 2] for text in texts]

    return TextTower(TinyText(), tokenize, norm, projection, length=8, padding=2)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Words `w3` to `w298` for the ids of tiny models."""
    special = {"<pad>": PAD, "<s>": 1, "</s>": 2, "<image>": IMAGE}
    words = Tokenizer(models.WordLevel(special | {f"w{number}": number for number in range(3, IMAGE)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )


def question_side(pruner: str | Pruner) -> dict[str, Any]:
    """The arguments of `wrap` for methods that compare patches with the question; none for others."""
    if Signal.CLIP_TEXT not in vtprune.make_pruner(pruner).signals:
        return {}
    return {"text_tower": text_tower(), "processor": tokenizer()}
