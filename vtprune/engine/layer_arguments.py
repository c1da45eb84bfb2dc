"""What decoder layers are given instead of the decoder's arguments: masks and positions of the present tokens."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention.flex_attention import BlockMask

from vtprune.engine.cache_names import cache_in
from vtprune.engine.cache_state import CachedTokens
from vtprune.engine.sequence import Tokens
from vtprune.engine.static_cache import is_static
from vtprune.engine.taps import implementation
from vtprune.engine.views import gather_block_mask, gather_embeddings, is_causal, weighed_mask
from vtprune.ops.positions import closed_positions

if TYPE_CHECKING:
    from vtprune.engine.run import Run


class LayerArguments:
    """Makes the arguments of one pass.

    Args:
        run: The pass.
        positions: The decoder's `position_ids`, in the form in which it was given them.
    """

    def __init__(self, run: Run, positions: torch.Tensor | None) -> None:
        self._run = run
        self._positions = positions

    def mask(
        self, layer: int, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], cached: CachedTokens
    ) -> Any:
        """The mask of a layer with attention, for queries and keys that are left, in the implementation's form."""
        mask = self._plain_mask(layer, tokens, hidden, kwargs, cached)
        bias = cached.bias_upto(self._run.seen + self._run.length)
        return mask if bias is None else weighed_mask(mask, bias.to(hidden.device), hidden)

    def _plain_mask(
        self, layer: int, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], cached: CachedTokens
    ) -> Any:
        ready = kwargs.get("attention_mask")
        if not self._run.seen and tokens is not None:
            if ready is None and tokens.valid is None:
                return None
            if isinstance(ready, torch.Tensor) and ready.dim() == 4:
                cache = cache_in(kwargs)
                keys = tokens.length if cache is None else cache.get_mask_sizes(tokens.length, layer)[0]
                return tokens.square_mask(ready, keys)
            if isinstance(ready, torch.Tensor) and ready.dim() == 2:
                return self._run.keys(cached)
            if isinstance(ready, BlockMask):
                return gather_block_mask(ready, tokens)
        if tokens is not None and not is_causal(ready, self._run.length):
            raise ValueError(
                "tokens of these images attend to later ones, and in a pruned cache that is not put together again; "
                "pass the whole conversation at once, with an empty cache"
            )
        if self._run.masked_as_cached and ((ready is None and not cached.fillers) or cached is self._run.first_cached):
            return ready
        allowed = self._run.keys(cached)
        allowed = None if allowed is None else allowed.to(hidden.device)
        adapter, cache = self._run.engine.adapter, cache_in(kwargs)
        static = is_static(cache, layer)
        seen = self._run.seen + self._run.length
        if allowed is None and static:
            # Without a mask a single query would be taken to see the empty slots behind it too.
            slots = cached.columns.shape[1] + seen - cached.end
            allowed = torch.ones(self._run.batch, slots, dtype=torch.bool, device=hidden.device)
        columns = None
        if adapter.window(layer) or adapter.chunk(layer):
            columns = cached.upto(seen).to(hidden.device)
            if self._run.allowed is not None:
                left = (self._run.allowed.cumsum(1) == 0).sum(1, keepdim=True).to(hidden.device)
                columns = columns - left
        return adapter.causal_mask(adapter.plane(hidden), allowed, cache, layer, columns)

    def recurrent_mask(self, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        """Which tokens enter the state of a recurrent layer: those that are left, and no padding."""
        ready = kwargs.get("attention_mask")
        if tokens is None or (ready is None and tokens.valid is None):
            return ready
        present = self._run.present(tokens)
        if present is None:
            return None if ready is None else ready.new_ones(self._run.batch, tokens.length)
        return present.to(hidden.device, ready.dtype if isinstance(ready, torch.Tensor) else torch.long)

    def is_packed(self, tokens: Tokens | None) -> bool:
        """Whether the present tokens close up on others that are gone."""
        return tokens is not None and tokens.removed is not None and self._run.engine.positions == "pack"

    def total_shift(self, tokens: Tokens) -> torch.Tensor:
        """How far what comes after the prompt moves up, `(batch, 1)`."""
        assert tokens.removed is not None
        if self._grid_positions is None:
            return tokens.removed[:, -1:]
        return self._closed(tokens).amax(dim=(0, 2)).unsqueeze(1)

    @cached_property
    def _grid_positions(self) -> torch.Tensor | None:
        """Positions with several numbers a token, `(numbers, batch, length)`; `None` where it has one."""
        if self._positions is None or self._positions.dim() != 3:
            return None
        found = self._run.engine.adapter.rotary_positions(self._positions)
        return found.expand(-1, self._run.batch, -1)

    def _closed(self, tokens: Tokens) -> torch.Tensor:
        """How far the present tokens move up when gaps close in such positions, `(numbers, batch, length)`."""
        positions = self._grid_positions
        assert positions is not None
        positions = positions.to(tokens.columns.device)
        left = torch.zeros(self._run.batch, self._run.length + 1, dtype=torch.bool, device=tokens.columns.device)
        columns = (
            tokens.columns if tokens.valid is None else tokens.columns.masked_fill(~tokens.valid, self._run.length)
        )
        left = left.scatter(1, columns, True)[:, : self._run.length]
        return tokens.last_dim(positions - closed_positions(positions, left))

    def position_embeddings(
        self, layer: int, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], past: CachedTokens | None
    ) -> Any:
        """Rotary tables of the present tokens."""
        embeddings = kwargs.get("position_embeddings")
        if embeddings is None:
            return None
        if not self.is_packed(tokens) and (past is None or past.shift is None):
            return embeddings if tokens is None else gather_embeddings(embeddings, tokens)
        positions = self.moved(tokens, hidden, kwargs, past)
        return self._run.engine.adapter.rotary(hidden, positions, layer)

    def moved(
        self, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], past: CachedTokens | None
    ) -> torch.Tensor:
        """Packed positions of the present tokens, `(batch, length)` or `(numbers, batch, length)`."""
        grid = self._grid_positions
        positions = self._plain_positions(hidden, kwargs) if grid is None else grid.to(hidden.device)
        if tokens is not None:
            positions = tokens.last_dim(positions)
            if self.is_packed(tokens):
                assert tokens.removed is not None
                positions = positions - (tokens.removed if grid is None else self._closed(tokens))
        if past is not None and past.shift is not None:
            positions = positions - past.shift.to(hidden.device)
        return positions

    def _plain_positions(self, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """Positions of the prompt as layers or decoder got them, or as a decoder counts without any."""
        found = kwargs.get("position_ids")
        if found is None:
            found = self._positions
        if found is None:
            found = torch.arange(self._run.seen, self._run.seen + self._run.length).unsqueeze(0)
        return found.to(hidden.device)

    def position_ids(
        self, layer: int, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], past: CachedTokens | None
    ) -> torch.Tensor | None:
        """Positions of the present tokens where the layer is given positions."""
        positions: torch.Tensor | None = kwargs.get("position_ids")
        if positions is None:
            return None
        if self._run.engine.adapter.slot_positions:
            first = self._run.cached_before(layer)
            return torch.arange(first, first + hidden.shape[1], device=hidden.device).expand(self._run.batch, -1)
        attention = self._run.engine.attentions[layer]
        if tokens is not None and attention is not None and "flash" in implementation(attention):
            # The rotary tables carry the true positions. Gaps in these would be taken for borders of sequences.
            return torch.arange(self._run.seen, self._run.seen + tokens.length, device=hidden.device).expand(
                self._run.batch, -1
            )
        packed = self.is_packed(tokens) or (past is not None and past.shift is not None)
        if packed and self._grid_positions is None:
            return self.moved(tokens, hidden, kwargs, past)
        return positions if tokens is None else tokens.last_dim(positions)
