"""A public conformance suite: the invariants of the engine, run on any model with an adapter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vtprune.adapters.base import Adapter
from vtprune.adapters.registry import find_adapter
from vtprune.api import pruning, report, unwrap, wrap
from vtprune.context import Context
from vtprune.engine.cache_names import CACHE_NAMES
from vtprune.engine.taps import implementation
from vtprune.engine.views import weighed_mask
from vtprune.pruner import Pruner, Reduction

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ScatteredPruner(Pruner):
    """Keeps a fixed, scattered set that depends on each token's place alone; for checks, not for use.

    Args:
        stages: Layers before which tokens are removed.
    """

    name: ClassVar[str] = "conformance"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2026
    summary: ClassVar[str] = "a fixed scattered subset"

    stages: tuple[int, ...] = (0,)

    @property
    def layers(self) -> tuple[int, ...]:
        """The given stages."""
        return self.stages

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        """Geometric steps from `tokens` down to `keep`."""
        steps = len(self.stages)
        return tuple(max(keep, round(tokens * (keep / tokens) ** ((step + 1) / steps))) for step in range(steps))

    def reduce(self, context: Context, keep: int) -> Reduction:
        """The tokens whose numbers hash highest."""
        score = torch.frac(torch.sin((context.origin + 1).double() * (12.9898 + context.layer)) * 43758.5453).abs()
        return Reduction(score.topk(keep, dim=1).indices)


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Args:
        name: What.
        error: Largest deviation seen, where it is a matter of numbers.
    """

    name: str
    error: float | None = None


def check_adapter(
    model: nn.Module,
    processor: Any = None,
    *,
    inputs: Inputs | None = None,
    alone: Sequence[Inputs] | None = None,
    tolerance: float = 1e-4,
    keep: float = 0.3,
    suppress_tokens: Sequence[int] = (),
    exact_generation: bool = True,
) -> list[Check]:
    """Runs the invariants on a model: keep-all is bit-identical, pruned equals masked, cached equals recomputed.

    Args:
        model: A conditional-generation model, not wrapped; in fp32 for the default tolerance.
        processor: The model's processor, from which prompts of different lengths are made.
        inputs: Ready inputs of at least two rows instead, as the processor returns them, left padded.
        alone: Beside `inputs` the inputs of each row by itself; without them batch invariance is not checked.
        tolerance: Largest absolute difference of logits allowed.
        keep: Share of the visual tokens kept by the checks.
        suppress_tokens: Ids that generation is kept from beside placeholders: marks around images, which a model with
            random weights might say and some models treat specially.
        exact_generation: Whether cached decoding must give the very tokens of recomputation; in half precision near
            ties may fall either way.

    Returns:
        What was checked, with the deviations seen.

    Raises:
        AssertionError: An invariant does not hold.
        ValueError: Neither a processor nor inputs, or the model has no adapter.

    Example:
        >>> check_adapter(model, processor)  # doctest: +SKIP
    """
    if inputs is None:
        if processor is None:
            raise ValueError("check_adapter needs a processor, or inputs")
        inputs, alone = _sample_inputs(processor)
    adapter = find_adapter(model)
    inputs = _fitted(inputs, model)
    last = adapter.last_stage
    stages = list(dict.fromkeys([(0,), (min(2, last),), tuple(sorted({min(1, last), min(3, last)}))]))
    done: list[Check] = []
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            done.append(_check_keep_all(model, inputs))
            for layers in stages:
                for positions in ("keep", "pack"):
                    for cached in (True, False):
                        error = oracle_error(model, inputs, layers, positions, keep=keep, use_cache=cached)
                        name = f"pruned equals masked: layers {layers}, positions {positions}, cache {cached}"
                        assert error <= tolerance, f"{name}: logits differ by {error:.3g}, allowed {tolerance:.3g}"
                        done.append(Check(name, error))
            if alone is not None:
                rows = [_fitted(row, model) for row in alone]
                done.append(_check_batch_invariance(model, inputs, rows, stages[-1], keep, tolerance))
            for positions in ("keep", "pack"):
                done.append(
                    _check_generate(model, inputs, stages[-1], keep, positions, suppress_tokens, exact_generation)
                )
    finally:
        model.train(training)
    return done


def _fitted(inputs: Inputs, model: nn.Module) -> dict[str, Any]:
    """The inputs on the model's device, with pixels in its precision."""
    first = next(model.parameters())
    return {
        name: value.to(first.device, first.dtype if value.is_floating_point() else None)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in inputs.items()
    }


def oracle_error(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[int],
    positions: str,
    *,
    keep: float = 0.3,
    use_cache: bool = False,
    pruner: Pruner | None = None,
    options: Mapping[str, Any] | None = None,
    **forward: Any,
) -> float:
    """Largest difference of logits between the wrapped model and a full-length run that only masks.

    In the reference every token goes through every layer, but from its stage on a removed token is masked as a key;
    the states that a merging method made are put in place there. Padded positions are not compared.

    Args:
        model: The model, not wrapped.
        inputs: Its inputs.
        layers: Stages of a scattered test method; not used when `pruner` is given.
        positions: `"keep"` or `"pack"`.
        keep: Share of the visual tokens kept.
        use_cache: Whether the wrapped model fills a cache.
        pruner: A method to check instead.
        options: More arguments for `vtprune.wrap`.
        **forward: More arguments for both forward passes.
    """
    call: Any = model
    adapter = find_adapter(model)
    method = (pruner or ScatteredPruner(tuple(layers))).fit(adapter.depths)
    merged: dict[int, torch.Tensor] = {}
    with pruning(model, method, keep, positions=positions, **(options or {})):  # type: ignore[arg-type]
        handles = [
            adapter.layers[layer].register_forward_pre_hook(_copy_states(merged, layer), with_kwargs=True)
            for layer in (set(method.layers) if method.merges or method.reorders else ())
        ]
        try:
            pruned = call(**inputs, use_cache=use_cache, **forward).logits
        finally:
            for handle in handles:
                handle.remove()
        account = report(model)
    visual = visual_tokens(adapter, inputs["input_ids"])
    present, weights = [], []
    # Of several stages before one layer the last one tells what the layer sees.
    last = {stage.layer: stage for stage in account.stages}
    for stage in last.values():
        here, bias = ~visual, torch.zeros(visual.shape, device=visual.device)
        for row, kept in enumerate(stage.kept):
            here[row, kept.to(here.device)] = True
            if stage.sizes is not None and len(kept):
                bias[row, kept.to(here.device)] = torch.cat(stage.sizes[row]).log().to(bias.device)
        present.append(here)
        weights.append(bias)
    full = masked_logits(model, inputs, list(last), present, positions, merged, weights, **forward)
    left = present[-1] if present else torch.ones_like(visual)
    real = inputs.get("attention_mask")
    real = torch.ones_like(visual) if real is None else real.bool()
    worst = 0.0
    for row in range(visual.shape[0]):
        columns = left[row].nonzero().flatten()
        ours = pruned[row, pruned.shape[1] - len(columns) :][real[row, columns]]
        theirs = full[row, columns][real[row, columns]]
        worst = max(worst, (ours.float() - theirs.float()).abs().max().item())
    return worst


def masked_logits(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[int],
    present: Sequence[torch.Tensor],
    positions: str,
    states: Mapping[int, torch.Tensor] | None = None,
    weights: Sequence[torch.Tensor] | None = None,
    **forward: Any,
) -> torch.Tensor:
    """Logits of an unwrapped full-length run in which the absent tokens are masked as keys from each layer on.

    Args:
        model: The model, not wrapped.
        inputs: Its inputs.
        layers: Decoder layers of the stages.
        present: Tokens present after each stage, `(batch, length)`.
        positions: `"pack"` gives present tokens the positions they would have without the absent ones.
        states: For merging methods the states of the present tokens that enter a stage's layer,
            `(batch, present, dim)`, which replace those of the full-length run.
        weights: What is added to the attention logits of each token as a key after each stage, `(batch, length)`.
        **forward: More arguments for the forward pass.
    """
    adapter = find_adapter(model)
    given = inputs.get("attention_mask")
    real = torch.ones_like(inputs["input_ids"]).bool() if given is None else given.bool()
    entered: dict[str, Any] = {}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered["positions"] = kwargs.get("position_ids")

    def hook(stage: int, number: int) -> Callable[..., Any]:
        here = present[stage]
        names = tuple(inspect.signature(adapter.layers[number].forward).parameters)

        def swap(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
            hidden = kwargs.pop(names[0])
            if number == layers[stage] and states:
                hidden = hidden.clone()
                for row, left in enumerate(here):
                    count = int(left.sum())
                    hidden[row, left] = states[number][row, -count:]
            if adapter.attends(number):
                plane = adapter.plane(hidden)
                allowed = _allowed(kwargs.get("attention_mask"), real, plane)
                allowed = allowed & here[:, None, None, :].to(allowed.device)
                allowed = allowed | torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)
                attention = adapter.attention_module(number)
                mask = _ready_mask(allowed, plane, implementation(attention) if attention is not None else "sdpa")
                if weights and bool(weights[stage].any()):
                    mask = weighed_mask(mask, weights[stage].to(hidden.device), hidden)
                kwargs["attention_mask"] = mask
            if positions == "pack":
                moved = _packed(adapter, kwargs.get("position_ids"), entered["positions"], here)
                if kwargs.get("position_embeddings") is not None:
                    kwargs["position_embeddings"] = adapter.rotary(hidden, moved.to(hidden.device), number)
                if kwargs.get("position_ids") is not None and moved.dim() == 2 and not adapter.slot_positions:
                    kwargs["position_ids"] = moved
            return (hidden,), kwargs

        return swap

    handles = [adapter.decoder.register_forward_pre_hook(enter, with_kwargs=True)]
    recurrent: list[nn.Module] = []
    for number, layer in enumerate(adapter.layers):
        below = [stage for stage, first in enumerate(layers) if first <= number]
        if below:
            handles.append(layer.register_forward_pre_hook(hook(below[-1], number), with_kwargs=True))
            if not adapter.attends(number):
                recurrent.append(layer)
                layer.__dict__["forward"] = _row_by_row(layer.forward, present[below[-1]] & real)
    call: Any = model
    try:
        logits: torch.Tensor = call(**inputs, use_cache=False, **forward).logits
    finally:
        for handle in handles:
            handle.remove()
        for layer in recurrent:
            del layer.__dict__["forward"]
    return logits


def visual_tokens(adapter: Adapter, ids: torch.Tensor) -> torch.Tensor:
    """Placeholders of images and videos in token ids."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for placeholder in adapter.placeholders:
        found = found | (ids == placeholder.token)
    return found


def _row_by_row(forward: Callable[..., Any], present: torch.Tensor) -> Callable[..., Any]:
    """A recurrent layer that is given the present tokens of each row alone: its state never meets the others."""

    def alone(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = hidden.clone()
        kwargs = {**kwargs, **{name: None for name in CACHE_NAMES if name in kwargs}}
        output: Any = None
        for row, here in enumerate(present):
            given = {name: _entries(value, row, here) for name, value in kwargs.items()}
            output = forward(hidden[row : row + 1, here], *args, **given)
            result[row, here] = (output if isinstance(output, torch.Tensor) else output[0])[0]
        return result if isinstance(output, torch.Tensor) else (result, *[None] * (len(output) - 1))

    return alone


def _entries(value: Any, row: int, here: torch.Tensor) -> Any:
    if isinstance(value, tuple):
        return tuple(_entries(part, row, here) for part in value)
    if not isinstance(value, torch.Tensor) or value.dim() < 2 or here.shape[0] not in value.shape[1:3]:
        return value
    own = value if value.shape[0] == 1 else value[row : row + 1]
    return own[:, here] if own.shape[1] == here.shape[0] else own


def _allowed(ready: Any, real: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """What the stock model lets each token attend to, `(batch, 1, length, length)` booleans."""
    length = hidden.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
    if isinstance(ready, BlockMask):
        every = create_mask(ready.mask_mod, hidden.shape[0], 1, length, length, device=str(hidden.device))
        return every.bool()
    if isinstance(ready, torch.Tensor) and ready.dim() == 4:
        found = ready[..., :length]
        found = found if found.dtype == torch.bool else found > torch.finfo(found.dtype).min / 2
        return found.expand(hidden.shape[0], -1, -1, -1)
    return causal & real[:, None, None, :].to(hidden.device)


def _packed(adapter: Adapter, layer_positions: Any, decoder_positions: Any, present: torch.Tensor) -> torch.Tensor:
    """Positions in which the gaps of absent tokens are closed: each number that only they had moves the others up."""
    positions: Any = decoder_positions
    if positions is None or positions.dim() == 2:
        positions = layer_positions if layer_positions is not None else positions
        if positions is None:
            positions = torch.arange(present.shape[1], device=present.device).unsqueeze(0)
        closed: torch.Tensor = positions.to(present.device) - (~present).long().cumsum(1)
        return closed
    positions = adapter.rotary_positions(positions).clone()
    for row, here in enumerate(present):
        before = positions[:, row]
        gone = set(before.flatten().tolist()) - set(before[:, here].flatten().tolist())
        moved = [[value - sum(other < value for other in gone) for value in axis] for axis in before.tolist()]
        positions[:, row] = torch.tensor(moved, dtype=positions.dtype, device=positions.device)
    found: torch.Tensor = positions
    return found


def _ready_mask(allowed: torch.Tensor, hidden: torch.Tensor, attention: str) -> Any:
    """A mask `(batch, 1, length, length)` in the form that an attention implementation takes as it is."""
    if attention == "flex_attention":
        here = allowed.to(hidden.device)
        batch, _, rows, columns = here.shape
        return create_block_mask(lambda b, h, q, k: here[b, 0, q, k], batch, None, rows, columns, str(here.device))
    if attention == "eager":
        return torch.zeros(allowed.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(
            ~allowed.to(hidden.device), torch.finfo(hidden.dtype).min
        )
    return allowed


def _copy_states(found: dict[int, torch.Tensor], layer: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[layer] = (args[0] if args else kwargs["hidden_states"]).clone()

    return hook


def footprint(model: nn.Module) -> dict[str, Any]:
    """Everything that wrapping could leave behind: hooks and attributes of all modules, attention overrides."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    found: dict[str, Any] = {
        name: (
            sorted(module.__dict__),
            [len(getattr(module, kind)) for kind in hooks],
        )
        for name, module in model.named_modules()
    }
    found["attention"] = dict(ALL_ATTENTION_FUNCTIONS)
    return found


def _check_keep_all(model: nn.Module, inputs: Inputs) -> Check:
    call: Any = model
    call(**inputs)  # transformers installs some hooks of its own in the first pass
    before = footprint(model)
    plain = call(**inputs).logits
    with pruning(model, ScatteredPruner(), 1.0):
        wrapped = call(**inputs).logits
    assert torch.equal(plain, wrapped), "a budget that keeps everything changed the logits"
    wrap(model, ScatteredPruner(), 0.3)
    try:
        call(**inputs)
    finally:
        unwrap(model)
    assert footprint(model) == before, "unwrap left something behind"
    assert torch.equal(plain, call(**inputs).logits), "logits after unwrap differ from those before wrap"
    return Check("keep-all and unwrap are bit-identical")


def _check_batch_invariance(
    model: nn.Module, inputs: Inputs, rows: Sequence[Inputs], layers: Sequence[int], keep: float, tolerance: float
) -> Check:
    call: Any = model
    stock = [call(**inputs).logits[:, -1]] + [call(**alone).logits[:, -1] for alone in rows]
    own = (stock[0] - torch.cat(stock[1:])).abs().max().item()
    worst = 0.0
    with pruning(model, ScatteredPruner(tuple(layers)), keep):
        batch = call(**inputs).logits
        together = report(model).stages[-1].images
        for row, alone in enumerate(rows):
            logits = call(**alone).logits
            single = report(model).stages[-1].images[0]
            assert len(single) == len(together[row]), f"row {row}: another number of images when alone"
            for one, other in zip(single, together[row], strict=True):
                assert torch.equal(one, other), f"row {row} keeps other tokens alone than in the batch"
            worst = max(worst, (batch[row, -1] - logits[0, -1]).abs().max().item())
    if own > tolerance:
        return Check(f"a row keeps the same tokens in any batch (the stock model's own logits differ by {own:.2g})")
    assert worst <= tolerance, f"a row alone differs from the same row in a batch by {worst:.3g}"
    return Check("a row does not feel its batch mates", worst)


def _check_generate(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[int],
    keep: float,
    positions: str,
    suppress: Sequence[int],
    exact: bool,
    steps: int = 4,
) -> Check:
    call: Any = model
    # A model with random weights may say its own placeholders, whose images would then be missing.
    own = [placeholder.token for placeholder in find_adapter(model).placeholders]
    settings: dict[str, Any] = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False}
    settings["suppress_tokens"] = [*own, *suppress]
    try:
        stock = [call.generate(**inputs, **settings, use_cache=cached) for cached in (True, False)]
        stock_agrees = torch.equal(*stock)
    except (IndexError, RuntimeError, ValueError):
        stock_agrees = False
    with pruning(model, ScatteredPruner(tuple(layers)), keep, positions=positions):  # type: ignore[arg-type]
        cached = call.generate(**inputs, **settings, use_cache=True)
        fresh = call.generate(**inputs, **settings, use_cache=False) if stock_agrees else None
    length = inputs["input_ids"].shape[1]
    assert torch.equal(cached[:, :length], inputs["input_ids"]), "generate() must return the full prompt"
    assert cached.shape[1] == length + steps, f"generate() made {cached.shape[1] - length} tokens instead of {steps}"
    if not exact:
        return Check(f"generate, positions {positions}: full prompt returned")
    if fresh is None:
        return Check(f"generate, positions {positions}: full prompt returned (the stock model differs without cache)")
    assert torch.equal(cached, fresh), f"positions {positions}: cached decoding differs from recomputing without cache"
    return Check(f"generate, positions {positions}: full prompt returned, cached equals recomputed")


def _sample_inputs(processor: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Two prompts of different length with pictures of different size, together and each alone."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    pictures = []
    for width, height in ((320, 240), (200, 300)):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        pictures.append(Image.fromarray(pixels.numpy()))
    questions = ["what is this ?", "how many are there , and what color is the circle ?"]
    if getattr(processor, "chat_template", None):
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
                add_generation_prompt=True,
            )
            for question in questions
        ]
    else:
        texts = [f"{processor.image_token}\n{question}" for question in questions]
    processor.tokenizer.padding_side = "left"

    def made(rows: slice) -> dict[str, torch.Tensor]:
        # A list of pictures for each prompt, which is the form that all processors take.
        images = [[picture] for picture in pictures[rows]]
        return dict(processor(images=images, text=texts[rows], padding=True, return_tensors="pt"))

    return made(slice(0, 2)), [made(slice(0, 1)), made(slice(1, 2))]
