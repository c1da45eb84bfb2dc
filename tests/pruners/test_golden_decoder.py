"""Methods that look at attention in the decoder choose what the official code chose."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fakes import PREFIX, FakeContext
from golden_files import TOLERANCE, cases, chosen, load, one, square

from vtprune.ops.attention import attention_rows
from vtprune.pruners.fitprune import FitPrune
from vtprune.pruners.pyramiddrop import PyramidDrop


def rotated(states: torch.Tensor, positions: torch.Tensor, theta: float = 10000.0) -> torch.Tensor:
    """Rotary embedding of `(batch, heads, length, head_dim)` states."""
    half = states.shape[-1] // 2
    angles = positions[:, None] * theta ** (-torch.arange(half) / half)
    cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    turned = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
    return states * cosine + turned * sine


def attention_of_the_last_row(sequence: torch.Tensor, case: dict[str, Any], stage: int) -> torch.Tensor:
    """Attention `(1, heads, length)` from the last token, with renumbered positions."""
    heads, head_dim = case["params"].tolist()[4:]
    length = sequence.shape[1]
    query, key = (
        rotated(
            (sequence @ torch.as_tensor(case[f"s{stage}_{name}"]).T).view(1, length, heads, head_dim).transpose(1, 2),
            torch.arange(length),
        )
        for name in ("Wq", "Wk")
    )
    return attention_rows(query[:, :, -1:], key, head_dim**-0.5)[:, :, 0]


def test_pyramiddrop() -> None:
    for case in cases(load("pyramiddrop.npz")):
        start, tokens, _, length = case["params"].tolist()[:4]
        places = list(range(length))
        sequence = torch.as_tensor(case["x"])
        stages = sorted(int(key[1]) for key in case if key.endswith("_Wq"))
        counts = [len(case[f"s{stage}_kept_seq_idx"]) - (length - tokens) for stage in stages]
        assert counts == [int(tokens * float(str(ratio))) for ratio in case["ratios"][1:]]
        pruner = PyramidDrop()
        for stage, keep in zip(stages, counts, strict=True):
            attention = attention_of_the_last_row(sequence, case, stage)[:, :, start : start + tokens]
            context = FakeContext(
                square(tokens),
                {"hidden": sequence[:, start : start + tokens], "next_last_token_attention": attention},
                signals=pruner.signals,
                layer=pruner.layers[stage],
            )
            kept = sorted(chosen(pruner.reduce(context, keep)))
            slots = [*range(start), *(start + token for token in kept), *range(start + tokens, len(places))]
            sequence, tokens, places = sequence[:, slots], keep, [places[slot] for slot in slots]
            assert places == case[f"s{stage}_kept_seq_idx"].tolist()
            assert case[f"s{stage}_position_ids"][0].tolist() == list(range(len(places)))
        assert pruner.default_positions == "pack"
        np.testing.assert_allclose(sequence.numpy(), case["hidden_out"], **TOLERANCE)
    assert pruner.schedule(576, 72) == (288, 144, 72)


def test_fitprune() -> None:
    for case in cases(load("fitprune.npz")):
        tokens, texts, _ = case["params"].tolist()
        # Where the map among visual tokens is not stored, every row stands for the mean of all.
        visual = torch.as_tensor(case["headmax_vis_vis"])
        if not visual.numel():
            visual = torch.as_tensor(case["self_score"]).expand(tokens, -1)
        before = torch.ones(PREFIX, tokens)
        strongest = torch.cat([before, visual, torch.as_tensor(case["headmax_text_vis"])])
        # Each head holds the strongest attention in every other column.
        even = torch.arange(tokens) % 2 == 0
        heads = torch.stack([torch.where(even, strongest, strongest / 2), torch.where(even, strongest / 3, strongest)])
        pruner = FitPrune()
        context = FakeContext(
            square(tokens),
            {
                "hidden": torch.zeros(1, tokens, 1),
                "attention_map": one(heads),
                "text_mask": torch.ones(1, PREFIX + texts, dtype=torch.bool),
            },
            signals=pruner.signals,
            layer=1,
        )
        deleted = case["deleted_in_order"].tolist()
        for count in range(1, len(deleted) + 1):
            kept = chosen(pruner.reduce(context, tokens - count))
            assert set(range(tokens)) - set(kept) == set(deleted[:count])
