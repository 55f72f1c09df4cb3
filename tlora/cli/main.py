"""The `tlora` command. Its files import torch inside of functions only, so that help and typos answer at once."""

from __future__ import annotations

from typing import Annotated

import typer

from tlora.cli.estimate import ESTIMATING, estimate
from tlora.cli.evaluate import EVALUATING, evaluate, merge, report
from tlora.cli.output import Command, Commands
from tlora.cli.pipeline import (
    ALLOCATING,
    CALIBRATING,
    INITIALIZING,
    RUNNING,
    TRAINING,
    allocate,
    calibrate,
    init,
    run,
    train,
)
from tlora.cli.race import RACING, race
from tlora.cli.serving import COMPRESSING, EXPORTING, INSPECTING, compress, export, inspect
from tlora.utils.packages import library_versions

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
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
        typer.Option("--version", callback=_version, is_eager=True, help="Show the versions that decide the numbers."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="TLORA_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Task-aware low-rank adaptation: see where a LoRA adapter's rank should go, then train it.

    From a few samples of a task, TLoRA decides which input directions an adapter reads, which modules get more
    rank, and how they are scaled. `--recipe tlora` trains that, with half of the parameters that LoRA trains. The
    adapter is an ordinary PEFT LoRA adapter.
    """


for command, examples in (
    (run, RUNNING),
    (init, INITIALIZING),
    (calibrate, CALIBRATING),
    (allocate, ALLOCATING),
    (train, TRAINING),
    (evaluate, EVALUATING),
    (merge, "Example: `tlora merge demo demo-merged`"),
    (estimate, ESTIMATING),
    (inspect, INSPECTING),
    (compress, COMPRESSING),
    (export, EXPORTING),
    (report, "Example: `tlora report demo`"),
    (race, RACING),
):
    app.command(cls=Command, epilog=examples)(command)
