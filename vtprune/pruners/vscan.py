"""VScan: a local and a global look at the picture before the language model, and the prompt's look inside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self

import torch

from vtprune.context import Context
from vtprune.layout import ImageLayout
from vtprune.ops.absorb import absorb
from vtprune.ops.checks import check_integer, check_positive, check_share
from vtprune.ops.gather import as_float, split_by, take
from vtprune.ops.topk import stable_topk
from vtprune.ops.windows import spread_over_windows
from vtprune.pruner import Depths, Pruner, Reduction, Signal, check_stages, scale_layers
from vtprune.registry import register


@register
@dataclass(frozen=True)
class VScan(Pruner):
    """Merges all patches into those that the encoder attends to, then keeps those that the last prompt token does.

    Before the language model, on each encoder view with its share of the budget, in proportion to its patches: part of
    the share goes to the highest attention of a shallow encoder layer in every window of the picture, the rest to the
    highest attention of the layer before the last; every other patch is averaged, after the projector, into the kept
    one that it is most like. Newline tokens are kept only when the budget exceeds the patches. In the middle of the
    language model the highest attention of the last prompt token, in the layer that the survivors enter, decides.

    The paper's code loses tokens where the local part is no multiple of the number of windows; here what is left over
    goes to the windows with the highest next attention.

    Args:
        stages: Decoder layers before which tokens are removed: 0 alone, or 0 and one more; `None` stands for the
            paper's 0 and 16 of 32.
        factor: Tokens that the first stage keeps for each one that the second does, at least 1.
        local: Share of the first stage's budget for the windows, in [0, 1]; rounded down.
        window: Side of a window in patches, at least 1; windows at the border may be smaller.
        shallow: Encoder layer that the windows look at, from 0; `None` stands for the paper's 5 of 24.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> VScan().layers, VScan().schedule(576, 32)
        ((0, 16), (96, 32))
    """

    stages: tuple[int, ...] | None = None
    factor: float = 3.0
    local: float = 0.5
    window: int = 6
    shallow: int | None = None

    name = "vscan"
    paper = "VScan, TMLR 2026, arXiv 2505.22654"
    year = 2025
    summary = "Merges patches into those of local and global attention, then prunes by the prompt inside the decoder."
    signals = frozenset({Signal.ENCODER_LAYERS, Signal.NEXT_STATES})
    query_aware = True
    merges = True
    golden = "vscan.npz"
    presets: ClassVar[Mapping[int, int]] = {192: 96, 128: 64, 64: 32}
    preset_layers = (0, 16)

    def __post_init__(self) -> None:
        check_stages(self.stages, owner=self.name)
        if self.stages is not None and (self.stages[0] != 0 or len(self.stages) > 2):
            raise ValueError(f"{self.name}: stages must be 0, or 0 and one layer more, got {self.stages!r}")
        check_positive(self.name, "factor", self.factor)
        if self.factor < 1:
            raise ValueError(f"{self.name}: factor must be at least 1, got {self.factor!r}")
        check_share(self.name, "local", self.local)
        check_integer(self.name, "window", self.window, low=1)
        if self.shallow is not None:
            check_integer(self.name, "shallow", self.shallow, low=0)

    def fit(self, depths: Depths) -> Self:
        """Moves the second stage and the shallow layer to the same relative depth."""
        stages = (0, *scale_layers((16,), depths.decoder, 32)) if self.stages is None else self.stages
        shallow = min(round(5 * depths.encoder / 24), depths.encoder - 1) if self.shallow is None else self.shallow
        return dataclasses.replace(self, stages=stages, shallow=shallow)

    @property
    def layers(self) -> tuple[int, ...]:
        """0, and the layer of the second stage unless there is none."""
        return (0, 16) if self.stages is None else self.stages

    @property
    def encoder_layers(self) -> tuple[int, ...]:
        """The layer that the windows look at, and the one that the whole picture is looked at with."""
        return (5 if self.shallow is None else self.shallow, -2)

    def stage_signals(self, stage: int) -> frozenset[Signal]:
        """The encoder's layers at the first stage, the prompt's attention at the second."""
        return frozenset({Signal.NEXT_STATES if stage else Signal.ENCODER_LAYERS})

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        """`factor` times the budget after the first of two stages."""
        return (*(min(tokens, round(self.factor * keep)) for _ in self.layers[1:]), keep)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Merges at the first stage; keeps the highest attention, best first, at the second."""
        if context.layer:
            best = stable_topk(as_float(context.next_last_token_attention).mean(dim=1), keep)
            return Reduction(best, features=take(context.hidden, best))
        views, shares, separators = context.by_view(keep)
        kept, features = [separators], [take(context.hidden, separators)]
        for index, (view, share) in enumerate(zip(views, shares, strict=True)):
            if share:
                here, others = split_by(self._is_kept(context, index, view, share), share)
                kept.append(view[here])
                features.append(absorb(context.hidden[:, view], here, others)[0])
        return Reduction(torch.cat(kept, dim=1), features=torch.cat(features, dim=1))

    def _is_kept(self, context: Context, index: int, view: torch.Tensor, share: int) -> torch.Tensor:
        """Which patches of a view stay, `(batch, patches)`, `share` in each row."""
        shallow, deep = (
            as_float(context.encoder_layer(number).attention[:, :, view]).mean(dim=1) for number in range(2)
        )
        # Copied without waiting: the numbers follow from the layout alone.
        windows = torch.tensor(_windows(context.layout, self.window)[index]).to(view.device, non_blocking=True)
        local = spread_over_windows(shallow, windows, int(share * self.local))
        everywhere = stable_topk(deep.scatter(1, local, -torch.inf), share - local.shape[1])
        flags = torch.zeros_like(deep, dtype=torch.bool)
        return flags.scatter(1, local, True).scatter(1, everywhere, True)


@lru_cache(maxsize=64)
def _windows(layout: ImageLayout, side: int) -> tuple[tuple[int, ...], ...]:
    """For each encoder view the numbers of the windows that its tokens lie in, in the order of the tokens."""
    width = layout.view_shape[1]
    found: list[list[int]] = [[] for _ in range(layout.views)]
    for patch in layout.patches:
        if patch >= 0:
            view, place = divmod(patch, layout.patches_per_view)
            found[view].append(place // width // side * width + place % width // side)
    return tuple(tuple(numbers) for numbers in found)
