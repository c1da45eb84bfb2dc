"""The official loops select what the recorded outputs of the published code say: every case of every golden file."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import TOLERANCE, Arrays, cases, load, one

from vtprune.eval.official.aim import aim_drop, aim_merge, aim_rank
from vtprune.eval.official.attention import causal_mask, eager_map
from vtprune.eval.official.cdpruner import cdpruner, relevance
from vtprune.eval.official.dart import dart, dart_pivots
from vtprune.eval.official.divprune import divprune
from vtprune.eval.official.entropyprune import entropies, entropyprune
from vtprune.eval.official.fastv import fastv
from vtprune.eval.official.fitprune import fitprune
from vtprune.eval.official.flashvlm import flashvlm
from vtprune.eval.official.globalcom2 import globalcom2
from vtprune.eval.official.gprune import gprune
from vtprune.eval.official.hiprune import hiprune
from vtprune.eval.official.hired import hired
from vtprune.eval.official.holov import holov
from vtprune.eval.official.m3 import m3
from vtprune.eval.official.mustdrop import mustdrop, mustdrop_keys
from vtprune.eval.official.pact import pact
from vtprune.eval.official.prumerge import prumerge
from vtprune.eval.official.pyramiddrop import pyramiddrop
from vtprune.eval.official.recoverable import outlier_ratio, recoverable
from vtprune.eval.official.scope import scope
from vtprune.eval.official.sparsevlm import sparsevlm, sparsevlm_plus, text_raters
from vtprune.eval.official.tome import tome
from vtprune.eval.official.trim import trim
from vtprune.eval.official.visionzip import visionzip
from vtprune.eval.official.vispruner import fastervlm, vispruner
from vtprune.eval.official.vscan import vscan


def cls_map(rows: Any) -> torch.Tensor:
    """A whole map whose CLS row `(views, heads, patches)` was recorded without the entry of CLS itself."""
    seen = torch.as_tensor(rows)
    views, heads, patches = seen.shape
    whole = torch.full((views, heads, patches + 1, patches + 1), torch.nan)
    whole[:, :, 0, 1:] = seen
    return whole


def numbers(mask: torch.Tensor) -> list[int]:
    return [int(number) for number in mask.nonzero()]


def test_every_golden_file_of_a_pruner_is_walked_here() -> None:
    from vtprune.registry import pruner_classes

    text = Path(__file__).read_text(encoding="utf-8")
    assert not [cls.golden for cls in pruner_classes().values() if cls.golden and f'"{cls.golden}"' not in text]


def test_divprune() -> None:
    arrays = load("divprune.npz")
    for case in cases(arrays):
        tokens = torch.as_tensor(arrays[str(case["tokens_key"])])
        expected = case["indices_in_pick_order"].tolist()
        order = divprune(tokens, len(expected)).tolist()
        # Tokens of one direction are interchangeable: each stands for the first of its kind.
        unit = torch.nn.functional.normalize(tokens.double(), dim=-1)
        first = [int((unit @ row > 1 - 1e-9).nonzero()[0]) for row in unit]
        assert [first[token] for token in order] == [first[token] for token in expected]
        if len(set(first)) == len(tokens):
            assert order == expected


def test_cdpruner() -> None:
    for case in cases(load("cdpruner.npz")):
        features, patches, text = (
            torch.as_tensor(case[name]) for name in ("features", "clip_image_embeds", "clip_text_embeds")
        )
        np.testing.assert_allclose(relevance(patches, text)[0], case["relevance"], rtol=1e-5, atol=1e-5)
        assert cdpruner(features, patches, text, int(case["T"]))[0].tolist() == case["order"].tolist()


def test_scope() -> None:
    for case in cases(load("scope.npz")):
        order = scope(torch.as_tensor(case["features"]), cls_map(case["cls_attn"]), int(case["T"]))
        assert order[0].tolist() == case["order"].tolist()


def test_fastervlm() -> None:
    for case in cases(load("fastervlm.npz")):
        assert numbers(fastervlm(cls_map(case["cls_attn"]), int(case["T"]))[0]) == case["kept_sorted"].tolist()


def test_vispruner() -> None:
    for case in cases(load("vispruner.npz")):
        features, ratio = torch.as_tensor(case["features"]), float(case["important_ratio"])
        mask = vispruner(features, cls_map(case["cls_attn"]), int(case["T"]), ratio)
        assert numbers(mask[0]) == case["kept_sorted"].tolist()


def test_flashvlm() -> None:
    for case in cases(load("flashvlm.npz")):
        features, words = one(case["features"]), torch.as_tensor(case["text_embeds"])
        kept = flashvlm(
            features,
            cls_map(case["cls_attn_heads"][None]),
            features @ torch.as_tensor(case["projector_W"]),
            words if case["with_text"] else words[:0],
            int(case["keep"]),
        )
        assert kept.tolist() == case["indices_sorted"].tolist()


def test_visionzip() -> None:
    for case in cases(load("visionzip.npz")):
        _, dominant, contextual = case["params"].tolist()
        attention = torch.full((1, *case["cls_attn_row"].shape, case["cls_attn_row"].shape[1]), torch.nan)
        attention[0, :, 0] = torch.as_tensor(case["cls_attn_row"])
        made = visionzip(
            torch.as_tensor(case["hidden"]), attention, torch.as_tensor(case["metric"]), dominant, contextual
        )
        np.testing.assert_allclose(made, case["out"], **TOLERANCE)


def test_prumerge() -> None:
    for case in cases(load("prumerge.npz")):
        hidden, keys = torch.as_tensor(case["hidden"]), torch.as_tensor(case["K"])
        queries = torch.zeros_like(keys)
        queries[:, :1] = torch.as_tensor(case["Qcls"])
        ratio = None if case["adaptive"] else float(str(case["ratio_text"]))
        made = prumerge(hidden, queries, keys, ratio=ratio, plus=str(case["variant"]) == "plus")
        np.testing.assert_allclose(made, case["out"], **TOLERANCE)


def test_tome() -> None:
    for case in cases(load("tome.npz")):
        rounds, last = case["rs"].tolist(), len(case["rs"]) - 1
        states, size = tome(
            torch.as_tensor(case["x"]),
            torch.as_tensor(case["metric"]),
            rounds,
            class_token=bool(case["class_token"]),
        )
        np.testing.assert_allclose(states, case[f"k{last}_x"], **TOLERANCE)
        assert size.tolist() == case[f"k{last}_size"].tolist()


def test_aim() -> None:
    arrays = load("aim.npz")
    for case in cases(arrays):
        np.testing.assert_allclose(aim_merge(torch.as_tensor(case["x"]), case["rs"].tolist()), case["out"], **TOLERANCE)
    logits = torch.as_tensor(arrays["imp_logits"])
    np.testing.assert_allclose(aim_rank(logits), arrays["imp_scores"], rtol=1e-4, atol=1e-18)
    expected = torch.as_tensor(arrays["imp_scores"])[0, 5:45].topk(20).indices
    assert aim_drop(logits, 5, 40, 20).tolist() == expected.tolist()


def test_trim() -> None:
    for case in cases(load("trim.npz")):
        features, weight = torch.as_tensor(case["features"]), torch.as_tensor(case["proj_W"])
        patches = torch.nn.functional.layer_norm(features, features.shape[-1:]) @ weight.T
        kept, made = trim(features, patches, torch.as_tensor(case["text_embed"]), float(str(case["k_text"])))
        assert kept[0].tolist() == case["kept_sorted"].tolist()
        # The published code hands its result on in float16.
        np.testing.assert_allclose(made[0].half().float(), case["out_fp16_as_f32"], rtol=2e-3, atol=1e-4)


def test_recoverable() -> None:
    for case in cases(load("recoverable_compression.npz")):
        features, text = torch.as_tensor(case["features"]), torch.as_tensor(case["text_similarity"])
        keys = torch.as_tensor(case["keys_with_cls"])
        queries = torch.zeros_like(keys)
        queries[0] = torch.as_tensor(case["q_cls"])
        ratio = outlier_ratio((queries @ keys.T * keys.shape[1] ** -0.5).softmax(dim=-1)[0, 1:], 20)
        assert ratio == case["outlier_ratios_vision_text_center"][0]
        np.testing.assert_allclose(recoverable(features, queries, keys, text), case["output"], **TOLERANCE)
        fixed = recoverable(features, queries, keys, text, (0.1, 0.1, 0.01))
        assert len(fixed) == 57 + 51 + 4 + 1


def test_globalcom2() -> None:
    for case in cases(load("globalcom2.npz")):
        columns, rows = case["grid_wh"].tolist()
        width, height = case["image_size_wh"].tolist()
        outcome = globalcom2(
            torch.as_tensor(case["features"]),
            torch.as_tensor(case["cls_logits"]),
            torch.as_tensor(case["newline"]),
            (columns, rows),
            (width, height),
            float(case["ratio"]),
        )
        assert outcome.thumbnail.tolist() == case["thumb_indices_desc"].tolist()
        np.testing.assert_allclose(outcome.ratios, case["crop_ratios"], rtol=1e-5)
        assert torch.cat(outcome.crops).tolist() == case["crop_topk_indices_concat"].tolist()
        np.testing.assert_allclose(outcome.sequence, case["sequence"], **TOLERANCE)


def test_hired() -> None:
    for case in cases(load("hired.npz")):
        early, late = (torch.as_tensor(case[f"{name}_layer_cls"]) for name in ("init", "final"))
        assert hired(early, late, float(case["rate"]), float(case["alpha"])).tolist() == case["mask"].tolist()
    assert int(hired(early[:1], late[:1], 0.25).sum()) == 144


def test_hiprune() -> None:
    for case in cases(load("hiprune.npz")):
        middle, deep = (torch.as_tensor(case[f"{name}_attn"]) for name in ("object", "deep"))
        kept = hiprune(middle, deep, int(case["T"]), float(case["alpha"]))
        assert kept[0].tolist() == case["kept_sorted"].tolist()


def test_holov() -> None:
    for case in cases(load("holov.npz")):
        chunks, count = case["params"].tolist()
        order = holov(torch.as_tensor(case["features"])[0], torch.as_tensor(case["cls_attn"])[0], chunks, count)
        assert order.tolist() == case["kept_in_official_order"].tolist()


def test_gprune() -> None:
    for case in cases(load("gprune.npz")):
        expected = case["kept_in_score_order"].tolist()
        order, score = gprune(torch.as_tensor(case["features"]), len(expected))
        np.testing.assert_allclose(score, case["score"], **TOLERANCE)
        assert order.tolist() == expected


def test_vscan() -> None:
    for case in cases(load("vscan.npz")):
        shallow, deep = (torch.as_tensor(case[f"{name}_cls_attn"]) for name in ("shallow", "deep"))
        kept, made = vscan(torch.as_tensor(case["features"])[0], shallow, deep, int(case["T"]))
        assert kept.tolist() == case["kept_sorted"].tolist()
        np.testing.assert_allclose(made, case["out_kept"], **TOLERANCE)


def test_mustdrop() -> None:
    for case in cases(load("mustdrop_filter.npz")):
        attention = torch.as_tensor(case["text_vis_attn"])
        overall, individual = (float(str(value)) for value in case["thr"])
        kept = mustdrop(attention, overall, individual)
        assert kept.tolist() == case["kept_sorted"].tolist()
        key = torch.tensor([0, 575])
        assert set(mustdrop(attention, overall, individual, key).tolist()) == {*kept.tolist(), 0, 575}
    strongest = mustdrop_keys(cls_map(torch.arange(10.0).expand(1, 2, 10))[0], 0.25)
    assert strongest.tolist() == [9, 8, 7]


def test_pact() -> None:
    for case in cases(load("pact.npz")):
        config = ast.literal_eval(str(case["cfg_text"]))
        keys = torch.as_tensor(case["K"])
        outcome = pact(
            torch.as_tensor(case["x"]),
            torch.as_tensor(case["Q"]),
            keys,
            keys,
            keep=config["keep"],
            cutoff=config["cutoff"],
            recovery=config["coef_pruned"],
        )
        np.testing.assert_allclose(outcome.importance, case["euti"], rtol=1e-4)
        assert outcome.kept.tolist() == case["keep_mask"].tolist()
        assert outcome.centre.tolist() == case["center_mask_among_kept"].tolist()
        np.testing.assert_allclose(outcome.features, case["out"], **TOLERANCE)
        assert outcome.sizes.tolist() == case["weights"].tolist()


def test_dart() -> None:
    for case in cases(load("dart.npz")):
        start, tokens, image_pivots, text_pivots = case["params"].tolist()
        image, text = dart_pivots(torch.as_tensor(case["K"]), start, tokens, image_pivots, text_pivots)
        assert (image, text) == (case["image_pivots"].tolist(), case["text_pivots"].tolist())
        # The published order is that of a set, which depends on the interpreter's hashes.
        kept = dart(
            torch.as_tensor(case["x"]), case["pivot_order"].tolist(), image, start, tokens, float(str(case["r_text"]))
        )
        assert kept.tolist() == case["kept_seq_sorted"].tolist()


def test_fastv() -> None:
    for case in cases(load("fastv.npz")):
        start, tokens, length = case["params"].tolist()
        rows = torch.as_tensor(case["attn_last_row"])
        attention = torch.zeros(1, len(rows), length, length)
        attention[0, :, -1] = rows
        order, slots, hidden = fastv(torch.as_tensor(case["hidden"]), attention, start, tokens, len(case["topk_order"]))
        assert order.tolist() == case["topk_order"].tolist()
        assert slots.tolist() == case["keep_indexs"].tolist()
        np.testing.assert_allclose(hidden, case["hidden_out"], **TOLERANCE)


def rotated(states: torch.Tensor, theta: float = 10000.0) -> torch.Tensor:
    """Rotary embedding of `(batch, heads, length, head_dim)` states at positions 0, 1, ..."""
    half = states.shape[-1] // 2
    angles = torch.arange(states.shape[2])[:, None] * theta ** (-torch.arange(half) / half)
    cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    return states * cosine + torch.cat([-states[..., half:], states[..., :half]], dim=-1) * sine


def test_pyramiddrop() -> None:
    for case in cases(load("pyramiddrop.npz")):
        start, tokens, _, length, heads, width = case["params"].tolist()
        hidden, places, texts = torch.as_tensor(case["x"]), list(range(length)), length - tokens
        for stage in range(3):
            queries, keys = (
                rotated(
                    (hidden @ torch.as_tensor(case[f"s{stage}_{name}"]).T).unflatten(2, (heads, width)).transpose(1, 2)
                )
                for name in ("Wq", "Wk")
            )
            count = len(case[f"s{stage}_kept_seq_idx"]) - texts
            kept, hidden = pyramiddrop(hidden, queries, keys, width**-0.5, start, tokens, count)
            image = places[start : start + tokens]
            places[start : start + tokens] = [image[token] for token in kept.tolist()]
            tokens = count
            assert places == case[f"s{stage}_kept_seq_idx"].tolist()
        np.testing.assert_allclose(hidden, case["hidden_out"], **TOLERANCE)


def test_fitprune() -> None:
    for case in cases(load("fitprune.npz")):
        tokens, texts, count = case["params"].tolist()
        visual = torch.as_tensor(case["headmax_vis_vis"])
        if not visual.numel():
            visual = torch.as_tensor(case["self_score"]).expand(tokens, -1)
        attention = torch.zeros(1, 1, tokens + texts, tokens + texts)
        attention[0, 0, :, :tokens] = torch.cat([visual, torch.as_tensor(case["headmax_text_vis"])])
        attention = torch.cat([attention, attention / 2], dim=1)
        assert fitprune(attention, 0, tokens, count).tolist() == case["deleted_in_order"].tolist()


def whole_map(case: Arrays, stage: int, length: int) -> torch.Tensor:
    """A map of the recorded rows, which are those of the text behind the image."""
    rows = torch.as_tensor(case[f"s{stage}_attn_text_rows"])
    attention = torch.zeros(1, rows.shape[0], length, length)
    attention[0, :, -rows.shape[1] :] = rows
    return attention


def raters_of(case: Arrays) -> torch.Tensor:
    start, tokens = case["params"].tolist()[:2]
    prompt = torch.as_tensor(case["x"])[0]
    raters = text_raters(prompt[start : start + tokens], prompt[start + tokens :])
    assert raters.tolist() == case["rater_idx"].tolist()
    return raters


def test_sparsevlm() -> None:
    for case in cases(load("sparsevlm.npz")):
        start, tokens, _, _, _ = case["params"].tolist()[:5]
        raters, hidden = raters_of(case), torch.as_tensor(case["x"])
        for stage in range(3):
            expected = torch.as_tensor(case[f"s{stage}_pred_mask"])
            attention = whole_map(case, stage, hidden.shape[1])
            mask, hidden = sparsevlm(hidden, attention, raters, start, tokens, int(expected.sum()), noise=0.0)
            assert mask.tolist() == expected.tolist()
            np.testing.assert_allclose(hidden, case[f"s{stage}_hidden_out"], **TOLERANCE)
            tokens = int(case[f"s{stage}_v_token_num"][0])


def test_sparsevlm_plus() -> None:
    for case in cases(load("sparsevlm_plus.npz")):
        start, tokens, _, length, _, _, width = case["params"].tolist()
        raters, hidden, places = raters_of(case), torch.as_tensor(case["x"]), torch.arange(length)
        for stage in range(3):
            expected = torch.as_tensor(case[f"s{stage}_pred_mask"])
            attention = whole_map(case, stage, hidden.shape[1])
            mask, hidden = sparsevlm_plus(hidden, attention, raters, places, width, start, tokens, int(expected.sum()))
            assert mask.tolist() == expected.tolist()
            np.testing.assert_allclose(hidden, case[f"s{stage}_hidden_out"], **TOLERANCE)
            places = torch.cat([places[:start], places[start : start + tokens][mask], places[start + tokens :]])
            assert places.tolist() == case[f"s{stage}_position_ids"][0].tolist()
            tokens = int(expected.sum())


def test_entropyprune() -> None:
    arrays = load("entropyprune.npz")
    for case in cases(arrays):
        start, tokens = int(case["image_start"]), int(case["image_len"])
        queries = torch.as_tensor(case["q_int8"]).float() * float(arrays["q_scale"])
        np.testing.assert_allclose(
            entropies(queries[:, :, start : start + tokens]), case["entropy"], rtol=1e-10, atol=1e-10
        )
        picked, slots = entropyprune(queries, start, tokens, int(case["keep"]))
        assert picked.tolist() == case["indices_desc_absolute"].tolist()
        gone = set(range(start, start + tokens)) - set(picked.tolist())
        assert slots.tolist() == [slot for slot in range(queries.shape[2]) if slot not in gone]


def test_m3() -> None:
    arrays = load("m3.npz")
    for key in (key for key in arrays if "_scale" in key):
        letter, scale = key.split("_scale")
        made = m3(torch.as_tensor(arrays[f"features_{letter}"]), int(scale))
        np.testing.assert_allclose(made, arrays[key], **TOLERANCE)


@pytest.mark.parametrize("causal", [False, True])
def test_eager_map(causal: bool) -> None:
    queries, keys = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    found = eager_map(queries, keys, 0.5, causal_mask(5, queries) if causal else None)
    for head in range(4):
        for row in range(5):
            seen = row + 1 if causal else 5
            expected = (keys[0, head // 2, :seen] @ queries[0, head, row] * 0.5).softmax(0)
            torch.testing.assert_close(found[0, head, row, :seen], expected)
            assert not found[0, head, row, seen:].any()
