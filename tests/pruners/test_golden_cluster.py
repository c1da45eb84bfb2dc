"""PACT and AIM make what the official code made: every case stored in their golden files."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch
from fakes import FakeContext
from golden_files import TOLERANCE, Arrays, cases, chosen, load, one, square

from vtprune.ops.page_rank import page_rank
from vtprune.pruners.aim import AIM
from vtprune.pruners.pact import PACT, _importance


def pact_context(case: Arrays) -> FakeContext:
    keys = one(case["K"])
    return FakeContext(
        square(keys.shape[2]),
        {
            "hidden": one(case["x"]),
            "next_keys": keys,
            "next_unrotated_keys": keys,
            "next_unrotated_queries": one(case["Q"]),
        },
        layer=4,
        scaling=keys.shape[-1] ** -0.5,
    )


@pytest.mark.parametrize("adaptive", [True, False])
def test_pact(adaptive: bool) -> None:
    for case in cases(load("pact.npz")):
        config = ast.literal_eval(str(case["cfg_text"]))
        assert config["exact"]
        pruner = PACT(keep_share=config["keep"], cutoff=config["cutoff"], recovery=config["coef_pruned"])
        context, count = pact_context(case), len(case["out"])
        reduction = pruner.reduce_adaptive(context) if adaptive else pruner.reduce(context, count)
        assert chosen(reduction) == np.flatnonzero(case["keep_mask"])[case["center_mask_among_kept"]].tolist()
        assert reduction.features is not None
        assert reduction.sizes is not None
        np.testing.assert_allclose(reduction.features[0].numpy(), case["out"], **TOLERANCE)
        assert reduction.sizes[0].tolist() == case["weights"].tolist()


def test_pact_importance() -> None:
    for case in cases(load("pact.npz")):
        patches = torch.arange(len(case["euti"]))[None]
        found = _importance(pact_context(case), patches)[0]
        np.testing.assert_allclose(found.numpy(), case["euti"], rtol=1e-4)
        top = found.topk(int(case["keep_mask"].sum())).indices.sort().values
        assert top.tolist() == np.flatnonzero(case["keep_mask"]).tolist()


@pytest.mark.parametrize("parity", [False, True])
def test_aim_merge(parity: bool) -> None:
    for case in cases(load("aim.npz")):
        frames = torch.as_tensor(case["x"])
        # The official numbers of merges are those of repeated halves.
        left = [frames.shape[1]]
        for merges in case["rs"].tolist():
            left.append(left[-1] - merges)
        context, count = FakeContext(square(left[0]), {"hidden": frames}), left[-1]
        reduction = AIM(parity=parity).reduce(context, count)
        assert reduction.ordered == parity
        assert all(len(set(row)) == count for row in reduction.kept.tolist())
        assert reduction.features is not None
        np.testing.assert_allclose(reduction.features.numpy(), case["out"], **TOLERANCE)


def test_aim_importance() -> None:
    arrays = load("aim.npz")
    logits, scores = torch.as_tensor(arrays["imp_logits"]), arrays["imp_scores"]
    # Below this the squares of the official single precision vanish.
    np.testing.assert_allclose(page_rank(logits).numpy(), scores, rtol=1e-4, atol=1e-18)
    # Products of these queries with unit vectors as keys are the logits.
    length = logits.shape[-1]
    keys = torch.eye(length).expand_as(logits)
    for before, behind in ((0, 0), (5, 15)):
        tokens = length - before - behind
        context = FakeContext(
            square(tokens),
            {
                "hidden": torch.zeros(1, tokens, 1),
                "sequence_queries": logits,
                "sequence_keys": keys,
                "text_mask": torch.ones(1, before + behind, dtype=torch.bool),
            },
            layer=14,
            prefix=before,
        )
        expected = torch.as_tensor(scores)[:, before : before + tokens].topk(20).indices[0]
        assert chosen(AIM().reduce(context, 20)) == expected.tolist()
