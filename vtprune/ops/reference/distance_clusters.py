"""Plain loops of the clustering around dense tokens, for one picture."""

from __future__ import annotations

import math

import torch

from vtprune.ops.reference.seeds import cosine


def cosine_distance(states: torch.Tensor) -> torch.Tensor:
    """Distances of all pairs of `(tokens, dim)`."""
    pairs = [[0.0 if one is two else 1 - cosine(one, two) for two in states.unbind()] for one in states.unbind()]
    for token in range(len(states)):
        pairs[token][token] = 0.0
    return torch.tensor(pairs)


def visits(distance: torch.Tensor) -> list[int]:
    """Tokens by falling density."""
    density = [sum(round(math.exp(-((value / 2) ** 2)) * 2**30) for value in row) for row in distance.tolist()]
    return sorted(range(len(density)), key=lambda token: -density[token])


def visit_centres(rows: list[list[float]], order: list[int], cutoff: float) -> list[int]:
    """The sequential rule: in the order of visit every token that is farther than `cutoff` from all centres so far."""
    centres: list[int] = []
    for token in order:
        if all(rows[token][centre] > cutoff for centre in centres):
            centres.append(token)
    return centres


def density_centres(distance: torch.Tensor, cutoff: float) -> list[int]:
    """The centres of one cutoff, ascending."""
    return sorted(visit_centres(distance.tolist(), visits(distance), float(distance.new_tensor(cutoff))))


def budget_centres(distance: torch.Tensor, count: int, cutoff: float) -> tuple[list[int], float]:
    """Exactly `count` centres by a search for the cutoff, which comes too."""
    rows, order = distance.tolist(), visits(distance)
    best = distance.new_tensor(cutoff)
    steps = torch.arange(64, dtype=distance.dtype)
    falling = list(2 * 0.8**steps)
    for _ in range(2):
        tried = [float(value) for value in (best, *falling)]
        centres = [visit_centres(rows, order, value) for value in tried]
        found = [len(some) if len(some) <= count else 0 for some in centres]
        place = min(range(len(tried)), key=lambda place: (-found[place], place > 0, tried[place]))
        best = distance.new_tensor(tried[place])
        falling = list(best * (1 - (1 - 0.8) / 64 * steps))
    few = centres[place]
    misfits = [place for place, some in enumerate(centres) if len(some) > count]
    many = centres[max(misfits, key=lambda place: tried[place])][:count] if misfits else few

    def rank(token: int) -> tuple[int, float, int]:
        nearest = min(rows[token][centre] for centre in few)
        return -(8 * (token in few) + 4 * (token in many)), -nearest, order.index(token)

    return sorted(sorted(order, key=rank)[:count]), float(best)


def cluster_means(
    features: torch.Tensor, distance: torch.Tensor, centres: list[int], joins: list[bool]
) -> tuple[torch.Tensor, list[int]]:
    """Means and sizes of the clusters of `(tokens, dim)`."""
    members: list[list[int]] = [[] for _ in centres]
    for token, row in enumerate(distance.tolist()):
        if token in centres:
            members[centres.index(token)].append(token)
        elif joins[token]:
            members[row.index(min(row))].append(token)
    means = [torch.stack([features[token].double() for token in cluster]).mean(0) for cluster in members]
    return torch.stack(means).to(features.dtype), [len(cluster) for cluster in members]
