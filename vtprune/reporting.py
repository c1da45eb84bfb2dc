"""What the last prefill of a wrapped model kept, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from vtprune.budget import Budget
from vtprune.costs import DecoderShape, LayerCosts, average_tokens, kv_bytes, prefill_flops
from vtprune.layout import ImageLayout


@dataclass(frozen=True)
class StageReport:
    """One stage of a prefill.

    Args:
        layer: Decoder layer that the survivors entered.
        before: Visual tokens in the batch before the stage.
        after: Visual tokens in the batch after it.
        kept: For each sample the positions of its surviving visual tokens in the padded prompt, ascending.
        images: For each sample and each of its images the surviving tokens, numbered within the image, ascending.
            Of a merged token this names the one whose place it took.
        places: Beside `images` where each survivor lies, `(tokens, 3)`: encoder view or video frame, row and column in
            it; -1 for newline and separator tokens.
        sizes: Beside `images` how many tokens each survivor stands for in attention; `None` for plain attention.
    """

    layer: int
    before: int
    after: int
    kept: list[torch.Tensor]
    images: list[list[torch.Tensor]]
    places: list[list[torch.Tensor]]
    sizes: list[list[torch.Tensor]] | None = None


@dataclass(frozen=True)
class StageTrace:
    """What the engine leaves of a stage: device tensors, not yet split by image."""

    layer: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    origin: torch.Tensor
    bias: torch.Tensor | None = None


class Report:
    """The account of one prefill. Reading it is what copies indices from the device, not the prefill.

    Args:
        pruner: Name of the method.
        config: Its hyper-parameters.
        budget: The budget that was asked for.
        positions: `"keep"` or `"pack"`.
        layouts: For each sample the layout of each image.
        traces: The stages that removed something.
        visual: Where visual tokens stand in the padded prompt, `(batch, length)` booleans.
        lengths: Tokens of a row that each decoder layer processed, padding included.
        batch: Rows.
        shape: The decoder's sizes.
        bytes_per_value: Size of one cached value.
        captured: Whether the decoder was replayed from a captured graph.
    """

    def __init__(
        self,
        *,
        pruner: str,
        config: dict[str, Any],
        budget: Budget,
        positions: str,
        layouts: Sequence[Sequence[ImageLayout]],
        traces: Sequence[StageTrace],
        visual: torch.Tensor,
        lengths: Sequence[int],
        batch: int,
        shape: DecoderShape | LayerCosts,
        bytes_per_value: int,
        captured: bool = False,
    ) -> None:
        self.pruner = pruner
        self.config = config
        self.budget = budget
        self.positions = positions
        self.layouts = [list(row) for row in layouts]
        self.batch = batch
        self.lengths = tuple(lengths)
        self._traces = tuple(traces)
        self.captured = captured
        self._visual = visual
        self._shape = shape
        self._bytes_per_value = bytes_per_value

    @cached_property
    def stages(self) -> list[StageReport]:
        """The stages that removed tokens, in order; empty when the budget kept everything."""
        return [self._stage(trace) for trace in self._traces]

    @property
    def images(self) -> int:
        """Images in the batch."""
        return sum(len(row) for row in self.layouts)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens in the batch before pruning."""
        return sum(layout.tokens for row in self.layouts for layout in row)

    @property
    def tokens_per_layer(self) -> list[int]:
        """Visual tokens of the batch that each decoder layer really processed."""
        counts = [self.visual_tokens] * self._shape.layers
        for trace in self._traces:
            counts[trace.layer :] = [sum(trace.after)] * (self._shape.layers - trace.layer)
        return counts

    @property
    def average_tokens(self) -> float:
        """True mean over the decoder layers of the visual tokens of one image; 0 without images."""
        return average_tokens(self.tokens_per_layer) / self.images if self.images else 0.0

    @property
    def prefill_flops(self) -> int:
        """FLOPs of the language model for this prefill, all rows, as `vtprune.costs.prefill_flops` counts them."""
        return prefill_flops(self._shape, self.lengths, batch=self.batch)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of this prompt in all layers, all rows."""
        return kv_bytes(self._shape, self.lengths, batch=self.batch, bytes_per_value=self._bytes_per_value)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {
            "pruner": self.pruner,
            "config": self.config,
            "budget": str(self.budget),
            "positions": self.positions,
            "batch": self.batch,
            "visual_tokens": self.visual_tokens,
            "average_tokens": self.average_tokens,
            "prefill_flops": self.prefill_flops,
            "kv_bytes": self.kv_bytes,
            "stages": [
                {
                    "layer": stage.layer,
                    "before": stage.before,
                    "after": stage.after,
                    "images": [[image.tolist() for image in row] for row in stage.images],
                }
                for stage in self.stages
            ],
        }

    def __repr__(self) -> str:
        stages = ", ".join(f"layer {trace.layer}: {sum(trace.before)} -> {sum(trace.after)}" for trace in self._traces)
        return f"Report({self.pruner}, {self.budget}, positions={self.positions}, {stages or 'nothing removed'})"

    def _stage(self, trace: StageTrace) -> StageReport:
        origin, columns = trace.origin.cpu(), self._visual.cpu().nonzero()[:, 1]
        weights = None if trace.bias is None else trace.bias.cpu().exp()
        kept: list[torch.Tensor] = []
        images: list[list[torch.Tensor]] = []
        places: list[list[torch.Tensor]] = []
        sizes: list[list[torch.Tensor]] = []
        start, first, number = 0, 0, 0
        for row in self.layouts:
            of_row, positions = [], []
            sizes.append([])
            for layout in row:
                count = trace.after[number]
                of_image = origin[start : start + count]
                of_row.append(of_image)
                if weights is not None:
                    sizes[-1].append(weights[start : start + count])
                positions.append(columns[first + of_image])
                start, first, number = start + count, first + layout.tokens, number + 1
            images.append(of_row)
            places.append([layout.places[found] for layout, found in zip(row, of_row, strict=True)])
            kept.append(torch.cat(positions).sort().values if positions else torch.empty(0, dtype=torch.long))
        before, after = sum(trace.before), sum(trace.after)
        return StageReport(trace.layer, before, after, kept, images, places, None if weights is None else sizes)
