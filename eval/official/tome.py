"""ToMe's merging: bipartite matching round by round, with scatters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Matching:
    """Which even tokens join which odd ones.

    Args:
        unmerged: Even tokens that stay, `(batch, any, 1)`.
        source: Even tokens that join, `(batch, merges, 1)`.
        target: Odd tokens that they join, `(batch, merges, 1)`.
    """

    unmerged: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor

    def merge(self, states: torch.Tensor, mode: str) -> torch.Tensor:
        """The unmerged tokens, then all odd ones; `mode` is that of `scatter_reduce`."""
        even, odd = states[:, ::2], states[:, 1::2]
        dim = states.shape[-1]
        unmerged = even.gather(1, self.unmerged.expand(-1, -1, dim))
        source = even.gather(1, self.source.expand(-1, -1, dim))
        return torch.cat([unmerged, odd.scatter_reduce(1, self.target.expand(-1, -1, dim), source, mode)], dim=1)


def match(metric: torch.Tensor, merges: int, *, class_token: bool = False) -> Matching:
    """Finds the `merges` most similar pairs of an even and an odd token in `(batch, tokens, dim)`."""
    merges = min(merges, (metric.shape[1] - int(class_token)) // 2)
    unit = metric / metric.norm(dim=-1, keepdim=True)
    scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    if class_token:
        scores[:, 0] = -float("inf")
    best, partner = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True).unsqueeze(-1)
    source, unmerged = order[:, :merges], order[:, merges:]
    if class_token:
        unmerged = unmerged.sort(dim=1).values
    return Matching(unmerged, source, partner.unsqueeze(-1).gather(1, source))


def tome(
    states: torch.Tensor, metric: torch.Tensor, rounds: Sequence[int], *, class_token: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merged states `(1, left, dim)` and their sizes `(1, left, 1)` after rounds that merge so many pairs.

    Means are weighted by size; the metric is carried along.
    """
    size = torch.ones_like(states[..., :1])
    for merges in rounds:
        matching = match(metric, merges, class_token=class_token)
        total = matching.merge(size, "sum")
        metric = matching.merge(metric * size, "sum") / total
        states = matching.merge(states * size, "sum") / total
        size = total
    return states, size
