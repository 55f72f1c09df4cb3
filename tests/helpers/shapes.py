"""Tensor shapes and dtypes of annotations, checked at every call while tests run.

Only jaxtyping's annotations are checked. A plain ``rank: int`` is left to the function, whose own error is
the one that a user sees and a test wants to see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its jaxtyping annotations enforced."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if _has_shape(hint)}
    return beartype(function)


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_shape(part) for part in get_args(hint))
