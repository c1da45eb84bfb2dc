"""What differs between VLM families: where the decoder, the tower and the placeholder tokens are."""

from __future__ import annotations

if __name__ != "vtprune.adapters":
    raise ImportError("this folder is the package 'vtprune.adapters': import it by that name")

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.conformance import check_adapter
from vtprune.adapters.registry import adapter_classes, find_adapter, register_adapter

__all__ = ["Adapter", "Vision", "adapter_classes", "check_adapter", "find_adapter", "register_adapter"]
