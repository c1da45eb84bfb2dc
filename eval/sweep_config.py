"""What a sweep is asked to do: from the command line, from a YAML file, or both."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vtprune.eval.models import EMBEDDED

DEFAULT_TASK = "vtprune_scenes"
DEFAULT_BUDGETS = ("192", "128", "64", "32")
DEFAULT_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Preset:
    """Tasks and budgets that go together.

    Args:
        what: One line for people.
        tasks: lmms-eval tasks, groups or tags.
        budgets: As for a sweep.
        limit: Questions per task, `None` for all.
    """

    what: str
    tasks: tuple[str, ...]
    budgets: tuple[str, ...] = DEFAULT_BUDGETS
    limit: int | None = None


PRESETS: dict[str, Preset] = {
    "embedded": Preset("the questions that come with the library, for the embedded model", ("vtprune_embedded",)),
    "quick": Preset(
        "lmms-eval's small versions of common benchmarks",
        (
            *("gqa_lite", "mmbench_en_dev_lite", "textvqa_val_lite", "vqav2_val_lite", "vizwiz_vqa_val_lite"),
            *("seedbench_lite", "chartqa_lite", "docvqa_val_lite", "refcoco_bbox_val_lite"),
        ),
        ("192", "64"),
    ),
    "paper": Preset(
        "the benchmarks of pruning papers, scored without a judge model",
        (
            *("gqa", "mmbench_en_dev_static", "mme", "pope", "scienceqa_img", "textvqa_val", "vqav2_val_lite"),
            *("vizwiz_vqa_val", "seedbench", "ocrbench", "refcoco_bbox_rec_val"),
        ),
        ("192", "128", "64"),
    ),
    "video": Preset("videos", ("videomme", "mvbench", "egoschema_subset", "mlvu_dev"), ("0.25", "0.1")),
}
"""Choices for `vtprune sweep --preset`."""


@dataclass(frozen=True)
class SweepConfig:
    """What the user asks for, in words; `Sweep` reads and checks it.

    Args:
        models: `"embedded"`, folders or hub ids.
        pruners: Such as `("divprune", "fastv(layer=3)", "visionzip/pyramiddrop")`; `"all"` means every registered one,
            none a selection that runs in minutes (`vtprune.eval.grid.DEFAULT_PRUNERS`).
        budgets: Such as `("64", "0.25", "average:64")`; the full model is always measured too.
        tasks: lmms-eval tasks, groups or tags.
        seeds: Methods that draw are measured with each of them, everything else with the first.
        limit: Questions per task, `None` for all.
        output: Folder of the results.
        batch_size: Questions answered together.
        device: Such as `"cuda:0"`; by default the accelerator, if there is one.
        dtype: Number type of the weights, `"auto"` for that of the checkpoint.
        positions: `"keep"`, `"pack"` or `None` for each method's own default.
        include: Folders with further lmms-eval task files.
        text_tower: CLIP text tower for methods that need one; by default the one that fits the model.
        baselines: Measure `vtprune.eval.grid.BASELINES` too, at every budget and at every true average of visual
            tokens that another method came to.
        prefill_repeats: Timed runs of a batch after each cell, for its time to the first token; 0 for none.
    """

    models: tuple[str, ...] = (EMBEDDED,)
    pruners: tuple[str, ...] = ()
    budgets: tuple[str, ...] = DEFAULT_BUDGETS
    tasks: tuple[str, ...] = (DEFAULT_TASK,)
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    limit: int | None = None
    output: Path = Path("results/sweep")
    batch_size: int = 32
    device: str | None = None
    dtype: str = "auto"
    positions: str | None = None
    include: tuple[Path, ...] = ()
    text_tower: str | None = None
    baselines: bool = True
    prefill_repeats: int = 3

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("batch_size", 1), ("prefill_repeats", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("models", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")


def read_grid(path: Path) -> dict[str, Any]:
    """Reads a YAML grid: the fields of `SweepConfig` under their names, and `preset`.

    A list stands for several, a single value for one. A method with hyper-parameters is `fastv(layer=3)` or a mapping
    `{name: fastv, layer: [2, 3]}`, where each list stands for alternatives (a value that is itself a list goes into
    another list). Relative folders are those beside the file.

    Raises:
        ValueError: The file is no such mapping; the message names the key.
        OSError: It cannot be read.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a mapping such as 'pruners: [divprune, fastv]', got {type(data).__name__}")
    known = {field.name for field in dataclasses.fields(SweepConfig)}
    found: dict[str, Any] = {}
    for key, value in data.items():
        if key == "preset":
            found[key] = value
        elif key not in known:
            raise ValueError(f"{path} has the unknown key {key!r}; known are preset, {', '.join(sorted(known))}")
        elif key == "pruners":
            found[key] = tuple(name for entry in _several(value) for name in _pruner_words(path, entry))
        elif key == "include":
            found[key] = tuple(path.parent / str(folder) for folder in _several(value))
        elif key == "output":
            found[key] = Path(str(value))
        elif key == "seeds":
            found[key] = tuple(_whole(path, key, entry) for entry in _several(value))
        elif key in ("models", "budgets", "tasks"):
            found[key] = tuple(map(str, _several(value)))
        elif key in ("limit", "batch_size", "prefill_repeats"):
            found[key] = None if value is None else _whole(path, key, value)
        else:
            found[key] = value
    return found


def make_config(preset: str | None, grid: Mapping[str, Any], given: Mapping[str, Any]) -> SweepConfig:
    """Puts a preset, a grid file and the command line together; the latter ones win.

    Args:
        preset: A key of `PRESETS`, or that of the grid file, or none.
        grid: What `read_grid` found.
        given: Fields of `SweepConfig`; `None` and empty ones were not given.

    Raises:
        ValueError: Unknown preset, or a number out of range.
    """
    fields = {name: value for name, value in grid.items() if name != "preset"}
    name = preset or grid.get("preset")
    if name is not None:
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        found = PRESETS[name]
        fields = {"tasks": found.tasks, "budgets": found.budgets, "limit": found.limit, **fields}
    fields |= {key: value for key, value in given.items() if value not in (None, (), [])}
    return SweepConfig(**fields)


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _whole(path: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} in {path} must be a whole number, got {value!r}")
    return value


def _pruner_words(path: Path, entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f"pruners in {path} must be names or mappings with a name, got {entry!r}")
    options = {key: _several(value) for key, value in entry.items() if key != "name"}
    words = []
    for values in itertools.product(*options.values()):
        arguments = ", ".join(f"{key}={value!r}" for key, value in zip(options, values, strict=True))
        words.append(f"{entry['name']}({arguments})")
    return words
