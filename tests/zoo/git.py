"""Tiny GIT: a picture's patches stand in front of the words without placeholders."""

from __future__ import annotations

from transformers import GitConfig, GitForCausalLM, PreTrainedConfig, PreTrainedModel

from zoo.common import BOS, EOS, PAD, VOCAB, vision_sizes


class Maker:
    """Makes the model with eager attention, the only one it has."""

    @staticmethod
    def from_config(config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
        """The model, whatever attention is asked for."""
        return GitForCausalLM._from_config(config, attn_implementation="eager")


MODEL_CLASS = Maker


def config() -> GitConfig:
    """A decoder of two layers."""
    return GitConfig(
        vision_config=vision_sizes(),
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
