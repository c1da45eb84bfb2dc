"""Prunes the visual tokens of vision-language models: any method, any budget, one line around a stock model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout adapters/, eval/ and demo/ lie beside this folder; an installed package has them inside it.
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

from vtprune.api import pruning, report, unwrap, wrap  # noqa: E402  (the path above must be complete first)
from vtprune.budget import Budget  # noqa: E402
from vtprune.context import Context  # noqa: E402
from vtprune.layout import ImageLayout, Segment  # noqa: E402
from vtprune.pruner import Pruner, Reduction, Signal  # noqa: E402
from vtprune.registry import list_pruners, make_pruner, pruner_class, pruner_classes, register  # noqa: E402
from vtprune.report import Report, StageReport  # noqa: E402

if TYPE_CHECKING:
    from vtprune.pruners.divprune import DivPrune as DivPrune
    from vtprune.pruners.entropyprune import EntropyPrune as EntropyPrune
    from vtprune.pruners.fastv import FastV as FastV
    from vtprune.pruners.flashvlm import FlashVLM as FlashVLM
    from vtprune.pruners.m3 import M3 as M3
    from vtprune.pruners.pool import Pool as Pool
    from vtprune.pruners.random import Random as Random
    from vtprune.pruners.stride import Stride as Stride
    from vtprune.pruners.visionzip import VisionZip as VisionZip

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Context",
    "ImageLayout",
    "Pruner",
    "Reduction",
    "Report",
    "Segment",
    "Signal",
    "StageReport",
    "list_pruners",
    "make_pruner",
    "pruner_class",
    "pruner_classes",
    "pruning",
    "register",
    "report",
    "unwrap",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Serves every registered method under its class name, so that `vtprune.FastV(layer=2)` works."""
    if not name.startswith("_"):
        for cls in pruner_classes().values():
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"module 'vtprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(cls.__name__ for cls in pruner_classes().values())})
