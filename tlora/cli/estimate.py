"""`tlora estimate`: memory and time of a model, before any of its weights is loaded."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import tlora
from tlora.allocation.footprint import size_text
from tlora.cli.checks import check_model, check_positive
from tlora.cli.options import Json, TargetModules, module_selection
from tlora.cli.output import facts, show_own_warnings, table
from tlora.utils.defaults import BATCH_SIZE, DTYPE, LENGTH, OPTIMIZER, RANK, SAMPLES, SKETCH_SIZE, Dtype

ESTIMATE_EXAMPLES = """Examples:

`tlora estimate smollm2-135m --length 90 --labels 4`

`tlora estimate NousResearch/Llama-2-7b-hf --rank 128 --dtype bfloat16 --batch-size 4 --memory 24 --teraflops 300`

`tlora estimate llama-70b/config.json --dtype bfloat16 --gpus 8 --memory 80 --teraflops 300`
"""


def estimate(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="As for --model elsewhere; its config is read.", callback=check_model)],
    rank: Annotated[int, typer.Option(help="Nominal rank.", min=1)] = RANK,
    samples: Annotated[int, typer.Option(help="Calibration samples.", min=1)] = SAMPLES,
    length: Annotated[int, typer.Option(help="Tokens of a sample.", min=1)] = LENGTH,
    labels: Annotated[int | None, typer.Option(help="Labelled tokens of a sample; all by default.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at once.", min=1)] = BATCH_SIZE,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the weights.")] = DTYPE,
    bits: Annotated[int | None, typer.Option(help="4 or 8, of a base that bitsandbytes quantizes.")] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations twice when training.")
    ] = False,
    optim: Annotated[str, typer.Option(help="As in TrainingArguments, e.g. paged_adamw_8bit.")] = OPTIMIZER,
    gpus: Annotated[int, typer.Option(help="GPUs that FSDP2 shards the base over; 0: the CPU.", min=0)] = 1,
    sketch_size: Annotated[int, typer.Option(help="Columns of a sketch of a covariance.", min=1)] = SKETCH_SIZE,
    num_labels: Annotated[int | None, typer.Option(help="Classes, for a classifier.", min=1)] = None,
    target_modules: TargetModules = (),  # type: ignore[assignment]
    memory: Annotated[
        float | None, typer.Option(help="Gigabytes of a GPU: what fits, what to change.", callback=check_positive)
    ] = None,
    teraflops: Annotated[
        float | None, typer.Option(help="Speed of the device. Default: that of this CPU.", callback=check_positive)
    ] = None,
    as_json: Json = False,
) -> None:
    """Modules, parameters, memory and time of calibration and of a step of training, from the model's config alone.

    The model's own code is run on tensors that have a shape and no data.
    """
    from tlora.resource_estimate import matmul_speed

    show_own_warnings()
    shared = ctx.params.keys() - {"target_modules", "memory", "teraflops", "as_json"}
    resources = tlora.estimate(
        **{name: ctx.params[name] for name in shared},
        target_modules=module_selection(target_modules),
        speed=matmul_speed(dtype=dtype) if teraflops is None else 1e12 * teraflops,
        memory=None if memory is None else 1e9 * memory,
    )
    frame, trainable, limit = resources.to_frame(), resources.trainable, resources.memory
    if as_json:
        counts = {"parameters": resources.parameters, "modules": len(resources.shapes), "trainable": trainable}
        stages = {"stages": frame.to_dict("records"), "changes": resources.changes}
        typer.echo(json.dumps({**counts, **stages}, indent=2))
        return
    about = {
        "model": f"{resources.meta.model}, {resources.parameters:,} parameters",
        "modules": f"{len(resources.shapes)}, which read {len(set(resources.shared.values()))} distinct inputs",
        "trained": f"{trainable['B']:,} (B alone), {trainable['A and B']:,} (A and B)",
        "speed": f"{(resources.speed or 0) / 1e12:.3g} teraflops",
    }
    rows = [["stage", "memory", "teraflops", "at least", *(["fits"] if limit else [])]]
    for row in frame.itertuples():
        work = [f"{row.teraflops:.3g}", f"{row.seconds:.3g} s"] if row.teraflops else ["", ""]
        fits = ["yes" if row.fits else "no"] if limit else []
        stage = f"{row.stage}, one step" if row.stage.startswith("training") else row.stage
        rows.append([stage, size_text(1e9 * row.gigabytes), *work, *fits])
    typer.echo(f"{facts(about)}\n\n{table(rows)}")
    if limit and resources.changes:
        rows = [["change, one after the other", "most memory", "what it costs"]]
        rows += [[change["change"], size_text(change["bytes"]), change["costs"]] for change in resources.changes]
        ending = "" if resources.changes[-1]["bytes"] <= limit else ", which is still too little"
        typer.echo(f"\nTo fit {size_text(limit)}{ending}:\n{table(rows)}")
