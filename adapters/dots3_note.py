"""Dots 3 Note: frames as in Qwen2-VL; layers that select their keys and layers with a window."""

from __future__ import annotations

from vtprune.adapters.indexed_attention import IndexedAttentionAdapter
from vtprune.adapters.registry import register_adapter


@register_adapter
class Dots3NoteAdapter(IndexedAttentionAdapter):
    """`Dots3NoteForConditionalGeneration`."""

    model_types = ("dots3_note",)
