"""`tlora suggest`: a rank, modules and samples for a task, before any training."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import tlora
from tlora.cli.command_line import flat, written
from tlora.cli.options import Data, Model, Placement, Quiet, option
from tlora.cli.output import Report, facts, table
from tlora.cli.pipeline import run

SUGGESTING = """Examples:

`tlora suggest --model smollm2-135m --task family_relationships`

`tlora suggest --model my-model --data answers.jsonl --samples 64`
"""


@flat
def suggest(
    ctx: typer.Context,
    model: Model,
    data: Data,
    placement: Placement,
    samples: Annotated[int, option("Calibration", "Training samples to look at.", min=4)] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel="Output")] = False,
    quiet: Quiet = False,
) -> None:
    """A rank, modules and calibration samples to begin with, what each rests on, and what is not known.

    A few forward and backward passes; nothing is trained or written.
    """
    from tlora.cli import steps

    report = Report(quiet)
    base, task = steps.load_base(model, data, placement, report)
    with report.step(f"looking at {samples} samples"):
        found = tlora.suggest(base, task, samples=samples, seed=data.seed, progress=report.progress)
    frame = found.to_frame()
    if as_json:
        values = {"rank": found.rank, "samples": found.samples, "bits": found.bits, "sentences": found.sentences()}
        typer.echo(json.dumps(values | {"ranks": json.loads(frame.to_json(orient="records"))}, indent=2))
        return
    typer.echo("\n\n".join(found.sentences()))
    typer.echo()
    rows = [["rank", "trained", "filled", "B alone", "filled"]]
    for row in frame.itertuples():
        rows.append(
            [f"{row.rank}", f"{row.trainable:,}", f"{row.filled:.2%}", f"{row.trainable_b:,}", f"{row.filled_b:.2%}"]
        )
    typer.echo(table(rows))
    typer.echo()
    then = {"rank": found.rank, "samples": found.samples or samples, "output": "adapter"}
    typer.echo(facts({"next": written(run, ctx.params | then)}))
