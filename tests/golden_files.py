"""Reading the golden files: recorded outputs of the methods' published code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vtprune.layout import grid_layout
from vtprune.pruner import Reduction

FOLDER = Path(os.environ.get("VTPRUNE_GOLDENS", Path(__file__).parent / "goldens"))
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}

Arrays = dict[str, Any]


def load(name: str) -> Arrays:
    with np.load(FOLDER / name, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def cases(arrays: Arrays) -> list[Arrays]:
    """The arrays of each case under their bare names, with those that it shares; never none."""
    numbers = sorted(
        {int(key[1:].split("_")[0]) for key in arrays if key[0] == "c" and key[1:].split("_")[0].isdigit()}
    )
    assert numbers, "the golden file holds no case"
    found = []
    for number in numbers:
        prefix = f"c{number}_"
        own = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
        letter = str(own.get("data_key", ""))
        shared = {key.removesuffix(f"_{letter}"): value for key, value in arrays.items() if key.endswith(f"_{letter}")}
        found.append({**shared, **own} if letter else own)
    return found


def one(array: Any) -> torch.Tensor:
    """A stored array as a batch of one."""
    return torch.as_tensor(array)[None]


def square(tokens: int) -> Any:
    """A layout for `tokens`, which the method under test does not look into."""
    return grid_layout(1, tokens)


def chosen(reduction: Reduction) -> list[int]:
    indices: list[int] = reduction.kept[0].tolist()
    return indices
