"""Tiny BLIP: every layer of the decoder reads the picture by cross-attention."""

from __future__ import annotations

from transformers import BlipConfig, BlipForConditionalGeneration, PreTrainedConfig, PreTrainedModel

from zoo.common import BOS, EOS, PAD, VOCAB, vision_sizes


class Maker:
    """Makes the model with eager attention, the only one it has."""

    @staticmethod
    def from_config(config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
        """The model, whatever attention is asked for."""
        return BlipForConditionalGeneration._from_config(config, attn_implementation="eager")


MODEL_CLASS = Maker


def config() -> BlipConfig:
    """A decoder of two layers."""
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    return BlipConfig(text_config=text, vision_config=vision_sizes(initializer_range=0.02))
