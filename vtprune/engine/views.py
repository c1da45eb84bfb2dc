"""What decoder layers get instead of the decoder's own arguments, and what those tell of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from vtprune.engine.cache_state import CacheState
from vtprune.engine.sequence import Tokens

_OWN = frozenset({"attention_mask", "position_embeddings", "position_ids", "cache_position"})
"""Arguments of layers that have ways of their own."""


@dataclass(frozen=True)
class View:
    """What the layers from a boundary on get instead of the arguments that the decoder hands to all layers.

    Args:
        attention_mask: Mask over the present tokens.
        position_embeddings: Rotary tables of the present tokens.
        position_ids: Positions of the present tokens, or a gapless stand-in where the tables carry the true ones.
        replaced: The decoder's own arguments, kept so that their identity stays a valid key.
    """

    attention_mask: Any
    position_embeddings: Any
    position_ids: torch.Tensor | None
    replaced: tuple[Any, ...]

    def replaces(self, kwargs: dict[str, Any]) -> bool:
        """Whether this was made for a layer that was handed the same arguments."""
        mask, embeddings, positions = self.replaced
        return (
            kwargs.get("attention_mask") is mask
            and kwargs.get("position_embeddings") is embeddings
            and kwargs.get("position_ids") is positions
        )

    def swap_into(self, kwargs: dict[str, Any]) -> None:
        """Puts these arguments in the place of a layer's own."""
        kwargs["attention_mask"] = self.attention_mask
        if "position_embeddings" in kwargs:
            kwargs["position_embeddings"] = self.position_embeddings
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = self.position_ids


def weighed_mask(mask: torch.Tensor | None, bias: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """An additive mask with `bias` on every key.

    Args:
        mask: Booleans or an additive mask, `(batch, heads or 1, rows, keys)`; `None` for a causal one.
        bias: `(batch, slots)`; keys beyond them get nothing.
        hidden: States that enter the layer, `(batch, rows, dim)`.
    """
    rows = hidden.shape[1]
    if mask is None:
        slots = torch.arange(bias.shape[1], device=hidden.device)
        mask = (slots <= slots[-rows:].unsqueeze(1))[None, None]
    if mask.dtype == torch.bool:
        lowest = torch.finfo(hidden.dtype).min
        mask = torch.zeros(mask.shape, dtype=hidden.dtype, device=mask.device).masked_fill(~mask, lowest)
    bias = torch.nn.functional.pad(bias, (0, mask.shape[-1] - bias.shape[1]))
    return mask + bias[:, None, None, :].to(mask.dtype)


def gather_embeddings(embeddings: Any, tokens: Tokens) -> Any:
    """Gathers tensors `(..., length, dim)` in any nesting of tuples and dictionaries."""
    if isinstance(embeddings, torch.Tensor):
        return tokens.to(embeddings.device).last_but_one_dim(embeddings)
    if isinstance(embeddings, dict):
        return {name: gather_embeddings(value, tokens) for name, value in embeddings.items()}
    if isinstance(embeddings, tuple | list):
        return type(embeddings)(gather_embeddings(value, tokens) for value in embeddings)
    return embeddings


def gather_others(kwargs: Mapping[str, Any], tokens: Tokens, length: int) -> dict[str, Any]:
    """Gathers whatever else a layer is given for each token of the prompt: tensors `(batch or 1, length, ...)`."""
    return {
        name: tokens.to(value.device).second_dim(value)
        for name, value in kwargs.items()
        if name not in _OWN
        and isinstance(value, torch.Tensor)
        and value.dim() >= 2
        and value.shape[1] == length
        and value.shape[0] in (1, tokens.batch)
    }


def gather_block_mask(mask: BlockMask, tokens: Tokens) -> BlockMask:
    """The mask of flex attention over the present tokens, from that over all tokens of the prompt."""
    inner, columns, valid = mask.mask_mod, tokens.columns.contiguous(), tokens.valid

    def present(batch: Any, head: Any, query: Any, key: Any) -> Any:
        allowed = inner(batch, head, columns[batch, query], columns[batch, key])
        return allowed if valid is None else allowed & valid[batch, key]

    return create_block_mask(present, tokens.batch, None, tokens.length, tokens.length, device=str(columns.device))


def is_causal(mask: Any, length: int) -> bool:
    """Whether no token attends to a later one in a ready mask over earlier and these `length` tokens; asks the device.

    A mask that is not there or not four-dimensional is causal.
    """
    if isinstance(mask, BlockMask):
        batch, _, rows, columns = mask.shape
        mask = create_mask(mask.mask_mod, batch, 1, rows, columns, device=str(mask.kv_indices.device))
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        return True
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    columns_of = torch.arange(allowed.shape[-1], device=allowed.device)
    last = (allowed[:, 0, -length:] * columns_of).amax(dim=-1)
    before = torch.arange(length, device=allowed.device) - (length - 1)
    return not bool((last > last[:, -1:] + before).any())


def allowed_columns(mask: Any, state: CacheState, seen: int, length: int) -> torch.Tensor | None:
    """Which prompt columns, old and new, hold real tokens, `(batch, seen + length)`; `None` without padding.

    A ready four-dimensional mask (static caches) tells this in its last row for a first prefill; later it does not
    reach back over removed columns, and what the first prefill told still holds.
    """
    if isinstance(mask, dict):
        # A sliding window hides columns that hold tokens.
        full = [part for kind, part in mask.items() if "sliding" not in kind and "chunked" not in kind]
        mask = next((part for part in full if isinstance(part, torch.Tensor)), None)
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape[1] >= seen + length:
        return mask[:, : seen + length].bool()
    if isinstance(mask, torch.Tensor) and mask.dim() == 4 and not seen:
        last = mask[:, 0, -1, :length]
        return last if last.dtype == torch.bool else last == 0
    if state.padding is None:
        return None
    return torch.nn.functional.pad(state.padding, (0, seen + length - state.padding.shape[1]), value=True)
