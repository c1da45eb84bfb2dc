"""A decoding step on a static cache, replayed from a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vtprune.engine.cache_names import CACHE_NAMES
from vtprune.engine.capture import Recorded, copies, put, replaced_in, tensors_in
from vtprune.engine.decode_slots import DecodeSlots
from vtprune.engine.pass_inputs import PassInputs
from vtprune.engine.recordings import Recorder, Refused, signature, weights_of
from vtprune.engine.run import Outcome, Run


class StepRecorder(Recorder):
    """Records decoding steps."""

    def run(self, original: Callable[..., Any], run: Run, kwargs: dict[str, Any]) -> Any:
        """The decoder's forward for a token of each row.

        Raises:
            Refused: It is not recorded.
        """
        name = next(name for name in CACHE_NAMES if kwargs.get(name) is not None)
        slots = self.recordings.slots.of(kwargs[name])
        if slots is None:
            raise Refused("the static cache was not filled by a recorded prefill")
        inputs = slots.bind(run)
        if isinstance(inputs, str):
            raise Refused(inputs)
        arguments = run.given.arguments
        tensors = [key for key, value in arguments.items() if isinstance(value, torch.Tensor)]
        extra = [key for key in tensors if key not in inputs.moving]
        if set(extra) - {"attention_mask"}:
            raise Refused(f"the decoder is given {', '.join(extra)} for the new token")
        key = (
            id(slots),
            inputs.structure,
            tuple((argument, signature(value)) for argument, value in arguments.items() if argument not in extra),
            weights_of(self._engine.adapter.decoder),
        )
        recorded = self.recordings.get("step", key, lambda: self._record(original, run, slots, name, extra))
        put([arguments[key] for key in inputs.moving], inputs.moving.values(), [False] * len(inputs.moving))
        output = recorded.replay()
        made = tensors_in(output)
        new: dict[int, Any] = dict(zip(map(id, made), copies(made), strict=True))
        run.adopt(Outcome(), kwargs[name])
        self._engine.local.run = run
        return replaced_in(output, {**new, id(slots.cache): kwargs[name]})

    def _record(
        self, original: Callable[..., Any], run: Run, slots: DecodeSlots, name: str, extra: list[str]
    ) -> Recorded[Any]:
        engine, inputs = self._engine, slots.inputs
        assert inputs is not None
        arguments = {key: value for key, value in run.given.arguments.items() if key not in extra} | inputs.moving
        put([run.given.arguments[key] for key in inputs.moving], inputs.moving.values(), [False] * len(inputs.moving))
        arguments |= {"attention_mask": inputs.state.padding} if "attention_mask" in run.given.arguments else {}
        given = PassInputs(arguments=dict(arguments), cache=slots.cache, state=inputs.state)

        def work() -> Any:
            mine = Run(engine, given, {})
            engine.local.run = mine if mine.is_active else None
            return original(**arguments, **{name: slots.cache})

        try:
            with slots.undisturbed():
                # Once only: the last step before the cache is full has no slot for a second one.
                return self.recordings.record(work, warmup=1)
        finally:
            engine.local.run = run
