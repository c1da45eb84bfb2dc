"""Tiny FastVLM: every picture becomes the 16 cells of a convolutional tower's last map, without marks around them."""

from __future__ import annotations

from PIL import Image
from transformers import CLIPImageProcessor, FastVlmConfig, PreTrainedModel, Qwen2Config, TimmWrapperConfig

from zoo.common import IMAGE, Inputs, prompts, text_sizes

NO_PLACES = "the convolutions of a tower with random weights show a change of one cell everywhere"
SIZES = [(48, 64), (80, 40), (56, 56)]
SIDE, STRIDE = 256, 64


def config() -> FastVlmConfig:
    """FastViT of timm with one block a stage under a Qwen2."""
    return FastVlmConfig(
        vision_config=TimmWrapperConfig(
            architecture="fastvit_mci3",
            do_pooling=True,
            hidden_size=128,
            initializer_range=0.07,
            model_args={
                "inference_mode": True,
                "layers": (1,) * 5,
                "embed_dims": (8, 16, 32, 32, 64),
                "layer_scale_init_value": 0.5,
            },
        ),
        text_config=Qwen2Config(**text_sizes()),
        image_token_index=IMAGE,
        image_seq_length=16,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    made = prompts([[[IMAGE] * (SIDE // STRIDE) ** 2 for _ in row] for row in rows], seed=seed, left=left)
    if pictures := [picture for row in rows for picture in row]:
        processor = CLIPImageProcessor(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_mean=[0.0] * 3,
            image_std=[1.0] * 3,
        )
        made |= processor(pictures, return_tensors="pt")
    return made
