"""Watching vLLM's vision tower while it runs: what methods look at is taken from the modules that make the features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from vtprune.adapters.base import Adapter
from vtprune.engine.taps import AttentionStates
from vtprune.engine.vision import VisionRecord, hash_pictures
from vtprune.pruner import Signal

Gather = Callable[[torch.Tensor], torch.Tensor]
"""Brings together the heads, the last dimension but one, that tensor parallelism has spread over several devices."""


@contextmanager
def watched(
    adapter: Adapter, signals: frozenset[Signal], layers: Sequence[int], inputs: Mapping[str, Any], gather: Gather
) -> Iterator[VisionRecord]:
    """Records what the tower does in the meantime, as far as the signals need it.

    Args:
        adapter: Knows the tower; the attention modules of `adapter.vision` are vLLM's `MMEncoderAttention`.
        signals: What will be looked at.
        layers: Encoder layers that will be looked at besides the one that feeds the projector.
        inputs: What the tower is given.
        gather: Brings heads of several devices together.
    """
    record = VisionRecord(adapter, "image", dict(inputs))
    vision = adapter.vision
    with ExitStack() as stack:
        attended = set(layers)
        if signals & {Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS}:
            attended.add(vision.features[-1])
        for number in attended:
            _on(
                stack,
                vision.attentions[number].register_forward_pre_hook(
                    _attention(record, number, gather), with_kwargs=True
                ),
            )
        for number in layers:
            _on(stack, vision.layers[number].register_forward_hook(_output(record, number)))
        if Signal.ENCODER_CLS in signals:
            for layer in vision.feature_layers:
                _on(stack, layer.register_forward_hook(_cls(record, vision.cls or 0)))
        if Signal.ENCODER_FEATURES in signals and vision.projector is not None:
            _on(stack, vision.projector.register_forward_pre_hook(_features(record)))
        yield record


def describe(record: VisionRecord, counts: Sequence[int], signals: frozenset[Signal]) -> None:
    """Tells a record where the tokens lie that the tower's features became, and hashes the pictures if asked to.

    Args:
        record: Of the run.
        counts: Tokens of each entry of the features.
        signals: What will be looked at.
    """
    record.layouts = record.adapter.layouts(record.kind, counts, record.inputs)
    expected, seen = [layout.tokens for layout in record.layouts], list(counts)
    if expected != seen:
        raise RuntimeError(f"{type(record.adapter).__name__} expected {expected} visual tokens, the tower made {seen}")
    if Signal.IMAGE_HASH in signals:
        pictures = record.adapter.pictures(record.pixels, record.layouts, record.inputs)
        record.image_hash = hash_pictures(pictures, record.layouts)


def _on(stack: ExitStack, handle: Any) -> None:
    stack.callback(handle.remove)


def _attention(record: VisionRecord, number: int, gather: Gather) -> Callable[..., None]:
    def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.attn_backend.name == "FLASHINFER":
            raise ValueError(
                "FlashInfer's borders between pictures cannot be read; choose another --mm-encoder-attn-backend"
            )
        given = {**dict(zip(("query", "key", "value", "cu_seqlens"), args, strict=False)), **kwargs}
        query, key = (
            gather(states.unflatten(-1, (-1, module.head_size)) if states.dim() == 3 else states).transpose(1, 2)
            for states in (given["query"], given["key"])
        )
        borders = given.get("cu_seqlens")
        lengths = [query.shape[2]] if borders is None else borders.diff().tolist()
        calls = record.calls.setdefault(number, [])
        for queries, keys in zip(query.split(lengths, dim=2), key.split(lengths, dim=2), strict=True):
            calls.append(AttentionStates(queries, keys, module.scale, None))

    return see


def _output(record: VisionRecord, number: int) -> Callable[..., None]:
    def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        record.outputs.setdefault(number, []).append(_states(output))

    return see


def _cls(record: VisionRecord, row: int) -> Callable[..., None]:
    def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        record.cls_states.append(_states(output)[:, row])

    return see


def _features(record: VisionRecord) -> Callable[..., None]:
    def see(module: nn.Module, args: tuple[Any, ...]) -> None:
        record.features = args[0]

    return see


def _states(output: Any) -> torch.Tensor:
    states = output if isinstance(output, torch.Tensor) else output[0]
    assert isinstance(states, torch.Tensor)
    # Towers that pack all pictures into one row have the rows first.
    return states.transpose(0, 1) if states.shape[1] == 1 else states
