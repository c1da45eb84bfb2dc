"""Merging methods make the tokens that the official code made: every case stored in the golden files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import FakeContext
from golden_files import TOLERANCE, Arrays, cases, chosen, load, one, square

from vtprune.ops.bipartite import bipartite_match, every_kth_match, merge_matched, parse_r
from vtprune.pruner import Reduction
from vtprune.pruners.prumerge import PruMerge
from vtprune.pruners.prumerge_plus import PruMergePlus
from vtprune.pruners.tome import ToMe


def prumerge_context(case: Arrays) -> FakeContext:
    hidden, keys = torch.as_tensor(case["hidden"]), torch.as_tensor(case["K"])
    logits = torch.as_tensor(case["Qcls"]) @ keys.mT * keys.shape[-1] ** -0.5
    return FakeContext(
        square(keys.shape[1] - 1),
        {
            "hidden": hidden[:, 1:],
            "encoder_features": hidden[:, 1:],
            "encoder_layer0.joint_attention": logits.softmax(dim=-1)[:, 0, 1:],
            # Two heads, which the method has to put together again.
            "encoder_layer0.keys": keys[:, 1:].unflatten(2, (2, -1)).transpose(1, 2),
        },
    )


def assert_distinct(reduction: Reduction, count: int) -> None:
    assert len(set(chosen(reduction))) == len(chosen(reduction)) == count
    assert reduction.ordered


def test_prumerge() -> None:
    seen = set()
    for case in cases(load("prumerge.npz")):
        context, count = prumerge_context(case), case["out"].shape[1]
        adaptive, plus = bool(case["adaptive"]), str(case["variant"]) == "plus"
        seen.add((adaptive, plus))
        pruner = PruMergePlus(parity=not adaptive) if plus else PruMerge()
        reduction = pruner.reduce_adaptive(context) if adaptive else pruner.reduce(context, count)
        assert_distinct(reduction, count)
        assert reduction.features is not None
        np.testing.assert_allclose(reduction.features.numpy(), case["out"], **TOLERANCE)
        if adaptive:
            assert reduction.valid is not None
            assert bool(reduction.valid.all())
    assert seen == {(True, False), (False, False), (True, True), (False, True)}


def test_tome_operations() -> None:
    for case in cases(load("tome.npz")):
        states, metric = torch.as_tensor(case["x"]), torch.as_tensor(case["metric"])
        sizes = torch.ones(states.shape[:2])
        group = torch.arange(states.shape[1]).expand(1, -1)
        for turn, merges in enumerate(case["rs"].tolist()):
            matching = bipartite_match(metric, merges, protected=int(case["class_token"]))
            metric, _ = merge_matched(matching, metric, sizes)
            states, sizes = merge_matched(matching, states, sizes)
            group = matching.source.gather(1, group)
            assert group[0].tolist() == case[f"k{turn}_group"].tolist()
            assert sizes.tolist() == case[f"k{turn}_size"].squeeze(-1).tolist()
            np.testing.assert_allclose(states.numpy(), case[f"k{turn}_x"], **TOLERANCE)
        if case["source"].size:
            assert (torch.arange(states.shape[1])[:, None] == group).tolist() == case["source"].tolist()


def test_tome() -> None:
    walked = 0
    for case in cases(load("tome.npz")):
        if case["class_token"]:
            continue  # what enters the language model has no CLS token
        walked += 1
        metric, rounds = one(case["metric"])[0], case["rs"].tolist()
        tokens, keep, last = metric.shape[1], case[f"k{len(rounds) - 1}_x"].shape[1], len(rounds) - 1
        group, size = case[f"k{last}_group"], case[f"k{last}_size"][0, :, 0]
        halves = rounds[0] == tokens // 2
        pruner = ToMe(per_round=None if halves else rounds[0], proportional_attention=True, ordered=True)
        reduction = pruner.reduce(FakeContext(square(tokens), {"hidden": metric}), keep)
        assert reduction.ordered
        assert group[chosen(reduction)].tolist() == list(range(keep))
        assert reduction.sizes is not None
        assert reduction.sizes[0].tolist() == size.tolist()
        member = torch.as_tensor(group) == torch.arange(keep)[:, None]
        assert reduction.features is not None
        mean = (member.float() @ metric[0]) / torch.as_tensor(size)[:, None]
        np.testing.assert_allclose(reduction.features[0].numpy(), mean.numpy(), **TOLERANCE)
    assert walked > 1


def test_every_kth() -> None:
    arrays = load("tome.npz")
    states = torch.as_tensor(arrays["kth_x"])
    merged, _ = merge_matched(every_kth_match(states, 4), states)
    np.testing.assert_allclose(merged.numpy(), arrays["kth_out_mean"], **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "merges", "inflect"),
    [("parse_r_23_16_0", 16, 0.0), ("parse_r_23_16_m1", 16, -1.0), ("parse_r_24_8_p05", 8, 0.5)],
)
def test_parse_r(name: str, merges: int, inflect: float) -> None:
    expected = load("tome.npz")[name].tolist()
    assert list(parse_r(merges, len(expected), inflect=inflect)) == expected
