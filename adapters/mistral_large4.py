"""Mistral Large 4: pictures as in Mistral 3; sparse attention whose selection and latent keys layers share."""

from __future__ import annotations

from vtprune.adapters.base import register_adapter
from vtprune.adapters.hy_v4_vl import SharedSelectionAdapter


@register_adapter
class MistralLarge4Adapter(SharedSelectionAdapter):
    """`MistralLarge4ForConditionalGeneration`."""

    model_types = ("mistral_large4",)
