"""Refusals shared by the operations and the methods: the bad value, what is allowed, in one sentence."""

from __future__ import annotations


def check_keep(keep: int, tokens: int, *, lowest: int = 1) -> None:
    """Refuses a number of tokens to keep outside `lowest .. tokens`.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> check_keep(5, 4)
        Traceback (most recent call last):
        ValueError: keep must be from 1 to 4 (the tokens there are), got 5
    """
    if not lowest <= keep <= tokens:
        raise ValueError(f"keep must be from {lowest} to {tokens} (the tokens there are), got {keep}")


def check_integer(owner: str, name: str, value: object, *, low: int, high: int | None = None) -> None:
    """Refuses a hyper-parameter that is no integer or lies outside `low .. high`.

    Raises:
        TypeError: `value` is no integer.
        ValueError: `value` is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{owner}: {name} must be {allowed}, got {value!r}")


def check_number(owner: str, name: str, value: object) -> float:
    """The value of a hyper-parameter that must be a real number.

    Raises:
        TypeError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{owner}: {name} must be a number, got {value!r}")
    return value


def check_share(owner: str, name: str, value: object) -> None:
    """Refuses a hyper-parameter that is no number in [0, 1]; NaN is refused.

    Raises:
        TypeError: `value` is no real number.
        ValueError: `value` is out of range.
    """
    number = check_number(owner, name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{owner}: {name} must be in [0, 1], got {value!r}")


def check_positive(owner: str, name: str, value: object) -> None:
    """Refuses a hyper-parameter that is no finite number above 0; NaN is refused.

    Raises:
        TypeError: `value` is no real number.
        ValueError: `value` is out of range.
    """
    number = check_number(owner, name, value)
    if not 0 < number < float("inf"):
        raise ValueError(f"{owner}: {name} must be above 0 and finite, got {value!r}")
