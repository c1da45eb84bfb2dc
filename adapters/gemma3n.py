"""Gemma 3n: decoder layers carry several streams of states for each token (AltUp); the tower is convolutional."""

from __future__ import annotations

from vtprune.adapters.base import Adapter
from vtprune.adapters.registry import register_adapter


@register_adapter
class Gemma3nAdapter(Adapter):
    """`Gemma3nForConditionalGeneration`: states inside the decoder are `(streams, batch, length, dim)`."""

    model_types = ("gemma3n",)
    streams = "first"
