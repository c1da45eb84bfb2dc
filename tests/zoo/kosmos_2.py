"""Tiny KOSMOS-2: 16 latent queries for a picture between two marks, their ids a range of words, a mask says where."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Kosmos2Config,
    PreTrainedConfig,
    PreTrainedModel,
)

from zoo.common import BOS, END, EOS, MORE, PAD, START, VOCAB, Inputs, prompts, vision_sizes

MODEL_TYPE = "kosmos-2"
SIZES = [(48, 64), (80, 40), (56, 56)]
SIDE, QUERIES = 48, 16
TEXT = {
    "embed_dim": 64,
    "ffn_dim": 96,
    "layers": 4,
    "attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


class Maker:
    """Makes a model in which pictures matter: as initialised the latent queries drown them."""

    @staticmethod
    def from_config(config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
        """The model with that attention."""
        model = AutoModelForImageTextToText.from_config(config, attn_implementation=attn_implementation)
        with torch.no_grad():
            model.image_to_text_projection.dense.weight.mul_(30)
        return model


MODEL_CLASS = Maker


def config() -> Kosmos2Config:
    """A decoder with sinusoidal positions; the tower has a class token."""
    return Kosmos2Config(text_config=TEXT, vision_config=vision_sizes(), latent_query_num=QUERIES)


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    queries = range(MORE, MORE + QUERIES)
    made = prompts([[[START, *queries, END] for _ in row] for row in rows], seed=seed, left=left)
    made["image_embeds_position_mask"] = torch.isin(made["input_ids"], torch.tensor(queries)).long()
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return made
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return made | dict(processor(images=pictures, return_tensors="pt"))
