"""The `tlora` command. Its files import torch inside functions only, so that help and errors appear at once."""

from __future__ import annotations

from typing import Annotated

import typer

from tlora.cli.errors import Commands
from tlora.cli.estimate import ESTIMATE_EXAMPLES, estimate
from tlora.cli.evaluate import EVALUATE_EXAMPLES, REPORT_EXAMPLES, evaluate, report
from tlora.cli.explain import EXPLAIN_EXAMPLES, explain
from tlora.cli.pipeline import (
    ALLOCATE_EXAMPLES,
    CALIBRATE_EXAMPLES,
    INIT_EXAMPLES,
    RUN_EXAMPLES,
    TRAIN_EXAMPLES,
    allocate,
    calibrate,
    init,
    run,
    train,
)
from tlora.cli.race import RACING, race
from tlora.cli.rescale import RESCALE_EXAMPLES, rescale
from tlora.cli.serving import (
    COMBINE_EXAMPLES,
    COMPRESS_EXAMPLES,
    EXPORT_EXAMPLES,
    INSPECT_EXAMPLES,
    combine,
    compress,
    export,
    inspect,
)
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

    From a few samples of a task, TLoRA decides which input directions an adapter reads, which modules get more
    rank, and how they are scaled. `--recipe tlora` trains that, with half of the parameters that LoRA trains. The
    adapter is an ordinary PEFT LoRA adapter.
    """


for command, examples in (
    (run, RUN_EXAMPLES),
    (init, INIT_EXAMPLES),
    (calibrate, CALIBRATE_EXAMPLES),
    (allocate, ALLOCATE_EXAMPLES),
    (train, TRAIN_EXAMPLES),
    (evaluate, EVALUATE_EXAMPLES),
    (estimate, ESTIMATE_EXAMPLES),
    (inspect, INSPECT_EXAMPLES),
    (compress, COMPRESS_EXAMPLES),
    (combine, COMBINE_EXAMPLES),
    (export, EXPORT_EXAMPLES),
    (report, REPORT_EXAMPLES),
    (race, RACING),
    (explain, EXPLAIN_EXAMPLES),
    (rescale, RESCALE_EXAMPLES),
):
    app.command(epilog=examples)(command)
