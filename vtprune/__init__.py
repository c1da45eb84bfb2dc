"""Prunes the visual tokens of vision-language models: any method, any budget, one line around a stock model."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout adapters/, eval/ and demo/ lie beside this folder; an installed package has them inside it.
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from vtprune.api import pruning as pruning
    from vtprune.api import report as report
    from vtprune.api import unwrap as unwrap
    from vtprune.api import wrap as wrap
    from vtprune.budget import Budget as Budget
    from vtprune.chain import Chain as Chain
    from vtprune.context import Context as Context
    from vtprune.engine.recordings import Graph as Graph
    from vtprune.layout import ImageLayout as ImageLayout
    from vtprune.layout import Segment as Segment
    from vtprune.pruner import Pruner as Pruner
    from vtprune.pruner import Reduction as Reduction
    from vtprune.pruner import Signal as Signal
    from vtprune.pruners.aim import AIM as AIM
    from vtprune.pruners.cdpruner import CDPruner as CDPruner
    from vtprune.pruners.dart import DART as DART
    from vtprune.pruners.divprune import DivPrune as DivPrune
    from vtprune.pruners.downsample import Downsample as Downsample
    from vtprune.pruners.drop_all import DropAll as DropAll
    from vtprune.pruners.entropyprune import EntropyPrune as EntropyPrune
    from vtprune.pruners.fastervlm import FasterVLM as FasterVLM
    from vtprune.pruners.fastv import FastV as FastV
    from vtprune.pruners.feather import Feather as Feather
    from vtprune.pruners.fitprune import FitPrune as FitPrune
    from vtprune.pruners.flashvlm import FlashVLM as FlashVLM
    from vtprune.pruners.globalcom2 import GlobalCom2 as GlobalCom2
    from vtprune.pruners.gprune import GPrune as GPrune
    from vtprune.pruners.hiprune import HiPrune as HiPrune
    from vtprune.pruners.hired import HiRED as HiRED
    from vtprune.pruners.holov import HoloV as HoloV
    from vtprune.pruners.m3 import M3 as M3
    from vtprune.pruners.mustdrop import MustDrop as MustDrop
    from vtprune.pruners.pact import PACT as PACT
    from vtprune.pruners.pool import Pool as Pool
    from vtprune.pruners.prumerge import PruMerge as PruMerge
    from vtprune.pruners.prumerge_plus import PruMergePlus as PruMergePlus
    from vtprune.pruners.pyramiddrop import PyramidDrop as PyramidDrop
    from vtprune.pruners.random import Random as Random
    from vtprune.pruners.recoverable import Recoverable as Recoverable
    from vtprune.pruners.scope import Scope as Scope
    from vtprune.pruners.sparsevlm import SparseVLM as SparseVLM
    from vtprune.pruners.sparsevlm_plus import SparseVLMPlus as SparseVLMPlus
    from vtprune.pruners.stride import Stride as Stride
    from vtprune.pruners.tome import ToMe as ToMe
    from vtprune.pruners.trim import Trim as Trim
    from vtprune.pruners.visionzip import VisionZip as VisionZip
    from vtprune.pruners.vispruner import VisPruner as VisPruner
    from vtprune.pruners.vscan import VScan as VScan
    from vtprune.pruners.vtw import VTW as VTW
    from vtprune.registry import list_pruners as list_pruners
    from vtprune.registry import make_pruner as make_pruner
    from vtprune.registry import pruner_class as pruner_class
    from vtprune.registry import pruner_classes as pruner_classes
    from vtprune.registry import register as register
    from vtprune.reporting import Report as Report
    from vtprune.reporting import StageReport as StageReport
    from vtprune.text_tower import TextTower as TextTower

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Chain",
    "Context",
    "Graph",
    "ImageLayout",
    "Pruner",
    "Reduction",
    "Report",
    "Segment",
    "Signal",
    "StageReport",
    "TextTower",
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


# Loaded when first asked for: torch takes seconds to import, and the command line's --help needs none of it.
_HOMES = {
    "api": ("pruning", "report", "unwrap", "wrap"),
    "budget": ("Budget",),
    "chain": ("Chain",),
    "context": ("Context",),
    "engine.recordings": ("Graph",),
    "layout": ("ImageLayout", "Segment"),
    "pruner": ("Pruner", "Reduction", "Signal"),
    "registry": ("list_pruners", "make_pruner", "pruner_class", "pruner_classes", "register"),
    "reporting": ("Report", "StageReport"),
    "text_tower": ("TextTower",),
}


def __getattr__(name: str) -> Any:
    """Loads public names, and serves every registered method under its class name: `vtprune.FastV(layer=2)`."""
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"vtprune.{home}"), name)
            globals()[name] = value
            return value
    if name == "adapters":
        return import_module("vtprune.adapters")
    if name[:1].isupper():
        for cls in import_module("vtprune.registry").pruner_classes().values():
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"module 'vtprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    classes = import_module("vtprune.registry").pruner_classes().values()
    return sorted({*globals(), *__all__, *(cls.__name__ for cls in classes)})
