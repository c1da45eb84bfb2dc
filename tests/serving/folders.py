"""Tiny random models of each family in folders, as transformers saves them, small enough to serve on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
)

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}
PATCHED: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
MARKS = (
    *("<image>", "<video>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>"),
)
PINPOINTS = [[32, 32], [32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
QWEN_IDS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


def tokenizer(image: str = "<image>", video: str = "<video>") -> PreTrainedTokenizerFast:
    """Word by word; words that are no marks are `w0`, `w1` and so on.

    Args:
        image: The mark that stands for a picture.
        video: The mark that stands for a video.
    """
    words = ["<pad>", "<s>", "</s>", "<unk>", *MARKS]
    words += [f"w{number}" for number in range(TEXT["vocab_size"] - len(words))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {
        "image_token": image,
        "video_token": video,
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(MARKS),
        extra_special_tokens=names,
        padding_side="left",
    )


def number(words: PreTrainedTokenizerFast, mark: str) -> int:
    """The id of a mark."""
    found = words.convert_tokens_to_ids(mark)
    assert isinstance(found, int)
    return found


def save(folder: Path, model: Any, processor: Any) -> Path:
    """Writes a model, its weights larger than initialised, so that answers depend on the pictures."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(3)
            elif "position_embedding" in name or "newline" in name:
                torch.nn.init.normal_(weight, std=0.3)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llava_next(folder: Path) -> Path:
    """CLIP, tiles of 4 x 4 patches."""
    words = tokenizer()
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**PATCHED),
        text_config=LlamaConfig(**TEXT),
        image_token_index=number(words, "<image>"),
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS
    )
    processor = LlavaNextProcessor(
        pictures, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return save(folder, LlavaNextForConditionalGeneration(config), processor)


def llava_onevision(folder: Path) -> Path:
    """SigLIP, tiles of 4 x 4 patches."""
    words = tokenizer()
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**PATCHED, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_token_index=number(words, "<image>"),
        video_token_index=number(words, "<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        words,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    return save(folder, LlavaOnevisionForConditionalGeneration(config), processor)


def internvl(folder: Path) -> Path:
    """Tiles of 4 x 4 tokens after pixel shuffle, a thumbnail last."""
    words = tokenizer()
    vision = InternVLVisionConfig(**{**PATCHED, "image_size": 64})
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**TEXT),
        image_token_id=number(words, "<IMG_CONTEXT>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    size = {"height": 64, "width": 64}
    pictures = GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = InternVLProcessor(pictures, words, InternVLVideoProcessor(size=size), image_seq_length=16)
    return save(folder, InternVLForConditionalGeneration(config), processor)


def qwen2_5_vl(folder: Path) -> Path:
    """Windows of 2 x 2 tokens, full attention in the last layer."""
    words = tokenizer("<|image_pad|>", "<|video_pad|>")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [2],
        "window_size": 56,
    }
    ids: dict[str, Any] = {name: number(words, mark) for name, mark in QWEN_IDS.items()}
    text = {**TEXT, "rope_parameters": rope}
    text.pop("head_dim")
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    size = {"shortest_edge": 56 * 56, "longest_edge": 336 * 336}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(patch_size=14, size=size), words, Qwen2VLVideoProcessor(patch_size=14)
    )
    return save(folder, Qwen2_5_VLForConditionalGeneration(config), processor)


def qwen3_vl(folder: Path) -> Path:
    """Features of two tower layers are added behind the first two decoder layers."""
    words = tokenizer("<|image_pad|>", "<|video_pad|>")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": 64,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
    }
    ids: dict[str, Any] = {name: number(words, mark) for name, mark in QWEN_IDS.items()}
    text = {**TEXT, "rope_parameters": rope}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    size = {"shortest_edge": 64 * 64, "longest_edge": 384 * 384}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16, size=size), words, Qwen3VLVideoProcessor(patch_size=16)
    )
    return save(folder, Qwen3VLForConditionalGeneration(config), processor)
