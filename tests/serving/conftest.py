"""What the tests of serving share: the embedded model's questions, as text and pictures."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from PIL import Image

from vtprune.eval.embedded import load_model, load_questions
from vtprune.eval.embedded.scenes import render


class Asked(NamedTuple):
    """Questions about drawn scenes, with the prompts that the embedded model was trained on."""

    prompts: list[str]
    images: list[Image.Image]
    answers: list[str]


@pytest.fixture(scope="session")
def reference() -> tuple[Any, Any]:
    """The embedded model of transformers and its processor, in float32, padding on the left."""
    import torch

    model, processor = load_model(torch.float32)
    processor.tokenizer.padding_side = "left"
    return model, processor


@pytest.fixture(scope="session")
def asked(reference: tuple[Any, Any]) -> Asked:
    """A hundred questions."""
    _, processor = reference
    held_out = load_questions()[:100]
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one.question}]}],
            add_generation_prompt=True,
        )
        for one in held_out
    ]
    return Asked(prompts, [render(one.scene) for one in held_out], [one.answer for one in held_out])
