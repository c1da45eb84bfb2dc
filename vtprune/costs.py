"""What a prompt costs the language model: prefill FLOPs, KV-cache bytes and average tokens, from plain numbers.

The vision tower and the projector are not counted: they see every pixel whatever is pruned afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class LayerCosts:
    """What each layer of a decoder costs, for decoders whose layers differ (experts, recurrent layers).

    Args:
        linear: For each layer its multiply-adds per token, active experts only.
        square: For each layer its multiply-adds per pair of tokens; 0 without attention.
        cached: For each layer the key and value entries cached per token; 0 without attention.
        head: Multiply-adds of the language model head per position.
    """

    linear: tuple[int, ...]
    square: tuple[int, ...]
    cached: tuple[int, ...]
    head: int

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.linear)


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a dense decoder that decide its cost.

    Args:
        layers: Decoder layers.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads; fewer than `heads` with grouped queries.
        head_dim: Width of one head.
        intermediate: Inner width of the MLP.
        vocab: Rows of the language model head.
        mlp_matrices: Matrices in the MLP, 3 when it is gated (Llama, Qwen, Gemma), else 2.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    mlp_matrices: int = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"DecoderShape: {field.name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"DecoderShape: {field.name} must be at least 1, got {value}")

    @property
    def costs(self) -> LayerCosts:
        """The same as costs of each layer."""
        linear = self.hidden * (
            2 * self.head_dim * (self.heads + self.kv_heads) + self.intermediate * self.mlp_matrices
        )
        return LayerCosts(
            linear=(linear,) * self.layers,
            square=(2 * self.heads * self.head_dim,) * self.layers,
            cached=(2 * self.kv_heads * self.head_dim,) * self.layers,
            head=self.hidden * self.vocab,
        )

    @classmethod
    def from_config(cls, text_config: Any) -> Self:
        """Reads the sizes from the text part of a transformers configuration, taken to have gated MLPs.

        Raises:
            ValueError: A size is missing, or the model is a mixture of experts, whose active width has no common name.

        Example:
            >>> from transformers import LlamaConfig
            >>> DecoderShape.from_config(LlamaConfig()).head_dim
            128
        """

        def size(name: str, default: int | None = None) -> Any:
            value = getattr(text_config, name, None)
            if value is None:
                value = default
            if value is None:
                raise ValueError(
                    f"{type(text_config).__name__} has no {name}; pass the text configuration of the model "
                    f"(config.get_text_config()) or build DecoderShape from its sizes"
                )
            return value

        if (experts := getattr(text_config, "num_experts_per_tok", None)) is not None:
            raise ValueError(
                f"{type(text_config).__name__} is a mixture of experts ({experts} active per token); build "
                f"DecoderShape from its sizes, with the width of all active experts together as intermediate"
            )
        heads = size("num_attention_heads")
        hidden = size("hidden_size")
        return cls(
            layers=size("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", hidden // heads),
            intermediate=size("intermediate_size"),
            vocab=size("vocab_size"),
        )


def prefill_flops(shape: DecoderShape | LayerCosts, lengths: Sequence[int], *, batch: int = 1, logits: int = 1) -> int:
    """Floating-point operations of one forward pass over a prompt, two for each multiply-add.

    Decoder layer l with n = `lengths[l]` tokens costs 2 (P + A + M), where

    * P = n hidden head_dim (2 heads + 2 kv_heads) for the query, key, value and output projections,
    * A = 2 n^2 heads head_dim for scores and weighted values; the whole square, although half of it is masked,
    * M = n hidden intermediate mlp_matrices for the MLP,

    and the language model head adds 2 `logits` hidden vocab. Norms, rotary tables, activations, softmax and the
    embedding lookup are left out.

    Args:
        shape: The decoder.
        lengths: Tokens of one prompt that each layer processes, text included.
        batch: Prompts of these lengths.
        logits: Positions of each prompt that the head is applied to; `generate` needs one.

    Raises:
        ValueError: Not one length per layer, or a negative one.

    Example:
        >>> shape = DecoderShape(2, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocab=10)
        >>> prefill_flops(shape, [3, 1])
        5088
    """
    _check_lengths(shape, lengths)
    costs = shape.costs if isinstance(shape, DecoderShape) else shape
    layers = zip(lengths, costs.linear, costs.square, strict=True)
    return 2 * batch * (sum(n * linear + n * n * square for n, linear, square in layers) + logits * costs.head)


def kv_bytes(
    shape: DecoderShape | LayerCosts, lengths: Sequence[int], *, batch: int = 1, bytes_per_value: int = 2
) -> int:
    """Bytes of keys and values that a prompt leaves in the cache.

    Args:
        shape: The decoder.
        lengths: Tokens of one prompt that each layer processes, text included.
        batch: Prompts of these lengths.
        bytes_per_value: 2 for fp16 and bf16, 4 for fp32.

    Raises:
        ValueError: Not one length per layer, or a negative one.
    """
    _check_lengths(shape, lengths)
    costs = shape.costs if isinstance(shape, DecoderShape) else shape
    return sum(n * cached for n, cached in zip(lengths, costs.cached, strict=True)) * batch * bytes_per_value


def average_tokens(per_layer: Sequence[int | float]) -> float:
    """Mean over the decoder layers of the tokens that each one counts.

    Example:
        >>> average_tokens([576, 576] + [166] * 30)
        191.625
    """
    if not per_layer:
        raise ValueError("average_tokens needs the count of at least one decoder layer, got none")
    return sum(per_layer) / len(per_layer)


def _check_lengths(shape: DecoderShape | LayerCosts, lengths: Sequence[int]) -> None:
    if len(lengths) != shape.layers:
        raise ValueError(f"got {len(lengths)} lengths for {shape.layers} decoder layers; give one for each layer")
    if lengths and min(lengths) < 0:
        raise ValueError(f"lengths must be at least 0, got {min(lengths)}")
