"""GlobalCom2's selection: a ratio for each crop from the thumbnail, read patch by patch, and a canvas of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import interpolate, normalize


@dataclass(frozen=True)
class Outcome:
    """What is kept of the thumbnail and of each crop, and the visual sequence.

    Args:
        thumbnail: Patches of the thumbnail, best first.
        ratios: Share that each crop keeps.
        crops: For each crop the kept numbers among its patches without padding, best first.
        sequence: `(length, dim)`; newlines close the rows of the canvas.
    """

    thumbnail: torch.Tensor
    ratios: list[float]
    crops: list[torch.Tensor]
    sequence: torch.Tensor


def globalcom2(
    features: torch.Tensor,
    scores: torch.Tensor,
    newline: torch.Tensor,
    grid: tuple[int, int],
    picture: tuple[int, int],
    ratio: float,
) -> Outcome:
    """Compresses the thumbnail and the crops of one picture.

    Args:
        features: Projected features, thumbnail first, `(1 + crops, side * side, dim)`.
        scores: Logits of CLS on average over heads, `(1 + crops, side * side)`.
        newline: `(dim,)`.
        grid: Crops across and down.
        picture: Width and height.
        ratio: Share of the tokens of a view to keep.
    """
    across, down = grid
    side = round(scores.shape[1] ** 0.5)
    thumbnail = scores[0].topk(int(scores.shape[1] * ratio)).indices
    ratios = _crop_ratios(scores[0], side, grid, ratio)
    valid = _valid_area(side, grid, picture)
    inside = [
        torch.tensor(_inside(valid, side, crop % across, crop // across), device=scores.device)
        for crop in range(across * down)
    ]
    seen = _seen(scores[0], side, valid, grid)
    picks = []
    for crop, patches in enumerate(inside):
        own = scores[1 + crop, patches]
        overall = seen[crop].flatten()
        holistic = normalize(own, dim=0) + normalize(overall, dim=0)
        picks.append(holistic.topk(int(len(patches) * ratios[crop])).indices)
    kept = [
        features[1 + crop, patches[pick]].half() for crop, (patches, pick) in enumerate(zip(inside, picks, strict=True))
    ]
    canvas: list[list[torch.Tensor | None]] = [[None] * (across * side) for _ in range(down * side)]
    for crop, pick in enumerate(picks):
        top, start = crop // across * side, crop % across * side
        # A number among the patches without padding stands for a place in the whole crop, as published.
        for number, place in enumerate(pick.tolist()):
            canvas[top + place // side][start + place % side] = kept[crop][number]
    rows = []
    for row in canvas:
        rows += [token for token in row if token is not None]
        rows.append(newline.half())
    sequence = torch.cat([features[0, thumbnail], torch.stack(rows).to(features.dtype)])
    return Outcome(thumbnail, ratios, picks, sequence)


def _crop_ratios(scores: torch.Tensor, side: int, grid: tuple[int, int], ratio: float) -> list[float]:
    across, down = grid
    sums = [0.0] * (across * down)
    for row in range(side):
        for column in range(side):
            crop_row = min(row // max(side // down, 1), down - 1)
            crop_column = min(column // max(side // across, 1), across - 1)
            sums[crop_row * across + crop_column] += scores[row * side + column].item()
    hot = torch.tensor(sums, dtype=torch.float64) / 10
    share = (hot - hot.max()).exp()
    share = share / (share.sum() + 1e-8)
    return [min(1.0, ratio * (1 + float(part - share.mean()))) for part in share]


def _valid_area(side: int, grid: tuple[int, int], picture: tuple[int, int]) -> tuple[int, int, int, int]:
    """Rows and columns of the canvas that show the picture: top, bottom, left, right."""
    width, height = grid[0] * side, grid[1] * side
    if picture[0] / picture[1] > width / height:
        pad = (height - int(picture[1] * width / picture[0])) // 2
        return pad, height - pad, 0, width
    pad = (width - int(picture[0] * height / picture[1])) // 2
    return 0, height, pad, width - pad


def _inside(valid: tuple[int, int, int, int], side: int, column: int, row: int) -> list[int]:
    """Patches of a crop that show the picture, in raster order."""
    top, bottom, left, right = valid
    return [
        y * side + x
        for y in range(side)
        for x in range(side)
        if top <= row * side + y < bottom and left <= column * side + x < right
    ]


def _seen(
    scores: torch.Tensor, side: int, valid: tuple[int, int, int, int], grid: tuple[int, int]
) -> list[torch.Tensor]:
    """What the thumbnail scores where each crop shows the picture."""
    top, bottom, left, right = valid
    size = (bottom - top, right - left)
    whole = interpolate(scores.view(1, 1, side, side).float(), size=size, mode="bilinear", align_corners=False)[0, 0]
    found = []
    for crop in range(grid[0] * grid[1]):
        rows = [max(crop // grid[0] * side, top) - top, min((crop // grid[0] + 1) * side, bottom) - top]
        columns = [max(crop % grid[0] * side, left) - left, min((crop % grid[0] + 1) * side, right) - left]
        found.append(whole[rows[0] : rows[1], columns[0] : columns[1]])
    return found
