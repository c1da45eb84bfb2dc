"""A grid of methods, budgets and batch sizes, timed on one model: row by row, kept on disk, resumed at will."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import vtprune
from vtprune.budget import Budget
from vtprune.eval.compare import chat_inputs
from vtprune.eval.grid import budget_data, method_label, parse_budgets, parse_positions, parse_pruners, split_words
from vtprune.eval.models import EMBEDDED, LoadedModel, check_device, check_dtype, fingerprint, load
from vtprune.eval.pictures import open_picture
from vtprune.eval.profiling import Prompt, Settings, measure_curve, measure_row
from vtprune.eval.random_models import (
    ARCHITECTURES,
    check_name,
    random_model,
    random_prompts,
    random_text_tower,
    word_tokenizer,
)
from vtprune.eval.store import DONE, FAILED, Record, write_atomically
from vtprune.pruner import Pruner, Signal

DEFAULT_PRUNERS = ("divprune", "visionzip", "fastv")
DEFAULT_BUDGETS = ("64",)
DEFAULT_BATCHES = ("1", "8")

ROW, CURVE = "row", "curve"

_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Parts of the picture's tokens at which the unwrapped model is timed, to find the break-even."""
_PICTURE = (672, 672)


@dataclass(frozen=True)
class ProfileConfig:
    """What the user asks for, in words; `Profile` reads and checks it.

    Args:
        model: `"embedded"`, a folder or a hub id.
        config: One of `vtprune.eval.random_models.ARCHITECTURES`, with random weights, instead of a model.
        layers: Decoder layers of that, instead of all.
        pruners: As in a sweep.
        budgets: As in a sweep.
        batches: Prompts that are run together, one picture each.
        text_tokens: Tokens of a prompt beside the visual ones, as near as the model's template allows.
        image: Picture; by default the embedded model gets a drawn scene and others a square one.
        device: Such as `"cuda:0"`; by default the accelerator, if there is one.
        dtype: Number type of the weights; `"auto"` is that of the checkpoint, of random weights bfloat16 on an
            accelerator and float32 without.
        attention: Implementation of transformers; its default if `None`.
        positions: `"keep"`, `"pack"` or `None` for each method's own default.
        graph: Whether to measure with CUDA graphs too.
        static: Whether to decode on static caches.
        decode_tokens: Tokens to decode in each round; 0 for none.
        repeats: Timed rounds.
        warmup: Rounds before them.
        seed: Of methods that draw, and of random weights.
        text_tower: CLIP text tower for methods that need one; by default the one that fits the model.
        output: Folder of the results; the same one resumes.
    """

    model: str = EMBEDDED
    config: str | None = None
    layers: int | None = None
    pruners: tuple[str, ...] = DEFAULT_PRUNERS
    budgets: tuple[str, ...] = DEFAULT_BUDGETS
    batches: tuple[str, ...] = DEFAULT_BATCHES
    text_tokens: int = 60
    image: Path | None = None
    device: str | None = None
    dtype: str = "auto"
    attention: str | None = None
    positions: str | None = None
    graph: bool = False
    static: bool = False
    decode_tokens: int = 8
    repeats: int = 20
    warmup: int = 3
    seed: int = 0
    text_tower: str | None = None
    output: Path | None = None


@dataclass
class Found:
    """What a profile came to.

    Args:
        machine: Where it was measured, and with what.
        rows: A record for each method, budget and batch size that was measured or failed.
        curves: A record for each batch size: the unwrapped language model's time by visual tokens.
        reused: Keys of records that an earlier run had finished.
    """

    machine: Record
    rows: list[Record] = field(default_factory=list)
    curves: list[Record] = field(default_factory=list)
    reused: set[str] = field(default_factory=set)

    @property
    def failed(self) -> list[Record]:
        """The records of what could not be measured."""
        return [record for record in (*self.rows, *self.curves) if record["status"] == FAILED]

    def curve(self, batch: int, mode: str) -> dict[int, float]:
        """Medians in milliseconds by visual tokens; empty where they were not measured."""
        for record in self.curves:
            if record["batch"] == batch and record["status"] == DONE:
                times = record["prefill"].get(mode, {})
                return {int(tokens): timing["median"] for tokens, timing in times.items()}
        return {}


class ProfileStore:
    """The results of a profile in a folder: `profile.jsonl`, one line a record, the newest of each key.

    Args:
        folder: The folder, made if there is none; without one nothing is kept.

    Raises:
        OSError: It cannot be made or written.
        ValueError: The results in it cannot be read.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / "profile.jsonl"
        self._records: dict[str, Record] = {}
        if folder is None or self.path is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                self._records[record["key"]] = record
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"line {number} of {self.path} is no result of a profile; remove the line or choose another folder"
                ) from error

    def finished(self, key: str) -> Record | None:
        """The record of what ran to its end, else `None`."""
        record = self._records.get(key)
        return record if record is not None and record["status"] == DONE else None

    def add(self, record: Record) -> Record:
        """Keeps a record and returns it as it will be read: plain data."""
        plain: Record = json.loads(json.dumps(record, default=str))
        self._records[plain["key"]] = plain
        if self.path is not None:
            lines = (json.dumps(known, ensure_ascii=False) + "\n" for known in self._records.values())
            write_atomically(self.path, "".join(lines).encode())
        return plain


@dataclass(frozen=True)
class Cell:
    """One row to be: a method at a budget and a batch size."""

    method: Pruner
    budget: Budget
    batch: int


class Profile:
    """A checked grid, ready to run.

    Args:
        config: What is asked for.
        console: Where progress is shown.

    Raises:
        ValueError: An unknown pruner, model, config or device, or a number out of range.
        TypeError: A hyper-parameter that a method does not have.
        OSError: The output folder cannot be written.
    """

    def __init__(self, config: ProfileConfig, *, console: Console | None = None) -> None:
        self.config = config
        self.console = console or Console(stderr=True)
        least = {"text_tokens": 2, "decode_tokens": 0, "repeats": 1, "warmup": 0, "layers": 1}
        for name, lowest in least.items():
            value = getattr(config, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        self.batches = [_batch(word) for word in split_words(config.batches)]
        methods = parse_pruners(config.pruners, seed=config.seed)
        budgets = parse_budgets(config.budgets)
        if not self.batches or not budgets:
            raise ValueError(f"name at least one {'budget' if self.batches else 'batch size'}")
        check_dtype(config.dtype)
        self.device = check_device(config.device)
        if config.graph and self.device.type != "cuda":
            raise ValueError(f"graph needs a CUDA device, and the model would run on {self.device}; leave --graph out")
        if config.config is not None:
            check_name(config.config)
            if config.model != EMBEDDED:
                raise ValueError(f"give either a model ({config.model!r}) or a config ({config.config!r}), not both")
        elif config.layers is not None:
            raise ValueError("layers shortens a model with random weights; name one with --config, or leave it out")
        self._picture = None if config.image is None else open_picture(config.image)
        self._weights = "random" if config.config is not None else fingerprint(config.model)
        self.settings = Settings(
            repeats=config.repeats,
            warmup=config.warmup,
            decode_tokens=config.decode_tokens,
            graph=config.graph,
            static=config.static,
            positions=parse_positions(config.positions),
        )
        self.cells = [Cell(method, budget, batch) for batch in self.batches for method in methods for budget in budgets]
        self.store = ProfileStore(config.output)
        self.found = Found(machine(self.device))
        self._loaded: LoadedModel | None = None

    @property
    def name(self) -> str:
        """The model as people call it."""
        if self.config.config is None:
            return Path(self.config.model).name
        layers = "" if self.config.layers is None else f", {self.config.layers} layers"
        return f"{self.config.config} (random weights{layers})"

    @property
    def _everything(self) -> list[tuple[Cell | int, str]]:
        """What is to be measured in its order, cells and curves by their batch size, with their keys."""
        wanted: list[tuple[Cell | int, str]] = []
        for batch in self.batches:
            wanted.append((batch, self._key(batch)))
            wanted += [(cell, self._key(cell)) for cell in self.cells if cell.batch == batch]
        return wanted

    def prepare(self) -> None:
        """Loads the model, if there is anything to measure.

        Raises:
            ModelError: The model cannot be loaded.
        """
        if all(self.store.finished(key) is not None for _, key in self._everything):
            return
        config = self.config
        with self.console.status(f"loading {escape(self.name)}"):
            if config.config is None:
                self._loaded = load(
                    config.model,
                    device=str(self.device),
                    dtype=config.dtype,
                    attn_implementation=config.attention,
                    text_tower=config.text_tower,
                )
                return
            torch.manual_seed(config.seed)
            automatic = torch.float32 if self.device.type == "cpu" else torch.bfloat16
            dtype = automatic if config.dtype == "auto" else getattr(torch, config.dtype)
            model = random_model(config.config, self.device, dtype, attention=config.attention, layers=config.layers)
            self._loaded = LoadedModel(config.config, model, word_tokenizer(), config.text_tower)

    def run(self) -> Found:
        """Measures what no earlier run finished; a row that fails is recorded and the rest goes on.

        Raises:
            KeyboardInterrupt: The user stopped it; `found` has what was finished.
            OSError: The results cannot be written, such as on a full disk.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        prompts: dict[int, Prompt] = {}
        rounds = self.settings.warmup + self.settings.repeats
        with Progress(*columns, console=self.console, speed_estimate_period=900) as progress:
            wanted = self._everything
            bar = progress.add_task("", total=rounds * len(wanted))
            for number, (what, key) in enumerate(wanted, start=1):
                batch = what if isinstance(what, int) else what.batch
                label = "unpruned" if isinstance(what, int) else f"{method_label(what.method)}, {what.budget}"
                progress.update(bar, description=escape(f"{number}/{len(wanted)} batch {batch}: {label}"))
                record = self.store.finished(key)
                if record is not None:
                    self.found.reused.add(key)
                else:
                    for other in [known for known in prompts if known != batch]:
                        del prompts[other]
                    record = self.store.add(self._measure(what, key, prompts, lambda: progress.advance(bar)))
                    if record["status"] == FAILED:
                        reason = escape(record["error"])
                        progress.console.print(f"[red]failed[/] {escape(label)}, batch {batch}: {reason}")
                (self.found.curves if isinstance(what, int) else self.found.rows).append(record)
                progress.update(bar, completed=rounds * number)
        return self.found

    def _measure(self, what: Cell | int, key: str, prompts: dict[int, Prompt], advance: Callable[[], object]) -> Record:
        batch = what if isinstance(what, int) else what.batch
        record = {"key": key, "status": DONE, **self._definition(what), "machine": self.found.machine}
        try:
            if batch not in prompts:
                prompts[batch] = self._prompt(batch)
            prompt = prompts[batch]
            if isinstance(what, int):
                counts = sorted({max(1, round(part * prompt.visual_tokens)) for part in _FRACTIONS})
                curve = measure_curve(prompt, counts, advance)
                times = {
                    mode: {str(count): asdict(timing) for count, timing in found.items()}
                    for mode, found in curve.items()
                }
                record |= {"prefill": times, "text_tokens": prompt.text_tokens}
            else:
                record |= asdict(measure_row(self._with_question(prompt, what), what.method, what.budget, advance))
        except Exception as error:
            short = isinstance(error, torch.OutOfMemoryError)
            message = " ".join(str(error).split())
            record |= {"status": FAILED, "error": "out of memory" if short else f"{type(error).__name__}: {message}"}
            if short:
                prompts.clear()
        if self.device.type == "cuda":
            # Recordings hold on to each other and to memory until they are collected.
            gc.collect()
            torch.cuda.empty_cache()
        return record | {"time": now()}

    def _prompt(self, batch: int) -> Prompt:
        assert self._loaded is not None
        model = self._loaded.model
        if self.config.config is None:
            inputs = self._chat_inputs
            repeated = {
                name: value.repeat(batch, *[1] * (value.dim() - 1))
                for name, value in inputs.items()
                # Prompts of one length need no mask, and none is what costs nothing.
                if isinstance(value, torch.Tensor) and name != "attention_mask"
            }
            return Prompt(model, repeated, self.settings)
        pixels = ARCHITECTURES[self.config.config].pixels(batch, self.device, model.dtype)
        return Prompt(model, random_prompts(model, batch, self.config.text_tokens, pixels), self.settings)

    def _with_question(self, prompt: Prompt, cell: Cell) -> Prompt:
        """The prompt with what methods need that compare patches with the question."""
        prompt.wrapping = {}
        if Signal.CLIP_TEXT in cell.method.signals:
            assert self._loaded is not None
            prompt.wrapping = {"processor": self._loaded.processor, "text_tower": self._tower}
        return prompt

    @cached_property
    def _tower(self) -> Any:
        assert self._loaded is not None
        if self.config.config is None or self.config.text_tower is not None:
            return self.config.text_tower
        return random_text_tower(self._loaded.model)

    @cached_property
    def _chat_inputs(self) -> Any:
        """One prompt of the model's own template, with about as many text tokens as asked for."""
        assert self._loaded is not None
        picture = self._picture or _picture(self.config)
        bare = chat_inputs(self._loaded, picture, "what")
        token = getattr(self._loaded.model.config, "image_token_id", None)
        text = int((bare["input_ids"] != token).sum())
        words = " ".join(["what"] * max(1, self.config.text_tokens - text + 1))
        return chat_inputs(self._loaded, picture, words)

    def _definition(self, what: Cell | int) -> Record:
        """All that decides the outcome, and what people call it."""
        config = self.config
        common = {
            "model": self.name,
            "fingerprint": self._weights,
            "batch": what if isinstance(what, int) else what.batch,
            "asked_text_tokens": config.text_tokens,
            "image": None if config.image is None else str(config.image),
            "dtype": config.dtype,
            "attention": config.attention,
            "settings": asdict(self.settings),
        }
        if isinstance(what, int):
            return {"kind": CURVE, **common}
        return {
            "kind": ROW,
            **common,
            "pruner": what.method.name,
            "label": method_label(what.method),
            "options": what.method.config(),
            "budget": budget_data(what.budget),
            "budget_meaning": str(what.budget),
        }

    def _key(self, what: Cell | int) -> str:
        place = {name: value for name, value in self.found.machine.items() if name not in ("command", "time")}
        text = json.dumps([self._definition(what), place], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def machine(device: torch.device) -> Record:
    """Where something is measured, and with what."""
    found: Record = {
        "device": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "vtprune": vtprune.__version__,
    }
    if device.type == "cuda":
        found |= {"device": torch.cuda.get_device_name(device), "host": found["device"], "cuda": torch.version.cuda}
        with contextlib.suppress(OSError):
            words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
            found["driver"] = next(word for word in words if word[0].isdigit() and "." in word)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {**found, "command": command, "time": now()}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _batch(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise ValueError(f"a batch size must be an integer of at least 1, got {word!r}")
    return int(word)


def _picture(config: ProfileConfig) -> Image.Image:
    if config.model == EMBEDDED:
        from vtprune.eval.embedded import load_questions
        from vtprune.eval.embedded.scenes import render

        return render(load_questions()[0].scene)
    return Image.radial_gradient("L").convert("RGB").resize(_PICTURE)
