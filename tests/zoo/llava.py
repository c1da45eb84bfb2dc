"""Tiny LLaVA: every picture becomes the 36 patches of a square crop, in raster order, without marks around them."""

from __future__ import annotations

from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedModel

from zoo.common import IMAGE, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]


def config() -> LlavaConfig:
    """CLIP with a class token under a Llama."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision_sizes()),
        text_config=LlamaConfig(**text_sizes()),
        image_token_index=IMAGE,
        image_seq_length=36,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    tower = model.config.vision_config
    side = tower.image_size
    blocks = [[[IMAGE] * (side // tower.patch_size) ** 2 for _ in row] for row in rows]
    made = prompts(blocks, seed=seed, left=left)
    if pictures := [picture for row in rows for picture in row]:
        processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        made |= processor(pictures, return_tensors="pt")
    return made
