"""The commands of the pipeline: run, init, calibrate, allocate, train."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tlora
from tlora.cli.checks import check_saved_result
from tlora.cli.command_line import again, flatten_options, next_command, with_suffix
from tlora.cli.loading import load_base, load_data
from tlora.cli.options import (
    AdapterFlags,
    AllocationFlags,
    CalibrationFlags,
    Config,
    Data,
    GradientCheckpointing,
    Model,
    Output,
    Overwrite,
    Placement,
    Quiet,
    Read,
    RecipeOption,
    Resume,
    TrainingFlags,
    build_recipe,
    option,
)
from tlora.cli.output import Report, allocation_text, load_viz, summary_text
from tlora.cli.trained import draw_pictures, save_run, summarize
from tlora.cli.unfinished import OPTIONS, UnfinishedRun, earlier_leftover, note, write_options
from tlora.utils.defaults import DEFAULT_RECIPE, KIND, KINDS, RANK, SAMPLES, Kind
from tlora.utils.file_names import ADAPTER_WEIGHTS, result_file
from tlora.utils.files import check_place
from tlora.utils.text import table_text

if TYPE_CHECKING:
    from tlora.explanation.direction_activations_result import DirectionActivations

DEFAULT_NOTE = (
    f"recipe {DEFAULT_RECIPE}: A is frozen, which saves memory, and in our study it learned as much as LoRA on three "
    "of four tasks. Where every token had to be learned, plain LoRA learned more: --recipe lora trains it, and tlora "
    "race compares the two on your task"
)
READS = "reads.html"


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
    recipe: RecipeOption = DEFAULT_RECIPE,
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
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """The whole pipeline: calibrate, allocate, train, evaluate before and after, save, draw.

    Freezes `A` along the input directions with the largest squared gradient, gives more rank to modules where these
    directions capture more of it, and trains `B`; --recipe chooses another method. Writes an ordinary PEFT adapter; in
    its folder also `tlora/` (run, sensitivity, spectrum, allocation), `pictures/` and a model card. A run that was
    interrupted or killed continues with `--resume`: until the adapter is whole, its work is in `tlora/unfinished`.

    Examples
    --------
    `tlora run smollm2-135m family_relationships --output demo`

    `tlora run minilm rotten_tomatoes --train-samples 1000 --output reviews`

    `tlora run models/qwen answers.jsonl --rank 32 --lr 5e-4 --output answers`

    `tlora run smollm2-135m chain_sum --recipe tlora-paper --output sums`: ranks by sensitivity

    `tlora run --config reviews/tlora/run.yaml --seed 1 --output reviews-1`
    """
    source = ctx.get_parameter_source("recipe")
    is_default = start.init is None and source is not None and source.name == "DEFAULT"
    report, work = Report(quiet), UnfinishedRun.open(ctx, output, resume, overwrite)
    chosen = build_recipe(recipe, calibrating, allocating, start, training)
    check_training(training, placement, output)
    if read:
        load_viz()
    report.say(textwrap.fill(DEFAULT_NOTE, 80) * is_default)
    report.say(earlier_leftover(output))
    task = load_data(model, data, report, calibrating.samples)
    base = load_base(model, task, data.seed, placement, report)
    origin = describe_origin(ctx, data, placement)
    run_on_first(lambda: work.begin(ctx, resume, str(base.dtype).removeprefix("torch.")))
    with work.kept_on_error(ctx):
        options = calibrating.sizes() | {"seed": data.seed, "checkpoint": work.calibration}
        options |= {"gradient_checkpointing": training.gradient_checkpointing or None}
        plan = prepare_plan(base, task, chosen, allocating.rank, report, **options)
        run_on_first(lambda: plan.allocation.save(work.allocation))
        activations = read_directions(base, task, plan, report) if read else None
        adapted = tlora.attach(base, plan)
        trained = train_adapter(adapted, task, plan, training, work, origin, report)
        results = results_of(plan, origin, report)
        if save_calibration:
            results |= {"calibration": add_origin(plan.calibration, origin), "subspaces": plan.subspaces}
        run_on_first(lambda: save_run(trained, results, output, lambda folder: write_options(ctx, folder / OPTIONS)))
    if activations is not None:
        run_on_first(lambda: load_viz().report(output, output / READS, activations=activations))
    run_on_first(lambda: conclude(ctx, trained, results, output, work, report))


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
    gradient_checkpointing: GradientCheckpointing = False,
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
    `tlora calibrate smollm2-135m family_relationships --samples 32 --output calib`

    `tlora calibrate models/qwen chats.jsonl --tokens labels --gradient --output calib`

    `tlora calibrate models/llama gsm8k --covariance sketch --checkpoint steps --output calib`: run again after a kill,
    or with more `--samples`, it resumes
    """
    check_result_place(output, "Calibration", overwrite)
    page = with_suffix(result_file(output).with_suffix(""), f"-{READS}")
    if read:
        check_place(page, overwrite=overwrite)
        load_viz()
    report = Report(quiet)
    task = load_data(model, data, report, calibrating.samples)
    base = load_base(model, task, data.seed, placement, report)
    from tlora.recipes import calibrate_on

    arguments: dict[str, Any] = calibrating.arguments() | {"gradient": gradient, "fisher": fisher}
    with report.step("calibrating"):
        options = calibrating.sizes() | {"checkpoint": checkpoint, "progress": report.progress}
        options |= {"gradient_checkpointing": gradient_checkpointing or None}
        calibration = calibrate_on(base, task, arguments, **options)
    if calibrating.tokens == "task":
        report.say(f"  left out: {constant_text(calibration.meta.recipe['constant_tokens'], task.tokenizer)}")
    calibration = add_origin(calibration, describe_origin(ctx, data, placement))
    run_on_first(lambda: calibration.save(output))
    if read:
        activations = read_along(base, task, calibration, KIND, data.seed, report)
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
    recipe: RecipeOption = DEFAULT_RECIPE,
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
    calibrated = tlora.Calibration.load(calibration)
    made_by = calibrated.meta.recipe
    data = made_by.get("data", {"task": calibrated.meta.task or "TASK"})
    sketched: dict[str, Any] = {name: made_by[name] for name in ("covariance", "sketch_size") if name in made_by}
    chosen = build_recipe(recipe, allocating, start).override(calibrate=sketched)
    seed, report = data.get("seed", 0), Report(quiet)
    with report.step("allocating"):
        options = {"seed": seed, "progress": report.progress}
        allocation, _ = allocate_and_decompose(None, calibrated, chosen, allocating.rank, **options)
    allocation = add_origin(allocation, {"command": again(ctx)})
    allocation.save(output)
    typer.echo(allocation_text(allocation, chosen.attach.get("freeze_a", True)))
    following = ctx.params | made_by.get("placement", {}) | data | {"model": calibrated.meta.model}
    following |= {"calibration": calibration, "allocation": output, "output": output.with_name("adapter")}
    conclude_step(ctx, result_file(output), next_command(ctx, "train", following | {"overwrite": False}))


@flatten_options
def init(
    ctx: typer.Context,
    model: Model,
    data: Data,
    output: Output,
    placement: Placement,
    calibrating: CalibrationFlags,
    allocating: AllocationFlags,
    start: AdapterFlags,
    recipe: RecipeOption = DEFAULT_RECIPE,
    gradient_checkpointing: GradientCheckpointing = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """An untrained adapter from a few samples, for a trainer of your own to continue from.

    Writes an ordinary PEFT adapter whose B is zero; in its folder also `tlora/` (the sensitivity, the spectrum, the
    allocation) and a README with the lines for PEFT, TRL, LLaMA-Factory and axolotl.

    Examples
    --------
    `tlora init models/qwen chats.jsonl --rank 16 --output start`

    `tlora init minilm rotten_tomatoes --recipe captured-trained --output start`
    """
    check_place(output, ADAPTER_WEIGHTS, overwrite=overwrite)
    chosen = build_recipe(recipe, calibrating, allocating, start)
    from tlora.adapters.files import PAGE, RUN, SAVE_INITIAL, refuse_other_writer

    refuse_other_writer(output, SAVE_INITIAL)
    report = Report(quiet)
    task = load_data(model, data, report, calibrating.samples)
    base = load_base(model, task, data.seed, placement, report)
    options = calibrating.sizes() | {"seed": data.seed, "gradient_checkpointing": gradient_checkpointing or None}
    plan = prepare_plan(base, task, chosen, allocating.rank, report, **options)
    adapted = tlora.attach(base, plan)
    results = results_of(plan, describe_origin(ctx, data, placement), report)

    def save() -> None:
        for name, result in results.items():
            result.save(output / RUN.parent / name)
        tlora.save_initial(adapted, output)  # last: a folder with an adapter is whole

    run_on_first(save)
    typer.echo(allocation_text(plan.allocation, chosen.attach.get("freeze_a", True)))
    conclude_step(ctx, output, f"see {output / PAGE}")


@flatten_options
def train(
    ctx: typer.Context,
    model: Model,
    data: Data,
    allocation: Annotated[Path, typer.Argument(help="An allocation.", callback=check_saved_result)],
    output: Output,
    placement: Placement,
    start: AdapterFlags,
    training: TrainingFlags,
    calibration: Annotated[
        Path | None,
        typer.Argument(help="The calibration behind it; --no-init needs none.", callback=check_saved_result),
    ] = None,
    recipe: RecipeOption = DEFAULT_RECIPE,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train an adapter from an allocation and its calibration, with the metrics before and after.

    Writes what `tlora run` writes, except for `tlora/run.yaml`.

    Examples
    --------
    `tlora train smollm2-135m family_relationships alloc calib --output trial`

    The same with `--resume` continues an interrupted training from its last checkpoint.
    """
    report, work = Report(quiet), UnfinishedRun.open(ctx, output, resume, overwrite)
    chosen = build_recipe(recipe, start, training)
    if chosen.kind and calibration is None:
        raise ValueError("the initial A comes from a calibration: name it after the allocation, or pass --no-init")
    check_training(training, placement, output)
    report.say(earlier_leftover(output))
    allocated = tlora.Allocation.load(allocation)
    calibrated = tlora.Calibration.load(calibration) if calibration else None
    task = load_data(model, data, report, samples=1)
    if calibrated and calibrated.meta.task not in ("", task.name):
        warnings.warn(
            f"{calibration} was calibrated on {calibrated.meta.task}, and this trains on {task.name}: run tlora "
            f"calibrate on {task.name}, or go on if this is intended",
            stacklevel=1,
        )
    base = load_base(model, task, data.seed, placement, report)
    origin = describe_origin(ctx, data, placement)
    run_on_first(lambda: work.begin(ctx, resume, str(base.dtype).removeprefix("torch.")))
    with work.kept_on_error(ctx):
        options = {"calibration": calibrated, "allocation": allocated, "seed": data.seed}
        plan = prepare_plan(base, task, chosen, allocated.rank, report, **options)
        del calibrated  # large
        adapted = tlora.attach(base, plan)
        trained = train_adapter(adapted, task, plan, training, work, origin, report)
        results = results_of(plan, {}, report)
        run_on_first(lambda: save_run(trained, results, output))
    run_on_first(lambda: conclude(ctx, trained, results, output, work, report))


def check_result_place(output: Path, kind: str, overwrite: bool) -> None:
    """Refuse to replace a result unless asked to, and one of another kind in any case."""
    check_place(result_file(output), overwrite=overwrite)
    from tlora.results import refuse_other_file

    refuse_other_file(result_file(output), kind)


def check_training(training: TrainingFlags, placement: Placement, output: Path) -> None:
    """Refuse a device, a logger or a folder that training would refuse after the calibration."""
    from tlora.adapters.files import TRAINING, refuse_other_writer
    from tlora.models.loading import resolve_device
    from tlora.training.arguments import check_gpu, check_report

    refuse_other_writer(output, TRAINING)
    check_report(training.report_to)
    check_gpu(resolve_device(placement.device, {}))


def prepare_plan(
    model: Any, task: tlora.Task, recipe: tlora.Recipe, rank: int, report: Report, **options: Any
) -> tlora.Plan:
    """Prepare the adapter, and say what each step is."""
    with report.step(f"preparing the adapter, recipe {recipe.name}"):
        plan = tlora.prepare(model, task, recipe, rank, progress=report.progress, **options)
    if plan.calibration and (constant := plan.calibration.meta.recipe.get("constant_tokens")):
        report.say(f"  left out: {constant_text(constant, task.tokenizer)}")
    return plan


def read_directions(model: Any, task: tlora.Task, plan: tlora.Plan, report: Report) -> DirectionActivations:
    """Read samples along the first directions of a plan."""
    assert plan.calibration is not None
    return read_along(model, task, plan.calibration, plan.recipe.kind or KIND, plan.meta.seed or 0, report)


def read_along(
    model: Any, task: tlora.Task, calibration: tlora.Calibration, kind: Kind, seed: int, report: Report
) -> DirectionActivations:
    """Read validation samples, or those of the calibration if there are none, along the first directions.

    In addition to the directions of ``kind``, those of the gradients that the calibration kept.
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


def train_adapter(
    adapted: Any,
    task: tlora.Task,
    plan: tlora.Plan,
    training: TrainingFlags,
    work: UnfinishedRun,
    origin: Mapping[str, Any],
    report: Report,
) -> tlora.TrainingRun:
    """Train the adapter, from its last checkpoint if there is one."""
    arguments = training.arguments() | dict(plan.recipe.train)
    options: dict[str, Any] = {"output_dir": work.checkpoints, "resume": work.has_checkpoint()}
    with report.step("training, with the metrics before and after (--eval-limit 0 skips them)"):
        run = tlora.train(adapted, task, seed=plan.meta.seed or 0, progress=report.progress, **options, **arguments)
    labels = {"num_labels": task.num_labels, "classes": list(task.classes), "example": answer_one(adapted, task, run)}
    return add_origin(run, {**labels, **origin})


def answer_one(adapted: Any, task: tlora.Task, run: tlora.TrainingRun) -> dict[str, str]:
    """Return a held-out request and its answers for the model card; empty if no answers were evaluated."""
    if not run.after.keys() - {"loss", "perplexity"}:
        return {}
    row = task.predict(adapted, run.evaluated_on, 1).iloc[0]
    return {"request": str(row.iloc[0]), "answer": str(row["prediction"]), "reference": str(row["answer"])}


def results_of(plan: tlora.Plan, origin: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Return by name the results of a plan that an adapter's folder holds."""
    from tlora.models.experts import is_expert

    results: dict[str, Any] = {"allocation": add_origin(plan.allocation, origin)}
    if plan.calibration:
        with report.step("spectrum of the inputs"):
            spectrum = plan.calibration.spectrum()
        results |= {"sensitivity": add_origin(plan.calibration.sensitivity, origin), "spectrum": spectrum}
        if any(map(is_expert, plan.calibration.targets)):
            results["expert_use"] = tlora.expert_use(plan.calibration)
    return results


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
    """Return a result with more in its recipe, and so the sensitivity in a calibration."""
    if isinstance(result, tlora.Calibration):
        result = replace(result, sensitivity=add_origin(result.sensitivity, origin))
    return replace(result, meta=replace(result.meta, recipe=result.meta.recipe | origin))


def run_on_first(act: Callable[[], object]) -> None:
    """Have the first of several processes write what all would write alike."""
    from tlora.utils.distributed import Processes

    Processes.current().run_on_first(act)


def conclude_step(ctx: typer.Context, output: Path, following: str) -> None:
    """Print what was saved, the command that made it, and the next one."""
    typer.echo(summary_text({"saved": str(output), "again": again(ctx), "next": following}))


def conclude(
    ctx: typer.Context,
    run: tlora.TrainingRun,
    results: Mapping[str, Any],
    output: Path,
    work: UnfinishedRun,
    report: Report,
) -> None:
    """Draw, remove the unfinished work, and print the summary with the next command; exit 130 if it was interrupted."""
    try:
        pictures = draw_pictures({**results, "training": run}, output, report)
    except BaseException as error:
        note(error, {"saved": str(output)} | work.next_step(ctx))
        raise
    if not run.interrupted:  # only now: a run that is killed while it draws can be resumed
        work.remove()
    saved = f"{output}, with pictures in {Path(pictures).name}/" if pictures else str(output)
    summary = summarize(run) | {"saved": saved, "again": again(ctx)}
    following = {"adapter": output, "task": ctx.params["task"], "base": True}
    if run.evaluated_on == "test":
        line = next_command(ctx, "evaluate", following)
    else:
        line = next_command(ctx, "export", following | {"output": with_suffix(output, "-merged"), "format": "merged"})
    typer.echo(summary_text(summary | ({"next": line} | work.next_step(ctx))))
    if run.interrupted:
        raise typer.Exit(130)
    if run.diverged:
        raise typer.Exit(1)
