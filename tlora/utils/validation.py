"""Checks of plain arguments: each returns the value, or raises an error that names the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

T = TypeVar("T")


def positive_int(value: Any, name: str, least: int = 1) -> int:
    """Return the value as an int, or raise if it is not a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r}: use a whole number of at least {least}")
    return int(value)


def check_type(value: object, expected: type[T], way_out: str) -> T:
    """Return the value if it is an instance of a class.

    Parameters
    ----------
    value : object
        Argument of the user.
    expected : type
        The class.
    way_out : str
        Expression that makes an instance, for the message.
    """
    if not isinstance(value, expected):
        article = "an" if expected.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"expected {article} {expected.__name__}, got a {type(value).__name__}: pass {way_out}")
    return value


def check_mapping(name: str, value: Any, example: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping; ``name`` and ``example`` are for the error."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a {type(value).__name__}: pass a mapping such as {dict(example)}")
    return value


def list_names(names: Any) -> Any:
    """Names in any iterable as a list, which can be read twice and saved; anything else unchanged."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        return names
    return sorted(names, key=str) if isinstance(names, set | frozenset) else list(names)


def positive(name: str, value: int | float) -> int | float:
    """Return ``value`` if it is a finite number above 0; ``name`` is for the error."""
    number = _number(name, value)
    if not number > 0 or math.isinf(number):
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return number


def fraction(name: str, value: int | float) -> int | float:
    """Return ``value`` if it is a number from 0 to 1; ``name`` is for the error."""
    number = _number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return number


def confidence_level(value: int | float) -> float:
    """Return ``value`` if it is a number strictly between 0 and 1."""
    number = _number("confidence", value)
    if not 0 < number < 1:
        raise ValueError(f"confidence must be above 0 and below 1, such as 0.95, got {value}")
    return float(number)


def _number(name: str, value: int | float) -> int | float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return int(value) if isinstance(value, Integral) else float(value)


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of the choices; ``name`` is for the error."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")
    return value
