"""Checks of arguments: their kinds by the annotations of a function, and single numbers and names."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from inspect import Parameter, signature
from itertools import starmap
from numbers import Integral, Real
from types import GenericAlias, NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    SupportsFloat,
    SupportsIndex,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

T = TypeVar("T")

MADE_BY = {
    "Module": "tlora.load_model({})[0]",
    "PreTrainedTokenizerBase": "tlora.load_model({})[1]",
    "PeftModel": "tlora.attach(model, plan) or tlora.load_adapter({})",
    "Task": "tlora.load_task({}, tokenizer)",
    "Calibration": "tlora.calibrate(model, ...)",
    "Sensitivity": "calibration.sensitivity",
    "ExpertUse": "tlora.expert_use(calibration)",
    "Spectrum": "calibration.spectrum()",
    "Subspaces": "tlora.task_subspaces(model, calibration)",
    "Allocation": "tlora.allocate(calibration.sensitivity, rank=8)",
    "Decisions": "tlora.prepare(model, task)",
    "Alignment": "tlora.align(a, b, rank)",
    "GradientCapture": "tlora.gradient_capture(model, ...)",
    "TrainingRun": "tlora.train(adapted, task)",
    "Compression": "tlora.compress(adapter, parameters=0.5)",
    "Interference": "tlora.interference(first, second)",
    "DirectionActivations": "tlora.direction_activations(model, ...)",
    "Attribution": "tlora.attribute(adapted, task)",
    "AnswerTable": "tlora.compare_answers(adapted, task)",
    "SideEffects": "tlora.side_effects(adapted, texts)",
    "Rescaling": "tlora.measure_scales(adapted, task, texts)",
    "ResourceEstimate": "tlora.estimate(model)",
    "Survival": "tlora.survival(adapter, base)",
    "Race": "tlora.race(model, task, arms)",
    "Axes": "plt.subplots()[1]",
}
"""An expression that makes an object of each class, with a place for the name that was passed instead."""

_BATCHES = Iterable[Mapping[str, Any]]
_PLAIN = {"str": "a string", "PathLike": "a path", "Module": "a model", "Callable": "a function", "Decisions": "a Plan"}
_WHOLE_NUMBERS = (int, SupportsIndex)
_NUMBERS = (bool, float, *_WHOLE_NUMBERS)


def as_python_number(value: Any) -> Any:
    """Return a number of NumPy or torch as one of Python, and anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def require_positive_int(value: Any, name: str, least: int = 1) -> int:
    """Return the value as an int if it is a whole number of at least ``least``."""
    value = as_python_number(value)
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


def require_index(value: int, name: str, count: int) -> int:
    """Return the value if it is the place of one of ``count`` items; as in Python, -1 is the last."""
    index = operator.index(as_python_number(value))
    if not -count <= index < count:
        raise ValueError(f"{name}={value} is out of range: there are {count}, from 0 to {count - 1}")
    return index


def require_module(name: str, names: Sequence[str]) -> str:
    """Return the name if it is the full name of one of the modules."""
    if name not in names:
        raise ValueError(f"module={name!r} is none of the {len(names)} modules: use a full name such as {names[0]}")
    return name


def _require_number(value: float, name: str) -> int | float:
    value = as_python_number(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return int(value) if isinstance(value, Integral) else float(value)


def require_choice(value: T, name: str, choices: Sequence[T]) -> T:
    """Return the value if it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")
    return value


def choices_of(function: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """The words that each argument of a function is one of, by the name of the argument, with None if it may be."""
    choices = {}
    for name, hint in _parameter_hints(function).items():
        words = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
        if words:
            choices[name] = (*get_args(words[0]), *[None] * (NoneType in get_args(hint)))
    return choices


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse an argument of another kind than the annotation of a public function names.

    A function calls it first: ``check_arguments(calibrate, locals())``. It compares kinds alone: which numbers and
    names are possible, the function itself checks. Of a part of the arguments that part is checked.

    Raises
    ------
    TypeError
        It names the argument and the kind of its value, and says what to pass.
    """
    for name, hint in _parameter_hints(function).items():
        if name in arguments and (misfit := _find_misfit(name, arguments[name], hint)):
            place, value, expected = misfit
            raise TypeError(f"{place} is {_describe(value)}: pass {_way_out(place, value, expected)}")


def with_checked_arguments(function: Callable[..., T]) -> Callable[..., T]:
    """Let a function call `check_arguments` first."""
    accepted = signature(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> T:
        check_arguments(function, accepted.bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return call


@cache
def _parameter_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the parameters; of ``*sources`` and ``**texts`` those of the tuple and the dict."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in signature(function).parameters.items():
        if parameter.kind is Parameter.VAR_POSITIONAL:
            hints[name] = GenericAlias(Sequence, (hints[name],))
        elif parameter.kind is Parameter.VAR_KEYWORD:
            hints[name] = GenericAlias(Mapping, (str, hints[name]))
    hints.pop("return", None)
    return hints


def _find_misfit(place: str, value: Any, hint: Any) -> tuple[str, Any, Any] | None:
    """Find the value, or its item, that is not of the kind of its annotation; return its name, itself, and the kind."""
    origin, parts = get_origin(hint), get_args(hint)
    misfit, plain = (place, value, hint), as_python_number(value)
    if isinstance(value, str) or not isinstance(plain, str):  # a text in an array without axes is no text
        value = plain
    if origin is Annotated:
        return _find_misfit(place, value, parts[1])
    if origin in (Union, UnionType):
        misfits = [_find_misfit(place, value, part) for part in parts]
        inside = [one for one in misfits if one and one[0] != place]
        return None if None in misfits else next(iter(inside), misfit)
    if origin is Literal:
        return None if isinstance(value, str) else misfit
    if hint in _NUMBERS:
        numbers: Any = SupportsIndex if hint in _WHOLE_NUMBERS else SupportsFloat | SupportsIndex
        # arrays with axes convert to a number by their type alone
        return None if isinstance(value, numbers) and not hasattr(value, "ndim") else misfit
    kind: Any = origin or hint
    if kind is Any:
        return None
    has_no_axes = getattr(value, "ndim", None) == 0
    is_letters = isinstance(value, str) and bool(parts)  # a string is no list of letters
    if not isinstance(value, kind) or has_no_axes or is_letters:
        return misfit
    if isinstance(value, Mapping) and len(parts) == 1:  # a dict in place of a list stands for its keys
        return misfit if any(_find_misfit(place, key, parts[0]) for key in value) else None
    if kind is tuple and Ellipsis not in parts and len(value) != len(parts):
        return misfit
    return next(filter(None, starmap(_find_misfit, _items(place, value, kind, parts))), None)


def _items(place: str, value: Any, kind: type, parts: tuple[Any, ...]) -> Iterable[tuple[str, Any, Any]]:
    """The items of a list, tuple or dict, with their names and annotations; a generator is not read."""
    if isinstance(value, Mapping) and parts:
        keys = [(f"a key of {place}", key, parts[0]) for key in value]
        return keys + [(f"{place}[{key!r}]", item, parts[1]) for key, item in value.items()]
    if type(value) in (list, tuple) and parts:  # others may compute their items
        hints = parts if kind is tuple and Ellipsis not in parts else parts[:1] * len(value)
        return [(f"{place}[{n}]", item, hint) for n, (item, hint) in enumerate(zip(value, hints, strict=True))]
    return []


def _describe(value: Any) -> str:
    """The kind of a value in words, with the value if it is a fraction, and its beginning if it is a text."""
    if value is None:
        return "None"
    shown = f" ({value[:40]!r})" if isinstance(value, str) else f" ({value})" if isinstance(value, float) else ""
    return _with_article(type(value).__name__) + shown


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def _way_out(place: str, value: Any, hint: Any) -> str:
    """What to pass in place of a value: what it holds, if that is of the right kind, or what its annotation names."""
    inside = {f"{place}.{name}": getattr(value, name, None) for name in ("module", "_orig_mod")}
    inside |= {f"{place}[{n}]": item for n, item in enumerate(value if isinstance(value, list | tuple) else ())}
    fitting = [name for name, item in inside.items() if item is not None and _find_misfit(name, item, hint) is None]
    if len(fitting) == 1:
        return fitting[0]
    return _name_kind(hint, repr(value) if isinstance(value, str) else "...")


def _name_kind(hint: Any, given: str) -> str:
    """What an annotation stands for, and an expression that makes it."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _name_kind(parts[1], given)
    if origin in (Union, UnionType):
        kinds = [_name_kind(part, given) for part in parts if part is not NoneType]
        return " or ".join(dict.fromkeys(kinds))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if hint == _BATCHES:
        return "a list of batches, such as task.calibration(32)"
    if hint in _NUMBERS:
        return "True or False" if hint is bool else "a whole number" if hint in _WHOLE_NUMBERS else "a number"
    kind: Any = origin or hint
    if kind is tuple and Ellipsis not in parts:
        return "a tuple of " + " and ".join(_name_kind(part, given) for part in parts)
    if kind is Any:
        return "anything"
    if parts and issubclass(kind, Mapping):
        return "a dict" if parts[1] is Any else f"a dict, each value {_name_kind(parts[1], given)}"
    if parts and kind is not Callable and issubclass(kind, Iterable):
        return f"a list, each item {_name_kind(parts[0], given)}"
    name = kind.__name__
    made = f", such as {MADE_BY[name].format(given)}" if name in MADE_BY else ""
    return _PLAIN.get(name, _with_article(name)) + made


def list_names(names: Any) -> Any:
    """Names in any iterable as a list, which can be read twice and saved; anything else unchanged."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        return names
    return sorted(names, key=str) if isinstance(names, set | frozenset) else list(names)
