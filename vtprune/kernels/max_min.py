"""Greedy max-min picks from a matrix of cosines, one program a picture and one row of the matrix a pick."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Where distances are from 0 to 2: below all of them, and in this order.
_NO_NUMBER = tl.constexpr(-1.0)
_ABSENT = tl.constexpr(-2.0)


def pick_farthest(
    cosine: torch.Tensor, closest: torch.Tensor, keep: int, present: torch.Tensor | None = None
) -> torch.Tensor:
    """The picks of `vtprune.ops.max_min`, `(batch, keep)` int64.

    Tokens whose cosine to themselves is not a number come after all others, and absent ones after those.

    Args:
        cosine: `(batch, tokens, tokens)` float32 or float64.
        closest: Highest cosine of each token to present others within stretches of them, `(batch, stretches, tokens)`
            of the same type; -inf where there is none.
        keep: Tokens to pick.
        present: `(batch, tokens)` booleans.
    """
    batch, count, _ = cosine.shape
    picks = torch.empty((batch, keep), dtype=torch.int64, device=cosine.device)
    block = triton.next_power_of_2(count)
    if batch:
        with torch.cuda.device_of(cosine):
            _pick[(batch,)](
                cosine.contiguous(),
                closest.contiguous(),
                cosine if present is None else present.contiguous(),
                picks,
                count,
                closest.shape[1],
                keep,
                HAS_PRESENT=present is not None,
                BLOCK=block,
                num_warps=min(32, max(1, block // 256)),
            )
    return picks


@triton.jit  # type: ignore[untyped-decorator]
def _pick(  # type: ignore[no-untyped-def]
    cosine, closest, present, picks, count, stretches, keep, HAS_PRESENT: tl.constexpr, BLOCK: tl.constexpr
):
    """All picks of one picture; the distance of every token to the nearest pick stays in registers."""
    picture = tl.program_id(0).to(tl.int64)
    cosine += picture * count * count
    closest += picture * stretches * count
    picks += picture * keep
    token = tl.arange(0, BLOCK)
    inside = token < count
    itself = tl.load(cosine + token.to(tl.int64) * (count + 1), mask=inside, other=0.0)
    nearest = tl.full([BLOCK], float("inf"), cosine.dtype.element_ty)
    nearest = tl.where(itself == itself, nearest, _NO_NUMBER)
    if HAS_PRESENT:
        nearest = tl.where(tl.load(present + picture * count + token, mask=inside, other=1) != 0, nearest, _ABSENT)
    nearest = tl.where(inside, nearest, float("-inf"))
    highest = tl.load(closest + token, mask=inside, other=0.0)
    for stretch in range(1, stretches):
        highest = tl.maximum(highest, tl.load(closest + stretch * count + token, mask=inside, other=0.0))
    pick = tl.argmax(tl.where(nearest > 0, 1 - highest, nearest), axis=0)
    for place in range(keep):
        tl.store(picks + place, pick.to(tl.int64))
        nearest = tl.where(token == pick, float("-inf"), nearest)
        row = 1 - tl.load(cosine + pick.to(tl.int64) * count + token, mask=inside, other=0.0)
        # Of NaN the comparison is false: nobody comes nearer by it.
        nearest = tl.where(row < nearest, row, nearest)
        pick = tl.argmax(nearest, axis=0)
