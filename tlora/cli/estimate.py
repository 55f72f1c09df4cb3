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
    model: Annotated[
        str,
        typer.Argument(
            help="Model as for --model elsewhere; its config alone is read.", show_default=False, callback=check_model
        ),
    ],
    rank: Annotated[int, typer.Option(help="Nominal rank.", min=1)] = RANK,
    samples: Annotated[int, typer.Option(help="Calibration samples.", min=1)] = SAMPLES,
    length: Annotated[int, typer.Option(help="Tokens of a sample.", min=1)] = LENGTH,
    labels: Annotated[int | None, typer.Option(help="Labelled tokens of a sample; all by default.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at once.", min=1)] = BATCH_SIZE,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the weights.")] = DTYPE,
    bits: Annotated[int | None, typer.Option(help="4 or 8, of a base that bitsandbytes quantizes.")] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Train with the inputs of blocks kept alone.")
    ] = False,
    optim: Annotated[
        str, typer.Option(help="Optimizer, as in transformers' TrainingArguments, e.g. paged_adamw_8bit.")
    ] = OPTIMIZER,
    gpus: Annotated[
        int, typer.Option(help="GPUs that the base is sharded over by FSDP2; 0: all is in the CPU's memory.", min=0)
    ] = 1,
    sketch_size: Annotated[int, typer.Option(help="Columns of a sketch of a covariance.", min=1)] = SKETCH_SIZE,
    num_labels: Annotated[int | None, typer.Option(help="Classes, for a classifier.", min=1)] = None,
    target_modules: TargetModules = (),  # type: ignore[assignment]
    memory: Annotated[
        float | None,
        typer.Option(help="Gigabytes of a GPU, for what fits and what to change.", callback=check_positive),
    ] = None,
    teraflops: Annotated[
        float | None,
        typer.Option(
            help="Speed of products on the device; by default that of this CPU is measured.", callback=check_positive
        ),
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
    if as_json:
        counts = {"parameters": resources.parameters, "modules": len(resources.shapes)}
        stages = {"stages": resources.to_frame().to_dict("records"), "changes": resources.changes}
        typer.echo(json.dumps({**counts, "trainable": resources.trainable, **stages}, indent=2))
        return
    typer.echo(f"{_model_facts(resources)}\n\n{_stages(resources)}")
    if resources.changes:
        typer.echo(f"\n{_changes(resources)}")


def _model_facts(resources: tlora.ResourceEstimate) -> str:
    head = ", the head included" if resources.meta.recipe.get("num_labels") else ""
    trainable = resources.trainable
    return facts(
        {
            "model": f"{resources.meta.model}, {resources.parameters:,} parameters",
            "modules": f"{len(resources.shapes)}, which read {len(set(resources.shared.values()))} distinct inputs",
            "trained": f"{trainable['B']:,} (B alone), {trainable['A and B']:,} (A and B){head}",
            "speed": f"{(resources.speed or 0) / 1e12:.3g} teraflops",
        }
    )


def _stages(resources: tlora.ResourceEstimate) -> str:
    rows = [["stage", "memory", "teraflops", "at least", *(["fits"] if resources.memory else [])]]
    for row in resources.to_frame().itertuples():
        work = [f"{row.teraflops:.3g}", f"{row.seconds:.3g} s"] if row.teraflops else ["", ""]
        fits = ["yes" if row.fits else "no"] if resources.memory else []
        stage = f"{row.stage}, one step" if row.stage.startswith("training") else row.stage
        rows.append([stage, size_text(1e9 * row.gigabytes), *work, *fits])
    return table(rows)


def _changes(resources: tlora.ResourceEstimate) -> str:
    """Return the changes, one after the other, until calibration, subspaces and training `B` fit."""
    memory = resources.memory or 0
    rows = [["change, one after the other", "most memory", "what it costs"]]
    rows += [[change["change"], size_text(change["bytes"]), change["costs"]] for change in resources.changes]
    fits = resources.changes[-1]["bytes"] <= memory
    return f"To fit {size_text(memory)}{'' if fits else ', which is still too little'}:\n{table(rows)}"
