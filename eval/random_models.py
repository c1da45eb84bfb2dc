"""Well-known architectures with random weights and made-up prompts: speed depends on sizes, not on values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
)

from vtprune.adapters import find_adapter
from vtprune.text_tower import TextTower

_BEFORE = 35
"""Text tokens in front of the picture, about as many as in LLaVA's template."""
_WORDS = range(5, 250)
"""Ids of made-up words."""


@dataclass(frozen=True)
class Architecture:
    """A published model's sizes, and what its processor would make of one picture.

    Args:
        summary: For people.
        config: Makes the configuration, with so many decoder layers or, for `None`, all.
        pixels: Makes the picture's inputs beside the prompt: for a number of prompts, a device and a number type.
    """

    summary: str
    config: Callable[[int | None], Any]
    pixels: Callable[[int, torch.device, torch.dtype], dict[str, torch.Tensor]]


def _clip() -> Any:
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


def _llava(config: Any, **text: Any) -> Callable[[int | None], Any]:
    def make(layers: int | None) -> Any:
        sizes = text if layers is None else text | {"num_hidden_layers": layers}
        decoder = LlamaConfig(vocab_size=32064, max_position_embeddings=4096, **sizes)
        return config(vision_config=_clip(), text_config=decoder, image_token_index=32000)

    return make


def _qwen2_5_vl(layers: int | None) -> Any:
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28 if layers is None else layers,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={"hidden_size": 1280, "out_hidden_size": 3584},
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
    )


def _one_view(batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 336, 336, device=device, dtype=dtype)}


def _five_views(batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    pixels = torch.randn(batch, 5, 3, 336, 336, device=device, dtype=dtype)
    # On the host, where processors leave it: the model reads it there to lay the views out.
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[672, 672]] * batch)}


def _patches(batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    pixels = torch.randn(batch * 48 * 48, 3 * 2 * 14 * 14, device=device, dtype=dtype)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 48, 48]] * batch, device=device)}


_13B: dict[str, Any] = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}

ARCHITECTURES = {
    "llava-1.5-7b": Architecture("576 visual tokens, 32 layers", _llava(LlavaConfig), _one_view),
    "llava-1.5-13b": Architecture("576 visual tokens, 40 layers", _llava(LlavaConfig, **_13B), _one_view),
    "llava-next-7b": Architecture(
        "5 views of 576 tokens and 48 newlines of a square picture, 32 layers", _llava(LlavaNextConfig), _five_views
    ),
    "qwen2.5-vl-7b": Architecture("576 visual tokens of 672 x 672 pixels, 28 layers", _qwen2_5_vl, _patches),
}


def check_name(name: str) -> str:
    """Returns a known architecture's name unchanged.

    Raises:
        ValueError: Unknown name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown config {name!r}; there are {', '.join(ARCHITECTURES)}")
    return name


def random_model(
    name: str, device: torch.device, dtype: torch.dtype, *, attention: str | None = None, layers: int | None = None
) -> PreTrainedModel:
    """A model with random weights, made on its device.

    Args:
        name: One of `ARCHITECTURES`.
        device: Where.
        dtype: Number type of the weights.
        attention: Implementation of transformers; its default if `None`.
        layers: Decoder layers, instead of all.

    Raises:
        ValueError: Unknown name.
    """
    config = ARCHITECTURES[check_name(name)].config(layers)
    options = {} if attention is None else {"attn_implementation": attention}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            make: Any = AutoModelForImageTextToText.from_config
            model = make(config, dtype=dtype, **options).eval()
    finally:
        torch.set_default_dtype(before)
    found: PreTrainedModel = model
    return found


def random_prompts(
    model: Any, batch: int, text_tokens: int, pixels: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`batch` prompts of one picture and so many text tokens, without padding.

    Args:
        model: Of one of the `ARCHITECTURES`.
        batch: Prompts.
        text_tokens: Tokens of each that are no visual ones.
        pixels: What `Architecture.pixels` makes.
    """
    adapter = find_adapter(model)
    tokens = adapter.layouts("image", [], pixels)[0].tokens
    before = min(_BEFORE, text_tokens // 2)
    ids = torch.randint(_WORDS.start, _WORDS.stop, (batch, text_tokens + tokens), device=model.device)
    ids[:, before : before + tokens] = adapter.image_token_id
    kinds = {}
    if "image_grid_thw" in pixels:
        kinds["mm_token_type_ids"] = (ids == adapter.image_token_id).long()
    return {"input_ids": ids, **kinds, **pixels}


def random_text_tower(model: Any) -> TextTower:
    """A CLIP-L text tower with random weights, fitted to the width of a model's vision tower."""
    width = model.config.vision_config.hidden_size
    with torch.device(model.device):
        text = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
        )
        norm, projection = torch.nn.LayerNorm(width), torch.nn.Linear(width, 768, bias=False)

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = text

        def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output: Any = self.clip(input_ids=ids)
            return output.text_embeds, self.clip.text_projection(output.last_hidden_state[:, -1])

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return [[49406, *range(1, len(text.split()) + 1), 49407] for text in texts]

    return TextTower(Pooled(), tokenize, norm, projection, length=77, padding=49407)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word for each id of the made-up prompts, so that a question can be read from them."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(1000)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)
