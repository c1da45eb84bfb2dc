"""Tiny InstructBLIP: as BLIP-2, but the Q-Former reads the prompt as well."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import InstructBlipConfig, PreTrainedModel

from zoo.blip_2 import MODEL_CLASS, NO_PLACES, QFORMER, QUERIES, SCALE, SIZES, TEXT
from zoo.blip_2 import inputs as without_prompt
from zoo.common import IMAGE, Inputs, prompts, vision_sizes

__all__ = ["MODEL_CLASS", "NO_PLACES", "SCALE", "SIZES", "config", "inputs", "questions"]


def config() -> InstructBlipConfig:
    """A decoder of the OPT kind; the tower has a class token."""
    return InstructBlipConfig(
        vision_config=vision_sizes(initializer_range=0.02),
        qformer_config=QFORMER,
        text_config=TEXT,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )


def questions(counts: list[int], *, seed: int) -> Inputs:
    """What the Q-Former reads, padded at the right as its tokenizer does: each row's words once for each picture."""
    words = prompts([[] for _ in counts], seed=seed, left=False)
    times = torch.tensor(counts)
    return {
        "qformer_input_ids": words["input_ids"].repeat_interleave(times, dim=0),
        "qformer_attention_mask": words["attention_mask"].repeat_interleave(times, dim=0),
    }


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    return without_prompt(model, rows, seed=seed, left=left) | questions([len(row) for row in rows], seed=seed)
