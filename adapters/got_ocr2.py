"""GOT-OCR2 and PP-Chart2Table: a SAM tower whose patches strided convolutions make into tokens."""

from __future__ import annotations

from functools import cached_property

from vtprune.adapters.base import Adapter
from vtprune.adapters.registry import register_adapter
from vtprune.pruner import Signal


@register_adapter
class GotOcr2Adapter(Adapter):
    """`GotOcr2ForConditionalGeneration`; tiles, or the pages of a document, share one run of placeholders."""

    model_types = ("got_ocr2", "pp_chart2table")
    borders = "run"

    @cached_property
    def missing(self) -> dict[Signal, str]:
        """The tower's attention is out of reach: it is computed inside its own modules."""
        reason = (
            f"the vision tower of {type(self.model).__name__} computes attention with relative positions in its own "
            "modules, and its convolutions mix the patches of neighbouring tokens"
        )
        gone = super().missing
        return gone | dict.fromkeys((Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS, Signal.ENCODER_LAYERS), reason)
