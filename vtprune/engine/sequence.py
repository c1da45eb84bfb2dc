"""Which tokens of the padded prompt are present, and what removing some of them does to every tensor beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Tokens:
    """The present tokens of a running prefill: `batch` rows of `length` slots.

    Visual tokens are numbered image after image, in prompt order: image i owns `counts[i]` entries of `slots` and
    `origin`. Slots of an image ascend.

    Args:
        batch: Rows.
        length: Slots of each row.
        row_lengths: Slots of each row that hold a token; the others are fillers at the left end of the row.
        columns: Prompt column that each slot came from, `(batch, length)`; that of a filler slot means nothing.
        valid: `False` for filler slots, `(batch, length)`; `None` when there are none.
        removed: How many tokens of its row, before it in the prompt, are gone, for each slot, `(batch, length)`.
        rows: Row of each image.
        counts: Present tokens of each image.
        slots: Slot of each visual token, counted through the rows (`row * length + slot`).
        origin: Number of each visual token among its image's tokens before any pruning.
        numbers: The same among all visual tokens of the batch.
        bias: Added to the attention logits of each slot as a key, `(batch, length)` fp32; `None` for nothing.
    """

    batch: int
    length: int
    row_lengths: tuple[int, ...]
    columns: torch.Tensor
    valid: torch.Tensor | None
    removed: torch.Tensor | None
    rows: tuple[int, ...]
    counts: tuple[int, ...]
    slots: torch.Tensor
    origin: torch.Tensor
    numbers: torch.Tensor
    bias: torch.Tensor | None = None

    @property
    def offsets(self) -> list[int]:
        """First visual token of each image."""
        offsets, start = [], 0
        for count in self.counts:
            offsets.append(start)
            start += count
        return offsets

    def of_images(self, values: torch.Tensor, images: Sequence[int]) -> torch.Tensor:
        """The entries of a per-visual-token tensor for images of one size, `(images, count, ...)`."""
        count = self.counts[images[0]]
        if len(images) == len(self.counts):
            return values.view(len(images), count, *values.shape[1:])
        offsets = self.offsets
        return torch.stack([values[offsets[image] : offsets[image] + count] for image in images])

    def last_dim(self, values: torch.Tensor) -> torch.Tensor:
        """Entries of the present slots from `(..., batch or 1, prompt length)`."""
        values = values.to(self.columns.device).expand(*values.shape[:-2], self.batch, -1)
        return values.gather(-1, self.columns.expand(*values.shape[:-1], -1))

    def last_but_one_dim(self, values: torch.Tensor) -> torch.Tensor:
        """Entries of the present slots from `(..., batch or 1, prompt length, dim)`."""
        values = values.to(self.columns.device).expand(*values.shape[:-3], self.batch, -1, -1)
        columns = self.columns.unsqueeze(-1)
        return values.gather(-2, columns.expand(*values.shape[:-2], self.length, values.shape[-1]))

    def second_dim(self, values: torch.Tensor) -> torch.Tensor:
        """Entries of the present slots from `(batch or 1, prompt length, ...)`."""
        values = values.to(self.columns.device).expand(self.batch, *values.shape[1:])
        columns = self.columns.view(self.batch, self.length, *[1] * (values.dim() - 2))
        return values.gather(1, columns.expand(-1, -1, *values.shape[2:]))

    def square_mask(self, mask: torch.Tensor, keys: int) -> torch.Tensor:
        """Rows and columns of the present slots from a ready mask `(batch or 1, heads or 1, prompt length, any)`.

        Args:
            mask: Booleans, or an additive mask.
            keys: Columns wanted; with a static cache there are more keys than tokens, and the surplus is masked.
        """
        mask = mask.to(self.columns.device).expand(self.batch, *mask.shape[1:])
        mask = mask.gather(2, self.columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1]))
        mask = self.key_columns(mask)
        blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return torch.nn.functional.pad(mask, (0, keys - self.length), value=blocked) if keys > self.length else mask

    def key_columns(self, mask: torch.Tensor) -> torch.Tensor:
        """Columns of the present slots from a ready mask `(batch or 1, heads or 1, any, prompt length)`."""
        mask = mask.to(self.columns.device).expand(self.batch, *mask.shape[1:])
        mask = mask.gather(3, self.columns[:, None, None, :].expand(-1, *mask.shape[1:3], -1))
        if self.valid is None:
            return mask
        blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return mask.masked_fill(~self.valid[:, None, None, :], blocked)

    def to(self, device: torch.device) -> Tokens:
        """The same on another device (sharded models)."""
        if self.slots.device == device:
            return self
        return replace(
            self,
            columns=self.columns.to(device),
            valid=None if self.valid is None else self.valid.to(device),
            removed=None if self.removed is None else self.removed.to(device),
            slots=self.slots.to(device),
            origin=self.origin.to(device),
            numbers=self.numbers.to(device),
            bias=None if self.bias is None else self.bias.to(device),
        )

    def weighed(self, sizes: torch.Tensor) -> Tokens:
        """The same with the logarithm of each visual token's size, `(visual tokens,)`, on its attention logits."""
        bias = torch.zeros(self.batch, self.length, device=self.slots.device) if self.bias is None else self.bias
        return replace(self, bias=bias.flatten().index_add(0, self.slots, sizes.float().log()).view_as(bias))

    @property
    def texts(self) -> int:
        """The most slots of a row that hold no visual token."""
        visual = [0] * self.batch
        for row, count in zip(self.rows, self.counts, strict=True):
            visual[row] += count
        return self.length - min(visual)


class Left(NamedTuple):
    """What is left of the prompts after the last stage.

    Args:
        columns: Prompt column of each slot, `(batch, slots)`; negative for fillers.
        fillers: Whether there are any.
    """

    columns: torch.Tensor
    fillers: bool

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Training labels of the slots from `(batch, prompt length)`.

        Fillers are neither predicted nor do they predict: the first token of a row has nothing before it.
        """
        columns = self.columns.to(labels.device)
        labels = labels.gather(1, columns.clamp_min(0))
        if not self.fillers:
            return labels
        filler = columns < 0
        return labels.masked_fill(filler | torch.nn.functional.pad(filler[:, :-1], (1, 0), value=False), -100)


def visual_columns(visual: torch.Tensor, total: int) -> torch.Tensor:
    """Flat indices of the `total` true entries of `(batch, length)`, ascending, without asking the device how many.

    Example:
        >>> visual_columns(torch.tensor([[False, True, True], [True, False, False]]), 3).tolist()
        [1, 2, 3]
    """
    flat = visual.flatten()
    rank = flat.cumsum(0) - 1
    found = torch.zeros(total + 1, dtype=torch.long, device=flat.device)
    everything = torch.arange(flat.numel(), device=flat.device)
    return found.scatter_(0, torch.where(flat, rank, total).clamp_max(total), everything)[:total]


def start_tokens(visual: torch.Tensor, rows: Sequence[int], counts: Sequence[int]) -> Tokens:
    """All tokens of the prompt present.

    Args:
        visual: Placeholder positions, `(batch, length)`.
        rows: Row of each image.
        counts: Visual tokens of each image.
    """
    batch, length = visual.shape
    slots = visual_columns(visual, sum(counts))
    return Tokens(
        batch=batch,
        length=length,
        row_lengths=(length,) * batch,
        columns=torch.arange(length, device=visual.device).expand(batch, length),
        valid=None,
        removed=None,
        rows=tuple(rows),
        counts=tuple(counts),
        slots=slots,
        origin=torch.cat([torch.arange(count, device=visual.device) for count in counts]),
        numbers=torch.arange(sum(counts), device=visual.device),
    )


@dataclass(frozen=True)
class Gather:
    """How the slots after a stage come from those before it."""

    before: Tokens
    after: Tokens
    index: torch.Tensor
    """Slot before the stage, within the row, for each slot after it, `(batch, length)`."""

    def states(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(batch, length before, dim)` to `(batch, length after, dim)`.

        Of several streams of states, `(streams, batch, length, dim)` or `(batch, length, streams, dim)`, all.
        """
        if hidden.dim() == 3:
            return hidden.gather(1, self.index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        if hidden.shape[:2] == (self.before.batch, self.before.length):
            gathered: torch.Tensor = self.states(hidden.flatten(2)).unflatten(2, hidden.shape[2:])
            return gathered
        return torch.stack([self.states(stream) for stream in hidden])


def remove(before: Tokens, chosen: torch.Tensor, counts: Sequence[int]) -> Gather:
    """Keeps the chosen visual tokens and everything that is no visual token.

    Args:
        before: The tokens now.
        chosen: Numbers of the visual tokens to keep (as in `before.slots`), ascending, image after image.
        counts: How many of them belong to each image.
    """
    device = chosen.device
    batch, length = before.batch, before.length
    if before.valid is None:
        present = torch.ones(batch * length, dtype=torch.bool, device=device)
    else:
        present = before.valid.flatten().clone()
    keep = present.index_fill(0, before.slots, False)
    kept_slots = before.slots[chosen]
    keep = keep.index_fill(0, kept_slots, True)
    dropped = (present & ~keep).view(batch, length)
    keep = keep.view(batch, length)

    row_lengths = list(before.row_lengths)
    for row, old, new in zip(before.rows, before.counts, counts, strict=True):
        row_lengths[row] -= old - new
    after_length = max(row_lengths)
    uniform = min(row_lengths) == after_length

    rank = keep.cumsum(1) - 1
    if not uniform:
        rank = rank + (after_length - keep.sum(1, keepdim=True))
    # Removed tokens are written to a spare column at the end, which is cut off.
    index = torch.zeros(batch, after_length + 1, dtype=torch.long, device=device)
    everything = torch.arange(length, device=device).expand(batch, length)
    index = index.scatter(1, torch.where(keep, rank, after_length), everything)[:, :after_length].contiguous()

    valid = None
    if not uniform:
        first = after_length - keep.sum(1, keepdim=True)
        valid = torch.arange(after_length, device=device) >= first
    removed_now = dropped.cumsum(1).gather(1, index)
    removed = removed_now if before.removed is None else removed_now + before.removed.gather(1, index)
    row_of_slot = torch.div(kept_slots, length, rounding_mode="floor")
    after = Tokens(
        batch=batch,
        length=after_length,
        row_lengths=tuple(row_lengths),
        columns=before.columns.gather(1, index),
        valid=valid,
        removed=removed,
        rows=before.rows,
        counts=tuple(counts),
        slots=row_of_slot * after_length + rank.flatten()[kept_slots],
        origin=before.origin[chosen],
        numbers=before.numbers[chosen],
        bias=None if before.bias is None else before.bias.gather(1, index),
    )
    return Gather(before, after, index)
