"""What the KV cache is called: `past_key_values` up to transformers 5.23, `cache` since, either in models of others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers.masking_utils import create_causal_mask

CACHE_NAMES = ("cache", "past_key_values")

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
"""The name in the installed release: of the argument of models and layers, and of the field in their outputs."""


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a decoder or of one of its layers, or `None`."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)
