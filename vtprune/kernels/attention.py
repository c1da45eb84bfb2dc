"""Attention of chosen query rows by tiles: as it is, or summed up for each key without the whole map in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from vtprune.ops.attention import QueryRows

# Width of a head that fits a tile.
WIDEST_HEAD = 256
# What stands for a masked logit in the torch code: a row that sees nothing comes out uniform.
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_OPEN = tl.constexpr(0)
_CAUSAL = tl.constexpr(1)
_BOOLEAN = tl.constexpr(2)
_ADDITIVE = tl.constexpr(3)
# Rows and keys of a tile.
_TILE = 64
# What differs from prompt to prompt, for which a kernel is not to be compiled anew.
_SIZES = ["count_rows", "count_keys", "count_targets", "first", "width"]
_SIZES += [
    "stride_slots",
    "stride_present",
    "stride_targets",
    "stride_mask_batch",
    "stride_mask_head",
    "stride_mask_row",
]


@triton.jit  # type: ignore[untyped-decorator]
def _tile(  # type: ignore[no-untyped-def]
    states, offsets, inside, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, WIDEN: tl.constexpr
):
    dims = tl.arange(0, BLOCK_DIM)
    mask = inside[:, None]
    if DIM != BLOCK_DIM:
        mask = mask & (dims[None, :] < DIM)
    tile = tl.load(states + offsets[:, None] + dims[None, :], mask=mask, other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def _listed(numbers, inside, start, LISTED: tl.constexpr):  # type: ignore[no-untyped-def]
    found = tl.where(inside, numbers, 0).to(tl.int64)
    if LISTED:
        found = tl.load(start + numbers, mask=inside, other=0)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _limit(row_ends, count_keys, MODE: tl.constexpr):  # type: ignore[no-untyped-def]
    limit = count_keys
    if MODE == _CAUSAL:
        limit = tl.minimum(count_keys, (tl.max(row_ends, axis=0) + 1).to(tl.int32))
    return limit


@triton.jit  # type: ignore[untyped-decorator]
def _logits(  # type: ignore[no-untyped-def]
    query,
    key,
    scaling,
    row_ends,
    key_slots,
    key_inside,
    present,
    width,
    mask_lines,
    stride_mask_key,
    MODE: tl.constexpr,
    PRESENT: tl.constexpr,
):
    logits = tl.dot(query, tl.trans(key)) * scaling
    if MODE == _CAUSAL:
        seen = key_slots[None, :] <= row_ends[:, None]
        if PRESENT:
            there = tl.load(present + key_slots, mask=key_inside & (key_slots < width), other=0)
            seen = seen & (there != 0)[None, :]
        logits = tl.where(seen, logits, _LOWEST)
    if MODE >= _BOOLEAN:
        entries = tl.load(mask_lines[:, None] + key_slots[None, :] * stride_mask_key, mask=key_inside[None, :], other=0)
        if MODE == _BOOLEAN:
            logits = tl.where(entries != 0, logits, _LOWEST)
        else:
            logits += entries.to(tl.float32)
    return tl.where(key_inside[None, :], logits, float("-inf"))


@triton.jit
def _base(peak):  # type: ignore[no-untyped-def]
    # Where an additive mask has shut every key so far, the highest logit is minus infinity.
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def _statistics_kernel(  # type: ignore[no-untyped-def]
    queries,
    keys,
    samples,
    slots,
    present,
    mask,
    scaling,
    heads,
    group,
    count_rows,
    count_keys,
    first,
    width,
    stride_q_batch,
    stride_q_head,
    stride_q_row,
    stride_k_batch,
    stride_k_head,
    stride_k_row,
    stride_slots,
    stride_present,
    stride_mask_batch,
    stride_mask_head,
    stride_mask_row,
    stride_mask_key,
    peaks,
    shares,
    MODE: tl.constexpr,
    PRESENT: tl.constexpr,
    SAMPLED: tl.constexpr,
    SLOTTED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    picture = tl.program_id(2).to(tl.int64)
    sample = picture
    if SAMPLED:
        sample = tl.load(samples + picture)
    present += sample * stride_present
    slots += picture * stride_slots
    head = tl.program_id(1)
    far = head.to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_inside = rows < count_rows
    row_slots = _listed(rows, row_inside, slots, SLOTTED)
    queries += sample * stride_q_batch + far * stride_q_head
    keys += sample * stride_k_batch + (far // group) * stride_k_head
    mask_lines = mask + sample * stride_mask_batch + far * stride_mask_head + row_slots * stride_mask_row
    query = _tile(queries, row_slots * stride_q_row, row_inside, DIM, BLOCK_DIM, WIDEN)
    peak = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    for start in range(0, _limit(row_slots + first, count_keys, MODE), KEYS):
        key_slots = (start + tl.arange(0, KEYS)).to(tl.int64)
        key_inside = key_slots < count_keys
        key = _tile(keys, key_slots * stride_k_row, key_inside, DIM, BLOCK_DIM, WIDEN)
        logits = _logits(
            query,
            key,
            scaling,
            row_slots + first,
            key_slots,
            key_inside,
            present,
            width,
            mask_lines,
            stride_mask_key,
            MODE,
            PRESENT,
        )
        highest = tl.maximum(peak, tl.max(logits, axis=1))
        base = _base(highest)
        total = total * tl.exp(peak - base) + tl.sum(tl.exp(logits - base[:, None]), axis=1)
        peak = highest
    place = (picture * heads + head) * count_rows + rows
    tl.store(peaks + place, _base(peak), mask=row_inside)
    tl.store(shares + place, 1.0 / total, mask=row_inside)


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def _strongest_kernel(  # type: ignore[no-untyped-def]
    queries,
    keys,
    samples,
    slots,
    present,
    mask,
    scaling,
    heads,
    group,
    count_rows,
    count_keys,
    first,
    width,
    stride_q_batch,
    stride_q_head,
    stride_q_row,
    stride_k_batch,
    stride_k_head,
    stride_k_row,
    stride_slots,
    stride_present,
    stride_mask_batch,
    stride_mask_head,
    stride_mask_row,
    stride_mask_key,
    peaks,
    shares,
    counted,
    targets,
    sums,
    count_targets,
    stride_targets,
    MODE: tl.constexpr,
    PRESENT: tl.constexpr,
    SAMPLED: tl.constexpr,
    SLOTTED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    TARGETED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    picture = tl.program_id(2).to(tl.int64)
    sample = picture
    if SAMPLED:
        sample = tl.load(samples + picture)
    present += sample * stride_present
    slots += picture * stride_slots
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row_inside = rows < count_rows
    row_slots = _listed(rows, row_inside, slots, SLOTTED)
    numbers = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    key_inside = numbers < count_targets
    key_slots = _listed(numbers, key_inside, targets + picture * stride_targets, TARGETED)
    queries += sample * stride_q_batch
    keys += sample * stride_k_batch
    mask_lines = mask + sample * stride_mask_batch + row_slots * stride_mask_row
    heads_here = heads
    if MODE == _CAUSAL:
        # Keys behind all rows of the tile receive nothing.
        nearest = tl.min(tl.where(key_inside, key_slots, count_keys), axis=0)
        heads_here = tl.where(nearest < _limit(row_slots + first, count_keys, MODE), heads, 0)
    strongest = tl.zeros((ROWS, KEYS), dtype=tl.float32)
    for head in range(heads_here):
        far = tl.cast(head, tl.int64)
        query = _tile(queries, far * stride_q_head + row_slots * stride_q_row, row_inside, DIM, BLOCK_DIM, WIDEN)
        key = _tile(keys, (far // group) * stride_k_head + key_slots * stride_k_row, key_inside, DIM, BLOCK_DIM, WIDEN)
        logits = _logits(
            query,
            key,
            scaling,
            row_slots + first,
            key_slots,
            key_inside,
            present,
            width,
            mask_lines + far * stride_mask_head,
            stride_mask_key,
            MODE,
            PRESENT,
        )
        place = (picture * heads + far) * count_rows + rows
        peak = tl.load(peaks + place, mask=row_inside, other=0.0)
        share = tl.load(shares + place, mask=row_inside, other=0.0)
        strongest = tl.maximum(strongest, tl.exp(logits - peak[:, None]) * share[:, None])
    for part in tl.static_range(GROUPS):
        counts = tl.load(counted + (picture * GROUPS + part) * count_rows + rows, mask=row_inside, other=0)
        total = tl.sum(tl.where((counts != 0)[:, None], strongest, 0.0), axis=0)
        line = (picture * tl.num_programs(1) + tl.program_id(1)) * GROUPS + part
        tl.store(sums + line * count_targets + numbers, total, mask=key_inside)


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def _received_kernel(  # type: ignore[no-untyped-def]
    queries,
    keys,
    samples,
    slots,
    present,
    mask,
    scaling,
    heads,
    group,
    count_rows,
    count_keys,
    first,
    width,
    stride_q_batch,
    stride_q_head,
    stride_q_row,
    stride_k_batch,
    stride_k_head,
    stride_k_row,
    stride_slots,
    stride_present,
    stride_mask_batch,
    stride_mask_head,
    stride_mask_row,
    stride_mask_key,
    peaks,
    shares,
    counted,
    received,
    stride_counted_batch,
    stride_counted_head,
    stride_counted_row,
    MODE: tl.constexpr,
    PRESENT: tl.constexpr,
    SAMPLED: tl.constexpr,
    SLOTTED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    COUNTED: tl.constexpr,
):
    picture = tl.program_id(2).to(tl.int64)
    sample = picture
    if SAMPLED:
        sample = tl.load(samples + picture)
    present += sample * stride_present
    slots += picture * stride_slots
    head = tl.program_id(1)
    far = head.to(tl.int64)
    key_slots = (tl.program_id(0) * KEYS + tl.arange(0, KEYS)).to(tl.int64)
    key_inside = key_slots < count_keys
    queries += sample * stride_q_batch + far * stride_q_head
    keys += sample * stride_k_batch + (far // group) * stride_k_head
    mask += sample * stride_mask_batch + far * stride_mask_head
    counted += picture * stride_counted_batch + far * stride_counted_head
    key = _tile(keys, key_slots * stride_k_row, key_inside, DIM, BLOCK_DIM, WIDEN)
    total = tl.zeros((KEYS,), dtype=tl.float32)
    for start in range(0, count_rows, ROWS):
        rows = start + tl.arange(0, ROWS)
        row_inside = rows < count_rows
        row_slots = _listed(rows, row_inside, slots, SLOTTED)
        query = _tile(queries, row_slots * stride_q_row, row_inside, DIM, BLOCK_DIM, WIDEN)
        logits = _logits(
            query,
            key,
            scaling,
            row_slots + first,
            key_slots,
            key_inside,
            present,
            width,
            mask + row_slots * stride_mask_row,
            stride_mask_key,
            MODE,
            PRESENT,
        )
        place = (picture * heads + head) * count_rows + rows
        peak = tl.load(peaks + place, mask=row_inside, other=0.0)
        share = tl.load(shares + place, mask=row_inside, other=0.0)
        counts = row_inside
        if COUNTED:
            counts = tl.load(counted + rows.to(tl.int64) * stride_counted_row, mask=row_inside, other=0) != 0
        attention = tl.exp(logits - peak[:, None]) * share[:, None]
        total += tl.sum(tl.where(counts[:, None], attention, 0.0), axis=0)
    tl.store(received + (picture * heads + head) * count_keys + key_slots, total, mask=key_inside)


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def _rows_kernel(  # type: ignore[no-untyped-def]
    queries,
    keys,
    samples,
    slots,
    present,
    mask,
    scaling,
    heads,
    group,
    count_rows,
    count_keys,
    first,
    width,
    stride_q_batch,
    stride_q_head,
    stride_q_row,
    stride_k_batch,
    stride_k_head,
    stride_k_row,
    stride_slots,
    stride_present,
    stride_mask_batch,
    stride_mask_head,
    stride_mask_row,
    stride_mask_key,
    targets,
    every,
    attention,
    count_targets,
    stride_targets,
    MODE: tl.constexpr,
    PRESENT: tl.constexpr,
    SAMPLED: tl.constexpr,
    SLOTTED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    TARGETED: tl.constexpr,
):
    picture = tl.program_id(2).to(tl.int64)
    sample = picture
    if SAMPLED:
        sample = tl.load(samples + picture)
    present += sample * stride_present
    slots += picture * stride_slots
    # The query heads that share a key head stand below one another, so that its keys are read once.
    lines = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_inside = lines < group * count_rows
    head = (tl.program_id(1) * group + lines // count_rows).to(tl.int64)
    rows = lines % count_rows
    row_slots = _listed(rows, row_inside, slots, SLOTTED)
    queries += sample * stride_q_batch
    keys += sample * stride_k_batch + tl.program_id(1).to(tl.int64) * stride_k_head
    mask_lines = mask + sample * stride_mask_batch + head * stride_mask_head + row_slots * stride_mask_row
    query = _tile(queries, head * stride_q_head + row_slots * stride_q_row, row_inside, DIM, BLOCK_DIM, WIDEN)
    place = (picture * heads + head) * count_rows + rows
    limit = _limit(row_slots + first, count_keys, MODE)
    peak = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    for start in range(0, limit, KEYS):
        key_slots = (start + tl.arange(0, KEYS)).to(tl.int64)
        key_inside = key_slots < count_keys
        key = _tile(keys, key_slots * stride_k_row, key_inside, DIM, BLOCK_DIM, WIDEN)
        logits = _logits(
            query,
            key,
            scaling,
            row_slots + first,
            key_slots,
            key_inside,
            present,
            width,
            mask_lines,
            stride_mask_key,
            MODE,
            PRESENT,
        )
        highest = tl.maximum(peak, tl.max(logits, axis=1))
        base = _base(highest)
        total = total * tl.exp(peak - base) + tl.sum(tl.exp(logits - base[:, None]), axis=1)
        peak = highest
        inside = row_inside[:, None] & key_inside[None, :]
        tl.store(every + place[:, None] * count_keys + key_slots[None, :], logits, mask=inside)
    # Other threads than those that wrote the logits read them.
    tl.debug_barrier()
    peak = _base(peak)
    for start in range(0, count_targets, KEYS):
        numbers = start + tl.arange(0, KEYS)
        inside = row_inside[:, None] & (numbers < count_targets)[None, :]
        key_slots = _listed(numbers, numbers < count_targets, targets + picture * stride_targets, TARGETED)
        found = every + place[:, None] * count_keys + key_slots[None, :]
        logits = tl.load(found, mask=inside & (key_slots < limit)[None, :], other=_LOWEST)
        values = tl.exp(logits - peak[:, None]) / total[:, None]
        tl.store(attention + place[:, None] * count_targets + numbers[None, :], values, mask=inside)


def attention_of(rows: QueryRows) -> torch.Tensor:
    """`vtprune.ops.attention.attention_of` of half-precision states."""
    common = _common(rows)
    batch, count_rows, count_keys = rows.batch, rows.count, rows.keys.shape[2]
    heads, kv_heads = rows.queries.shape[1], rows.keys.shape[1]
    count_targets = count_keys if rows.targets is None else rows.targets.shape[1]
    every = torch.empty(batch, heads, count_rows, count_keys, device=rows.keys.device)
    attention = every
    if rows.targets is not None:
        attention = torch.empty(batch, heads, count_rows, count_targets, device=rows.keys.device)
    if not every.numel():
        return attention
    lines = heads // kv_heads * count_rows
    block = min(64, max(16, triton.next_power_of_2(lines)))
    with torch.cuda.device_of(rows.keys):
        _rows_kernel[(triton.cdiv(lines, block), kv_heads, batch)](
            **common,
            targets=every if rows.targets is None else _dense(rows.targets),
            every=every,
            attention=attention,
            count_targets=count_targets,
            stride_targets=0 if rows.targets is None else _dense(rows.targets).stride(0),
            TARGETED=rows.targets is not None,
            ROWS=block,
            KEYS=128 if block == 16 and common["BLOCK_DIM"] <= 128 else 64,
            num_warps=4,
        )
    return attention


def strongest_received(rows: QueryRows, counted: torch.Tensor) -> torch.Tensor:
    """`vtprune.ops.attention.strongest_received` of half-precision states.

    Args:
        rows: The query rows.
        counted: `(batch, groups, rows)` booleans.
    """
    common, statistics = _statistics(rows)
    batch, groups, count_rows = counted.shape
    count_targets = rows.keys.shape[2] if rows.targets is None else rows.targets.shape[1]
    tiles = triton.cdiv(count_rows, _TILE)
    # Each tile of rows writes a sum of its own: added up in their order they depend on nothing that runs beside.
    sums = torch.empty(batch, tiles, groups, count_targets, device=rows.keys.device)
    if sums.numel():
        with torch.cuda.device_of(rows.keys):
            _strongest_kernel[(triton.cdiv(count_targets, _TILE), tiles, batch)](
                **common,
                **statistics,
                counted=_bytes(counted.contiguous()),
                targets=sums if rows.targets is None else _dense(rows.targets),
                sums=sums,
                count_targets=count_targets,
                stride_targets=0 if rows.targets is None else _dense(rows.targets).stride(0),
                TARGETED=rows.targets is not None,
                GROUPS=groups,
                ROWS=_TILE,
                KEYS=_TILE,
                num_warps=4,
                num_stages=2,
            )
    # In float64 the order of the tiles leaves no trace.
    return sums.sum(dim=1, dtype=torch.float64).float()


def received(rows: QueryRows, counted: torch.Tensor | None) -> torch.Tensor:
    """Sum over the query rows of the attention that each key receives, `(batch, heads, tokens)`.

    Args:
        rows: The query rows, without `targets`.
        counted: Booleans that broadcast to `(batch, heads, rows)`; `None` counts all rows.
    """
    common, statistics = _statistics(rows)
    batch, heads, count_keys = rows.batch, rows.queries.shape[1], rows.keys.shape[2]
    found = torch.empty(batch, heads, count_keys, device=rows.keys.device)
    strides = (0, 0, 0) if counted is None else counted.expand(batch, heads, rows.count).stride()
    if found.numel():
        with torch.cuda.device_of(rows.keys):
            _received_kernel[(triton.cdiv(count_keys, _TILE), heads, batch)](
                **common,
                **statistics,
                counted=found if counted is None else _bytes(counted),
                received=found,
                stride_counted_batch=strides[0],
                stride_counted_head=strides[1],
                stride_counted_row=strides[2],
                COUNTED=counted is not None,
                ROWS=_TILE,
                KEYS=_TILE,
                num_warps=4,
                num_stages=2,
            )
    return found


def _statistics(rows: QueryRows) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What all kernels are given of the rows, and the highest logit and the inverse sum of each row's softmax."""
    common = _common(rows)
    batch, heads = rows.batch, rows.queries.shape[1]
    peaks, shares = torch.empty(2, batch, heads, rows.count, device=rows.keys.device).unbind()
    if peaks.numel():
        with torch.cuda.device_of(rows.keys):
            _statistics_kernel[(triton.cdiv(rows.count, _TILE), heads, batch)](
                **common, peaks=peaks, shares=shares, ROWS=_TILE, KEYS=_TILE, num_warps=4, num_stages=2
            )
    return common, {"peaks": peaks, "shares": shares}


def _common(rows: QueryRows) -> dict[str, Any]:
    queries, keys = _dense(rows.queries), _dense(rows.keys)
    mode = _OPEN.value
    mask, mask_strides = keys, (0, 0, 0, 0)
    if rows.mask is not None:
        mode = _BOOLEAN.value if rows.mask.dtype == torch.bool else _ADDITIVE.value
        mask = _bytes(rows.mask)
        by_batch, by_head, by_row, by_key = rows.mask.expand(*queries.shape[:2], -1, keys.shape[2]).stride()
        mask_strides = by_batch, by_head, 0 if rows.mask.shape[2] == 1 else by_row, by_key
    elif rows.causal:
        mode = _CAUSAL.value
    slots = None if rows.slots is None else _dense(rows.slots)
    present = None if rows.present is None else _dense(rows.present)
    return {
        "queries": queries,
        "keys": keys,
        "samples": keys if rows.samples is None else rows.samples.contiguous(),
        "slots": keys if slots is None else slots,
        "present": keys if present is None else _bytes(present),
        "mask": mask,
        "scaling": rows.scaling,
        "heads": queries.shape[1],
        "group": queries.shape[1] // keys.shape[1],
        "count_rows": rows.count,
        "count_keys": keys.shape[2],
        "first": rows.first,
        "width": 0 if present is None else present.shape[1],
        "stride_q_batch": queries.stride(0),
        "stride_q_head": queries.stride(1),
        "stride_q_row": queries.stride(2),
        "stride_k_batch": keys.stride(0),
        "stride_k_head": keys.stride(1),
        "stride_k_row": keys.stride(2),
        "stride_slots": 0 if slots is None else slots.stride(0),
        "stride_present": 0 if present is None else present.stride(0),
        "stride_mask_batch": mask_strides[0],
        "stride_mask_head": mask_strides[1],
        "stride_mask_row": mask_strides[2],
        "stride_mask_key": mask_strides[3],
        "MODE": mode,
        "PRESENT": present is not None,
        "SAMPLED": rows.samples is not None,
        "SLOTTED": rows.slots is not None,
        "DIM": queries.shape[3],
        "BLOCK_DIM": max(16, triton.next_power_of_2(queries.shape[3])),
        # Triton's interpreter multiplies the bits of bfloat16 as they are.
        "WIDEN": not keys.is_cuda,
    }


def _dense(states: torch.Tensor) -> torch.Tensor:
    """With neighbours along the last dimension."""
    return states if states.stride(-1) == 1 else states.contiguous()


def _bytes(flags: torch.Tensor) -> torch.Tensor:
    return flags.view(torch.uint8) if flags.dtype == torch.bool else flags
