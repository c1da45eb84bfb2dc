"""Attention of chosen query rows, from the states that a layer's attention function was given."""

from __future__ import annotations

import torch

from vtprune.engine.taps import AttentionStates
from vtprune.ops.attention import attention_rows


def rows_of(states: AttentionStates, rows: torch.Tensor) -> AttentionStates:
    """The states of some rows of the batch, `(any,)`, each as often as it is named."""
    mask = states.mask
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        mask = mask.expand(states.queries.shape[0], -1, -1, -1)[rows]
    return AttentionStates(states.queries[rows], states.keys[rows], states.scaling, mask)


def attention_from(
    states: AttentionStates, slots: torch.Tensor, first: int, present: torch.Tensor | None
) -> torch.Tensor:
    """Attention of chosen query slots over all keys, `(batch, heads, rows, keys)`, probabilities.

    Args:
        states: What the layer's attention function was given.
        slots: Query rows of each sample, `(batch, rows)`.
        first: Keys that were cached before the first slot.
        present: Keys that hold a token, `(batch, keys)`, where the mask in `states` does not tell; `None` for all.
    """
    queries = states.queries
    index = slots[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[-1])
    chosen = queries.gather(2, index)
    mask = states.mask
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        allowed = mask.expand(chosen.shape[0], -1, -1, -1)
        allowed = allowed.gather(2, slots[:, None, :, None].expand(-1, allowed.shape[1], -1, allowed.shape[-1]))
        return attention_rows(chosen, states.keys, states.scaling, allowed)
    behind = torch.arange(states.keys.shape[2], device=slots.device) <= (slots + first).unsqueeze(-1)
    if present is not None:
        spare = behind.shape[-1] - present.shape[-1]
        behind = behind & torch.nn.functional.pad(present, (0, spare), value=False).unsqueeze(1)
    return attention_rows(chosen, states.keys, states.scaling, behind.unsqueeze(1))
