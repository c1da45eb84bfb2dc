"""Tiny Gemma 3n: every picture is 16 tokens, the cells of a convolutional tower's last map."""

from __future__ import annotations

from PIL import Image
from transformers import (
    Gemma3nAudioConfig,
    Gemma3nConfig,
    Gemma3nTextConfig,
    Gemma3nVisionConfig,
    PreTrainedModel,
    SiglipImageProcessor,
)

from zoo.common import END, IMAGE, MORE, START, VOCAB, Inputs, prompts, text_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]
NEWLINES, AUDIO = 10, 309
SIDE = 128
"""Of pictures; the tower divides by 32."""


def config() -> Gemma3nConfig:
    """Return a configuration with windows of 16 tokens in every second layer; the last two layers share keys."""
    text = Gemma3nTextConfig(
        **text_sizes(num_hidden_layers=6, head_dim=16),
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 3,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=IMAGE,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        altup_num_inputs=3,
        activation_sparsity_pattern=[0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
    )
    vision = Gemma3nVisionConfig(architecture="test_resnet", hidden_size=96, vocab_size=8, vocab_offset=IMAGE)
    audio = Gemma3nAudioConfig(
        vocab_size=VOCAB - IMAGE - 8,
        vocab_offset=IMAGE + 8,
        input_feat_size=32,
        hidden_size=32,
        conf_num_attention_heads=2,
        conf_num_hidden_layers=1,
        sscp_conv_channel_size=(8, 4),
    )
    return Gemma3nConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        vision_soft_tokens_per_image=(SIDE // 32) ** 2,
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
        boi_token_id=START,
        eoi_token_id=END,
        boa_token_id=MORE + 2,
        eoa_token_id=MORE + 3,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Return everything that forward and generate take."""
    count = model.config.vision_soft_tokens_per_image
    made = prompts(
        [[[NEWLINES, START, *[IMAGE] * count, END, NEWLINES] for _ in row] for row in rows], seed=seed, left=left
    )
    made["token_type_ids"] = (made["input_ids"] == IMAGE).long()
    pictures = [picture for row in rows for picture in row]
    processor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, do_normalize=False)
    return made | ({"pixel_values": processor(pictures, return_tensors="pt")["pixel_values"]} if pictures else {})
