"""Weighted coverage by kernels picks what the loop picks; on a device the operation does so at every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from awkward import tokens_of
from fakes import FakeContext
from golden_files import cases, chosen, load, square
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from vtprune.kernels import gram, without_kernels
from vtprune.kernels.coverage import pick_covering
from vtprune.ops.coverage import _cosines, _with_kernels, weighted_coverage
from vtprune.ops.reference import coverage as reference
from vtprune.pruners.scope import Scope

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
WAYS = pytest.mark.parametrize(("add", "fill"), [(False, True), (False, False), (True, True)])


def by_kernels(
    states: torch.Tensor,
    saliency: torch.Tensor,
    keep: int,
    *,
    add: bool = False,
    fill_by_saliency: bool = True,
    present: torch.Tensor | None = None,
) -> torch.Tensor:
    """Through the kernels, which the interpreter runs where there is no device."""
    saliency = saliency.double().to(DEVICE)
    there = None if present is None else present.to(DEVICE)
    return _with_kernels(states.to(DEVICE), saliency, saliency, keep, add, fill_by_saliency, there).cpu()


def assert_best(states: torch.Tensor, saliency: torch.Tensor, picks: torch.Tensor, tolerance: float) -> None:
    """Every pick gains as much as any token that is left, in float64 and for a score by multiplication."""
    for picture, chosen_ones in enumerate(picks.tolist()):
        assert len(set(chosen_ones)) == len(chosen_ones)
        unit = normalize(states[picture].double(), dim=-1)
        cosine, covered = unit @ unit.mT, torch.zeros_like(unit[:, 0])
        left = torch.ones_like(covered, dtype=torch.bool)
        for pick in chosen_ones:
            score = (cosine - covered.unsqueeze(1)).clamp_min(0).sum(dim=0) * saliency[picture].double()
            score = score.masked_fill(~left, -torch.inf)
            assert score[pick] >= score.max() - tolerance
            covered, left[pick] = torch.maximum(covered, cosine[pick]), False


@WAYS
@pytest.mark.parametrize(("tokens", "keep"), [(1, 1), (2, 2), (63, 9), (33, 33)])
@pytest.mark.parametrize("kind", ["signs", "with_zeros", "constant"])
@DTYPES
def test_equals_the_operation(kind: str, dtype: torch.dtype, tokens: int, keep: int, add: bool, fill: bool) -> None:
    states, saliency = tokens_of(kind, 2, tokens, 16).to(dtype), torch.randint(0, 5, (2, tokens)) / 4
    options: dict[str, Any] = {"add": add, "fill_by_saliency": fill}
    expected = weighted_coverage(states, saliency, keep, **options)
    assert torch.equal(by_kernels(states, saliency, keep, **options), expected)


@settings(max_examples=12)
@given(st.integers(1, 14), st.sampled_from([torch.bfloat16, torch.float32]), st.booleans(), st.booleans(), st.data())
def test_many_duplicates_and_absent_tokens(
    tokens: int, dtype: torch.dtype, add: bool, fill: bool, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.integers(-1, 1), min_size=tokens * 8, max_size=tokens * 8))
    states = torch.tensor(values).view(2, tokens, 4).to(dtype)
    # Lengths of one and two alone, so that every cosine is exact.
    lengths = (states != 0).sum(dim=-1)
    states[(lengths != 1) & (lengths != 4)] = 0
    saliency = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=tokens * 2, max_size=tokens * 2)))
    saliency = saliency.view(2, tokens) / 2
    flags = data.draw(st.lists(st.booleans(), min_size=tokens * 2, max_size=tokens * 2))
    present = torch.tensor(flags).view(2, tokens)
    keep = data.draw(st.integers(1, tokens))
    options: dict[str, Any] = {"add": add, "fill_by_saliency": fill}
    loop = [
        reference.weighted_coverage(states[row], saliency[row].tolist(), keep, present=present[row].tolist(), **options)
        for row in range(2)
    ]
    assert weighted_coverage(states, saliency, keep, present=present, **options).tolist() == loop
    assert by_kernels(states, saliency, keep, present=present, **options).tolist() == loop


@DTYPES
def test_every_pick_is_the_best(dtype: torch.dtype) -> None:
    states, saliency = tokens_of("strided", 2, 70, 16).to(dtype), torch.rand(2, 70)
    picks = by_kernels(states, saliency, 30)
    assert_best(states, saliency, picks, 1e-4 if states.element_size() == 2 else 1e-6)
    if states.element_size() > 2:
        assert torch.equal(picks, weighted_coverage(states, saliency, 30))


@WAYS
@pytest.mark.parametrize("columns", [16, 32])
def test_programs_share_a_picture(columns: int, add: bool, fill: bool) -> None:
    states, saliency = tokens_of("with_zeros", 2, 35, 8), torch.randint(0, 4, (2, 35)) / 2
    present = torch.rand(2, 35) < 0.8
    expected = weighted_coverage(states, saliency, 12, add=add, fill_by_saliency=fill, present=present)
    weight = saliency.double().to(DEVICE)
    # One turn in each launch: the interpreter runs programs one after the other.
    found = pick_covering(
        (_cosines(states) * 2**30).int().to(DEVICE),
        2**30,
        weight,
        weight,
        12,
        add=add,
        fill_by_saliency=fill,
        present=present.to(DEVICE),
        columns=columns,
        turns=1,
    )
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("choose", [weighted_coverage, by_kernels])
@DTYPES
def test_absent_tokens_influence_nothing(choose: Any, dtype: torch.dtype) -> None:
    states, saliency = torch.randn(3, 26, 16).to(dtype), torch.rand(3, 26)
    present = torch.rand(3, 26) < 0.6
    present[2] = False
    picks = choose(states, saliency, 26, present=present)
    foreign = torch.where(torch.rand(3, 26, 1) < 0.5, torch.nan, 5.0).to(dtype)
    foreign = torch.where(present.unsqueeze(-1), states, foreign)
    other = torch.where(present, saliency, torch.where(torch.rand(3, 26) < 0.5, torch.nan, 9.0))
    assert torch.equal(choose(foreign, other.nan_to_num(nan=3.0), 26, present=present), picks)
    for picture in range(3):
        row, there = picks[picture].tolist(), int(present[picture].sum())
        assert row[there:] == (~present[picture]).nonzero().flatten().tolist()
        if there:
            alone = choose(
                states[picture : picture + 1, present[picture]],
                saliency[picture : picture + 1, present[picture]],
                there,
            )
            assert present[picture].nonzero().flatten()[alone[0]].tolist() == row[:there]


def test_what_is_no_number_counts_as_nothing() -> None:
    states, saliency = torch.randn(1, 20, 16), torch.rand(1, 20)
    clean, dull = states.clone(), saliency.clone()
    states[0, 4, 3], clean[0, 4], saliency[0, 6], dull[0, 6] = torch.nan, 0, torch.nan, 0
    expected = weighted_coverage(clean, dull, 20)
    assert torch.equal(weighted_coverage(states, saliency, 20), expected)
    assert torch.equal(by_kernels(states, dull, 20), expected)


def test_a_duplicate_of_a_pick_gains_nothing() -> None:
    states = torch.randn(1, 20, 50).bfloat16().repeat(1, 2, 1)
    saliency = torch.rand(1, 40)
    picks = by_kernels(states, saliency, 40)[0].tolist()
    assert sorted(pick % 20 for pick in picks[:20]) == list(range(20))


@DTYPES
def test_batch_mates_memory_and_budget_do_not_matter(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    states, saliency = tokens_of("duplicates", 3, 40, 24).to(dtype), torch.rand(3, 40)
    present = torch.rand(3, 40) < 0.8
    picks = by_kernels(states, saliency, 15, present=present)
    strided = [tensor.mT.contiguous().mT for tensor in (states, saliency.unsqueeze(-1), present.unsqueeze(-1))]
    again = by_kernels(strided[0], strided[1].squeeze(-1), 15, present=strided[2].squeeze(-1))
    assert torch.equal(again, picks)
    assert torch.equal(by_kernels(states, saliency, 6, present=present), picks[:, :6])
    monkeypatch.setattr(gram, "pictures_at_once", lambda *_: 1)
    assert torch.equal(by_kernels(states, saliency, 15, present=present), picks)


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize(
    ("batch", "tokens", "dim", "keep"),
    [(1, 576, 1024, 64), (40, 576, 1024, 64), (1, 2880, 1024, 320), (9, 1500, 64, 100), (2, 16384, 32, 20)],
)
def test_large_pictures_on_a_device(batch: int, tokens: int, dim: int, keep: int, dtype: torch.dtype) -> None:
    states = (torch.randn(batch, tokens, dim, device="cuda") + torch.randn(dim, device="cuda")).to(dtype)
    saliency = torch.rand(batch, tokens, device="cuda")
    picks = weighted_coverage(states, saliency, keep)
    assert_best(states[-2:], saliency[-2:], picks[-2:], tokens * 2e-5 if dtype == torch.bfloat16 else 1e-4)
    assert torch.equal(weighted_coverage(states[-1:], saliency[-1:], keep), picks[-1:])
    if dtype == torch.float32 and tokens < 4000:
        with without_kernels():
            assert torch.equal(weighted_coverage(states[:1], saliency[:1], keep), picks[:1])


@pytest.mark.gpu
@WAYS
@pytest.mark.parametrize("columns", [None, 16, 64, 256])
def test_programs_wait_for_each_other(columns: int | None, add: bool, fill: bool) -> None:
    states, saliency = tokens_of("with_zeros", 3, 1300, 8).cuda(), torch.randint(0, 4, (3, 1300)).cuda() / 2
    present = torch.rand(3, 1300, device="cuda") < 0.8
    with without_kernels():
        expected = weighted_coverage(states, saliency, 400, add=add, fill_by_saliency=fill, present=present)
    cosine, weight = (_cosines(states) * 2**30).int(), saliency.double()
    found = pick_covering(
        cosine, 2**30, weight, weight, 400, add=add, fill_by_saliency=fill, present=present, columns=columns
    )
    assert torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("parity", [True, False])
def test_goldens_on_a_device(parity: bool) -> None:
    for case in cases(load("scope.npz")):
        features = torch.as_tensor(case["features"]).cuda()
        tensors = {"hidden": features[:, :, :1], "encoder_features": features}
        tensors["encoder_attention"] = torch.as_tensor(case["cls_attn"]).cuda()
        context = FakeContext(square(features.shape[1]), tensors)
        assert chosen(Scope(parity=parity).reduce(context, int(case["T"]))) == case["order"].tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [576, 2880])
def test_it_is_captured_in_a_graph_without_waiting(tokens: int) -> None:
    states, saliency = torch.randn(2, tokens, 256, device="cuda").bfloat16(), torch.rand(2, tokens, device="cuda")
    expected = weighted_coverage(states, saliency, 64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        weighted_coverage(states, saliency, 64)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        picks = weighted_coverage(states, saliency, 64)
    for _ in range(2):
        picks.zero_()
        graph.replay()
        assert torch.equal(picks, expected)
