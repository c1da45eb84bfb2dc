"""Densities and visits by kernels are those of the torch code, and so are the clusters that are made of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from awkward import tokens_of
from fakes import FakeContext
from golden_files import TOLERANCE, cases, chosen, load, one, square
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.kernels import clusters as kernels
from vtprune.kernels import without_kernels
from vtprune.kernels.clusters import densities, visit
from vtprune.ops import distance_clusters as clusters_module
from vtprune.ops import merge as merge_module
from vtprune.ops.distance_clusters import (
    _CUTOFFS,
    _DENSITY_BITS,
    _in_order,
    _visit,
    _visits,
    budget_centres,
    cluster_means,
    cosine_distance,
    density_centres,
)
from vtprune.pruners.pact import PACT

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ("plain", "signs", "with_zeros", "constant", "zero", "duplicates", "walk", "strided")


@contextmanager
def by_kernels() -> Iterator[None]:
    """Within, operations take their kernels on the CPU too, where the interpreter runs them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (clusters_module, merge_module):
            patch.setattr(module, "use_kernels", lambda tensor: True)
        yield


def distances(kind: str, batch: int, tokens: int, dim: int = 16) -> torch.Tensor:
    return cosine_distance(tokens_of(kind, batch, tokens, dim).to(DEVICE))


def plain_densities(distance: torch.Tensor) -> torch.Tensor:
    terms = torch.exp(-(distance.double() / 2).square())
    return (terms * (1 << _DENSITY_BITS)).round().long().sum(dim=-1)


def in_half(states: torch.Tensor) -> torch.Tensor:
    """Cosine distances as kernels take them, so that both paths start from the same."""
    with by_kernels():
        return cosine_distance(states)


def pact_context(states: torch.Tensor, hidden: torch.Tensor) -> FakeContext:
    """Keys, queries and states of square pictures; keys and queries `(batch, heads, tokens, head_dim)`."""
    return FakeContext(
        square(states.shape[2]),
        {
            "hidden": hidden,
            "next_keys": states,
            "next_unrotated_keys": states,
            "next_unrotated_queries": states.flip(1),
        },
        layer=4,
        scaling=0.3,
    )


@pytest.mark.parametrize("kind", ["plain", "signs", "constant", "walk"])
@pytest.mark.parametrize(("tokens", "block"), [(1, 1024), (23, 1024), (23, 16)])
def test_densities_are_exact(kind: str, tokens: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_BLOCK", block)
    distance = distances(kind, 2, tokens + 4)[:, 3:-1, 3:-1]
    for view in (distance, distance.mT):
        assert torch.equal(densities(view, _DENSITY_BITS), plain_densities(distance))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (2, 1), (63, 9), (23, 23)])
def test_visits_equal_the_operation(kind: str, tokens: int, count: int) -> None:
    distance = distances(kind, 2, tokens)
    visited = _in_order(distance, _visits(distance))
    # Vectors of signs have distances at just these cutoffs.
    cutoffs = torch.tensor([[2.0, 0.875, 0.5], [1.0, 0.25, 0.01]], device=DEVICE)
    with without_kernels():
        expected = _visit(visited, cutoffs, count)
    assert all(map(torch.equal, visit(visited, cutoffs, count), expected))


@pytest.mark.parametrize("kind", KINDS)
def test_centres_equal_the_operation(kind: str) -> None:
    distance = distances(kind, 2, 17)
    for cutoff in (0.21, 0.75, 1):
        with without_kernels():
            expected = density_centres(distance, cutoff)
        with by_kernels():
            assert torch.equal(density_centres(distance, cutoff), expected)


@settings(max_examples=6)
@given(st.integers(1, 20), st.sampled_from(KINDS), st.booleans(), st.data())
def test_any_budget(tokens: int, kind: str, half: bool, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, min(6, tokens)))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    states = tokens_of(kind, 1, tokens, 8).to(DEVICE)
    distance = in_half(states.bfloat16()) if half else cosine_distance(states)
    with without_kernels():
        expected = budget_centres(distance, count, 0.21)
    with by_kernels():
        assert all(map(torch.equal, budget_centres(distance, count, 0.21), expected))


def test_batch_mates_do_not_matter() -> None:
    visited = torch.cat([distances(kind, 1, 20) for kind in ("walk", "plain", "constant")])
    cutoffs = torch.rand(3, 4, device=DEVICE)
    centres, fits = visit(visited, cutoffs, 5)
    for picture in range(3):
        alone = visit(visited[picture, None], cutoffs[picture, None], 5)
        assert torch.equal(alone[0][0], centres[picture])
        assert torch.equal(alone[1][0], fits[picture])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_no_number_makes_centres_all_the_same() -> None:
    states = torch.randn(1, 20, 8, device=DEVICE).bfloat16()
    states[0, 3] = torch.nan
    distance = in_half(states)
    assert distance.isnan().any()
    with by_kernels():
        centres, _ = budget_centres(distance, 4, 0.21)
    assert len(set(centres[0].tolist())) == 4
    assert 0 <= int(centres.min()) <= int(centres.max()) < 20


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["plain", "constant", "duplicates"])
def test_means(kind: str, dtype: torch.dtype) -> None:
    distance = distances(kind, 2, 50)
    features = tokens_of("strided", 2, 50, 21).to(dtype).to(DEVICE)
    centres = torch.stack([torch.randperm(50)[:7] for _ in range(2)]).to(DEVICE)
    joins = (torch.rand(2, 50) < 0.6).to(DEVICE).scatter(1, centres, True)
    valid = torch.arange(7, device=DEVICE) < torch.tensor([[7], [4]], device=DEVICE)
    to_centres = distance.gather(2, centres.unsqueeze(1).expand(-1, 50, -1))
    with without_kernels():
        expected = cluster_means(features, to_centres, centres, joins, valid)
    with by_kernels():
        means, sizes = cluster_means(features, to_centres, centres, joins, valid)
    torch.testing.assert_close(means, expected[0])
    assert torch.equal(sizes, expected[1])
    assert sizes.min() == 1
    assert not means[1, 4:].any()


@pytest.mark.parametrize("adaptive", [False, True])
def test_pact(adaptive: bool) -> None:
    states, hidden = torch.randn(2, 2, 36, 8, device=DEVICE), torch.randn(2, 36, 20, device=DEVICE)
    states[1] *= torch.rand(36, 1, device=DEVICE) < 0.5
    context = pact_context(states, hidden)

    def reduced() -> list[torch.Tensor | None]:
        reduction = PACT().reduce_adaptive(context) if adaptive else PACT().reduce(context, 6)
        return [reduction.kept, reduction.features, reduction.sizes, reduction.valid]

    with without_kernels():
        expected = reduced()
    with by_kernels():
        torch.testing.assert_close(reduced(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "count", "batch"), [(576, 64, 8), (2880, 320, 3), (16000, 600, 1)])
@pytest.mark.parametrize("kind", ["plain", "signs", "walk", "duplicates"])
def test_on_a_device(kind: str, tokens: int, count: int, batch: int) -> None:
    states = tokens_of(kind, batch, tokens, 64).to(DEVICE).bfloat16()
    distance = cosine_distance(states)
    assert torch.equal(distance, distance.mT)
    # A term may lie between two integers to the last digit of its exponential.
    assert (densities(distance, _DENSITY_BITS) - plain_densities(distance)).abs().max() <= 1
    order = _visits(distance)
    visited = _in_order(distance, order)
    cutoffs = (2 * 0.8 ** torch.arange(_CUTOFFS, device=DEVICE)).expand(batch, -1)
    found = visit(visited, cutoffs, count)
    centres, cutoff = budget_centres(distance, count, 0.21)
    assert all(row == sorted(set(row)) for row in centres.tolist())
    alone = budget_centres(distance[-1:], count, 0.21)
    assert torch.equal(centres[-1:], alone[0])
    assert torch.equal(cutoff[-1:], alone[1])
    with without_kernels():
        assert all(map(torch.equal, found, _visit(visited, cutoffs, count)))
        if torch.equal(order, _visits(distance)):
            assert all(map(torch.equal, (centres, cutoff), budget_centres(distance, count, 0.21)))


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "dim"), [(576, 4096), (2916, 1024), (16129, 64)])
def test_on_a_device_pact_makes_the_same_of_the_same_distances(
    tokens: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = tokens_of("walk", 2, tokens, dim).to(DEVICE).bfloat16().unflatten(2, (-1, 64)).transpose(1, 2)
    context = pact_context(states, torch.randn(2, tokens, dim, device=DEVICE).bfloat16())
    found = PACT().reduce(context, tokens // 9)
    counted = PACT().reduce_adaptive(context)
    monkeypatch.setattr("vtprune.pruners.pact.cosine_distance", in_half)
    with without_kernels():
        for reduction, expected in (
            (found, PACT().reduce(context, tokens // 9)),
            (counted, PACT().reduce_adaptive(context)),
        ):
            assert torch.equal(reduction.kept, expected.kept)
            assert reduction.sizes is not None
            assert expected.sizes is not None
            assert torch.equal(reduction.sizes, expected.sizes)
            # Means of half precision are summed in float32 here and in float64 there, then rounded.
            torch.testing.assert_close(reduction.features, expected.features)


@pytest.mark.gpu
def test_on_a_device_is_captured_without_waiting() -> None:
    states = torch.randn(3, 32, 576, 64, device=DEVICE).bfloat16()
    context = pact_context(states, torch.randn(3, 576, 512, device=DEVICE).bfloat16())
    expected = PACT().reduce(context, 64).kept
    torch.cuda.set_sync_debug_mode("error")
    try:
        PACT().reduce(context, 64)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = PACT().reduce(context, 64).kept
    kept.zero_()
    graph.replay()
    assert torch.equal(kept, expected)


@pytest.mark.gpu
def test_on_a_device_makes_what_the_official_code_made() -> None:
    for case in cases(load("pact.npz")):
        config = ast.literal_eval(str(case["cfg_text"]))
        pruner = PACT(keep_share=config["keep"], cutoff=config["cutoff"], recovery=config["coef_pruned"])
        keys = one(case["K"]).to(DEVICE)
        context = pact_context(keys, one(case["x"]).to(DEVICE))
        context.tensors["next_unrotated_queries"] = one(case["Q"]).to(DEVICE)
        context.scaling = keys.shape[-1] ** -0.5
        reduction = pruner.reduce(context, len(case["out"]))
        assert chosen(reduction) == np.flatnonzero(case["keep_mask"])[case["center_mask_among_kept"]].tolist()
        assert reduction.features is not None
        np.testing.assert_allclose(reduction.features[0].cpu().numpy(), case["out"], **TOLERANCE)
