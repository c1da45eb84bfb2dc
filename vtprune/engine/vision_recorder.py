"""The vision side replayed from CUDA graphs, with what is seen of it on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vtprune.engine.capture import Recorded, copies, fixed_like, is_recording, put, replaced_in, tensors_in
from vtprune.engine.recordings import Recorder, check_devices, signature, weights_of
from vtprune.engine.vision import VisionRecord


class VisionRecorder(Recorder):
    """Records the vision side."""

    def run(self, what: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A part of the vision side.

        Args:
            what: Its name.
            original: It.
            args: What it is called with.
            kwargs: The same by name.

        Raises:
            Refused: It is not recorded.
        """
        local = self._engine.local
        given = [*args, *kwargs.values()]
        # What the model reads on the host stays what it is for all replays.
        host = [value for name, value in kwargs.items() if name in self._engine.adapter.host_arguments]
        constant = {id(value) for value in host}
        inputs = [value for value in given if isinstance(value, torch.Tensor) and id(value) not in constant]
        record = local.open
        if record is None or not inputs or self.recordings.is_busy or is_recording() or torch.is_grad_enabled():
            return original(*args, **kwargs)
        if inputs[0].is_cuda:
            self.recordings.side.remember(local.prompt)
        check_devices(inputs)
        values = tuple(str(value.tolist()) for value in host if isinstance(value, torch.Tensor))
        key = (len(args), *kwargs, *map(signature, given), values, weights_of(self._engine.adapter.base))
        fixed, recorded = self.recordings.get(what, key, lambda: self._record(original, args, kwargs, inputs))
        put(inputs, fixed, [False] * len(inputs))
        output, seen = recorded.replay()
        record.take_over(seen)
        tensors = tensors_in(output)
        return replaced_in(output, dict(zip(map(id, tensors), copies(tensors), strict=True)))

    def _record(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], Recorded[tuple[Any, VisionRecord]]]:
        self._check_spread()
        local = self._engine.local
        record = local.open
        assert record is not None
        fixed = [fixed_like(tensor, tensor.shape) for tensor in inputs]
        put(inputs, fixed, [False] * len(inputs))
        places = dict(zip(map(id, inputs), fixed, strict=True))
        here = [places.get(id(value), value) for value in args]
        named = {name: places.get(id(value), value) for name, value in kwargs.items()}

        def work() -> tuple[Any, VisionRecord]:
            local.open = VisionRecord(record.adapter, record.kind, {})
            self.recordings.is_busy = True
            try:
                return original(*here, **named), local.open
            finally:
                self.recordings.is_busy = False

        try:
            return fixed, self.recordings.record(work)
        finally:
            local.open = record
