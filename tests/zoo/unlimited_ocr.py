"""Tiny Unlimited-OCR: rows over all local tiles, then rows of the whole picture, a newline each; a separator last."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import PreTrainedModel, UnlimitedOcrConfig
from transformers.models.unlimited_ocr.image_processing_unlimited_ocr import UnlimitedOcrImageProcessor

from vtprune.layout import ImageLayout
from zoo.common import IMAGE, prompts, text_sizes, vision_sizes

SIZES = [(60, 80), (100, 200), (150, 140)]
PLAIN_SIZE = (192, 192)
# With smaller weights the convolutions carry more of a change into the next cell than into its own.
SCALE = 3.5
WHOLE, TILE = 4, 3


def config() -> UnlimitedOcrConfig:
    """SAM, then CLIP on its patches; a decoder that keeps the prompt and a window of what it generates."""
    return UnlimitedOcrConfig(
        text_config=text_sizes(
            layer_types=["reference_sliding_attention"] * 3 + ["full_attention"],
            num_key_value_heads=4,
            sliding_window=16,
            mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
            n_routed_experts=4,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
        ),
        vision_config={
            "sam_config": vision_sizes(
                image_size=128,
                mlp_dim=64,
                output_channels=16,
                downsample_channels=[24, 32],
                window_size=7,
                global_attn_indexes=[1],
                initializer_range=0.02,
            ),
            "encoder_config": vision_sizes(),
        },
        image_token_id=IMAGE,
    )


NOTE = (
    "beyond its window the stock model looks padding up at the wrong place once the window moves, so that padded rows "
    "of a batch differ from rows alone there; so they do when pruned"
)


def inputs(
    model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True
) -> dict[str, Any]:
    """Everything that forward and generate take; the processor leaves two of them lists."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = UnlimitedOcrImageProcessor(
        size={"height": 32 * WHOLE, "width": 32 * WHOLE}, tile_size=32 * TILE, min_patches=2, max_patches=4
    )
    made = processor(images=pictures, return_tensors="pt")
    blocks = []
    for (columns, lines), tiles in zip(made["patches_grid"], made["num_local_patches"], strict=True):
        count = WHOLE * (WHOLE + 1) + 1
        if tiles:
            count += lines * TILE * (columns * TILE + 1)
        blocks.append([IMAGE] * count)
    order = iter(blocks)
    asked = prompts([[next(order) for _ in row] for row in rows], seed=seed, left=left)
    names = ("pixel_values", "pixel_values_local", "num_local_patches", "patches_grid")
    return asked | {name: made[name] for name in names if name in made}


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float] | None]:
    """Two by two tiles; in the whole picture keys of a neighbour change most, through the convolutions before."""
    assert layout.views == 5
    halves = [(row / 2, column / 2, (row + 1) / 2, (column + 1) / 2) for row in range(2) for column in range(2)]
    return [*halves, None]
