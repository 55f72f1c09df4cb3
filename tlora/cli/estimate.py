"""`tlora estimate`: what a model will take, before any of its weights is loaded."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import tlora
from tlora.allocation.footprint import size_text
from tlora.cli.options import TargetModules, selected
from tlora.cli.output import facts, table
from tlora.utils.defaults import BATCH_SIZE

ESTIMATING = """Examples:

`tlora estimate smollm2-135m --length 90 --labels 4`

`tlora estimate NousResearch/Llama-2-7b-hf --rank 128 --dtype bfloat16 --batch-size 4 --memory 24 --teraflops 300`

`tlora estimate llama-70b/config.json --dtype bfloat16 --gpus 8 --memory 80 --teraflops 300`
"""


def estimate(
    model: Annotated[str, typer.Argument(help="Model as for --model elsewhere; its config alone is read.")],
    rank: Annotated[int, typer.Option(help="Nominal rank.")] = 8,
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = 32,
    length: Annotated[int, typer.Option(help="Tokens of a sample.")] = 512,
    labels: Annotated[int | None, typer.Option(help="Labelled tokens of a sample; all by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at once.")] = BATCH_SIZE,
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "float32",
    bits: Annotated[int | None, typer.Option(help="4 or 8, of a base that bitsandbytes quantizes.")] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Train with the inputs of blocks kept alone.")
    ] = False,
    optim: Annotated[
        str, typer.Option(help="Optimiser, as in transformers' TrainingArguments, e.g. paged_adamw_8bit.")
    ] = "adamw_torch",
    gpus: Annotated[
        int, typer.Option(help="Cards that the base is sharded over by FSDP2; 0: all is in the CPU's memory.")
    ] = 1,
    sketch_size: Annotated[int, typer.Option(help="Columns of a sketch of a covariance.")] = 256,
    num_labels: Annotated[int | None, typer.Option(help="Classes, for a classifier.")] = None,
    target_modules: TargetModules = (),  # type: ignore[assignment]
    memory: Annotated[float | None, typer.Option(help="Gigabytes of a GPU, for what fits and what to change.")] = None,
    teraflops: Annotated[
        float | None, typer.Option(help="Speed of products on the device; by default that of this CPU is measured.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Modules, parameters, memory and time of calibration and of a step of training, from the model's config alone.

    The model's own code is run on tensors that have a shape and no data.
    """
    from tlora.resource_estimate import matmul_speed

    found = tlora.estimate(
        model,
        rank,
        samples=samples,
        length=length,
        labels=labels,
        batch_size=batch_size,
        dtype=dtype,
        bits=bits,
        gradient_checkpointing=gradient_checkpointing,
        optim=optim,
        gpus=gpus,
        sketch_size=sketch_size,
        num_labels=num_labels,
        target_modules=selected(target_modules),
        speed=matmul_speed(dtype=dtype) if teraflops is None else 1e12 * teraflops,
        memory=None if memory is None else 1e9 * memory,
    )
    if as_json:
        counts = {"parameters": found.parameters, "modules": len(found.shapes), "trainable": found.trainable}
        stages = {"stages": found.to_frame().to_dict("records"), "changes": found.changes}
        typer.echo(json.dumps(counts | stages, indent=2))
        return
    typer.echo(_facts(found))
    typer.echo()
    typer.echo(_table(found))
    if found.changes:
        typer.echo()
        typer.echo(_changes(found))


def _facts(found: tlora.ResourceEstimate) -> str:
    distinct = len(set(found.shared.values()))
    head = ", the head included" if found.meta.recipe.get("num_labels") else ""
    return facts(
        {
            "model": f"{found.meta.model}, {found.parameters:,} parameters",
            "modules": f"{len(found.shapes)}, which read {distinct} distinct inputs",
            "trained": f"{found.trainable['B']:,} (B alone), {found.trainable['A and B']:,} (A and B){head}",
            "speed": f"{(found.speed or 0) / 1e12:.3g} teraflops",
        }
    )


def _table(found: tlora.ResourceEstimate) -> str:
    frame = found.to_frame()
    rows = [["stage", "memory", "teraflops", "at least", *(["fits"] if found.memory else [])]]
    for row in frame.itertuples():
        work = [f"{row.teraflops:.3g}", f"{row.seconds:.3g} s"] if row.teraflops else ["", ""]
        fits = [("yes" if row.fits else "no")] if found.memory else []
        stage = f"{row.stage}, one step" if row.stage.startswith("training") else row.stage
        rows.append([stage, size_text(1e9 * row.gigabytes), *work, *fits])
    return table(rows)


def _changes(found: tlora.ResourceEstimate) -> str:
    """What to change, one after the other, until calibration, subspaces and training `B` fit."""
    memory = found.memory or 0
    rows = [["change, one after the other", "most memory", "what it costs"]]
    rows += [[change["change"], size_text(change["bytes"]), change["costs"]] for change in found.changes]
    fits = found.changes[-1]["bytes"] <= memory
    return f"To fit {size_text(memory)}{'' if fits else ', which is still too little'}:\n{table(rows)}"
