"""Plain loops of the scores, quotas and picks of chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def chunk_lists(tokens: int, chunks: int) -> list[list[int]]:
    """Token indices of each chunk."""
    found, start = [], 0
    for chunk in range(chunks):
        size = tokens // chunks + (1 if chunk < tokens % chunks else 0)
        found.append(list(range(start, start + size)))
        start += size
    return found


def holistic_scores(
    features: torch.Tensor, attention: Sequence[float], chunks: int, *, weight: float = 0.09
) -> list[float]:
    """HoloV's score of each of `(tokens, dim)`."""
    scores = []
    for chunk in chunk_lists(len(features), chunks):
        unit = [features[token].double() / (float(features[token].double().norm()) + 1e-6) for token in chunk]
        spreads = []
        for one in range(len(chunk)):
            row = [0.0 if one == other else float(unit[one] @ unit[other]) for other in range(len(chunk))]
            others = max(1, len(chunk) - 1)
            spreads.append(sum((cosine - sum(row) / others) ** 2 for cosine in row) / others)
        given = [1000 * attention[token] for token in chunk]
        level = sum(map(abs, given)) / len(chunk) / (sum(spreads) / len(chunk) + 1e-6)
        scores += [one + weight * spread * level for one, spread in zip(given, spreads, strict=True)]
    return scores


def chunk_quotas(
    scores: Sequence[float], chunks: int, budget: int, *, sharpness: float = 1.0, reallocate: bool = True
) -> list[int]:
    """HoloV's quotas of the chunks."""
    parts = chunk_lists(len(scores), chunks)
    means = [max(0.0, sum(scores[token] for token in part) / len(part)) ** sharpness for part in parts]
    weights = [mean / (sum(means) + 1e-6) for mean in means]
    quotas = [math.floor(weight * budget) for weight in weights]
    for chunk in _falling(weights)[: budget - sum(quotas)]:
        quotas[chunk] += 1
    if not reallocate:
        return quotas
    quotas = [min(quota, len(part)) for quota, part in zip(quotas, parts, strict=True)]
    weights = [max(weight, 1e-9) for weight in weights]
    free = set(range(chunks))
    while True:
        left = budget - sum(quotas)
        parted = {chunk: left * weights[chunk] / sum(weights[other] for other in sorted(free)) for chunk in free}
        full = {chunk for chunk in free if parted[chunk] >= len(parts[chunk]) - quotas[chunk] - 1e-6}
        if not full:
            break
        for chunk in full:
            quotas[chunk] = len(parts[chunk])
        free -= full
    for chunk, part in parted.items():
        quotas[chunk] += math.floor(part)
    for chunk in [chunk for chunk in _falling(weights) if chunk in free][: budget - sum(quotas)]:
        quotas[chunk] += 1
    return quotas


def _falling(weights: Sequence[float]) -> list[int]:
    return sorted(range(len(weights)), key=lambda chunk: (-weights[chunk], chunk))


def best_of_chunks(scores: Sequence[float], quotas: Sequence[int], budget: int) -> list[int]:
    """HoloV's picks chunk by chunk, -1 where there is none."""
    picks: list[int] = []
    for part, quota in zip(chunk_lists(len(scores), len(quotas)), quotas, strict=True):
        if quota >= len(part):
            picks += part
        else:
            picks += sorted(part, key=lambda token: (-scores[token], token))[:quota]
    return picks + [-1] * (budget - len(picks))
