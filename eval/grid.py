"""What a sweep runs: its cells, read from the words of a command line, and the key each one is remembered by."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vtprune.budget import Budget
from vtprune.chain import Chain
from vtprune.pruner import Pruner
from vtprune.registry import make_pruner, pruner_class, pruner_classes

FULL = "full"
"""Name of the row of the model with all its tokens."""

EVERYTHING = Budget(ratio=1.0)

Positions = Literal["keep", "pack"]

BASELINES = ("random", "stride", "pool", "downsample")
"""What every table shows first: methods that a pruner must beat to be worth its trouble."""

DEFAULT_PRUNERS = (
    *BASELINES,
    "m3",
    *("divprune", "visionzip", "cdpruner", "flashvlm", "fastv", "sparsevlm", "pyramiddrop"),
)
"""What a sweep measures unless told otherwise: baselines, and the methods that papers compare with most."""

_CALL = re.compile(r"(?P<name>[\w.+-]+)\s*(?:\((?P<arguments>.*)\))?")
_OUTER_COMMA = re.compile(r",(?![^()]*\))")
_OUTER_SLASH = re.compile(r"/(?![^()]*\))")


@dataclass(frozen=True)
class Cell:
    """One measurement: a model under one method and budget on one task.

    Args:
        model: Name of the model as the user gave it.
        fingerprint: What tells these weights from others of that name.
        method: The pruner, or `None` for the model with all its tokens.
        budget: Tokens that may stay.
        positions: `"keep"`, `"pack"` or `None` for the method's own default.
        task: Name of the lmms-eval task.
        task_digest: Changes when the task's own files do.
        limit: Questions asked, `None` for all.
        seed: Of sampling and of methods that draw.
        dtype: Number type of the weights.
    """

    model: str
    fingerprint: str
    method: Pruner | None
    budget: Budget
    positions: Positions | None
    task: str
    task_digest: str
    limit: int | None
    seed: int
    dtype: str

    @property
    def pruner(self) -> str:
        """Name of the method."""
        return FULL if self.method is None else self.method.name

    @property
    def options(self) -> dict[str, Any]:
        """Hyper-parameters of the method."""
        return {} if self.method is None else self.method.config()

    @property
    def label(self) -> str:
        """The method with those hyper-parameters that are not its defaults, as in `fastv(layer=3)`."""
        return FULL if self.method is None else method_label(self.method)

    def definition(self) -> dict[str, Any]:
        """All that decides the outcome, as plain data."""
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "pruner": self.pruner,
            "options": self.options,
            "budget": budget_data(self.budget),
            "positions": self.positions,
            "task": self.task,
            "task_digest": self.task_digest,
            "limit": self.limit,
            "seed": self.seed,
            "dtype": self.dtype,
        }

    @property
    def key(self) -> str:
        """Names the cell in result files; two cells with one key would give one result."""
        text = json.dumps(self.definition(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def method_label(method: Pruner) -> str:
    """A method's name with the hyper-parameters that differ from its defaults; the seed is not shown.

    Example:
        >>> method_label(make_pruner("fastv", layer=3))
        'fastv(layer=3)'
    """
    if isinstance(method, Chain):
        names = "/".join(method_label(pruner) for pruner in method.pruners)
        return names if method.shares is None else f"{names} shares={method.shares}"
    changed = []
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default and field.name != "seed":
            changed.append(f"{field.name}={value!r}")
    return f"{method.name}({', '.join(changed)})" if changed else method.name


def budget_data(budget: Budget) -> dict[str, Any]:
    """The fields of a budget that are set."""
    return {name: value for name, value in dataclasses.asdict(budget).items() if value is not None}


def split_words(words: Iterable[str]) -> list[str]:
    """Splits at commas outside parentheses and drops what is empty or said twice.

    Example:
        >>> split_words(["random,fastv(layer=3,x=1)", "random"])
        ['random', 'fastv(layer=3,x=1)']
    """
    parts = (part.strip() for word in words for part in _OUTER_COMMA.split(word))
    return list(dict.fromkeys(part for part in parts if part))


def draws(method: Pruner) -> bool:
    """Whether a method takes a seed: one result of it says little.

    Example:
        >>> draws(make_pruner("random")), draws(make_pruner("divprune"))
        (True, False)
    """
    return any(field.name == "seed" for field in dataclasses.fields(method))


def with_seed(method: Pruner, seed: int) -> Pruner:
    """The same method drawing otherwise."""
    return make_pruner(method.name, **{**method.config(), "seed": seed})


def parse_pruner(text: str, *, seed: int = 0) -> Pruner:
    """Reads `name` or `name(option=value, ...)`, several joined by `/` for a chain.

    Methods that draw get the seed unless the text names one.

    Raises:
        ValueError: Unknown name, a text that cannot be read, or a hyper-parameter out of range.
        TypeError: A hyper-parameter that the method does not have.

    Example:
        >>> parse_pruner("fastv(layer=3)").layers
        (3,)
    """
    if len(parts := _OUTER_SLASH.split(text)) > 1:
        return make_pruner([parse_pruner(part, seed=seed) for part in parts])
    match = _CALL.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no pruner; write its name or name(option=value), such as fastv(layer=3)")
    name, arguments = match["name"], match["arguments"] or ""
    options: dict[str, Any] = {}
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        assert isinstance(call, ast.Call)
        for keyword in call.keywords:
            if keyword.arg is None:
                raise ValueError(arguments)
            options[keyword.arg] = ast.literal_eval(keyword.value)
        if call.args:
            raise ValueError(arguments)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"cannot read the options in {text!r}; write name(option=value), values as in Python"
        ) from error
    if "seed" in {field.name for field in dataclasses.fields(pruner_class(name))}:
        options.setdefault("seed", seed)
    return make_pruner(name, **options)


def parse_pruners(words: Sequence[str], *, seed: int = 0) -> list[Pruner]:
    """Reads the methods of a sweep; `all` means all registered ones, none means `DEFAULT_PRUNERS`."""
    named = split_words(words) or list(DEFAULT_PRUNERS)
    every = [known for word in named for known in (pruner_classes() if word == "all" else (word,))]
    return [parse_pruner(word, seed=seed) for word in dict.fromkeys(every)]


def parse_budgets(words: Sequence[str]) -> list[Budget]:
    """Reads the budgets of a sweep; the full model, which is always measured, may be named too."""
    return [Budget.parse(word) for word in split_words(words) if word != FULL]


def parse_positions(text: str | None) -> Positions | None:
    """Checks a position policy; `None` is each method's own default."""
    known: dict[str | None, Positions | None] = {None: None, "keep": "keep", "pack": "pack"}
    if text not in known:
        raise ValueError(f"positions must be keep or pack, got {text!r}")
    return known[text]
