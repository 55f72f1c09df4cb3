"""Commands and the lines that call them: dataclasses flattened to options, values formatted as a line to type."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

import typer


def flatten_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a command's dataclasses into plain options, which is what typer reads."""
    hints = get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters
    groups = {name: hints[name] for name in parameters if is_dataclass(hints[name])}
    options: dict[str, inspect.Parameter] = {}
    for name, parameter in parameters.items():
        if name in groups:
            options |= {option.name: option for option in _group_options(groups[name])}
        else:
            options[name] = parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name])

    @wraps(command)
    def run(**values: Any) -> None:
        built = {n: group(**{f.name: values.pop(f.name) for f in fields(group)}) for n, group in groups.items()}
        command(**built, **values)

    run.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: option.annotation for name, option in options.items()}
    return run


def _group_options(group: type) -> list[inspect.Parameter]:
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


def format_command(command: Any, values: Mapping[str, Any], program: str = "tlora") -> str:
    """Return the line to type for a command with these values, quoted for a shell.

    Defaults are left out, and so are --quiet and --config, whose options are written out. Names that the command does
    not have are ignored.
    """
    words = [*program.split(), command.name]
    for parameter in command.params:
        value = values.get(parameter.name)
        if value is None or value == parameter.default or parameter.name in ("quiet", "config"):
            continue
        flag = next((name for name in parameter.opts if name.startswith("--")), "")
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif isinstance(value, list | tuple):
            words += [word for each in value for word in (flag, str(each))]
        elif isinstance(value, bool):
            words.append(flag if value else parameter.secondary_opts[0])
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def again(ctx: typer.Context) -> str:
    """Return the line that repeats a command."""
    return format_command(ctx.command, ctx.params)


def next_command(ctx: typer.Context, name: str, values: Mapping[str, Any]) -> str:
    """Return the line of another command."""
    return format_command(ctx.find_root().command.commands[name], values)  # type: ignore[attr-defined]
