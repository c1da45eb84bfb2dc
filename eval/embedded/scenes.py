"""Pictures and questions of the embedded benchmark: coloured shapes, a number and a word over a textured background.

A ``Scene`` is plain data. Everything else is a function of it: the picture (``render``), the questions that have one
true answer (``all_questions``, ``questions``), a caption (``caption``) and what each patch of the picture shows
(``patch_labels``). The pictures are drawn from raw generator bits and from Pillow's built-in font, so the same scene
gives the same picture.

Example:
    >>> scene = sample_scene(random.Random(0))
    >>> Scene.from_json(scene.to_json()) == scene, render(scene).size
    (True, (192, 192))
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZE = 192
PATCH = 8
GRID = SIZE // PATCH

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 180, 60),
    "blue": (55, 85, 235),
    "yellow": (238, 218, 50),
    "purple": (155, 60, 195),
    "orange": (242, 140, 30),
    "cyan": (60, 212, 222),
    "white": (242, 242, 242),
}
SHAPES: dict[str, str] = {  # singular: plural
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
    "ring": "rings",
    "diamond": "diamonds",
    "heart": "hearts",
}
WORDS: tuple[str, ...] = (
    "cat", "dog", "sun", "map", "key", "box", "tea", "owl", "fox", "bus",
    "pen", "cup", "hat", "jar", "log", "net", "oak", "pie", "rug", "van",
    "bird", "cake", "door", "fish", "goat", "kite", "lamp", "ship", "tree", "wolf",
)  # fmt: skip
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
KINDS: tuple[str, ...] = ("color", "shape", "exist", "count", "number", "word", "where")
ROWS: tuple[str, ...] = ("top", "middle", "bottom")
COLUMNS: tuple[str, ...] = ("left", "center", "right")
MAX_COUNT = 4
"""The largest answer of a count question."""

LABELS: tuple[str, ...] = ("shape", "color", "character", "center row", "center column")
"""Channels of ``patch_labels``."""

_TEXT_COLOR = (245, 245, 245)
_BORDER = 8  # pixels between an object that "where" asks for and the nearest line of the 3 x 3 cells


@dataclass(frozen=True, slots=True)
class Line:
    """A line of background clutter."""

    x0: int
    y0: int
    x1: int
    y1: int
    width: int
    color: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Item:
    """A coloured shape with its centre and radius in pixels."""

    shape: str
    color: str
    x: int
    y: int
    radius: int


@dataclass(frozen=True, slots=True)
class Text:
    """Characters in equal cells of ``advance`` x ``size`` pixels; (x, y) is the top left corner of the first."""

    text: str
    x: int
    y: int
    size: int

    @property
    def advance(self) -> int:
        """Width of a character cell in pixels."""
        return round(self.size * 0.68)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels."""
        return self.x, self.y, self.x + self.advance * len(self.text), self.y + self.size

    def cells(self) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
        """Each character with its box; blanks between words have none."""
        for i, character in enumerate(self.text):
            if character == " ":
                continue
            left = self.x + i * self.advance
            yield character, (left, self.y, left + self.advance, self.y + self.size)


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a picture shows."""

    seed: int
    """Of the background texture."""
    cells: int
    """The background has ``cells`` x ``cells`` colour blobs."""
    lines: tuple[Line, ...]
    items: tuple[Item, ...]
    number: Text
    word: Text

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scene:
        """The scene that ``to_json`` (before or after a JSON round trip) describes."""
        return cls(
            seed=data["seed"],
            cells=data["cells"],
            lines=tuple(Line(**{**line, "color": tuple(line["color"])}) for line in data["lines"]),
            items=tuple(Item(**item) for item in data["items"]),
            number=Text(**data["number"]),
            word=Text(**data["word"]),
        )


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene; ``answer`` is the one true answer."""

    kind: str
    text: str
    answer: str


def place(
    rng: random.Random, width: int, height: int, taken: list[tuple[int, int, int, int]]
) -> tuple[int, int] | None:
    """Top left corner of a free box, or None after 40 failures."""
    for _ in range(40):
        x, y = rng.randint(2, SIZE - width - 2), rng.randint(2, SIZE - height - 2)
        if all(x + width < l or x > r or y + height < t or y > b for l, t, r, b in taken):  # noqa: E741
            taken.append((x - 2, y - 2, x + width + 2, y + height + 2))
            return x, y
    return None


def sample_scene(rng: random.Random) -> Scene:
    """Draw a scene: 3 to 6 objects of a few shapes and colours (so that counts repeat), one number, one word."""
    taken: list[tuple[int, int, int, int]] = []
    texts = []
    for text in ("".join(rng.choices("0123456789", k=3)), rng.choice(WORDS)):
        size = rng.randint(15, 20)
        probe = Text(text, 0, 0, size)
        corner = place(rng, probe.box[2], probe.box[3], taken)
        if corner is None:
            raise AssertionError("two texts always fit")
        texts.append(Text(text, *corner, size))
    shapes = rng.sample(list(SHAPES), rng.randint(2, 7))
    colors = rng.sample(list(COLORS), rng.randint(3, 8))
    items = []
    for _ in range(rng.randint(3, 6)):
        radius = rng.randint(8, 16)
        corner = place(rng, 2 * radius, 2 * radius, taken)
        if corner is not None:
            items.append(Item(rng.choice(shapes), rng.choice(colors), corner[0] + radius, corner[1] + radius, radius))
    lines = []
    for _ in range(rng.randint(0, 6)):
        x0, y0, x1, y1 = (rng.randrange(SIZE) for _ in range(4))
        color = (rng.randint(40, 145), rng.randint(40, 145), rng.randint(40, 145))
        lines.append(Line(x0, y0, x1, y1, rng.randint(1, 3), color))
    return Scene(rng.getrandbits(48), rng.randint(3, 12), tuple(lines), tuple(items), texts[0], texts[1])


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _draw_item(draw: ImageDraw.ImageDraw, item: Item, fill: tuple[int, int, int] | int) -> None:
    x, y, r = item.x, item.y, item.radius
    match item.shape:
        case "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        case "square":
            draw.rectangle((x - r, y - r, x + r, y + r), fill=fill)
        case "triangle":
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
        case "diamond":
            draw.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=fill)
        case "ring":
            draw.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(3, r // 3))
        case "cross":
            w = max(2, r // 3)
            draw.rectangle((x - w, y - r, x + w, y + r), fill=fill)
            draw.rectangle((x - r, y - w, x + r, y + w), fill=fill)
        case "star":
            points = []
            for i in range(10):
                reach = r if i % 2 == 0 else 0.45 * r
                points.append((x + reach * math.sin(i * math.pi / 5), y - reach * math.cos(i * math.pi / 5)))
            draw.polygon(points, fill=fill)
        case "heart":
            draw.ellipse((x - r, y - r, x, y), fill=fill)
            draw.ellipse((x, y - r, x + r, y), fill=fill)
            draw.polygon([(x - 0.96 * r, y - 0.3 * r), (x + 0.96 * r, y - 0.3 * r), (x, y + r)], fill=fill)
        case unknown:
            raise ValueError(f"unknown shape {unknown!r}; known: {', '.join(SHAPES)}")


def _background(scene: Scene) -> NDArray[np.uint8]:
    """Colour blobs and grain, dark enough for every object colour to stand out: (SIZE, SIZE, 3)."""
    # Raw bits: the one part of numpy's generators whose stream never changes between versions.
    count = scene.cells * scene.cells * 3
    raw = np.random.PCG64(scene.seed).random_raw(-(-count // 8) + SIZE * SIZE // 8).view(np.uint8)
    blobs = (raw[:count] % 96 + 15).astype(np.uint8).reshape(scene.cells, scene.cells, 3)
    smooth = np.asarray(Image.fromarray(blobs).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    grain = (raw[-SIZE * SIZE :] % 25).reshape(SIZE, SIZE, 1)
    return smooth // 8 * 7 + grain


def render(scene: Scene) -> Image.Image:
    """Draw the scene as an RGB picture of 192 x 192 pixels."""
    picture = Image.fromarray(_background(scene))
    draw = ImageDraw.Draw(picture)
    for line in scene.lines:
        draw.line((line.x0, line.y0, line.x1, line.y1), fill=line.color, width=line.width)
    for item in scene.items:
        _draw_item(draw, item, COLORS[item.color])
    for text in (scene.number, scene.word):
        for character, (left, top, right, bottom) in text.cells():
            middle = ((left + right) / 2, (top + bottom) / 2)
            draw.text(middle, character, fill=_TEXT_COLOR, font=_font(text.size), anchor="mm")
    return picture


def patch_labels(scene: Scene) -> NDArray[np.uint8]:
    """What each patch shows: (5, 24, 24), channels as in ``LABELS``; 0 is nothing, other values are index + 1.

    A patch belongs to an object that covers at least an eighth of it, and to the character whose cell covers most of
    it (at least a quarter). The last two channels give the patch that holds the centre of the patch's object.
    """
    labels = np.zeros((len(LABELS), GRID, GRID), np.uint8)
    shapes, colors = list(SHAPES), list(COLORS)
    drawn = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(drawn)
    for i, item in enumerate(scene.items):
        _draw_item(draw, item, i + 1)
    blocks = np.asarray(drawn).reshape(GRID, PATCH, GRID, PATCH)
    for i, item in enumerate(scene.items):
        covered = (blocks == i + 1).sum(axis=(1, 3)) >= PATCH * PATCH // 8
        values = (shapes.index(item.shape), colors.index(item.color), 0, item.y // PATCH, item.x // PATCH)
        for channel in (0, 1, 3, 4):
            labels[channel][covered] = values[channel] + 1
    most = np.full((GRID, GRID), PATCH * PATCH // 4 - 1)
    edges = np.arange(GRID) * PATCH
    for text in (scene.number, scene.word):
        for character, (left, top, right, bottom) in text.cells():
            across = (np.minimum(right, edges + PATCH) - np.maximum(left, edges)).clip(min=0)
            down = (np.minimum(bottom, edges + PATCH) - np.maximum(top, edges)).clip(min=0)
            area = down[:, None] * across[None, :]
            labels[2][area > most] = CHARACTERS.index(character) + 1
            most = np.maximum(most, area)
    return labels


def _cell(item: Item) -> str | None:
    """The 3 x 3 cell of the centre, or None when the centre is too near to a line between cells."""
    third = SIZE // 3
    if any(abs(value - line) < _BORDER for value in (item.x, item.y) for line in (third, 2 * third)):
        return None
    return f"{ROWS[item.y // third]} {COLUMNS[item.x // third]}"


def _single(values: list[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if values.count(value) == 1]


def _color(scene: Scene) -> list[Question]:
    unique = _single([item.shape for item in scene.items])
    return [Question("color", f"what color is the {i.shape} ?", i.color) for i in scene.items if i.shape in unique]


def _shape(scene: Scene) -> list[Question]:
    unique = _single([item.color for item in scene.items])
    return [Question("shape", f"what shape is the {i.color} one ?", i.shape) for i in scene.items if i.color in unique]


def _exist(scene: Scene) -> list[Question]:
    present = {(item.color, item.shape) for item in scene.items}
    return [
        Question("exist", f"is there a {color} {shape} ?", "yes" if (color, shape) in present else "no")
        for shape in SHAPES
        for color in COLORS
    ]


def _count(scene: Scene) -> list[Question]:
    counts = {shape: sum(item.shape == shape for item in scene.items) for shape in SHAPES}
    return [
        Question("count", f"how many {SHAPES[shape]} are there ?", str(n))
        for shape, n in counts.items()
        if n <= MAX_COUNT
    ]


def _number(scene: Scene) -> list[Question]:
    return [Question("number", "which number is written ?", " ".join(scene.number.text))]


def _word(scene: Scene) -> list[Question]:
    return [Question("word", "which word is written ?", scene.word.text)]


def _where(scene: Scene) -> list[Question]:
    unique = _single([item.shape for item in scene.items])
    found = []
    for item in scene.items:
        cell = _cell(item)
        if item.shape in unique and cell is not None:
            found.append(Question("where", f"where is the {item.shape} ?", cell))
    return found


_ASK: dict[str, Callable[[Scene], list[Question]]] = {
    "color": _color,
    "shape": _shape,
    "exist": _exist,
    "count": _count,
    "number": _number,
    "word": _word,
    "where": _where,
}


def all_questions(scene: Scene, kinds: Sequence[str] = KINDS) -> dict[str, list[Question]]:
    """Every question that has one true answer, by kind; no text occurs twice."""
    return {kind: _ASK[kind](scene) for kind in kinds}


def _pick(rng: random.Random, scene: Scene, kind: str, choices: list[Question]) -> Question:
    """One of ``choices``; "exist" and "count" are balanced over their answers."""
    if kind == "exist":
        answer = rng.choice(("yes", "no"))
        wanted = [q for q in choices if q.answer == answer]
        if answer == "no" and rng.random() < 0.5:  # colour and shape are there, but not together
            shapes, colors = {i.shape for i in scene.items}, {i.color for i in scene.items}
            hard = [q for q in wanted if q.text.split()[4] in shapes and q.text.split()[3] in colors]
            wanted = hard or wanted
        return rng.choice(wanted or choices)
    if kind == "count":
        answer = rng.choice(sorted({q.answer for q in choices}))
        return rng.choice([q for q in choices if q.answer == answer])
    return rng.choice(choices)


def questions(scene: Scene, rng: random.Random, limit: int = 12) -> list[Question]:
    """Draw up to ``limit`` different questions in random order, the kinds as evenly as the scene allows."""
    left = all_questions(scene)
    drawn: list[Question] = []
    while len(drawn) < limit and any(left.values()):
        for kind in rng.sample(KINDS, len(KINDS)):
            if left[kind] and len(drawn) < limit:
                question = _pick(rng, scene, kind, left[kind])
                left[kind].remove(question)
                drawn.append(question)
    rng.shuffle(drawn)
    return drawn


def caption(scene: Scene, rng: random.Random, *, full: bool = True) -> str:
    """Describe the scene: all of it in random order, or (``full=False``) a part, one thing, or a question on it."""
    parts = [f"a {item.color} {item.shape}" for item in scene.items]
    parts += [f"the number {' '.join(scene.number.text)}", f"the word {scene.word.text}"]
    rng.shuffle(parts)
    if full:
        return " , ".join(parts)
    draw = rng.random()
    if draw < 0.3:
        return " , ".join(parts[: rng.randint(2, 4)])
    if draw < 0.7:
        return parts[0]
    question = rng.choice(questions(scene, rng, len(KINDS)))
    return f"{question.text} {question.answer}" if rng.random() < 0.5 else question.text
