"""`tlora combine`: put adapters of one base together."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Annotated

import typer

import tlora
from tlora.cli.checks import check_saved_results, parse_weight
from tlora.cli.command_line import next_command
from tlora.cli.options import Output, Overwrite, option
from tlora.cli.output import summary_text
from tlora.utils.defaults import CombineMethod
from tlora.utils.file_names import ADAPTER_WEIGHTS
from tlora.utils.files import check_place
from tlora.utils.text import ranks_text


def combine(
    ctx: typer.Context,
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[=WEIGHT]...",
            help="Folder of each adapter, or its name on the hub, and its weight in the sum. Default weight: 1.",
        ),
    ],
    output: Output,
    method: Annotated[
        CombineMethod, option("Method", "The exact sum, or what PEFT's functions of these names make of the updates.")
    ] = "sum",
    rank: Annotated[
        int | None,
        option(
            "Method",
            "Cut every module to this rank at most. Default: the rank that a sum needs, and for the other methods the "
            "largest of the adapters.",
            min=1,
        ),
    ] = None,
    density: Annotated[float, option("Method", "Share of entries that the other methods keep.", min=0, max=1)] = 0.5,
    head: Annotated[str | None, option("Method", "Adapter whose head to keep, if several have one.")] = None,
    seed: Annotated[int, option("Method", "Seed of the entries that the dare methods drop.", min=0)] = 0,
    calibration: Annotated[
        list[Path] | None,
        option(
            "Measure",
            "Of the base on the task of each adapter; may be repeated. Cut by the outputs on all of them.",
            callback=check_saved_results,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Put LoRA adapters of one base together: their exact weighted sum, the same cut to a rank, or a merge by PEFT.

    The base model is not loaded. The sum keeps the rank of the adapters where they have the same A, and has the sum of
    their ranks elsewhere. What cannot be combined, such as DoRA or another base, is refused by name.

    Examples
    --------
    `tlora combine demo other --output both`

    `tlora combine demo=1 other=0.5 --rank 8 --calibration one --calibration other-calibration --output both`

    `tlora combine demo other --method ties --density 0.3 --output both`
    """
    weights = dict(map(parse_weight, adapters))
    if len(weights) < len(adapters):
        raise ValueError(f"an adapter is named twice in {' '.join(adapters)}: give it one weight")
    check_place(output, ADAPTER_WEIGHTS, overwrite=overwrite, inputs=weights)
    from tlora.adapters.files import COMBINE, refuse_other_writer

    refuse_other_writer(output, COMBINE)
    known = [tlora.Calibration.load(path) for path in calibration or ()]
    combination = tlora.combine(
        weights,
        method=method,
        rank=rank,
        calibration=reduce(tlora.Calibration.merge, known) if known else None,
        density=density,
        head=head,
        seed=seed,
    )
    combination.save_adapter(output)
    frame = combination.to_frame()
    parts = " + ".join(f"{weight:g} * {name}" for name, weight in weights.items())
    summary = {
        "base": combination.meta.model,
        "combined": parts if method == "sum" else f"{parts}, by {method}",
        "modules": f"{len(frame)}, {ranks_text(frame['rank'])}, {frame['parameters'].sum():,} parameters",
        "A": f"the same in {frame['same_a'].sum()} of {len(frame)} modules",
        "lost": f"up to {frame['error'].max():.1%} of a module's update" if frame["error"].any() else "nothing",
        "head": f"that of {combination.head}" if combination.head else "",
        "next": next_command(ctx, "inspect", {"adapter": output}),
    }
    typer.echo(summary_text(summary))
