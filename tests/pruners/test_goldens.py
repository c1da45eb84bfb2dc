"""The methods choose what the official code chose: every case stored in the golden files."""

from __future__ import annotations

import re
from pathlib import Path

import golden_files
import numpy as np
import pytest
import torch
from fakes import FakeContext
from golden_files import FOLDER, TOLERANCE, cases, chosen, load, one, square

from vtprune.layout import grid_layout
from vtprune.ops.entropy import matrix_entropy
from vtprune.ops.pool import block_pool, scale_kernel
from vtprune.pruners.divprune import DivPrune
from vtprune.pruners.entropyprune import EntropyPrune
from vtprune.pruners.fastv import FastV
from vtprune.pruners.flashvlm import FlashVLM
from vtprune.pruners.m3 import M3
from vtprune.pruners.visionzip import VisionZip
from vtprune.registry import pruner_classes


def test_every_golden_file_named_by_a_pruner_is_walked_here() -> None:
    named = {cls.golden for cls in pruner_classes().values() if cls.golden}
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_golden*.py"))
    walked = set(re.findall(r'load\("(\w+\.npz)"\)', tests))
    assert named <= walked
    missing = [name for name in sorted(named) if not (FOLDER / name).is_file()]
    assert not missing, f"golden files missing from the folder: {missing}"


def test_file_without_cases_is_no_success() -> None:
    with pytest.raises(AssertionError, match="no case"):
        cases({"tokens_A": np.zeros(1), "features_B": np.zeros(1)})


def test_missing_file_is_no_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(golden_files, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError):
        test_fastv()


def test_fastv() -> None:
    for case in cases(load("fastv.npz")):
        start, tokens, length = case["params"].tolist()
        keep = len(case["topk_order"])
        hidden = torch.as_tensor(case["hidden"])[:, start : start + tokens]
        attention = one(case["attn_last_row"])[:, :, start : start + tokens]
        context = FakeContext(square(tokens), {"hidden": hidden, "last_token_attention": attention}, layer=2)
        order = chosen(FastV().reduce(context, keep))
        assert order == case["topk_order"].tolist()
        prompt = [*range(start), *(start + token for token in sorted(order)), *range(start + tokens, length)]
        assert prompt == case["keep_indexs"].tolist() == case["position_ids"][0].tolist()
        np.testing.assert_allclose(case["hidden"][0][prompt], case["hidden_out"][0], **TOLERANCE)


def test_divprune() -> None:
    arrays = load("divprune.npz")
    for case in cases(arrays):
        tokens = one(arrays[str(case["tokens_key"])])
        expected = case["indices_in_pick_order"].tolist()
        count = tokens.shape[1]
        assert len(expected) == round(float(case["ratio"]) * count)
        order = chosen(DivPrune().reduce(FakeContext(square(count), {"hidden": tokens}), len(expected)))
        assert len(set(order)) == len(order)
        # Tokens of one direction are interchangeable: each stands for the first of its kind.
        unit = torch.nn.functional.normalize(tokens[0].double(), dim=-1)
        first = [int((unit @ row > 1 - 1e-9).nonzero()[0]) for row in unit]
        assert [first[token] for token in order] == [first[token] for token in expected]
        if len(set(first)) == count:
            assert order == expected
            assert sorted(order) == case["indices_sorted"].tolist()


def test_entropyprune() -> None:
    arrays = load("entropyprune.npz")
    for case in cases(arrays):
        start, tokens = int(case["image_start"]), int(case["image_len"])
        queries = torch.as_tensor(case["q_int8"]).float() * float(arrays["q_scale"])
        queries = queries[:, :, start : start + tokens]
        context = FakeContext(square(tokens), {"hidden": torch.zeros(1, tokens, 1), "queries": queries}, layer=2)
        order = chosen(EntropyPrune().reduce(context, int(case["keep"])))
        assert [start + token for token in order] == case["indices_desc_absolute"].tolist()


def test_entropyprune_values() -> None:
    arrays = load("entropyprune.npz")
    letters = [key.removeprefix("entropy_") for key in arrays if key.startswith("entropy_")]
    assert letters
    for letter in letters:
        start, tokens = int(arrays[f"image_start_{letter}"]), int(arrays[f"image_len_{letter}"])
        queries = torch.as_tensor(arrays[f"q_int8_{letter}"]).float() * float(arrays["q_scale"])
        entropy = matrix_entropy(queries[:, :, start : start + tokens])[0]
        np.testing.assert_allclose(entropy.numpy(), arrays[f"entropy_{letter}"], rtol=1e-10, atol=1e-10)


def test_flashvlm() -> None:
    for case in cases(load("flashvlm.npz")):
        features, words = one(case["features"]), one(case["text_embeds"])
        projector = torch.as_tensor(case["projector_W"])
        tokens = features.shape[1]
        context = FakeContext(
            square(tokens),
            {
                "hidden": features @ projector,
                "encoder_features": features,
                "encoder_attention": one(case["cls_attn_heads"]),
                "text": words,
                "text_mask": torch.full(words.shape[:2], bool(case["with_text"])),
            },
        )
        kept = sorted(chosen(FlashVLM().reduce(context, int(case["keep"]))))
        assert kept == case["indices_sorted"].tolist()
        if "output_projected" in case:
            np.testing.assert_allclose(context.hidden[0, kept].numpy(), case["output_projected"], **TOLERANCE)


def test_visionzip() -> None:
    for case in cases(load("visionzip.npz")):
        tokens, dominant, contextual = case["params"].tolist()
        hidden, metric = torch.as_tensor(case["hidden"]), torch.as_tensor(case["metric"])
        context = FakeContext(
            square(tokens),
            {
                "hidden": hidden[:, 1:],
                "encoder_features": hidden[:, 1:],
                "encoder_cls": hidden[:, :1],
                "encoder_keys": metric[:, 1:].unsqueeze(1),
                "encoder_attention": one(case["cls_attn_row"])[:, :, 1:],
            },
        )
        pruner = VisionZip() if contextual else VisionZip(contextual=0.0)
        if pruner.split(dominant + contextual) != (dominant, contextual):
            pruner = VisionZip(contextual=contextual / (dominant + contextual))
        reduction = pruner.reduce(context, dominant + contextual)
        assert reduction.features is not None
        np.testing.assert_allclose(reduction.features.numpy(), case["out"], **TOLERANCE)
        # The official order holds CLS as row 0 and counts patches from 1.
        official = (case["all_indices"][0] - 1).tolist()
        assert official[0] == -1
        assert chosen(reduction)[1:dominant] == sorted(official[1:])


def test_m3() -> None:
    arrays = load("m3.npz")
    outputs = [key for key in arrays if "_scale" in key]
    assert outputs, "the golden file holds no case"
    for key in outputs:
        letter, scale = key.split("_scale")
        features = torch.as_tensor(arrays[f"features_{letter}"])
        tokens = features.shape[1]
        side = round(tokens**0.5)
        pooled, _ = block_pool(features, side, side, scale_kernel(tokens, int(scale)))
        np.testing.assert_allclose(pooled.numpy(), arrays[key], **TOLERANCE)
        count = arrays[key].shape[1]
        if int(scale) == count < tokens and side % round(count**0.5) == 0:
            pruner = M3()
            assert pruner.attainable(grid_layout(side, side), count) == count
            reduction = pruner.reduce(FakeContext(grid_layout(side, side), {"hidden": features}), count)
            assert reduction.features is not None
            np.testing.assert_allclose(reduction.features.numpy(), arrays[key], **TOLERANCE)
