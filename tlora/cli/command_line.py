"""Commands and the lines that call them: dataclasses flattened to options, values formatted as a line to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

RENAMED = {
    "train": "train_samples",
    "validation": "validation_samples",
    "test": "test_samples",
    "max_steps": "steps",
    "gradient_accumulation_steps": "gradient_accumulation",
    "evaluation_limit": "eval_limit",
}
"""Arguments of the library that have another name as options."""

UNTYPED = ("quiet", "config", "help_all")
"""Options that are left out of a line to type."""

QUOTE = "'"
ARGUMENT = re.compile(
    r"""(?<![\w./'"(-])(?P<name>[a-z]\w*)  # not in a call, a quote or a path
    (?: =(?P<value>'[^']*'|[\w.+-]*\w) | =(?=[\s,;:)]|$) | (?![\w./('"=-]) )""",
    re.VERBOSE,
)
"""An argument as the library writes it, with or without a value."""


def flatten_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a command's dataclasses into plain options, which is what typer reads."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    options: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if name not in groups:
            options.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        types = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            default = Parameter.empty if field.default is MISSING else field.default
            options.append(Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=types[field.name]))

    show_all = typer.Option("--help-all", help="Show every option and exit.", is_eager=True, callback=_show_all)
    options.append(Parameter("help_all", Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, show_all]))

    @wraps(command)
    def run(**values: Any) -> None:
        del values["help_all"]
        built = {n: group(**{f.name: values.pop(f.name) for f in fields(group)}) for n, group in groups.items()}
        command(**built, **values)

    run.__signature__ = Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _show_all(ctx: typer.Context, is_given: bool) -> bool:
    """Print the help with every option, and end the command."""
    if is_given:
        ctx.params["help_all"] = True
        typer.echo(ctx.get_help())
        raise typer.Exit
    return is_given


def format_command(command: Any, values: Mapping[str, Any]) -> str:
    """Return the line to type for a command with these values, quoted for a shell.

    Defaults are left out, and so are --quiet and --config, whose options are written out. Names that the command does
    not have are ignored.
    """
    words = ["tlora", command.name]
    for parameter in command.params:
        value = values.get(parameter.name)
        if value is None or value == parameter.default or parameter.name in UNTYPED:
            continue
        flag = _flag(parameter)
        if parameter.param_type_name == "argument":
            words += map(str, value if isinstance(value, list | tuple) else [value])
        elif isinstance(value, list | tuple):
            words += [word for each in value for word in (flag, str(each))]
        elif isinstance(value, bool):
            words.append(flag if value else parameter.secondary_opts[0])
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def fold_command(line: str, indent: int, width: int = 80) -> str:
    """Return a line to type as several of at most ``width`` columns, each but the last ended by a backslash.

    All are ``indent`` columns to the right. An option stays beside its value, and a word that is longer stays whole.
    """
    parts: list[str] = []
    for word in map(shlex.quote, shlex.split(line)):
        if parts and parts[-1].startswith("-") and " " not in parts[-1] and not word.startswith("-"):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    lines = parts[:1]
    for part in parts[1:]:
        if indent + len(f"{lines[-1]} {part} \\") <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(f"  {part}")
    return f" \\\n{' ' * indent}".join(lines)


def in_options(text: str, command: Any, defaults: Mapping[str, Any] | None = None) -> str:
    """Return a text of the library with the options of a command in place of arguments, and say which are defaults.

    ``max_rank=8`` becomes ``--max-rank 8``, and so do ``max_rank`` and ``max_rank=``. Words with neither underscore nor
    equals sign stay, as do calls, quotes, paths, and arguments that the command has no option for.
    """
    options = {parameter.name: parameter for parameter in command.params if parameter.param_type_name == "option"}

    def spell(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        option = options.get(RENAMED.get(name, name))
        if option is None or (match[0] == name and "_" not in name):
            return match[0]
        if option.is_flag and value == "False":
            return option.secondary_opts[0] if option.secondary_opts else f"no {_flag(option)}"
        if option.is_flag or value is None:
            return _flag(option)
        is_default = value == str((defaults or {}).get(option.name))
        return f"{_flag(option)} {value.strip(QUOTE)}{' (the default)' if is_default else ''}"

    return ARGUMENT.sub(spell, text)


def _flag(parameter: Any) -> str:
    """The name of an option on the command line, empty for an argument."""
    return next((name for name in parameter.opts if name.startswith("--")), "")


def spell_option(command: Any, name: str, value: Any) -> str:
    """Return how a value of a command was given, such as "with --learning-rate 0.01", or "without --rank"."""
    parameter = next((parameter for parameter in command.params if parameter.name == name), None)
    label = name if parameter is None else _flag(parameter) or name.upper()
    if value is None or value == []:
        return f"without {label}"
    return f"with {label} {value}"


def again(ctx: typer.Context) -> str:
    """Return the line that repeats a command; one that resumed trains from the start, to the same adapter."""
    return format_command(ctx.command, ctx.params | {"resume": None})


def next_command(ctx: typer.Context, name: str, values: Mapping[str, Any]) -> str:
    """Return the line of another command."""
    return format_command(ctx.find_root().command.commands[name], values)  # type: ignore[attr-defined]


def with_suffix(folder: str | Path, suffix: str) -> Path:
    """Return a folder in the same place, with a suffix to its name."""
    return Path(folder).parent / f"{Path(folder).resolve().name}{suffix}"
