"""Clustering around density peaks: distances, densities, scores, clusters, a launch each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vtprune.kernels.ranking import falling_ranks

# A row of distances is held by one program.
MOST_POINTS = 1 << 14
_TILE = 16
_CHANNELS = 32
# So many chunks are summed in float32 before they go to a float64 sum.
_CHUNKS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _distance_kernel(  # type: ignore[no-untyped-def]
    points,
    squared,
    count,
    dim,
    per_picture,
    per_point,
    per_channel,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    picture = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    points += picture * per_picture
    # The other half is the mirror image.
    if tl.program_id(1) >= tl.program_id(0):
        left = points + row.to(tl.int64)[:, None] * per_point
        right = points + column.to(tl.int64)[:, None] * per_point
        total = tl.zeros((TILE, TILE), dtype=tl.float64)
        for start in range(0, dim, CHANNELS * CHUNKS):
            part = tl.zeros((TILE, TILE, CHANNELS), dtype=tl.float32)
            for chunk in range(0, CHUNKS):
                channel = start + chunk * CHANNELS + tl.arange(0, CHANNELS)
                inside = (channel < dim)[None, :]
                away = channel.to(tl.int64)[None, :] * per_channel
                one = tl.load(left + away, mask=inside & (row < count)[:, None], other=0.0).to(tl.float32)
                other = tl.load(right + away, mask=inside & (column < count)[:, None], other=0.0).to(tl.float32)
                difference = one[:, None, :] - other[None, :, :]
                part += difference * difference
            total += tl.sum(part, axis=2).to(tl.float64)
        value = total.to(tl.float32)
        inside = (row < count)[:, None] & (column < count)[None, :]
        squared += picture * count * count
        tl.store(squared + row.to(tl.int64)[:, None] * count + column[None, :], value, mask=inside)
        tl.store(squared + column.to(tl.int64)[None, :] * count + row[:, None], value, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _density_kernel(  # type: ignore[no-untyped-def]
    squared, noise, density, farthest, count, clusters, scale, NOISE: tl.constexpr, POINTS: tl.constexpr
):
    point = tl.program_id(0)
    picture = tl.program_id(1).to(tl.int64)
    other = tl.arange(0, POINTS)
    value = tl.load(squared + (picture * count + point) * count + other, mask=other < count, other=float("inf"))
    # The bits of numbers from zero on are in the order of the numbers; those of what is not a number come last.
    bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    bits = tl.where(other < count, bits, 0x7FFFFFFF)
    # The highest number with fewer than `clusters` below it is the last of the nearest.
    bound = tl.full((), 0, dtype=tl.int32)
    step = 1 << 30
    while step > 0:
        fewer = tl.sum((bits < bound + step).to(tl.int32), axis=0) < clusters
        bound = tl.where(fewer, bound + step, bound)
        step = step // 2
    nearer = bits < bound
    rest = clusters - tl.sum(nearer.to(tl.int32), axis=0)
    nearest = tl.sum(tl.where(nearer, value, 0.0).to(tl.float64), axis=0)
    nearest += rest.to(tl.float64) * bound.to(tl.float32, bitcast=True).to(tl.float64)
    mine = tl.exp(-nearest / scale)
    if NOISE:
        mine += tl.load(noise + picture * count + point).to(tl.float64)
    tl.store(density + picture * count + point, mine)
    tl.store(farthest + picture * count + point, tl.max(tl.where(other < count, value, 0.0), axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _score_kernel(squared, density, farthest, score, count, POINTS: tl.constexpr):  # type: ignore[no-untyped-def]
    point = tl.program_id(0)
    picture = tl.program_id(1).to(tl.int64)
    other = tl.arange(0, POINTS)
    density += picture * count
    mine = tl.load(density + point)
    denser = tl.load(density + other, mask=other < count, other=float("-inf")) > mine
    value = tl.load(squared + (picture * count + point) * count + other, mask=denser, other=float("inf"))
    apart = tl.min(value, axis=0)
    whole = tl.max(tl.load(farthest + picture * count + other, mask=other < count, other=0.0), axis=0)
    apart = tl.where(tl.max(denser.to(tl.int32), axis=0) > 0, apart, whole)
    tl.store(score + picture * count + point, mine * tl.sqrt(apart.to(tl.float64)))


@triton.jit  # type: ignore[untyped-decorator]
def _cluster_kernel(  # type: ignore[no-untyped-def]
    squared, score, centres, cluster, count, clusters, PLACES: tl.constexpr, COLUMNS: tl.constexpr
):
    picture = tl.program_id(0).to(tl.int64)
    squared += picture * count * count
    centres += picture * clusters
    for first in range(0, count, PLACES):
        place = first + tl.arange(0, PLACES)
        rank = falling_ranks(score + picture * count, place, count, COLUMNS)
        tl.store(centres + rank, place.to(tl.int64), mask=(place < count) & (rank < clusters))
    tl.debug_barrier()
    for first in range(0, count, COLUMNS):
        point = first + tl.arange(0, COLUMNS)
        nearest = tl.full((COLUMNS,), float("inf"), dtype=tl.float32)
        whose = tl.zeros((COLUMNS,), dtype=tl.int64)
        own = tl.full((COLUMNS,), -1, dtype=tl.int64)
        for number in range(0, clusters):
            centre = tl.load(centres + number)
            value = tl.load(squared + centre * count + point, mask=point < count, other=float("inf"))
            whose = tl.where(value < nearest, number, whose)
            nearest = tl.minimum(nearest, value)
            own = tl.where(point == centre, number, own)
        # A duplicate of an earlier centre stays the centre of its own cluster.
        tl.store(cluster + picture * count + point, tl.where(own >= 0, own, whose), mask=point < count)


def squared_distances(points: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances of half-precision points from their differences, `(batch, points, points)` float32.

    Exactly symmetric; 0 between duplicates.

    Args:
        points: `(batch, points, dim)` in bfloat16 or float16.
    """
    batch, count, dim = points.shape
    squared = torch.empty((batch, count, count), dtype=torch.float32, device=points.device)
    blocks = triton.cdiv(count, _TILE)
    with torch.cuda.device_of(points):
        _distance_kernel[(blocks, blocks, batch)](
            points,
            squared,
            count,
            dim,
            *points.stride(),
            TILE=_TILE,
            CHANNELS=_CHANNELS,
            CHUNKS=_CHUNKS,
            num_warps=4,
        )
    return squared


def peaks(
    squared: torch.Tensor, clusters: int, dim: int, noise: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `vtprune.ops.density_peaks.density_peaks` returns, from squared distances.

    Args:
        squared: `(batch, points, points)` float32, at most `MOST_POINTS` of them.
        clusters: Centres to find, 1 to `points`.
        dim: Width of the points.
        noise: Added to the densities, `(batch, points)`.
    """
    batch, count, _ = squared.shape
    squared = squared.contiguous()
    device = squared.device
    density = torch.empty((batch, count), dtype=torch.float64, device=device)
    score = torch.empty_like(density)
    farthest = torch.empty((batch, count), dtype=torch.float32, device=device)
    centres = torch.empty((batch, clusters), dtype=torch.int64, device=device)
    cluster = torch.empty((batch, count), dtype=torch.int64, device=device)
    width = triton.next_power_of_2(count)
    warps = min(8, max(1, width // 256))
    with torch.cuda.device_of(squared):
        _density_kernel[(count, batch)](
            squared,
            density if noise is None else noise.contiguous(),
            density,
            farthest,
            count,
            clusters,
            clusters * dim,
            NOISE=noise is not None,
            POINTS=width,
            num_warps=warps,
        )
        _score_kernel[(count, batch)](squared, density, farthest, score, count, POINTS=width, num_warps=warps)
        _cluster_kernel[(batch,)](
            squared, score, centres, cluster, count, clusters, PLACES=32, COLUMNS=256, num_warps=8
        )
    return centres, cluster
