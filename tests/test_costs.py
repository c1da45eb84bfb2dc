"""The cost model against torch's own count of the operations that a model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vtprune.costs import DecoderShape, average_tokens, kv_bytes, prefill_flops
from vtprune.engine.cache_names import CACHE

SHAPE = DecoderShape(layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocab=10)


def tiny_llava(kv_heads: int, attention: str, head_dim: int | None = None) -> Any:
    torch.manual_seed(0)
    text = LlamaConfig(
        num_hidden_layers=3,
        hidden_size=64,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=112,
        vocab_size=199,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    config._attn_implementation = attention
    return LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(8, None), (2, None), (1, 24)], ids=["mha", "gqa", "wide-head"])
@pytest.mark.parametrize(("batch", "length", "logits"), [(1, 63, 1), (3, 200, 1), (2, 17, 17)])
def test_prefill_flops_match_torch(
    attention: str, kv_heads: int, head_dim: int | None, batch: int, length: int, logits: int
) -> None:
    model = tiny_llava(kv_heads, attention, head_dim)
    ids = torch.randint(6, 199, (batch, length))
    # The counter of older releases of torch does not know the fused kernel of CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=logits)
    shape = DecoderShape.from_config(model.config.get_text_config())
    counted = prefill_flops(shape, [length] * 3, batch=batch, logits=logits)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_bytes_match_the_cache(kv_heads: int, dtype: torch.dtype) -> None:
    model = tiny_llava(kv_heads, "sdpa").to(dtype)
    ids = torch.randint(6, 199, (2, 21))
    with torch.no_grad():
        cache = model(input_ids=ids, **{CACHE: DynamicCache()})[CACHE]
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    shape = DecoderShape.from_config(model.config.get_text_config())
    assert kv_bytes(shape, [21] * 3, batch=2, bytes_per_value=dtype.itemsize) == held


def test_formula_by_hand() -> None:
    """Each term once: projections, square, MLP, head."""
    per_token = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16
    assert prefill_flops(SHAPE, [3, 0]) == 2 * (3 * per_token + 2 * 9 * 8 + 8 * 10)
    assert prefill_flops(SHAPE, [3, 1], batch=5, logits=0) == 5 * 2 * (4 * per_token + 2 * 10 * 8)
    assert kv_bytes(SHAPE, [3, 1]) == 2 * 4 * 4 * 2


def test_ungated_mlp() -> None:
    two = DecoderShape(2, 8, 2, 1, 4, 16, 10, mlp_matrices=2)
    assert prefill_flops(SHAPE, [3, 1]) - prefill_flops(two, [3, 1]) == 2 * 4 * 8 * 16


def test_head_dim_may_be_missing() -> None:
    config = LlamaConfig(hidden_size=96, num_attention_heads=4, num_key_value_heads=2)
    for value in (24, None):
        config.head_dim = value
        assert DecoderShape.from_config(config).head_dim == 24
    del config.head_dim
    assert DecoderShape.from_config(config).head_dim == 24
    config.head_dim = 32
    assert DecoderShape.from_config(config).head_dim == 32


def test_config_without_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="LlavaConfig has no num_attention_heads; pass the text configuration"):
        DecoderShape.from_config(LlavaConfig())


def test_mixture_of_experts_is_refused() -> None:
    config = LlamaConfig()
    config.num_experts_per_tok = 8
    with pytest.raises(ValueError, match=r"mixture of experts \(8 active per token\)"):
        DecoderShape.from_config(config)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "kv_heads must be at least 1, got 0"),
        (1.5, TypeError, "kv_heads must be an integer, got 1.5"),
        (True, TypeError, "kv_heads must be an integer, got True"),
    ],
)
def test_bad_shape(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DecoderShape(2, 8, 2, value, 4, 16, 10)


@pytest.mark.parametrize("function", [prefill_flops, kv_bytes])
def test_bad_lengths(function: Any) -> None:
    with pytest.raises(ValueError, match="got 3 lengths for 2 decoder layers"):
        function(SHAPE, [1, 2, 3])
    with pytest.raises(ValueError, match="at least 0, got -1"):
        function(SHAPE, [1, -1])


def test_average() -> None:
    assert average_tokens([576, 576, *[166] * 30]) == 191.625
    with pytest.raises(ValueError, match="at least one decoder layer, got none"):
        average_tokens([])
