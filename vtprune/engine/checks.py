"""Whether a method and a budget fit a model: everything that can be refused is refused before a hook is set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtprune.engine.taps import implementation
from vtprune.pruner import Signal

if TYPE_CHECKING:
    from vtprune.engine.engine import Engine

DECODER_STATES = frozenset({Signal.DECODER_ATTENTION, Signal.DECODER_STATES})
"""Signals of the decoder layer before a stage."""
UNROTATED = frozenset({Signal.UNROTATED_STATES})
"""Signals of that layer that its own run does not give."""
NEXT = frozenset({Signal.NEXT_STATES, Signal.NEXT_UNROTATED_STATES})
"""Signals of the decoder layer that the survivors enter."""

_ADDITIVE = ("sdpa", "eager")


def named_encoder_layers(engine: Engine) -> tuple[int, ...]:
    """The encoder layers that the method looks at, counted from 0.

    Raises:
        ValueError: The vision tower has no such layer.
    """
    pruner = engine.pruner
    if Signal.ENCODER_LAYERS not in pruner.signals:
        return ()
    depth = len(engine.vision.layers)
    named = pruner.encoder_layers
    if any(not -depth <= layer < depth for layer in named):
        raise ValueError(
            f"{pruner.name} looks at encoder layers {named}, but the vision tower of {type(engine.model).__name__} has "
            f"layers 0 to {depth - 1}; choose layers in that range"
        )
    return tuple(layer % depth for layer in named)


def check_fit(engine: Engine) -> None:
    """Refuses what the model cannot do.

    Raises:
        ValueError: The method's layers, its signals or the budget do not fit the model.
    """
    pruner, budget = engine.pruner, engine.budget
    _check_layers(engine)
    name = implementation(engine.adapter.attention_module(0))
    if pruner.weighs_attention and name not in _ADDITIVE:
        raise ValueError(
            f"{pruner.name} adds to attention logits, which {name!r} cannot; load the model with "
            "attn_implementation='sdpa', or set proportional_attention=False"
        )
    if budget.adaptive and not pruner.is_adaptive:
        raise ValueError(
            f"{pruner.name} has no token count of its own for an adaptive budget; give a number such as 64"
        )
    if Signal.ENCODER_CLS in pruner.signals and not engine.vision.has_cls:
        raise ValueError(
            f"{pruner.name} needs the signal 'encoder_cls', but the vision tower of {type(engine.model).__name__} has "
            "no CLS token; choose a method without it (vtprune list)"
        )
    if (layout := engine.adapter.typical_layout()) is not None and budget.flops is None:
        engine.schedules([layout], 0)


def _check_layers(engine: Engine) -> None:
    pruner, depth = engine.pruner, len(engine.layers)
    layers = pruner.layers
    if list(layers) != sorted(layers) or not layers:
        raise ValueError(f"{pruner.name}: stages must be at ascending layers, got {layers}")
    if layers[0] < 0 or layers[-1] >= depth:
        raise ValueError(
            f"{pruner.name} prunes before decoder layer {layers[-1] if layers[0] >= 0 else layers[0]}, but "
            f"{type(engine.model).__name__} has layers 0 to {depth - 1}; choose a layer in that range"
        )
    behind = DECODER_STATES | UNROTATED
    if 0 in engine.stages_with(behind):
        raise ValueError(
            f"{pruner.name} looks at the decoder layer before its stage, so its layer must be 1 or more, got 0"
        )
    for stage, layer in enumerate(layers[1:], start=1):
        if layer == layers[stage - 1] and pruner.stage_signals(stage) & behind:
            raise ValueError(
                f"{pruner.name}: a stage before layer {layer} looks at layer {layer - 1}, which saw tokens that "
                "another stage before the same layer removes; give one of them another layer"
            )
