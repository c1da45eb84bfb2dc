"""The hooks around a model: they find the images of a forward pass, and hand each decoder layer its tokens."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vtprune.budget import Budget
from vtprune.engine.cache_names import cache_in
from vtprune.engine.cache_state import CacheState, state_of
from vtprune.engine.checks import DECODER_STATES, NEXT, UNROTATED, check_fit, named_encoder_layers
from vtprune.engine.run import Run
from vtprune.engine.sequence import Tokens
from vtprune.engine.taps import AttentionStates, watch
from vtprune.engine.vision import VisionRecord, hash_pixels
from vtprune.layout import ImageLayout
from vtprune.pruner import Pruner, Signal
from vtprune.reporting import Report

if TYPE_CHECKING:
    from vtprune.adapters.base import Adapter
    from vtprune.question import QuestionReader
    from vtprune.text_tower import TextTower

_RUN = "vtprune_run"
_RECORD = "_vtprune_record"
_ENCODER_STATES = frozenset({Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS})


@dataclass
class _Prompt:
    """What the model's entry tells about a pass before its decoder runs."""

    visual: torch.Tensor
    record: VisionRecord | None
    ids: torch.Tensor | None


class _Local(threading.local):
    """The pass that this thread is in; several threads may run one wrapped model."""

    prompt: _Prompt | None = None
    record: VisionRecord | None = None
    run: Run | None = None
    left: Tokens | None = None  # of the pass that just ended; not the pass itself, which holds large states


class Engine:
    """Prunes one model while it is attached.

    Args:
        model: The model to hook.
        adapter: Where things are in it.
        pruner: The method.
        budget: How many tokens stay.
        positions: `"keep"` or `"pack"`.
        images_per_prompt: Images in every row of a batch, if that is promised; saves asking the device.
        text_tower: CLIP's text side, for methods that compare patches with the question.
        question_reader: Reads the question from a prompt's tokens, for the same methods.

    Raises:
        ValueError: The method, its layers, the budget or its signals do not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        pruner: Pruner,
        budget: Budget,
        positions: str,
        images_per_prompt: int | None = None,
        text_tower: TextTower | None = None,
        question_reader: QuestionReader | None = None,
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.pruner = pruner.fit(adapter.depths)
        self.text_tower = text_tower
        self.question_reader = question_reader
        self.budget = budget
        self.positions = positions
        self.images_per_prompt = images_per_prompt
        self.layers = adapter.layers
        self.shape = adapter.shape
        self.vision = adapter.vision
        self.last_report: Report | None = None
        self._local = _Local()
        self._undo: list[Callable[[], None]] = []
        self._entry_arguments: tuple[str, ...] = ()
        self._schedules: dict[tuple[Any, ...], list[tuple[int, ...]]] = {}
        self.encoder_layers = named_encoder_layers(self)
        check_fit(self)

    def __repr__(self) -> str:
        return f"{self.pruner!r}, {self.budget}, positions={self.positions!r}"

    def __reduce__(self) -> str:
        raise TypeError(
            "a wrapped model cannot be copied or pickled: its hooks belong to it; call vtprune.unwrap first"
        )

    def stages_with(self, signals: frozenset[Signal]) -> set[int]:
        """Decoder layers of the stages that look at any of some signals."""
        layers = self.pruner.layers
        return {layer for stage, layer in enumerate(layers) if self.pruner.stage_signals(stage) & signals}

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Encoder features to decoder width, without being recorded."""
        projected: torch.Tensor = self.vision.projector.forward(features)
        return projected

    def schedules(self, images: Sequence[ImageLayout], text_tokens: int) -> list[tuple[int, ...]]:
        """For each image of one prompt its tokens after each stage."""
        if not images:
            return []
        key = (*((image.tokens, image.views) for image in images), text_tokens)
        if self.budget.adaptive:
            return [(image.tokens,) * len(self.pruner.layers) for image in images]
        if key not in self._schedules:
            keeps = self.budget.resolve(self.pruner, images, self.shape, text_tokens)
            self._schedules[key] = [
                self.pruner.schedule(image.tokens, keep)
                if keep < image.tokens
                else (image.tokens,) * len(self.pruner.layers)
                for image, keep in zip(images, keeps, strict=True)
            ]
        return self._schedules[key]

    def attach(self) -> None:
        """Installs every hook; on failure none remains."""
        try:
            self._attach_vision()
            self._attach_decoder()
            self._attach_loss()
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Removes every hook."""
        while self._undo:
            self._undo.pop()()

    def _attach_vision(self) -> None:
        base = self.adapter.base
        signals = self.pruner.signals
        encode: Any = getattr(base, "get_image_features", None)
        if not callable(encode):
            raise ValueError(f"{type(base).__name__} has no get_image_features, where image signals are collected")
        self._entry_arguments = tuple(inspect.signature(base.forward).parameters)
        self._add(base.register_forward_pre_hook(_eager(self._enter_model), with_kwargs=True))
        parameters = inspect.signature(encode)

        @functools.wraps(encode)
        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            return self._encode(encode, parameters.bind(*args, **kwargs).arguments, args, kwargs)

        base.__dict__["get_image_features"] = _eager(get_image_features)
        self._undo.append(lambda: base.__dict__.pop("get_image_features", None))
        if Signal.ENCODER_FEATURES in signals:
            self._add(self.vision.projector.register_forward_pre_hook(_eager(self._see_features)))
        if Signal.ENCODER_CLS in signals:
            for layer in self.vision.feature_layers:
                self._add(layer.register_forward_hook(_eager(self._see_cls)))
        if signals & _ENCODER_STATES:
            self._undo.append(watch(self.vision.attention, self._see_encoder_attention))
        for number in set(self.encoder_layers):
            layer = self.vision.layers[number]
            self._add(layer.register_forward_hook(_eager(functools.partial(self._see_encoder_output, number))))
            watcher = functools.partial(self._see_encoder_layer, number)
            self._undo.append(watch(layer.get_submodule("self_attn"), watcher))

    def _attach_decoder(self) -> None:
        decoder = self.adapter.decoder
        self._add(decoder.register_forward_pre_hook(_eager(self._enter_decoder), with_kwargs=True))
        self._add(decoder.register_forward_hook(_eager(self._leave_decoder), always_call=True))
        for number, layer in enumerate(self.layers):
            hook = functools.partial(self._before_layer, number)
            self._add(layer.register_forward_pre_hook(_eager(hook), with_kwargs=True))
        behind = {layer - 1 for layer in self.stages_with(DECODER_STATES | UNROTATED)}
        for number in behind | self.stages_with(NEXT):
            watcher = functools.partial(self._see_decoder_attention, number)
            self._undo.append(watch(self.adapter.attention_module(number), watcher))

    def _attach_loss(self) -> None:
        model: Any = self.model
        own = "_loss_function" in model.__dict__
        original = model.loss_function

        @functools.wraps(original)
        def loss_function(logits: torch.Tensor, labels: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            left = self._local.left
            if left is not None and labels is not None and logits.shape[1] != labels.shape[1]:
                labels = left.labels(labels)
            return original(logits, labels, *args, **kwargs)

        def undo() -> None:
            if own:
                model._loss_function = original
            else:
                model.__dict__.pop("_loss_function", None)

        model._loss_function = loss_function
        self._undo.append(undo)

    def _add(self, handle: torch.utils.hooks.RemovableHandle) -> None:
        self._undo.append(handle.remove)

    def _encode(
        self, encode: Callable[..., Any], arguments: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Runs the vision tower with a record open, which then rides on its output."""
        arguments = {**arguments, **arguments.pop("kwargs", {})}
        pixel_values = arguments.pop("pixel_values")
        record = VisionRecord(self.adapter.layouts(pixel_values, **arguments), self.vision.has_cls)
        if Signal.IMAGE_HASH in self.pruner.signals:
            record.image_hash = hash_pixels(pixel_values)
        if Signal.PIXELS in self.pruner.signals:
            record.pixels = pixel_values
        self._local.record = record
        output = encode(*args, **kwargs)
        found = _feature_rows(output)
        expected = sum(layout.tokens for layout in record.layouts)
        if found is not None and found != expected:
            raise RuntimeError(
                f"{type(self.adapter).__name__} expected {expected} visual tokens, the model made {found}; "
                "this is a bug in the adapter or an unsupported setting of the model"
            )
        if not isinstance(output, torch.Tensor | tuple | list):
            object.__setattr__(output, _RECORD, record)
        return output

    def _see_features(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._local.record is not None and args:
            self._local.record.features = args[0]

    def _see_cls(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._local.record is not None:
            states = output if isinstance(output, torch.Tensor) else output[0]
            self._local.record.cls.append(states[:, 0])

    def _see_encoder_attention(self, states: AttentionStates) -> None:
        if self._local.record is not None:
            self._local.record.states = states

    def _see_encoder_layer(self, layer: int, states: AttentionStates) -> None:
        if self._local.record is not None:
            self._local.record.layer_states[layer] = states

    def _see_encoder_output(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._local.record is not None:
            self._local.record.layer_outputs[layer] = output if isinstance(output, torch.Tensor) else output[0]

    def _see_decoder_attention(self, layer: int, states: AttentionStates) -> None:
        if self._local.run is not None:
            self._local.run.peek.receive(layer, states)
            self._local.run.keep_states(layer, states)

    def _enter_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Finds the placeholders of a pass that brings images."""
        local = self._local
        local.prompt = local.record = local.run = local.left = None
        given = {**dict(zip(self._entry_arguments, args, strict=False)), **kwargs}
        ids, embeddings = given.get("input_ids"), given.get("inputs_embeds")
        encoded = (given.get("mm_encoder_outputs") or {}).get("image")
        has_images = given.get("pixel_values") is not None or encoded is not None
        source = embeddings if ids is None else ids
        if source is None or (not has_images and source.shape[1] == 1):
            return
        visual = self._placeholders(ids, embeddings)
        if not has_images:
            if bool(visual.any()):
                raise ValueError(
                    "the prompt holds image placeholder tokens but pixel_values is missing; pass everything the "
                    "processor returned, or remove the placeholders"
                )
            return
        record = None
        if encoded is not None:
            record = getattr(encoded, _RECORD, None)
            if record is None or _feature_rows(encoded) is None:
                raise ValueError(
                    "image features were computed before the model was wrapped, or split for chunked prefill; compute "
                    "them with the wrapped model and leave prefill_chunk_size unset"
                )
        local.prompt = _Prompt(visual, record, ids if Signal.CLIP_TEXT in self.pruner.signals else None)

    def _placeholders(self, ids: torch.Tensor | None, embeddings: torch.Tensor | None) -> torch.Tensor:
        if ids is not None:
            return ids == self.adapter.image_token_id
        assert embeddings is not None
        model: Any = self.model
        number = torch.full((), self.adapter.image_token_id, dtype=torch.long, device=embeddings.device)
        placeholder: torch.Tensor = model.get_input_embeddings()(number)
        return (embeddings == placeholder).all(-1)

    def _enter_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Opens a run if this pass prunes, or continues a cache that was pruned."""
        local = self._local
        prompt, record = local.prompt, local.record
        local.prompt = local.record = local.run = local.left = None
        embeddings = kwargs.get("inputs_embeds")
        if embeddings is None:
            return None
        cache = cache_in(kwargs)
        state = self._cached_state(cache, prompt is not None)
        if prompt is None and (state is None or not state.boundaries):
            if embeddings.shape[1] > 1 and (cache is None or _is_empty(cache)):
                self.last_report = None  # a prompt without images: there is nothing to tell of it
            return None
        rows: list[int] = []
        sources: list[int] = []
        if prompt is not None:
            record = prompt.record or record
            if record is None:
                raise RuntimeError(f"{type(module).__name__} got images but its vision tower was not seen running")
            rows, sources = self._assign(prompt.visual, record)
        run = Run(
            self,
            embeddings=embeddings,
            cache=cache,
            state=state,
            mask=kwargs.get("attention_mask"),
            visual=None if prompt is None else prompt.visual,
            record=record if prompt is not None else None,
            rows=rows,
            sources=sources,
            ids=None if prompt is None else prompt.ids,
        )
        if state is not None and kwargs.get("position_ids") is None:
            # The decoder would count from the length of its first layer's cache, which may have been pruned.
            positions = torch.arange(state.seen, state.seen + run.length, device=embeddings.device)
            kwargs["position_ids"] = positions.unsqueeze(0)
        if any(getattr(layer, "gradient_checkpointing", False) for layer in self.layers) and module.training:
            # Recomputation in the backward pass runs the layer hooks again, after the run is over.
            kwargs[_RUN] = run
        local.run = run
        return args, kwargs

    def _cached_state(self, cache: Any, has_images: bool) -> CacheState | None:
        state = state_of(cache)
        if state is not None:
            state.follow(cache)
            return state
        if cache is None or not has_images:
            return None
        seen = int(cache.get_seq_length())
        return CacheState(seen=seen) if seen else None

    def _assign(self, visual: torch.Tensor, record: VisionRecord) -> tuple[list[int], list[int]]:
        """Row and record number of each image of the batch, in prompt order.

        Beam search repeats prompts after the tower has run; each repetition refers to the same image of the record.
        """
        batch, images = visual.shape[0], len(record.layouts)
        if batch == 1:
            return [0] * images, list(range(images))
        if self.images_per_prompt is not None:
            each = self.images_per_prompt
            if batch * each % images:
                raise ValueError(f"images_per_prompt={each} was promised, but {images} images came for {batch} prompts")
            copies = batch * each // images
            return (
                [row for row in range(batch) for _ in range(each)],
                [row // copies * each + image for row in range(batch) for image in range(each)],
            )
        per_row = [int(count) for count in visual.sum(1).tolist()]
        total = sum(layout.tokens for layout in record.layouts)
        copies = max(1, sum(per_row) // total)
        rows: list[int] = []
        sources: list[int] = []
        start = 0
        for first in range(0, batch, copies):
            end, room = start, per_row[first]
            while room > 0 and end < images:
                room -= record.layouts[end].tokens
                end += 1
            for row in range(first, min(first + copies, batch)):
                rows += [row] * (end - start)
                sources += range(start, end)
            if room:
                raise ValueError(
                    f"the {per_row[first]} placeholder tokens of prompt {first} are not those of whole images; "
                    "pass the prompts and images as the processor returned them"
                )
            start = end
        return rows, sources

    def _before_layer(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        run = kwargs.pop(_RUN, None) or self._local.run
        if run is None or not run.is_active:
            return None
        if args:
            return (run.before_layer(number, args[0], kwargs), *args[1:]), kwargs
        kwargs["hidden_states"] = run.before_layer(number, kwargs["hidden_states"], kwargs)
        return args, kwargs

    def _leave_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run, self._local.run = self._local.run, None
        if run is not None and output is not None:
            run.finish()
            self._local.left = run.left


def _is_empty(cache: Any) -> bool:
    length = cache.get_seq_length()
    return isinstance(length, int) and length == 0


def _feature_rows(output: Any) -> int | None:
    """Rows of the image features in the tower's output, as far as they can be counted."""
    features = getattr(output, "pooler_output", output)
    if isinstance(features, torch.Tensor):
        return int(features.shape[:-1].numel())
    if isinstance(features, list | tuple) and all(isinstance(part, torch.Tensor) for part in features):
        return sum(int(part.shape[0]) for part in features)
    return None


def _eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a hook out of compiled graphs; what lies between hooks is compiled."""
    disabled: Callable[..., Any] = torch.compiler.disable(function)
    return disabled
