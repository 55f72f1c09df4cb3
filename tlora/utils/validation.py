"""Checks of plain arguments: each returns the value, or raises an error that names the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

T = TypeVar("T")


def require_positive_int(value: Any, name: str, least: int = 1) -> int:
    """Return the value as an int if it is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r}: use a whole number of at least {least}")
    return int(value)


def require_positive(value: float, name: str) -> int | float:
    """Return the value if it is a finite number above 0."""
    number = _require_number(value, name)
    if not number > 0 or math.isinf(number):
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return number


def require_finite(value: float, name: str) -> int | float:
    """Return the value if it is a finite number."""
    number = _require_number(value, name)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}")
    return number


def require_fraction(value: float, name: str) -> int | float:
    """Return the value if it is a number from 0 to 1."""
    number = _require_number(value, name)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return number


def require_confidence(value: float) -> float:
    """Return the value if it is a number strictly between 0 and 1."""
    number = _require_number(value, "confidence")
    if not 0 < number < 1:
        raise ValueError(f"confidence must be above 0 and below 1, such as 0.95, got {value}")
    return float(number)


def _require_number(value: float, name: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return int(value) if isinstance(value, Integral) else float(value)


def require_choice(value: T, name: str, choices: Sequence[T]) -> T:
    """Return the value if it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")
    return value


def check_type(value: object, expected: type[T], way_out: str) -> T:
    """Return the value if it is an instance of a class; ``way_out`` is an expression that makes one."""
    if not isinstance(value, expected):
        article = "an" if expected.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"expected {article} {expected.__name__}, got a {type(value).__name__}: pass {way_out}")
    return value


def check_mapping(value: Any, name: str, example: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the value if it is a mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a {type(value).__name__}: pass a mapping such as {dict(example)}")
    return value


def list_names(names: Any) -> Any:
    """Names in any iterable as a list, which can be read twice and saved; anything else unchanged."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        return names
    return sorted(names, key=str) if isinstance(names, set | frozenset) else list(names)
