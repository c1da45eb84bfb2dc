"""VTW: all visual tokens go at one depth."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

from vtprune.pruner import Depths, check_layer, scale_layers
from vtprune.pruners.drop_all import DropAll
from vtprune.registry import register

_LAYER, _DEPTH = 16, 32


@register
@dataclass(frozen=True)
class VTW(DropAll):
    """Removes every visual token before one decoder layer; those before it see all.

    The paper searches the layer by how much the outputs change, and finds 15 or 16 of 32 for LLaVA-1.5-7B. Any budget
    below the number of tokens means none behind that layer; a budget that keeps all keeps all.

    Args:
        layer: Decoder layer before which the tokens are removed, the paper's K, 1 or more. `None` takes 16 of 32,
            scaled to the model.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> VTW(layer=15).layers, VTW(layer=15).schedule(576, 64)
        ((15,), (0,))
    """

    layer: int | None = None

    name = "vtw"
    paper = "VTW, AAAI 2025, arXiv 2405.05803"
    year = 2025
    summary = "Removes all visual tokens before one decoder layer in the middle."
    default_positions = "keep"

    def __post_init__(self) -> None:
        if self.layer is not None:
            check_layer(self.layer, lowest=1, owner=self.name)

    def fit(self, depths: Depths) -> Self:
        """Scales the paper's layer to the model."""
        if self.layer is not None:
            return self
        return dataclasses.replace(self, layer=scale_layers((_LAYER,), depths.decoder, _DEPTH)[0])

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer, or the paper's until the method is fitted."""
        return (_LAYER if self.layer is None else self.layer,)
