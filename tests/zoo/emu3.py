"""Tiny Emu3: a picture becomes rows of codes of a VQ-VAE, words of the vocabulary, each row with a mark at its end."""

from __future__ import annotations

from PIL import Image
from transformers import Emu3Config, Emu3ImageProcessor, PreTrainedModel

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, MORE, START, Inputs, prompts, text_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]
CODES = 24
ROW_END, WRAPPER, FILE_END, TIMES = range(MORE + CODES, MORE + CODES + 4)


def names() -> dict[str, int]:
    """The codes' words, the mark at the end of a row and the placeholder."""
    codes = {f"<|visual token {code:06d}|>": MORE + code for code in range(CODES)}
    return codes | {"<|extra_200|>": ROW_END, "<image>": IMAGE}


def config() -> Emu3Config:
    """Four layers; 24 codes, one for 8 x 8 pixels."""
    tower = {
        "codebook_size": CODES,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "hidden_size": 32,
    }
    return Emu3Config(vq_config=tower, text_config=text_sizes(), vocabulary_map=names())


def digits(number: int) -> list[int]:
    """The words of a number, any will do."""
    return [3 + int(digit) for digit in str(number)]


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=96 * 96, spatial_factor=8)
    made = processor(images=pictures, return_tensors="pt")
    blocks = iter([block(height // 8, width // 8) for height, width in made["image_sizes"].tolist()])
    return prompts([[next(blocks) for _ in row] for row in rows], seed=seed, left=left) | dict(made)


def block(height: int, width: int) -> list[int]:
    """The words of a picture of that many rows and columns of codes."""
    size = [*digits(height), TIMES, *digits(width)]
    return [START, *size, WRAPPER, *[IMAGE] * (height * (width + 1)), FILE_END, END]


def view_boxes(layout: ImageLayout) -> list[None]:
    """No cell to look at: norms over the whole picture let any change in it change codes everywhere."""
    return [None] * layout.views
