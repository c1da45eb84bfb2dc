"""The methods guided by CLIP's text tower choose what the official code chose: every case in the golden files."""

from __future__ import annotations

import math

import numpy as np
import torch
from fakes import FakeContext
from golden_files import TOLERANCE, Arrays, cases, chosen, load, one, square

from vtprune.ops.outliers import lof_outlier_count
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Reduction
from vtprune.pruners.cdpruner import CDPruner
from vtprune.pruners.recoverable import Recoverable
from vtprune.pruners.trim import Trim


class Projected(FakeContext):
    """A context whose encoder features are in CLIP's joint space already."""

    def clip_project(self, features: torch.Tensor, *, norm: bool = True) -> torch.Tensor:
        return features


def test_cdpruner() -> None:
    for case in cases(load("cdpruner.npz")):
        hidden, text = torch.as_tensor(case["features"]), one(case["clip_text_embeds"])
        context = Projected(
            square(hidden.shape[1]),
            {
                "hidden": hidden,
                "encoder_features": torch.as_tensor(case["clip_image_embeds"]),
                "clip_text": text,
                "clip_text_mask": torch.ones(text.shape[:2], dtype=torch.bool),
            },
        )
        relevance = CDPruner().relevance(context)[0]
        np.testing.assert_allclose(relevance.numpy(), case["relevance"], rtol=1e-5, atol=1e-5)
        order = chosen(CDPruner().reduce(context, int(case["T"])))
        assert order == case["order"].tolist()
        assert sorted(order) == case["kept_sorted"].tolist()


def assert_trimmed(reduction: Reduction, case: Arrays) -> None:
    assert chosen(reduction)[:-1] == case["kept_sorted"].tolist()
    assert reduction.features is not None
    # The official code hands its result on in float16.
    rounded = reduction.features[0].half().float().numpy()
    np.testing.assert_allclose(rounded, case["out_fp16_as_f32"], rtol=2e-3, atol=1e-4)


def test_trim() -> None:
    for case in cases(load("trim.npz")):
        features = torch.as_tensor(case["features"])
        tokens = features.shape[1]
        context = FakeContext(
            square(tokens),
            {
                "hidden": features,
                "encoder_features": features,
                "clip_text_truncated": torch.as_tensor(case["text_embed"]),
                "clip_projection": one(case["proj_W"].T),
            },
        )
        kept = len(case["kept_sorted"])
        if float(str(case["k_text"])) < 0:
            reduction = Trim().reduce_adaptive(context)
            assert reduction.valid is not None
            assert bool(reduction.valid.all())
            assert_trimmed(reduction, case)
        else:
            assert kept == int(tokens * float(str(case["k_text"])))
        assert_trimmed(Trim().reduce(context, kept + 1), case)


def joint_attention(case: Arrays) -> torch.Tensor:
    """Attention from CLS with all heads as one, `(1, tokens)`, computed as the official code does."""
    query, keys = torch.as_tensor(case["q_cls"]), torch.as_tensor(case["keys_with_cls"])
    logits = keys @ query / math.sqrt(len(query))
    return logits.softmax(dim=0)[None, 1:]


def test_recoverable() -> None:
    for case in cases(load("recoverable_compression.npz")):
        features, similarity = one(case["features"]), one(case["text_similarity"]).double()
        # Patch states on the unit circle at the angles to the text that give the recorded similarities.
        cosine = similarity * math.sqrt(2)
        context = FakeContext(
            square(features.shape[1]),
            {
                "hidden": features,
                "encoder_features": features,
                "clip_text_last": torch.tensor([[1.0, 0.0]]),
                "clip_projection": torch.eye(2, dtype=torch.float64)[None],
                "encoder_layer0.joint_attention": joint_attention(case),
                "encoder_layer0.keys": one(case["keys_with_cls"])[:, None, 1:],
                "encoder_layer0.output": torch.stack([cosine, (1 - cosine**2).sqrt()], dim=-1),
            },
        )
        reduction = Recoverable(parity=True).reduce_adaptive(context)
        assert reduction.features is not None
        assert reduction.valid is not None
        assert bool(reduction.valid.all())
        np.testing.assert_allclose(reduction.features[0].numpy(), case["output"], **TOLERANCE)
        # Rows that are patches say which ones were kept, and where.
        official = [np.flatnonzero((case["features"] == row).all(axis=1)).tolist() for row in case["output"]]
        for token, names in zip(chosen(reduction), official, strict=True):
            assert names in ([], [token])
        assert sum(map(len, official)) >= len(official) // 2


def test_recoverable_ratios() -> None:
    for case in cases(load("recoverable_compression.npz")):
        attention, text = joint_attention(case), one(case["text_similarity"])
        tokens = attention.shape[1]
        vision, by_text, centres = case["outlier_ratios_vision_text_center"].tolist()
        assert int(lof_outlier_count(attention, 20)) / tokens == vision
        first = stable_topk(attention, int(tokens * vision))
        evened = text.scatter(1, first, float(text.min()))
        assert int(lof_outlier_count(evened, 20)) / tokens == by_text
        second = stable_topk(evened, int((tokens - first.shape[1]) * by_text))
        gone = {*first[0].tolist(), *second[0].tolist()}
        rest = attention[:, [token for token in range(tokens) if token not in gone]]
        assert int(lof_outlier_count(rest, 10)) / rest.shape[1] == centres
