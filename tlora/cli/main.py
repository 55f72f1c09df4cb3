"""The `tlora` command: the walk from a task to a trained adapter, whole or in steps that leave files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from tlora.cli.command_line import flat, written
from tlora.cli.compare import Comparing, Showing, compared, listed, summary_text
from tlora.cli.estimate import PLANNING, plan
from tlora.cli.evaluate import EVALUATING, evaluate, merge
from tlora.cli.options import Quiet
from tlora.cli.output import Guarded, Report, _viz, facts
from tlora.cli.pipeline import ALLOCATING, CALIBRATING, RUNNING, TRAINING, allocate, calibrate, run, train
from tlora.cli.serving import EXPORTING, INSPECTING, export, inspect
from tlora.results import library_versions
from tlora.utils.files import replace_file

app = typer.Typer(
    cls=Guarded,
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


@app.callback(epilog="`tlora run --help` is the place to begin; the commands of the walk end by naming the next one.")
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

    From a few samples of a task, TLoRA decides which input directions an adapter reads, which layers get more
    rank, and how they are scaled; then it trains half of the parameters that LoRA trains. The adapter is an
    ordinary PEFT LoRA adapter.
    """


app.command(epilog=RUNNING)(run)
app.command(epilog=CALIBRATING)(calibrate)
app.command(epilog=ALLOCATING)(allocate)
app.command(epilog=TRAINING)(train)
app.command(epilog=EVALUATING)(evaluate)
app.command(epilog="Example: `tlora merge demo demo-merged`")(merge)
app.command(epilog=PLANNING)(plan)
app.command(epilog=INSPECTING)(inspect)
app.command(epilog=EXPORTING)(export)


@app.command(epilog="Example: `tlora report demo`")
@flat
def report(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter of ours.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file. Default: report.html in the folder.", rich_help_panel="Output"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """One HTML page to hand on: data, spectra, sensitivity, plan, training, and how to make it all again.

    The page holds its pictures, runs no scripts and needs no network.
    """
    with Report(quiet).step(f"reporting on {adapter}"):
        path = _viz().report(adapter, output)
    typer.echo(facts({"saved": str(path), "next": shlex.join(["python", "-m", "webbrowser", str(path)])}))


@app.command(
    epilog="""Examples:

`tlora compare --model minilm --task rotten_tomatoes --test-samples 2000 --method lora --method tlora`

`tlora compare --store comparison.jsonl --list`
"""
)
@flat
def compare(ctx: typer.Context, options: Comparing, showing: Showing, quiet: Quiet = False) -> None:
    """Methods against each other: the same training for all, and each at its own learning rate.

    Learning rates are chosen on the validation split, results are of the test split, intervals are for other seeds and
    samples, and paired. Each run is in --store before the next begins: the same command goes on with what was
    interrupted, and what is there already is not run again.
    """
    report, line = Report(quiet), written(compare, ctx.params)
    comparison = compared(options, showing, report, line)
    typer.echo(listed(comparison) if showing.as_list else f"{comparison!r}\n\n{summary_text(comparison, showing)}")
    if showing.picture:
        viz = _viz()
        figure = viz.plot_comparison(comparison, **showing.shared())
        with replace_file(showing.picture) as fresh:
            figure.savefig(fresh, dpi=150)
        viz.style.plt.close(figure)
