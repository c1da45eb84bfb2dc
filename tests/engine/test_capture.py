"""What a recording forbids and keeps, tried on a device without memory; real recordings are in test_gpu.py."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

from vtprune.engine.capture import HostConstants, Pool, Recorded, Watch

POINTS = torch.empty(4, 2, device="meta")
FLAGS = torch.empty(4, dtype=torch.bool, device="meta")


@pytest.mark.parametrize(
    "ask",
    [
        lambda: POINTS.sum().item(),
        lambda: bool(FLAGS.any()),
        lambda: FLAGS.nonzero(),
        lambda: POINTS[FLAGS],
        lambda: POINTS.clone().__setitem__(FLAGS, POINTS),
        lambda: torch.masked_select(POINTS[:, 0], FLAGS),
        lambda: torch.unique(POINTS),
        lambda: POINTS.repeat_interleave(FLAGS.long(), dim=0),
        lambda: torch.zeros(4, 2).copy_(POINTS),
        lambda: POINTS.clone().copy_(torch.zeros(4, 2)),
        lambda: POINTS.cpu(),
    ],
)
def test_asking_the_device_is_an_error(ask: Callable[[], object]) -> None:
    with Watch(), pytest.raises(RuntimeError, match="makes the host wait for the device"):
        ask()


def test_the_host_may_ask_itself() -> None:
    with Watch():
        assert torch.ones(3).sum().item() == 3
        assert torch.tensor([1, 0, 2])[torch.tensor([True, False, True])].tolist() == [1, 2]
        assert (POINTS @ POINTS.mT).softmax(dim=-1)[:, torch.empty(2, dtype=torch.long, device="meta")].shape == (4, 2)
        assert POINTS.repeat_interleave(FLAGS.long(), dim=0, output_size=7).shape == (7, 2)


def test_numbers_are_brought_to_the_device_once() -> None:
    def work() -> list[torch.Tensor]:
        return [
            torch.tensor([1.0, 2.0], device="meta"),
            torch.tensor([1, 2], device="meta"),
            torch.arange(3).to("meta"),
        ]

    constants = HostConstants()
    with Watch(), constants:
        first = work()
    constants.are_kept = True
    kept = dict(constants._found)
    assert [tensor.dtype for tensor in kept.values()] == [tensor.dtype for tensor in first]
    with constants, Watch():
        assert [(tensor.dtype, tensor.shape) for tensor in work()] == [(tensor.dtype, tensor.shape) for tensor in first]
        assert constants._found == kept
        # Other numbers are no constants, and are left to fail.
        with pytest.raises(RuntimeError, match="makes the host wait"):
            POINTS[0].clone().copy_(torch.tensor([3.0, 4.0]))


def test_nothing_is_collected_from_before_a_capture_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that is freed while another one captures breaks that one."""
    was_on = []

    @contextmanager
    def capture(*_: object, **__: object) -> Iterator[None]:
        was_on.append(gc.isenabled())
        yield
        was_on.append(gc.isenabled())

    class Stream:
        def wait_stream(self, other: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda size, device: zeros(size))
    Recorded(lambda: None, Pool())
    assert was_on == [False] * 4
    assert gc.isenabled()
