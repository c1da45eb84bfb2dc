"""Methods that let text rate the picture choose what the official code chose."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from fakes import FakeContext
from golden_files import TOLERANCE, Arrays, cases, chosen, load, one, square

from vtprune.ops.gather import take
from vtprune.ops.pivots import unlike_pivots
from vtprune.ops.raters import text_raters
from vtprune.pruner import Pruner
from vtprune.pruners.dart import DART
from vtprune.pruners.mustdrop import MustDrop
from vtprune.pruners.sparsevlm import SparseVLM
from vtprune.pruners.sparsevlm_plus import SparseVLMPlus

SCORES: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-9}


class PromptContext(FakeContext):
    """A prompt with columns for the image too, as models give it; `places` holds the column of every slot."""

    @cached_property
    def text_slots(self) -> torch.Tensor:
        length = self.tensors["places"].shape[1]
        return torch.tensor([slot for slot in range(length) if not 0 <= slot - self.prefix < self.tokens])[None]

    @cached_property
    def text_follows(self) -> torch.Tensor:
        return self.text_slots >= self.prefix + self.tokens

    def columns(self, slots: torch.Tensor) -> torch.Tensor:
        return self.tensors["places"].gather(1, slots)


def stage_context(
    pruner: Pruner, case: Arrays, stage: int, hidden: torch.Tensor, tokens: int, places: torch.Tensor
) -> PromptContext:
    """A stage of a chain: the sequence `hidden` `(1, length, dim)` holds `tokens` of the image at `places`."""
    start, whole, texts = case["params"].tolist()[:3]
    span = slice(start, start + tokens)
    rows = one(case[f"s{stage}_attn_text_rows"])
    attention = torch.full((1, rows.shape[1], hidden.shape[1], tokens), torch.nan)
    attention[:, :, -texts:] = rows[..., span]
    prompt = torch.as_tensor(case["x"])
    tensors = {
        "hidden": hidden[:, span],
        "inputs": prompt[:, start : start + whole],
        "text": prompt,
        "attention_map": attention,
        "queries": torch.zeros(1, 1, tokens, int(case["params"][6])),
        "places": places,
    }
    return PromptContext(square(tokens), tensors, signals=pruner.signals, layer=pruner.layers[stage], prefix=start)


def assert_same_raters(case: Arrays) -> None:
    start, tokens, texts = case["params"].tolist()[:3]
    prompt = torch.as_tensor(case["x"])
    words = prompt[:, start + tokens :]
    raters = text_raters(prompt[:, start : start + tokens], words, torch.ones(1, texts, dtype=torch.bool))
    assert raters[0].nonzero().flatten().tolist() == case["rater_idx"].tolist()


def test_sparsevlm() -> None:
    pruner = SparseVLM()
    for case in cases(load("sparsevlm.npz")):
        start, tokens, _, length, budget = case["params"].tolist()[:5]
        assert_same_raters(case)
        spans = tuple(int(case[f"s{stage}_v_token_num"][0]) for stage in range(3))
        if tokens == 576:
            assert pruner.schedule(tokens, pruner.presets[budget]) == spans
        hidden = torch.as_tensor(case["x"])
        for stage, keep in enumerate(spans):
            mask = case[f"s{stage}_pred_mask"]
            # Raters look at the embeddings, whose columns are those of the text at every stage.
            places = torch.cat([torch.arange(start + len(mask)), torch.arange(start + tokens, length)])
            context = stage_context(pruner, case, stage, hidden, len(mask), places[None])
            np.testing.assert_allclose(pruner.scores(context)[0], case[f"s{stage}_scores"], **SCORES)
            reduction = pruner.reduce(context, keep)
            assert reduction.features is not None
            assert reduction.ordered
            kept = int(mask.sum())
            assert chosen(reduction)[:kept] == np.flatnonzero(mask).tolist()
            hidden = torch.cat([hidden[:, :start], reduction.features, hidden[:, start + len(mask) :]], dim=1)
            np.testing.assert_allclose(hidden, case[f"s{stage}_hidden_out"], **TOLERANCE)
            # The official code numbers positions anew, as positions are packed here.
            assert case[f"s{stage}_position_ids"][0].tolist() == list(range(hidden.shape[1]))
            assert pruner.default_positions == "pack"


def test_sparsevlm_plus() -> None:
    pruner = SparseVLMPlus()
    for case in cases(load("sparsevlm_plus.npz")):
        start, _, _, length, budget = case["params"].tolist()[:5]
        assert_same_raters(case)
        spans = tuple(int(case[f"s{stage}_v_token_num"][0]) for stage in range(3))
        assert pruner.schedule(576, pruner.presets[budget]) == spans
        hidden, places = torch.as_tensor(case["x"]), torch.arange(length)[None]
        for stage, keep in enumerate(spans):
            mask = case[f"s{stage}_pred_mask"]
            context = stage_context(pruner, case, stage, hidden, len(mask), places)
            # Gravity near zero magnifies the rounding of the official code's single precision.
            np.testing.assert_allclose(pruner.scores(context)[0], case[f"s{stage}_scores"], **TOLERANCE)
            kept = sorted(chosen(pruner.reduce(context, keep)))
            assert kept == np.flatnonzero(mask).tolist()
            slots = [*range(start), *(start + token for token in kept), *range(start + len(mask), hidden.shape[1])]
            hidden, places = hidden[:, slots], places[:, slots]
            np.testing.assert_allclose(hidden, case[f"s{stage}_hidden_out"], **TOLERANCE)
            assert places.tolist() == case[f"s{stage}_position_ids"].tolist()
            assert pruner.default_positions == "keep"


def test_mustdrop() -> None:
    for case in cases(load("mustdrop_filter.npz")):
        expected = case["kept_sorted"].tolist()
        attention = one(case["text_vis_attn"])
        _, heads, texts, tokens = attention.shape
        over_all, individual = (float(str(value)) for value in case["thr"])
        pruner = MustDrop(global_threshold=over_all, individual_threshold=individual, protected=0.0)
        context = FakeContext(
            square(tokens),
            {
                "hidden": torch.zeros(1, tokens, 1),
                "text_mask": torch.ones(1, texts, dtype=torch.bool),
                "attention_map": torch.cat([attention.new_zeros(1, heads, tokens, tokens), attention], dim=2),
            },
            signals=pruner.signals,
            layer=pruner.layers[0],
            prefix=0,
        )
        adaptive = pruner.reduce_adaptive(context)
        assert adaptive.valid is not None
        assert adaptive.kept[adaptive.valid].tolist() == expected
        assert sorted(chosen(pruner.reduce(context, len(expected)))) == expected


def test_dart() -> None:
    for case in cases(load("dart.npz")):
        start, tokens, image_pivots, text_pivots = case["params"].tolist()
        states, keys = torch.as_tensor(case["x"]), torch.as_tensor(case["K"])
        span = slice(start, start + tokens)
        pruner = DART(image_pivots=image_pivots, text_pivots=text_pivots)
        context = FakeContext(
            square(tokens),
            {
                "hidden": states[:, span],
                "keys": keys[:, :, span],
                "text_mask": torch.ones(1, states.shape[1] - tokens, dtype=torch.bool),
                "sequence_hidden": states,
                "sequence_keys": keys,
            },
            signals=pruner.signals,
            layer=2,
            prefix=start,
        )
        expected = [slot - start for slot in case["kept_seq_sorted"].tolist()]
        pivots = pruner.pivots(context, len(expected))
        assert (pivots.image[0] + start).tolist() == sorted(case["image_pivots"].tolist())
        assert pivots.text[0].tolist() == sorted(case["text_pivots"].tolist())
        assert bool(pivots.live.all())
        # The official code walks its pivots in the order of a set, which depends on the interpreter's hashes.
        official, taken = one(case["pivot_order"]), torch.zeros(1, tokens, dtype=torch.bool)
        picked = unlike_pivots(
            context.hidden,
            take(states, official),
            len(expected) - image_pivots,
            live=torch.ones_like(official, dtype=torch.bool),
            taken=taken.scatter(1, pivots.image, True),
        )
        assert sorted([*picked[0].nonzero().flatten().tolist(), *pivots.image[0].tolist()]) == expected
        assert_same_in_our_order(pruner, context, states, len(expected))


def assert_same_in_our_order(pruner: DART, context: FakeContext, states: torch.Tensor, keep: int) -> None:
    """The method itself does with ascending pivots what was compared above."""
    pivots = pruner.pivots(context, keep)
    order = torch.cat([pivots.image + context.prefix, pivots.text], dim=1)
    taken = torch.zeros(1, context.tokens, dtype=torch.bool).scatter(1, pivots.image, True)
    live = torch.ones_like(order, dtype=torch.bool)
    left = keep - pivots.image.shape[1]
    picked = unlike_pivots(context.hidden, take(states, order), left, live=live, taken=taken)
    assert chosen(pruner.reduce(context, keep)) == (picked | taken)[0].nonzero().flatten().tolist()
