"""How commands end: a user's error as one sentence, an interruption as one line, warnings as sentences."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import typer
from safetensors import SafetensorError
from typer.core import TyperCommand, TyperGroup

from tlora.cli.command_line import in_options
from tlora.cli.output import is_first_process, show_own_warnings
from tlora.cli.terminal import bars_as_lines, styled

EXPECTED = (ValueError, TypeError, LookupError, OSError, RuntimeError, ImportError, MemoryError, SafetensorError)
"""What the library raises for a request that it cannot fulfill."""


class Commands(TyperGroup):
    """Shows errors that a user can act on as one sentence, an interruption as one line, and our warnings alone."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the command line."""
        with _interruptions():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit with 2 after an error, with 130 after an interruption."""
        is_debug = bool(ctx.params.get("debug"))
        with _interruptions(), contextlib.ExitStack() as stack:
            if not is_first_process():
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            if not is_debug:
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                show_own_warnings()
                warnings.showwarning = _show_warning
            with _errors(ctx):
                return super().invoke(ctx)


MANY = 25
"""Options from which on ``--help`` shows only the `FIRST` of a command."""

FIRST = {
    *("model", "task", "allocation", "calibration", "output", "recipe", "rank", "samples", "learning_rate", "epochs"),
    *("steps", "batch_size", "train_samples", "device", "seed", "resume", "overwrite", "help_all"),
}
"""What one needs the first time; ``--help-all`` shows the rest too."""


class Command(TyperCommand):
    """Shows errors in the words of its own options; `Commands` shows those of reading them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; of many options only the first, unless all are asked for."""
        is_short = len(self.params) > MANY and not ctx.params.get("help_all")
        later: list[Any] = [parameter for parameter in self.params if is_short and parameter.name not in FIRST]
        for parameter in self.params:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""  # a flag takes no value whose type could be named
        for parameter in later:
            parameter.hidden = True
        try:
            super().format_help(ctx, formatter)
        finally:
            for parameter in later:
                parameter.hidden = False

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        is_quiet = bool(ctx.params.get("quiet")) or not is_first_process()
        with _errors(ctx), contextlib.nullcontext() if is_quiet else bars_as_lines():
            return super().invoke(ctx)


@contextlib.contextmanager
def _errors(ctx: Any) -> Iterator[None]:
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):  # after `| head` typer ends quietly
        raise
    except EXPECTED as error:
        if ctx.find_root().params.get("debug"):
            raise
        sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
        defaults = {name: ctx.params[name] for name, source in sources.items() if source and source.name == "DEFAULT"}
        label = styled("error:", err=True, fg="red")
        _show(f"{label} {in_options(error_text(error), ctx.command, defaults)}", error)
        raise typer.Exit(2) from None


@contextlib.contextmanager
def _interruptions() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        _show("interrupted", error)
        raise typer.Exit(130) from None


def _show(text: str, error: BaseException) -> None:
    typer.echo("\n".join([text, *getattr(error, "__notes__", ())]), err=True)


def _show_warning(message: Warning | str, *args: object, **kwargs: object) -> None:
    if is_first_process():
        typer.echo(f"{styled('warning:', err=True, fg='yellow')} {message}", err=True)


def error_text(error: BaseException) -> str:
    """Return an error in one line, without the number that the system gives it."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return " -> ".join(names) + (": " if names else "") + error.strerror
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
