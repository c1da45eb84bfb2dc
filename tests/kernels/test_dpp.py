"""Greedy picks by kernels are those of the operation; on a device the operation does so at every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from awkward import tokens_of
from fakes import FakeContext
from golden_files import cases, chosen, load, one, square
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from vtprune.kernels import without_kernels
from vtprune.kernels.dpp import greedy_picks
from vtprune.kernels.gram import cosine_matrix
from vtprune.ops.dpp import HALF, dpp_map, spanned_below
from vtprune.ops.gram import cosine_gram
from vtprune.ops.reference import dpp as reference
from vtprune.pruners.cdpruner import CDPruner

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# One program for each picture, and several; those wait for each other on a device only.
SPREADS: list[dict[str, Any]] = [{}, {"block": 16, "one_launch": False}]
spreads = pytest.mark.parametrize("spread", SPREADS, ids=["one_program", "several"])


def by_kernels(
    states: torch.Tensor, relevance: torch.Tensor, keep: int, present: torch.Tensor | None = None, **spread: Any
) -> torch.Tensor:
    """Through the kernels, which the interpreter runs where there is no device."""
    states = states.to(DEVICE)
    there = None if present is None else present.to(DEVICE)
    cosines = cosine_matrix(states) if states.dtype in HALF else cosine_gram(states)
    return greedy_picks(cosines, relevance.to(DEVICE), keep, spanned_below(states.dtype), there, **spread).cpu()


def assert_best(states: torch.Tensor, relevance: torch.Tensor, picks: torch.Tensor, tolerance: float) -> None:
    """The part of every pick that the others do not span is the largest there is, in float64 and within rounding."""
    unit, weights = normalize(states.double(), dim=-1), relevance.double()
    kernel = weights.unsqueeze(-1) * (unit @ unit.mT) * weights.unsqueeze(-2)
    for matrix, row in zip(kernel, picks.tolist(), strict=True):
        assert len(set(row)) == len(row)
        left, factor = matrix.diagonal().clone(), matrix.new_zeros(len(row), len(matrix))
        for step, pick in enumerate(row):
            assert left[pick] >= left.max() - tolerance * matrix.diagonal().max()
            factor[step] = (matrix[pick] - factor[:step, pick] @ factor[:step]) / left[pick].sqrt()
            left -= factor[step].square()
            left[pick] = -torch.inf


@spreads
@pytest.mark.parametrize(("tokens", "keep"), [(1, 1), (2, 2), (20, 20), (63, 9)])
@pytest.mark.parametrize("kind", ["plain", "signs", "with_zeros", "constant", "duplicates"])
def test_equals_the_operation(kind: str, tokens: int, keep: int, spread: dict[str, Any]) -> None:
    states = tokens_of(kind, 2, tokens, 16)
    relevance = torch.stack([torch.rand(tokens), torch.randint(0, 3, (tokens,)) / 2])
    assert torch.equal(by_kernels(states, relevance, keep, **spread), dpp_map(states, relevance, keep))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["signs", "with_zeros"])
def test_equals_the_operation_in_half_precision(kind: str, dtype: torch.dtype) -> None:
    states = tokens_of(kind, 2, 40, 16).to(dtype)
    relevance = (torch.randint(0, 3, (2, 40)) / 2).to(dtype)
    assert torch.equal(by_kernels(states, relevance, 40), dpp_map(states, relevance, 40))


def test_picks_the_largest_part_in_half_precision() -> None:
    states, relevance = torch.randn(2, 63, 80).bfloat16(), torch.rand(2, 63)
    assert_best(states, relevance, by_kernels(states, relevance, 40), 1e-5)


@settings(max_examples=15)
@given(st.integers(1, 14), st.sampled_from([torch.bfloat16, torch.float32]), st.sampled_from(SPREADS), st.data())
def test_many_duplicates_and_absent_tokens(
    tokens: int, dtype: torch.dtype, spread: dict[str, Any], data: st.DataObject
) -> None:
    def draw(low: int, high: int, size: int) -> torch.Tensor:
        values = st.lists(st.integers(low, high), min_size=2 * tokens * size, max_size=2 * tokens * size)
        return torch.tensor(data.draw(values)).view(2, tokens, size)

    states = draw(-1, 1, 4).to(dtype)
    # Lengths of one and two alone, so that every cosine is exact.
    lengths = (states != 0).sum(dim=-1)
    states[(lengths != 1) & (lengths != 4)] = 0
    relevance, present = draw(0, 4, 1).squeeze(-1) / 4, draw(0, 1, 1).squeeze(-1) > 0
    picks = by_kernels(states, relevance, tokens, present, **spread)
    assert torch.equal(dpp_map(states, relevance, tokens, present), picks)
    for picture in range(2):
        there = present[picture].tolist()
        assert picks[picture].tolist() == reference.dpp_map(states[picture], relevance[picture], tokens, there)


@spreads
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("where", ["states", "relevance"])
@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_comes_last(where: str, nonsense: float, spread: dict[str, Any]) -> None:
    states, relevance = torch.randn(1, 20, 32), torch.rand(1, 20)
    {"states": states, "relevance": relevance}[where][0, 3] = nonsense
    picks = by_kernels(states, relevance, 20, **spread)
    assert picks[0, -1] == 3
    assert torch.equal(picks, dpp_map(states, relevance, 20))


@spreads
def test_memory_layout_and_batch_mates_do_not_matter(spread: dict[str, Any]) -> None:
    states, relevance = torch.randn(3, 35, 32), torch.rand(35, 3).T
    present = torch.rand(35, 6).T[::2] < 0.7
    picks = by_kernels(states, relevance, 11, present, **spread)
    assert torch.equal(picks, dpp_map(states, relevance, 11, present))
    alone = by_kernels(states[1:2], relevance[1:2].contiguous(), 11, present[1:2].contiguous(), **spread)
    assert torch.equal(picks[1:2], alone)


def test_absent_tokens_are_as_good_as_not_there() -> None:
    states, relevance = torch.randn(1, 30, 8), torch.rand(1, 30)
    present = torch.ones(1, 30, dtype=torch.bool)
    present[0, ::4] = False
    names = present[0].nonzero().squeeze(1)
    picks = dpp_map(states, relevance, 30, present)
    assert torch.equal(picks[0, : len(names)], names[dpp_map(states[:, names], relevance[:, names], len(names))[0]])
    absent = (~present[0]).nonzero().squeeze(1)
    assert picks[0, len(names) :].tolist() == sorted(absent.tolist(), key=lambda token: -float(relevance[0, token]))


@pytest.mark.skipif(DEVICE == "cuda", reason="a device runs several programs at once")
def test_refuses_programs_that_would_wait_for_ever() -> None:
    with pytest.raises(ValueError, match="3 programs would wait for each other where 1 run at once"):
        greedy_picks(torch.eye(40)[None], torch.ones(1, 40), 4, 1e-9, block=16)


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "dim", "keep"), [(576, 4096, 64), (2880, 4096, 320), (300, 1152, 300)])
@pytest.mark.parametrize("batch", [1, 5])
def test_on_a_device_picks_the_largest_part(tokens: int, dim: int, keep: int, batch: int) -> None:
    states, relevance = torch.randn(batch, tokens, dim, device=DEVICE).bfloat16(), torch.rand(batch, tokens).to(DEVICE)
    picks = dpp_map(states, relevance, keep)
    assert_best(states, relevance, picks, 1e-5)
    assert torch.equal(picks[-1:], dpp_map(states[-1:], relevance[-1:], keep))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "signs", "with_zeros", "constant", "duplicates", "strided"])
@pytest.mark.parametrize(
    ("tokens", "dim", "keep"), [(1, 8, 1), (63, 64, 30), (257, 64, 200), (576, 1024, 64), (2880, 256, 320)]
)
def test_on_a_device_equals_the_operation_without_kernels(kind: str, tokens: int, dim: int, keep: int) -> None:
    states = tokens_of(kind, 4, tokens, dim).to(DEVICE)
    relevance = (torch.randint(0, 5, (4, tokens)) / 4).to(DEVICE)
    present = (torch.rand(4, tokens) < 0.8).to(DEVICE)
    for among in (None, present):
        picks = dpp_map(states, relevance, keep, among)
        with without_kernels():
            assert torch.equal(picks, dpp_map(states, relevance, keep, among))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [300, 2000])
def test_on_a_device_a_launch_for_each_pick_finds_the_same(tokens: int) -> None:
    states, relevance = torch.randn(3, tokens, 512, device=DEVICE), torch.rand(3, tokens, device=DEVICE)
    cosines = cosine_gram(states)
    whole = greedy_picks(cosines, relevance, 150, 1e-9)
    for block in (64, 128, 512):
        assert torch.equal(whole, greedy_picks(cosines, relevance, 150, 1e-9, block=block, one_launch=False))
        assert torch.equal(whole, greedy_picks(cosines, relevance, 150, 1e-9, block=block))


@pytest.mark.gpu
def test_on_a_device_many_tokens() -> None:
    # One of each direction comes before any twin, and the most relevant one of them.
    states = torch.eye(200, device=DEVICE).repeat(80, 1)[None].bfloat16()
    relevance = torch.rand(1, 16000, device=DEVICE)
    picks = dpp_map(states, relevance, 300)[0]
    assert sorted((picks[:200] % 200).tolist()) == list(range(200))
    assert torch.equal(relevance[0, picks[:200]], relevance.view(80, 200).amax(dim=0)[picks[:200] % 200])
    spare = relevance[0].scatter(0, picks[:200], -1)
    assert torch.equal(picks[200:], spare.sort(descending=True, stable=True).indices[:100])


@pytest.mark.gpu
def test_on_a_device_is_captured_without_waiting() -> None:
    states = torch.randn(2, 576, 1024, device=DEVICE).bfloat16()
    relevance, present = torch.rand(2, 576, device=DEVICE), torch.rand(2, 576, device=DEVICE) < 0.9
    expected = dpp_map(states, relevance, 64, present)
    torch.cuda.set_sync_debug_mode("error")
    try:
        dpp_map(states, relevance, 64, present)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        picks = dpp_map(states, relevance, 64, present)
    for _ in range(3):
        picks.zero_()
        graph.replay()
        assert torch.equal(picks, expected)
    states.copy_(states.flip(1))
    graph.replay()
    assert torch.equal(picks, dpp_map(states, relevance, 64, present))


class Projected(FakeContext):
    """A context whose encoder features are in CLIP's joint space already."""

    def clip_project(self, features: torch.Tensor, *, norm: bool = True) -> torch.Tensor:
        return features


@pytest.mark.gpu
def test_on_a_device_chooses_what_the_official_code_chose() -> None:
    for case in cases(load("cdpruner.npz")):
        hidden, text = torch.as_tensor(case["features"]).to(DEVICE), one(case["clip_text_embeds"]).to(DEVICE)
        context = Projected(
            square(hidden.shape[1]),
            {
                "hidden": hidden,
                "encoder_features": torch.as_tensor(case["clip_image_embeds"]).to(DEVICE),
                "clip_text": text,
                "clip_text_mask": torch.ones(text.shape[:2], dtype=torch.bool, device=DEVICE),
            },
        )
        assert chosen(CDPruner().reduce(context, int(case["T"]))) == case["order"].tolist()
