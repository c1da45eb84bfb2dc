from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from vtprune.demo.cards import by_agreement, gallery, is_right, message
from vtprune.demo.drawing import CELL, Look, data_uri, overlay_html
from vtprune.demo.overlay import overlay
from vtprune.demo.plots import Point, budgets, flip_text, flips, layers_svg, sweep_svg
from vtprune.demo.session import Outcome, Stage
from vtprune.demo.sheet import sheet
from vtprune.demo.watching import Watched
from vtprune.eval.compare import Run
from vtprune.layout import ImageLayout, Segment, grid_layout, video_layout

PICTURE = Image.new("RGB", (40, 40), "white")


def parsed(html: str) -> ElementTree.Element:
    """Fails on what is no well-formed XML, such as words that were not escaped."""
    return ElementTree.fromstring(f"<root>{html}</root>")


def cells(html: str, name: str) -> set[tuple[int, int]]:
    """Row and column of each rectangle of a class."""
    found = [node for node in parsed(html).iter("rect") if node.get("class") == name]
    return {(int(float(node.attrib["y"]) // CELL), int(float(node.attrib["x"]) // CELL)) for node in found}


def test_exactly_the_kept_cells_are_marked() -> None:
    html = overlay_html(PICTURE, grid_layout(3, 5), Watched((0, 6, 14)))
    assert cells(html, "kept") == {(0, 0), (1, 1), (2, 4)}
    (clip,) = parsed(html).iter("clipPath")
    assert clip[0].attrib["d"].count("M") == 3
    assert 'aria-label="3 of 15 tokens kept"' in html


def test_heat_goes_by_rank() -> None:
    seen = Watched((1,), scores={0: 0.1, 1: 1e6, 2: 0.2})
    html = overlay_html(PICTURE, grid_layout(2, 2), seen, Look("scores"))
    assert cells(html, "heat") == {(0, 0), (0, 1), (1, 0)}
    fills = re.findall(r'class="heat"[^>]*fill="([^"]+)"', html)
    assert fills == ["rgb(68,1,84)", "rgb(33,145,140)", "rgb(253,231,37)"]


def test_groups_have_a_colour_each() -> None:
    seen = Watched((0, 3), owners={0: 0, 1: 0, 2: 3, 3: 3})
    html = overlay_html(PICTURE, grid_layout(2, 3), seen, Look("groups", grid=True))
    fills = re.findall(r'class="group"[^>]*fill="([^"]+)"', html)
    assert len(fills) == 4
    assert fills[0] == fills[1] != fills[2] == fills[3]
    assert 'class="lines"' in html


def test_one_panel_for_each_grid() -> None:
    anyres = ImageLayout(
        (Segment(2, 2), Segment(2, 4, newline=True)),
        (0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1),
        views=3,
        patches_per_view=4,
    )
    html = overlay_html(PICTURE, anyres, Watched((0, 4, 8)))
    assert [len([n for n in svg.iter("rect") if n.get("class") == "kept"]) for svg in parsed(html).iter("svg")] == [
        1,
        1,
    ]


def test_a_film_is_a_strip_of_its_frames() -> None:
    frames = [Image.new("RGB", (16, 16), (30 * number, 0, 0)) for number in range(8)]
    film = overlay_html(frames, video_layout(4, 2, 2), Watched((2, 3, 15)))
    captions = [str(node.text) for node in parsed(film).iter("figcaption")]
    assert captions == ["1: 2 of 4 kept", "2: 0 of 4 kept", "3: 0 of 4 kept", "4: 1 of 4 kept"]
    shown = [node.attrib["href"] for node in parsed(film).iter("image")][::2]
    assert shown == [data_uri(frames[number]) for number in (1, 3, 5, 7)]
    assert overlay(frames, video_layout(4, 2, 2), (15,), panel=64).getpixel((288, 48)) == (210, 0, 0)


def outcome(answer: str, agreement: float, method: str = "divprune") -> Outcome:
    full = Run("red", 4, 4.0, 100, 100, 0.2)
    pruned = Run(answer, 2, 2.0, 50, 50, 0.1)
    stage = Stage(0, 4, 2, (Watched((0, 3)),))
    return Outcome(
        "what <b>?",
        method,
        "2 tokens",
        "keep",
        full,
        pruned,
        agreement,
        (PICTURE,),
        (grid_layout(2, 2),),
        (stage,),
        (2, 2),
    )


def test_gallery_is_sorted_by_agreement_and_marked() -> None:
    found = [outcome("blue", -0.5, "a"), outcome("red", -2.0, "b"), outcome("red", -0.1, "c")]
    assert [one.method for one in by_agreement(found)] == ["c", "b", "a"]
    html = gallery(found, "red")
    assert re.findall(r"<h3>(\w)</h3>", html) == ["c", "b", "a"]
    assert re.findall(r'class="mark (\w+)"', html) == ["right", "right", "right", "wrong"]
    assert "mark" not in gallery(found, None)


def test_sheet_holds_every_overlay() -> None:
    small, large = sheet([outcome("red", -1.0)]), sheet([outcome("red", -1.0)] * 5)
    assert large.width > 2 * small.width
    assert large.height > 1.5 * small.height


def test_words_of_visitors_are_escaped() -> None:
    bad = '<img src=x onerror="alert(1)">'
    for html in (message(bad), gallery([outcome(bad, -1.0, bad)], bad), sweep_svg([Point(3, -1.0, bad, False)], 9)):
        assert "<img" not in html
        parsed(html)


def test_is_right() -> None:
    assert is_right("Orange.", "orange")
    assert is_right("blue", "orange") is False
    assert is_right("blue", None) is None


@pytest.mark.parametrize("tokens", [1, 2, 9, 36, 576, 2880])
def test_budgets_of_a_sweep(tokens: int) -> None:
    found = budgets(tokens)
    assert found == sorted(set(found), reverse=True)
    assert found[0] == tokens
    assert found[-1] >= 1
    assert len(found) <= 10


def test_flips() -> None:
    points = [Point(576, -0.1, "red", True), Point(64, -0.5, "red", True), Point(8, -3.0, "blue", False)]
    assert [(more.tokens, fewer.tokens) for more, fewer in flips(points)] == [(64, 8)]
    assert "between 64 and 8 tokens" in flip_text(points)
    assert flip_text(points[:2]) == "The answer never changes."


def test_sweep_plot_has_its_points_in_place() -> None:
    points = [Point(576, -0.1, "red", True), Point(64, -0.5, "red", True), Point(8, -3.0, "blue", False)]
    html = sweep_svg(points, 576, chosen=1)
    dots = [node for node in parsed(html).iter("circle") if node.get("class") == "dot"]
    across, down = ([float(node.attrib[name]) for node in dots] for name in ("cx", "cy"))
    assert across == sorted(across, reverse=True)
    assert down == sorted(down)
    groups = list(parsed(html).iter("g"))
    assert [node.get("aria-pressed") for node in groups] == ["false", "true", "false"]
    assert [node.get("class") for node in groups] == ["point same", "point same", "point other"]


@pytest.mark.parametrize("worst", [-0.01, -0.7, -1.9, -48.0, -1e3])
def test_numbers_of_the_axis_are_round(worst: float) -> None:
    html = sweep_svg([Point(9, 0.0, "red", True), Point(3, worst, "blue", False)], 9)
    numbers = [
        float(str(node.text))
        for node in parsed(html).iter("text")
        if node.get("class") == "number" and node.get("text-anchor") == "end"
    ]
    assert 3 <= len(numbers) <= 7
    assert numbers[0] == 0
    assert numbers == sorted(numbers, reverse=True)
    assert all(len(f"{abs(number):g}".replace(".", "").strip("0")) <= 2 for number in numbers)


def test_layers_plot() -> None:
    html = layers_svg((36, 36, 9, 0), 36, 2)
    bars = [node for node in parsed(html).iter("rect") if str(node.get("class")).startswith("bar")]
    assert [float(node.attrib["height"]) for node in bars] == [110.0, 110.0, 27.5, 0.0]
    assert [node.get("class") for node in bars] == ["bar", "bar", "bar marked", "bar"]
