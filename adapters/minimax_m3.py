"""MiniMax M3: frames as in Qwen2-VL; layers that select blocks of keys by their places in the sequence."""

from __future__ import annotations

from vtprune.adapters.indexed_attention import IndexedAttentionAdapter
from vtprune.adapters.registry import register_adapter


@register_adapter
class MiniMaxM3Adapter(IndexedAttentionAdapter):
    """`MiniMaxM3SparseForConditionalGeneration`.

    Of a video that the processor cuts into segments each segment is a video: the model is not told which belong
    together.
    """

    model_types = ("minimax_m3_vl",)
    slot_positions = True
