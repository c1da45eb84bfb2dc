"""The hooks around a model: they find the images of a forward pass, and hand each decoder layer its tokens."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vtprune.budget import Budget
from vtprune.engine.cache_names import CACHE_NAMES, cache_in
from vtprune.engine.cache_state import CacheState, state_of
from vtprune.engine.checks import DECODER_STATES, NEXT, UNROTATED, check_fit, named_encoder_layers
from vtprune.engine.graphs import Graphs
from vtprune.engine.images import Images, assign_images
from vtprune.engine.pass_inputs import PassInputs
from vtprune.engine.recordings import Graph, Recordings
from vtprune.engine.replaced import replace_method
from vtprune.engine.run import Run
from vtprune.engine.sequence import Left
from vtprune.engine.taps import AttentionStates, watch
from vtprune.engine.vision import VisionRecord, hash_pictures
from vtprune.layout import ImageLayout
from vtprune.pruner import Pruner, Signal
from vtprune.reporting import Report

if TYPE_CHECKING:
    from vtprune.adapters.base import Adapter, Vision
    from vtprune.question import QuestionReader
    from vtprune.text_tower import TextTower

_RUN = "vtprune_run"
_RECORD = "_vtprune_record"
_ENCODER_STATES = frozenset({Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS})


@dataclass
class _Prompt:
    """What the model's entry tells about a pass before its decoder runs."""

    ids: torch.Tensor | None
    embeddings: torch.Tensor | None
    mask: torch.Tensor | None
    kinds: frozenset[str]
    given: dict[str, Any]


class _Local(threading.local):
    """The pass that this thread is in; several threads may run one wrapped model."""

    def __init__(self) -> None:
        self.prompt: _Prompt | None = None
        self.open: VisionRecord | None = None
        self.ahead: dict[str, VisionRecord] = {}  # encoded before the pass that uses them
        self.records: list[VisionRecord] = []
        self.run: Run | None = None
        self.left: Left | None = None  # of the pass that just ended; not the pass itself, which holds large states
        self.recordings: Recordings | None = None


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
        graph: How prefill and decoding are recorded in CUDA graphs; `None` to launch kernel by kernel.

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
        graph: Graph | None = None,
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
        numbers = range(len(self.layers))
        # Asked for at each pass; to find out takes a walk through the modules.
        self.layer_kinds = [(adapter.layer_kind(number), adapter.attends(number)) for number in numbers]
        self.sees_all = all(
            attends and not adapter.window(number) and not adapter.chunk(number)
            for number, (_, attends) in enumerate(self.layer_kinds)
        )
        self.attentions = [adapter.attention_module(number) for number in numbers]
        self.attention_before = [adapter.attention_before(number) for number in numbers]
        self.signals = pruner.signals | (pruner.optional_signals - adapter.missing.keys())
        self.last_report: Report | None = None
        self.local = _Local()
        self.layer_forwards: dict[int, Callable[..., Any]] = {}
        self._graphs = None if graph is None else Graphs(self, graph)
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
        """Encoder features to decoder width, without being recorded; features after a merge have it already."""
        if self.vision.projector is None:
            return features
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
            if self._graphs is not None:
                self._undo += self._graphs.attach()
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Removes every hook."""
        while self._undo:
            self._undo.pop()()

    def _attach_vision(self) -> None:
        base, signals = self.adapter.base, self.signals
        self._entry_arguments = tuple(inspect.signature(base.forward).parameters)
        self._add(base.register_forward_pre_hook(_eager(self._enter_model), with_kwargs=True))
        for method in dict.fromkeys(placeholder.encode for placeholder in self.adapter.placeholders):
            self._attach_encoder(base, method)
        if Signal.ENCODER_FEATURES in signals and self.vision.projector is not None:
            self._add(self.vision.projector.register_forward_pre_hook(_eager(self._see_features)))
        for vision in (self.vision, *self.vision.twins):
            self._watch_tower(vision)

    def _watch_tower(self, vision: Vision) -> None:
        if Signal.ENCODER_CLS in self.signals:
            for layer in vision.feature_layers:
                self._add(layer.register_forward_hook(_eager(self._see_cls)))
        watched = set(self.encoder_layers)
        for number in self.encoder_layers:
            hook = functools.partial(self._see_encoder_output, number)
            self._add(vision.layers[number].register_forward_hook(_eager(hook)))
        if self.signals & _ENCODER_STATES:
            watched.add(vision.features[-1])
        for number in watched:
            watcher = functools.partial(self._see_encoder_attention, number)
            self._undo.append(watch(vision.attentions[number], watcher))

    def _attach_encoder(self, base: nn.Module, method: str) -> None:
        encode: Any = getattr(base, method)
        parameters = inspect.signature(encode)

        @functools.wraps(encode)
        def get_features(*args: Any, **kwargs: Any) -> Any:
            given = parameters.bind(*args, **kwargs).arguments
            if self._graphs is not None:
                named = {**given, **given.get("kwargs", {})}
                read = [
                    named[name] for name in self.adapter.host_arguments if isinstance(named.get(name), torch.Tensor)
                ]
                # The model reads them on the host: now nothing waits for that, later the host would wait for the tower.
                new = {id(tensor): tensor.cpu() for tensor in read}
                args = tuple(new.get(id(value), value) for value in args)
                kwargs = {name: new.get(id(value), value) for name, value in kwargs.items()}
                given = parameters.bind(*args, **kwargs).arguments
            return self._encode(self._kind(method), encode, given, args, kwargs)

        base.__dict__[method] = _eager(get_features)
        self._undo.append(lambda: base.__dict__.pop(method, None))

    def _kind(self, method: str) -> str:
        """The kind of input that a method is called for; one that encodes several takes them in their order."""
        kinds = [placeholder.kind for placeholder in self.adapter.placeholders if placeholder.encode == method]
        prompt, seen = self.local.prompt, {record.kind for record in self.local.records}
        given = [kind for kind in kinds if prompt is not None and kind in prompt.kinds and kind not in seen]
        return (given or kinds)[0]

    def _attach_decoder(self) -> None:
        decoder = self.adapter.decoder
        if decoder is self.adapter.base:
            self._add(self.layers[0].register_forward_pre_hook(_eager(self._enter_layers), with_kwargs=True))
        else:
            self._add(decoder.register_forward_pre_hook(_eager(self._enter_decoder), with_kwargs=True))
        self._add(decoder.register_forward_hook(_eager(self._leave_decoder), always_call=True))
        for number, layer in enumerate(self.layers):
            self._attach_layer(number, layer)
        behind = {self.attention_before[layer] for layer in self.stages_with(DECODER_STATES | UNROTATED)}
        for seen in behind | self.stages_with(NEXT):
            assert seen is not None
            attention = self.attentions[seen]
            assert attention is not None
            watcher = functools.partial(self._see_decoder_attention, seen)
            self._undo.append(watch(attention, watcher))

    def _attach_layer(self, number: int, layer: nn.Module) -> None:
        original: Callable[..., Any] = layer.forward
        names = tuple(inspect.signature(original).parameters)
        self.layer_forwards[number] = original
        if number in self.pruner.layers:
            # Later hooks of others see what is left before the layer.
            hook = functools.partial(self._before_layer, number, names)
            self._add(layer.register_forward_pre_hook(_eager(hook), with_kwargs=True))
            return
        local = self.local

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            run = kwargs.pop(_RUN, None) or local.run
            if run is None or run.is_idle or not run.is_active or (len(args) == 1 and run.repeat(number, kwargs)):
                return original(*args, **kwargs)
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            return original(run.before_layer(number, given.pop(names[0]), given), **given)

        # No hook: in decoding, each costs a layer a tenth of its time. What it calls is compiled where it can be.
        self._undo.append(replace_method(layer, "forward", torch.compiler.disable(forward, recursive=False)))

    def _attach_loss(self) -> None:
        model: Any = self.model
        own = "_loss_function" in model.__dict__
        original = model.loss_function

        @functools.wraps(original)
        def loss_function(logits: torch.Tensor, labels: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            left = self.local.left
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
        self,
        kind: str,
        encode: Callable[..., Any],
        arguments: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Runs the vision tower with a record open, which then rides on its output."""
        local = self.local
        if local.open is not None:
            return encode(*args, **kwargs)  # videos encoded as images, by the method for images
        arguments = {**arguments, **arguments.pop("kwargs", {})}
        if encode.__name__ == "get_video_features" and "pixel_values" in arguments:
            # The name that the model's own forward gives them; releases differ in that of this method.
            arguments["pixel_values_videos"] = arguments.pop("pixel_values")
        record = local.open = VisionRecord(self.adapter, kind, arguments)
        try:
            output = encode(*args, **kwargs) if self._graphs is None else self._graphs.encode(encode, args, kwargs)
        finally:
            local.open = None
        counts = self.adapter.feature_counts(output)
        record.layouts = self.adapter.layouts(kind, counts, arguments)
        expected = sum(layout.tokens for layout in record.layouts)
        if counts and sum(counts) != expected:
            raise RuntimeError(
                f"{type(self.adapter).__name__} expected {expected} visual tokens, the model made {sum(counts)}; "
                "this is a bug in the adapter or an unsupported setting of the model"
            )
        local.records = [*(other for other in local.records if other.kind != kind), record]
        local.ahead = {**local.ahead, kind: record}
        if not isinstance(output, torch.Tensor | tuple | list):
            object.__setattr__(output, _RECORD, record)
        return output

    def _see_features(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.local.open is not None and args:
            self.local.open.features = args[0]

    def _see_cls(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.local.open is not None:
            states = output if isinstance(output, torch.Tensor) else output[0]
            self.local.open.cls_states.append(states[:, self.vision.cls or 0])

    def _see_encoder_attention(self, layer: int, states: AttentionStates) -> None:
        if self.local.open is not None:
            self.local.open.calls.setdefault(layer, []).append(states)

    def _see_encoder_output(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.local.open is not None:
            states = output if isinstance(output, torch.Tensor) else output[0]
            self.local.open.outputs.setdefault(layer, []).append(states)

    def _see_decoder_attention(self, layer: int, states: AttentionStates) -> None:
        if self.local.run is not None:
            self.local.run.peek.receive(layer, states)
            self.local.run.keep_states(layer, states)

    def _enter_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes down what the decoder will not be told: token ids, plain padding, and whether there are images."""
        local = self.local
        local.prompt = local.open = local.run = local.left = None
        local.records = []
        given = {**dict(zip(self._entry_arguments, args, strict=False)), **kwargs}
        for kind, encoded in (given.get("mm_encoder_outputs") or {}).items():
            record = getattr(encoded, _RECORD, None)
            counts = self.adapter.feature_counts(encoded)
            if record is None and (ahead := local.ahead.get(kind)) is not None:
                # Hooks of others (offloading) have copied the output that the record rode on.
                expected = sum(layout.tokens for layout in ahead.layouts)
                record = ahead if sum(counts) == expected else None
            if record is None or not counts:
                raise ValueError(
                    "image features were computed before the model was wrapped, or split for chunked prefill; compute "
                    "them with the wrapped model and leave prefill_chunk_size unset"
                )
            local.records.append(record)
        local.ahead = {}
        kinds = {record.kind for record in local.records}
        for name, value in given.items():
            if value is not None and name.startswith("pixel_values"):
                kinds.add("video" if name.endswith("videos") else "image")
        mask = given.get("attention_mask")
        local.prompt = _Prompt(
            given.get("input_ids"),
            given.get("inputs_embeds"),
            mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None,
            frozenset(kinds),
            given,
        )

    def _placeholders(self, prompt: _Prompt, kinds: Sequence[str]) -> torch.Tensor:
        """Where the placeholders of some kinds of input stand in a prompt, `(batch, length)`."""
        tokens = [placeholder.token for placeholder in self.adapter.placeholders if placeholder.kind in kinds]
        if prompt.ids is not None:
            found = [prompt.ids == token for token in tokens]
        else:
            source = prompt.embeddings
            assert source is not None
            model: Any = self.model
            embed = model.get_input_embeddings()
            numbers = [torch.full((), token, dtype=torch.long, device=source.device) for token in tokens]
            found = [(source == embed(number)).all(-1) for number in numbers]
        return functools.reduce(torch.logical_or, found)

    def _enter_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Opens a run if this pass prunes, or continues a cache that was pruned."""
        local = self.local
        prompt, records = local.prompt, local.records
        local.prompt = local.run = local.left = None
        local.records, local.ahead = [], {}
        embeddings = kwargs.get("inputs_embeds")
        if embeddings is None:
            return None
        visual = None if prompt is None else self._visual(prompt, records)
        if prompt is not None:
            for record in records:
                self._arrange(record, prompt)
            filled = [self.adapter.filled_in(record.kind, record.layouts, prompt.given) for record in records]
            records = [replace(record, layouts=layouts) for record, layouts in zip(records, filled, strict=True)]
        cache = cache_in(kwargs)
        state = self._cached_state(cache, visual is not None)
        replayed = state is not None and self._graphs is not None
        if visual is None and not replayed and (state is None or not state.boundaries):
            if embeddings.shape[1] > 1 and (cache is None or _is_empty(cache)):
                self.last_report = None  # a prompt without images: there is nothing to tell of it
            return None
        ids = None if prompt is None else prompt.ids
        images = Images()
        if visual is not None:
            tokens = {placeholder.kind: placeholder.token for placeholder in self.adapter.placeholders}
            images = assign_images(visual, records, ids, tokens, self.images_per_prompt)
        mask = kwargs.get("attention_mask")
        if state is not None and kwargs.get("position_ids") is None:
            # The decoder would count from the length of its first layer's cache, which may have been pruned.
            positions = torch.arange(state.seen, state.seen + embeddings.shape[1], device=embeddings.device)
            kwargs["position_ids"] = positions.unsqueeze(0)
        given = PassInputs(
            arguments={name: value for name, value in kwargs.items() if name not in CACHE_NAMES},
            cache=cache,
            state=state,
            mask=mask if prompt is None or prompt.mask is None else prompt.mask,
            visual=visual,
            images=images,
            ids=ids if visual is not None and Signal.CLIP_TEXT in self.signals else None,
        )
        run = Run(self, given)
        if run.is_active:
            run.given = replace(given, injected=self.adapter.injections(kwargs))
        if module.training and any(getattr(layer, "gradient_checkpointing", False) for layer in self.layers):
            # Recomputation in the backward pass runs the layer hooks again, after the run is over.
            kwargs[_RUN] = run
        run.enter_step(kwargs)
        local.run = run
        return args, kwargs

    def _arrange(self, record: VisionRecord, prompt: _Prompt) -> None:
        """Lets the adapter make pictures of the entries of a record, once, and hashes them."""
        if record.arranged:
            return
        record.arranged = True

        def read() -> list[list[int]]:
            if prompt.ids is None:
                raise ValueError(
                    "pass input_ids, not inputs_embeds alone: the words between the views of an image tell which "
                    "belong together"
                )
            visual = self._placeholders(prompt, [record.kind])
            # Beam search repeats prompts.
            copies = max(1, int(visual.sum()) // sum(layout.tokens for layout in record.layouts))
            rows: list[list[int]] = prompt.ids[::copies].tolist()
            return rows

        if record.kind == "image":
            record.layouts = self.adapter.arrange(record.layouts, read)
        if Signal.IMAGE_HASH in self.signals:
            pictures = self.adapter.pictures(record.pixels, record.layouts, record.inputs)
            record.image_hash = hash_pictures(pictures, record.layouts)

    def _enter_layers(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Opens the run of a decoder that embeds the prompt itself, at its first layer."""
        if self.local.prompt is None:
            return None
        states = {"inputs_embeds": args[0] if args else kwargs["hidden_states"]}
        entered = self._enter_decoder(module, (), {**kwargs, **states})
        if entered is None:
            return None
        return args, {name: value for name, value in entered[1].items() if name not in states}

    def _visual(self, prompt: _Prompt, records: Sequence[VisionRecord]) -> torch.Tensor | None:
        """Placeholders of the images that this pass brings; `None` where it brings none."""
        if records:
            return self._placeholders(prompt, [record.kind for record in records])
        source = prompt.embeddings if prompt.ids is None else prompt.ids
        if source is None or source.shape[1] == 1:
            return None
        stray = self._placeholders(prompt, [placeholder.kind for placeholder in self.adapter.placeholders])
        if not bool(stray.any()):
            return None
        if prompt.kinds:
            raise RuntimeError(f"{type(self.model).__name__} got images but its vision tower was not seen running")
        raise ValueError(
            "the prompt holds image placeholder tokens but pixel_values is missing; pass everything the processor "
            "returned, or remove the placeholders"
        )

    def _cached_state(self, cache: Any, has_images: bool) -> CacheState | None:
        state = state_of(cache)
        if state is not None:
            state.follow(cache)
            return state
        if cache is None or not has_images:
            return None
        seen = int(cache.get_seq_length())
        return CacheState(seen=seen) if seen else None

    def _before_layer(
        self, number: int, names: tuple[str, ...], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        run = kwargs.pop(_RUN, None) or self.local.run
        if run is None or run.is_idle or not run.is_active:
            return None
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        hidden = run.before_layer(number, given.pop(names[0]), given)
        return (hidden,), given

    def _leave_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run, self.local.run = self.local.run, None
        if run is not None and output is not None:
            self.local.left = run.left
            run.finish()


def _is_empty(cache: Any) -> bool:
    length = cache.get_seq_length()
    return isinstance(length, int) and length == 0


def _eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a hook out of compiled graphs; what lies between hooks is compiled."""
    disabled: Callable[..., Any] = torch.compiler.disable(function)
    return disabled
