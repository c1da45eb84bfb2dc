"""Text-guided scores of visual tokens."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.kernels import use_kernels
from vtprune.ops.gather import take
from vtprune.ops.host import is_at_hand

_EPSILON = 1e-6


def min_max(values: torch.Tensor) -> torch.Tensor:
    """Maps the last dimension to [0, 1] by its own extremes; constant values become 0."""
    low, high = values.aminmax(dim=-1, keepdim=True)
    return (values - low) / (high - low + _EPSILON)


def quantile(values: torch.Tensor, share: float) -> torch.Tensor:
    """Linearly interpolated quantile of the last dimension, `(..., 1)`; `torch.quantile` refuses large inputs.

    Example:
        >>> quantile(torch.tensor([4.0, 1.0, 2.0]), 0.75).item()
        3.0
    """
    rank = share * (values.shape[-1] - 1)
    below = int(rank)
    above = min(below + 1, values.shape[-1] - 1)
    ranked = values.sort(dim=-1).values
    return torch.lerp(ranked[..., below : below + 1], ranked[..., above : above + 1], rank - below)


@torch.no_grad()
def text_relevance(
    tokens: torch.Tensor,
    words: torch.Tensor,
    word_mask: torch.Tensor,
    *,
    word_temperature: float = 0.05,
    token_temperature: float = 0.01,
    sharpness: float = 2.5,
    gate_quantile: float = 0.995,
    gate_factor: float = 0.1,
) -> torch.Tensor:
    """How much the prompt speaks of each token, in [0, 1].

    FlashVLM (arXiv 2512.20561): cosines `S` to all words; soft selection `s = sum over words of softmax(S / tau) S`;
    a softmax over tokens raised to `sharpness`; values below a quantile are damped. In float64 (by kernels, cosines of
    half precision in float32), because the later steps of that method turn rounding differences into different choices.
    What stands at masked words never matters;
    a prompt without words gives 0 for every token.

    Args:
        tokens: Visual tokens in the language model's space, `(batch, tokens, dim)`.
        words: Text embeddings, `(batch, length, dim)`.
        word_mask: `True` at words, `(batch, length)`.
        word_temperature: Of the soft selection over words.
        token_temperature: Of the softmax over tokens.
        sharpness: Exponent after that softmax.
        gate_quantile: Tokens below this quantile are damped.
        gate_factor: By what they are multiplied.

    Returns:
        `(batch, tokens)` float64.

    Raises:
        ValueError: Tokens and words differ in width.

    Example:
        >>> tokens, words = torch.eye(3)[None], torch.tensor([[[0.0, 1.0, 0.0]]])
        >>> text_relevance(tokens, words, torch.tensor([[True]])).argmax().item()
        1
    """
    if tokens.shape[-1] != words.shape[-1]:
        raise ValueError(f"tokens are {tokens.shape[-1]} wide but words {words.shape[-1]}; both must be in one space")
    if words.shape[1] == 0:
        return tokens.new_zeros(tokens.shape[:2], dtype=torch.float64)
    if use_kernels(tokens):
        from vtprune.kernels.relevance import MOST_TOKENS, MOST_WORDS, relevance

        if tokens.shape[1] <= MOST_TOKENS and words.shape[1] <= MOST_WORDS:
            return relevance(
                _cosines(tokens, words, word_mask),
                word_mask,
                word_temperature=word_temperature,
                token_temperature=token_temperature,
                sharpness=sharpness,
                gate_quantile=gate_quantile,
                gate_factor=gate_factor,
            )
    if is_at_hand(word_mask):
        words, word_mask = _close_ranks(words, word_mask)
    visual = normalize(tokens.double(), dim=-1)
    textual = normalize(words.double().masked_fill(~word_mask.unsqueeze(-1), 0), dim=-1)
    # The published gate by word norms is measured after normalisation, so that it scales every word alike.
    norms = textual.norm(dim=-1, keepdim=True)
    textual = textual * norms / (norms.amax(dim=1, keepdim=True) + _EPSILON)
    cosine = visual @ textual.mT
    # The lowest finite number: -inf would turn a prompt without words into NaN.
    logits = (cosine / word_temperature).masked_fill(~word_mask.unsqueeze(1), torch.finfo(cosine.dtype).min)
    selected = (logits.softmax(dim=-1) * cosine).sum(dim=-1)
    sharpened = min_max((selected / token_temperature).softmax(dim=-1) ** sharpness)
    gated = torch.where(sharpened < quantile(sharpened, gate_quantile), sharpened * gate_factor, sharpened)
    return min_max(gated) * word_mask.any(dim=1, keepdim=True)


def _close_ranks(words: torch.Tensor, word_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As many words as the longest prompt has, at least one."""
    count = max(1, int(word_mask.sum(dim=1).max()))
    order = word_mask.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :count]
    return take(words, order), word_mask.gather(1, order)


def _cosines(tokens: torch.Tensor, words: torch.Tensor, word_mask: torch.Tensor) -> torch.Tensor:
    """Cosines of tokens and words, 0 for masked words."""
    words = words.masked_fill(~word_mask.unsqueeze(-1), 0)
    if use_kernels(tokens) and tokens.element_size() == 2 and tokens.dtype == words.dtype:
        from vtprune.kernels.gram import cross_cosine

        return cross_cosine(tokens, words)
    return normalize(tokens.double(), dim=-1) @ normalize(words.double(), dim=-1).mT


def spread_blend(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`geometric_blend` of the first scores mapped to [0, 1] and the second ones, in float64, `(batch, tokens)` each.

    Example:
        >>> spread_blend(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 1.0]])).round(decimals=2).tolist()
        [[0.0, 1.0]]
    """
    if use_kernels(first):
        from vtprune.kernels.relevance import MOST_TOKENS, blend

        if first.shape[1] <= MOST_TOKENS:
            return blend(first, second)
    return geometric_blend(min_max(first.double()), second.double())


def geometric_blend(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Geometric mean of two scores in [0, 1], each raised to at least 1e-6, mapped to [0, 1] again.

    Example:
        >>> geometric_blend(torch.tensor([0.25, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])).round(decimals=2).tolist()
        [0.5, 1.0, 0.0]
    """
    return min_max((0.5 * first.clamp_min(_EPSILON).log() + 0.5 * second.clamp_min(_EPSILON).log()).exp())
