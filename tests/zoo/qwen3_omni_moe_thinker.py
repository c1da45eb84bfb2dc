"""Tiny thinker of Qwen3-Omni-MoE: tower and decoder as in Qwen3-VL-MoE, an audio tower beside them."""

from __future__ import annotations

from transformers import Qwen3OmniMoeThinkerConfig

from zoo.common import text_sizes
from zoo.qwen2_5_omni_thinker import SIZES, audio, inputs, omni_ids, video_inputs
from zoo.qwen3_vl import deepstack_vision, rope
from zoo.qwen3_vl_moe import experts

__all__ = ["SIZES", "config", "inputs", "video_inputs"]


def config() -> Qwen3OmniMoeThinkerConfig:
    """Four layers, the first two of which take features of the tower; layer 1 is dense."""
    return Qwen3OmniMoeThinkerConfig(
        text_config=text_sizes(rope_parameters=rope(), mlp_only_layers=[1], **experts()),
        vision_config=deepstack_vision(),
        audio_config=audio(n_window_infer=16, conv_chunksize=16, downsample_hidden_size=8),
        **omni_ids(),
    )
