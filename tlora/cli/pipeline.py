"""The commands of the pipeline: run, init, calibrate, allocate, train."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import tlora
from tlora.cli.command_line import flat, written
from tlora.cli.evaluate import evaluate, merge
from tlora.cli.options import (
    AllocationFlags,
    Checkpoint,
    Config,
    Data,
    Looking,
    Model,
    Output,
    Overwrite,
    Placement,
    Quiet,
    Recipe,
    SaveCalibration,
    Start,
    Training,
)
from tlora.cli.output import (
    Report,
    _viz,
    allocation_table,
    budget_text,
    draw,
    facts,
    metrics_table,
    run_facts,
    sensitivity_table,
)
from tlora.utils.defaults import DEFAULT_RECIPE
from tlora.utils.files import replace_file

BY_DEFAULT = (
    "plain LoRA, because no --recipe is given: it learned more than the other recipes in our comparison. The "
    "sensitivity of the modules is saved and drawn; --recipe tlora makes ranks of it, and trains half of the parameters"
)

RUNNING = """Examples:

`tlora run --model smollm2-135m --task family_relationships --output demo`

`tlora run --model minilm --task rotten_tomatoes --train-samples 1000 --output reviews`

`tlora run --model models/qwen --task answers.jsonl --rank 32 --lr 5e-4 --output answers`

`tlora run --model smollm2-135m --task chain_sum --recipe tlora --output sums`: `A` frozen along the task's directions

`tlora run --config reviews/tlora/run.yaml --seed 1 --output reviews-1`
"""


@flat
def run(
    ctx: typer.Context,
    model: Model,
    data: Data,
    output: Output,
    placement: Placement,
    looking: Looking,
    allocating: AllocationFlags,
    start: Start,
    training: Training,
    recipe: Recipe = DEFAULT_RECIPE,
    save_calibration: SaveCalibration = False,
    config: Config = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """The whole pipeline: calibrate, allocate, train, evaluate before and after, save, draw.

    By default it trains plain LoRA; with --recipe tlora it trains what the calibration decides. Writes an ordinary
    PEFT adapter; in its folder also `tlora/` (run, sensitivity, spectrum, allocation), `pictures/` and a model card.
    If training is interrupted, the calibration, the allocation and the checkpoints stay in OUTPUT-unfinished.
    """
    from tlora.cli import steps

    looking, allocating, start, training = steps.by_recipe(ctx, recipe, looking, allocating, start, training)
    allocating = allocating.within(looking.directions) if start.init else allocating
    report, line, work = Report(quiet), written(run, ctx.params), steps.unfinished(output)
    made = steps.origin(line, data)
    steps.check_run(start, training, placement, output, [work] if work.exists() else [], overwrite)
    if steps.given(ctx, "recipe") == steps.given(ctx, "init") == "DEFAULT":
        report.say(BY_DEFAULT)
    base, task = steps.load_base(model, data, placement, report)
    steps.rehearse(base, looking, allocating)
    steps.once(lambda: shutil.rmtree(work, ignore_errors=True))
    with steps.going_on(lambda: _rest(output, ctx.params)):
        calibration = steps.marked(steps.look_at(base, task, looking, start.of_gradient, report), **made)
        steps.once(partial(calibration.save, work / "calibration"))
        allocation = steps.marked(steps.make_allocation(calibration.sensitivity, allocating), **made)
        steps.once(partial(allocation.save, work / "allocation"))
        found = steps.find(base, calibration, allocation, start, data.seed, report)
        del calibration  # large, and on disk
        trained = steps.train_adapter(base, task, found, start, training, output, data.seed, report)
        trained = steps.marked(trained, **made)
        steps.once(lambda: steps.save_run(trained, found.saved(save_calibration), output))
        steps.once(lambda: steps.save_options(ctx, output))
    if save_calibration and not trained.interrupted:
        name = "calibration.safetensors"
        steps.once(lambda: (work / name).rename(output / "tlora" / name))
    steps.once(lambda: _conclude(trained, found.results, output, line, ctx.params, report))


CALIBRATING = """Examples:

`tlora calibrate --model smollm2-135m --task family_relationships --samples 32 --output calib`

`tlora calibrate --model models/qwen --task chats.jsonl --tokens labels --gradient --output calib`

`tlora calibrate --model models/llama --task gsm8k --covariance sketch --checkpoint steps --output calib`: run again
after a kill, or with more `--samples`, it resumes
"""


@flat
def calibrate(
    ctx: typer.Context,
    model: Model,
    data: Data,
    output: Output,
    placement: Placement,
    looking: Looking,
    gradient: Annotated[
        bool,
        typer.Option(
            "--gradient", help="Keep the mean gradients, for subspaces of kind g.", rich_help_panel="Calibration"
        ),
    ] = False,
    checkpoint: Checkpoint = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Covariance and sensitivity of every target module, from a few training samples.

    One forward and backward pass; nothing is trained. Writes a Calibration.
    """
    from tlora.cli import steps

    report, line = Report(quiet), written(calibrate, ctx.params)
    steps.check_result(output, tlora.Calibration, overwrite)
    base, task = steps.load_base(model, data, placement, report)
    found = steps.look_at(base, task, looking, gradient, report, checkpoint)
    found = steps.marked(found, **steps.origin(line, data))
    steps.once(lambda: found.save(output))
    typer.echo(f"{found!r}\n\n{sensitivity_table(found)}\n")
    then = {"calibration": output, "output": output.with_name("alloc")}
    typer.echo(facts({"saved": str(output), "again": line, "next": written(allocate, then)}))


ALLOCATING = """Examples:

`tlora allocate calib --rank 8 --output alloc`

`tlora allocate calib --rank 8 --budget parameters --max-rank 64 --output alloc`
"""


@flat
def allocate(
    ctx: typer.Context,
    calibration: Annotated[Path, typer.Argument(help="Folder of a calibration.", show_default=False)],
    output: Output,
    allocating: AllocationFlags,
    overwrite: Overwrite = False,
) -> None:
    """Rank and scaling of every module, in proportion to its sensitivity, within a budget.

    Takes a second and no model. Writes an Allocation, and shows it by projection.
    """
    from tlora.cli import steps

    line = written(allocate, ctx.params)
    steps.check_result(output, tlora.Allocation, overwrite)
    looked = tlora.Calibration.load(calibration)
    data = looked.meta.recipe.get("data", {"task": looked.meta.task or "TASK"})
    allocating = allocating.within(steps.directions(looked))
    allocation = steps.marked(steps.make_allocation(looked.sensitivity, allocating), command=line)
    allocation.save(output)
    typer.echo(f"{allocation_table(allocation)}\n\n{budget_text(allocation)}\n")
    then = data | {"model": looked.meta.model, "calibration": calibration, "allocation": output}
    then["output"] = output.with_name("adapter")
    typer.echo(facts({"saved": str(output), "again": line, "next": written(train, then)}))


INITIALIZING = """Examples:

`tlora init models/qwen --data chats.jsonl --rank 16 --output start`

`tlora init minilm --data rotten_tomatoes --recipe tlora-trained --output start`
"""


@flat
def init(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Base model, as for --model elsewhere.", show_default=False)],
    data: Data,
    output: Output,
    placement: Placement,
    looking: Looking,
    allocating: AllocationFlags,
    start: Start,
    recipe: Recipe = "tlora",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """An untrained adapter from a few samples, for a trainer of your own to continue from.

    Writes an ordinary PEFT adapter whose B is zero; in its folder also `tlora/` (the sensitivity, the spectrum, the
    allocation) and a README with the lines for PEFT, TRL, LLaMA-Factory and axolotl.
    """
    from tlora.adapters.files import PAGE, refuse_trained
    from tlora.cli import steps

    looking, allocating, start = steps.by_recipe(ctx, recipe, looking, allocating, start)
    allocating = allocating.within(looking.directions) if start.init else allocating
    report, line = Report(quiet), written(init, ctx.params)
    refuse_trained(output)
    steps.check_start(placement, output, overwrite)
    base, task = steps.load_base(model, data, placement, report)
    steps.rehearse(base, looking, allocating)
    made = steps.origin(line, data)
    calibration = steps.marked(steps.look_at(base, task, looking, start.of_gradient, report), **made)
    allocation = steps.marked(steps.make_allocation(calibration.sensitivity, allocating), **made)
    found = steps.find(base, calibration, allocation, start, data.seed, report)
    steps.once(lambda: steps.save_start(base, found, start, output, data.seed))
    typer.echo(f"{allocation_table(allocation)}\n\n{budget_text(allocation, start.init and start.freeze_a)}\n")
    typer.echo(facts({"saved": str(output), "again": line, "next": f"see {output / PAGE}"}))


TRAINING = """Examples:

`tlora train --model smollm2-135m --task family_relationships --calibration calib --allocation alloc --output adapter`

The same with `--resume --overwrite` resumes an interrupted training from its last checkpoint.
"""


@flat
def train(
    ctx: typer.Context,
    model: Model,
    data: Data,
    allocation: Annotated[
        Path, typer.Option("--allocation", help="Folder of an allocation.", rich_help_panel="Adapter")
    ],
    output: Output,
    placement: Placement,
    start: Start,
    training: Training,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="Folder of a calibration; --no-init needs none.", rich_help_panel="Adapter"),
    ] = None,
    recipe: Recipe = "tlora",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume from the last checkpoint in OUTPUT-unfinished.", rich_help_panel="Training"
        ),
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train an adapter from a calibration and an allocation, with the metrics before and after.

    Writes what `tlora run` writes, except for `tlora/run.yaml`.
    """
    from tlora.cli import steps

    start, training = steps.by_recipe(ctx, recipe, start, training)
    if start.init and calibration is None:
        raise ValueError("the initial A comes from a calibration: pass --calibration, or --no-init")
    report, line = Report(quiet), written(train, ctx.params)
    left = [] if resume else steps.checkpoints(output)
    made = steps.origin(line, data)
    steps.check_run(start, training, placement, output, left, overwrite)
    allocated = tlora.Allocation.load(allocation)
    looked = tlora.Calibration.load(calibration) if calibration else None
    base, task = steps.load_base(model, data, placement, report)
    steps.check_calibration(looked, calibration, task)
    for checkpoint in left:
        steps.once(partial(shutil.rmtree, checkpoint))
    with steps.going_on(lambda: _rest(output, ctx.params)):
        found = steps.find(base, looked, allocated, start, data.seed, report)
        del looked
        trained = steps.train_adapter(base, task, found, start, training, output, data.seed, report, resume)
        trained = steps.marked(trained, **made)
        steps.once(lambda: steps.save_run(trained, found.results, output))
    steps.once(lambda: _conclude(trained, found.results, output, line, ctx.params, report))


def _rest(output: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """What is kept of an interrupted run, and the command that resumes it."""
    from tlora.cli import steps
    from tlora.training.checkpoints import is_whole

    work, stages = steps.unfinished(output), ("calibration", "allocation")
    files = {name: work / f"{name}.safetensors" for name in stages}
    kept = {name: file for name, file in files.items() if name not in values and file.exists()}
    left = steps.checkpoints(output)
    resume = any(map(is_whole, left))
    if not kept and not resume:
        return {}
    values = dict(values) | kept
    if values.get("allocation") is None:
        return {"kept": str(work), "next": written(allocate, values | {"output": work / "allocation"})}
    values |= {"resume": resume, "overwrite": values["overwrite"] or output.exists() or (bool(left) and not resume)}
    return {"kept": str(work), "next": written(train, values)}


def _conclude(
    run: tlora.TrainingRun,
    results: Mapping[str, Any],
    output: Path,
    line: str,
    values: Mapping[str, Any],
    report: Report,
) -> None:
    """Draw, clear away what is no longer needed, and sum up."""
    from tlora.cli import steps

    drawn = _draw({**results, "training": run}, output / "pictures", report)
    if run.before:
        typer.echo(f"\n{metrics_table({'before': run.before, 'after': run.after})}")
        typer.echo(f"(on {run.meta.recipe['evaluated_samples']} {run.evaluated_on} samples)\n")
    told = run_facts(run) | {"saved": str(output), "pictures": drawn, "again": line}
    if run.interrupted:
        typer.echo(facts(told | _rest(output, values)))
        raise typer.Exit(130)
    steps.clear(steps.unfinished(output), inputs="calibration" in values)
    then = {"adapter": output, "task": values["task"], "base": True, "output": steps.beside(output, "-merged")}
    typer.echo(facts(told | {"next": written(evaluate if run.evaluated_on == "test" else merge, then)}))
    if run.diverged:
        raise typer.Exit(1)


def _draw(results: Mapping[str, Any], folder: Path, report: Report) -> str:
    """Draw the pictures of what there is, and write the model card; without them the run is whole all the same."""
    try:
        viz = _viz()
    except ModuleNotFoundError as error:
        report.say(f"no pictures: {error}")
        return ""
    with report.step("drawing"):
        drawn = draw(viz, results, folder)
        with replace_file(folder.parent / "README.md") as fresh:
            fresh.write_text(viz.card(folder.parent), encoding="utf-8")
    return drawn
