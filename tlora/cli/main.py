"""The `tlora` command. Its files import torch inside functions only, so that help and errors appear at once."""

from __future__ import annotations

from inspect import cleandoc
from typing import Annotated

import typer

from tlora.cli.combine import combine
from tlora.cli.compress import compress
from tlora.cli.errors import Command, Commands
from tlora.cli.estimate import estimate
from tlora.cli.evaluate import evaluate, report
from tlora.cli.explain import explain
from tlora.cli.export import export
from tlora.cli.extract import extract
from tlora.cli.inspect import inspect
from tlora.cli.measure_scales import measure_scales
from tlora.cli.pipeline import allocate, calibrate, init, run, train
from tlora.cli.race import race
from tlora.utils.packages import library_versions

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_versions(version: bool) -> None:
    if version:
        versions = library_versions()
        typer.echo(f"tlora {versions.pop('tlora', '(not installed)')}")
        typer.echo(", ".join(f"{name} {number}" for name, number in versions.items()))
        raise typer.Exit


@app.callback(
    epilog="`tlora run --help` is the place to begin; the commands of the pipeline end by naming the next one."
)
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_versions, is_eager=True, help="Show the versions of the libraries."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="TLORA_DEBUG", help="Show an error's traceback.")] = False,
) -> None:
    """Task-aware low-rank adaptation: see where a LoRA adapter's rank should go, then train it.

    From a few samples of a task, `tlora run` freezes A along the input directions with the largest squared gradient,
    gives rank to the modules where they capture most of it, and trains B: about half of the parameters that LoRA of
    this rank trains. --recipe tlora-paper is the published method, --recipe lora plain LoRA. The adapter is an
    ordinary PEFT LoRA adapter.
    """


COMMANDS = {
    "Train": (run, init, race),
    "Look into an adapter": (inspect, explain, measure_scales, evaluate, report),
    "Change and serve an adapter": (compress, combine, extract, export),
    "Before a run": (estimate,),
    "A run step by step": (calibrate, allocate, train),
}
"""The commands, by what one wants to do."""

for panel, commands in COMMANDS.items():
    for command in commands:
        text, _, examples = cleandoc(command.__doc__ or "").partition("\n\nExamples\n--------\n")
        app.command(cls=Command, rich_help_panel=panel, help=text, epilog=f"Examples:\n\n{examples}")(command)
