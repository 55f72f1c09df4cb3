"""`tlora measure-scales`: as much of an adapter as other text allows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tlora
from tlora.cli.checks import PICTURE_FORMATS, check_picture
from tlora.cli.command_line import flatten_options, next_command
from tlora.cli.evaluate import recorded_data
from tlora.cli.loading import base_name, load_base, load_data
from tlora.cli.options import AdapterName, BaseModel, Output, Overwrite, Placement, Quiet, TaskName, Texts, option
from tlora.cli.output import Report, draw_into, load_viz, summary_text
from tlora.utils.defaults import Parts
from tlora.utils.file_names import ADAPTER_WEIGHTS
from tlora.utils.files import check_place
from tlora.utils.text import table_text


@flatten_options
def measure_scales(
    ctx: typer.Context,
    adapter: AdapterName,
    task: TaskName,
    output: Output,
    text: Texts,
    placement: Placement,
    limit: Annotated[
        float, option("Budget", "Most nats per token that the loss of each set of texts may rise.", min=0)
    ] = 0.05,
    parts: Annotated[
        Parts | None, option("Budget", "Also leave out layers, projections or modules, by their exact cost.")
    ] = None,
    only: Annotated[
        str | None, option("Budget", "Scale this layer, projection or module alone: 'layer 3', v_proj.")
    ] = None,
    samples: Annotated[int, option("Data", "Most samples of the task and of each set.", min=1)] = 64,
    model: BaseModel = None,
    picture: Annotated[
        Path | None, option("Output", f"Picture to draw: {', '.join(PICTURE_FORMATS)}.", callback=check_picture)
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Scale an adapter down until other text loses no more than --limit; write it as an ordinary adapter.

    Prints the loss on validation samples of the task and what other text loses at each scale, and writes the point with
    the lowest loss within the limit.

    Examples
    --------
    `tlora measure-scales demo notebooks/data/smart_home --text code --limit 0.05 --output milder`

    `tlora measure-scales demo pairs.jsonl --text chat --text notes.txt --limit 0.1 --parts layers --output milder`
    """
    check_place(output, ADAPTER_WEIGHTS, overwrite=overwrite, inputs=[adapter])
    from tlora.adapters.files import MEASURE_SCALES, refuse_other_writer
    from tlora.adapters.hub import adapter_folder
    from tlora.explanation.measure_scales import TASK

    refuse_other_writer(output, MEASURE_SCALES)
    report, folder = Report(quiet), adapter_folder(adapter)
    name, where = base_name(folder, model)
    data = recorded_data(folder, task).data
    loaded = load_data(name, data, report, **where)
    texts = tlora.load_texts(loaded.tokenizer, *text)
    bare = load_base(name, loaded, data.seed, placement, report, **where)
    with report.step("measuring"):
        adapted = tlora.load_adapter(folder, bare)
        rescaling = tlora.measure_scales(
            adapted, loaded, texts, limit=limit, parts=parts, only=only, samples=samples, progress=report.progress
        )
    rows = [["", "task loss", "other text"]]
    for point in rescaling.points:
        rows.append([point.label, f"{rescaling.loss(point, TASK):.4f}", f"{rescaling.lost(point):+.4f}"])
    typer.echo(f"{table_text(rows)}\n")
    rescaling.save_adapter(output)
    if picture:
        viz = load_viz()
        draw_into(picture, viz, viz.plot_rescaling(rescaling))
    best = rescaling.best
    saved = {"best": best.label, "saved": str(output), "picture": str(picture or "")}
    typer.echo(summary_text(saved | {"next": next_command(ctx, "evaluate", {"adapter": output, "task": task})}))
