"""Chosen query rows of a layer, from the states that its attention function was given."""

from __future__ import annotations

import torch

from vtprune.engine.taps import AttentionStates
from vtprune.ops.attention import QueryRows


def query_rows(
    states: AttentionStates,
    slots: torch.Tensor,
    first: int,
    present: torch.Tensor | None,
    *,
    samples: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
) -> QueryRows:
    """Query slots of some samples, which see what the layer's own mask shows them, or all before them without one.

    Args:
        states: What the layer's attention function was given.
        slots: Query rows, `(batch, rows)`.
        first: Keys that were cached before the first slot.
        present: Keys that hold a token, `(samples, keys)`, where the mask in `states` does not tell; `None` for all.
        samples: Rows of the states, `(batch,)`; `None` for all in order.
        targets: Keys whose attention is asked for, `(batch, any)`; `None` for all.
    """
    mask = states.mask
    has_mask = isinstance(mask, torch.Tensor) and mask.dim() == 4
    return QueryRows(
        states.queries,
        states.keys,
        states.scaling,
        slots=slots,
        samples=samples,
        mask=mask if has_mask else None,
        causal=True,
        first=first,
        present=present,
        targets=targets,
    )
