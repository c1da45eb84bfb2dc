"""FlashVLM's selection: relevance to the prompt's words, blended with attention, and VisPruner's thinning."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.eval.official.vispruner import thinned


def flashvlm(
    features: torch.Tensor, attention: torch.Tensor, projected: torch.Tensor, words: torch.Tensor, count: int
) -> torch.Tensor:
    """Patches that stay, ascending, `(count,)`.

    Args:
        features: Encoder features, `(1, patches, dim)`.
        attention: Whole map of the encoder layer, `(1, heads, patches + 1, patches + 1)`.
        projected: The features behind the projector, `(1, patches, llm_dim)`.
        words: Input embeddings of the prompt's words, `(words, llm_dim)`; none for no text.
        count: Patches to keep.
    """
    seen = _spread(attention[0, :, 0, 1:].float().mean(dim=0)).clamp(min=1e-6)
    relevant = _relevance(projected[0].float(), words.float()) if len(words) else torch.zeros_like(seen)
    score = _spread(torch.exp(0.5 * seen.log() + 0.5 * relevant.clamp(min=1e-6).log()))
    order = score.argsort(descending=True)
    important = count // 2
    rest = thinned(features, order[None, important:], count - important)[0]
    return torch.cat([order[:important], rest]).sort().values


def _relevance(projected: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    visual, text = normalize(projected, dim=-1), normalize(words, dim=-1)
    length = text.norm(dim=-1, keepdim=True)
    text = text * (length / (length.max() + 1e-6))
    cosine = visual @ text.T
    selected = ((cosine / 0.05).softmax(dim=-1) * cosine).sum(dim=-1)
    sharp = _spread((selected / 0.01).softmax(dim=0).pow(2.5))
    gate = torch.quantile(sharp, 0.995)
    return _spread(torch.where(sharp >= gate, sharp, sharp * 0.1))


def _spread(values: torch.Tensor) -> torch.Tensor:
    return (values - values.min()) / (values.max() - values.min() + 1e-6)
