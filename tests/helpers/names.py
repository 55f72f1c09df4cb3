"""The public names with their signatures, one a line: what a user's code may rely on.

`public_names.txt` is the committed list, which a test compares with what there is. A change that is meant is written
down by ``python -m tests.helpers.names`` and said in CHANGELOG.md.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from tlora.result_kinds import LOADABLE

LIST = Path(__file__).with_name("public_names.txt")
ROOT = Path(__file__).parents[2]


def current() -> list[str]:
    """The names of `tlora` and `viz`, with the methods and attributes of their classes, and the command line's."""
    lines = [line for package in ("tlora", "viz") for line in _package(package)]
    return [*lines, *_commands()]


def in_order(package: str) -> list[str]:
    """The public names of a package in the order of its stub, which is that of the pipeline."""
    return re.findall(r"^from .* as (\w+)$", (ROOT / package / "__init__.pyi").read_text(), re.M)


def public_things(package: str) -> dict[str, Any]:
    """What a package exports by its full name, and the classes of results that its functions return."""
    module = importlib.import_module(package)
    exported = {f"{package}.{name}": getattr(module, name) for name in in_order(package)}
    if package == "tlora":
        kinds = (kind for kind in LOADABLE.values() if kind not in exported.values())
        exported |= {f"{kind.__module__}.{kind.__name__}": kind for kind in kinds}
    return exported


def _package(package: str) -> Iterator[str]:
    for full, thing in public_things(package).items():
        yield f"{full}{_signature(thing)}"
        if inspect.isclass(thing):
            yield from (f"{full}.{line}" for line in _members(thing))


def _members(thing: type) -> Iterator[str]:
    """Of a class, what it or a base of ours has beside the arguments it is made of, by name."""
    ours = [c for c in thing.__mro__ if c.__module__.split(".")[0] in ("tlora", "viz")]
    made_of = inspect.signature(thing).parameters.keys()
    for name in sorted({name for c in ours for name in vars(c)} - made_of):
        member = getattr(thing, name, None)
        if name.startswith(("_", "on_")):  # ours alone, and what the Trainer calls
            continue
        if callable(member):
            yield f"{name}{_signature(member)}"
        elif name.endswith("columns"):
            yield f"{name}: {', '.join(member)}"
        else:
            yield name


def _signature(thing: Any) -> str:
    """As it is written: annotations are text in our sources, and so they are here, without quotes."""
    signature = inspect.signature(thing)
    parts, star = [], False
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        text = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name
        text += "" if p.annotation is p.empty else f": {_text(p.annotation)}"
        parts.append(text if p.default is p.empty else f"{text} = {_default(p.default)}")
    returns = signature.return_annotation
    return f"({', '.join(parts)})" + ("" if returns is signature.empty else f" -> {_text(returns)}")


def _text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: Any) -> str:
    return "..." if repr(value).startswith("<") else repr(value)  # made anew each time


def _commands() -> Iterator[str]:
    """Each command with its options; help texts may change."""
    from tlora.cli.main import app

    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for name, command in sorted(group.commands.items()):
        yield f"$ tlora {name} {' '.join(word for p in command.params for word in _words(p))}"


def _words(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [parameter.name.upper()]
    return [*parameter.opts, *parameter.secondary_opts]


if __name__ == "__main__":
    LIST.write_text("\n".join(current()) + "\n")
