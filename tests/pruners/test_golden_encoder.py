"""The methods that choose by the encoder's attention choose what the official code chose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeContext
from golden_files import TOLERANCE, cases, chosen, load, one, square

from vtprune.layout import ImageLayout, Segment, grid_layout
from vtprune.ops.anyres_quota import crop_weights
from vtprune.pruners.fastervlm import FasterVLM
from vtprune.pruners.globalcom2 import GlobalCom2
from vtprune.pruners.hiprune import HiPrune
from vtprune.pruners.hired import HiRED
from vtprune.pruners.vispruner import VisPruner


def test_fastervlm() -> None:
    for case in cases(load("fastervlm.npz")):
        attention = torch.as_tensor(case["cls_attn"])
        tokens = attention.shape[2]
        context = FakeContext(square(tokens), {"hidden": torch.zeros(1, tokens, 1), "encoder_attention": attention})
        kept = chosen(FasterVLM().reduce(context, int(case["T"])))
        assert sorted(kept) == case["kept_sorted"].tolist()


def test_vispruner() -> None:
    for case in cases(load("vispruner.npz")):
        features = torch.as_tensor(case["features"])
        context = FakeContext(
            square(features.shape[1]),
            {
                "hidden": features,
                "encoder_features": features,
                "encoder_attention": torch.as_tensor(case["cls_attn"]),
            },
        )
        kept = chosen(VisPruner(important=float(case["important_ratio"])).reduce(context, int(case["T"])))
        assert sorted(kept) == case["kept_sorted"].tolist()


@pytest.mark.parametrize("parity", [False, True])
def test_hiprune(parity: bool) -> None:
    for case in cases(load("hiprune.npz")):
        # Rows of a few queries stand for all; the first key is that of CLS.
        middle, deep = (torch.as_tensor(case[f"{name}_attn"])[..., 1:].mean(dim=2) for name in ("object", "deep"))
        tokens = middle.shape[2]
        context = FakeContext(
            grid_layout(24, 24),
            {
                "hidden": torch.zeros(1, tokens, 1),
                "encoder_layer0.received": middle,
                "encoder_layer1.received": deep,
            },
        )
        kept = chosen(HiPrune(alpha=float(case["alpha"]), parity=parity).reduce(context, int(case["T"])))
        assert sorted(kept) == case["kept_sorted"].tolist()


def test_hired() -> None:
    for case in cases(load("hired.npz")):
        views, heads, keys = case["init_layer_cls"].shape
        side = round((keys - 1) ** 0.5)
        patches = views * side * side
        layout = ImageLayout(
            (Segment(side, side),) * views, tuple(range(patches)), views, patches_per_view=side * side, crops=(2, 2)
        )
        early, late = (
            torch.as_tensor(case[f"{name}_layer_cls"])[:, :, 1:].transpose(0, 1).reshape(1, heads, patches)
            for name in ("init", "final")
        )
        context = FakeContext(
            layout,
            {
                "hidden": torch.zeros(1, patches, 1),
                "encoder_layer0.attention": early,
                "encoder_layer1.attention": late,
            },
        )
        keep = int(patches * float(case["rate"]))
        pruner = HiRED(alpha=float(case["alpha"]), parity=True)
        reduction = pruner.reduce(context, keep)
        assert reduction.valid is not None
        kept = reduction.kept[reduction.valid]
        assert torch.zeros(patches, dtype=torch.bool).scatter(0, kept, True).tolist() == case["mask"].flatten().tolist()


def official_canvas(case: dict[str, Any]) -> ImageLayout:
    """A thumbnail, then the rows of the picture within the canvas of crops; every canvas row ends with a newline."""
    side = round(case["cls_logits"].shape[1] ** 0.5)
    columns, rows = case["grid_wh"].tolist()
    picture_width, picture_height = case["image_size_wh"].tolist()
    width, height = columns * side, rows * side
    above = left = 0
    if picture_width / picture_height > width / height:
        above = (height - int(picture_height * width / picture_width)) // 2
    else:
        left = (width - int(picture_width * height / picture_height)) // 2
    patches = [*range(side * side), *[-1] * above]
    for row in range(above, height - above):
        for column in range(left, width - left):
            view = 1 + row // side * columns + column // side
            patches.append(view * side * side + row % side * side + column % side)
        patches.append(-1)
    patches += [-1] * above
    padding = (Segment(above, 0, newline=True),) if above else ()
    canvas = (*padding, Segment(height - 2 * above, width - 2 * left, newline=True), *padding)
    return ImageLayout(
        (Segment(side, side), *canvas),
        tuple(patches),
        views=1 + rows * columns,
        patches_per_view=side * side,
        crops=(rows, columns),
    )


def canvas_context(case: dict[str, Any], layout: ImageLayout) -> FakeContext:
    is_patch = torch.tensor(layout.patches) >= 0
    source = torch.tensor(layout.patches).clamp_min(0)
    features = torch.as_tensor(case["features"]).flatten(0, 1)[source]
    logits = torch.as_tensor(case["cls_logits"]).flatten()[source]
    lowest = torch.finfo(torch.float32).min
    hidden = torch.where(is_patch[:, None], features, torch.as_tensor(case["newline"]))
    return FakeContext(
        layout, {"hidden": hidden[None], "encoder_layer0.logits": logits.masked_fill(~is_patch, lowest)[None, None]}
    )


def test_globalcom2(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in cases(load("globalcom2.npz")):
        layout = official_canvas(case)
        context = canvas_context(case, layout)
        counts = case["crop_valid_counts"].tolist()
        assert [len(view) for view in context.view_tokens[1:]] == counts
        thumbnail = case["thumb_indices_desc"].tolist()
        # The official quotas are rounded down and may add up to no budget; test_globalcom2_ratios has them.
        official = (len(thumbnail), torch.as_tensor(case["crop_kept_counts"])[None])
        monkeypatch.setattr(GlobalCom2, "quotas", lambda *_, official=official: official)
        reduction = GlobalCom2(official_placement=True).reduce(context, len(case["sequence"]))
        order = chosen(reduction)
        assert reduction.ordered
        assert order[: len(thumbnail)] == thumbnail
        numbers = iter(case["crop_topk_indices_concat"].tolist())
        for view, kept in zip(context.view_tokens[1:], case["crop_kept_counts"].tolist(), strict=True):
            expected = {int(view[next(numbers)]) for _ in range(kept)}
            assert expected == set(order) & set(view.tolist())
        # The official code puts crops, and only them, together in half precision.
        sequence = context.hidden[0, order]
        sequence[len(thumbnail) :] = sequence[len(thumbnail) :].half().float()
        np.testing.assert_allclose(sequence.numpy(), case["sequence"], **TOLERANCE)


def test_globalcom2_ratios() -> None:
    for case in cases(load("globalcom2.npz")):
        scores, side = one(case["cls_logits"][0]), round(case["cls_logits"].shape[1] ** 0.5)
        columns, rows = case["grid_wh"].tolist()
        ratio = float(case["ratio"])
        ratios = (ratio * crop_weights(scores, side, side, (rows, columns), 10.0)).clamp_max(1)[0]
        np.testing.assert_allclose(ratios.numpy(), case["crop_ratios"], rtol=1e-5)
        counts = torch.as_tensor(case["crop_valid_counts"])
        assert (ratios * counts).long().tolist() == case["crop_kept_counts"].tolist()
        assert len(case["thumb_indices_desc"]) == int(side * side * ratio)
