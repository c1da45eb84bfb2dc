"""BLIP-2, InstructBLIP and their videos: a Q-Former's outputs, which lie nowhere in the picture, before the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from vtprune.adapters.base import Adapter, Placeholder, Vision, register_adapter
from vtprune.adapters.decoders import find_decoder
from vtprune.layout import ImageLayout, Segment


@register_adapter
class Blip2Adapter(Adapter):
    """`Blip2ForConditionalGeneration` and `InstructBlipForConditionalGeneration` with a decoder-only language model."""

    model_types = ("blip-2", "instructblip")

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config: Any = model.config
        if not config.use_decoder_only_language_model:
            raise ValueError(
                f"{type(model).__name__} has a language model ({config.text_config.model_type}) that is an encoder-decoder: "
                "its decoder attends to the encoder's output and has no visual tokens of its own; supported are "
                "checkpoints with a decoder-only one (OPT, Vicuna)"
            )

    @cached_property
    def decoder(self) -> nn.Module:
        """The decoder inside the causal language model."""
        inner = self.inner
        found = getattr(getattr(inner, "model", None), "decoder", None)
        return found if isinstance(found, nn.Module) else find_decoder(inner)

    @property
    def inner(self) -> nn.Module:
        """The language model, whose `generate` the model's own calls with the prompt's embeddings."""
        return self.model.get_submodule("language_model")

    @cached_property
    def vision(self) -> Vision:
        """Nothing: rows of the tower are patches, and tokens are queries that look at all of them."""
        return Vision()

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """The queries of each picture in one row; those of each frame of a video."""
        config: Any = self.model.config
        pixels, queries = inputs["pixel_values"], int(config.num_query_tokens)
        frames = pixels.shape[1] if pixels.dim() == 5 else 1
        patches = tuple(range(frames * queries))
        layout = ImageLayout((Segment(1, queries),) * frames, patches, views=frames, patches_per_view=queries)
        return [layout] * pixels.shape[0]


@register_adapter
class InstructBlipVideoAdapter(Blip2Adapter):
    """`InstructBlipVideoForConditionalGeneration`, which has no pictures, and calls the pixels of videos so."""

    model_types = ("instructblipvideo",)

    @cached_property
    def base(self) -> nn.Module:
        """The model itself, which encodes videos only."""
        return self.model

    @cached_property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """Videos."""
        config: Any = self.model.config
        return (Placeholder("video", int(config.video_token_index), "get_video_features"),)
