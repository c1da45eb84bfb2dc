"""Tiny LFM2-VL: SigLIP2 patches of native shape merged 2 x 2; large pictures become tiles, a thumbnail last."""

from __future__ import annotations

from PIL import Image
from transformers import Lfm2Config, Lfm2VlConfig, Lfm2VlImageProcessor, PreTrainedModel, Siglip2VisionConfig

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, MORE, START, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (96, 120), (64, 64)]
PLAIN_SIZE = (96, 96)
THUMBNAIL, PLACES = MORE, MORE + 1
"""Ids of the mark of the thumbnail and of the first tile, those of the other tiles follow."""


def config() -> Lfm2VlConfig:
    """A tiny configuration."""
    vision = vision_sizes()
    del vision["image_size"]
    kinds = ["conv", "conv", "full_attention", "conv", "full_attention", "conv"]
    return Lfm2VlConfig(
        vision_config=Siglip2VisionConfig(**vision, num_patches=64, vision_use_head=False),
        text_config=Lfm2Config(**text_sizes(num_hidden_layers=6), layer_types=kinds, block_auto_adjust_ff_dim=False),
        image_token_id=IMAGE,
        projector_hidden_size=64,
        tie_word_embeddings=False,
    )


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float]]:
    """Of a picture of `PLAIN_SIZE` the four quarters, and the whole."""
    assert layout.views == 5
    quarters = [(row / 2, column / 2, (row + 1) / 2, (column + 1) / 2) for row in range(2) for column in range(2)]
    return [*quarters, (0.0, 0.0, 1.0, 1.0)]


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts(rows, seed=seed, left=left)
    processor = Lfm2VlImageProcessor(
        encoder_patch_size=8, tile_size=48, min_image_tokens=4, max_image_tokens=16, max_tiles=4
    )
    made = processor(pictures, return_row_col_info=True, return_tensors="pt")
    tokens = iter((made["spatial_shapes"] // processor.downsample_factor).prod(-1).tolist())

    def block(height: int, width: int) -> list[int]:
        """Token ids of one picture that is cut into so many rows and columns of tiles."""
        line = [START]
        if height * width > 1:
            for tile in range(height * width):
                line += [PLACES + tile, *[IMAGE] * next(tokens)]
            line.append(THUMBNAIL)
        return [*line, *[IMAGE] * next(tokens), END]

    cuts = iter(zip(made["image_rows"].tolist(), made["image_cols"].tolist(), strict=True))
    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    blocks = [[block(*next(cuts)) for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {name: made[name] for name in names}
