"""The commands of the pipeline: run, init, calibrate, allocate, train."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import tlora
from tlora.cli.checks import check_model, check_saved_result
from tlora.cli.command_line import again, flatten_options, next_command, with_suffix
from tlora.cli.loading import load_base
from tlora.cli.options import (
    AdapterFlags,
    AllocationFlags,
    CalibrationFlags,
    Config,
    Data,
    Model,
    Output,
    Overwrite,
    Placement,
    Quiet,
    Read,
    Recipe,
    TrainingFlags,
    apply_recipe,
    module_selection,
    option,
)
from tlora.cli.output import Report, allocation_text, draw_into, load_viz, run_facts
from tlora.utils.defaults import BATCH_SIZE, DEFAULT_RECIPE, KIND, KINDS, RANK, SAMPLES, Kind
from tlora.utils.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RESULT_SUFFIX, result_file
from tlora.utils.files import check_place, replace_file, replace_files
from tlora.utils.text import count_text, facts_text, metrics_text, table_text

DEFAULT_NOTE = (
    "recipe tlora: A is frozen, which saves memory, and in our study it learned as much as LoRA on three of four "
    "tasks. Where every token had to be learned, plain LoRA learned more: --recipe lora trains it, and tlora race "
    "compares the two on your task"
)
RESULTS = "tlora"
"""Folder of the results in that of an adapter."""

CHECKPOINTS = "checkpoints"
READS = "reads.html"
CALIBRATION, ALLOCATION = "calibration.safetensors", "allocation.safetensors"


@flatten_options
def run(
    ctx: typer.Context,
    model: Model,
    data: Data,
    output: Output,
    placement: Placement,
    calibrating: CalibrationFlags,
    allocating: AllocationFlags,
    start: AdapterFlags,
    training: TrainingFlags,
    recipe: Recipe = DEFAULT_RECIPE,
    save_calibration: Annotated[
        bool,
        option(
            "Output",
            "Keep the calibration (large: 360 MB for smollm2-135m) and the subspaces too.",
            "--save-calibration",
        ),
    ] = False,
    read: Read = False,
    config: Config = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """The whole pipeline: calibrate, allocate, train, evaluate before and after, save, draw.

    Freezes `A` along the input directions with the largest squared gradient, gives more rank to modules where these
    directions capture more of it, and trains `B`; --recipe chooses another method. Writes an ordinary PEFT adapter; in
    its folder also `tlora/` (run, sensitivity, spectrum, allocation), `pictures/` and a model card.
    If training is interrupted, the calibration, the allocation and the checkpoints stay in OUTPUT-unfinished.

    Examples
    --------
    `tlora run --model smollm2-135m --task family_relationships --output demo`

    `tlora run --model minilm --task rotten_tomatoes --train-samples 1000 --output reviews`

    `tlora run --model models/qwen --task answers.jsonl --rank 32 --lr 5e-4 --output answers`

    `tlora run --model smollm2-135m --task chain_sum --recipe tlora-paper --output sums`: ranks by sensitivity

    `tlora run --config reviews/tlora/run.yaml --seed 1 --output reviews-1`
    """
    source = ctx.get_parameter_source("recipe")
    is_default = start.init is None and source is not None and source.name == "DEFAULT"
    allocating, start, training = apply_recipe(recipe, allocating, start, training)
    work, report = unfinished(output), Report(quiet)
    check_place(output, ADAPTER_WEIGHTS, overwrite=overwrite)
    refuse_leftover(work, overwrite)
    check_training(training, placement, output)
    if read:
        load_viz()
    if is_default:
        report.say(DEFAULT_NOTE)
    base, task = load_base(model, data, placement, report)
    origin = describe_origin(ctx, data, placement)
    run_on_first(lambda: shutil.rmtree(work, ignore_errors=True))
    with note_what_is_kept(ctx, output) as kept:
        adapted, results = start_adapter(
            base, task, calibrating, allocating, start, data.seed, origin, report, work, read, training.batch_size
        )
        activations = results.pop("activations", None)
        trained = train_adapter(adapted, task, training, work, data.seed, origin, report)
        if not save_calibration:
            results.pop("subspaces", None)
        run_on_first(lambda: save_run(trained, results, output))
        kept["saved"] = str(output)
        run_on_first(lambda: save_options(ctx, output))
        if activations is not None:
            run_on_first(lambda: load_viz().report(output, output / READS, activations=activations))
        run_on_first(lambda: conclude(ctx, trained, results, output, report))


@flatten_options
def calibrate(
    ctx: typer.Context,
    model: Model,
    data: Data,
    output: Output,
    placement: Placement,
    calibrating: CalibrationFlags,
    gradient: Annotated[
        bool, option("Calibration", "Keep the mean gradients, for subspaces of kind g.", "--gradient")
    ] = False,
    fisher: Annotated[
        bool,
        option("Calibration", "Keep the inputs' second moments weighted by gradients, for kind fisher."),
    ] = True,
    checkpoint: Annotated[
        Path | None,
        option(
            "Calibration", "Folder to save the progress in every five minutes, and to resume from.", file_okay=False
        ),
    ] = None,
    read: Read = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Covariance and sensitivity of every target module, from a few training samples.

    One forward and backward pass; nothing is trained. Writes a Calibration.

    Examples
    --------
    `tlora calibrate --model smollm2-135m --task family_relationships --samples 32 --output calib`

    `tlora calibrate --model models/qwen --task chats.jsonl --tokens labels --gradient --output calib`

    `tlora calibrate --model models/llama --task gsm8k --covariance sketch --checkpoint steps --output calib`: run again
    after a kill, or with more `--samples`, it resumes
    """
    check_result_place(output, "Calibration", overwrite)
    page = with_suffix(result_file(output).with_suffix(""), f"-{READS}")
    if read:
        check_place(page, overwrite=overwrite)
        load_viz()
    report = Report(quiet)
    base, task = load_base(model, data, placement, report)
    needs = {"gradient": gradient, "fisher": fisher}
    calibration = calibrate_on(
        base, task, calibrating, needs, describe_origin(ctx, data, placement), report, checkpoint
    )
    run_on_first(lambda: calibration.save(output))
    if read:
        activations = read_directions(base, task, calibration, KIND, data.seed, report)
        bench = load_viz().Workbench(calibration, activations=activations)
        run_on_first(lambda: bench.page(page, texts=True))
        typer.echo(f"{page}: {activations.headline}\n")
    frame = calibration.sensitivity.to_frame().nlargest(5, "score")
    rows = [[r.module, f"{r.score:.3g}", f"{100 * r.share:.1f} %"] for r in frame.itertuples()]
    typer.echo(f"{calibration!r}\n\n{table_text([['most sensitive', 'score', 'of all'], *rows])}\n")
    following: dict[str, Any] = {"calibration": output, "output": output.with_name("alloc")}
    if not fisher:
        following["recipe"] = "tlora-paper"
    conclude_step(ctx, result_file(output), next_command(ctx, "allocate", following))


@flatten_options
def allocate(
    ctx: typer.Context,
    calibration: Annotated[Path, typer.Argument(help="A calibration.", callback=check_saved_result)],
    output: Output,
    allocating: AllocationFlags,
    start: AdapterFlags,
    recipe: Recipe = DEFAULT_RECIPE,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Rank and scaling of every module, within a budget: where directions capture most of the gradient, or by score.

    Takes seconds and no model. Writes an Allocation, and shows it by projection. Options of the adapter go on to
    tlora train, in the last line.

    Examples
    --------
    `tlora allocate calib --rank 8 --output alloc`

    `tlora allocate calib --rank 8 --recipe tlora-paper --max-rank 64 --output alloc`: by sensitivity, as published
    """
    from tlora.recipes import allocate_and_decompose

    check_result_place(output, "Allocation", overwrite)
    allocating, start = apply_recipe(recipe, allocating, start)
    calibrated = tlora.Calibration.load(calibration)
    made_by = calibrated.meta.recipe
    data = made_by.get("data", {"task": calibrated.meta.task or "TASK"})
    arguments, seed, report = asdict(allocating.limit_to(start.directions, made_by)), data.get("seed", 0), Report(quiet)

    def decompose(ranks: int | tlora.Allocation) -> tlora.Subspaces | None:
        is_allocated = isinstance(ranks, tlora.Allocation)  # training decomposes up to these ranks
        return None if is_allocated else decompose_on(None, calibrated, start.directions, seed, report, ranks)

    allocation, _ = allocate_and_decompose(calibrated.sensitivity, arguments, decompose)
    allocation = add_origin(allocation, {"command": again(ctx)})
    allocation.save(output)
    typer.echo(allocation_text(allocation, bool(start.freeze_a)))
    following = ctx.params | made_by.get("placement", {}) | data | {"model": calibrated.meta.model}
    following |= {"calibration": calibration, "allocation": output, "output": output.with_name("adapter")}
    conclude_step(ctx, result_file(output), next_command(ctx, "train", following | {"overwrite": False}))


@flatten_options
def init(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Base model, as for --model elsewhere.", callback=check_model)],
    data: Data,
    output: Output,
    placement: Placement,
    calibrating: CalibrationFlags,
    allocating: AllocationFlags,
    start: AdapterFlags,
    recipe: Recipe = "tlora",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """An untrained adapter from a few samples, for a trainer of your own to continue from.

    Writes an ordinary PEFT adapter whose B is zero; in its folder also `tlora/` (the sensitivity, the spectrum, the
    allocation) and a README with the lines for PEFT, TRL, LLaMA-Factory and axolotl.

    Examples
    --------
    `tlora init models/qwen --data chats.jsonl --rank 16 --output start`

    `tlora init minilm --data rotten_tomatoes --recipe tlora-trained --output start`
    """
    allocating, start = apply_recipe(recipe, allocating, start)
    check_place(output, ADAPTER_WEIGHTS, overwrite=overwrite)
    from tlora.adapters.files import PAGE, SAVE_INITIAL, refuse_other_writer

    refuse_other_writer(output, SAVE_INITIAL)
    report = Report(quiet)
    base, task = load_base(model, data, placement, report)
    origin = describe_origin(ctx, data, placement)
    adapted, results = start_adapter(base, task, calibrating, allocating, start, data.seed, origin, report)
    results.pop("subspaces", None)

    def save() -> None:
        for name, result in results.items():
            result.save(output / RESULTS / name)
        tlora.save_initial(adapted, output)  # last: a folder with an adapter is whole

    run_on_first(save)
    typer.echo(allocation_text(results["allocation"], bool(start.freeze_a)))
    conclude_step(ctx, output, f"see {output / PAGE}")


@flatten_options
def train(
    ctx: typer.Context,
    model: Model,
    data: Data,
    allocation: Annotated[Path, option("Adapter", "An allocation.", "--allocation", callback=check_saved_result)],
    output: Output,
    placement: Placement,
    start: AdapterFlags,
    training: TrainingFlags,
    calibration: Annotated[
        Path | None,
        option("Adapter", "A calibration; --no-init needs none.", "--calibration", callback=check_saved_result),
    ] = None,
    recipe: Recipe = "tlora",
    resume: Annotated[
        bool, option("Training", "Resume from the last checkpoint in OUTPUT-unfinished.", "--resume")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train an adapter from a calibration and an allocation, with the metrics before and after.

    Writes what `tlora run` writes, except for `tlora/run.yaml`.

    Examples
    --------
    `tlora train --model smollm2-135m --task family_relationships --calibration calib --allocation alloc --output trial`

    The same with `--resume --overwrite` resumes an interrupted training from its last checkpoint.
    """
    start, training = apply_recipe(recipe, start, training)
    if start.init and calibration is None:
        raise ValueError("the initial A comes from a calibration: pass --calibration, or --no-init")
    work, report = unfinished(output), Report(quiet)
    check_place(output, ADAPTER_WEIGHTS, overwrite=overwrite)
    for checkpoint in () if resume else (work / CHECKPOINTS).glob("checkpoint-*"):
        refuse_leftover(checkpoint, overwrite)
    check_training(training, placement, output)
    allocated = tlora.Allocation.load(allocation)
    calibrated = tlora.Calibration.load(calibration) if calibration else None
    chosen = allocated.meta.recipe.get("kind") if allocated.options.is_by_energy else None
    if chosen and start.directions and chosen != start.directions:
        raise ValueError(
            f"the ranks of {allocation} were chosen along directions of kind {chosen}, and A would start from kind "
            f"{start.directions}: pass --kind {chosen}, or allocate with the --recipe or --kind of this command"
        )
    base, task = load_base(model, data, placement, report)
    if calibrated and calibrated.meta.task not in ("", task.name):
        warnings.warn(
            f"{calibration} is of {calibrated.meta.task}, and this trains on {task.name}: is that meant?", stacklevel=1
        )
    if not resume:
        run_on_first(lambda: shutil.rmtree(work / CHECKPOINTS, ignore_errors=True))
    with note_what_is_kept(ctx, output) as kept:
        known = max(map(len, allocated.energies.values()), default=0)  # the directions that the ranks were chosen from
        subspaces = decompose_on(base, calibrated, start.directions, data.seed, report, known or allocated)
        adapted, results = attach_adapter(base, calibrated, allocated, subspaces, start, data.seed, report)
        del calibrated  # large
        results.pop("subspaces", None)
        trained = train_adapter(
            adapted, task, training, work, data.seed, describe_origin(ctx, data, placement), report, resume
        )
        run_on_first(lambda: save_run(trained, results, output))
        kept["saved"] = str(output)
        run_on_first(lambda: conclude(ctx, trained, results, output, report))


def unfinished(output: Path) -> Path:
    """Return where a run keeps its results until it is whole: a folder in the same place as its output."""
    return with_suffix(output, "-unfinished")


def check_result_place(output: Path, kind: str, overwrite: bool) -> None:
    """Refuse to replace a result unless asked to, and one of another kind in any case."""
    check_place(result_file(output), overwrite=overwrite)
    from tlora.results import refuse_other_file

    refuse_other_file(result_file(output), kind)


def refuse_leftover(folder: Path, overwrite: bool) -> None:
    """Refuse to replace what an interrupted run has left."""
    if folder.exists() and not overwrite:
        raise FileExistsError(
            f"{folder} is left from an interrupted run: resume with tlora train and the run's --recipe (--resume if "
            "there are checkpoints), remove it, or start again with --overwrite"
        )


def check_training(training: TrainingFlags, placement: Placement, output: Path) -> None:
    """Refuse a device, a logger or a folder that training would refuse after the calibration."""
    from tlora.adapters.files import TRAINING, refuse_other_writer
    from tlora.models.loading import resolve_device
    from tlora.training.arguments import check_gpu, check_report

    refuse_other_writer(output, TRAINING)
    check_report(training.report_to)
    check_gpu(resolve_device(placement.device, {}))


def start_adapter(
    model: Any,
    task: tlora.Task,
    calibrating: CalibrationFlags,
    allocating: AllocationFlags,
    start: AdapterFlags,
    seed: int,
    origin: Mapping[str, Any],
    report: Report,
    work: Path | None = None,
    read: bool = False,
    batch_size: int = BATCH_SIZE,
) -> tuple[Any, dict[str, Any]]:
    """Calibrate, allocate and attach, and keep the calibration and the allocation in a work folder."""
    from tlora.allocation.allocate import check_limits
    from tlora.recipes import allocate_and_decompose

    allocating = allocating.limit_to(start.directions, asdict(calibrating))
    check_limits(tlora.target_modules(model, module_selection(calibrating.target_modules)), **asdict(allocating))
    calibration = calibrate_on(model, task, calibrating, start.needs, origin, report, batch_size=batch_size)
    if work:
        run_on_first(lambda: calibration.save(work / CALIBRATION))
    activations = {}
    if read:
        activations["activations"] = read_directions(model, task, calibration, start.kind or KIND, seed, report)
    decompose = partial(decompose_on, model, calibration, start.directions, seed, report)
    allocation, subspaces = allocate_and_decompose(calibration.sensitivity, asdict(allocating), decompose)
    allocation = add_origin(allocation, origin)
    if work:
        run_on_first(lambda: allocation.save(work / ALLOCATION))
    adapted, results = attach_adapter(model, calibration, allocation, subspaces, start, seed, report)
    return adapted, results | activations


def calibrate_on(
    model: Any,
    task: tlora.Task,
    calibrating: CalibrationFlags,
    needs: Mapping[str, bool],
    origin: Mapping[str, Any],
    report: Report,
    checkpoint: Path | None = None,
    batch_size: int = BATCH_SIZE,
) -> tlora.Calibration:
    """Calibrate on training samples of the task, in batches no larger than those of the training."""
    from tlora.utils.distributed import Processes

    each = max(1, calibrating.samples // Processes.current().count)  # so that every process has a batch
    batches = task.calibration(calibrating.samples, min(BATCH_SIZE, batch_size, each))
    options: dict[str, Any] = {**needs, "checkpoint": checkpoint, "progress": report.progress}
    with report.step(f"calibrating on {count_text(calibrating.samples, 'sample')}"):
        calibration = tlora.calibrate(model, batches, **calibrating.arguments(), **options)
    if calibrating.tokens == "task":
        report.say(f"  left out: {constant_text(calibration.meta.recipe['constant_tokens'], task.tokenizer)}")
    sensitivity = add_origin(calibration.sensitivity, origin)
    return replace(add_origin(calibration, origin), sensitivity=sensitivity)


def read_directions(
    model: Any, task: tlora.Task, calibration: tlora.Calibration, kind: Kind, seed: int, report: Report
) -> tlora.DirectionActivations:
    """Read validation samples, or those of the calibration if there are none, along the first directions.

    Beside the directions of ``kind``, those of the gradients that the calibration kept.
    """
    of_gradients = [k for k, facts in KINDS.items() if facts.needs and getattr(calibration, facts.needs) is not None]
    kinds: list[Kind] = list(dict.fromkeys([kind, *of_gradients]))
    from tlora.tasks.task import first_batches

    batches = first_batches(task, SAMPLES)
    with report.step(f"reading along the first {RANK} directions of kind {' and '.join(kinds)}"):
        subspaces: dict[str, tlora.Subspaces] = {
            kind: tlora.task_subspaces(model, calibration, max_rank=RANK, kind=kind, seed=seed, progress=False)
            for kind in kinds
        }
        options: dict[str, Any] = {"tokenizer": task.tokenizer, "task": task.name, "progress": report.progress}
        return tlora.direction_activations(model, subspaces, batches or task.calibration(SAMPLES), **options)


def constant_text(constant: Mapping[str, Mapping[str, list[int]]], tokenizer: Any) -> str:
    """Return what each part of all samples begins and ends with, in a line."""
    from tlora.tasks.chat import decode_tokens

    parts = []
    for part, prefix in constant["prefixes"].items():
        ends = [decode_tokens(tokenizer, ids, special=True) for ids in (prefix, constant["suffixes"][part])]
        if any(ends):
            parts.append(f"{part} " + " ... ".join(repr(end) if end else "" for end in ends).strip())
    return "; ".join(parts) or "nothing, the samples have no prefix or suffix in common"


def decompose_on(
    model: Any,
    calibration: tlora.Calibration | None,
    kind: Kind | None,
    seed: int,
    report: Report,
    ranks: int | tlora.Allocation,
) -> tlora.Subspaces | None:
    """Compute the subspaces up to these ranks; None if A is random."""
    if calibration is None or kind is None:
        return None
    most = ranks if isinstance(ranks, int) else max(ranks.ranks.values())
    options: dict[str, Any] = {"max_rank": ranks, "seed": seed, "progress": report.progress}
    with report.step(f"subspaces of kind {kind}, up to rank {most}"):
        return tlora.task_subspaces(model, calibration, kind=kind, **options)


def attach_adapter(
    model: Any,
    calibration: tlora.Calibration | None,
    allocation: tlora.Allocation,
    subspaces: tlora.Subspaces | None,
    start: AdapterFlags,
    seed: int,
    report: Report,
) -> tuple[Any, dict[str, Any]]:
    """Return the model with the adapter, and by name the results that it comes from."""
    results: dict[str, Any] = {"allocation": allocation}
    if calibration:
        with report.step("spectrum of the inputs"):
            results |= {"sensitivity": calibration.sensitivity, "spectrum": calibration.spectrum()}
    if subspaces:
        results["subspaces"] = subspaces
    options: dict[str, Any] = {"freeze_a": bool(start.freeze_a), "rows": start.rows, "seed": seed}
    return tlora.attach(model, subspaces, allocation, **options), results


def train_adapter(
    adapted: Any,
    task: tlora.Task,
    training: TrainingFlags,
    work: Path,
    seed: int,
    origin: Mapping[str, Any],
    report: Report,
    resume: bool = False,
) -> tlora.TrainingRun:
    """Train the adapter; checkpoints are in the work folder until the output is whole."""
    options: dict[str, Any] = {"output_dir": work / CHECKPOINTS, "resume": resume, "progress": report.progress}
    with report.step("training, with the metrics before and after"):
        run = tlora.train(adapted, task, seed=seed, **options, **training.arguments())
    labels = {"num_labels": task.num_labels, "classes": list(task.classes), "example": answer_one(adapted, task, run)}
    return add_origin(run, {**labels, **origin})


def answer_one(adapted: Any, task: tlora.Task, run: tlora.TrainingRun) -> dict[str, str]:
    """Return a held-out request and its answers for the model card; empty if no answers were evaluated."""
    if not run.after.keys() - {"loss", "perplexity"}:
        return {}
    row = task.predict(adapted, run.evaluated_on, 1).iloc[0]
    return {"request": str(row.iloc[0]), "answer": str(row["prediction"]), "reference": str(row["answer"])}


def describe_origin(ctx: typer.Context, data: Data, placement: Placement) -> dict[str, Any]:
    """Return what a result keeps of its command: the line, its data and the digest of their files, its placement."""
    from tlora.tasks.load import digest_task

    return {
        "command": again(ctx),
        "placement": asdict(placement),
        "data": asdict(data),
        "contents": digest_task(data.task, {}).get("task"),
    }


def add_origin(result: Any, origin: Mapping[str, Any]) -> Any:
    """Return a result with more in its recipe."""
    return replace(result, meta=replace(result.meta, recipe=result.meta.recipe | origin))


def run_on_first(act: Callable[[], object]) -> None:
    """Have the first of several processes write what all would write alike."""
    from tlora.utils.distributed import Processes

    Processes.current().run_on_first(act)


def save_run(run: tlora.TrainingRun, results: Mapping[str, tlora.Allocation], output: Path) -> None:
    """Write the adapter's folder with the results in it, all or nothing; those of an earlier run go."""
    from tlora.adapters.files import earlier_files

    earlier = [file.relative_to(output) for file in (output / RESULTS).glob(f"*{RESULT_SUFFIX}")]
    with replace_files(output, last=ADAPTER_CONFIG, earlier=[*earlier_files(output), *earlier]) as fresh:
        run.save(fresh)
        for name, result in results.items():
            result.save(fresh / RESULTS / name)


def save_options(ctx: typer.Context, output: Path) -> None:
    """Write the file that repeats a run."""
    import yaml

    skipped = ("config", "quiet", "overwrite")
    names = [parameter.name for parameter in ctx.command.params if parameter.name not in skipped]
    values = {name: value for name in names if (value := ctx.params.get(name)) is not None} | {"output": str(output)}
    with replace_file(output / RESULTS / "run.yaml") as fresh:
        fresh.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


@contextlib.contextmanager
def note_what_is_kept(ctx: typer.Context, output: Path) -> Iterator[dict[str, str]]:
    """Add to an error what is kept of the run, and how to resume it; the block adds what it has saved."""
    saved: dict[str, str] = {}
    try:
        yield saved
    except BaseException as error:
        if kept := saved | describe_kept(ctx, output):
            error.add_note(facts_text(kept))
        raise


def describe_kept(ctx: typer.Context, output: Path) -> dict[str, str]:
    """Return what is kept of an interrupted run, and the command that resumes it."""
    from tlora.training.checkpoints import is_complete

    work, values = unfinished(output), dict(ctx.params)
    for name, file in (("calibration", work / CALIBRATION), ("allocation", work / ALLOCATION)):
        if name not in values and file.exists():
            values[name] = file
    checkpoints = list((work / CHECKPOINTS).glob("checkpoint-*"))
    resume = any(map(is_complete, checkpoints))
    if len(values) == len(ctx.params) and not resume:
        return {}
    lines = []
    if values.get("allocation") is None:
        values["allocation"] = work / ALLOCATION
        lines.append(next_command(ctx, "allocate", values | {"output": work / ALLOCATION, "overwrite": False}))
    overwrite = values["overwrite"] or output.exists() or (bool(checkpoints) and not resume)
    lines.append(next_command(ctx, "train", values | {"resume": resume, "overwrite": overwrite}))
    following = " && ".join(lines)
    return {"kept": str(work), "next": following}


def conclude_step(ctx: typer.Context, output: Path, following: str) -> None:
    """Print what was saved, the command that made it, and the next one."""
    typer.echo(facts_text({"saved": str(output), "again": again(ctx), "next": following}))


def conclude(
    ctx: typer.Context, run: tlora.TrainingRun, results: Mapping[str, Any], output: Path, report: Report
) -> None:
    """Draw, remove what is no longer needed, and print the summary."""
    pictures = draw_pictures({**results, "training": run}, output, report)
    if run.before:
        typer.echo(f"\n{metrics_text({'before': run.before, 'after': run.after})}")
        typer.echo(f"(on {run.meta.recipe['evaluated_samples']} {run.evaluated_on} samples)\n")
    summary = run_facts(run) | {"saved": str(output), "pictures": pictures, "again": again(ctx)}
    if run.interrupted:
        typer.echo(facts_text(summary | describe_kept(ctx, output)))
        raise typer.Exit(130)
    work = unfinished(output)
    if ctx.params.get("save_calibration"):
        (work / CALIBRATION).rename(output / RESULTS / CALIBRATION)
    # Of a resumed run the calibration and the allocation stay: the user has named them.
    shutil.rmtree(work if ctx.command.name == "run" else work / CHECKPOINTS, ignore_errors=True)
    if work.exists() and not any(work.iterdir()):
        work.rmdir()
    if work in ctx.params.get("allocation", output).parents:
        summary["kept"] = f"{work}, with the calibration and the allocation that the line above reads"
    following = {"adapter": output, "task": ctx.params["task"], "base": True}
    if run.evaluated_on == "test":
        line = next_command(ctx, "evaluate", following)
    else:
        line = next_command(ctx, "export", following | {"output": with_suffix(output, "-merged"), "format": "merged"})
    typer.echo(facts_text(summary | {"next": line}))
    if run.diverged:
        raise typer.Exit(1)


def draw_pictures(results: Mapping[str, Any], output: Path, report: Report) -> str:
    """Draw the results and write the model card; without matplotlib the run is whole all the same.

    A page of the user stays: it does not end as every card does.
    """
    from tlora.adapters.files import PAGE

    try:
        viz = load_viz()
    except ModuleNotFoundError as error:
        report.say(f"no pictures: {error}")
        return ""
    folder = output / "pictures"
    folder.mkdir(exist_ok=True)
    with report.step("drawing"):
        for name in ("spectrum", "sensitivity", "allocation", "training"):
            is_flat = name == "allocation" and len(set(results[name].ranks.values())) == 1  # shows nothing
            if is_flat:
                (folder / f"{name}.png").unlink(missing_ok=True)
            elif name in results:
                draw_into(folder / f"{name}.png", viz, getattr(viz, f"plot_{name}")(results[name]))
        page, text = output / PAGE, viz.card(output)
        if page.exists() and not page.read_bytes().rstrip().endswith(text.splitlines()[-1].encode()):
            report.say(f"{page} is not a card of tlora and stays: print(viz.card({str(output)!r})) shows the new card")
        else:
            with replace_file(page) as fresh:
                fresh.write_text(text, encoding="utf-8")
    return str(folder)
