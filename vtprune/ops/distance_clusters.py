"""Clusters around dense tokens: no two centres closer than a cutoff, every other token with its nearest centre."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.kernels import use_kernels
from vtprune.ops.checks import check_keep
from vtprune.ops.gather import as_float
from vtprune.ops.merge import group_means
from vtprune.ops.topk import stable_topk

# Cutoffs that are tried at once: first each `_RATIO` of the one before, from 2 down to 1e-6, then as many from the best
# of them down to the next.
_CUTOFFS, _RATIO = 64, 0.8
# Densities are summed as integers of this many binary digits: a sum that no order of adding changes keeps ties true.
_DENSITY_BITS = 30


@torch.no_grad()
def cosine_distance(states: torch.Tensor) -> torch.Tensor:
    """`1 - cosine` of all pairs, symmetric, in [0, 2]: `(batch, tokens, tokens)` from `(batch, tokens, dim)`.

    A zero vector is at distance 1 from every other token; each token is at distance 0 from itself.

    Example:
        >>> cosine_distance(torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]]))[0].tolist()
        [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    """
    if use_kernels(states) and states.dtype in (torch.bfloat16, torch.float16):
        from vtprune.kernels.gram import cosine_matrix

        distance = cosine_matrix(states).neg_().add_(1).clamp_(0, 2)
        distance.diagonal(dim1=1, dim2=2).zero_()
        return distance
    # Autocast would carry out the product in half precision even for float32 operands.
    with torch.autocast(states.device.type, enabled=False):
        unit = normalize(as_float(states), dim=-1)
        distance = 1 - unit @ unit.mT
    distance = torch.minimum(distance, distance.mT).clamp(0, 2)
    distance.diagonal(dim1=1, dim2=2).zero_()
    return distance


@torch.no_grad()
def density_centres(distance: torch.Tensor, cutoff: float) -> torch.Tensor:
    """The centres of PACT's clustering (DBDPC), as many as the cutoff makes.

    PACT (arXiv 2504.08966): tokens are visited by falling density `sum exp(-(distance / 2)^2)`; one is a centre if it
    is farther than `cutoff` from every centre so far. A kernel does just that. Without one all tokens are judged at
    once against the present guess of the centres, over and over: after the n-th pass the n densest are right, and in
    practice all after a few; this waits for the device.

    Args:
        distance: Distances of all pairs, `(batch, tokens, tokens)`.
        cutoff: Distance up to which a token belongs to a denser centre.

    Returns:
        `(batch, tokens)` booleans, at least one set in each row.

    Example:
        >>> line = torch.tensor([0.0, 0.1, 0.2, 1.0])
        >>> density_centres((line.unsqueeze(0) - line.unsqueeze(1)).abs().unsqueeze(0), 0.25).tolist()
        [[False, False, True, True]]
    """
    order = _visits(distance)
    if _suits_kernels(distance):
        tried = distance.new_full((len(distance), 1), cutoff)
        is_centre, _ = _visit(_in_order(distance, order), tried, distance.shape[1])
        return torch.empty_like(is_centre[:, 0]).scatter_(1, order, is_centre[:, 0])
    visit = order.argsort(dim=1)
    near = (distance <= cutoff) & (visit.unsqueeze(1) < visit.unsqueeze(2))
    centres = torch.ones(visit.shape, dtype=torch.bool, device=distance.device)
    while not torch.equal(centres, judged := ~(near & centres.unsqueeze(1)).any(dim=2)):
        centres = judged
    return centres


@torch.no_grad()
def budget_centres(distance: torch.Tensor, count: int, cutoff: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Exactly `count` centres: those of `density_centres` at a cutoff that is searched for, without waiting.

    Taken are the centres of the cutoff that makes most of them without exceeding `count`, the lowest one that was tried
    of several such. `cutoff` is tried first and wins a tie, so that a budget equal to its own number of centres gives
    just these. Centres that are still missing, because several appear at one distance, come from those of the next
    lower cutoff, then from all tokens; each by falling distance to the former. `O(count tokens)` for each cutoff.

    Args:
        distance: Distances of all pairs, each in [0, 2], `(batch, tokens, tokens)`.
        count: Centres of each picture, 1 to `tokens`.
        cutoff: Tried first.

    Returns:
        The centres `(batch, count)`, ascending, and the cutoff of each picture `(batch, 1)`.

    Raises:
        ValueError: `count` is out of range.

    Example:
        >>> line = torch.tensor([0.0, 0.1, 0.2, 1.0])
        >>> centres, _ = budget_centres((line.unsqueeze(0) - line.unsqueeze(1)).abs().unsqueeze(0), 3, 0.25)
        >>> centres.tolist()
        [[0, 2, 3]]
    """
    batch, tokens, _ = distance.shape
    check_keep(count, tokens)
    order = _visits(distance)
    visited = _in_order(distance, order)
    steps = torch.arange(_CUTOFFS, dtype=distance.dtype, device=distance.device)
    best, falling = distance.new_full((batch, 1), cutoff), (2 * _RATIO**steps).expand(batch, -1)
    for _ in range(2):
        tried = torch.cat([best, falling], dim=1)
        is_centre, fits = _visit(visited, tried, count)
        found = torch.where(fits, is_centre.sum(dim=2), 0)
        # The last of the highest counts, unless the one tried first is as good.
        last = _CUTOFFS - found[:, 1:].flip(1).argmax(dim=1, keepdim=True)
        winner = torch.where(found.gather(1, last) > found[:, :1], last, 0)
        best = tried.gather(1, winner)
        falling = best * (1 - (1 - _RATIO) / _CUTOFFS * steps)
    highest_misfit = torch.where(fits, -1, tried).argmax(dim=1, keepdim=True)
    few = is_centre.gather(1, winner.unsqueeze(2).expand(-1, -1, tokens)).squeeze(1)
    many = is_centre.gather(1, highest_misfit.unsqueeze(2).expand(-1, -1, tokens)).squeeze(1)
    nearest = visited.masked_fill(~few.unsqueeze(1), torch.inf).amin(dim=2)
    # Distances are at most 2, so that the three ranks do not mix.
    picks = stable_topk(8 * few.to(nearest.dtype) + 4 * many.to(nearest.dtype) + nearest, count)
    return order.gather(1, picks).sort(dim=1).values, best


def cluster_means(
    features: torch.Tensor, distance: torch.Tensor, centres: torch.Tensor, joins: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain means of the tokens nearest to each centre; a centre is always a member of its own cluster.

    Args:
        features: `(batch, tokens, dim)`.
        distance: From every token to every centre, `(batch, tokens, centres)`.
        centres: Which tokens are the centres, `(batch, centres)`, distinct.
        joins: `False` for tokens that join no cluster, `(batch, tokens)`; centres join.
        valid: `False` for entries of `centres` that fill up, `(batch, centres)`; at least one is valid.

    Returns:
        `(batch, centres, dim)` in the dtype of `features`, and the members of each cluster `(batch, centres)`, at least
        1; what stands at entries that fill up is of no meaning.

    Example:
        >>> every = torch.ones(1, 3, dtype=torch.bool)
        >>> distance = torch.tensor([[[0.0, 1.0], [0.9, 0.1], [1.0, 0.0]]])
        >>> means, sizes = cluster_means(
        ...     torch.tensor([[[1.0], [3.0], [5.0]]]), distance, torch.tensor([[0, 2]]), every, every[:, :2]
        ... )
        >>> means.flatten().tolist(), sizes.tolist()
        ([1.0, 4.0], [[1.0, 2.0]])
    """
    count = centres.shape[1]
    every = torch.arange(count, device=centres.device)
    nearest = distance.masked_fill(~valid.unsqueeze(1), torch.inf).argmin(dim=2)
    # A centre may have copies among the centres, and would join the first of them.
    nearest = nearest.scatter(1, centres, torch.where(valid, every, nearest.gather(1, centres)))
    means, sizes = group_means(features, nearest.masked_fill(~joins, count), count)
    # Entries that fill up have no members, and so a mean that is not a number.
    return means.masked_fill(~valid.unsqueeze(-1), 0), sizes.clamp_min(1)


def _suits_kernels(distance: torch.Tensor) -> bool:
    if not use_kernels(distance):
        return False
    from vtprune.kernels.clusters import MOST_TOKENS

    return distance.shape[1] <= MOST_TOKENS


def _visits(distance: torch.Tensor) -> torch.Tensor:
    """Tokens by falling density, `(batch, tokens)`."""
    if _suits_kernels(distance):
        from vtprune.kernels.clusters import densities

        density = densities(distance, _DENSITY_BITS)
    else:
        terms = torch.exp(-(distance.double() / 2).square())
        density = (terms * 2**_DENSITY_BITS).round().long().sum(dim=-1)
    order: torch.Tensor = density.sort(dim=1, descending=True, stable=True).indices
    return order


def _in_order(distance: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Distances of all pairs of tokens in the order of their visit, `(batch, tokens, tokens)`."""
    batch, tokens, _ = distance.shape
    places = (order + torch.arange(batch, device=order.device).unsqueeze(1) * tokens).flatten()
    visited = distance.flatten(0, 1).index_select(0, places).view_as(distance)
    # Distances are the same both ways: columns are put in order as rows, which lie together.
    return visited.mT.flatten(0, 1).index_select(0, places).view_as(distance)


def _visit(visited: torch.Tensor, cutoffs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `count` centres for each of several cutoffs, and whether they reach all tokens.

    Args:
        visited: See `_in_order`.
        cutoffs: `(batch, cutoffs)`.
        count: Centres to look for.

    Returns:
        Booleans, `(batch, cutoffs, tokens)` and `(batch, cutoffs)`.
    """
    if _suits_kernels(visited):
        from vtprune.kernels.clusters import visit

        return visit(visited, cutoffs, count)
    batch, tokens, _ = visited.shape
    shape, device = (*cutoffs.shape, tokens), visited.device
    # Flags fill whole words: of those the first that is not 0 is found sooner.
    flags = torch.zeros(*cutoffs.shape, -(-tokens // 8) * 8, dtype=torch.bool, device=device)
    is_open, words = flags[..., :tokens], flags.view(torch.int64)
    is_open.fill_(True)
    is_centre = torch.zeros(shape, dtype=torch.bool, device=device)
    rows, first_row = visited.flatten(0, 1), torch.arange(batch, device=device).view(-1, 1, 1) * tokens
    eights = flags.view(-1, 8).view(torch.uint8)
    first_eight = torch.arange(words[..., 0].numel(), device=device).view(*cutoffs.shape, 1) * words.shape[2]
    for _ in range(count):
        # The next centre; the very first token, which is one anyway, where nothing is open.
        word = (words != 0).view(torch.uint8).argmax(dim=2, keepdim=True)
        eight = eights.index_select(0, (word + first_eight).flatten())
        pick = 8 * word + eight.argmax(dim=1).view(word.shape)
        is_centre.scatter_(2, pick, True)
        row = rows.index_select(0, (pick + first_row).flatten()).view(shape)
        is_open &= row > cutoffs.unsqueeze(2)
    return is_centre, ~is_open.any(dim=2)
