"""Bipartite soft matching: who proposes to whom, and which rows come out of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vtprune.kernels.ranking import falling_ranks


@triton.jit  # type: ignore[untyped-decorator]
def _propose_kernel(  # type: ignore[no-untyped-def]
    products, best, partner, tokens, evens, odds, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    picture = tl.program_id(1).to(tl.int64)
    products += picture * tokens * tokens
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < evens
    even = 2 * row.to(tl.int64)
    mine = tl.load(products + even * (tokens + 1), mask=inside, other=0.0).to(tl.float64)
    highest = tl.full((ROWS,), float("-inf"), dtype=products.dtype.element_ty)
    whom = tl.zeros((ROWS,), dtype=tl.int32)
    for first in range(0, odds, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        odd = 2 * column.to(tl.int64) + 1
        its = tl.load(products + odd * (tokens + 1), mask=column < odds, other=0.0).to(tl.float64)
        both = inside[:, None] & (column < odds)[None, :]
        value = tl.load(products + even[:, None] * tokens + odd[None, :], mask=both, other=0.0).to(tl.float64)
        # One root of the product of both squares: equal quotients of whole numbers stay equal.
        square = mine[:, None] * its[None, :]
        value = tl.where(square == 0, 0.0, value / tl.sqrt(tl.where(square == 0, 1.0, square)))
        # What is not a number comes first, as in `torch.max` and `torch.sort`.
        value = tl.where(value == value, value, float("inf"))
        value = tl.where((column < odds)[None, :], value, float("-inf")).to(highest.dtype)
        here = tl.max(value, axis=1)
        at = first + tl.argmax(value, axis=1)
        whom = tl.where(here > highest, at, whom)
        highest = tl.maximum(highest, here)
    tl.store(best + picture * evens + row, highest, mask=inside)
    tl.store(partner + picture * evens + row, whom.to(tl.int64), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _match_kernel(  # type: ignore[no-untyped-def]
    best, partner, kept, source, tokens, evens, merges, PLACES: tl.constexpr, COLUMNS: tl.constexpr
):
    picture = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    left = evens - merges
    inside = place < evens
    rank = falling_ranks(best + picture * evens, place, evens, COLUMNS)
    moves = rank < merges
    target = tl.load(partner + picture * evens + place, mask=inside & moves, other=0)
    kept += picture * (tokens - merges)
    source += picture * tokens
    tl.store(source + 2 * place, tl.where(moves, left + target, (rank - merges).to(tl.int64)), mask=inside)
    tl.store(kept + rank - merges, 2 * place.to(tl.int64), mask=inside & (rank >= merges))
    odd = 2 * place.to(tl.int64) + 1
    tl.store(source + odd, (left + place).to(tl.int64), mask=odd < tokens)
    tl.store(kept + left + place, odd, mask=odd < tokens)


def propose(products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest cosine of each token at an even place to one at an odd place, and which that is, the first of equals.

    Args:
        products: Dot products of the tokens with each other, `(batch, tokens, tokens)` float32 or float64, at least 2.

    Returns:
        `(batch, evens)` each; the second int64, counting odd places only.
    """
    batch, tokens, _ = products.shape
    products = products.contiguous()
    evens, odds = (tokens + 1) // 2, tokens // 2
    best = torch.empty((batch, evens), dtype=products.dtype, device=products.device)
    partner = torch.empty((batch, evens), dtype=torch.int64, device=products.device)
    rows = 8
    with torch.cuda.device_of(products):
        _propose_kernel[(triton.cdiv(evens, rows), batch)](
            products, best, partner, tokens, evens, odds, ROWS=rows, COLUMNS=128, num_warps=4
        )
    return best, partner


def carry_out(best: torch.Tensor, partner: torch.Tensor, tokens: int, merges: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that come out when the `merges` best proposals are carried out.

    Args:
        best: Cosine of each proposal, `(batch, evens)`.
        partner: Odd place that each goes to, `(batch, evens)` int64.
        tokens: Tokens at even and odd places together.
        merges: 1 to the number at odd places.

    Returns:
        `kept` and `source` of `vtprune.ops.bipartite.Matching`.
    """
    batch, evens = best.shape
    kept = torch.empty((batch, tokens - merges), dtype=torch.int64, device=best.device)
    source = torch.empty((batch, tokens), dtype=torch.int64, device=best.device)
    places = 32
    with torch.cuda.device_of(best):
        _match_kernel[(triton.cdiv(evens, places), batch)](
            best.contiguous(),
            partner.contiguous(),
            kept,
            source,
            tokens,
            evens,
            merges,
            PLACES=places,
            COLUMNS=128,
            num_warps=4,
        )
    return kept, source
