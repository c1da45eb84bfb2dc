"""Finding one's way in text decoders of transformers: layers, attention, recurrent layers, shared keys and costs."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from vtprune.costs import LayerCosts

_QUERIES = (
    "q_proj",
    "qkv_proj",
    "qkv",
    "q_b_proj",
    "wq_b",
    "att_proj",
    "query_key_value",
    "query",
    "c_attn",
    "wq",
    "to_q",
)
_RECURRENT = re.compile(r"linear|conv|mamba|recurrent|delta|ssm")
_RECURRENT_CLASS = re.compile(r"Mamba|DeltaNet|ShortConv|LinearAttention|Recurrent")
_ACTIVE = ("num_experts_per_tok", "moe_k", "top_k_experts", "moe_topk", "num_experts_per_token")


def find_decoder(model: Any) -> nn.Module:
    """The text decoder of a vision-language model: the module that holds the decoder layers.

    Raises:
        ValueError: There is no module with `layers`.
    """
    getter = getattr(model, "get_decoder", None)
    candidates = [getter() if callable(getter) else None]
    for parent in (getattr(model, "model", None), model):
        candidates += [getattr(parent, name, None) for name in ("language_model", "text_model")]
    for candidate in candidates:
        for module in (candidate, getattr(candidate, "model", None)):
            if isinstance(module, nn.Module) and isinstance(getattr(module, "layers", None), nn.ModuleList):
                return module
    raise ValueError(
        f"{type(model).__name__} has no text decoder with a list of layers, between which tokens could be removed"
    )


def find_attention(layer: nn.Module, number: int) -> nn.Module | None:
    """The module in a layer that calls transformers' attention function, or `None`."""
    for module in layer.modules():
        has_queries = any(isinstance(getattr(module, name, None), nn.Module) for name in _QUERIES)
        dispatches = hasattr(sys.modules.get(type(module).__module__), "ALL_ATTENTION_FUNCTIONS")
        if has_queries and dispatches and not _RECURRENT_CLASS.search(type(module).__name__):
            return module
    return None


def is_recurrent(layer: nn.Module, kind: str) -> bool:
    """Whether a layer carries a state along the sequence instead of attending."""
    if "attention" in kind and "linear" not in kind:
        return False
    if _RECURRENT.search(kind):
        return True
    return any(_RECURRENT_CLASS.search(type(module).__name__) for module in layer.modules())


def key_sources(layers: Sequence[nn.Module], config: Any) -> list[int]:
    """For each layer the one whose keys it attends to: itself, or an earlier one where layers share them."""
    sources = list(range(len(layers)))
    for number, layer in enumerate(layers):
        if not any(getattr(module, "is_kv_shared_layer", False) for module in layer.modules()):
            continue
        if (named := getattr(config, "kv_source_layers", None)) is not None:
            sources[number] = int(named[number])
        else:
            kinds = list(config.layer_types)
            own = [other for other in range(number) if sources[other] == other and kinds[other] == kinds[number]]
            sources[number] = own[-1]
    return sources


def count_costs(layers: Sequence[nn.Module], config: Any, head: nn.Module | None) -> LayerCosts:
    """Counts the multiply-adds of each layer from its own matrices, and what it caches.

    Of a layer with experts the share of active ones is counted, of matrices over whole sequences (attention) the full
    square. State updates of recurrent layers and other small terms are left out.
    """
    linear, square, cached = [], [], []
    for number, layer in enumerate(layers):
        own = layer_config(config, number)
        linear.append(round(_weights(layer, own)))
        attention = find_attention(layer, number)
        width = 0 if attention is None else _head_dim(attention, own)
        square.append(2 * int(own.num_attention_heads) * width if attention is not None else 0)
        shares = getattr(attention, "is_kv_shared_layer", False)
        cached.append(0 if attention is None or shares else 2 * _kv_heads(attention, own) * width)
    return LayerCosts(tuple(linear), tuple(square), tuple(cached), 0 if head is None else _matrix(head))


def layer_config(config: Any, number: int) -> Any:
    """The configuration of one layer, where layers have their own."""
    each = getattr(config, "per_layer_config", None)
    return config if each is None else each[number]


def _head_dim(attention: nn.Module, config: Any) -> int:
    width = getattr(attention, "head_dim", None) or getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def _kv_heads(attention: nn.Module, config: Any) -> int:
    groups = getattr(attention, "num_key_value_groups", None)
    if isinstance(groups, int) and groups:
        return int(config.num_attention_heads) // groups
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _weights(layer: nn.Module, config: Any) -> float:
    """Entries of all matrices that one token meets in a layer."""
    active = next((int(value) for name in _ACTIVE if isinstance(value := getattr(config, name, None), int)), 1)
    total = 0.0
    for path, module in layer.named_modules():
        experts = re.search(r"(^|\.)experts(\.|$)", path)
        if isinstance(module, nn.Linear):
            share = _expert_share(layer, path, active) if experts else 1.0
            total += share * _matrix(module)
        elif experts:
            # Fused experts: all of them in one parameter, `(experts, rows, columns)`.
            stacks = [weight for _, weight in module.named_parameters(recurse=False) if weight.dim() == 3]
            total += sum(active * weight[0].numel() for weight in stacks)
    return total


def _expert_share(layer: nn.Module, path: str, active: int) -> float:
    parent = layer.get_submodule(path[: path.index("experts") + len("experts")])
    count = len(list(parent.children())) if isinstance(parent, nn.ModuleList | nn.ModuleDict) else 1
    return min(1.0, active / count)


def _matrix(module: nn.Module) -> int:
    """Entries of a linear map; quantised ones pack their weights, but know their width."""
    rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if isinstance(rows, int) and isinstance(columns, int):
        return rows * columns
    weight: Any = getattr(module, "weight", None)
    return int(weight.numel()) if weight is not None else 0
