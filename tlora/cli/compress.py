"""`tlora compress`: cut the ranks of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tlora
from tlora.cli.checks import check_positive, check_saved_result
from tlora.cli.command_line import next_command
from tlora.cli.options import AdapterName, Output, Overwrite, option
from tlora.cli.output import summary_text
from tlora.utils.file_names import ADAPTER_WEIGHTS
from tlora.utils.files import check_place
from tlora.utils.text import facts_text, table_text


def compress(
    ctx: typer.Context,
    adapter: AdapterName,
    output: Output,
    rank: Annotated[int | None, option("Budget", "Cut every module to this rank at most.", min=1)] = None,
    parameters: Annotated[
        float | None,
        option("Budget", "Parameters of all A and B, or up to 1 a share of them.", callback=check_positive),
    ] = None,
    energy: Annotated[
        float | None,
        option("Budget", "Keep this share of the squared measure with the fewest parameters.", min=0, max=1),
    ] = None,
    error: Annotated[
        float | None,
        option("Budget", "Let no module lose more than this share of its update's norm.", min=0, max=1),
    ] = None,
    calibration: Annotated[
        Path | None,
        option("Measure", "Of the base: cut by the outputs on its task, not the weights.", callback=check_saved_result),
    ] = None,
    held_out: Annotated[
        Path | None,
        option("Measure", "Another, of other samples: print what is lost on them too.", callback=check_saved_result),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Cut the ranks of a LoRA adapter, anybody's, where it costs least in its weights or in its outputs on a task.

    Give one of --rank, --parameters, --energy and --error. The base model is not loaded. Embeddings and heads are kept
    as they are; what cannot be cut, such as DoRA, is refused by name.

    Examples
    --------
    `tlora compress demo --parameters 0.5 --output demo-half`

    `tlora compress owner/adapter --energy 0.95 --calibration calibration --held-out other-samples --output small`
    """
    if sum(value is not None for value in (rank, parameters, energy, error)) != 1:
        raise ValueError("give one of --rank, --parameters, --energy and --error")
    check_place(output, ADAPTER_WEIGHTS, overwrite=overwrite, inputs=[adapter])
    from tlora.adapters.compression import MEASURES
    from tlora.adapters.files import COMPRESS, refuse_other_writer

    refuse_other_writer(output, COMPRESS)
    calibrated, measured_on = (
        None if path is None else tlora.Calibration.load(path) for path in (calibration, held_out)
    )
    compression = tlora.compress(
        adapter,
        rank=rank,
        parameters=parameters,
        energy=energy,
        error=error,
        calibration=calibrated,
        held_out=measured_on,
    )
    compression.save_adapter(output)
    before, after = compression.parameters
    kept, whole = sum(compression.ranks.values()), sum(compression.original_ranks.values())
    summary = {
        "base": compression.meta.model,
        "kept": f"{after:,} of {before:,} parameters, {kept:,} of {whole:,} ranks",
        **{f"lost ({m})": f"{compression.error(m):.1%} of {MEASURES[m]}" for m in compression.measures},
    }
    largest = compression.to_frame().sort_values("rank", ascending=False, kind="stable").head(5).itertuples()
    rows = [[str(r.module), str(r.rank_before), str(r.rank), f"{r.error:.1%}"] for r in largest]
    typer.echo(f"{facts_text(summary)}\n\n{table_text([['most rank kept', 'before', 'kept', 'error'], *rows])}\n")
    typer.echo(summary_text({"next": next_command(ctx, "inspect", {"adapter": output})}))
