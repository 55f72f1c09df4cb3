"""`tlora estimate`: memory and time of a model, before any of its weights is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tlora
from tlora.allocation.footprint import TRAINED_PARTS, TRAININGS
from tlora.cli.checks import check_positive, check_task
from tlora.cli.command_line import next_command
from tlora.cli.options import Data, Json, Model, TargetModules, module_selection
from tlora.cli.output import print_json, show_own_warnings, summary_text
from tlora.utils.defaults import (
    BATCH_SIZE,
    DEFAULT_RECIPE,
    DTYPE,
    LENGTH,
    OPTIMIZER,
    RANK,
    SAMPLES,
    SKETCH_SIZE,
    Dtype,
)
from tlora.utils.text import facts_text, size_text, table_text

if TYPE_CHECKING:
    from tlora.resources.estimate import ResourceEstimate


def estimate(
    ctx: typer.Context,
    model: Model,
    task: Annotated[
        str | None,
        typer.Argument(metavar="[TASK]", help="Measure length and labels on its samples.", callback=check_task),
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
        bool, typer.Option("--gradient-checkpointing", help="Compute activations twice.")
    ] = False,
    optim: Annotated[str, typer.Option(help="As in TrainingArguments, e.g. paged_adamw_8bit.")] = OPTIMIZER,
    gpus: Annotated[int, typer.Option(help="GPUs that FSDP2 shards the base over; 0: the CPU.", min=0)] = 1,
    sketch_size: Annotated[int, typer.Option(help="Columns of a sketch of a covariance.", min=1)] = SKETCH_SIZE,
    fisher: Annotated[bool, typer.Option(help="Keep what kind fisher needs, as tlora run does.")] = True,
    num_labels: Annotated[int | None, typer.Option(help="Classes, for a classifier.", min=1)] = None,
    target_modules: TargetModules = (),  # type: ignore[assignment]
    memory: Annotated[
        float | None, typer.Option(help="Gigabytes of a GPU: what fits, and how.", callback=check_positive)
    ] = None,
    teraflops: Annotated[
        float | None,
        typer.Option(
            help="Speed of a GPU, or of the CPU with --gpus 0. Default: that of this machine's, if it has one.",
            callback=check_positive,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Modules, parameters, memory and time of calibration and of a step of training, from the model's config alone.

    The model's own code is run on tensors that have a shape and no data.

    Examples
    --------
    `tlora estimate smollm2-135m notebooks/data/smart_home --memory 4`

    `tlora estimate NousResearch/Llama-2-7b-hf --dtype bfloat16 --batch-size 4 --length 1024 --memory 40`

    `tlora estimate llama-70b/config.json --dtype bfloat16 --gpus 8 --memory 80 --teraflops 300`
    """
    show_own_warnings()
    lengths, measured = ({}, "") if task is None else _measure_lengths(model, task)
    lengths |= {name: ctx.params[name] for name in ("length", "labels", "num_labels") if ctx.params[name] is not None}
    shared = ctx.params.keys() - {"target_modules", "memory", "teraflops", "as_json", "task"}
    resources = tlora.estimate(
        **{name: ctx.params[name] for name in shared} | {"length": LENGTH} | lengths,
        target_modules=module_selection(target_modules),
        speed=_measure_speed(gpus, dtype) if teraflops is None else 1e12 * teraflops,
        memory=None if memory is None else 1e9 * memory,
    )
    if as_json:
        counts = {"parameters": resources.parameters, "modules": len(resources.shapes)}
        tables = {"stages": resources.to_frame(), "what_fits": resources.what_fits}
        records = {name: table.to_dict("records") for name, table in tables.items()}
        print_json(counts | {"trainable": resources.trainable} | records)
        return
    assumed, trainable = resources.meta.recipe, resources.trainable
    where = f"{gpus} GPUs" if gpus > 1 else "a GPU" if gpus else "the CPU"
    source = "" if teraflops else " of this machine's GPU" if gpus else " of this CPU"
    about = {
        "model": f"{resources.meta.model}, {resources.parameters:,} parameters",
        "adapts": f"{len(resources.shapes)} modules with {len(set(resources.shared.values()))} distinct inputs",
        "trains": f"{trainable['B']:,} parameters (A frozen), {trainable['A and B']:,} (LoRA)",
        "data": measured,
        "assumes": f"batches of {batch_size} samples of {assumed['length']:,} tokens, {assumed['labels']:,} of them "
        f"labeled; {dtype}{f', {bits} bits' if bits else ''}; rank {rank}; {optim}; {where}",
        "speed": f"{resources.speed / 1e12:.3g} teraflops per second{source}" if resources.speed else "",
    }
    typer.echo(f"{facts_text(about)}\n\n{_stages_table(resources)}")
    if resources.memory:
        typer.echo(f"\n{_what_fits_table(resources)}")
    if following := _following(ctx, resources, is_measured=task is not None and length is None):
        typer.echo(f"\n{summary_text(following)}")


def _measure_speed(gpus: int, dtype: str) -> float | None:
    """Return the speed of what the estimate is about, if this machine has it: of a GPU, or of the CPU."""
    import torch

    from tlora.resources.matmul_speed import matmul_speed

    if gpus and not torch.cuda.is_available():
        return None
    return matmul_speed("cuda" if gpus else "cpu", dtype)


def _measure_lengths(model: str, task: str) -> tuple[dict[str, Any], str]:
    """Return the arguments of `tlora.estimate` that the samples of a task decide, and the samples in words."""
    from tlora.models.forward import IGNORED
    from tlora.tasks.load import load_task_for_model
    from tlora.tasks.splits import TooFewSamplesError

    try:
        data = load_task_for_model(model, task, {}, progress=False, **Data(task=task).sizes())
    except TooFewSamplesError as error:
        raise ValueError(f"{error.finding}: give more, or leave TASK out and give --length and --labels") from error
    rows = data.train if len(data.train) else data.test
    lengths = [len(ids) for ids in rows["input_ids"]]
    measured: dict[str, Any] = {"length": max(lengths), "num_labels": data.num_labels}
    if data.num_labels is None:
        measured["labels"] = max(sum(label != IGNORED for label in labels) for labels in rows["labels"])
    mean = sum(lengths) / len(lengths)
    return measured, f"{len(lengths):,} samples of {min(lengths):,} to {max(lengths):,} tokens, {mean:,.0f} on average"


def _stages_table(resources: ResourceEstimate) -> str:
    has_speed, has_limit = resources.speed is not None, resources.memory is not None
    times, answers = ["at least"] if has_speed else [], ["fits"] if has_limit else []
    rows = [["stage", "memory", "activations", "teraflops", *times, *answers]]
    for row in resources.to_frame().itertuples():
        stored = size_text(1e9 * row.activations) if row.activations else ""
        kind = row.stage.removeprefix("training ")
        cells = [f"training, {TRAININGS[kind]}: one step" if kind in TRAININGS else row.stage]
        cells += [size_text(1e9 * row.gigabytes), stored, f"{row.teraflops:.3g}" if row.teraflops else ""]
        if has_speed:
            cells.append(f"{row.seconds:.3g} s" if row.teraflops else "")
        rows.append([*cells, _yes(row.fits)] if has_limit else cells)
    return table_text(rows)


def _what_fits_table(resources: ResourceEstimate) -> str:
    """Return the ways to train under a heading that says how to read them."""
    ways, length, limit = resources.what_fits, resources.meta.recipe["length"], size_text(resources.memory or 0)
    head = ["", "checkpointing", "batch", "covariances", "calibration", "training", "fits"]
    rows = [[*head, f"most samples of {length:,}", "most tokens", "teraflops"]]
    rows[0] += ["at least"] if resources.speed else []
    for way in ways.itertuples():
        batches = way.gradient_accumulation_steps
        batch = f"{way.batch_size} x {batches}" if batches > 1 else str(way.batch_size)
        sizes = [size_text(1e9 * way.calibration_gigabytes), size_text(1e9 * way.gigabytes)]
        covariances = f"{way.covariance}, on the host" if way.statistics == "host" else way.covariance
        cells = [_yes(way.gradient_checkpointing), batch, covariances, *sizes, _fitting(way, resources.memory or 0)]
        cells += [f"{way.most_samples:,}", f"{way.most_tokens:,}", f"{way.teraflops:.3g}"]
        rows.append([_name(way, resources), *cells, *([f"{way.seconds:.3g} s"] if resources.speed else [])])
    order = "the way to take first" if ways["fits"].any() else "nothing; the ways that lack the least first"
    return f"What fits into {limit}, {order}:\n{table_text(rows)}"


def _name(way: Any, resources: ResourceEstimate) -> str:
    """Return the trained part, and how the base, the optimizer and the GPUs differ from what was asked."""
    asked = resources.meta.recipe
    changes = {
        f"{way.bits} bits": way.bits == 4 and asked["bits"] != 4,
        way.optim: way.optim != asked["optim"],
        f"{way.gpus} GPUs": way.gpus != asked["gpus"],
    }
    return ", ".join([TRAININGS[way.training], *(text for text, is_changed in changes.items() if is_changed)])


def _fitting(way: Any, memory: float) -> str:
    """Return which of calibration and training fit."""
    parts = {"calibration": way.calibration_gigabytes, "training": way.gigabytes}
    fitting = [name for name, gigabytes in parts.items() if 1e9 * gigabytes <= memory]
    return "yes" if way.fits else f"{fitting[0]} only" if fitting else "no"


def _yes(is_true: bool) -> str:
    return "yes" if is_true else "no"


def _following(ctx: typer.Context, resources: ResourceEstimate, *, is_measured: bool) -> dict[str, str]:
    """Return what the first way that fits costs, and the command that takes it, or what it needs in Python.

    Without a limit it is the first with the gradient checkpointing that was asked for.
    """
    ways, asked = resources.what_fits, resources.meta.recipe
    if resources.memory is None:
        ways = ways[ways["gradient_checkpointing"] == asked["gradient_checkpointing"]]
    way = next(ways.itertuples())
    if way.fits is False:
        return {}
    costs = {"costs": way.costs} if resources.memory else {}
    is_quantized_here = way.bits < 16 and (ctx.params["bits"] is not None or asked["bits"] is None)
    in_python = {
        "autocast_adapter_dtype=False in PEFT": way.training not in TRAINED_PARTS,
        "tlora.load_model(..., quantization_config=BitsAndBytesConfig(load_in_8bit=True))": is_quantized_here
        and way.bits == 8,
        f"tlora.train(..., optim={way.optim!r})": way.optim != OPTIMIZER,
        f"the base sharded over {way.gpus} GPUs by FSDP2": way.gpus > 1,
    }
    if needs := [text for text, is_needed in in_python.items() if is_needed]:
        return costs | {"in Python": "; ".join(needs)}
    values = ctx.params | {
        "task": ctx.params["task"] or "TASK",
        "load_in_4bit": is_quantized_here,
        "device": None if way.gpus else "cpu",
        "max_length": None if is_measured else asked["length"],
        "recipe": DEFAULT_RECIPE if way.training == "B" else "lora",
        "covariance": way.covariance,
        "statistics": way.statistics if way.statistics == "host" else None,
        "batch_size": way.batch_size,
        "calibration_batch_size": min(way.batch_size, BATCH_SIZE),
        "gradient_accumulation": way.gradient_accumulation_steps,
        "gradient_checkpointing": way.gradient_checkpointing,
    }
    if (config := Path(values["model"])).is_file() and config.suffix == ".json":
        values["model"] = str(config.parent) if any(config.parent.glob("*.safetensors")) else "MODEL"
    return costs | {"next": next_command(ctx, "run", values)}
