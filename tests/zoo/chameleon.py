"""Tiny Chameleon: a picture becomes 6 x 6 codes of a VQ-VAE, which are words of the vocabulary, between two marks."""

from __future__ import annotations

from PIL import Image
from transformers import ChameleonConfig, ChameleonImageProcessor, PreTrainedModel

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, MORE, START, Inputs, prompts, text_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]
SIDE, CODES = 48, 32


def names() -> dict[str, int]:
    """The codes' words: digits of their numbers as letters from A on."""
    letters = ["".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) for code in range(CODES)]
    return {f"IMGIMG{word}Z": MORE + code for code, word in enumerate(letters)} | {"<image>": IMAGE}


def config() -> ChameleonConfig:
    """Four layers with query and key norms; 32 codes."""
    tower = {
        "embed_dim": 16,
        "num_embeddings": CODES,
        "latent_channels": 16,
        "resolution": SIDE,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1,
    }
    return ChameleonConfig(**text_sizes(), vq_config=tower, vocabulary_map=names())


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    count = (SIDE // 2 ** (len(model.config.vq_config.channel_multiplier) - 1)) ** 2
    text = prompts([[[START, *[IMAGE] * count, END] for _ in row] for row in rows], seed=seed, left=left)
    if not pictures:
        return text
    processor = ChameleonImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return text | dict(processor(images=pictures, return_tensors="pt"))


def view_boxes(layout: ImageLayout) -> list[None]:
    """No cell to look at: norms over the whole picture let any change in it change codes everywhere."""
    return [None] * layout.views
