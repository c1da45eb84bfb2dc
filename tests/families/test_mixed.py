"""Videos, and pictures beside videos in one prompt: tokens lie in the frames that they show, and signals with them."""

from __future__ import annotations

from itertools import accumulate
from types import ModuleType
from typing import Any

import pytest
import torch
from families.test_families import VIDEO_TYPES, cell, is_refused, model
from PIL import Image
from zoo import common

import vtprune
from vtprune.adapters import find_adapter
from vtprune.adapters.conformance import ScatteredPruner, oracle_error, visual_tokens
from vtprune.context import Context
from vtprune.pruner import Reduction, Signal

Visual = Image.Image | list[Image.Image]
PACKED = ("cosmos3_edge", "exaone4_5", "kimi_k25", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "video_llama_3")
"""One type of each way in which towers pack the patches of frames into one sequence."""


@pytest.fixture(autouse=True)
def _skip_refused(request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["name"]
    if reason := is_refused(name):
        pytest.skip(f"{name} is refused: {reason}")


def mixed_inputs(module: ModuleType, call: Any, rows: list[list[Visual]]) -> common.Inputs:
    """Prompts with pictures and videos in any order."""
    pictures = [[part for part in row if isinstance(part, Image.Image)] for row in rows]
    videos = [[part for part in row if not isinstance(part, Image.Image)] for row in rows]
    made = common.prompts([[block(module, call, part) for part in row] for row in rows])
    tokens = made["input_ids"]
    for given in (module.inputs(call, pictures), module.video_inputs(call, videos)):
        prompt = given["input_ids"].shape
        made |= {name: value for name, value in given.items() if getattr(value, "shape", None) != prompt}
        if "mm_token_type_ids" in given:
            made["mm_token_type_ids"] = (tokens == common.IMAGE).long() + 2 * (tokens == common.VIDEO).long()
    made = module.with_types(made) if hasattr(module, "with_types") else made
    if any(videos) and any(pictures):
        skip_where_kinds_cannot_be_told_apart(call, made, module)
    return made


def skip_where_kinds_cannot_be_told_apart(call: Any, inputs: common.Inputs, module: ModuleType) -> None:
    """Some types give pictures and videos one name or one placeholder; the latter is refused in one prompt."""
    if reason := getattr(module, "NO_MIXED", getattr(module, "NO_FRAMES", None)):
        pytest.skip(reason)
    tokens = [placeholder.token for placeholder in find_adapter(call).placeholders]
    if len(set(tokens)) < len(tokens):
        with vtprune.pruning(call, ScatteredPruner(), 5), pytest.raises(ValueError, match=r"placeholder|tokens"):
            call(**inputs)
        pytest.skip("pictures and videos have one placeholder")


def block(module: ModuleType, call: Any, part: Visual) -> list[int]:
    """Placeholders of a picture or video, with the marks around them and without the words of the prompt."""
    alone = module.inputs(call, [[part]]) if isinstance(part, Image.Image) else module.video_inputs(call, [[part]])
    words = common.prompts([[[common.IMAGE]]])["input_ids"][0].tolist().index(common.IMAGE)
    after = common.prompts([[[common.IMAGE]]])["input_ids"].shape[1] - words - 1
    tokens: list[int] = alone["input_ids"][0, words:-after].tolist()
    return tokens


def mixed_rows(module: ModuleType) -> list[list[Visual]]:
    """A picture before a video, and one between two videos."""
    small, large, other = module.SIZES
    return [
        [common.picture(*small, seed=1), common.video(4, *other, seed=2)],
        [common.video(4, *small, seed=3), common.picture(*large, seed=4), common.video(4, *small, seed=5)],
    ]


@pytest.mark.parametrize("positions", ["keep", "pack"])
@pytest.mark.parametrize("layers", [(0,), (1, 3)])
@pytest.mark.parametrize("name", VIDEO_TYPES)
@torch.no_grad()
def test_pruned_equals_masked(name: str, layers: tuple[int, ...], positions: str) -> None:
    module = common.load(name)
    layers = tuple(sorted({min(layer, find_adapter(model(name)).last_stage) for layer in layers}))
    inputs = mixed_inputs(module, model(name), mixed_rows(module))
    assert oracle_error(model(name), inputs, layers, positions) < 1e-4


@pytest.mark.parametrize("name", VIDEO_TYPES)
@torch.no_grad()
def test_the_report_has_pictures_and_videos_in_prompt_order(name: str) -> None:
    module = common.load(name)
    call: Any = model(name)
    rows = mixed_rows(module)
    inputs = mixed_inputs(module, call, rows)
    with vtprune.pruning(call, ScatteredPruner(), 5):
        call(**inputs)
        report = vtprune.report(call)
    stage = report.stages[0]
    visual = visual_tokens(find_adapter(call), inputs["input_ids"])
    for number, row in enumerate(rows):
        columns = visual[number].nonzero().flatten()
        kinds = inputs["input_ids"][number, columns]
        start, left = 0, []
        found = iter(zip(report.layouts[number], stage.images[number], stage.places[number], strict=True))
        for part in row:
            alone = torch.tensor(block(module, call, part))
            tokens = int(visual_tokens(find_adapter(call), alone).sum())
            end = start + tokens
            while start < end:
                layout, kept, places = next(found)
                own = columns[start : start + layout.tokens]
                assert len(kinds[start : start + layout.tokens].unique()) == 1
                assert kept.shape == (5,)
                assert torch.equal(layout.places[kept], places)
                left.append(own[kept])
                start += layout.tokens
            assert start == end
        assert next(found, None) is None
        assert stage.kept[number].tolist() == sorted(torch.cat(left).tolist())


@pytest.mark.parametrize("name", [name for name in VIDEO_TYPES if name in PACKED])
@torch.no_grad()
def test_tokens_and_keys_of_a_video_lie_in_its_views(name: str) -> None:
    """A change in one cell of all frames of a view changes token and encoder keys of that place in that view most."""
    module = common.load(name)
    call: Any = model(name, scale=1.0)
    height, width = getattr(module, "PLAIN_SIZE", (96, 96))
    video = common.video(8, height, width)
    before, places, shapes = seen_of(call, module, video)
    frames = len(video) // len(shapes)
    for view, (lines, columns) in enumerate(shapes):
        line, column = view % lines, columns - 1 - view % columns
        changed = [frame.copy() for frame in video]
        for frame in changed[view * frames : (view + 1) * frames]:
            frame.paste((255, 40, 0), cell((0.0, 0.0, 1.0, 1.0), (lines, columns), (line, column), (height, width)))
        after, _, _ = seen_of(call, module, changed)
        for one, other in zip(before, after, strict=True):
            best = int((other - one).norm(dim=-1).argmax())
            assert places[best].tolist() == [view, line, column]


def seen_of(
    call: Any, module: ModuleType, frames: list[Image.Image]
) -> tuple[list[torch.Tensor], torch.Tensor, list[tuple[int, int]]]:
    """What the decoder is given for the tokens of one video, and their encoder keys; places; the shape of each view."""
    inputs = module.video_inputs(call, [[frames]])
    adapter = find_adapter(call)
    seen: list[torch.Tensor] = []
    handle = adapter.decoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(adapter.entering(kwargs)), with_kwargs=True
    )
    SEEN.clear()
    try:
        with vtprune.pruning(call, Looking(), 1):
            call(**inputs)
            layouts = vtprune.report(call).layouts[0]
    finally:
        handle.remove()
    tokens = seen[0][0, visual_tokens(adapter, inputs["input_ids"])[0]].float()
    keys = torch.cat([keys.transpose(1, 2).flatten(2).flatten(0, 1) for keys, _, _ in SEEN])
    # Entries of one video that count as videos stand one after another.
    firsts = accumulate((layout.views for layout in layouts), initial=0)
    places = [layout.places + torch.tensor([first, 0, 0]) for layout, first in zip(layouts, firsts, strict=False)]
    return [tokens, keys], torch.cat(places), [shape for layout in layouts for shape in layout.view_shapes]


@pytest.mark.parametrize("name", [name for name in VIDEO_TYPES if name == "video_llama_3"])
@torch.no_grad()
def test_dropped_tokens_of_a_video_are_no_tokens(name: str) -> None:
    """Frames that stand still lose tokens before the prompt is filled: the rest keep their frames and places."""
    module = common.load(name)
    call: Any = model(name)
    still = [common.picture(*module.SIZES[0])] * 3
    moving = [frame.copy() for frame in still]
    moving[1].paste((255, 40, 0), (0, 0, 16, 16))
    inputs = module.video_inputs(call, [[still], [common.video(2, *module.SIZES[1]), moving]], compression=True)
    mask = inputs["video_compression_mask"]
    assert not mask.all()
    with vtprune.pruning(call, Looking(), 5):
        SEEN.clear()
        call(**inputs)
        (one,), (other, last) = vtprune.report(call).layouts
    assert [layout.views for layout in (one, other, last)] == [3, 2, 3]
    starts = [0, one.total_patches, one.total_patches + other.total_patches]
    kept = [patch + start for layout, start in zip((one, other, last), starts, strict=True) for patch in layout.patches]
    assert kept == mask.nonzero().flatten().tolist()
    # Keys and attention of each token that is left, out of those of all patches.
    for keys, attention, layout in SEEN:
        assert keys.shape[2] == attention.shape[1] == layout.tokens
    for positions in ("keep", "pack"):
        assert oracle_error(call, inputs, (0, 2), positions) < 1e-4


class Looking(ScatteredPruner):
    """Takes down what the tower's last layer tells about each token."""

    name = "looking"
    signals = frozenset({Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS})

    def reduce(self, context: Context, keep: int) -> Reduction:
        SEEN.append((context.encoder_keys, context.encoder_attention.mean(1), context.layout))
        return super().reduce(context, keep)


SEEN: list[tuple[Any, ...]] = []


@pytest.mark.parametrize("name", VIDEO_TYPES)
@torch.no_grad()
def test_encoder_signals_of_frames(name: str) -> None:
    """Attention is a distribution over each frame, and a picture beside a video has what it has alone."""
    module = common.load(name)
    call: Any = model(name)
    if Signal.ENCODER_KEYS in find_adapter(call).missing:
        pytest.skip("the tower's rows are not the patches of tokens")
    rows = mixed_rows(module)[:1]
    inputs = mixed_inputs(module, call, rows)
    SEEN.clear()
    with vtprune.pruning(call, Looking(), 5):
        call(**inputs)
    picture, *video = SEEN
    # What a CLS token leaves to the patches differs, and so it does where frames share attention or overlap in tokens.
    alike = not find_adapter(call).vision.has_cls and not hasattr(module, "UNEQUAL_FRAMES")
    for _, attention, layout in video if alike else ():
        sums = torch.stack([attention[:, frame].sum(1) for frame in layout.view_tokens])
        expected = sums[:1]
        if name in PACKED:
            # The mean over the patches of each token, of what adds up to one over all patches.
            expected = expected.new_tensor(layout.patches_per_view / int(inputs["video_grid_thw"][0, 1:].prod()))
        torch.testing.assert_close(sums, expected.expand_as(sums), rtol=1e-3, atol=1e-4)
    SEEN.clear()
    with vtprune.pruning(call, Looking(), 5):
        call(**module.inputs(call, [rows[0][:1]]))
    for mine, other in zip(picture[:2], SEEN[0][:2], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
