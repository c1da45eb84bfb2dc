"""PageRank without maps is that of the torch code, as near as logits summed in float32 allow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from awkward import tokens_of
from fakes import FakeContext
from golden_files import square
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.kernels import without_kernels
from vtprune.kernels.page_rank import half_page_rank
from vtprune.ops.page_rank import attention_page_rank
from vtprune.pruners.aim import AIM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# One program for each head, and one for each of its blocks.
both_ways = pytest.mark.parametrize("one_program", [True, False], ids=["one_program", "several"])
# A logit over the temperature, in binary digits, reaches some hundreds: float32 resolves it to a few 1e-5, and so its
# power of two to as much of itself; steps of the walk add up, and tensor cores cut off where others round.
TOLERANCE = 2e-4 if DEVICE == "cpu" else 1e-3


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    # What is smaller still is out of the range of the torch code.
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=1e-290)


def by_torch(queries: torch.Tensor, keys: torch.Tensor, scaling: float, *inputs: Any, **options: Any) -> torch.Tensor:
    with without_kernels():
        return attention_page_rank(queries, keys, scaling, *inputs, **options)


def states_of(kind: str, batch: int, heads: int, tokens: int, dim: int) -> torch.Tensor:
    """In bfloat16, and heads beside one another in memory, as projections leave them."""
    states = tokens_of(kind, batch, tokens, heads * dim).bfloat16().to(DEVICE)
    return states.view(batch, tokens, heads, dim).transpose(1, 2)


def causal(batch: int, tokens: int) -> torch.Tensor:
    return torch.ones(batch, tokens, tokens, dtype=torch.bool, device=DEVICE).tril()


@both_ways
@pytest.mark.parametrize("kind", ["plain", "constant", "strided"])
@pytest.mark.parametrize(("tokens", "dim"), [(1, 8), (70, 200)])
def test_equals_the_operation(kind: str, tokens: int, dim: int, one_program: bool) -> None:
    queries, keys = states_of(kind, 2, 2, tokens, dim), states_of(kind, 2, 1, tokens, dim)
    found = half_page_rank(queries, keys, dim**-0.5, causal(2, tokens), one_program=one_program)
    assert found.dtype == torch.float64
    assert_near(found, by_torch(queries, keys, dim**-0.5, causal(2, tokens)))


@pytest.mark.parametrize(("steps", "temperature"), [(0, 1.0), (1, 0.1), (2, 2.0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_start_and_steps(steps: int, temperature: float, dtype: torch.dtype) -> None:
    queries, keys = torch.randn(2, 2, 30, 16).to(DEVICE, dtype), torch.randn(2, 1, 30, 16).to(DEVICE, dtype)
    start = torch.rand(2, 30, device=DEVICE).double()
    start[:, ::7] = 0
    options: dict[str, Any] = {"steps": steps, "temperature": temperature}
    expected = by_torch(queries, keys, 0.3, causal(2, 30), start, **options)
    assert_near(half_page_rank(queries, keys, 0.3, causal(2, 30), start, **options), expected)


@both_ways
def test_rows_that_see_nothing_look_at_all_alike(one_program: bool) -> None:
    queries, keys = states_of("plain", 2, 1, 70, 8), states_of("plain", 2, 1, 70, 8)
    allowed = torch.rand(2, 70, 70, device=DEVICE) < 0.1
    allowed[:, ::3] = False
    found = half_page_rank(queries, keys, 0.5, allowed, one_program=one_program)
    assert_near(found, by_torch(queries, keys, 0.5, allowed))
    # One mask may stand for all pictures.
    shared = half_page_rank(queries, keys, 0.5, allowed[:1], one_program=one_program)
    assert_near(shared, by_torch(queries, keys, 0.5, allowed[:1]))


@both_ways
def test_what_is_nearly_nothing_keeps_its_order(one_program: bool) -> None:
    keys = torch.full((1, 2, 20, 8), -10.0)
    keys[:, :, 0] = 10
    keys += torch.arange(20).view(-1, 1) / 10
    queries, keys = torch.ones(1, 2, 20, 8).bfloat16().to(DEVICE), keys.bfloat16().to(DEVICE)
    ranks = half_page_rank(queries, keys, 0.1, causal(1, 20), one_program=one_program)
    assert 0 < ranks.min() < 1e-60
    expected = by_torch(queries, keys, 0.1, causal(1, 20))
    assert torch.equal(ranks.argsort(), expected.argsort())


@both_ways
def test_duplicates_are_equal(one_program: bool) -> None:
    states = states_of("plain", 1, 1, 40, 16).repeat(1, 1, 4, 1)
    ranks = half_page_rank(states, states, 0.25, torch.ones_like(causal(1, 160)), one_program=one_program)[0]
    assert all(torch.equal(ranks[:40], ranks[first : first + 40]) for first in (40, 80, 120))


@pytest.mark.parametrize("present", [1, 60])
def test_batch_mates_do_not_matter(present: int) -> None:
    queries, keys = states_of("plain", 2, 2, 150, 16), states_of("plain", 2, 2, 150, 16)
    there = torch.arange(150, device=DEVICE) < torch.tensor([[150], [present]], device=DEVICE)
    allowed, start = causal(2, 150) & there.unsqueeze(1), there / there.sum(dim=1, keepdim=True)
    whole = half_page_rank(queries, keys, 0.25, allowed, start, one_program=False)
    few = slice(0, present)
    alone = half_page_rank(queries[1:, :, few], keys[1:, :, few], 0.25, allowed[1:, few, few], start[1:, few])
    assert torch.equal(alone[0], whole[1, few])
    assert not whole[1, present:].any()


@settings(max_examples=6)
@given(st.integers(1, 40), st.sampled_from([8, 20, 32]), st.integers(1, 2), st.booleans(), st.data())
def test_any_input(tokens: int, dim: int, group: int, one_program: bool, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    kind = data.draw(st.sampled_from(["plain", "signs", "with_zeros", "duplicates"]))
    queries, keys = states_of(kind, 1, 2 * group, tokens, dim), states_of(kind, 1, 2, tokens, dim)
    allowed = torch.rand(1, tokens, tokens, device=DEVICE) < data.draw(st.sampled_from([0.1, 0.9, 1.1]))
    start = (torch.randint(0, 3, (1, tokens)) / 2).to(DEVICE)
    steps = data.draw(st.integers(0, 3))
    found = half_page_rank(queries, keys, 0.2, allowed, start, steps=steps, one_program=one_program)
    assert_near(found, by_torch(queries, keys, 0.2, allowed, start, steps=steps))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "with_zeros", "duplicates"])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "tokens", "dim"),
    [(8, 32, 8, 204, 128), (3, 8, 8, 255, 80), (8, 8, 2, 576, 128), (2, 4, 4, 2880, 64), (1, 2, 1, 16000, 256)],
)
def test_on_a_device(kind: str, batch: int, heads: int, kv_heads: int, tokens: int, dim: int) -> None:
    queries, keys = (states_of(kind, batch, count, tokens, dim) for count in (heads, kv_heads))
    there = torch.arange(tokens, device=DEVICE) < torch.randint(tokens // 2, tokens + 1, (batch, 1), device=DEVICE)
    there[0] = True
    allowed, start = causal(batch, tokens) & there.unsqueeze(1), there / there.sum(dim=1, keepdim=True)
    found = attention_page_rank(queries, keys, dim**-0.5, allowed, start)
    assert_near(found, by_torch(queries, keys, dim**-0.5, allowed, start))
    alone = attention_page_rank(queries[:1], keys[:1], dim**-0.5, allowed[:1], start[:1])
    assert torch.equal(alone, found[:1])
    if tokens <= 1000:
        ways = [
            half_page_rank(queries, keys, dim**-0.5, allowed, start, one_program=one_program)
            for one_program in (False, True)
        ]
        assert all(torch.equal(way, found) for way in ways)


@pytest.mark.gpu
def test_on_a_device_is_captured_without_waiting() -> None:
    text = 40
    tokens, slots = 144, 144 + text
    context = FakeContext(
        square(tokens),
        {
            "hidden": torch.randn(8, tokens, 64, device=DEVICE).bfloat16(),
            "sequence_queries": torch.randn(8, 16, slots, 64, device=DEVICE).bfloat16(),
            "sequence_keys": torch.randn(8, 16, slots, 64, device=DEVICE).bfloat16(),
            "text_mask": torch.rand(8, text, device=DEVICE) < 0.8,
        },
        layer=14,
    )
    expected = AIM().reduce(context, 126).kept
    torch.cuda.set_sync_debug_mode("error")
    try:
        AIM().reduce(context, 126)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = AIM().reduce(context, 126).kept
    kept.zero_()
    graph.replay()
    assert torch.equal(kept, expected)
