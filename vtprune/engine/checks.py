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
    pruner, budget, adapter = engine.pruner, engine.budget, engine.adapter
    _check_signals(engine)
    _check_layers(engine)
    attention = next((found for layer in range(len(engine.layers)) if (found := adapter.attention_module(layer))), None)
    name = None if attention is None else implementation(attention)
    if pruner.weighs_attention and name not in _ADDITIVE:
        raise ValueError(
            f"{pruner.name} adds to attention logits, which {name!r} cannot; load the model with "
            "attn_implementation='sdpa', or set proportional_attention=False"
        )
    if budget.adaptive and not pruner.is_adaptive:
        raise ValueError(
            f"{pruner.name} has no token count of its own for an adaptive budget; give a number such as 64"
        )
    if pruner.merges and adapter.streams:
        raise ValueError(
            f"{pruner.name} makes new tokens, but {type(engine.model).__name__} carries several streams of states for "
            "each token, and what a new one would be in the others is not defined; choose a method that keeps tokens "
            "as they are (vtprune list)"
        )
    if (layout := engine.adapter.typical_layout()) is not None and budget.flops is None:
        engine.schedules([layout], 0)


def _check_signals(engine: Engine) -> None:
    for signal in sorted(engine.pruner.signals):
        if (reason := engine.adapter.missing.get(signal)) is not None:
            raise ValueError(
                f"{engine.pruner.name} needs the signal {signal.value!r}: {reason}; choose a method without it "
                "(vtprune list)"
            )


def _check_layers(engine: Engine) -> None:
    pruner, depth, adapter = engine.pruner, len(engine.layers), engine.adapter
    layers = pruner.layers
    if list(layers) != sorted(layers) or not layers:
        raise ValueError(f"{pruner.name}: stages must be at ascending layers, got {layers}")
    if layers[0] < 0 or layers[-1] >= depth:
        raise ValueError(
            f"{pruner.name} prunes before decoder layer {layers[-1] if layers[0] >= 0 else layers[0]}, but "
            f"{type(engine.model).__name__} has layers 0 to {depth - 1}; choose a layer in that range"
        )
    if layers[-1] > adapter.last_stage:
        raise ValueError(
            f"{pruner.name} prunes before decoder layer {layers[-1]}, but in {type(engine.model).__name__} later "
            f"layers attend to the keys that layer {adapter.last_stage} made and must see the same tokens; choose "
            f"layers up to {adapter.last_stage}"
        )
    behind = DECODER_STATES | UNROTATED
    for layer in sorted(engine.stages_with(behind)):
        if adapter.attention_before(layer) is None:
            first = next(number for number in range(depth) if adapter.attention_module(number)) + 1
            raise ValueError(
                f"{pruner.name} looks at attention in a decoder layer before its stage at layer {layer}, but there is "
                f"none; its layer must be {first} or more in {type(engine.model).__name__}"
            )
    for layer in sorted(engine.stages_with(NEXT)):
        if adapter.attention_module(layer) is None:
            able = [str(number) for number in range(depth) if adapter.attention_module(number)]
            raise ValueError(
                f"{pruner.name} looks at attention of decoder layer {layer} itself, which is recurrent in "
                f"{type(engine.model).__name__}; layers with attention are {', '.join(able)}"
            )
    for stage, layer in enumerate(layers[1:], start=1):
        if not pruner.stage_signals(stage) & behind:
            continue
        seen = adapter.attention_before(layer)
        assert seen is not None
        if any(seen < other <= layer for other in layers[:stage]):
            raise ValueError(
                f"{pruner.name}: a stage before layer {layer} looks at layer {seen}, which saw tokens that another "
                "stage in between removes; give one of them another layer"
            )
