"""The greedy picks of a determinantal point process in one launch, several programs for each picture.

Every program owns a block of tokens and their rows of the Cholesky factor. A pick is agreed on by a maximum over keys
in global memory and a barrier; then each program takes from its own tokens what the pick spans. All sums are in
float64 and each is one token's own, so that nothing depends on how tokens and pictures are spread over programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vtprune.kernels.grid import grid_barrier, programs_at_once, together

# Tokens of a program, where the picture is not small enough for one program alone.
_BLOCK = 64
_ONE_PROGRAM = 256
# Few warps hold much each, and so meet less in sums over a tile's rows.
_WARPS = 4
# A key holds a float32 above and a token, all bits turned, below: the greatest has the lowest index of equal ones.
_LAST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _token_of(key):  # type: ignore[no-untyped-def]
    return ((key & _LAST) ^ _LAST).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _greedy_kernel(  # type: ignore[no-untyped-def]
    cosines,
    relevance,
    present,
    factor,
    remainders,
    gains,
    keys,
    count,
    keep,
    first,
    last,
    programs,
    relevance_stride,
    relevance_step,
    present_stride,
    present_step,
    FLOOR: tl.constexpr,
    HAS_PRESENT: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Picks number `first` to `last - 1` of all pictures; `remainders` is what an earlier launch left of the tokens."""
    picture = (tl.program_id(0) // programs).to(tl.int64)
    program = tl.program_id(0) % programs
    tokens = program * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < count
    cosines += picture * count * count
    relevance += picture * relevance_stride
    gains += picture * programs * 2
    keys += picture * (keep + 1)
    # Tokens lie side by side in a row of the factor, and neighbouring threads own them: sums over rows move little.
    width = programs * BLOCK
    factor += picture * keep * width
    remainders += picture * width

    weights = tl.load(relevance + tokens * relevance_step, mask=inside, other=0).to(tl.float64)
    own = tl.load(cosines + tokens.to(tl.int64) * (count + 1), mask=inside, other=0).to(tl.float64)
    own = weights * own * weights
    least = own * FLOOR
    if HAS_PRESENT:
        there = tl.load(present + picture * present_stride + tokens * present_step, mask=inside, other=0)
        own = tl.where(there != 0, own, float("-inf"))
    remains = own
    if first > 0:
        remains = tl.load(remainders + tokens)

    step = first
    alive = step < last
    while alive:
        best = tl.full((), 1, tl.int64)
        if step > 0:
            if step > first:
                grid_barrier(keys + keep, step, programs)
            best = tl.load(keys + step - 1, cache_modifier=".cg")
            if best > 0:
                pick = _token_of(best)
                # Programs that are ahead write into the other half: a third turn begins only when all have read.
                gain = tl.load(gains + (step - 1) % 2 * programs + pick // BLOCK, cache_modifier=".cg")
                scale = 1.0 / tl.sqrt(gain)
                row = tl.load(cosines + pick.to(tl.int64) * count + tokens, mask=inside, other=0).to(tl.float64)
                row = tl.load(relevance + pick * relevance_step).to(tl.float64) * row * weights
                spanned = tl.zeros((STEPS, BLOCK), tl.float64)
                for start in range(0, step - 1, STEPS):
                    done = start + tl.arange(0, STEPS)
                    known = done < step - 1
                    picked = tl.load(factor + done * width + pick, mask=known, other=0, cache_modifier=".cg")
                    own_rows = factor + (done[:, None] * width + tokens[None, :])
                    spanned += picked[:, None] * tl.load(own_rows, mask=known[:, None], other=0)
                row = (row - tl.sum(spanned, axis=0)) * scale
                tl.store(factor + (step - 1) * width + tokens, row)
                remains -= row * row
        # A picked token spans itself, and a comparison with NaN is false: neither can be picked from here on.
        is_open = remains > least
        remains = tl.where(is_open, remains, float("-inf"))
        size = tl.where(is_open, remains, 0.0).to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64)
        key = tl.where(is_open, (size << 32) | (tokens ^ _LAST).to(tl.int64), 0)
        top = tl.max(key, axis=0)
        gain_here = gains + step % 2 * programs + program + tl.zeros_like(tokens)
        tl.store(gain_here, remains, mask=is_open & (key == top))
        tl.atomic_max(keys + step, top, sem="relaxed", scope="gpu")
        step += 1
        alive = (step < last) & (best > 0)
    if last < keep:
        tl.store(remainders + tokens, remains)


@triton.jit  # type: ignore[untyped-decorator]
def _fill_kernel(  # type: ignore[no-untyped-def]
    keys,
    relevance,
    present,
    picks,
    count,
    keep,
    relevance_stride,
    relevance_step,
    present_stride,
    present_step,
    HAS_PRESENT: tl.constexpr,
    TOKENS: tl.constexpr,
    PICKS: tl.constexpr,
):
    """Turns keys into picks; where there are too few, what is most relevant of the rest follows."""
    picture = tl.program_id(0).to(tl.int64)
    keys += picture * (keep + 1)
    picks += picture * keep
    places = tl.arange(0, PICKS)
    found = tl.load(keys + places, mask=places < keep, other=0)
    tl.store(picks + places, _token_of(found).to(tl.int64), mask=found > 0)
    real = tl.sum((found > 0).to(tl.int32), axis=0)
    if real < keep:
        tokens = tl.arange(0, TOKENS)
        inside = tokens < count
        worth = tl.load(relevance + picture * relevance_stride + tokens * relevance_step, mask=inside, other=0)
        worth = worth.to(tl.float64)
        worth = tl.where(worth == worth, worth, float("-inf"))
        # 2 for a token that can be taken, 1 for an absent one, 0 for one that is taken.
        turn = tl.where(inside, 2, 0)
        if HAS_PRESENT:
            there = tl.load(present + picture * present_stride + tokens * present_step, mask=inside, other=0)
            turn = tl.where(inside & (there == 0), 1, turn)
        for place in range(0, real):
            turn = tl.where(tokens == _token_of(tl.load(keys + place)), 0, turn)
        for place in range(real, keep):
            among = turn == tl.max(turn, axis=0)
            most = tl.max(tl.where(among, worth, float("-inf")), axis=0)
            pick = tl.min(tl.where(among & (worth == most), tokens, _LAST), axis=0)
            tl.store(picks + place, pick.to(tl.int64))
            turn = tl.where(tokens == pick, 0, turn)


def greedy_picks(
    cosines: torch.Tensor,
    relevance: torch.Tensor,
    keep: int,
    floor: float,
    present: torch.Tensor | None = None,
    *,
    block: int | None = None,
    one_launch: bool = True,
) -> torch.Tensor:
    """What `vtprune.ops.dpp.dpp_map` picks, from the cosines of tokens.

    Args:
        cosines: `(batch, tokens, tokens)` float32 or float64.
        relevance: `(batch, tokens)`, any floating-point type.
        keep: Tokens to pick, 1 to `tokens`.
        floor: A token of whose own entry no more than this part is left is spanned.
        present: `(batch, tokens)` booleans, or all are.
        block: Tokens of a program, a power of two; by the number of tokens where it is not given.
        one_launch: Whether one launch makes all picks, for which all programs of a picture run at the same time. Else
            each pick has a launch of its own, and nothing waits inside.

    Returns:
        `(batch, keep)` int64 in the order of picking.

    Raises:
        ValueError: The blocks are so small that programs would wait for others that cannot start.
    """
    batch, count, _ = cosines.shape
    at_once = programs_at_once(cosines)
    if block is None:
        block = _block(count, at_once)
    programs = triton.cdiv(count, block)
    if one_launch and programs > at_once:
        raise ValueError(
            f"{programs} programs would wait for each other where {at_once} run at once; give them blocks of more than "
            f"{block} tokens, or each pick its own launch"
        )
    pictures = max(1, at_once // programs) if one_launch else batch
    steps = _steps(block, keep)
    cosines = cosines.contiguous()
    weighed = relevance if present is None else present
    options = {"FLOOR": floor, "HAS_PRESENT": present is not None, "BLOCK": block, "STEPS": steps, "num_warps": _WARPS}
    # Behind the keys of each picture stands the counter of its barrier.
    keys = cosines.new_zeros((batch, keep + 1), dtype=torch.int64)
    picks = cosines.new_empty((batch, keep), dtype=torch.int64)
    factor = cosines.new_empty((min(batch, pictures), keep, programs * block), dtype=torch.float64)
    remainders = cosines.new_empty((0 if one_launch else batch, programs * block), dtype=torch.float64)
    gains = cosines.new_empty((min(batch, pictures), 2, programs), dtype=torch.float64)
    strides = (*relevance.stride(), *weighed.stride())
    turns = [(0, keep)] if one_launch else [(turn, turn + 1) for turn in range(keep)]
    with torch.cuda.device_of(cosines):
        for start in range(0, batch, pictures):
            part = slice(start, start + pictures)
            given = (cosines[part], relevance[part], weighed[part], factor, remainders, gains, keys[part])
            grid = (min(pictures, batch - start) * programs,)
            for first, last in turns:
                _greedy_kernel[grid](
                    *given, count, keep, first, last, programs, *strides, **options, **together(cosines)
                )
        _fill_kernel[(batch,)](
            *(keys, relevance, weighed, picks, count, keep, *strides),
            HAS_PRESENT=present is not None,
            TOKENS=triton.next_power_of_2(count),
            PICKS=triton.next_power_of_2(keep),
            num_warps=4 if count <= 1024 else 16,
        )
    return picks


def _block(count: int, at_once: int) -> int:
    """Tokens of a program: few, but not in more programs than run at once."""
    block = int(triton.next_power_of_2(count)) if count <= _ONE_PROGRAM else _BLOCK
    while triton.cdiv(count, block) > at_once:
        block *= 2
    return block


def _steps(block: int, keep: int) -> int:
    """Steps of the factor that a program reads at a time: enough loads under way to hide the wait."""
    return max(16, min(int(triton.next_power_of_2(keep)), 128, 8192 // block))
