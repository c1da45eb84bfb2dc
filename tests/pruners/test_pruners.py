"""What every registered method must do, and what single ones promise beyond that."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fakes import ANYRES, SQUARE, FakeContext, random_context
from torch._subclasses.fake_tensor import FakeTensorMode

from vtprune.layout import ImageLayout, grid_layout
from vtprune.pruner import Pruner, Reduction
from vtprune.pruners.divprune import DivPrune
from vtprune.pruners.entropyprune import EntropyPrune
from vtprune.pruners.flashvlm import FlashVLM
from vtprune.pruners.m3 import M3
from vtprune.pruners.pool import Pool
from vtprune.pruners.random import Random
from vtprune.pruners.stride import Stride
from vtprune.pruners.visionzip import VisionZip
from vtprune.registry import list_pruners, make_pruner, pruner_classes

SHIPPED = {
    *("random", "stride", "pool", "downsample", "drop-all", "vtw"),
    *("cdpruner", "divprune", "fastervlm", "flashvlm", "globalcom2", "gprune", "hiprune", "hired", "holov", "m3"),
    *("prumerge", "prumerge+", "recoverable", "scope", "tome", "trim", "visionzip", "vispruner"),
    *("aim", "dart", "entropyprune", "fastv", "feather", "fitprune", "mustdrop", "pact", "pyramiddrop"),
    *("sparsevlm", "sparsevlm+", "vscan"),
}
every = pytest.mark.parametrize("name", list_pruners())
# M3's sizes on several views are a matter of the layout; test_m3_on_several_views has them.
LAYOUTS = [
    pytest.param(name, layout, id=f"{name}-{kind}")
    for name in list_pruners()
    for kind, layout in (("square", SQUARE), ("wide", grid_layout(3, 7)), ("anyres", ANYRES))
    if name != "m3" or kind == "square"
]
ABOUT_THE_PROMPT = (
    *(
        "text",
        "clip_text",
        "clip_text_truncated",
        "clip_text_last",
        "last_token_attention",
        "unrotated_last_token_attention",
    ),
    *("next_last_token_attention", "attention_map", "sequence_hidden", "sequence_queries", "sequence_keys"),
)
everywhere = pytest.mark.parametrize(("name", "layout"), LAYOUTS)


def budgets(pruner: Pruner, layout: ImageLayout) -> list[int]:
    wanted = (1, 2, 7, layout.tokens // 2, layout.tokens - 1)
    return sorted({pruner.attainable(layout, keep) for keep in wanted} - {0})


def context_for(pruner: Pruner, layout: ImageLayout, batch: int = 3) -> FakeContext:
    return random_context(layout, batch, signals=pruner.signals | pruner.optional_signals, layer=pruner.layers[0])


def assert_sound(pruner: Pruner, context: FakeContext, keep: int, reduction: Reduction) -> None:
    assert reduction.valid is None
    assert reduction.kept.dtype == torch.int64
    assert reduction.kept.shape == (context.batch, keep)
    for indices in reduction.kept.tolist():
        assert len(set(indices)) == keep
        assert 0 <= min(indices) <= max(indices) < context.tokens
    assert (reduction.features is not None) == pruner.merges
    if reduction.features is not None:
        assert reduction.features.shape == (context.batch, keep, context.hidden.shape[-1])
        assert reduction.features.dtype == context.hidden.dtype
        assert bool(reduction.features.isfinite().all())


def test_all_shipped_methods_are_registered() -> None:
    assert set(list_pruners()) >= SHIPPED


@every
def test_metadata(name: str) -> None:
    cls = pruner_classes()[name]
    pruner = make_pruner(name)
    assert cls.name == name
    assert cls.paper
    assert cls.summary.endswith(".")
    assert 2015 < cls.year < 2100
    assert cls.default_positions in ("keep", "pack")
    assert list(pruner.layers) == sorted(set(pruner.layers))
    assert len(pruner.schedule(100, 10)) == len(pruner.layers)
    assert make_pruner(name, **pruner.config()) == pruner
    with pytest.raises(dataclasses.FrozenInstanceError):
        pruner.anything = 1  # type: ignore[attr-defined]


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exactly_the_budget_survives(name: str, layout: ImageLayout, dtype: torch.dtype) -> None:
    pruner = make_pruner(name)
    context = context_for(pruner, layout).to(dtype)
    for keep in budgets(pruner, layout):
        assert_sound(pruner, context, keep, pruner.reduce(context, keep))


@every
def test_indistinguishable_tokens_are_no_obstacle(name: str) -> None:
    pruner = make_pruner(name)
    context = context_for(pruner, SQUARE)
    same = {key: torch.zeros_like(tensor) for key, tensor in context.tensors.items()}
    context = FakeContext(
        SQUARE, same, projector=context.projector, signals=pruner.signals | pruner.optional_signals, layer=context.layer
    )
    for keep in budgets(pruner, SQUARE):
        assert_sound(pruner, context, keep, pruner.reduce(context, keep))


@everywhere
def test_batch_mates_do_not_matter(name: str, layout: ImageLayout) -> None:
    pruner = make_pruner(name)
    context = context_for(pruner, layout)
    for keep in budgets(pruner, layout):
        together = pruner.reduce(context, keep)
        for image in range(context.batch):
            alone = pruner.reduce(context.images([image]), keep)
            assert alone.kept[0].tolist() == together.kept[image].tolist()
            if alone.features is not None and together.features is not None:
                torch.testing.assert_close(alone.features[0], together.features[image])


@every
def test_padding_of_the_prompt_does_not_matter(name: str) -> None:
    pruner = make_pruner(name)
    context = context_for(pruner, SQUARE)
    keep = pruner.attainable(SQUARE, 9)
    before = pruner.reduce(context, keep)
    assert pruner.reduce(context.padded(5), keep).kept.tolist() == before.kept.tolist()


@every
def test_only_query_aware_methods_look_at_the_prompt(name: str) -> None:
    pruner = make_pruner(name)
    keep = pruner.attainable(grid_layout(12, 12), 36)
    changed = False
    for stage, layer in enumerate(pruner.layers):
        signals = pruner.stage_signals(stage) | pruner.optional_signals
        context = random_context(grid_layout(12, 12), signals=signals, layer=layer)
        before = pruner.reduce(context, keep)
        other = random_context(grid_layout(12, 12))
        for signal in ABOUT_THE_PROMPT:
            context.tensors[signal] = other.tensors[signal]
        changed |= pruner.reduce(context, keep).kept.tolist() != before.kept.tolist()
    assert changed == pruner.query_aware


@everywhere
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_value_is_needed_on_the_host(name: str, layout: ImageLayout, device: str) -> None:
    """Tensors without values: whatever asks for one (`.item()`, `nonzero`, a branch) raises."""
    pruner = make_pruner(name)
    keep = pruner.attainable(layout, 9)
    _ = layout.grids, layout.view_tokens  # made once for each layout, from its plain numbers
    with FakeTensorMode(allow_non_fake_inputs=True):
        context = context_for(pruner, layout).to(torch.device(device))
        reduction = pruner.reduce(context, keep)
    assert reduction.kept.shape == (3, keep)
    assert reduction.kept.device.type == device


@pytest.mark.gpu
@everywhere
def test_gpu_chooses_the_same_without_waiting(name: str, layout: ImageLayout) -> None:
    pruner = make_pruner(name)
    context = context_for(pruner, layout)
    keep = pruner.attainable(layout, 9)
    expected = pruner.reduce(context, keep)
    there = context.to(torch.device("cuda"))
    pruner.reduce(there, keep)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = pruner.reduce(there, keep)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.kept.tolist() == expected.kept.tolist()
    if expected.features is not None and found.features is not None:
        torch.testing.assert_close(found.features.cpu(), expected.features)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("random", {"seed": -1}, ValueError, "seed must be from 0 to 9223372036854775807, got -1"),
        ("random", {"seed": 2**63}, ValueError, "got 9223372036854775808"),
        ("random", {"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ("random", {"seed": True}, TypeError, "seed must be an integer, got True"),
        ("fastv", {"layer": 0}, ValueError, "layer must be at least 1, got 0"),
        ("fastv", {"layer": 1.0}, TypeError, "layer must be an integer, got 1.0"),
        ("entropyprune", {"layer": -2}, ValueError, "layer must be at least 1, got -2"),
        ("entropyprune", {"channels": 0}, ValueError, "channels must be at least 1, got 0"),
        ("entropyprune", {"normalize_trace": 1}, TypeError, "normalize_trace must be True or False, got 1"),
        ("flashvlm", {"important": 1.01}, ValueError, r"important must be in \[0, 1\], got 1.01"),
        ("flashvlm", {"important": "half"}, TypeError, "important must be a number, got 'half'"),
        ("flashvlm", {"gate_quantile": -0.1}, ValueError, r"gate_quantile must be in \[0, 1\], got -0.1"),
        ("flashvlm", {"gate_factor": float("nan")}, ValueError, r"gate_factor must be in \[0, 1\], got nan"),
        ("flashvlm", {"word_temperature": 0}, ValueError, "word_temperature must be above 0 and finite, got 0"),
        ("flashvlm", {"token_temperature": -1.0}, ValueError, "token_temperature must be above 0 and finite, got -1.0"),
        ("flashvlm", {"sharpness": float("inf")}, ValueError, "sharpness must be above 0 and finite, got inf"),
        ("flashvlm", {"sharpness": None}, TypeError, "sharpness must be a number, got None"),
        ("flashvlm", {"per_round": 0}, ValueError, "per_round must be at least 1, got 0"),
        ("visionzip", {"contextual": 2}, ValueError, r"contextual must be in \[0, 1\], got 2"),
        ("visionzip", {"contextual": False}, TypeError, "contextual must be a number, got False"),
        ("m3", {"scales": (1, 8)}, ValueError, r"squares, 1 or above, got \(1, 8\)"),
        ("m3", {"scales": (0,)}, ValueError, r"squares, 1 or above, got \(0,\)"),
        ("m3", {"scales": ()}, ValueError, r"one or more squares.* got \(\)"),
        ("m3", {"scales": [1, 9]}, TypeError, r"tuple of integers, got \[1, 9\]"),
        ("m3", {"scales": (1, 9.0)}, TypeError, r"tuple of integers, got \(1, 9.0\)"),
    ],
)
def test_bad_hyper_parameters_are_refused(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        make_pruner(name, **options)


@pytest.mark.parametrize("pruner", [Stride(), Pool(), FlashVLM(), VisionZip()], ids=lambda pruner: pruner.name)
def test_newline_tokens_come_last(pruner: Pruner) -> None:
    context = context_for(pruner, ANYRES)
    newlines = {token for token, patch in enumerate(ANYRES.patches) if patch < 0}
    patches = ANYRES.tokens - len(newlines)
    for keep in (1, patches - 1, patches):
        assert not newlines & set(pruner.reduce(context, keep).kept[0].tolist())
    beyond = pruner.reduce(context, patches + 2)
    assert sorted(newlines & set(beyond.kept[1].tolist())) == sorted(newlines)[:2]
    if beyond.features is not None:
        place = beyond.kept[1].tolist().index(min(newlines))
        torch.testing.assert_close(beyond.features[1, place], context.hidden[1, min(newlines)])


def test_random_depends_on_picture_and_seed_alone() -> None:
    context = context_for(Random(), SQUARE)
    first = Random().reduce(context, 9).kept
    assert first[0].tolist() != first[1].tolist()
    assert Random(seed=1).reduce(context, 9).kept.tolist() != first.tolist()
    context.tensors["hidden"] = torch.randn_like(context.hidden)
    context.tensors["image_hash"][1] = context.tensors["image_hash"][0]
    again = Random().reduce(context, 9).kept
    assert again[0].tolist() == again[1].tolist() == first[0].tolist()


def test_stride_keeps_the_centres_of_a_regular_grid() -> None:
    context = context_for(Stride(), SQUARE)
    assert Stride().reduce(context, 4).kept[0].tolist() == [7, 10, 25, 28]


def test_pool_gives_the_mean_of_each_cell() -> None:
    context = context_for(Pool(), SQUARE)
    reduction = Pool().reduce(context, 4)
    expected = context.hidden.view(3, 2, 3, 2, 3, -1).mean((2, 4)).flatten(1, 2)
    assert reduction.features is not None
    torch.testing.assert_close(reduction.features, expected)


def test_entropyprune_averages_wide_heads_only_to_whole_channels() -> None:
    context = context_for(EntropyPrune(), SQUARE)
    queries = context.tensors["queries"]
    wide = context.images(range(3))
    wide.tensors["queries"] = queries.repeat_interleave(2, dim=-1)
    kept = EntropyPrune(channels=8).reduce(context, 9).kept.tolist()
    assert EntropyPrune(channels=8).reduce(wide, 9).kept.tolist() == kept
    assert EntropyPrune(channels=5).reduce(context, 9).kept.tolist() == kept


def test_entropyprune_is_free_of_scale_only_when_normalised() -> None:
    context = context_for(EntropyPrune(), grid_layout(12, 12))
    small = context.images(range(3))
    small.tensors["queries"] = context.tensors["queries"] / 10
    true = EntropyPrune(normalize_trace=True)
    assert true.reduce(small, 36).kept.tolist() == true.reduce(context, 36).kept.tolist()
    assert EntropyPrune().reduce(small, 36).kept.tolist() != EntropyPrune().reduce(context, 36).kept.tolist()


def test_divprune_lets_newlines_compete() -> None:
    context = context_for(DivPrune(), ANYRES)
    newlines = [token for token, patch in enumerate(ANYRES.patches) if patch < 0]
    context.tensors["hidden"][:, newlines] = torch.randn(16)
    kept = DivPrune().reduce(context, ANYRES.tokens - len(newlines) + 1).kept
    assert all(len(set(newlines) & set(row)) == 1 for row in kept.tolist())


def test_flashvlm_without_words_follows_attention() -> None:
    pruner = FlashVLM(important=1.0)
    context = context_for(pruner, SQUARE)
    context.tensors["text_mask"][1] = False
    expected = context.encoder_attention[1].double().mean(0).argsort(descending=True)[:9]
    assert pruner.reduce(context, 9).kept[1].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("budget", "split"), [(1, (1, 0)), (2, (2, 0)), (32, (27, 5)), (64, (54, 10)), (128, (108, 20))]
)
def test_visionzip_splits_as_the_presets(budget: int, split: tuple[int, int]) -> None:
    assert VisionZip().split(budget) == split
    assert VisionZip(contextual=1.0).split(budget) == (1, budget - 1)
    assert VisionZip(contextual=0.0).split(budget) == (budget, 0)


def test_visionzip_stands_on_distinct_patches() -> None:
    context = context_for(VisionZip(), SQUARE)
    reduction = VisionZip().reduce(context, 19)
    assert reduction.ordered
    cls, dominant, contextual = reduction.kept.split([1, 15, 3], dim=1)
    attention = context.encoder_attention.sum(1)
    for image in range(3):
        assert dominant[image].tolist() == sorted(attention[image].topk(15).indices.tolist())
        rest = [token for token in range(36) if token not in dominant[image].tolist()]
        assert contextual[image].tolist() == [rest[0], rest[7], rest[14]]
        others = {*dominant[image].tolist(), *contextual[image].tolist()}
        assert cls[image].item() == min(set(range(36)) - others)
    assert reduction.features is not None
    torch.testing.assert_close(reduction.features[:, :1], context.project(context.encoder_cls))


def test_visionzip_orders_several_views_as_the_official_code() -> None:
    context = context_for(VisionZip(), ANYRES)
    sizes = [len(view) for view in context.view_tokens]
    assert sizes == [16, 12, 12, 12, 12]
    reduction = VisionZip(contextual=0.25).reduce(context, 32)  # 8 for the thumbnail, 6 for each crop
    thumbnail, dominant, cls, contextual = reduction.kept.split([8, 4 * 3, 4, 4 * 2], dim=1)
    assert int(thumbnail.max()) < 16
    assert torch.equal(dominant, dominant.sort(dim=1).values)
    for part in (cls, contextual):
        views = [[ANYRES.patches[token] // 16 for token in row] for row in part.tolist()]
        assert views == [sorted(row) for row in views]
        assert set(views[0]) == {1, 2, 3, 4}
    assert reduction.features is not None
    torch.testing.assert_close(reduction.features[:, 20:24], context.project(context.encoder_cls[:, 1:]))
    projected = context.project(context.encoder_features)
    own = projected.gather(1, dominant.unsqueeze(-1).expand(-1, -1, 16))
    torch.testing.assert_close(reduction.features[:, 8:20], own)


def test_m3_meets_the_largest_trained_scale() -> None:
    clip = grid_layout(24, 24)
    assert [M3().attainable(clip, keep) for keep in (1, 8, 9, 35, 64, 143, 192, 575, 576)] == [
        *(1, 1, 9, 9, 36, 36, 144, 144, 576)
    ]
    assert M3().attainable(grid_layout(16, 16), 64) == 1
    with pytest.raises(ValueError, match=r"cannot keep 3 tokens; its sizes for this image are \[9, 144\]"):
        M3(scales=(9, 144)).attainable(clip, 3)
    with pytest.raises(ValueError, match="square encoder views, got 21 patches"):
        M3().attainable(grid_layout(3, 7), 9)
    assert M3().attainable(grid_layout(3, 7), 21) == 21
    context = context_for(M3(), SQUARE)
    with pytest.raises(ValueError, match=r"cannot keep 4 tokens; its sizes for this image are \[1, 9, 36\]"):
        M3().reduce(context, 4)
    with pytest.raises(ValueError, match="square encoder views, got 21 patches"):
        M3().reduce(context_for(M3(), grid_layout(3, 7)), 1)


def test_m3_on_several_views() -> None:
    pruner = M3(scales=(1, 4, 16))
    context = context_for(pruner, ANYRES)
    assert [pruner.attainable(ANYRES, keep) for keep in (3, 15, 16, 63, 69, 70)] == [3, 3, 16, 16, 64, 70]
    for keep in (3, 16, 64):
        assert_sound(pruner, context, keep, pruner.reduce(context, keep))
    reduction = pruner.reduce(context, 16)
    assert reduction.features is not None
    thumbnail = context.hidden[:, :16].view(3, 2, 2, 2, 2, -1).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(reduction.features[:, :4], thumbnail)
    with pytest.raises(ValueError, match=r"cannot keep 10 tokens; its sizes for this image are \[3, 16, 64\]"):
        pruner.reduce(context, 10)


def test_methods_that_need_the_grid_refuse_pruned_tokens() -> None:
    for pruner in (Stride(), Pool(), M3(), FlashVLM(), VisionZip()):
        with pytest.raises(ValueError, match="only 20 of 36 tokens are left"):
            pruner.reduce(FakeContext(SQUARE, {"hidden": torch.randn(3, 20, 16)}), 9)
