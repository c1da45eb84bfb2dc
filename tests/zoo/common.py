"""What every model type's file here uses: pictures, prompts and models with random weights."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, PreTrainedModel

PAD, BOS, EOS = 0, 1, 2
TEXT = range(3, 300)
"""Token ids of ordinary words."""
IMAGE, VIDEO, START, END, MORE = 300, 301, 302, 303, 304
"""Placeholders of images and of videos, and marks around them; `MORE` and up are free for whatever else a type has."""
VOCAB = 340
MARKS = range(IMAGE, VOCAB)
"""All that is no word."""

Inputs = dict[str, torch.Tensor]


def model_types() -> list[str]:
    """All types with a file here that the installed transformers knows."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    known = {_stem(name) for name in CONFIG_MAPPING_NAMES}
    files = [path.stem for path in Path(__file__).parent.glob("*.py")]
    stems = [stem for stem in files if stem in known]
    return sorted(name for name in (getattr(load(stem), "MODEL_TYPE", stem) for stem in stems))


def _stem(model_type: str) -> str:
    return model_type.replace("-", "_").replace(".", "_")


def load(model_type: str) -> ModuleType:
    """The module of a type; its file has `-` and `.` replaced by `_`."""
    return importlib.import_module(f"zoo.{_stem(model_type)}")


def text_sizes(**changes: Any) -> dict[str, Any]:
    """Arguments that most decoder configurations share: four layers with grouped-query heads."""
    return {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "attention_dropout": 0.0,
    } | changes


def vision_sizes(**changes: Any) -> dict[str, Any]:
    """Arguments that most vision configurations share: three layers, pictures of 48 x 48, patches of 8 x 8."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 8,
    } | changes


def build(model_type: str, attention: str = "sdpa", *, scale: float = 3.0) -> PreTrainedModel:
    """The tiny model of a type with seeded random weights.

    Args:
        model_type: Which.
        attention: Implementation of attention, in tower and decoder.
        scale: Factor on weight matrices: as initialised they make nearly uniform attention, and no token matters.
    """
    module = load(model_type)
    torch.manual_seed(0)
    maker: Any = getattr(module, "MODEL_CLASS", AutoModelForImageTextToText)
    make = maker._from_config if hasattr(maker, "_from_config") else maker.from_config
    model: PreTrainedModel = make(module.config(), attn_implementation=attention).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(getattr(module, "SCALE", scale))
    return model


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of random pixels."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def video(frames: int, height: int, width: int, seed: int = 0) -> list[Image.Image]:
    """A video of random pixels."""
    return [picture(height, width, 1000 * seed + frame) for frame in range(frames)]


def together_and_alone(
    module: ModuleType, model: PreTrainedModel, rows: Sequence[Sequence[Image.Image]]
) -> tuple[Inputs, list[Inputs]]:
    """Inputs of a batch, and of each of its rows with the same words and without padding."""
    inputs = module.inputs(model, rows)
    alone = []
    for number, row in enumerate(rows):
        real = inputs["attention_mask"][number].bool()
        one = module.inputs(model, [row])
        one |= {
            name: value[number][real][None]
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor) and value.shape == inputs["input_ids"].shape
        }
        alone.append(one)
    return inputs, alone


def question_side(model: Any, method: str) -> dict[str, Any]:
    """The arguments of `wrap` for methods that compare patches with the question; none for others."""
    import tiny

    side: dict[str, Any] = tiny.question_side(method)
    return side


def prompts(rows: Sequence[Sequence[Sequence[int]]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Token ids and mask of prompts: words, then each block of placeholders followed by words.

    Args:
        rows: For each row the token ids of each of its image blocks, marks around it included.
        seed: For the words. Row `r` ends with `2 + 3 * r` more words, so that rows differ in length.
        left: Whether padding stands at the left.
    """
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(TEXT.start, TEXT.stop, (count,), generator=generator).tolist()

    lines = []
    for number, blocks in enumerate(rows):
        line = [BOS, *words(3)]
        for block in blocks:
            line += [*block, *words(3)]
        lines.append(line + words(2 + 3 * number))
    length = max(map(len, lines))
    ids = torch.full((len(lines), length), PAD)
    mask = torch.zeros(len(lines), length, dtype=torch.long)
    for number, line in enumerate(lines):
        where = slice(length - len(line), length) if left else slice(0, len(line))
        ids[number, where] = torch.tensor(line)
        mask[number, where] = 1
    return {"input_ids": ids, "attention_mask": mask}
