"""Every model type of the zoo: the engine's invariants, images and places as in the pictures, signals, methods."""

from __future__ import annotations

import json
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel
from zoo import common

import vtprune
from vtprune.adapters import check_adapter, find_adapter
from vtprune.adapters.conformance import ScatteredPruner, visual_tokens
from vtprune.context import Context
from vtprune.docs import RECORDS
from vtprune.model_docs import supported as supported_types
from vtprune.pruner import Reduction, Signal

TYPES = [name for name in common.model_types() if hasattr(common.load(name), "inputs")]
SUPPORTED = supported_types(json.loads(RECORDS.read_text(encoding="utf-8")))
VIDEO_TYPES = [name for name in TYPES if hasattr(common.load(name), "video_inputs")]
FRAMES = 8
METHODS = ["cdpruner", "divprune", "fastv", "pyramiddrop", "random", "visionzip"]


@cache
def model(name: str, attention: str = "sdpa", scale: float = 3.0) -> PreTrainedModel:
    return common.build(name, attention, scale=scale)


def pictures(module: ModuleType) -> list[list[Image.Image]]:
    """One picture a row, of different sizes."""
    return [[common.picture(*size, seed=number)] for number, size in enumerate(module.SIZES)]


def is_refused(name: str) -> str | None:
    """Why a type is refused, or `None`; a type that the documents call supported must not be."""
    refusal = None
    try:
        find_adapter(model(name))
    except ValueError as error:
        refusal = str(error)
    assert refusal is None or name not in SUPPORTED, f"{name} is called supported, but refused: {refusal}"
    return refusal


def supported(names: list[str]) -> Any:
    return pytest.mark.parametrize("name", names)


@pytest.fixture(autouse=True)
def _skip_refused(request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["name"]
    if reason := is_refused(name):
        pytest.skip(f"{name} is refused: {reason}")


@supported(TYPES)
def test_conformance(name: str) -> None:
    module = common.load(name)
    rows = pictures(module)
    inputs, alone = common.together_and_alone(module, model(name), rows)
    check_adapter(model(name), inputs=inputs, alone=alone, suppress_tokens=common.MARKS)


@supported(VIDEO_TYPES)
def test_conformance_of_videos(name: str) -> None:
    module = common.load(name)
    videos = [[common.video(4, *module.SIZES[0], seed=1)], [common.video(4, *module.SIZES[1], seed=2)]]
    inputs = module.video_inputs(model(name), videos)
    check_adapter(model(name), inputs=inputs, suppress_tokens=common.MARKS)


@supported(TYPES)
@torch.no_grad()
def test_images_of_a_row_are_its_pictures(name: str) -> None:
    """Tiles are not taken for images, nor two pictures for one; a budget is that of a picture."""
    module = common.load(name)
    small, large, other = module.SIZES
    rows = [[common.picture(*small, seed=1), common.picture(*large, seed=2)], [common.picture(*other, seed=3)]]
    call: Any = model(name)
    inputs = module.inputs(call, rows)
    with vtprune.pruning(call, ScatteredPruner(), 5):
        call(**inputs)
        report = vtprune.report(call)
    assert [len(row) for row in report.layouts] == [2, 1]
    assert [[len(image) for image in row] for row in report.stages[0].images] == [[5, 5], [5]]
    visual = visual_tokens(find_adapter(call), inputs["input_ids"])
    assert sum(layout.tokens for layout in report.layouts[0]) == int(visual[0].sum())
    for row, places in enumerate(report.stages[0].places):
        for image, found in enumerate(places):
            layout = report.layouts[row][image]
            assert found.shape == (5, 3)
            for view, line, column in found.tolist():
                if view >= 0:
                    height, width = layout.view_shapes[view]
                    assert 0 <= line < height
                    assert 0 <= column < width


Box = tuple[float, float, float, float]


@supported(TYPES)
@torch.no_grad()
def test_tokens_lie_where_the_picture_shows_them(name: str) -> None:
    """A change in one cell of a picture changes the token of that place most, in each view that shows the cell."""
    module = common.load(name)
    if (reason := getattr(module, "NO_PLACES", None)) is not None:
        pytest.skip(reason)
    call: Any = model(name, scale=1.0)
    height, width = getattr(module, "PLAIN_SIZE", (96, 96))
    gray = Image.new("RGB", (width, height), (128, 128, 128))
    before, layout = features(call, module, gray)
    places = layout.places
    for view, box in enumerate(view_boxes(module, layout)):
        if box is None:
            continue
        lines, columns = layout.view_shapes[view]
        for line, column in [(0, 0), (lines // 2, columns - 1), (lines - 1, columns // 3)]:
            changed = gray.copy()
            changed.paste((255, 40, 0), cell(box, (lines, columns), (line, column), (height, width)))
            after, _ = features(call, module, changed)
            distance = (after - before).norm(dim=-1)
            best = int(distance.masked_fill(places[:, 0] != view, -1).argmax())
            assert places[best].tolist() == [view, line, column]


def view_boxes(module: ModuleType, layout: Any) -> list[Box | None]:
    """The part of the picture that each view shows, as shares (top, left, bottom, right); `None` for no such part."""
    if hasattr(module, "view_boxes"):
        boxes: list[Box | None] = module.view_boxes(layout)
        return boxes
    assert layout.views == 1, f"{module.__name__} needs view_boxes(layout), because its pictures have several views"
    return [(0.0, 0.0, 1.0, 1.0)]


def cell(box: Box, shape: tuple[int, int], place: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels (left, top, right, bottom) of one cell of a view with `shape` cells, in a picture of `size`."""
    top, left, bottom, right = box
    high, wide = (bottom - top) / shape[0], (right - left) / shape[1]
    rows = [round((top + high * (place[0] + step)) * size[0]) for step in (0, 1)]
    columns = [round((left + wide * (place[1] + step)) * size[1]) for step in (0, 1)]
    return columns[0], rows[0], columns[1], rows[1]


def features(call: Any, module: ModuleType, picture: Image.Image) -> tuple[torch.Tensor, Any]:
    """What the decoder is given for the visual tokens of one picture, `(tokens, dim)`, and their layout."""
    return entering_decoder(call, module.inputs(call, [[picture]]))


def entering_decoder(call: Any, inputs: Any) -> tuple[torch.Tensor, Any]:
    """What the decoder is given for the visual tokens of inputs with one image or video, and their layout."""
    adapter = find_adapter(call)
    seen: list[torch.Tensor] = []
    if adapter.decoder is adapter.base:
        handle = adapter.layers[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    else:
        handle = adapter.decoder.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(adapter.entering(kwargs)), with_kwargs=True
        )
    try:
        with vtprune.pruning(call, ScatteredPruner(), 1.0):
            call(**inputs)
            ((layout,),) = vtprune.report(call).layouts
    finally:
        handle.remove()
    visual = visual_tokens(adapter, inputs["input_ids"])
    return seen[0][0, visual[0]].float(), layout


class Peeking(ScatteredPruner):
    """Takes down encoder signals while pruning."""

    name = "peeking"
    signals = frozenset({Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS, Signal.ENCODER_FEATURES})

    def reduce(self, context: Context, keep: int) -> Reduction:
        SEEN.append((context.layout, context.encoder_attention, context.encoder_keys, context.encoder_features))
        return super().reduce(context, keep)


SEEN: list[tuple[Any, ...]] = []


@supported(TYPES)
@torch.no_grad()
def test_encoder_signals_belong_to_the_patches(name: str) -> None:
    """Attention received is a distribution over each view, features are those before the projector, in both kinds."""
    module = common.load(name)
    call: Any = model(name)
    adapter = find_adapter(call)
    if (reason := adapter.missing.get(Signal.ENCODER_ATTENTION)) is not None:
        with pytest.raises(ValueError, match="encoder_attention"):
            vtprune.wrap(call, Peeking(), 5)
        pytest.skip(reason)
    inputs = module.inputs(call, pictures(module))
    SEEN.clear()
    with vtprune.pruning(call, Peeking(), 5):
        call(**inputs)
    assert SEEN
    side = adapter.vision.merge
    for layout, attention, keys, encoded in SEEN:
        tokens = layout.tokens
        assert attention.shape[-1] == keys.shape[2] == encoded.shape[1] == tokens
        assert torch.isfinite(keys).all()
        patches = torch.tensor(layout.patches) >= 0
        received = attention[:, :, patches].sum(-1) * side * side
        if not adapter.vision.has_cls and len(patches.nonzero()) == layout.total_patches:
            frames = torch.full_like(received, float(layout.views))
            torch.testing.assert_close(received, frames, rtol=1e-3, atol=1e-3)
        else:
            assert (received <= layout.views + 1e-3).all()
        assert attention.std() > 0
    # A row by itself: the same attention, whatever was packed or padded beside it.
    first = SEEN[0]
    alone = module.inputs(call, [pictures(module)[0]])
    SEEN.clear()
    with vtprune.pruning(call, Peeking(), 5):
        call(**alone)
    if first[0] == SEEN[0][0]:
        for mine, other in zip(SEEN[0][1:], first[1:], strict=True):
            torch.testing.assert_close(mine[0], other[0], rtol=1e-3, atol=1e-4)


def rows_seen(call: Any, inputs: Any) -> tuple[Any, list[torch.Tensor]]:
    """The layout of the first image, and of each of its tokens the encoder's keys and features, `(tokens, any)`."""
    SEEN.clear()
    with vtprune.pruning(call, Peeking(), 0.9):
        call(**inputs)
    layout, _, keys, encoded = SEEN[0]
    return layout, [keys[0].transpose(0, 1).flatten(1).float(), encoded[0].float()]


@supported(TYPES)
@torch.no_grad()
def test_encoder_rows_lie_where_the_picture_shows_them(name: str) -> None:
    """As tokens do, so do the tower's rows: keys and features change most at the place that changed."""
    module = common.load(name)
    call: Any = model(name, scale=1.0)
    if (reason := find_adapter(call).missing.get(Signal.ENCODER_KEYS)) is not None:
        pytest.skip(reason)
    height, width = getattr(module, "PLAIN_SIZE", (96, 96))
    gray = Image.new("RGB", (width, height), (128, 128, 128))
    layout, before = rows_seen(call, module.inputs(call, [[gray]]))
    for view, box in enumerate(view_boxes(module, layout)):
        if box is None:
            continue
        lines, columns = layout.view_shapes[view]
        for line, column in [(0, 0), (lines // 2, columns - 1), (lines - 1, columns // 3)]:
            changed = gray.copy()
            changed.paste((255, 40, 0), cell(box, (lines, columns), (line, column), (height, width)))
            _, after = rows_seen(call, module.inputs(call, [[changed]]))
            for one, other in zip(before, after, strict=True):
                distance = (other - one).norm(dim=-1)
                best = int(distance.masked_fill(layout.places[:, 0] != view, -1).argmax())
                assert layout.places[best].tolist() == [view, line, column]


@supported(VIDEO_TYPES)
@torch.no_grad()
def test_frames_of_a_video_are_its_views(name: str) -> None:
    """A change in one cell of one frame changes the token of that frame and place most."""
    module = common.load(name)
    if (reason := getattr(module, "NO_FRAMES", None)) is not None:
        pytest.skip(reason)
    call: Any = model(name, scale=1.0)
    adapter = find_adapter(call)
    height, width = getattr(module, "PLAIN_VIDEO_SIZE", getattr(module, "PLAIN_SIZE", (96, 96)))
    frames = [Image.new("RGB", (width, height), (128, 128, 128)) for _ in range(FRAMES)]

    def entering(number: int, box: tuple[int, int, int, int]) -> tuple[torch.Tensor, Any]:
        changed = [frame.copy() for frame in frames]
        if box[2]:
            changed[number].paste((255, 40, 0), box)
        return entering_decoder(call, module.video_inputs(call, [[changed]]))

    before, layout = entering(0, (0, 0, 0, 0))
    assert layout.views > 1
    each = FRAMES // layout.views
    lines, columns = layout.view_shapes[0]
    for frame, line, column in [(0, 0, 0), (each, lines // 2, columns - 1), (FRAMES - 1, lines - 1, columns // 3)]:
        box = cell((0.0, 0.0, 1.0, 1.0), (lines, columns), (line, column), (height, width))
        after, _ = entering(frame, box)
        best = int((after - before).norm(dim=-1).argmax())
        assert layout.places[best].tolist() == [frame // each, line, column]
    if Signal.ENCODER_ATTENTION not in adapter.missing:
        SEEN.clear()
        with vtprune.pruning(call, Peeking(), 0.9):
            call(**module.video_inputs(call, [[frames]]))
        assert SEEN[0][0].views == layout.views


@supported(TYPES)
@torch.no_grad()
def test_random_choice_depends_on_the_picture_alone(name: str) -> None:
    module = common.load(name)
    call: Any = model(name)
    inputs, alone = common.together_and_alone(module, call, pictures(module))
    with vtprune.pruning(call, "random", 5):
        call(**inputs)
        together = vtprune.report(call).stages[0].images
        for row, one in enumerate(alone):
            call(**one)
            assert torch.equal(vtprune.report(call).stages[0].images[0][0], together[row][0])


@supported(TYPES)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_methods_run_or_name_the_signal_they_lack(name: str, method: str) -> None:
    module = common.load(name)
    call: Any = model(name)
    adapter = find_adapter(call)
    pruner = vtprune.make_pruner(method).fit(adapter.depths)
    lacking = [signal for signal in sorted(pruner.signals) if signal in adapter.missing]
    options = common.question_side(call, method) if not lacking else {}
    if lacking:
        with pytest.raises(ValueError, match=str(lacking[0].value) if method != "cdpruner" else "CLIP"):
            vtprune.wrap(call, pruner, 5, **options)
        return
    refusal = ""
    try:
        vtprune.wrap(call, pruner, 5, **options)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert "layer" in refusal or "streams" in refusal
        return
    try:
        call(**module.inputs(call, pictures(module)))
        report = vtprune.report(call)
    finally:
        vtprune.unwrap(call)
    for row in report.stages[-1].images:
        assert [len(image.unique()) for image in row] == [5]
