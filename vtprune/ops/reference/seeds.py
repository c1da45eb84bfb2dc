"""Plain loops of the operations behind the first methods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def stable_topk(scores: torch.Tensor, keep: int) -> list[int]:
    """The `keep` highest of `(tokens,)` scores, the lower index first among equals."""
    return sorted(range(len(scores)), key=lambda token: (-float(scores[token]), token))[:keep]


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Cosine of two vectors, 0 where one is zero."""
    first, second = first.double(), second.double()
    length = float(first.norm() * second.norm())
    return float(first @ second) / length if length > 0 else 0.0


def max_min(tokens: torch.Tensor, keep: int, present: Sequence[bool] | None = None) -> list[int]:
    """DivPrune's greedy picks among `(tokens, dim)`; those that are no numbers and the absent ones come last."""
    count = len(tokens)
    distance = [[1 - cosine(first, second) for second in tokens] for first in tokens]
    there = [True] * count if present is None else list(present)
    counts = [there[token] and bool(tokens[token].isfinite().all()) for token in range(count)]
    last = [token for token in range(count) if there[token] and not counts[token]]
    last += [token for token in range(count) if not there[token]]

    def nearest_other(token: int) -> float:
        return min(
            (distance[token][other] for other in range(count) if counts[other] and other != token), default=math.inf
        )

    left = [token for token in range(count) if counts[token]]
    picked: list[int] = []
    while left and len(picked) < keep:
        if picked:
            picked.append(max(left, key=lambda token: (min(distance[token][other] for other in picked), -token)))
        else:
            picked.append(max(left, key=lambda token: (nearest_other(token), -token)))
        left.remove(picked[-1])
    return (picked + last)[:keep]


def matrix_entropy(states: torch.Tensor, *, group: int = 1, normalize_trace: bool = False) -> torch.Tensor:
    """EntropyPrune's entropy of each token of `(heads, tokens, channels)`, from the covariance of channels itself."""
    heads, tokens, channels = states.shape
    result = []
    for token in range(tokens):
        matrix = states[:, token].double().reshape(heads, channels // group, group).mean(-1)
        matrix = matrix - matrix.mean(0)
        covariance = matrix.T @ matrix / heads
        if normalize_trace and covariance.trace() > 0:
            covariance = covariance / covariance.trace()
        eigenvalues = torch.linalg.eigvalsh(covariance).clamp(min=0)
        result.append(-torch.xlogy(eigenvalues, eigenvalues).sum() / math.log(max(heads, 2)))
    return torch.stack(result)


def _min_max(values: list[float]) -> list[float]:
    return [(value - min(values)) / (max(values) - min(values) + 1e-6) for value in values]


def _softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def text_relevance(
    tokens: torch.Tensor,
    words: torch.Tensor,
    *,
    word_temperature: float = 0.05,
    token_temperature: float = 0.01,
    sharpness: float = 2.5,
    gate_quantile: float = 0.995,
    gate_factor: float = 0.1,
) -> list[float]:
    """FlashVLM's relevance of `(tokens, dim)` to `(length, dim)` words, all of them text."""
    if len(words) == 0:
        return [0.0] * len(tokens)
    norms = [1.0 if float(word.norm()) > 0 else 0.0 for word in words]
    gates = [norm / (max(norms) + 1e-6) for norm in norms]
    selected = []
    for token in tokens:
        row = [cosine(token, word) * gate for word, gate in zip(words, gates, strict=True)]
        weights = _softmax([value / word_temperature for value in row])
        selected.append(sum(weight * value for weight, value in zip(weights, row, strict=True)))
    sharp = _min_max([value**sharpness for value in _softmax([value / token_temperature for value in selected])])
    ranked, rank = sorted(sharp), gate_quantile * (len(sharp) - 1)
    low, high = ranked[math.floor(rank)], ranked[math.ceil(rank)]
    threshold = low + (high - low) * (rank - math.floor(rank))
    return _min_max([value * gate_factor if value < threshold else value for value in sharp])


def geometric_blend(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """FlashVLM's mean of two scores."""
    pairs = zip(first, second, strict=True)
    return _min_max([math.sqrt(max(one, 1e-6) * max(two, 1e-6)) for one, two in pairs])


def drop_redundant(features: torch.Tensor, keep: int, *, per_round: int = 8) -> list[int]:
    """VisPruner's thinning of a ranked list of `(members, dim)`."""
    members = list(range(len(features))) if keep else []
    alike = [[cosine(first, second) for second in features] for first in features]
    while len(members) > keep:
        even, odd = members[0::2], members[1::2]
        dropped = min(per_round, len(members) - keep, len(even))
        closest = {one: max(alike[one][other] for other in odd) for one in even}
        members = sorted(even, key=lambda one: -closest[one])[dropped:] + odd
    return members


def merge_into_targets(
    features: torch.Tensor, metric: torch.Tensor, targets: int
) -> tuple[torch.Tensor, list[int], list[int]]:
    """VisionZip's contextual tokens of `(tokens, dim)`; also the targets and where each other token went."""
    tokens = len(features)
    step = max(1, tokens // max(1, targets))
    chosen = [target * step for target in range(targets)]
    others = [token for token in range(tokens) if token not in chosen]
    assigned = []
    for token in others if targets else []:
        likeness = [cosine(metric[token], metric[target]) for target in chosen]
        assigned.append(likeness.index(max(likeness)))
    merged = features.new_zeros((targets, features.shape[1]), dtype=torch.float64)
    for target, position in enumerate(chosen):
        members = [features[token].double() for token, its in zip(others, assigned, strict=True) if its == target]
        mean = sum(members) / len(members) if members else 0.0
        merged[target] = features[position].double() + mean
    return merged, chosen, assigned


def block_pool(states: torch.Tensor, height: int, width: int, kernel: int) -> torch.Tensor:
    """M3's pooling of `(height * width, dim)`."""
    grid = states.double().reshape(height, width, -1)
    pooled = []
    for top in range(0, height // kernel * kernel, kernel):
        for left in range(0, width // kernel * kernel, kernel):
            pooled.append(grid[top : top + kernel, left : left + kernel].mean((0, 1)))
    return torch.stack(pooled)


def grid_cells(height: int, width: int, count: int) -> list[tuple[int, int, int, int]]:
    """Cells `(top, bottom, left, right)` of a grid cut into bands and the bands into `count` cells in all."""
    bands = max(1, -(-count // width), round(math.sqrt(count * height / width)))
    bands = min(bands, height, count)
    cells = []
    for band in range(bands):
        top, bottom = band * height // bands, (band + 1) * height // bands
        size = (band + 1) * count // bands - band * count // bands
        cells += [(top, bottom, place * width // size, (place + 1) * width // size) for place in range(size)]
    return cells


def cell_pool(states: torch.Tensor, height: int, width: int, count: int) -> tuple[torch.Tensor, list[int]]:
    """Means and centre patches of those cells of `(height * width, dim)`."""
    grid = states.double().reshape(height, width, -1)
    cells = grid_cells(height, width, count)
    means = [grid[top:bottom, left:right].mean((0, 1)) for top, bottom, left, right in cells]
    centres = [(top + bottom - 1) // 2 * width + (left + right - 1) // 2 for top, bottom, left, right in cells]
    return torch.stack(means), centres


def random_key(image: int, token: int, seed: int) -> int:
    """The random number of a token, with Python's unbounded integers; the int64 reading of 64 bits."""
    every = (1 << 64) - 1
    increment = 0x9E3779B97F4A7C15

    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & every
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & every
        return value ^ (value >> 31)

    stream = mix(mix((image + increment) & every) ^ seed)
    key = mix((stream + (token + 1) * increment) & every)
    return key - (1 << 64) if key >> 63 else key
