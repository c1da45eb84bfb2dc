"""The adapter interface: everything the engine asks of a model family."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask

from vtprune.costs import DecoderShape
from vtprune.engine.cache_names import CACHE
from vtprune.layout import ImageLayout
from vtprune.pruner import Depths


@dataclass(frozen=True)
class Vision:
    """The vision side of a model, as far as methods may look at it.

    Args:
        attention: Attention module of the encoder layer whose output feeds the projector.
        layers: All encoder layers in order; each has its attention as `self_attn`.
        feature_layers: Encoder layers whose outputs hold the CLS tokens beside the projected features.
        projector: Module that maps encoder features to the decoder's width, token by token.
        has_cls: Whether row 0 of each view is a CLS token that the model drops before projecting.
    """

    attention: nn.Module
    layers: tuple[nn.Module, ...]
    feature_layers: tuple[nn.Module, ...]
    projector: nn.Module
    has_cls: bool


class Adapter(ABC):
    """Shows the engine where things are in one model. A family is one subclass in one file.

    Args:
        model: A conditional-generation model of the family, as transformers makes it.
    """

    model_types: ClassVar[tuple[str, ...]]

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def base(self) -> nn.Module:
        """The module that embeds the prompt and fills in image features; it has `get_image_features`."""
        return _module(self.model, "model")

    @property
    def decoder(self) -> nn.Module:
        """The text decoder; it has `layers` and `rotary_emb`."""
        return _module(self.base, "language_model")

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers in order."""
        return list(_module(self.decoder, "layers").children())

    @property
    def text_config(self) -> Any:
        """The decoder's configuration."""
        return self.decoder.config

    @property
    def image_token_id(self) -> int:
        """The placeholder token that image features replace."""
        config: Any = self.model.config
        return int(config.image_token_id)

    @property
    def shape(self) -> DecoderShape:
        """The decoder's sizes, for the cost model."""
        return DecoderShape.from_config(self.text_config)

    @property
    def depths(self) -> Depths:
        """Layers of the decoder and of the vision tower."""
        return Depths(len(self.layers), len(self.vision.layers))

    @property
    def final_norm(self) -> nn.Module:
        """The norm that the decoder ends with."""
        return _module(self.decoder, "norm")

    def attention_module(self, layer: int) -> nn.Module:
        """The self-attention module of a decoder layer."""
        return _module(self.layers[layer], "self_attn")

    def layer_kind(self, layer: int) -> str:
        """Layers of one kind share masks and rotary tables (sliding and full attention are two kinds)."""
        kinds = getattr(self.text_config, "layer_types", None)
        return str(kinds[layer]) if kinds else ""

    def rotary(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
        """The position embeddings that decoder layers take, for these positions `(batch, length)`."""
        return _module(self.decoder, "rotary_emb")(hidden, position_ids=position_ids)

    def without_rotation(self, position_embeddings: Any) -> Any:
        """Position embeddings of the same form that rotate nothing.

        Raises:
            ValueError: The form is not the usual pair of cosines and sines.
        """
        if not isinstance(position_embeddings, tuple) or len(position_embeddings) != 2:
            raise ValueError(
                f"{type(self.model).__name__} has no pair of rotary tables that could be left out; choose a method "
                "that does not need unrotated states"
            )
        cosines, sines = position_embeddings
        return torch.ones_like(cosines), torch.zeros_like(sines)

    def causal_mask(self, hidden: torch.Tensor, keys: torch.Tensor | None, cache: Any, layer: int) -> Any:
        """The mask for `hidden` at `layer`, in the form that the attention implementation wants.

        Args:
            hidden: States that enter the layer, `(batch, length, dim)`.
            keys: Which cached and new tokens may be attended to, `(batch, cached + length)`; `None` for all.
            cache: The model's cache or `None`.
            layer: Index of the layer, whose own cache length counts.
        """
        arguments: dict[str, Any] = {CACHE: cache}
        return create_causal_mask(
            config=self.text_config,
            inputs_embeds=hidden,
            attention_mask=keys,
            position_ids=None,
            layer_idx=layer,
            **arguments,
        )

    @property
    @abstractmethod
    def vision(self) -> Vision:
        """The vision side.

        Raises:
            ValueError: The tower or its settings are not understood.
        """

    @abstractmethod
    def layouts(self, pixel_values: torch.Tensor, **inputs: Any) -> list[ImageLayout]:
        """The layout of each image, in prompt order, from the arguments of `get_image_features`."""

    def encode_smaller(self, pixel_values: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Encodes and projects whole pictures shrunk to `height x width` patches, `(images, height * width, dim)`.

        Args:
            pixel_values: As the processor made them; of several views of an image the first shows the whole picture.
            height: Rows of patches.
            width: Patches in a row.

        Raises:
            ValueError: The family's tower takes pictures of one size only.
        """
        raise ValueError(
            f"the vision tower of {type(self.model).__name__} is not known to take smaller pictures; shrink them in "
            "the processor instead"
        )

    def typical_layout(self) -> ImageLayout | None:
        """The layout of every image where the family has only one, so that budgets can be checked when wrapping."""
        return None


def _module(parent: nn.Module, name: str) -> nn.Module:
    child = getattr(parent, name, None)
    if not isinstance(child, nn.Module):
        raise ValueError(f"{type(parent).__name__} has no submodule {name!r}, which this adapter expects")
    return child


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
    """All adapters by model type, sorted."""
    import vtprune.adapters

    for module in pkgutil.iter_modules(vtprune.adapters.__path__, "vtprune.adapters."):
        importlib.import_module(module.name)
    return dict(sorted(_ADAPTERS.items()))


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter for a model.

    Raises:
        TypeError: `model` is no transformers model.
        ValueError: No adapter serves its `model_type`.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if not isinstance(model, nn.Module) or model_type is None:
        raise TypeError(f"expected a transformers vision-language model, got {type(model).__name__}")
    classes = adapter_classes()
    if model_type not in classes:
        raise ValueError(
            f"no adapter for model type {model_type!r} ({type(model).__name__}); supported: {', '.join(classes)}. "
            "A new family is one small file: see CONTRIBUTING.md"
        )
    if not hasattr(model, "generate"):
        raise ValueError(
            f"{type(model).__name__} is the bare {model_type} model without a language-model head; wrap the "
            "conditional-generation model (AutoModelForImageTextToText)"
        )
    return classes[model_type](model)
