"""Clusters around dense tokens: how dense each is, and the visits of many cutoffs at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# A row of distances is held by one program.
MOST_TOKENS = 1 << 15
# Distances that are summed up at once.
_BLOCK = 1024


def densities(distance: torch.Tensor, bits: int) -> torch.Tensor:
    """How many tokens are how near to each, `sum exp(-(distance / 2)^2)`, `(batch, tokens)` int64.

    Args:
        distance: Distances of all pairs, `(batch, tokens, tokens)`.
        bits: Terms are rounded to `2^-bits`, which counts as 1: no order of adding changes the sum.
    """
    batch, tokens, _ = distance.shape
    distance = distance if distance.stride(2) == 1 else distance.contiguous()
    density = torch.empty(batch, tokens, dtype=torch.int64, device=distance.device)
    block = min(_BLOCK, triton.next_power_of_2(tokens))
    with torch.cuda.device_of(distance):
        _density_kernel[(tokens, batch)](
            distance,
            density,
            tokens,
            distance.stride(0),
            distance.stride(1),
            UNIT=float(2**bits),
            BLOCK=block,
            num_warps=max(1, block // 256),
        )
    return density


def visit(visited: torch.Tensor, cutoffs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `count` centres for each of several cutoffs, and whether they reach all tokens.

    One program visits the tokens of one picture with one cutoff; it reads a row of distances for each centre.

    Args:
        visited: Distances of all pairs of tokens in the order of their visit, `(batch, tokens, tokens)`, at most
            `MOST_TOKENS` of them.
        cutoffs: `(batch, cutoffs)`, 0 or above, in the dtype of `visited`.
        count: Centres to look for.

    Returns:
        Booleans, `(batch, cutoffs, tokens)` and `(batch, cutoffs)`.
    """
    batch, tokens, _ = visited.shape
    centres = torch.empty(*cutoffs.shape, tokens, dtype=torch.bool, device=visited.device)
    fits = torch.empty(cutoffs.shape, dtype=torch.bool, device=visited.device)
    block = triton.next_power_of_2(tokens)
    with torch.cuda.device_of(visited):
        _visit_kernel[(cutoffs.shape[1], batch)](
            visited.contiguous(),
            cutoffs.contiguous(),
            centres.view(torch.uint8),
            fits.view(torch.uint8),
            tokens,
            count,
            BLOCK=block,
            # One warp finds its next centre without waiting for others.
            num_warps=min(32, max(1, block // 512)),
        )
    return centres, fits


@triton.jit  # type: ignore[untyped-decorator]
def _density_kernel(  # type: ignore[no-untyped-def]
    distance, density, tokens, picture_stride, row_stride, UNIT: tl.constexpr, BLOCK: tl.constexpr
):
    """The density of one token."""
    token, picture = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = distance + picture * picture_stride + token * row_stride
    total = tl.zeros([BLOCK], dtype=tl.int64)
    for first in range(0, tokens, BLOCK):
        other = first + tl.arange(0, BLOCK)
        half = tl.load(row + other, mask=other < tokens, other=0.0).to(tl.float64) / 2
        steps = tl.floor(tl.exp(-(half * half)) * UNIT + 0.5).to(tl.int64)
        total += tl.where(other < tokens, steps, 0)
    tl.store(density + picture * tokens + token, tl.sum(total, axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _visit_kernel(visited, cutoffs, centres, fits, tokens, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Visits the tokens of one picture with one cutoff."""
    picture = tl.program_id(1).to(tl.int64)
    attempt = picture * tl.num_programs(0) + tl.program_id(0)
    cutoff = tl.load(cutoffs + attempt)
    visited += picture * tokens * tokens
    token = tl.arange(0, BLOCK)
    # Who is beyond all centres so far; the others stand at the end.
    waiting = tl.where(token < tokens, token, BLOCK)
    centre = tl.zeros([BLOCK], dtype=tl.int32)
    made = tl.full((), 0, dtype=tl.int32)
    first = tl.min(waiting, axis=0)
    while (made < count) & (first < BLOCK):
        row = visited + first.to(tl.int64) * tokens
        beyond = tl.load(row + token, mask=waiting < BLOCK, other=0.0) > cutoff
        centre = tl.where(token == first, 1, centre)
        waiting = tl.where(beyond, waiting, BLOCK)
        first = tl.min(waiting, axis=0)
        made += 1
    tl.store(centres + attempt * tokens + token, centre.to(tl.uint8), mask=token < tokens)
    tl.store(fits + attempt, (first == BLOCK).to(tl.uint8))
