"""Which methods and budgets can be served, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vtprune.budget import Budget
from vtprune.pruner import Depths, Pruner, Signal

_OF_DECODER = frozenset(
    {
        Signal.DECODER_ATTENTION,
        Signal.DECODER_STATES,
        Signal.UNROTATED_STATES,
        Signal.NEXT_STATES,
        Signal.NEXT_UNROTATED_STATES,
    }
)
_OF_TEXT = frozenset({Signal.CLIP_TEXT, Signal.TEXT_EMBEDDINGS})


@dataclass(frozen=True)
class Abilities:
    """What a served model gives to look at.

    Args:
        name: Its architecture, for messages.
        depths: Layers of its decoder and of its tower.
        missing: Signals that it cannot give, each with the reason.
    """

    name: str
    depths: Depths
    missing: Mapping[Signal, str] = field(default_factory=dict)


def refusal(pruner: Pruner, budget: Budget, abilities: Abilities | None = None) -> str | None:
    """Why a method or a budget cannot be served; `None` where it can.

    Args:
        pruner: The method, fitted to the model where there is one.
        budget: What a request or a server asks for.
        abilities: The model; without one, only what holds for all models is checked.
    """
    return _refused_method(pruner) or _refused_budget(budget) or _refused_by(pruner, abilities)


def _refused_method(pruner: Pruner) -> str | None:
    if inside := [layer for layer in pruner.layers if layer > 0]:
        return (
            f"{pruner.name} removes tokens before decoder layer {inside[0]}: vLLM has one number of tokens and one "
            "block table for all layers"
        )
    if pruner.query_aware or pruner.signals & _OF_TEXT:
        return (
            f"{pruner.name} looks at the question: vLLM encodes an image without the prompt and keeps the result for "
            "other prompts"
        )
    if wanted := sorted(pruner.signals & _OF_DECODER):
        return f"{pruner.name} looks at {', '.join(wanted)}: vLLM encodes an image before its decoder runs"
    if pruner.weighs_attention:
        return f"{pruner.name} adds to attention logits, which vLLM's attention kernels cannot"
    if pruner.schedule(2, 1)[-1] < 1:
        return f"{pruner.name} leaves an image no token, and vLLM needs a placeholder for each image"
    return None


def _refused_budget(budget: Budget) -> str | None:
    if budget.adaptive:
        return (
            "an adaptive budget leaves the number of tokens to the picture's content: vLLM counts placeholders before "
            "it encodes the picture; give a number such as 64"
        )
    if budget.flops is not None:
        return "a share of FLOPs depends on the whole prompt, and vLLM keeps each image for other prompts"
    if budget.per == "prompt":
        return "a budget per prompt depends on its other images, and vLLM keeps each image for other prompts"
    return None


def _refused_by(pruner: Pruner, abilities: Abilities | None) -> str | None:
    if abilities is None:
        return None
    for signal in sorted(pruner.signals):
        if (reason := abilities.missing.get(signal)) is not None:
            return f"{pruner.name} needs the signal {signal.value!r}: {reason}"
    depth = abilities.depths.encoder
    if Signal.ENCODER_LAYERS in pruner.signals and any(not -depth <= layer < depth for layer in pruner.encoder_layers):
        return (
            f"{pruner.name} looks at encoder layers {pruner.encoder_layers}, but the vision tower of {abilities.name} "
            f"has layers 0 to {depth - 1}"
        )
    return None
