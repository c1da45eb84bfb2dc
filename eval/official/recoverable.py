"""Recoverable Compression's selection: outlier factors on the host, and a loop over cluster centres."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

_CLUSTER = 32
_TEXT_WEIGHT = 50


def outlier_ratio(values: torch.Tensor, neighbours: int) -> float:
    """Share of numbers with a local outlier factor above 1.5, worked out on the host as the published code does.

    That code calls scikit-learn there, which takes longer than this.
    """
    numbers = np.sort(values.float().cpu().numpy().astype(np.float64))
    place = np.arange(len(numbers))[:, None]
    # Of sorted numbers the nearest ones lie close by.
    around = place + np.concatenate([np.arange(-neighbours, 0), np.arange(1, neighbours + 1)])
    inside = (around >= 0) & (around < len(numbers))
    around = around.clip(0, len(numbers) - 1)
    apart = np.where(inside, np.abs(numbers[around] - numbers[:, None]), np.inf)
    nearest = np.argpartition(apart, neighbours - 1, axis=1)[:, :neighbours]
    distance, chosen = np.take_along_axis(apart, nearest, axis=1), np.take_along_axis(around, nearest, axis=1)
    reach = np.maximum(distance, distance.max(axis=1)[chosen])
    density = 1 / (reach.mean(axis=1) + 1e-10)
    factor = density[chosen].mean(axis=1) / density
    return float((factor > 1.5).sum() / len(numbers))


def recoverable(
    features: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    text_similarity: torch.Tensor,
    ratios: tuple[float, float, float] | None = None,
) -> torch.Tensor:
    """Kept patches in raster order, then cluster centres, then a summary, `(any, dim)`.

    Args:
        features: Encoder features, `(patches, dim)`.
        queries: Of the last encoder layer at full width, with CLS, `(patches + 1, dim)`.
        keys: Likewise.
        text_similarity: `(patches,)`.
        ratios: Shares kept by attention and by text, and of centres, used in place of those found; to reach a
            number of tokens. The outlier factors are worked out all the same.
    """
    patches, dim = features.shape
    attention = (queries @ keys.T * dim**-0.5).softmax(dim=-1)[0, 1:]
    keys = keys[1:]
    found = outlier_ratio(attention, 20)
    by_attention = attention.topk(int(patches * (ratios[0] if ratios else found))).indices
    similarity = text_similarity.clone()
    similarity[by_attention] = similarity.min()
    found = outlier_ratio(similarity, 20)
    left = patches - len(by_attention)
    by_text = similarity.topk(int(left * (ratios[1] if ratios else found))).indices
    kept = torch.cat([by_attention, by_text]).sort().values
    mask = torch.ones(patches, dtype=torch.bool, device=features.device)
    mask[kept] = False
    rest = mask.nonzero().squeeze(1)
    weight, states, likeness = attention[rest], features[rest], similarity[rest]
    found = outlier_ratio(weight, 10)
    # The width of the features stands where the number of patches is meant, as published.
    centres = weight.topk(int((ratios[2] * len(rest)) if ratios else (dim * found))).indices
    if not len(centres):
        return features[kept]
    # The keys of the first patches, not of those that are left: as published.
    unit = normalize(keys[: len(rest)], dim=-1)
    made = []
    for centre in centres:
        others = torch.cat([torch.arange(0, int(centre)), torch.arange(int(centre) + 1, len(rest))]).to(rest.device)
        score = unit[others] @ unit[centre] + _TEXT_WEIGHT * likeness[others]
        near = others[score.topk(_CLUSTER).indices]
        made.append(states[centre] + (weight[near].unsqueeze(-1) * states[near]).sum(dim=0))
    outside = torch.ones(len(rest), dtype=torch.bool, device=features.device)
    outside[centres] = False
    summary = (weight[outside].unsqueeze(-1) * states[outside]).sum(dim=0)
    return torch.cat([features[kept], torch.stack(made), summary.unsqueeze(0)])
