"""Commands and the lines that call them: dataclasses spread into options, values written as a line to type."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo, OptionInfo


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """Spread a command's dataclasses into plain options, which is what typer reads."""
    hints = get_type_hints(command, include_extras=True)
    given = inspect.signature(command).parameters
    groups = {name: hints[name] for name in given if is_dataclass(hints[name])}
    options: dict[str, inspect.Parameter] = {}
    for name, parameter in given.items():
        if name in groups:
            options |= {option.name: option for option in _options(groups[name])}
        else:
            options[name] = parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name])

    @wraps(command)
    def spread(**values: Any) -> None:
        built = {n: group(**{f.name: values.pop(f.name) for f in fields(group)}) for n, group in groups.items()}
        command(**built, **values)

    spread.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    spread.__annotations__ = {name: option.annotation for name, option in options.items()}
    return spread


def _options(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


def written(command: Callable[..., None], values: Mapping[str, Any]) -> str:
    """The line to type for a command of `flat` with these values, quoted for a shell.

    What is as by default is left out, and so are --quiet and --config, whose options are written out; names that the
    command does not have are passed over.
    """
    words = ["tlora", command.__name__]
    for name, given in inspect.signature(command).parameters.items():
        value = values.get(name)
        if value is None or value == given.default or name in ("quiet", "config"):
            continue
        flag = _flag(name, given.annotation)
        if isinstance(value, list | tuple):
            if list(value) != list(given.default):
                words += [word for each in value for word in (flag, str(each))]
        elif any(isinstance(extra, ArgumentInfo) for extra in get_args(given.annotation)):
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def _flag(name: str, annotation: Any) -> str:
    """The long name of an option: its first one where it was given names, of which typer takes one for a default."""
    infos = [extra for extra in get_args(annotation) if isinstance(extra, OptionInfo)]
    given = [decl for info in infos for decl in (info.default, *(info.param_decls or ())) if isinstance(decl, str)]
    return next((decl for decl in given if decl.startswith("--")), f"--{name.replace('_', '-')}")
