"""Mistral Large 4: pictures as in Mistral 3; sparse attention whose selection and latent keys layers share."""

from __future__ import annotations

from vtprune.adapters.indexed_attention import IndexedAttentionAdapter
from vtprune.adapters.pixtral import PixtralAdapter
from vtprune.adapters.registry import register_adapter


@register_adapter
class MistralLarge4Adapter(IndexedAttentionAdapter, PixtralAdapter):
    """`MistralLarge4ForConditionalGeneration`."""

    model_types = ("mistral_large4",)
