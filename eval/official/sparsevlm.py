"""The selections of SparseVLM, with clusters of what it removes, and of SparseVLM+, on whole attention maps."""

from __future__ import annotations

import torch


def text_raters(visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Words behind the image that are more like it than the average word, ascending.

    Args:
        visual: Input embeddings of the image, `(tokens, dim)`.
        text: Those of the words behind it, `(words, dim)`.
    """
    score = (visual @ text.T).softmax(dim=1).mean(dim=0)
    return torch.where(score > score.mean())[0]


def sparsevlm(
    hidden: torch.Tensor,
    attention: torch.Tensor,
    raters: torch.Tensor,
    start: int,
    tokens: int,
    count: int,
    *,
    noise: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that stay as they are, as a mask, and the states of the sequence with clusters of the others.

    Args:
        hidden: States that leave the layer, `(1, length, dim)`.
        attention: Whole map of the layer, `(1, heads, length, length)`.
        raters: Words behind the image.
        start: First slot of the image.
        tokens: Its tokens that are present.
        count: Tokens that stay as they are.
        noise: Height of the noise on densities.
    """
    mask, score = _mask(attention, raters, start, tokens, count)
    span = hidden[0, start : start + tokens]
    gone = torch.where(~mask)[0]
    recycled = gone[score[gone].topk(int(0.3 * len(gone)) + 1).indices]
    merged = _clusters(span[recycled], len(recycled) // 10 + 1, noise)
    behind = hidden[0, start + tokens :]
    return mask, torch.cat([hidden[0, :start], span[mask], merged, behind])[None]


def sparsevlm_plus(
    hidden: torch.Tensor,
    attention: torch.Tensor,
    raters: torch.Tensor,
    places: torch.Tensor,
    head_dim: int,
    start: int,
    tokens: int,
    count: int,
    *,
    heads: int = 14,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that stay, as a mask, and the states of the sequence.

    Args:
        hidden: States that leave the layer, `(1, length, dim)`.
        attention: Whole map of the layer, `(1, heads, length, length)`.
        raters: Words behind the image.
        places: Positions of the sequence, `(length,)`.
        head_dim: Width of a head.
        start: First slot of the image.
        tokens: Its tokens that are present.
        count: Tokens that stay.
        heads: Heads that count.
    """
    attention = attention / _gravity(places, head_dim).to(attention.dtype)
    rows = attention[0, :, raters + start + tokens, start : start + tokens]
    strongest = rows.sum(dim=(1, 2)).topk(min(heads, len(rows))).indices
    mask, _ = _mask(attention[:, strongest], raters, start, tokens, count)
    span = hidden[0, start : start + tokens]
    return mask, torch.cat([hidden[0, :start], span[mask], hidden[0, start + tokens :]])[None]


def _mask(
    attention: torch.Tensor, raters: torch.Tensor, start: int, tokens: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    mean = attention.mean(dim=1)[0]
    score = mean[raters + start + tokens, start : start + tokens].mean(dim=0)
    kept = score.topk(min(count, tokens - 1)).indices
    mask = torch.zeros(tokens, dtype=torch.bool, device=score.device)
    mask[kept] = True
    return mask, score


def _clusters(points: torch.Tensor, clusters: int, noise: float) -> torch.Tensor:
    """Means of clusters around density peaks, `(clusters, dim)`, best centre first."""
    distance = torch.cdist(points.float(), points.float()) / points.shape[-1] ** 0.5
    nearest = distance.topk(clusters, dim=-1, largest=False).values
    density = (-nearest.square().mean(dim=-1)).exp()
    density = density + torch.rand(density.shape, device=density.device) * noise
    denser = density.unsqueeze(0) > density.unsqueeze(1)
    apart = torch.where(denser, distance, distance.max()).min(dim=-1).values
    centres = (density * apart).topk(clusters).indices
    home = distance[centres].argmin(dim=0)
    home[centres] = torch.arange(clusters, device=home.device)
    member = torch.nn.functional.one_hot(home, clusters).to(points.dtype)
    return member.T @ points / (member.sum(dim=0).unsqueeze(-1) + 1e-6)


def _gravity(places: torch.Tensor, head_dim: int) -> torch.Tensor:
    """What rotary positions alone give between all places: products of rotated ones over the root of the width."""
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, device=places.device).float() / head_dim)
    angles = (places.float().unsqueeze(-1) * frequencies).repeat(1, 2)
    ones = torch.ones(len(places), head_dim, device=places.device)
    half = head_dim // 2
    turned = torch.cat([-ones[:, half:], ones[:, :half]], dim=-1)
    rotated = ones * angles.cos() + turned * angles.sin()
    gravity: torch.Tensor = rotated @ rotated.T / head_dim**0.5
    return gravity
