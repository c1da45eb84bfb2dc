"""The two models of the benchmark, untrained, and how they are written to Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vtprune.eval.embedded.scenes import GRID, PATCH, SIZE
from vtprune.eval.embedded.vocabulary import BOS, CHAT_TEMPLATE, EOS, ID, IMAGE, PAD, TOKENS, build_tokenizer

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
STD = (0.26862954, 0.26130258, 0.27577711)

CAPTION_POSITIONS = 64
"""Longest text of the CLIP text tower."""

_IDS: dict[str, Any] = {"pad_token_id": ID[PAD], "bos_token_id": ID[BOS], "eos_token_id": ID[EOS]}
_TOWER: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": PATCH,
    "projection_dim": 128,
}


def build_models() -> tuple[Any, Any]:
    """Untrained (LLaVA, CLIP) in fp32; LLaVA's vision tower is CLIP's, the same module."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    text: dict[str, Any] = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": CAPTION_POSITIONS,
        "vocab_size": len(TOKENS),
        "projection_dim": 128,
        **_IDS,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=_TOWER, projection_dim=128))
    decoder = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(TOKENS),
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        **_IDS,
    )
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**_TOWER),
            text_config=decoder,
            image_token_index=ID[IMAGE],
            image_seq_length=GRID * GRID,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )
    )
    llava.model.vision_tower = clip.vision_model
    return llava, clip


def load_models(llava_folder: Path, clip_folder: Path) -> tuple[Any, Any]:
    """Trained (LLaVA, CLIP) in fp32; words that came after their training have rows of their own, still untrained.

    Raises:
        ValueError: A folder holds other models than this benchmark's.
    """
    from transformers import CLIPModel, LlavaForConditionalGeneration

    llava, clip = build_models()
    for model, kind, folder in ((clip, CLIPModel, clip_folder), (llava, LlavaForConditionalGeneration, llava_folder)):
        words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        if unknown := [word for word, number in words.items() if ID.get(word) != number]:
            raise ValueError(
                f"{folder} was trained with other words, such as {unknown[0]!r}; their ids must not change"
            )
        trained = kind.from_pretrained(folder, dtype=torch.float32).state_dict()
        _copy_grown(trained, model.state_dict(), folder)
    return llava, clip


def _copy_grown(trained: dict[str, torch.Tensor], into: dict[str, torch.Tensor], folder: Path) -> None:
    """Copies weights; those with a row for each word may have fewer rows."""
    if trained.keys() != into.keys():
        raise ValueError(f"{folder} holds other weights, such as {min(trained.keys() ^ into.keys())}")
    for name, weight in trained.items():
        place = into[name][: len(weight)] if weight.ndim and into[name].ndim else into[name]
        if place.shape != weight.shape:
            raise ValueError(f"{name} in {folder} has shape {tuple(weight.shape)}, not {tuple(into[name].shape)}")
        place.copy_(weight)


def _image_processor() -> Any:
    from transformers import CLIPImageProcessor

    side = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessor(
        size=side, crop_size=side, do_center_crop=False, do_convert_rgb=True, image_mean=list(MEAN), image_std=list(STD)
    )


def save_llava(llava: Any, folder: Path) -> None:
    """Write model (bf16, shards under 12 MB), processor, tokenizer and chat template."""
    from transformers import GenerationConfig, LlavaProcessor

    tokenizer = build_tokenizer(bos_and_eos=False, max_length=2048)
    tokenizer.chat_template = CHAT_TEMPLATE
    processor = LlavaProcessor(
        image_processor=_image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLS
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    llava.generation_config = GenerationConfig(do_sample=False, max_new_tokens=8, **_IDS)
    llava.save_pretrained(folder, state_dict=_half(llava), max_shard_size="12MB")
    _state_dtype(folder)


def save_clip(clip: Any, folder: Path) -> None:
    """Write the CLIP model (bf16), its processor and tokenizer."""
    from transformers import CLIPProcessor

    tokenizer = build_tokenizer(bos_and_eos=True, max_length=CAPTION_POSITIONS)
    CLIPProcessor(image_processor=_image_processor(), tokenizer=tokenizer).save_pretrained(folder)
    clip.save_pretrained(folder, state_dict=_half(clip), max_shard_size="15MB")
    _state_dtype(folder)


def _half(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().to("cpu", torch.bfloat16) if tensor.is_floating_point() else tensor.cpu()
        for name, tensor in model.state_dict().items()
    }


def _state_dtype(folder: Path) -> None:
    """Say in ``config.json`` that the weights are bf16 (the model that trained was fp32)."""
    path = folder / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"float32"', '"bfloat16"'))
