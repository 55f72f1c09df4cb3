"""`tlora estimate`: memory and time of a model, before any of its weights is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import tlora
from tlora.allocation.footprint import TRAINED_PARTS, TRAININGS
from tlora.cli.checks import check_positive, check_task
from tlora.cli.command_line import in_options, next_command
from tlora.cli.options import Data, Json, Model, TargetModules, module_selection
from tlora.cli.output import print_json, show_own_warnings
from tlora.utils.defaults import BATCH_SIZE, DTYPE, LENGTH, OPTIMIZER, RANK, SAMPLES, SKETCH_SIZE, Dtype
from tlora.utils.text import facts_text, size_text, table_text


def estimate(
    ctx: typer.Context,
    model: Model,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", "--data", help="Measure length and labels on its samples.", callback=check_task),
    ] = None,
    rank: Annotated[int, typer.Option(help="Nominal rank.", min=1)] = RANK,
    samples: Annotated[int, typer.Option(help="Calibration samples.", min=1)] = SAMPLES,
    length: Annotated[
        int | None, typer.Option(help=f"Tokens of a sample. Default: the longest of the data, or {LENGTH}.", min=1)
    ] = None,
    labels: Annotated[
        int | None, typer.Option(help="Labeled tokens of a sample. Default: the most of the data, or all.", min=1)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at once.", min=1)] = BATCH_SIZE,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the weights.")] = DTYPE,
    bits: Annotated[int | None, typer.Option(help="4 or 8, of a base that bitsandbytes quantizes.")] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations twice when training.")
    ] = False,
    optim: Annotated[str, typer.Option(help="As in TrainingArguments, e.g. paged_adamw_8bit.")] = OPTIMIZER,
    gpus: Annotated[int, typer.Option(help="GPUs that FSDP2 shards the base over; 0: the CPU.", min=0)] = 1,
    sketch_size: Annotated[int, typer.Option(help="Columns of a sketch of a covariance.", min=1)] = SKETCH_SIZE,
    fisher: Annotated[bool, typer.Option(help="Keep what kind fisher needs, as tlora run does.")] = True,
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

    Examples
    --------
    `tlora estimate --model smollm2-135m --data notebooks/data/smart_home --memory 4`

    `tlora estimate --model NousResearch/Llama-2-7b-hf --dtype bfloat16 --batch-size 4 --length 1024 --memory 40`

    `tlora estimate --model llama-70b/config.json --dtype bfloat16 --gpus 8 --memory 80 --teraflops 300`
    """
    from tlora.resource_estimate import matmul_speed

    show_own_warnings()
    found, measured = ({}, "") if task is None else _measure_lengths(model, task)
    found |= {name: ctx.params[name] for name in ("length", "labels", "num_labels") if ctx.params[name] is not None}
    shared = ctx.params.keys() - {"target_modules", "memory", "teraflops", "as_json", "task"}
    resources = tlora.estimate(
        **{name: ctx.params[name] for name in shared} | {"length": LENGTH} | found,
        target_modules=module_selection(target_modules),
        speed=matmul_speed(dtype=dtype) if teraflops is None else 1e12 * teraflops,
        memory=None if memory is None else 1e9 * memory,
    )
    frame, trainable, limit = resources.to_frame(), resources.trainable, resources.memory
    if as_json:
        counts = {"parameters": resources.parameters, "modules": len(resources.shapes), "trainable": trainable}
        stages = {"stages": frame.to_dict("records"), "choices": resources.choices.to_dict("records")}
        print_json({**counts, **stages, "changes": resources.changes})
        return
    assumed = resources.meta.recipe
    where = f"{gpus} GPUs" if gpus > 1 else "a GPU" if gpus else "the CPU"
    about = {
        "model": f"{resources.meta.model}, {resources.parameters:,} parameters",
        "adapts": f"{len(resources.shapes)} modules with {len(set(resources.shared.values()))} distinct inputs",
        "trains": f"{trainable['B']:,} parameters (A frozen), {trainable['A and B']:,} (LoRA)",
        "data": measured,
        "assumes": f"batches of {batch_size} samples of {assumed['length']:,} tokens, {assumed['labels']:,} of them "
        f"labeled; {dtype}{f', {bits} bits' if bits else ''}; rank {rank}; {optim}; {where}",
        "speed": f"{(resources.speed or 0) / 1e12:.3g} teraflops a second{' of this CPU' if teraflops is None else ''}",
    }
    rows = [["stage", "memory", "activations", "teraflops", "at least", *(["fits"] if limit else [])]]
    for row in frame.itertuples():
        work = [f"{row.teraflops:.3g}", f"{row.seconds:.3g} s"] if row.teraflops else ["", ""]
        stored = size_text(1e9 * row.activations) if row.activations else ""
        kind = row.stage.removeprefix("training ")
        stage = f"training, {TRAININGS[kind]}: one step" if kind in TRAININGS else row.stage
        rows.append([stage, size_text(1e9 * row.gigabytes), stored, *work, *([_yes(row.fits)] if limit else [])])
    typer.echo(f"{facts_text(about)}\n\n{table_text(rows)}")
    if limit:
        typer.echo(f"\nTraining in {size_text(limit)}, the cheapest first:\n{_choices_table(resources)}")
    if limit and resources.changes:
        rows = [["change, one after the other", "most memory", "what it costs"]]
        rows += [[_change(ctx, each["change"]), size_text(each["bytes"]), each["costs"]] for each in resources.changes]
        ending = "" if resources.changes[-1]["bytes"] <= limit else ", which is still too little"
        typer.echo(f"\nTo fit LoRA and its calibration into {size_text(limit)}{ending}:\n{table_text(rows)}")
    if following := _next_command(ctx, resources):
        typer.echo(f"\n{facts_text({'next': following})}")


def _measure_lengths(model: str, task: str) -> tuple[dict[str, Any], str]:
    """Return the arguments of `tlora.estimate` that the samples of a task decide, and the samples in words."""
    from tlora.models.forward import IGNORED
    from tlora.tasks.load import load_task_for_model

    data = load_task_for_model(model, task, progress=False, **Data(task=task).sizes())
    lengths = [len(ids) for ids in data.train["input_ids"]]
    found: dict[str, Any] = {"length": max(lengths), "num_labels": data.num_labels}
    if data.num_labels is None:
        found["labels"] = max(sum(label != IGNORED for label in labels) for labels in data.train["labels"])
    mean = sum(lengths) / len(lengths)
    return found, f"{len(lengths):,} samples of {min(lengths):,} to {max(lengths):,} tokens, {mean:,.0f} on average"


def _choices_table(resources: tlora.ResourceEstimate) -> str:
    size, length = resources.meta.recipe["batch_size"], resources.meta.recipe["length"]
    head = ["", "checkpointing", "memory", "fits", f"samples of {length:,}", f"tokens of {size} samples", "teraflops"]
    rows = [[*head, "at least"]]
    for row in resources.choices.itertuples():
        sizes = [f"{row.batch_size:,}", f"{row.length:,}"]
        work = [f"{row.teraflops:.3g}", f"{row.seconds:.3g} s"]
        answers = [_yes(row.gradient_checkpointing), size_text(1e9 * row.gigabytes), _yes(row.fits)]
        rows.append([TRAININGS[row.training], *answers, *sizes, *work])
    return table_text(rows)


def _yes(is_true: bool) -> str:
    return "yes" if is_true else "no"


def _change(ctx: typer.Context, text: str) -> str:
    """Return a change in the options of tlora run; what it has no option for is there in Python alone."""
    run = ctx.find_root().command.commands["run"]  # type: ignore[attr-defined]
    bare = text.removeprefix("quantization_config=BitsAndBytesConfig(").removesuffix(")")
    return text if "=" in (change := in_options(bare, run)) else change


def _next_command(ctx: typer.Context, resources: tlora.ResourceEstimate) -> str:
    """Return the line that trains what fits and takes the least time; LoRA without a limit, nothing if none fits."""
    if ctx.params["bits"] == 8:  # which tlora run has no option for
        return ""
    values = ctx.params | {"task": ctx.params["task"] or "TASK", "load_in_4bit": ctx.params["bits"] == 4}
    if (config := Path(values["model"])).is_file() and config.suffix == ".json":
        values["model"] = str(config.parent) if any(config.parent.glob("*.safetensors")) else "MODEL"
    if resources.memory is not None:
        chosen = resources.choices[resources.choices["fits"] & resources.choices["training"].isin(TRAINED_PARTS)]
        if chosen.empty:
            return ""
        values["gradient_checkpointing"] = bool(chosen["gradient_checkpointing"].iloc[0])
        values["recipe"] = "tlora" if chosen["training"].iloc[0] == "B" else "lora"
        if resources.bytes["calibration, covariances whole"] > resources.memory:
            values["covariance"] = "sketch"
    return next_command(ctx, "run", values)
