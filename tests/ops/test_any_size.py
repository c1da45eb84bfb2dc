"""What holds at any size, type and memory layout for the operations that have no file of their own here."""

from __future__ import annotations

import torch
from awkward import pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.entropy import matrix_entropy
from vtprune.ops.hashing import random_keys
from vtprune.ops.max_min import max_min
from vtprune.ops.merge import merge_into_targets
from vtprune.ops.pool import cell_pool
from vtprune.ops.residual import drop_redundant
from vtprune.ops.similarity import min_max, text_relevance
from vtprune.ops.topk import stable_topk

few = settings(max_examples=25, deadline=None)
Pictures = torch.Tensor


def budget(data: st.DataObject, states: Pictures, lowest: int = 1) -> int:
    return data.draw(st.integers(lowest, states.shape[1]))


def assert_distinct(picks: torch.Tensor, tokens: int, keep: int) -> None:
    assert picks.shape[1] == keep
    for row in picks.tolist():
        assert len(set(row)) == keep
        assert not row or 0 <= min(row) <= max(row) < tokens


@few
@given(pictures(), st.data())
def test_max_min_picks_are_distinct_nested_and_farthest(states: Pictures, data: st.DataObject) -> None:
    keep = budget(data, states)
    picks = max_min(states, keep)
    assert_distinct(picks, states.shape[1], keep)
    fewer = data.draw(st.integers(1, keep))
    assert torch.equal(max_min(states, fewer), picks[:, :fewer])
    unit = torch.nn.functional.normalize(states.double(), dim=-1)
    distance = 1 - unit @ unit.mT
    # The last pick is as far from the picks before it as any token that is left.
    for row, chosen in enumerate(picks.tolist()):
        if keep > 1:
            nearest = distance[row][:, chosen[:-1]].amin(dim=1)
            nearest[chosen[:-1]] = -torch.inf
            assert nearest[chosen[-1]] >= nearest.max() - 1e-5


@few
@given(pictures(dim=1), st.data())
def test_stable_topk_is_a_stable_sort(states: Pictures, data: st.DataObject) -> None:
    scores, keep = states[:, :, 0], budget(data, states, lowest=0)
    picks = stable_topk(scores, keep)
    assert_distinct(picks, states.shape[1], keep)
    for row, chosen in zip(scores.tolist(), picks.tolist(), strict=True):
        assert chosen == sorted(range(len(row)), key=lambda token: -row[token])[:keep]


@few
@given(pictures(), st.data())
def test_merging_uses_every_token_once(states: Pictures, data: st.DataObject) -> None:
    targets = budget(data, states, lowest=0)
    merged, chosen, assigned = merge_into_targets(states, states, targets)
    assert merged.shape == (len(states), targets, states.shape[2])
    assert merged.dtype == states.dtype
    assert merged.isfinite().all()
    assert len(set(chosen.tolist())) == targets
    assert assigned.shape == (len(states), states.shape[1] - targets)
    assert not assigned.numel() or 0 <= int(assigned.min()) <= int(assigned.max()) < max(1, targets)


@few
@given(pictures(largest=200), st.data(), st.integers(1, 9))
def test_thinning_keeps_the_number_asked_for(states: Pictures, data: st.DataObject, per_round: int) -> None:
    keep = budget(data, states, lowest=0)
    assert_distinct(drop_redundant(states, keep, per_round=per_round), states.shape[1], keep)


@few
@given(pictures(largest=200), st.booleans())
def test_entropy_is_finite_and_each_picture_s_own(states: Pictures, normalize_trace: bool) -> None:
    # (batch, heads, tokens, channels): the batch as heads of one picture and of two equal ones
    heads = states.unsqueeze(0)
    entropy = matrix_entropy(heads, normalize_trace=normalize_trace)
    assert entropy.shape == (1, states.shape[1])
    assert entropy.isfinite().all()
    twice = matrix_entropy(torch.cat([heads, heads]), normalize_trace=normalize_trace)
    torch.testing.assert_close(twice[0], entropy[0])
    torch.testing.assert_close(twice[1], entropy[0])


@few
@given(pictures(), st.integers(1, 9))
def test_relevance_lies_between_nothing_and_one(states: Pictures, words: int) -> None:
    text = torch.randn(len(states), words, states.shape[2])
    mask = torch.rand(len(states), words) < 0.7
    text = text.masked_fill(~mask.unsqueeze(-1), torch.inf)
    relevance = text_relevance(states, text, mask)
    assert relevance.shape == states.shape[:2]
    assert bool(((relevance >= 0) & (relevance <= 1)).all())
    assert not relevance[~mask.any(dim=1)].any()


@few
@given(pictures(dim=1))
def test_min_max_spans_the_unit_interval(states: Pictures) -> None:
    scaled = min_max(states[:, :, 0].float())
    assert bool(((scaled >= 0) & (scaled <= 1)).all())
    assert bool((scaled.amin(dim=1) == 0).all())


@few
@given(pictures(), st.data())
def test_cells_average_every_token_once(states: Pictures, data: st.DataObject) -> None:
    keep = budget(data, states)
    pooled, centres = cell_pool(states, 1, states.shape[1], keep)
    assert pooled.shape == (len(states), keep, states.shape[2])
    assert centres.tolist() == sorted(set(centres.tolist()))
    assert bool((pooled.float().amax(dim=1) <= states.float().amax(dim=1) + 1e-2).all())
    assert bool((pooled.float().amin(dim=1) >= states.float().amin(dim=1) - 1e-2).all())


@few
@given(st.integers(1, 700), st.integers(0, 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_random_keys_of_a_picture_differ(tokens: int, seed: int, picture: int) -> None:
    hashes = torch.tensor([picture, picture ^ 1])
    keys = random_keys(hashes, torch.arange(tokens).expand(2, -1), seed)
    assert len(keys[0].unique()) == tokens
    assert not torch.equal(keys[0], keys[1])
    assert torch.equal(random_keys(hashes[:1], torch.arange(tokens)[None], seed)[0], keys[0])
