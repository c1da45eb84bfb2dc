"""The selections of LLaVA-PruMerge and PruMerge+: a loop over the kept patches, each merged with its neighbours."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize


def prumerge(
    hidden: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, *, ratio: float | None = None, plus: bool = False
) -> torch.Tensor:
    """The merged patches best first, then the sum of the rest, `(1, kept + 1, dim)`.

    Args:
        hidden: Encoder features with CLS, `(1, patches + 1, dim)`.
        queries: Of the last encoder layer at full width, `(1, patches + 1, dim)`.
        keys: Likewise.
        ratio: Share of the patches kept by attention; `None` takes that of outliers, read back from the device.
        plus: Whether evenly spaced patches are added.
    """
    attention = (queries @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5).softmax(dim=-1)[:, 0, 1:]
    states, keys = hidden[:, 1:], keys[:, 1:]
    patches = states.shape[1]
    share = _outlier_ratio(attention) if ratio is None else ratio
    chosen = attention.topk(int(patches * share), dim=1).indices[0]
    if plus:
        chosen = torch.cat([chosen, _spaced(chosen, patches, share, training=ratio is not None)])
    rest = _complement(chosen, patches)
    unit = normalize(keys[0], dim=-1)
    own_keys, own_states, own_weights = unit[chosen], states[0, chosen], attention[0, chosen]
    rest_keys, rest_states, rest_weights = unit[rest], states[0, rest], attention[0, rest]
    merged = torch.zeros_like(own_states)
    for number in range(len(chosen)):
        other_keys = torch.cat([own_keys[:number], own_keys[number + 1 :], rest_keys])
        other_states = torch.cat([own_states[:number], own_states[number + 1 :], rest_states])
        other_weights = torch.cat([own_weights[:number], own_weights[number + 1 :], rest_weights])
        near = (own_keys[number] @ other_keys.T).topk(32).indices
        added = (other_weights[near].unsqueeze(-1) * other_states[near]).sum(dim=0)
        merged[number] = own_states[number] + added
    extra = (rest_weights.unsqueeze(-1) * rest_states).sum(dim=0, keepdim=True)
    return torch.cat([merged, extra])[None]


def _outlier_ratio(attention: torch.Tensor) -> float:
    values = attention.float().cpu().numpy().flatten()
    low, high = np.percentile(values, 25), np.percentile(values, 75)
    return float((values > high + 1.5 * (high - low)).sum() / len(values))


def _spaced(chosen: torch.Tensor, patches: int, share: float, *, training: bool) -> torch.Tensor:
    """Evenly spaced patches; those chosen already are left out except in the mode for training."""
    step = int(1 / share)
    if training:
        return torch.arange(step // 2, patches - 1, step, device=chosen.device)
    taken = chosen.tolist()
    return torch.tensor([patch for patch in range(0, patches - 1, int(step / 3)) if patch not in taken]).to(chosen)


def _complement(chosen: torch.Tensor, patches: int) -> torch.Tensor:
    """What was not chosen; patches chosen twice leave zeros at the start."""
    every = torch.arange(patches, device=chosen.device)
    return every.scatter(0, chosen, 0).sort().values[len(chosen) :]
