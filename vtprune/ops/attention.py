"""Attention probabilities of a few query rows, recomputed from states: O(rows x keys), never the whole map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vtprune.kernels import use_kernels
from vtprune.ops.host import is_at_hand

# Query rows whose attention is held at once where no kernel sums it up.
_ROWS = 128
# Keys that a product of matrices takes at a time, or a multiple.
_TILE = 64


@dataclass(frozen=True)
class QueryRows:
    """Chosen query rows of a layer, and what they may attend to.

    Args:
        queries: `(samples, heads, length, head_dim)`.
        keys: `(samples, kv_heads, tokens, head_dim)`; grouped-query models have fewer key heads.
        scaling: Factor on the dot products.
        slots: The rows among `length`, `(batch, rows)`; `None` for all.
        samples: Which of the samples each of the batch looks at, `(batch,)`; `None` for one after the other.
        mask: `(samples or 1, heads or 1, length or 1, tokens or 1)`, booleans that allow or numbers that are added.
        causal: Without a mask, rows see no key behind their own.
        first: Keys before that of the first row, where `causal`.
        present: Keys that are there, `(samples, any)`, where `causal`; keys beyond its end are not. `None` for all.
        targets: Keys whose attention is asked for, `(batch, any)`; `None` for all.

    Raises:
        ValueError: The number of heads is no multiple of the number of key heads.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    scaling: float
    slots: torch.Tensor | None = None
    samples: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    causal: bool = False
    first: int = 0
    present: torch.Tensor | None = None
    targets: torch.Tensor | None = None

    def __post_init__(self) -> None:
        heads, kv_heads = self.queries.shape[1], self.keys.shape[1]
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads do not divide among {kv_heads} key heads")

    @property
    def batch(self) -> int:
        """How many sets of rows there are."""
        return len(self.queries if self.samples is None else self.samples)

    @property
    def count(self) -> int:
        """Rows of each set."""
        return self.queries.shape[2] if self.slots is None else self.slots.shape[1]

    @property
    def for_kernel(self) -> bool:
        """Whether a kernel takes these rows: in half precision, where the torch code converts all keys first."""
        if not use_kernels(self.queries) or self.queries.dtype != self.keys.dtype:
            return False
        # Kernels have no gradient.
        if torch.is_grad_enabled() and (self.queries.requires_grad or self.keys.requires_grad):
            return False
        from vtprune.kernels.attention import WIDEST_HEAD

        return self.queries.dtype in (torch.bfloat16, torch.float16) and self.queries.shape[3] <= WIDEST_HEAD


def attention_of(rows: QueryRows) -> torch.Tensor:
    """Attention probabilities of chosen query rows, in fp32, `(batch, heads, rows, targets)`.

    Example:
        >>> states = torch.zeros(1, 1, 2, 8)
        >>> attention_of(QueryRows(states, states, 1.0, slots=torch.tensor([[0]]), causal=True)).tolist()
        [[[[1.0, 0.0]]]]
    """
    if rows.for_kernel:
        from vtprune.kernels import attention as kernels

        return kernels.attention_of(rows)
    attention = _attention_of(_in_order(rows), 0, rows.count)
    attention = torch.nn.functional.pad(attention, (0, rows.keys.shape[2] - attention.shape[3]))
    targets = rows.targets
    if targets is None:
        return attention
    if is_at_hand(targets) and targets.numel():
        # Most often they are the tokens of a picture, which stand side by side.
        first = int(targets[0, 0])
        if bool((targets == torch.arange(first, first + targets.shape[1])).all()):
            return attention[..., first : first + targets.shape[1]]
    return attention.gather(3, targets[:, None, None, :].expand(-1, *attention.shape[1:3], -1))


def strongest_received(rows: QueryRows, counted: torch.Tensor) -> torch.Tensor:
    """Attention of the strongest head for each pair, summed over groups of rows, `(batch, groups, targets)`, in fp32.

    Args:
        rows: The query rows.
        counted: Rows of each group, `(batch, groups, rows)` booleans.

    Example:
        >>> states = torch.zeros(1, 2, 3, 8)
        >>> groups = torch.tensor([[[True, True, True], [False, False, True]]])
        >>> strongest_received(QueryRows(states, states, 1.0), groups)[0, :, 0].tolist()
        [1.0, 0.3333333432674408]
    """
    if rows.for_kernel:
        from vtprune.kernels import attention as kernels

        return kernels.strongest_received(rows, counted)
    rows = _in_order(rows)
    rows = replace(rows, keys=rows.keys.float())
    found = torch.zeros(*counted.shape[:2], rows.keys.shape[2], device=counted.device)
    for start in range(0, rows.count, _ROWS):
        strongest = _attention_of(rows, start, start + _ROWS).amax(dim=1)
        for group, here in enumerate(counted[:, :, start : start + _ROWS].unbind(dim=1)):
            if is_at_hand(here) and not here.any():
                continue
            some = not is_at_hand(here) or not here.all()
            part = strongest.masked_fill(~here.unsqueeze(-1), 0) if some else strongest
            found[:, group, : part.shape[2]] += part.sum(dim=1)
    targets = rows.targets
    return found if targets is None else found.gather(2, targets.unsqueeze(1).expand(-1, found.shape[1], -1))


def attention_rows(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention probabilities of the given query rows over all keys, in fp32.

    Args:
        queries: `(batch, heads, rows, head_dim)`.
        keys: `(batch, kv_heads, tokens, head_dim)`; grouped-query models have fewer key heads.
        scaling: Factor on the dot products.
        allowed: Booleans that broadcast to `(batch, heads, rows, tokens)`, or an additive mask of that shape.

    Returns:
        `(batch, heads, rows, tokens)`.

    Raises:
        ValueError: The number of heads is no multiple of the number of key heads.

    Example:
        >>> attention_rows(torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 5, 8), 1.0).shape
        torch.Size([1, 4, 1, 5])
    """
    return attention_of(QueryRows(queries, keys, scaling, mask=_four(allowed)))


def received_attention(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, allowed: torch.Tensor | None = None, chunk: int = 256
) -> torch.Tensor:
    """Sum over all query rows of the attention that each key receives, `(batch, heads, tokens)`, in fp32.

    Rows are taken `chunk` at a time, so that memory stays at `batch x heads x chunk x tokens`.

    Args:
        queries: `(batch, heads, rows, head_dim)`.
        keys: `(batch, kv_heads, tokens, head_dim)`.
        scaling: Factor on the dot products.
        allowed: A mask as for `attention_rows`. A row counts only where it may attend to itself: others are padding.
        chunk: Rows at a time.

    Example:
        >>> received_attention(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 1.0)[0, 0].sum().item()
        3.0
    """
    rows = QueryRows(queries, keys, scaling, mask=_four(allowed))
    present = None if rows.mask is None else _own(rows.mask, queries.shape[2])
    if rows.for_kernel:
        from vtprune.kernels import attention as kernels

        return kernels.received(rows, present)
    total = torch.zeros(queries.shape[0], queries.shape[1], keys.shape[2], device=keys.device)
    for start in range(0, queries.shape[2], chunk):
        part = _attention_of(rows, start, start + chunk)
        if present is not None:
            part = part * present[:, :, start : start + chunk, None]
        total = total + part.sum(dim=2)
    return total


def mean_received_attention(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, chunk: int = 256
) -> torch.Tensor:
    """Mean over all query rows of the attention that each key receives, `(batch, heads, tokens)`, in fp32.

    Example:
        >>> mean_received_attention(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 1.0)[0, 0].tolist()
        [0.3333333432674408, 0.3333333432674408, 0.3333333432674408]
    """
    return received_attention(queries, keys, scaling, chunk=chunk) / queries.shape[2]


def _own(allowed: torch.Tensor, rows: int) -> torch.Tensor:
    """Whether each row may attend to itself, `(batch, heads or 1, rows)`."""
    own = allowed[:, :, 0, :rows] if allowed.shape[2] == 1 else allowed.diagonal(dim1=2, dim2=3)
    return own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2


def _four(allowed: torch.Tensor | None) -> torch.Tensor | None:
    return None if allowed is None else allowed[(None,) * (4 - allowed.dim())]


def _in_order(rows: QueryRows) -> QueryRows:
    """The same with one sample after the other."""
    samples, mask, present = rows.samples, rows.mask, rows.present
    if samples is None:
        return rows
    if is_at_hand(samples) and torch.equal(samples, torch.arange(len(rows.queries))):
        return replace(rows, samples=None)
    return replace(
        rows,
        queries=rows.queries[samples],
        keys=rows.keys[samples],
        mask=None if mask is None else mask.expand(len(rows.queries), -1, -1, -1)[samples],
        present=None if present is None else present[samples],
        samples=None,
    )


def _attention_of(rows: QueryRows, start: int, stop: int) -> torch.Tensor:
    """Attention of some of the rows, of samples in order, to all keys up to the last that any of them sees."""
    queries, keys, mask, present = rows.queries, rows.keys, rows.mask, rows.present
    if rows.slots is None:
        slots = torch.arange(rows.count, device=keys.device).unsqueeze(0)[:, start:stop]
        queries = queries[:, :, start:stop]
        mask = mask if mask is None or mask.shape[2] == 1 else mask[:, :, start:stop]
    else:
        slots = rows.slots[:, start:stop]
        queries = _at(queries, slots)
        mask = mask if mask is None or mask.shape[2] == 1 else _at(mask.expand(len(slots), -1, -1, -1), slots)
    seen, shown = keys.shape[2], 0
    if mask is None and rows.causal:
        ends = slots + rows.first
        seen, shown = _bounds(ends, seen, present)
        mask = torch.arange(shown, seen, device=keys.device) <= ends.unsqueeze(-1)
        if present is not None:
            spare = max(0, seen - present.shape[1])
            mask = mask & torch.nn.functional.pad(present, (0, spare), value=False)[:, None, shown:seen]
        mask = mask.unsqueeze(1)
    return _softmax_rows(queries, keys[:, :, :seen], rows.scaling, mask, shown)


def _bounds(ends: torch.Tensor, count: int, present: torch.Tensor | None) -> tuple[int, int]:
    """How many of `count` keys are to be looked at for rows that see those up to their ends; how many all rows see."""
    if not is_at_hand(ends) or not ends.numel():
        return count, 0
    lowest, highest = (int(end) for end in ends.aminmax())
    # Of a row that sees nothing all keys count alike.
    if present is not None and not (present.shape[1] > highest and present[:, : highest + 1].all()):
        return count, 0
    # Whole tiles, so that no row's sums depend on what the others see.
    return min(count, -(-(highest + 1) // _TILE) * _TILE), min(count, lowest + 1)


def _at(states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Rows `(batch, any)` of states `(batch, heads, rows, dim)`."""
    picture = torch.arange(len(slots), device=slots.device).unsqueeze(1)
    return states.transpose(1, 2)[picture, slots].transpose(1, 2)


def _softmax_rows(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, allowed: torch.Tensor | None, shown: int
) -> torch.Tensor:
    """Attention of rows to keys; `allowed` is about all keys but the first `shown`, which every row sees."""
    batch, heads, rows, dim = queries.shape
    kv_heads = keys.shape[1]
    grouped = queries.reshape(batch, kv_heads, heads // kv_heads * rows, dim)
    logits = torch.matmul(grouped.float(), keys.float().transpose(-1, -2)).mul_(scaling)
    logits = logits.view(batch, heads, rows, -1)
    if allowed is not None:
        if allowed.dtype == torch.bool:
            logits[..., shown:].masked_fill_(~allowed, torch.finfo(logits.dtype).min)
        else:
            logits += allowed.float()
    return logits.softmax(dim=-1)
