"""Tiny Apertus 1.5: a code per 8 x 8 pixels, embedded as a word would be; lines with marks between, size before."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import (
    Apertus1p5Config,
    Apertus1p5ForConditionalGeneration,
    Apertus1p5ImageProcessor,
    Apertus1p5TextConfig,
    Apertus1p5VisionTokenizerConfig,
    PreTrainedModel,
    WavTokenizerEncoderConfig,
)

from zoo.common import END, IMAGE, MORE, START, TEXT, VOCAB, Inputs, prompts, text_sizes

NO_PLACES = "a change of one cell moves other cells to other codes too, which are as far from the old ones"
SIZES = [(48, 64), (80, 40), (56, 56)]
TIMES, WRAPPER, NEWLINE, AUDIO = MORE, MORE + 1, MORE + 2, MORE + 3
CODES, SOUNDS = 64, 16


def config() -> Apertus1p5Config:
    """A quantizing encoder of four scales under a decoder whose head leaves out the codes."""
    return Apertus1p5Config(
        vision_config=Apertus1p5VisionTokenizerConfig(
            codebook_size=CODES,
            embed_dim=16,
            latent_channels=16,
            base_channels=32,
            channel_multiplier=(1, 1, 1, 1),
            num_res_blocks=1,
            attn_resolutions=(8,),
            resolution=64,
        ),
        text_config=Apertus1p5TextConfig(**text_sizes(vocab_size=VOCAB + CODES + SOUNDS, output_vocab_size=VOCAB)),
        audio_config=WavTokenizerEncoderConfig(
            num_filters=4,
            hidden_size=32,
            codebook_dim=32,
            codebook_size=SOUNDS,
            decoder_hidden_size=32,
            decoder_intermediate_size=32,
            decoder_num_layers=1,
        ),
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
        image_token_offset=VOCAB,
        audio_token_offset=VOCAB + CODES,
    )


class MODEL_CLASS:
    """Makes the stock model with the asked attention in its decoder only, as its tokenizers refuse all but eager."""

    @staticmethod
    def _from_config(config: Apertus1p5Config, attn_implementation: str, **options: Any) -> PreTrainedModel:
        """The model of a configuration."""
        each = {"": attn_implementation, "text_config": attn_implementation}
        each |= {"vision_config": "eager", "audio_config": "eager"}
        return Apertus1p5ForConditionalGeneration._from_config(config, attn_implementation=each, **options)


def block(height: int, width: int) -> list[int]:
    """Token ids of a picture with so many lines and columns of codes."""
    lines = [NEWLINE, *[IMAGE] * width] * height
    return [START, TEXT[height], TIMES, TEXT[width], WRAPPER, *lines[1:], END]


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    factor = model.config.vision_config.spatial_scale_factor
    pixels, blocks = {}, []
    if pictures := [picture for row in rows for picture in row]:
        processor = Apertus1p5ImageProcessor(size={"min_pixels": 32 * 32, "max_pixels": 80 * 80}, spatial_factor=factor)
        pixels = processor(pictures, return_tensors="pt")
        blocks = [block(*size) for size in (pixels["image_sizes"] // factor).tolist()]
    following = iter(blocks)
    return prompts([[next(following) for _ in row] for row in rows], seed=seed, left=left) | pixels
