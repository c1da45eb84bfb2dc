"""A stream beside the model's own, on which the host asks the device without waiting for the vision tower."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from vtprune.engine.capture import is_recording, tensors_in


class SideStream:
    """Asks of what was there at a certain moment, while the model's stream goes on; one for each thread."""

    def __init__(self) -> None:
        self._moment: torch.cuda.Event | None = None
        self._prompt: object = None

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()

    def remember(self, prompt: object) -> None:
        """Now is the moment, while the model works at a prompt."""
        self._prompt, self._moment = prompt, torch.cuda.Event()
        self._moment.record()

    def forget(self) -> None:
        """There is no such moment any more."""
        self._prompt = self._moment = None

    def run(self, prompt: object, work: Callable[[], Any]) -> Any:
        """Runs what reads only what was there at the prompt's moment; its results can be used on the model's stream."""
        if self._moment is None or self._prompt is not prompt or is_recording():
            return work()
        here = torch.cuda.current_stream()
        self._stream.wait_event(self._moment)
        with torch.cuda.stream(self._stream):
            result = work()
        here.wait_stream(self._stream)
        for tensor in tensors_in(result):
            tensor.record_stream(here)
        return result
