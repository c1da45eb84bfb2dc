"""One picture, one question: the full model's answer beside the pruned one's, and what each costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from PIL import Image

import vtprune
from vtprune.budget import Budget
from vtprune.eval.grid import EVERYTHING, method_label
from vtprune.eval.models import LoadedModel
from vtprune.eval.pictures import seen_picture
from vtprune.layout import ImageLayout
from vtprune.pruner import Pruner
from vtprune.reporting import Report

_REPEATS = 3


@dataclass(frozen=True)
class Run:
    """One model's answer.

    Args:
        answer: Text.
        tokens: Visual tokens of the picture that are left behind the last stage.
        average_tokens: Their true mean over the decoder layers.
        prefill_flops: Of the language model.
        kv_bytes: Keys and values of the prompt.
        first_token_seconds: Encoder, selection and prefill up to the first token; median, after a warm-up.
    """

    answer: str
    tokens: int
    average_tokens: float
    prefill_flops: int
    kv_bytes: int
    first_token_seconds: float


@dataclass(frozen=True)
class Comparison:
    """Both models on one question.

    Args:
        method: The method with its hyper-parameters.
        budget: The budget in words.
        positions: `"keep"` or `"pack"`.
        full: With all tokens.
        pruned: With the budgeted ones.
        seen: The picture as the tokens cover it.
        layout: How the tokens lie on it.
        kept: The surviving tokens.
    """

    method: str
    budget: str
    positions: str
    full: Run
    pruned: Run
    seen: Image.Image
    layout: ImageLayout
    kept: list[int]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture and its layout, for JSON."""
        return {
            "pruner": self.method,
            "budget": self.budget,
            "positions": self.positions,
            "tokens_full": self.layout.tokens,
            "full": asdict(self.full),
            "pruned": asdict(self.pruned),
            "kept": self.kept,
        }


def compare(
    loaded: LoadedModel,
    picture: Image.Image,
    question: str,
    method: Pruner,
    budget: Budget,
    *,
    positions: Literal["keep", "pack"] | None = None,
    max_new_tokens: int = 64,
) -> Comparison:
    """Asks the model with all its tokens and with the pruned ones.

    Raises:
        ValueError: The model, method or budget do not go together, or the prompt holds no picture.
    """
    inputs = chat_inputs(loaded, picture, question)
    runs = []
    for allowance in (EVERYTHING, budget):
        with vtprune.pruning(
            loaded.model,
            method,
            allowance,
            positions=positions,
            text_tower=loaded.text_tower,
            processor=loaded.processor,
        ):
            answer = answer_text(loaded, generate(loaded, inputs, max_new_tokens))
            seconds = first_token_seconds(loaded, inputs)
            report = vtprune.report(loaded.model)
        if not report.images:
            raise ValueError("the prompt has no visual tokens; does the model's chat template place the picture?")
        runs.append(run_of(report, answer, seconds))
    layout = report.layouts[0][0]
    kept = report.stages[-1].images[0][0].tolist() if report.stages else list(range(layout.tokens))
    # A model of one view crops the picture; of several views the tokens cover all of it.
    seen = seen_picture(inputs, loaded.processor) if layout.views == 1 else None
    return Comparison(
        method=method_label(method),
        budget=str(budget),
        positions=report.positions,
        full=runs[0],
        pruned=runs[1],
        seen=seen or picture,
        layout=layout,
        kept=kept,
    )


def chat_inputs(
    loaded: LoadedModel,
    picture: Image.Image | Sequence[Image.Image],
    question: str,
    *,
    film: Sequence[Image.Image] = (),
) -> Any:
    """A prompt with one picture, or several in a row, and a question, on the model's device.

    Args:
        loaded: The model.
        picture: One or several; an empty sequence for none.
        question: Text.
        film: Frames of a video, which follows the pictures.
    """
    pictures = [picture] if isinstance(picture, Image.Image) else picture
    content: list[dict[str, Any]] = [{"type": "image", "image": each} for each in pictures]
    options: dict[str, Any] = {}
    if film:
        content.append({"type": "video", "video": list(film)})
        # Whoever gives frames has chosen them.
        options["do_sample_frames"] = False
    content.append({"type": "text", "text": question})
    inputs = loaded.processor.apply_chat_template(
        [[{"role": "user", "content": content}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding": True, "return_tensors": "pt", **options},
    )
    return inputs.to(loaded.device, dtype=loaded.model.dtype)


def generate(loaded: LoadedModel, inputs: Any, tokens: int, **options: Any) -> Any:
    """What the model says greedily, at most so many tokens; of one prompt the new token ids.

    Args:
        loaded: The model.
        inputs: One prompt.
        tokens: Tokens to add at most.
        **options: Further ones of `generate`, such as a streamer; with `return_dict_in_generate` its output comes back
            as it is.
    """
    model: Any = loaded.model
    output = model.generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=loaded.processor.tokenizer.pad_token_id,
        **options,
    )
    return output[0, inputs["input_ids"].shape[1] :] if isinstance(output, torch.Tensor) else output


def answer_text(loaded: LoadedModel, tokens: torch.Tensor) -> str:
    """The words of an answer."""
    return str(loaded.processor.decode(tokens, skip_special_tokens=True)).strip()


def first_token_seconds(loaded: LoadedModel, inputs: Any) -> float:
    """Seconds to the first token of an answer, median of a few; the caller has run the prompt once to warm up."""
    seconds = []
    for _ in range(_REPEATS):
        _synchronize(loaded.device)
        start = time.perf_counter()
        generate(loaded, inputs, 1)
        _synchronize(loaded.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def run_of(report: Report, answer: str, seconds: float) -> Run:
    """An answer beside what its prefill cost."""
    return Run(
        answer=answer,
        tokens=report.stages[-1].after if report.stages else report.visual_tokens,
        average_tokens=report.average_tokens,
        prefill_flops=report.prefill_flops,
        kv_bytes=report.kv_bytes,
        first_token_seconds=seconds,
    )


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
