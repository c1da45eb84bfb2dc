"""Matrix entropies without an eigenvalue solver: one program takes one small matrix from its entries to its entropy."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Rows of a matrix that fit one program.
MOST_HEADS = 128
# Trapezoidal quadrature over u = ln t as in `vtprune.ops.entropy`. The step is a number that float32 holds as it is.
_START = tl.constexpr(-28.0)
_STEP = tl.constexpr(0.8125)
_NODES = tl.constexpr(64)


@triton.jit  # type: ignore[untyped-decorator]
def _gram_kernel(  # type: ignore[no-untyped-def]
    states,
    gram,
    heads,
    tokens,
    width,
    group,
    stride_batch,
    stride_head,
    stride_token,
    stride_channel,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    picture = (tl.program_id(0) // tokens).to(tl.int64)
    token = (tl.program_id(0) % tokens).to(tl.int64)
    rows = tl.arange(0, BLOCK)
    present = rows < heads
    start = states + picture * stride_batch + token * stride_token + rows[:, None].to(tl.int64) * stride_head
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for first in range(0, width, CHANNELS):
        channels = first + tl.arange(0, CHANNELS)
        inside = present[:, None] & (channels[None, :] < width)
        # Float64 until the mean is off: equal heads are to cancel to zero.
        values = tl.zeros((BLOCK, CHANNELS), dtype=tl.float64)
        for part in range(group):
            place = start + (channels[None, :] * group + part) * stride_channel
            values += tl.load(place, mask=inside, other=0.0).to(tl.float64)
        values = values / group
        mean = tl.sum(values, axis=0) / heads
        centred = tl.where(inside, values - mean[None, :], 0.0).to(tl.float32)
        total = tl.dot(centred, tl.trans(centred), total, input_precision="tf32x3")
    places = rows[:, None] * heads + rows[None, :]
    matrix = gram + tl.program_id(0).to(tl.int64) * heads * heads + places
    tl.store(matrix, total / heads, mask=present[:, None] & present[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _entropy_kernel(gram, entropies, heads, UNIT_TRACE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, BLOCK)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    entries = gram + token * heads * heads + rows * heads + columns
    matrix = tl.load(entries, mask=(rows < heads) & (columns < heads), other=0.0).to(tl.float64)
    line = tl.arange(0, BLOCK)
    trace = tl.sum(tl.sum(tl.where(rows == columns, matrix, 0.0), axis=0), axis=0)
    # Written so that a trace that is no number stays so.
    scale = tl.where(trace <= 0, 1.0, trace)
    matrix *= 1.0 / scale
    node = tl.exp(tl.arange(0, _NODES).to(tl.float64) * _STEP + _START)
    # Householder's reflections bring one row after the other to tridiagonal form. As soon as a row's diagonal and its
    # off-diagonal entry are known, every node t goes one step on in the elimination of `matrix + t`: `pivot` is what
    # is left on the diagonal, `rest` is `pivot - t * d pivot / dt`, and the shares `rest / pivot` add up to the trace
    # of `matrix (matrix + t)^-1`. Of a matrix without negative eigenvalues a pivot is at least t and a share within
    # [0, 1]; rounding must not lead out of there, where poles lie.
    taken = tl.zeros((_NODES,), dtype=tl.float64)
    share = tl.zeros((_NODES,), dtype=tl.float64)
    ratio = tl.zeros((_NODES,), dtype=tl.float64)
    for step in range(heads):
        row = tl.sum(tl.where(rows == step, matrix, 0.0), axis=0)
        diagonal = tl.sum(tl.where(line == step, row, 0.0), axis=0)
        behind = tl.where(line > step, row, 0.0)
        square = tl.sum(behind * behind, axis=0)
        square = tl.where(square < 1e-30, 0.0, square)
        pivot = tl.maximum(diagonal + node - ratio, node)
        rest = tl.minimum(tl.maximum(diagonal - ratio * (2.0 - share), 0.0), pivot)
        inverse = 1.0 / pivot
        share = rest * inverse
        ratio = square * inverse
        taken += share
        lead = tl.sum(tl.where(line == step + 1, row, 0.0), axis=0)
        norm = tl.sqrt(square)
        factor = tl.where(square > 0, 1.0 / tl.where(square > 0, square + tl.abs(lead) * norm, 1.0), 0.0)
        mirror = behind + tl.where(line == step + 1, tl.where(lead < 0, -norm, norm), 0.0)
        image = factor * tl.sum(matrix * mirror[:, None], axis=0)
        image -= 0.5 * factor * tl.sum(image * mirror, axis=0) * mirror
        matrix -= mirror[:, None] * image[None, :] + image[:, None] * mirror[None, :]
    # Sum of x ln x over the eigenvalues x of a matrix whose trace is 1.
    total = tl.sum(node * (1.0 / (1.0 + node) - taken), axis=0) * _STEP
    if UNIT_TRACE:
        scale /= scale
    total = scale * (total + tl.log(scale))
    count = tl.maximum(heads, 2).to(tl.float64)
    tl.store(entropies + token, tl.where(trace <= 0, 0.0, -total / tl.log(count)))


def centred_gram(states: torch.Tensor, group: int) -> torch.Tensor:
    """Gram matrices over heads of each token's centred heads x channels matrix, divided by the heads, in fp32.

    Args:
        states: `(batch, heads, tokens, channels)` in half precision, of any strides.
        group: Neighbouring channels averaged into one.

    Returns:
        `(batch, tokens, heads, heads)`.
    """
    batch, heads, tokens, channels = states.shape
    gram = torch.empty(batch, tokens, heads, heads, dtype=torch.float32, device=states.device)
    if not gram.numel():
        return gram
    block = max(16, triton.next_power_of_2(heads))
    warps = 4 if block < 64 else 8
    with torch.cuda.device_of(states):
        _gram_kernel[(batch * tokens,)](
            states,
            gram,
            heads,
            tokens,
            channels // group,
            group,
            *states.stride(),
            BLOCK=block,
            CHANNELS=32,
            num_warps=warps,
        )
    return gram


def spectral_entropy(gram: torch.Tensor, *, unit_trace: bool) -> torch.Tensor:
    """`-sum(x ln x) / ln(heads)` over the eigenvalues `x` of symmetric matrices that have no negative ones, in float64.

    The sum is the quadrature of `vtprune.ops.entropy`, with the traces of its resolvents from the tridiagonal form.

    Args:
        gram: `(..., heads, heads)`, contiguous, with at most `MOST_HEADS` heads.
        unit_trace: Divide each matrix by its trace.

    Returns:
        `(...)` float64.
    """
    heads = gram.shape[-1]
    entropies = torch.empty(gram.shape[:-2], dtype=torch.float64, device=gram.device)
    block = triton.next_power_of_2(heads)
    warps = 1 if block <= 32 else block // 8
    if entropies.numel():
        with torch.cuda.device_of(gram):
            _entropy_kernel[(entropies.numel(),)](
                gram, entropies, heads, UNIT_TRACE=unit_trace, BLOCK=block, num_warps=warps
            )
    return entropies
