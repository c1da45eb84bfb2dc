"""How long a prefill takes unpruned, pruned, and at its ideal: ``python -m vtprune.eval.prefill_benchmark``.

The ideal is the same model doing the same vision work and then running its decoder on as many visual tokens as the
method leaves, with no selection, no gather and no hook. All are timed in turns in one process, warmed up and
synchronised; medians and the middle half of the runs are reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

import vtprune
from vtprune.adapters import find_adapter
from vtprune.context import Context
from vtprune.pruner import Pruner, Reduction, Signal
from vtprune.text_tower import TextTower

TEXT_TOKENS = 60


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated runs: median, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class Row:
    """One method at one batch size; milliseconds.

    Args:
        pruner: Name of the method.
        batch: Prompts, one image each.
        tokens: Visual tokens of an image before pruning.
        keep: Visual tokens of an image that stay.
        full: The unwrapped model.
        pruned: The wrapped model, selection and gathers included.
        ideal: The unwrapped model fed as many tokens as each layer of the wrapped one sees.
        selection: The method's own choice alone, all its stages, signals that a stage keeps at hand.
    """

    pruner: str
    batch: int
    tokens: int
    keep: int
    full: Timing
    pruned: Timing
    ideal: Timing
    selection: Timing


def llava_7b(device: torch.device, dtype: torch.dtype, attention: str) -> Any:
    """LLaVA-1.5-7B with random weights: speed does not depend on their values."""
    vision: Any = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text: Any = LlamaConfig(vocab_size=32064)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            make: Any = LlavaForConditionalGeneration._from_config
            return make(config, attn_implementation=attention, dtype=dtype).eval()
    finally:
        torch.set_default_dtype(before)


def prompts(model: Any, batch: int) -> dict[str, torch.Tensor]:
    """`batch` prompts of one picture and `TEXT_TOKENS` text tokens, without padding."""
    layout = find_adapter(model).typical_layout()
    if layout is None:
        raise ValueError(f"{type(model).__name__} has no fixed number of visual tokens; benchmark a LLaVA-1.5 model")
    device, dtype = model.device, model.dtype
    side = model.config.vision_config.image_size
    ids = torch.randint(5, 250, (batch, TEXT_TOKENS + layout.tokens), device=device)
    ids[:, 35 : 35 + layout.tokens] = model.config.image_token_id
    return {"input_ids": ids, "pixel_values": torch.randn(batch, 3, side, side, device=device, dtype=dtype)}


def measure(
    model: Any, pruners: Sequence[Pruner], batches: Sequence[int], keep: int, repeats: int, warmup: int = 5
) -> list[Row]:
    """Times every method at every batch size on an unwrapped model.

    Args:
        model: A model on its device.
        pruners: The methods.
        batches: Batch sizes.
        keep: Tokens per image.
        repeats: Timed runs of each.
        warmup: Runs before them.
    """
    rows = []
    for batch in batches:
        inputs = prompts(model, batch)
        for pruner in pruners:
            rows.append(_measure_one(model, pruner, inputs, keep, repeats, warmup))
    return rows


@torch.inference_mode()
def _measure_one(
    model: Any, pruner: Pruner, inputs: dict[str, torch.Tensor], keep: int, repeats: int, warmup: int
) -> Row:
    def prefill() -> None:
        model(**inputs, use_cache=True, logits_to_keep=1)

    pruner = pruner.fit(find_adapter(model).depths)
    options: dict[str, Any] = {"images_per_prompt": 1}
    if Signal.CLIP_TEXT in pruner.signals:
        options |= {"text_tower": random_text_tower(model), "processor": _tokenizer()}
    full = _time(prefill, model.device, repeats, warmup)
    with vtprune.pruning(model, pruner, keep, **options):
        pruned = _time(prefill, model.device, repeats, warmup)
        report = vtprune.report(model)
    seen: list[tuple[Context, int]] = []

    def choose() -> None:
        for context, target in seen:
            pruner.reduce(context, target)

    with vtprune.pruning(model, _recorder(pruner, seen), keep, **options):
        prefill()
        selection = _time(choose, model.device, repeats, warmup)
    ideal = _time(_ideal(model, inputs, report.lengths), model.device, repeats, warmup)
    images = inputs["input_ids"].shape[0]
    left = report.stages[-1].after // images
    return Row(pruner.name, images, report.visual_tokens // images, left, full, pruned, ideal, selection)


def random_text_tower(model: Any) -> TextTower:
    """A CLIP-L text tower with random weights, for a vision tower of CLIP-L's width."""
    width = model.config.vision_config.hidden_size
    with torch.device(model.device):
        text = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
        )
        norm, projection = torch.nn.LayerNorm(width), torch.nn.Linear(width, 768, bias=False)

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = text

        def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output: Any = self.clip(input_ids=ids)
            return output.text_embeds, self.clip.text_projection(output.last_hidden_state[:, -1])

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return [[49406, *range(1, len(text.split()) + 1), 49407] for text in texts]

    return TextTower(Pooled(), tokenize, norm, projection, length=77, padding=49407)


def _tokenizer() -> Any:
    """A word for each id of the made-up prompts, so that a question can be read from them."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(1000)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def _recorder(pruner: Pruner, seen: list[tuple[Context, int]]) -> Pruner:
    """The same method, writing down what it is called with."""
    cls = type(pruner)

    def reduce(self: Pruner, context: Context, keep: int) -> Reduction:
        seen.append((context, keep))
        return cls.reduce(self, context, keep)

    recorder: Pruner = type(cls.__name__, (cls,), {"reduce": reduce})(**pruner.config())
    return recorder


def _ideal(model: Any, inputs: dict[str, torch.Tensor], lengths: Sequence[int]) -> Callable[[], None]:
    """Vision tower, then each decoder layer on tokens of the right number, as if they had always been so few."""
    decoder = find_adapter(model).decoder
    embeddings = model.get_input_embeddings()(inputs["input_ids"])

    def shorten(length: int) -> Callable[..., Any]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            cos, sin = kwargs["position_embeddings"]
            kwargs["position_embeddings"] = cos[:, :length], sin[:, :length]
            kwargs["position_ids"] = None
            return (args[0][:, :length], *args[1:]), kwargs

        return hook

    def run() -> None:
        model.model.get_image_features(pixel_values=inputs["pixel_values"])
        handles = []
        if len(set(lengths)) > 1:
            for layer, length in zip(find_adapter(model).layers, lengths, strict=True):
                handles.append(layer.register_forward_pre_hook(shorten(length), with_kwargs=True))
        try:
            hidden = decoder(inputs_embeds=embeddings[:, : lengths[0]], use_cache=True).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        model.lm_head(hidden[:, -1:])

    return run


def _time(run: Callable[[], object], device: torch.device, repeats: int, warmup: int) -> Timing:
    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(warmup):
        run()
    taken = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        taken.append(1e3 * (time.perf_counter() - start))
    low, median, high = statistics.quantiles(taken, n=4)
    return Timing(median, low, high)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pruners", default="divprune", help="names, separated by commas, or 'all'")
    parser.add_argument("--batches", default="1,8", help="batch sizes, separated by commas")
    parser.add_argument("--keep", type=int, default=64, help="visual tokens per image that stay")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    options = parser.parse_args(arguments)
    names = vtprune.list_pruners() if options.pruners == "all" else options.pruners.split(",")
    pruners = [vtprune.make_pruner(name) for name in names]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = llava_7b(device, dtype, options.attention)
    rows = measure(model, pruners, [int(batch) for batch in options.batches.split(",")], options.keep, options.repeats)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    table = Table(title=f"Prefill of LLaVA-1.5-7B (random weights, {dtype}), ms: median (quartiles), {machine}")
    for column in ("pruner", "batch", "tokens", "unpruned", "pruned", "ideal", "selection", "speed-up", "of ideal"):
        table.add_column(column, justify="left" if column == "pruner" else "right")
    for row in rows:
        table.add_row(
            row.pruner,
            str(row.batch),
            f"{row.tokens} -> {row.keep}",
            *(str(timing) for timing in (row.full, row.pruned, row.ideal, row.selection)),
            f"{row.full.median / row.pruned.median:.2f} x",
            f"{row.pruned.median / row.ideal.median:.2f}",
        )
    Console(width=160).print(table)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
