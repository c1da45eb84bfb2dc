"""Tiny BLIP-2: 16 outputs of a Q-Former for a picture, in front of the prompt's first word and its padding."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, Blip2Config, BlipImageProcessor, PreTrainedConfig, PreTrainedModel

from zoo.common import BOS, EOS, IMAGE, PAD, VOCAB, Inputs, prompts, vision_sizes

MODEL_TYPE = "blip-2"
SCALE = 6.0
SIZES = [(48, 64), (80, 40), (56, 56)]
SIDE, QUERIES = 48, 16
NO_PLACES = "tokens are queries of the Q-Former, each of which looks at the whole picture"
QFORMER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TEXT = {
    "model_type": "opt",
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


class Maker:
    """Makes a model whose query tokens differ: as initialised all are zero, and so all outputs for a picture equal."""

    @staticmethod
    def from_config(config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
        """The model with that attention."""
        model = AutoModelForImageTextToText.from_config(config, attn_implementation=attn_implementation)
        with torch.no_grad():
            model.query_tokens.normal_()
        return model


MODEL_CLASS = Maker


def config() -> Blip2Config:
    """A decoder of the OPT kind; the tower has a class token."""
    return Blip2Config(
        vision_config=vision_sizes(initializer_range=0.02),
        qformer_config=QFORMER,
        text_config=TEXT,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )


def behind(counts: list[int], placeholder: int, *, seed: int, left: bool) -> Inputs:
    """Prompts, padded, behind as many placeholders as given; rows with fewer have padding in front."""
    text = prompts([[] for _ in counts], seed=seed, left=left)
    front = torch.arange(max(counts)) >= max(counts) - torch.tensor(counts)[:, None]
    return {
        "input_ids": torch.cat([torch.where(front, placeholder, PAD), text["input_ids"]], dim=1),
        "attention_mask": torch.cat([front.long(), text["attention_mask"]], dim=1),
    }


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    counts = [QUERIES * len(row) for row in rows]
    text = behind(counts, model.config.image_token_id, seed=seed, left=left)
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return text
    processor = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    return text | dict(processor(images=pictures, return_tensors="pt"))
