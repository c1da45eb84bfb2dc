"""PageRank over attention: which tokens a walk along attention ends at."""

from __future__ import annotations

import math

import torch

from vtprune.kernels import use_kernels

_ELEMENTS_PER_PASS = 1 << 24


@torch.no_grad()
def page_rank(
    logits: torch.Tensor, start: torch.Tensor | None = None, *, steps: int = 5, temperature: float = 0.1
) -> torch.Tensor:
    """Importance of every token after a few steps along sharpened attention.

    AIM (arXiv 2412.03248): with `M = softmax(logits / temperature)` of each head, `d` starts uniform and becomes `d M`
    `steps` times; importance is the root mean square of `d` over heads. In float64: what a sharp softmax leaves to most
    tokens would vanish in float32, and with it their order.

    Args:
        logits: Scaled dot products of queries with keys, very low where a query may not look,
            `(batch, heads, tokens, tokens)`.
        start: Weights of the tokens at the start, `(batch, tokens)`, adding up to 1; uniform by default.
        steps: Steps of the walk, 0 or more.
        temperature: Of the softmax.

    Returns:
        `(batch, tokens)` float64.

    Example:
        >>> logits = torch.tensor([[0.0, -1e9], [1.0, 1.0]]).view(1, 1, 2, 2)
        >>> page_rank(logits, steps=1).tolist()
        [[0.75, 0.25]]
    """
    return _root_mean_square(_walk(logits, start, steps, temperature))


@torch.no_grad()
def attention_page_rank(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scaling: float,
    allowed: torch.Tensor,
    start: torch.Tensor | None = None,
    *,
    steps: int = 5,
    temperature: float = 0.1,
) -> torch.Tensor:
    """`page_rank` of the attention between queries and keys, a few heads at a time so that the maps fit into memory.

    A kernel for half precision never holds a map: products are summed in float32 there, and weights kept as logarithms.

    Args:
        queries: `(batch, heads, tokens, head_dim)`.
        keys: `(batch, kv_heads, tokens, head_dim)`; grouped-query models have fewer key heads.
        scaling: Factor on the dot products.
        allowed: `True` where a query may look at a key, `(batch, tokens, tokens)`.
        start: See `page_rank`.
        steps: See `page_rank`.
        temperature: See `page_rank`.

    Returns:
        `(batch, tokens)` float64.

    Raises:
        ValueError: The number of heads is no multiple of the number of key heads.

    Example:
        >>> states = torch.zeros(1, 1, 2, 4)
        >>> attention_page_rank(states, states, 1.0, torch.ones(2, 2).tril().bool()[None], steps=1).tolist()
        [[0.75, 0.25]]
    """
    batch, heads, tokens, _ = queries.shape
    if heads % keys.shape[1]:
        raise ValueError(f"{heads} query heads do not divide among {keys.shape[1]} key heads")
    if use_kernels(queries) and queries.dtype == keys.dtype and queries.dtype in (torch.bfloat16, torch.float16):
        from vtprune.kernels.page_rank import half_page_rank

        return half_page_rank(queries, keys, scaling, allowed, start, steps=steps, temperature=temperature)
    group = heads // keys.shape[1]
    chunk = max(1, _ELEMENTS_PER_PASS // (batch * tokens * tokens))
    walks = []
    for first in range(0, heads, chunk):
        here = torch.arange(first, min(first + chunk, heads), device=keys.device) // group
        logits = queries[:, first : first + chunk].double() @ keys[:, here].double().mT
        logits.mul_(scaling).masked_fill_(~allowed.unsqueeze(1), torch.finfo(torch.float32).min)
        walks.append(_walk(logits, start, steps, temperature))
    return _root_mean_square(torch.cat(walks, dim=1))


def _walk(logits: torch.Tensor, start: torch.Tensor | None, steps: int, temperature: float) -> torch.Tensor:
    """Where the walk of each head ends, `(batch, heads, tokens)`."""
    transition = (logits.double() / temperature).softmax(dim=-1)
    where = transition.new_full(transition.shape[:-1], 1 / transition.shape[-1]).unsqueeze(2)
    if start is not None:
        where = start.double()[:, None, None].expand_as(where)
    for _ in range(steps):
        where = where @ transition
    return where.squeeze(2)


def _root_mean_square(values: torch.Tensor) -> torch.Tensor:
    """Over heads; scaled, because squares of what is nearly nothing would be nothing."""
    peak = values.amax(dim=1).clamp_min(torch.finfo(values.dtype).tiny)
    root: torch.Tensor = torch.linalg.vector_norm(values / peak.unsqueeze(1), dim=1)
    return peak * root / math.sqrt(values.shape[1])
