"""`tlora extract`: the LoRA adapter in a full fine-tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import tlora
from tlora.cli.checks import check_model, check_positive, check_saved_result, check_task
from tlora.cli.command_line import flatten_options, next_command
from tlora.cli.loading import load_base, load_data
from tlora.cli.options import Data, Output, Overwrite, Placement, Quiet, option
from tlora.cli.output import Report, summary_text
from tlora.utils.defaults import RANK, SAMPLES
from tlora.utils.file_names import ADAPTER_WEIGHTS
from tlora.utils.files import check_place
from tlora.utils.text import facts_text, table_text


@flatten_options
def extract(
    ctx: typer.Context,
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="Model before the fine-tune: a packaged name, a folder, a .gguf file, or an id on the hub.",
            callback=check_model,
        ),
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The same after a fine-tune of all weights.", callback=check_model)
    ],
    output: Output,
    placement: Placement,
    rank: Annotated[int, option("Budget", "Rank of every module.", "--rank", "-r", min=1)] = RANK,
    parameters: Annotated[
        float | None,
        option(
            "Budget",
            "Parameters of all A and B, or up to 1 a share of those at --rank, which is then the largest of a module.",
            callback=check_positive,
        ),
    ] = None,
    modules_to_save: Annotated[
        list[str],
        option("Budget", "Module to hold whole, such as norm or embed_tokens; may be repeated.", "--modules-to-save"),
    ] = (),  # type: ignore[assignment]
    data: Annotated[
        str | None,
        option("Measure", "A task: cut by the outputs on it, not by the weights. Loads the base.", callback=check_task),
    ] = None,
    samples: Annotated[int, option("Measure", "Training samples of --data.", min=1)] = SAMPLES,
    calibration: Annotated[
        Path | None,
        option("Measure", "Of the base, in place of --data.", callback=check_saved_result),
    ] = None,
    seed: Annotated[int, option("Measure", "Seed of the data and of the singular vectors.", min=0)] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Extract a LoRA adapter from a full fine-tune: the change of each weight, cut to a rank.

    Weights are read one module at a time, so that two large models need little memory. What an adapter does not hold,
    such as norms, biases and embeddings, is listed with its share of the change.

    Examples
    --------
    `tlora extract models/base models/tuned --rank 16 --output extracted`

    `tlora extract models/base models/tuned --rank 16 --data mine.jsonl --modules-to-save norm --output extracted`
    """
    if data is not None and calibration is not None:
        raise ValueError("--data and --calibration both say what the cut is measured on: give one of them")
    check_place(output, ADAPTER_WEIGHTS, overwrite=overwrite, inputs=[base, tuned])
    from tlora.adapters.compression import MEASURES
    from tlora.adapters.files import EXTRACT, refuse_other_writer

    refuse_other_writer(output, EXTRACT)
    report = Report(quiet)
    measured = None if calibration is None else tlora.Calibration.load(calibration)
    if data is not None:
        measured = _calibrate(base, data, samples, seed, placement, report)
    with report.step(f"extracting from {tuned}"):
        extraction = tlora.extract(
            base,
            tuned,
            rank,
            parameters=parameters,
            calibration=measured,
            modules_to_save=modules_to_save,
            seed=seed,
            progress=report.progress,
        )
    extraction.save_adapter(output)
    frame, rest = extraction.to_frame(), extraction.rest()
    whole = f"{len(extraction.saved)} modules" if extraction.saved else ""
    summary = {
        "base": extraction.meta.model,
        "adapter": f"{len(frame)} modules, {frame['parameters'].sum():,} parameters",
        "saved whole": whole,
        **{f"held ({m})": f"{share:.1%} of the change of {MEASURES[m]}" for m, share in extraction.held.items()},
        "left out": f"{extraction.left_out:.1%} of the change of all weights",
    }
    typer.echo(f"{facts_text(summary)}\n")
    largest = frame.sort_values("share", ascending=False, kind="stable").head(5)
    rows = [["largest change", "share", "rank", "held"]]
    for row in largest.itertuples():
        held = row.energy if measured is None else row.task_energy
        rows.append([str(row.module), f"{row.share:.1%}", str(row.rank), f"{held:.1%}"])
    typer.echo(f"{table_text(rows)}\n")
    if len(rest):
        rows = [["outside the modules", "share", ""]]
        rows += [[r.parameter, f"{r.share:.2%}", "saved" if r.saved else ""] for r in rest.head(5).itertuples()]
        rows += [[f"... and {len(rest) - 5} more", "", ""]] if len(rest) > 5 else []
        typer.echo(f"{table_text(rows)}\n")
    typer.echo(summary_text({"next": next_command(ctx, "inspect", {"adapter": output})}))


def _calibrate(base: str, data: str, samples: int, seed: int, placement: Placement, report: Report) -> Any:
    from tlora.recipes import calibrate_on

    task = load_data(base, Data(task=data, seed=seed), report, samples)
    model = load_base(base, task, seed, placement, report)
    with report.step("calibrating"):
        return calibrate_on(model, task, {}, samples=samples, progress=report.progress)
