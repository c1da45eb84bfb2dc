"""Training data: processes that draw pictures without end, and a pool of pictures on the device to sample from."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import random
import signal
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtprune.eval.embedded.scenes import (
    GRID,
    KINDS,
    LABELS,
    SIZE,
    Question,
    Scene,
    caption,
    patch_labels,
    questions,
    render,
    sample_scene,
)
from vtprune.eval.embedded.vocabulary import BOS, EOS, SUFFIX, encode

QUESTIONS = 12
"""Questions stored with a picture."""
QUESTION_LENGTH = 12
"""Token places of a question with its answer."""
CAPTION_LENGTH = 40
NO_KIND = 255
"""Kind of a place that holds no question."""
CHUNK = 64
"""Pictures handed over at a time."""

_SLOTS = 4

Arrays = dict[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Form:
    """What an example is made of, and how it is drawn."""

    shapes: dict[str, tuple[int, ...]]
    """Of the fields of one example; all are bytes (the vocabulary has fewer than 256 tokens)."""
    draw: Callable[[Arrays, int, random.Random], None]
    """Draws an example into a row of the arrays."""


@dataclass(frozen=True)
class Batch:
    """Examples on a device, uint8; the fields are those of the ``Form`` with a leading batch dimension."""

    pictures: Tensor
    labels: Tensor
    questions: Tensor
    starts: Tensor
    kinds: Tensor
    captions: Tensor

    def __len__(self) -> int:
        return self.pictures.shape[0]

    def __getitem__(self, rows: Any) -> Batch:
        return Batch(**{name: getattr(self, name)[rows] for name in _NAMES})


_NAMES = tuple(field.name for field in fields(Batch))


def concatenate(batches: list[Batch]) -> Batch:
    """One batch out of several."""
    return Batch(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in _NAMES})


def write_questions(arrays: Arrays, row: int, asked: Iterable[Question], kind: Callable[[Question], int]) -> None:
    """Write questions with their answers into one row of ``arrays``; ``kind`` gives the number of a kind."""
    arrays["questions"][row] = 0
    arrays["starts"][row] = arrays["questions"].shape[-1]
    arrays["kinds"][row] = NO_KIND
    for place, question in enumerate(asked):
        ids = encode(f"{question.text} {SUFFIX}")
        arrays["starts"][row, place] = len(ids)
        ids += encode(f"{question.answer} {EOS}")
        arrays["questions"][row, place, : len(ids)] = ids
        arrays["kinds"][row, place] = kind(question)


def write_captions(arrays: Arrays, row: int, captions: Iterable[str]) -> None:
    """Write the full and the partial caption into one row of ``arrays``."""
    arrays["captions"][row] = 0
    for place, text in enumerate(captions):
        ids = encode(f"{BOS} {text} {EOS}")
        arrays["captions"][row, place, : len(ids)] = ids


def fill_example(arrays: Arrays, row: int, scene: Scene, rng: random.Random) -> None:
    """Write the picture, labels, questions and captions of a scene into one row of ``arrays``."""
    arrays["pictures"][row] = np.asarray(render(scene))
    arrays["labels"][row] = patch_labels(scene)
    asked = questions(scene, rng, arrays["questions"].shape[1])
    write_questions(arrays, row, asked, lambda question: KINDS.index(question.kind))
    write_captions(arrays, row, (caption(scene, rng, full=full) for full in (True, False)))


SCENES = Form(
    {
        "pictures": (SIZE, SIZE, 3),
        "labels": (len(LABELS), GRID, GRID),
        "questions": (QUESTIONS, QUESTION_LENGTH),
        "starts": (QUESTIONS,),  # place of the first answer token
        "kinds": (QUESTIONS,),
        "captions": (2, CAPTION_LENGTH),  # a full and a partial one
    },
    lambda arrays, row, rng: fill_example(arrays, row, sample_scene(rng), rng),
)
"""The pictures and questions of ``scenes``."""


def example_arrays(size: int, form: Form = SCENES) -> Arrays:
    """Empty arrays for ``size`` examples."""
    return {name: np.zeros((size, *shape), np.uint8) for name, shape in form.shapes.items()}


def _views(memory: Any, form: Form) -> list[Arrays]:
    """The shared memory of one worker as ``_SLOTS`` sets of named arrays of ``CHUNK`` examples."""
    flat = np.frombuffer(memory, np.uint8).reshape(_SLOTS, -1)
    slots = []
    for row in flat:
        arrays, offset = {}, 0
        for name, shape in form.shapes.items():
            size = CHUNK * int(np.prod(shape))
            arrays[name] = row[offset : offset + size].reshape(CHUNK, *shape)
            offset += size
        slots.append(arrays)
    return slots


def _work(worker: int, seed: str, form: Form, memory: Any, free: Any, ready: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which ends its workers itself
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = os.getppid()
    rng = random.Random(seed)
    slots = _views(memory, form)
    slot = 0
    while True:
        while not free.acquire(timeout=5):
            if os.getppid() != parent:
                return
        for row in range(CHUNK):
            form.draw(slots[slot], row, rng)
        ready.put((worker, slot))
        slot = (slot + 1) % _SLOTS


class Feed:
    """Processes that draw examples; ``seed`` names the stream, so that two streams share no scene."""

    def __init__(self, workers: int, seed: str, form: Form = SCENES) -> None:
        context = multiprocessing.get_context("fork")  # start before the first use of CUDA
        size = _SLOTS * CHUNK * sum(int(np.prod(shape)) for shape in form.shapes.values())
        self._ready = context.Queue()
        self._free = [context.Semaphore(_SLOTS) for _ in range(workers)]
        self._memory = []
        self._slots = []
        self._processes = []
        self._pinned = False
        self._copying: deque[tuple[int, torch.cuda.Event]] = deque()
        for worker in range(workers):
            memory = context.RawArray("B", size)
            self._memory.append(memory)
            self._slots.append(_views(memory, form))
            process = context.Process(
                target=_work,
                args=(worker, f"{seed}/{worker}", form, memory, self._free[worker], self._ready),
                daemon=True,
            )
            process.start()
            self._processes.append(process)

    def take(self, device: torch.device, *, wait: bool) -> Batch | None:
        """The next chunk, copied to ``device`` in the background; None if there is none yet and ``wait`` is false."""
        if device.type == "cuda" and not self._pinned:
            for memory in self._memory:
                torch.cuda.cudart().cudaHostRegister(ctypes.addressof(memory), ctypes.sizeof(memory), 0)
            self._pinned = True
        while self._copying and self._copying[0][1].query():
            self._free[self._copying.popleft()[0]].release()
        try:
            worker, slot = self._ready.get(block=wait)
        except queue.Empty:
            return None
        arrays = self._slots[worker][slot]
        if device.type != "cuda":
            chunk = Batch(**{name: torch.tensor(arrays[name], device=device) for name in _NAMES})
            self._free[worker].release()
            return chunk
        chunk = Batch(**{name: torch.from_numpy(arrays[name]).to(device, non_blocking=True) for name in _NAMES})
        copied = torch.cuda.Event()
        copied.record()
        self._copying.append((worker, copied))
        return chunk

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            process.terminate()
            process.join()


class Pool:
    """The newest ``capacity`` examples on a device: training may sample faster than pictures are drawn."""

    def __init__(self, capacity: int, device: torch.device, form: Form = SCENES) -> None:
        capacity = capacity // CHUNK * CHUNK
        self._store = Batch(
            **{
                name: torch.zeros((capacity, *shape), dtype=torch.uint8, device=device)
                for name, shape in form.shapes.items()
            }
        )
        self.drawn = 0
        """Pictures received so far."""

    def __len__(self) -> int:
        return min(self.drawn, len(self._store))

    def add(self, chunk: Batch) -> None:
        """Store a chunk in place of the oldest one."""
        start = self.drawn % len(self._store)
        for name in _NAMES:
            getattr(self._store, name)[start : start + CHUNK] = getattr(chunk, name)
        self.drawn += CHUNK

    def sample(self, size: int) -> Batch:
        """``size`` random examples."""
        return self._store[torch.randint(len(self), (size,), device=self._store.pictures.device)]
