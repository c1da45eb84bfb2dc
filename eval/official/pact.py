"""PACT's reduction: importance from the mean query, then centres among dense keys, found round by round."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize


@dataclass(frozen=True)
class Outcome:
    """What is made of the tokens of one image.

    Args:
        importance: Of every token, `(tokens,)`.
        kept: Tokens that are clustered, as a mask `(tokens,)`.
        centre: Which of those are centres, `(kept,)`.
        features: Means of the clusters in raster order of their centres, `(centres, dim)`.
        sizes: Tokens of each cluster, `(centres,)`.
    """

    importance: torch.Tensor
    kept: torch.Tensor
    centre: torch.Tensor
    features: torch.Tensor
    sizes: torch.Tensor


def pact(
    hidden: torch.Tensor,
    queries: torch.Tensor,
    unrotated_keys: torch.Tensor,
    keys: torch.Tensor,
    *,
    keep: float = 0.55,
    cutoff: float = 0.21,
    recovery: float = 1.5,
) -> Outcome:
    """Drops unimportant tokens and clusters the others.

    Args:
        hidden: States, `(tokens, dim)`.
        queries: Without rotary, `(heads, tokens, head_dim)`.
        unrotated_keys: Without rotary, `(kv_heads, tokens, head_dim)`.
        keys: After rotary, `(kv_heads, tokens, head_dim)`.
        keep: Share of the tokens that is clustered.
        cutoff: Distance up to which a token belongs to a denser centre.
        recovery: Dropped tokens join a cluster within so many cutoffs.
    """
    heads, tokens, width = queries.shape
    shared = unrotated_keys.repeat_interleave(heads // len(unrotated_keys), dim=0)
    look = (queries.mean(dim=1, keepdim=True) @ shared.transpose(1, 2) * width**-0.5).softmax(dim=-1)
    importance = look.mean(dim=0)[0] * hidden.norm(dim=-1)
    mask = torch.zeros(tokens, dtype=torch.bool, device=hidden.device)
    mask[importance.topk(int(tokens * keep)).indices] = True
    states, pruned = hidden[mask], hidden[~mask]
    every = keys.transpose(0, 1).flatten(1)
    unit, pruned_unit = normalize(every[mask], dim=-1), normalize(every[~mask], dim=-1)
    distance = 1 - unit @ unit.T
    density = torch.exp(-((distance / 2) ** 2)).sum(dim=1)
    centre = _centres(distance, density, cutoff)
    numbers = centre.nonzero().squeeze(1)
    home = distance[:, numbers].argmin(dim=1)
    home[numbers] = torch.arange(len(numbers), device=home.device)
    far, pruned_home = (1 - pruned_unit @ unit[numbers].T).min(dim=1)
    near = far <= recovery * cutoff
    states, home = torch.cat([states, pruned[near]]), torch.cat([home, pruned_home[near]])
    total = torch.zeros(len(numbers), hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
    total.index_add_(0, home, states)
    sizes = torch.zeros(len(numbers), dtype=hidden.dtype, device=hidden.device)
    sizes.index_add_(0, home, torch.ones_like(home, dtype=hidden.dtype))
    return Outcome(importance, mask, centre, total / sizes.unsqueeze(-1), sizes)


def _centres(distance: torch.Tensor, density: torch.Tensor, cutoff: float) -> torch.Tensor:
    """The tokens that are farther than `cutoff` from every denser centre, judged round by round until none is left."""
    place = density.argsort(descending=True, stable=True).argsort()
    denser = place.unsqueeze(0) < place.unsqueeze(1)
    near = distance <= cutoff
    centre = torch.zeros_like(place, dtype=torch.bool)
    left = torch.ones_like(centre)
    while left.any().item():
        rivals = near & denser & left.unsqueeze(0)
        fresh = left & ~rivals.any(dim=1)
        centre = centre | fresh
        left = left & ~fresh & ~near[:, fresh].any(dim=1)
    return centre
