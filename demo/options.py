"""Form fields for a method's hyper-parameters, read from its dataclass, and the way back from what was typed."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vtprune.chain import Chain
from vtprune.eval.grid import method_label, parse_pruner
from vtprune.method_docs import option_text
from vtprune.pruner import Pruner
from vtprune.registry import make_pruner, pruner_class

Kind = Literal["flag", "integer", "number", "choice", "text"]

Options = Mapping[str, Mapping[str, Any]]
"""For each method those hyper-parameters that were changed."""

_HALF_OPEN = re.compile(r"in (?P<open>[\[(])(?P<low>[\d.]+), (?P<high>[\d.]+)(?P<close>[\])])")
_AT_LEAST = re.compile(
    r"at least (?P<first>[\d.]+)|(?P<second>[\d.]+) or (?:more|above)|from (?P<third>[\d.]+)(?=;)", re.IGNORECASE
)
_ABOVE = re.compile(r"above (?P<low>[\d.]+)")
_CHOICES = re.compile(r'`"(\w+)"`')


class OptionError(ValueError):
    """A hyper-parameter that cannot be; the message says which, and what can be."""


@dataclass(frozen=True)
class Field:
    """A hyper-parameter as a form shows it.

    Args:
        name: Its name.
        kind: What a visitor enters.
        default: Its value unless changed.
        help: What the method's docstring says of it.
        low: Smallest value, if the docstring tells.
        high: Largest value, if the docstring tells.
        open_low: Whether `low` itself is excluded.
        open_high: Whether `high` itself is excluded.
        optional: Whether it may be left empty, for `None`.
        choices: Of a choice.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The allowed values in words; empty where any will do."""
        if self.kind == "choice":
            return " or ".join(self.choices)
        if self.low is None:
            return ""
        if self.high is None:
            return f"above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"

    def read(self, value: Any) -> Any:
        """The value of the hyper-parameter that a form's value stands for.

        Raises:
            OptionError: It cannot stand for one.
        """
        if isinstance(value, str):
            value = value.strip()
        if value is None or value in ("", "None"):
            if self.optional or value == self.default:
                return None
            return self.default
        if self.kind == "flag":
            if not isinstance(value, bool):
                raise self._wrong(value, "yes or no")
            return value
        if self.kind == "choice":
            if value not in self.choices:
                raise self._wrong(value, self.range)
            return value
        if self.kind == "text":
            return self._read_tuple(value)
        return self._read_number(value)

    def _read_number(self, value: Any) -> int | float:
        whole = self.kind == "integer"
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self._wrong(value, "a whole number" if whole else "a number") from None
        if not math.isfinite(number) or (whole and number != round(number)):
            raise self._wrong(value, "a whole number" if whole else "a number")
        below = self.low is not None and (number <= self.low if self.open_low else number < self.low)
        above = self.high is not None and (number >= self.high if self.open_high else number > self.high)
        if below or above:
            raise self._wrong(value, self.range)
        return int(number) if whole else number

    def _read_tuple(self, value: Any) -> tuple[Any, ...]:
        text = str(value).strip("()[] ").rstrip(",")
        try:
            found = ast.literal_eval(f"({text},)")
        except (SyntaxError, ValueError):
            raise self._wrong(value, "numbers with commas between them") from None
        if not all(isinstance(part, int | float) and not isinstance(part, bool) for part in found):
            raise self._wrong(value, "numbers with commas between them")
        return tuple(found)

    def _wrong(self, value: Any, allowed: str) -> OptionError:
        return OptionError(f"{self.name} must be {allowed}, got {value!r}.")

    def show(self, value: Any) -> Any:
        """The form's value for a value of the hyper-parameter."""
        if self.kind != "text":
            return value
        return "" if value is None else ", ".join(map(str, value))


def fields(name: str) -> list[Field]:
    """The form of the method of that name.

    Example:
        >>> [(field.name, field.kind, field.range) for field in fields("visionzip")]
        [('contextual', 'number', 'in [0, 1]')]
    """
    cls = pruner_class(name)
    return [_field(cls, field) for field in dataclasses.fields(cls)]


def _field(cls: type[Pruner], field: dataclasses.Field[Any]) -> Field:
    text = option_text(cls, field.name)
    types = [part.strip() for part in str(field.type).split("|")]
    optional = "None" in types
    if types[0] == "bool":
        return Field(field.name, "flag", field.default, text)
    if types[0] == "str":
        return Field(field.name, "choice", field.default, text, choices=tuple(_CHOICES.findall(text)))
    if types[0] not in ("int", "float"):
        return Field(field.name, "text", field.default, text, optional=optional)
    kind: Kind = "integer" if types[0] == "int" else "number"
    found = Field(field.name, kind, field.default, text, optional=optional)
    if match := _HALF_OPEN.search(text):
        return dataclasses.replace(
            found,
            low=float(match["low"]),
            high=float(match["high"]),
            open_low=match["open"] == "(",
            open_high=match["close"] == ")",
        )
    if match := _AT_LEAST.search(text):
        return dataclasses.replace(found, low=float(match["first"] or match["second"] or match["third"]))
    if match := _ABOVE.search(text):
        return dataclasses.replace(found, low=float(match["low"]), open_low=True)
    return found


def build(names: Sequence[str], options: Options | None = None) -> Pruner:
    """The method that a form describes; several names make a chain.

    Raises:
        OptionError: No method is named, or what was entered does not make one.
    """
    if not names:
        raise OptionError("Pick a method first.")
    try:
        methods = []
        for name in names:
            known = {field.name: field for field in fields(name)}
            entered = (options or {}).get(name, {})
            methods.append(make_pruner(name, **{key: known[key].read(value) for key, value in entered.items()}))
        return methods[0] if len(methods) == 1 else make_pruner(methods)
    except OptionError as error:
        raise OptionError(f"{name}: {error}") from error
    except KeyError as error:
        raise OptionError(f"{name} has no option {error}.") from error
    except (TypeError, ValueError) as error:
        raise OptionError(f"{error}.") from error


def to_text(method: Pruner) -> str:
    """A method as `vtprune run --pruner` takes it."""
    return method_label(method)


def from_text(text: str) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Names and changed options of a method as `vtprune run --pruner` takes it.

    Raises:
        OptionError: The text describes no method.

    Example:
        >>> from_text("fastv(layer=3)")
        (['fastv'], {'fastv': {'layer': 3}})
    """
    try:
        method = parse_pruner(text)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{error}.") from error
    parts = method.pruners if isinstance(method, Chain) else (method,)
    names = [part.name for part in parts]
    options = {
        part.name: {
            field.name: getattr(part, field.name)
            for field in dataclasses.fields(part)
            if getattr(part, field.name) != field.default
        }
        for part in parts
    }
    return names, {name: changed for name, changed in options.items() if changed}
