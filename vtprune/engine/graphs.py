"""Prefill and decoding replayed from CUDA graphs, so that a short sequence is not waited for by kernel launches.

Recorded are the vision side from tower to projector (or the tower alone, where what is around it cannot be), the
decoder's prefill with the stages and selections in it, and a decoding step on a static cache. What lies between
(embedding the prompt, filling in the image features, the head) stays as it is, and may ask the device. A recording
serves all calls whose tensors have the same shapes; prompts are filled up on the left to `Graph.bucket` tokens, which a
mask hides and which no cache and no report gets to see.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vtprune.engine.cache_names import cache_in
from vtprune.engine.capture import is_recording
from vtprune.engine.prefill_recorder import PrefillRecorder
from vtprune.engine.recordings import Graph, Refused, check_devices
from vtprune.engine.replaced import replace_method
from vtprune.engine.run import Run
from vtprune.engine.static_cache import is_static
from vtprune.engine.step_recorder import StepRecorder
from vtprune.engine.vision_recorder import VisionRecorder

if TYPE_CHECKING:
    from vtprune.engine.engine import Engine

_SEEN_THROUGH = ("output_attentions", "output_hidden_states", "output_router_logits")


class Graphs:
    """Puts recordings in the place of the vision tower's and the decoder's forward.

    Args:
        engine: The engine of the wrapped model.
        settings: How to record.
    """

    def __init__(self, engine: Engine, settings: Graph) -> None:
        self._engine = engine
        self._told: set[str] = set()
        self._vision = VisionRecorder(engine, settings)
        self._prefill = PrefillRecorder(engine, settings)
        self._step = StepRecorder(engine, settings)

    def attach(self) -> list[Callable[[], None]]:
        """Replaces both; returns what undoes it."""
        adapter = self._engine.adapter
        undo = [self._replace_forward(adapter.decoder, self._decode_or_prefill)]
        if adapter.tower is not None:
            undo.append(self._replace_forward(adapter.tower, self._encode_in_tower))
        if hasattr(adapter.base, "get_placeholder_mask"):
            undo.append(self._replace_placeholder_mask(adapter.base))
        if hasattr(adapter.model, "get_compiled_call"):
            # `generate` would compile what is left around the recorded steps, into graphs that cannot tell whose
            # memory theirs is.
            undo.append(replace_method(adapter.model, "get_compiled_call", lambda *args: adapter.model.__call__))
        return undo

    def _replace_placeholder_mask(self, base: Any) -> Callable[[], None]:
        """The model compares on the host how many placeholders and features there are: only shapes of the latter.

        With the ids that the prompt brought along there is no need to wait for the tower, and its time is enough to
        prepare the prefill in.
        """
        original = base.get_placeholder_mask
        parameters = inspect.signature(original)

        def get_placeholder_mask(*args: Any, **kwargs: Any) -> Any:
            prompt = self._engine.local.prompt
            ids = parameters.bind(*args, **kwargs).arguments.get("input_ids")
            if ids is None or prompt is None or ids is not prompt.ids:
                return original(*args, **kwargs)
            return self._vision.recordings.side.run(prompt, lambda: original(*args, **kwargs))

        return replace_method(base, "get_placeholder_mask", torch.compiler.disable(get_placeholder_mask))

    @staticmethod
    def _replace_forward(module: nn.Module, by: Callable[..., Any]) -> Callable[[], None]:
        original: Callable[..., Any] = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return by(original, *args, **kwargs)

        return replace_method(module, "forward", torch.compiler.disable(forward))

    def _tell(self, what: str, reason: object) -> None:
        """Says once why something runs without a graph."""
        message = f"{what} runs without a graph, launch by launch: {reason}"
        if message not in self._told:
            self._told.add(message)
            warnings.warn(f"vtprune: {message}", stacklevel=2)

    def encode(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's method that encodes pictures, from tower to projector, while a record of it is open."""
        return self._see("the vision side as a whole", original, args, kwargs)

    def _encode_in_tower(self, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The vision tower's forward, where the method around it cannot be recorded."""
        return self._see("the vision tower", original, args, kwargs)

    def _see(self, what: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self._vision.run(what, original, args, kwargs)
        except Refused as reason:
            self._tell(what, reason)
            return original(*args, **kwargs)

    def _decode_or_prefill(self, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The decoder's forward."""
        run = self._engine.local.run
        self._vision.recordings.side.forget()
        if run is None or args or is_recording():
            return original(*args, **kwargs)
        is_step = bool(run.seen) and run.length == 1
        if is_step and not is_static(cache_in(kwargs), 0):
            return original(**kwargs)  # a cache that grows has a new shape at each step; nobody expects a graph here
        try:
            self._check(run, kwargs)
            return (self._step if is_step else self._prefill).run(original, run, kwargs)
        except Refused as reason:
            self._tell("decoding" if is_step else "a prefill", reason)
            self._engine.local.run = run
            return original(**kwargs)

    def _check(self, run: Run, kwargs: dict[str, Any]) -> None:
        """Refuses what a recording cannot do.

        Raises:
            Refused: With the reason.
        """
        check_devices(value for value in run.given.arguments.values() if isinstance(value, torch.Tensor))
        if torch.is_grad_enabled():
            raise Refused("gradients are enabled; call the model under torch.inference_mode()")
        if self._engine.adapter.decoder.training:
            raise Refused("the model is in training mode; call model.eval()")
        for name in _SEEN_THROUGH:
            if kwargs.get(name):
                raise Refused(f"{name} is asked for")
        if kwargs.get("return_dict") is False:
            raise Refused("return_dict=False is asked for")
        for name, value in run.given.arguments.items():
            if isinstance(value, dict | list | tuple) and any(isinstance(part, torch.Tensor) for part in _parts(value)):
                raise Refused(f"the decoder is given {name} as a {type(value).__name__} of tensors")
        mask = run.given.arguments.get("attention_mask")
        if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() in (2, 4)):
            raise Refused(f"the attention mask is a {type(mask).__name__}")


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)
