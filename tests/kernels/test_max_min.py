"""Max-min by kernels picks what the loop picks; on a device the operation does so at every size."""

from __future__ import annotations

import pytest
import torch
from awkward import tokens_of
from golden_files import cases, load, one
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from vtprune.kernels import gram, without_kernels
from vtprune.ops.max_min import _with_kernels, max_min
from vtprune.ops.reference import seeds as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=lambda dtype: str(dtype)
)


def by_kernels(states: torch.Tensor, keep: int, present: torch.Tensor | None = None) -> torch.Tensor:
    """Through the kernels, which the interpreter runs where there is no device."""
    return _with_kernels(states.to(DEVICE), keep, None if present is None else present.to(DEVICE)).cpu()


def assert_farthest(states: torch.Tensor, picks: torch.Tensor, present: torch.Tensor | None, tolerance: float) -> None:
    """Every pick is as far from those before it as any token that is left, and alone in that it is the farthest."""
    for picture, chosen in enumerate(picks.tolist()):
        assert len(set(chosen)) == len(chosen)
        unit = normalize(states[picture].double(), dim=-1)
        others = 1 - unit @ unit.mT
        there = torch.ones(len(unit), dtype=torch.bool, device=unit.device) if present is None else present[picture]
        real = min(len(chosen), int(there.sum()))
        others[:, ~there] = torch.inf
        others.diagonal().fill_(torch.inf)
        nearest = others.amin(dim=1)
        row = torch.full_like(nearest, torch.inf)
        for pick in chosen[:real]:
            nearest[~there] = -torch.inf
            assert nearest[pick] >= nearest.max() - tolerance
            row = torch.minimum(row, 1 - unit @ unit[pick])
            row[pick] = -torch.inf
            nearest = row.clone()


@pytest.mark.parametrize(("tokens", "keep"), [(1, 1), (2, 2), (63, 63), (130, 9)])
@pytest.mark.parametrize("kind", ["signs", "with_zeros", "constant", "strided"])
@DTYPES
def test_equals_the_loop(kind: str, dtype: torch.dtype, tokens: int, keep: int) -> None:
    states = tokens_of(kind, 2, tokens, 16).to(dtype)
    found = by_kernels(states, keep)
    if kind == "strided" and states.element_size() == 2:
        assert_farthest(states, found, None, 1e-6)
    else:
        assert torch.equal(found, max_min(states, keep))
    if tokens < 100 and kind != "strided":
        assert found.tolist() == [reference.max_min(picture, keep) for picture in states]


@settings(max_examples=15)
@given(st.integers(1, 40), st.sampled_from([torch.bfloat16, torch.float32]), st.data())
def test_many_duplicates_and_absent_tokens(tokens: int, dtype: torch.dtype, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(-1, 1), min_size=tokens * 8, max_size=tokens * 8))
    states = torch.tensor(values).view(2, tokens, 4).to(dtype)
    # Lengths of one and two alone, so that every cosine is exact.
    lengths = (states != 0).sum(dim=-1)
    states[(lengths != 1) & (lengths != 4)] = 0
    flags = data.draw(st.lists(st.booleans(), min_size=tokens * 2, max_size=tokens * 2))
    present = torch.tensor(flags).view(2, tokens)
    keep = data.draw(st.integers(1, tokens))
    loop = [reference.max_min(picture, keep, there) for picture, there in zip(states, present.tolist(), strict=True)]
    assert max_min(states, keep, present).tolist() == loop
    assert by_kernels(states, keep, present).tolist() == loop


@DTYPES
def test_absent_tokens_influence_nothing(dtype: torch.dtype) -> None:
    states = torch.randn(3, 70, 16).to(dtype)
    present = torch.rand(3, 70) < 0.6
    present[2] = False
    foreign = torch.where(present.unsqueeze(-1), states, torch.where(torch.rand(3, 70, 1) < 0.5, torch.nan, 5.0))
    for choose in (max_min, by_kernels):
        picks = choose(states, 70, present)
        assert torch.equal(choose(foreign.to(dtype), 70, present), picks)
        assert_farthest(states, picks, present, 1e-6)
        for picture in range(3):
            row, there = picks[picture].tolist(), int(present[picture].sum())
            assert row[there:] == (~present[picture]).nonzero().flatten().tolist()
            alone = choose(states[picture : picture + 1, present[picture]], there, None)[0] if there else None
            if alone is not None:
                assert present[picture].nonzero().flatten()[alone].tolist() == row[:there]


@DTYPES
def test_what_is_no_number_comes_last_and_is_nobodys_neighbour(dtype: torch.dtype) -> None:
    states = torch.randn(2, 30, 16).to(dtype)
    states[0, [3, 17]], states[0, 9, 5], states[1] = torch.nan, torch.inf, torch.nan
    clean = [token for token in range(30) if token not in (3, 9, 17)]
    for picks in (max_min(states, 30), by_kernels(states, 30)):
        assert picks[0, 27:].tolist() == [3, 9, 17]
        assert [clean.index(token) for token in picks[0, :27].tolist()] == max_min(states[:1, clean], 27)[0].tolist()
        assert picks[1].tolist() == list(range(30))
    present = torch.ones(2, 30, dtype=torch.bool)
    present[:, [0, 17]] = False
    for picks in (max_min(states, 30, present), by_kernels(states, 30, present)):
        assert picks[0, 26:].tolist() == [3, 9, 0, 17]
        assert picks[1, 28:].tolist() == [0, 17]


@DTYPES
def test_batch_mates_memory_and_budget_do_not_matter(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    states = tokens_of("duplicates", 3, 70, 24).to(dtype)
    present = torch.rand(3, 70) < 0.8
    picks = by_kernels(states, 20, present)
    assert torch.equal(by_kernels(states.mT.contiguous().mT, 20, present.T.contiguous().T), picks)
    assert torch.equal(by_kernels(states, 7, present), picks[:, :7])
    monkeypatch.setattr(gram, "pictures_at_once", lambda *_: 1)
    assert torch.equal(by_kernels(states, 20, present), picks)


LARGE = pytest.mark.parametrize(
    ("batch", "tokens", "dim", "keep"),
    [(1, 576, 4096, 64), (8, 576, 4096, 64), (1, 2880, 4096, 320), (3, 1000, 1152, 1000), (3, 16384, 32, 40)],
)


@pytest.mark.gpu
@LARGE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_large_pictures_on_a_device(batch: int, tokens: int, dim: int, keep: int, dtype: torch.dtype) -> None:
    states = (torch.randn(batch, tokens, dim, device="cuda") + torch.randn(dim, device="cuda")).to(dtype)
    present = torch.rand(batch, tokens, device="cuda") < 0.9
    for there in (None, present):
        picks = max_min(states, keep, there)
        assert_farthest(states, picks, there, 5e-5)
        if dtype == torch.bfloat16:
            assert torch.equal(max_min(states[-1:], keep, None if there is None else there[-1:]), picks[-1:])
        elif tokens < 10_000:  # beyond, the operation multiplies fewer pictures at once than the torch code
            with without_kernels():
                assert torch.equal(max_min(states, keep, there), picks)


@pytest.mark.gpu
def test_golden_inputs_on_a_device() -> None:
    arrays = load("divprune.npz")
    for case in cases(arrays):
        tokens = one(arrays[str(case["tokens_key"])])
        keep = len(case["indices_in_pick_order"])
        assert_farthest(tokens, max_min(tokens.cuda(), keep).cpu(), None, 1e-6)
        halves = tokens.bfloat16()
        assert_farthest(halves, max_min(halves.cuda(), keep).cpu(), None, 1e-6)


@pytest.mark.gpu
def test_it_is_captured_in_a_graph_without_waiting() -> None:
    states = torch.randn(2, 576, 1024, device="cuda").bfloat16()
    expected = max_min(states, 64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        max_min(states, 64)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        picks = max_min(states, 64)
    picks.zero_()
    graph.replay()
    assert torch.equal(picks, expected)
