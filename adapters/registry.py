"""The families with an adapter of their own, and the way from a model to its adapter."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, TypeVar

from torch import nn

from vtprune.adapters.base import Adapter

_ADAPTERS: dict[str, type[Adapter]] = {}
AdapterT = TypeVar("AdapterT", bound=type[Adapter])


def register_adapter(cls: AdapterT) -> AdapterT:
    """Class decorator that makes an adapter available for its `model_types`.

    Raises:
        ValueError: Another class already serves one of the types.
    """
    for model_type in cls.model_types:
        known = _ADAPTERS.get(model_type)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(
                f"model type {model_type!r} is served by {known.__qualname__}, not also {cls.__qualname__}"
            )
        _ADAPTERS[model_type] = cls
    return cls


def adapter_classes() -> dict[str, type[Adapter]]:
    """The families with an adapter of their own, by model type, sorted; others get the generic `Adapter`."""
    import vtprune.adapters

    for module in pkgutil.iter_modules(vtprune.adapters.__path__, "vtprune.adapters."):
        importlib.import_module(module.name)
    return dict(sorted(_ADAPTERS.items()))


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter for a model: that of its family, or the generic one.

    Raises:
        TypeError: `model` is no transformers model.
        ValueError: The model is of a kind that cannot be pruned; the message says what it lacks.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if not isinstance(model, nn.Module) or model_type is None:
        raise TypeError(f"expected a transformers vision-language model, got {type(model).__name__}")
    if not hasattr(model, "generate"):
        name = type(model).__name__
        if name.endswith("Model"):
            raise ValueError(
                f"{name} is the bare {model_type} model without a language-model head; wrap the conditional-generation "
                "model (AutoModelForImageTextToText)"
            )
        raise ValueError(
            f"{name} has no generate(): it does not continue a prompt with text; supported are decoder-only models "
            "that fill image placeholders"
        )
    _check_kind(model, config)
    adapter = adapter_classes().get(model_type, Adapter)(model)
    # Each of these refuses what it cannot find.
    _ = adapter.base, adapter.layers, adapter.placeholders, adapter.vision
    return adapter


def _check_kind(model: nn.Module, config: Any) -> None:
    name = type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder: its decoder attends to the encoder's output and has no visual tokens of "
            "its own; supported are decoder-only models that fill image placeholders"
        )
    crossing = next(
        (path for path, _ in model.named_modules() if path.endswith(("cross_attn", "crossattention"))), None
    )
    if crossing is not None and not hasattr(getattr(model, "model", model), "get_placeholder_mask"):
        raise ValueError(
            f"{name} shows images to its decoder by cross-attention ({crossing}), not as tokens of the prompt; "
            "supported are decoder-only models that fill image placeholders"
        )
