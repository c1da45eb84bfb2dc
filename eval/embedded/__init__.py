"""The embedded benchmark: a small, really trained LLaVA with its CLIP model, and held-out questions on drawn scenes.

Example:
    >>> model, processor = load_model()
    >>> question = load_questions()[0]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vtprune.eval.embedded.heldout import HeldOutQuestion

_HERE = Path(__file__).resolve().parent

MODEL_DIR = _HERE / "model"
"""Hugging Face folder of the LLaVA model."""
CLIP_DIR = _HERE / "clip"
"""Hugging Face folder of the CLIP model with the same vision tower."""
QUESTIONS_FILE = _HERE / "questions.jsonl"
"""The held-out questions, one JSON object a line."""


def load_model(dtype: torch.dtype | None = None, attn_implementation: str = "sdpa") -> tuple[Any, Any]:
    """The model in evaluation mode, and its processor; needs no network.

    Args:
        dtype: number type of the weights; None for the stored bf16. On most CPUs fp32 is faster.
        attn_implementation: attention of all parts, as in transformers.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(
        MODEL_DIR, dtype="auto" if dtype is None else dtype, attn_implementation=attn_implementation
    )
    return model.eval(), AutoProcessor.from_pretrained(MODEL_DIR)


def load_questions() -> list[HeldOutQuestion]:
    """The 420 held-out questions, the seven kinds in turn."""
    from vtprune.eval.embedded.heldout import read_questions

    return read_questions(QUESTIONS_FILE)
