"""Which placeholders of a batch belong to which image or video, in prompt order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from vtprune.engine.vision import VisionRecord
from vtprune.layout import ImageLayout, join_layouts


@dataclass
class Images:
    """The images and videos of a pass, in prompt order.

    Args:
        rows: Row of the batch of each.
        layouts: Layout of each.
        records: The run of the vision tower that each was seen in.
        entries: The entries of that record which it is made of.
    """

    rows: list[int] = field(default_factory=list)
    layouts: list[ImageLayout] = field(default_factory=list)
    records: list[VisionRecord] = field(default_factory=list)
    entries: list[range] = field(default_factory=list)

    def add(self, row: int, record: VisionRecord, entries: range) -> None:
        """Appends one."""
        self.rows.append(row)
        self.records.append(record)
        self.entries.append(entries)
        self.layouts.append(join_layouts(tuple(record.layouts[entry] for entry in entries)))


def assign_images(
    visual: torch.Tensor,
    records: Sequence[VisionRecord],
    ids: torch.Tensor | None,
    tokens: Mapping[str, int],
    promised: int | None,
) -> Images:
    """Finds the images of each row. The device is asked only where the host cannot know.

    Beam search repeats prompts after the tower has run; each repetition refers to the same entries of the record.

    Args:
        visual: Placeholders of the records, `(batch, length)`.
        records: Runs of the vision tower of this pass, one for each kind of input.
        ids: Token ids, `(batch, length)`, where the prompt came with them.
        tokens: Placeholder of each kind.
        promised: Images in every row, if that is promised.

    Raises:
        ValueError: The placeholders are not those of whole images, or ids are missing that are needed.
    """
    batch = visual.shape[0]
    found = Images()
    if len(records) == 1:
        (record,) = records
        count = len(record.layouts)
        each = record.borders == "feature"
        if each and batch == 1:
            for entry in range(count):
                found.add(0, record, range(entry, entry + 1))
            return found
        if each and promised is not None:
            if batch * promised % count:
                raise ValueError(
                    f"images_per_prompt={promised} was promised, but {count} images came for {batch} prompts"
                )
            copies = batch * promised // count
            for row in range(batch):
                first = row // copies * promised
                for entry in range(first, first + promised):
                    found.add(row, record, range(entry, entry + 1))
            return found
        if batch == 1 and promised == 1:
            found.add(0, record, range(count))
            return found
    if ids is None and (len(records) > 1 or records[0].borders not in ("feature", "run")):
        raise ValueError(
            "pass input_ids, not inputs_embeds alone: the marks between the views of an image, or between images and "
            "videos, tell which placeholders belong together"
        )
    if len({tokens[record.kind] for record in records}) < len(records):
        raise ValueError(
            "images and videos of this model fill the same placeholder token, so that a prompt with both does not tell "
            "which is which; put them into separate prompts"
        )
    lines = (visual if ids is None else ids).tolist()
    marks = visual.tolist()
    total = sum(layout.tokens for record in records for layout in record.layouts)
    copies = max(1, sum(map(sum, marks)) // total)
    pointers = [0] * len(records)
    for first in range(0, batch, copies):
        pieces = _pieces(first, lines[first], marks[first], records, tokens, pointers)
        for row in range(first, min(first + copies, batch)):
            for record, entries in _joined(pieces, lines[first]):
                found.add(row, record, entries)
    return found


@dataclass
class _Piece:
    """One entry of a record in a row, with the columns of its first and last placeholder."""

    record: VisionRecord
    entry: int
    first: int
    last: int


def _pieces(
    row: int,
    line: Sequence[int],
    marks: Sequence[bool],
    records: Sequence[VisionRecord],
    tokens: Mapping[str, int],
    pointers: list[int],
) -> list[_Piece]:
    """Walks through a row and deals its placeholders out to the entries of the records, in their order."""
    pieces: list[_Piece] = []
    columns = [column for column, mark in enumerate(marks) if mark]
    kinds = {tokens[record.kind]: number for number, record in enumerate(records)}
    start = 0
    while start < len(columns):
        number = 0 if len(records) == 1 else kinds[line[columns[start]]]
        record = records[number]
        entry = pointers[number]
        end = start + record.layouts[entry].tokens if entry < len(record.layouts) else len(columns) + 1
        if end > len(columns):
            raise ValueError(
                f"the {len(columns)} placeholder tokens of prompt {row} are not those of whole images; "
                "pass the prompts and images as the processor returned them"
            )
        pieces.append(_Piece(record, entry, columns[start], columns[end - 1]))
        pointers[number] += 1
        start = end
    return pieces


def _joined(pieces: Sequence[_Piece], line: Sequence[int]) -> list[tuple[VisionRecord, range]]:
    """The entries of each image of a row, in the order in which the images begin."""
    found: list[tuple[int, VisionRecord, range]] = []
    for record in {id(piece.record): piece.record for piece in pieces}.values():
        own = [piece for piece in pieces if piece.record is record]
        borders = record.borders
        if callable(borders):
            counts = list(borders(line, [(piece.first, piece.last) for piece in own]))
        else:
            counts = _counts(own, line, borders)
        start = 0
        for count in counts:
            first = own[start]
            found.append((first.first, record, range(first.entry, first.entry + count)))
            start += count
    return [(record, entries) for _, record, entries in sorted(found, key=lambda image: image[0])]


def _counts(pieces: Sequence[_Piece], line: Sequence[int], borders: str) -> list[int]:
    """How many entries each image of a row has, by a word for what lies between images."""
    before = [_token_beside(line, piece.first, -1) for piece in pieces]
    after = [_token_beside(line, piece.last, 1) for piece in pieces]
    counts = [1]
    for number in range(1, len(pieces)):
        starts = {
            "feature": True,
            "run": pieces[number].first != pieces[number - 1].last + 1,
            "first": before[number] == before[0],
            "before": before[number - 1] == before[-1],
            "after": after[number - 1] == after[-1],
        }[borders]
        if starts:
            counts.append(1)
        else:
            counts[-1] += 1
    return counts


def _token_beside(line: Sequence[int], column: int, step: int) -> int | None:
    beside = column + step
    return line[beside] if 0 <= beside < len(line) else None
