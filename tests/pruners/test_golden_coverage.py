"""HoloV, SCOPE, G-Prune and VScan choose what the official code chose: every case stored in the golden files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import FakeContext
from golden_files import TOLERANCE, cases, chosen, load, one, square

from vtprune.layout import grid_layout
from vtprune.ops.chunks import best_of_chunks, chunk_quotas, holistic_scores
from vtprune.ops.propagation import propagated_importance
from vtprune.pruners.gprune import GPrune
from vtprune.pruners.holov import HoloV
from vtprune.pruners.scope import Scope
from vtprune.pruners.vscan import VScan


def test_holov() -> None:
    lossless = 0
    for case in cases(load("holov.npz")):
        chunks, keep = case["params"].tolist()
        features, attention = torch.as_tensor(case["features"]), torch.as_tensor(case["cls_attn"])
        official = case["kept_in_official_order"].tolist()
        quotas = chunk_quotas(holistic_scores(features, attention, chunks), chunks, keep, reallocate=False)
        order = best_of_chunks(attention, quotas, keep)[0]
        assert order.tolist() == official
        rows = features[0][order].masked_fill(order.unsqueeze(1) < 0, 0)
        np.testing.assert_allclose(rows.numpy(), case["out"][0], **TOLERANCE)
        context = FakeContext(
            square(features.shape[1]), {"hidden": features, "encoder_attention": attention.unsqueeze(1)}
        )
        reduction = HoloV(chunks=chunks).reduce(context, keep)
        assert reduction.ordered
        assert len(set(chosen(reduction))) == keep
        # Rows of zeros give way to other tokens; those that the official code keeps all stay.
        assert set(official) - {-1} <= set(chosen(reduction))
        if -1 not in official:
            lossless += 1
            assert chosen(reduction) == official
    assert lossless


@pytest.mark.parametrize("parity", [True, False])
def test_scope(parity: bool) -> None:
    for case in cases(load("scope.npz")):
        features = torch.as_tensor(case["features"])
        tensors = {"hidden": features[:, :, :1], "encoder_features": features}
        tensors["encoder_attention"] = torch.as_tensor(case["cls_attn"])
        context = FakeContext(square(features.shape[1]), tensors)
        assert chosen(Scope(parity=parity).reduce(context, int(case["T"]))) == case["order"].tolist()


def test_gprune() -> None:
    for case in cases(load("gprune.npz")):
        features, expected = one(case["features"]), case["kept_in_score_order"].tolist()
        assert len(expected) == int(float(case["keep_ratio_text"]) * features.shape[1])
        np.testing.assert_allclose(propagated_importance(features)[0].numpy(), case["score"], **TOLERANCE)
        context = FakeContext(square(features.shape[1]), {"hidden": features})
        assert chosen(GPrune().reduce(context, len(expected))) == expected


def test_vscan() -> None:
    for case in cases(load("vscan.npz")):
        features = torch.as_tensor(case["features"])
        tensors = {"hidden": features, "encoder_layer0.attention": one(case["shallow_cls_attn"])}
        tensors["encoder_layer1.attention"] = one(case["deep_cls_attn"])
        reduction = VScan().reduce(FakeContext(grid_layout(24, 24), tensors), int(case["T"]))
        assert chosen(reduction) == case["kept_sorted"].tolist()
        assert reduction.features is not None
        np.testing.assert_allclose(reduction.features[0].numpy(), case["out_kept"], **TOLERANCE)
