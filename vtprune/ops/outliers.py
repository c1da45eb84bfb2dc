"""How many scores stand out: the rules by which a method finds its own token count."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from vtprune.ops.gather import as_float
from vtprune.ops.similarity import quantile

_EPSILON = 1e-10


def iqr_outlier_count(scores: torch.Tensor) -> torch.Tensor:
    """How many scores lie above the third quartile by more than one and a half times the distance of the quartiles.

    LLaVA-PruMerge (arXiv 2403.15388) and TRIM (arXiv 2409.10994). Quartiles are interpolated linearly, in float32 as in
    the papers' code, in float64 for such scores.

    Args:
        scores: `(batch, tokens)`.

    Returns:
        `(batch,)` int64, 0 where all scores are equal.

    Example:
        >>> iqr_outlier_count(torch.tensor([[1.0, 2.0, 3.0, 4.0, 99.0], [1.0, 2.0, 3.0, 4.0, 5.0]])).tolist()
        [1, 0]
    """
    scores = as_float(scores)
    low, high = quantile(scores, 0.25), quantile(scores, 0.75)
    return (scores > high + 1.5 * (high - low)).sum(dim=-1)


def local_outlier_factors(values: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Local outlier factors of plain numbers: how much sparser it is around each than around its neighbours.

    Breunig et al. (SIGMOD 2000) with the constants of scikit-learn. On a line the `k` nearest of a number are among
    the `k` below and the `k` above it, so that this takes `O(tokens k)` after a sort. Of two neighbours at the same
    distance the smaller number counts as the nearer one; the order of the tokens does not matter.

    Args:
        values: `(batch, tokens)`.
        neighbours: The `k` of the method; all other tokens where there are fewer.

    Returns:
        `(batch, tokens)` float64, about 1 inside a cluster; 1 for a single token.

    Example:
        >>> local_outlier_factors(torch.tensor([[0.0, 1.0, 2.0, 9.0]]), 2).round(decimals=1).tolist()
        [[0.9, 1.3, 0.9, 4.4]]
    """
    count = values.shape[-1]
    nearest = min(neighbours, count - 1)
    if nearest < 1:
        return torch.ones_like(values, dtype=torch.float64)
    ranked, order = values.double().sort(dim=-1)

    def around(numbers: torch.Tensor) -> torch.Tensor:
        return pad(numbers, (nearest, nearest), value=torch.inf).unfold(-1, 2 * nearest + 1, 1)

    distances = (around(ranked) - ranked.unsqueeze(-1)).abs()
    distances[..., nearest] = torch.inf  # no token is its own neighbour
    distances, chosen = distances.sort(dim=-1, stable=True)
    distances, chosen = distances[..., :nearest], chosen[..., :nearest]
    reach = torch.maximum(distances, around(distances[..., -1]).gather(-1, chosen))
    density = 1 / (reach.mean(dim=-1) + _EPSILON)
    factors = around(density).gather(-1, chosen).mean(dim=-1) / density
    return torch.empty_like(factors).scatter(-1, order, factors)


def lof_outlier_count(values: torch.Tensor, neighbours: int) -> torch.Tensor:
    """How many numbers have a local outlier factor above 1.5.

    Recoverable Compression (arXiv 2409.01179) finds its token counts so.

    Args:
        values: `(batch, tokens)`.
        neighbours: As in `local_outlier_factors`.

    Returns:
        `(batch,)` int64, 0 where all values are equal.

    Example:
        >>> lof_outlier_count(torch.tensor([[0.0, 1.0, 2.0, 9.0], [5.0, 5.0, 5.0, 5.0]]), 2).tolist()
        [1, 0]
    """
    return (local_outlier_factors(values, neighbours) > 1.5).sum(dim=-1)
