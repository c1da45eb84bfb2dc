"""Scenes by level of difficulty: smaller and more objects, longer and smaller texts, more clutter.

The seed of a scene's background tells its side of the split: no picture of the training can be one of the held-out
set, whatever the random streams do.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vtprune.eval.embedded.scenes import COLORS, SHAPES, SIZE, Item, Line, Scene, Text, place

LONG_WORDS: tuple[str, ...] = (  # alike, so that a few letters do not tell them apart
    "painter", "printer", "pointer", "planter", "weather", "leather", "feather", "heather",
    "pocket", "rocket", "bucket", "jacket", "packet", "ticket", "bottle", "battle",
    "cattle", "kettle", "candle", "handle", "saddle", "castle", "winter", "winner",
)  # fmt: skip

Split = Literal["training", "held-out"]

_SHARES = 16  # one background seed in so many is held out


@dataclass(frozen=True, slots=True)
class Level:
    """What makes pictures hard; pairs are the least and the most."""

    radius: tuple[int, int]
    """Of objects, in pixels."""
    objects: tuple[int, int]
    distractors: tuple[int, int]
    """Objects beside those that are counted."""
    lines: tuple[int, int]
    """Of clutter."""
    brightness: int
    """Of the brightest line; texts have 245."""
    size: tuple[int, int]
    """Height of characters, in pixels."""
    digits: int
    words: int


LEVELS: dict[str, Level] = {
    "easy": Level((9, 13), (3, 5), (0, 3), (0, 4), 145, (16, 18), 3, 1),
    "middle": Level((7, 8), (5, 8), (2, 5), (3, 8), 165, (14, 15), 4, 1),
    "hard": Level((5, 6), (8, 12), (5, 8), (6, 12), 185, (12, 13), 6, 2),
}

Pair = tuple[str, str]
"""Colour and shape."""
PAIRS: tuple[Pair, ...] = tuple((color, shape) for color in COLORS for shape in SHAPES)

_Boxes = list[tuple[int, int, int, int]]


def is_held_out(scene: Scene) -> bool:
    """Which side of the split a scene of this module is on."""
    return scene.seed % _SHARES == 0


def backdrop(
    rng: random.Random,
    level: Level,
    split: Split,
    items: Iterable[Item] = (),
    number: Text | None = None,
    word: Text | None = None,
) -> Scene:
    """A scene with these objects and texts over a new background."""
    lines = []
    for _ in range(rng.randint(*level.lines)):
        x0, y0, x1, y1 = (rng.randrange(SIZE) for _ in range(4))
        color = tuple(rng.randint(40, level.brightness) for _ in range(3))
        lines.append(Line(x0, y0, x1, y1, rng.randint(1, 3), (color[0], color[1], color[2])))
    seed = rng.getrandbits(44) * _SHARES + (0 if split == "held-out" else rng.randrange(1, _SHARES))
    nothing = Text("", 0, 0, 1)
    return Scene(seed, rng.randint(3, 12), tuple(lines), tuple(items), number or nothing, word or nothing)


def write(rng: random.Random, level: Level, text: str, taken: _Boxes) -> Text:
    """A text at a free place; with one or two texts there is always one."""
    size = rng.randint(*level.size)
    probe = Text(text, 0, 0, size)
    corner = place(rng, probe.box[2], probe.box[3], taken)
    while corner is None:
        corner = place(rng, probe.box[2], probe.box[3], taken)
    return Text(text, *corner, size)


def digits(rng: random.Random, level: Level) -> str:
    """A number of the level's length."""
    return "".join(rng.choices("0123456789", k=level.digits))


def put(rng: random.Random, level: Level, pairs: Iterable[Pair], taken: _Boxes) -> list[Item]:
    """Objects at free places; those that find none are left out."""
    items = []
    for color, shape in pairs:
        radius = rng.randint(*level.radius)
        corner = place(rng, 2 * radius, 2 * radius, taken)
        if corner is not None:
            items.append(Item(shape, color, corner[0] + radius, corner[1] + radius, radius))
    return items


def detail_scene(rng: random.Random, level: Level, split: Split) -> Scene:
    """Objects of a few shapes and colours, a number, and one or two long words."""
    taken: _Boxes = []
    number = write(rng, level, digits(rng, level), taken)
    word = write(rng, level, " ".join(rng.sample(LONG_WORDS, level.words)), taken)
    return backdrop(rng, level, split, put(rng, level, _some_pairs(rng, level), taken), number, word)


def count_scene(rng: random.Random, level: Level, split: Split) -> Scene:
    """Up to nine objects of a shape, of a colour or of both, among others; or up to nine of any."""
    color, shape = rng.choice(PAIRS)
    alike = rng.randint(0 if rng.random() < 0.6 else 5, 9)  # large counts are rarer by themselves
    others = rng.randint(*level.distractors)
    match rng.randrange(4):
        case 0:
            wanted = [(rng.choice(list(COLORS)), shape) for _ in range(alike)]
            rest = [pair for pair in PAIRS if pair[1] != shape]
        case 1:
            wanted = [(color, rng.choice(list(SHAPES))) for _ in range(alike)]
            rest = [pair for pair in PAIRS if pair[0] != color]
        case 2:
            wanted = [(color, shape)] * alike
            near = [pair for pair in PAIRS if (pair[0] == color) != (pair[1] == shape)]
            rest = near if rng.random() < 0.5 else [pair for pair in PAIRS if pair != (color, shape)]
        case _:
            wanted, others = [rng.choice(PAIRS) for _ in range(max(1, alike))], 0
            rest = []
    pairs = wanted + [rng.choice(rest) for _ in range(others)]
    rng.shuffle(pairs)
    return backdrop(rng, level, split, put(rng, level, pairs, []))


def ground_scene(rng: random.Random, level: Level, split: Split) -> Scene:
    """Objects that are all different, and no text."""
    pairs = rng.sample(PAIRS, rng.randint(*level.objects))
    return backdrop(rng, level, split, put(rng, level, pairs, []))


def compare_scenes(rng: random.Random, level: Level, split: Split) -> tuple[Scene, Scene]:
    """Two pictures: mostly the second has the objects of the first but for one; their numbers agree in half of them."""
    first = _numbered(rng, level, split, digits(rng, level))
    text = first.number.text
    if rng.random() < 0.5:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice([digit for digit in "0123456789" if digit != text[at]]) + text[at + 1 :]
    if rng.random() < 0.3 or not first.items:
        return first, _numbered(rng, level, split, text)
    items = list(first.items)
    old = rng.choice(items)
    pairs = {(item.color, item.shape) for item in items}
    color, shape = rng.choice([p for p in PAIRS if p not in pairs and (p[0] == old.color) != (p[1] == old.shape)])
    items[items.index(old)] = Item(shape, color, old.x, old.y, old.radius)
    number = Text(text, first.number.x, first.number.y, first.number.size)
    return first, backdrop(rng, level, split, items, number)


def _numbered(rng: random.Random, level: Level, split: Split, text: str) -> Scene:
    taken: _Boxes = []
    number = write(rng, level, text, taken)
    return backdrop(rng, level, split, put(rng, level, _some_pairs(rng, level), taken), number)


def _some_pairs(rng: random.Random, level: Level) -> list[Pair]:
    """Of a few colours and shapes, so that some occur again."""
    colors = rng.sample(list(COLORS), rng.randint(4, 8))
    shapes = rng.sample(list(SHAPES), rng.randint(4, 8))
    return [(rng.choice(colors), rng.choice(shapes)) for _ in range(rng.randint(*level.objects))]
