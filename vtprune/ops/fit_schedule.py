"""FitPrune's search for how many tokens each decoder layer can spare, from recorded attention; runs once, offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


class Fitted(NamedTuple):
    """What the search found.

    Args:
        alpha: The share of a layer's attention that removed tokens may hold.
        shares: Tokens left after each layer as a share of all, in (0, 1], never rising.
    """

    alpha: float
    shares: tuple[float, ...]


def mean_share(shares: Sequence[float]) -> float:
    """Visual tokens that a decoder layer processes on average, as a share of all.

    Each share is that left after a layer, hence what the next one processes; the first layer sees all tokens.

    Example:
        >>> mean_share((0.5, 0.25, 0.25))
        0.5
    """
    return (1 + sum(shares)) / (1 + len(shares))


@torch.no_grad()
def removal_tolerances(cross: Sequence[torch.Tensor], own: Sequence[torch.Tensor]) -> torch.Tensor:
    """The lowest alpha at which each token is gone after each layer, `(layers, samples, tokens)`, float64 in [0, 1].

    For an alpha a layer can spare the longest run of its weakest tokens that together hold at most that share of the
    layer's summed attention, once by the attention from text and once by that from visual tokens; it removes what both
    runs contain. What one layer removed is gone in those after it. Among equals the higher index goes first. A layer
    without any attention spares nothing below alpha 1.

    Args:
        cross: For each layer the attention that tokens receive from the text, `(samples, tokens)`, not negative.
        own: Likewise from the visual tokens.

    Raises:
        ValueError: No layers, shapes that differ, or a score that is negative or not finite.

    Example:
        >>> removal_tolerances([torch.tensor([[1.0, 3.0]])], [torch.tensor([[1.0, 1.0]])]).tolist()
        [[[1.0, 1.0]]]
    """
    if not cross or len(cross) != len(own):
        raise ValueError(f"cross and own must name the same layers, one or more; got {len(cross)} and {len(own)}")
    for layer, (one, other) in enumerate(zip(cross, own, strict=True)):
        for scores in (one, other):
            if scores.dim() != 2 or scores.shape != cross[0].shape or not scores.numel():
                raise ValueError(
                    f"scores must be of one shape (samples, tokens) in all layers; the first has "
                    f"{tuple(cross[0].shape)}, layer {layer} has {tuple(scores.shape)}"
                )
            if not bool((scores.isfinite() & (scores >= 0)).all()):
                raise ValueError(f"scores must be finite and not negative, which those of layer {layer} are not")
    needed = [torch.maximum(_tolerance(one), _tolerance(other)) for one, other in zip(cross, own, strict=True)]
    return torch.stack(needed).cummin(dim=0).values


def shares_at(tolerances: torch.Tensor, alpha: float) -> tuple[float, ...]:
    """Mean share of the tokens left after each layer for one alpha; a sample never loses its last token.

    Args:
        tolerances: As `removal_tolerances` gives them.
        alpha: Share of a layer's attention that may go, in [0, 1].

    Example:
        >>> shares_at(torch.tensor([[[0.1, 0.4, 1.0, 1.0]]]), 0.4)
        (0.5,)
    """
    left = (tolerances > alpha).sum(dim=-1).clamp_min(1).double().mean(dim=-1)
    return tuple((left / tolerances.shape[-1]).tolist())


def fit_schedule(
    cross: Sequence[torch.Tensor],
    own: Sequence[torch.Tensor],
    limit: float,
    cost: Callable[[Sequence[float]], float] = mean_share,
) -> Fitted:
    """The lowest alpha whose schedule costs at most `limit`, and that schedule.

    Records belong to an unpruned model, from the first decoder layer on; that of the last layer has no use, because
    nothing comes after its removal. FitPrune (arXiv 2409.10197) bisects alpha between 0 and 1. Only the tolerances of
    single tokens matter, so that bisecting their list finds the lowest one exactly. The published description leaves
    open how the removals of successive layers add up; here they unite, which makes the cost fall with alpha.

    Args:
        cross: For each layer the attention that tokens receive from the text, `(samples, tokens)`, not negative.
        own: Likewise from the visual tokens.
        limit: What the cost may be at most; with the default cost the average share of tokens.
        cost: Of the shares left after each layer; must not rise when shares fall.

    Raises:
        ValueError: Records that do not fit together, or a limit out of reach.

    Example:
        >>> scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> fit_schedule([scores], [scores], limit=0.75)
        Fitted(alpha=0.3, shares=(0.5,))
    """
    tolerances = removal_tolerances(cross, own)
    candidates = [0.0, *torch.unique(tolerances).tolist()]
    if not (lowest := cost(shares_at(tolerances, candidates[-1]))) <= limit:
        raise ValueError(f"limit {limit} is out of reach: with one token left the cost is {lowest}; raise the limit")
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if cost(shares_at(tolerances, candidates[middle])) <= limit:
            high = middle
        else:
            low = middle + 1
    return Fitted(candidates[low], shares_at(tolerances, candidates[low]))


def _tolerance(scores: torch.Tensor) -> torch.Tensor:
    """For each token the share of a row's sum that it and all weaker tokens hold, `(samples, tokens)`."""
    scores = scores.double()
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices.flip(-1)
    running = scores.gather(1, order).cumsum(dim=-1)
    total = running[:, -1:]
    return torch.empty_like(running).scatter(1, order, torch.where(total > 0, running / total, 1.0))
