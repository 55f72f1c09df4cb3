"""Commands on a trained adapter: evaluate it, report on it."""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

import tlora
from tlora.cli.checks import check_adapter
from tlora.cli.command_line import flatten_options, next_command, with_suffix
from tlora.cli.loading import base_name, load_base, load_data
from tlora.cli.options import AdapterName, BaseModel, Data, Json, Placement, Quiet, TaskName, option
from tlora.cli.output import Report, load_viz, print_json, summary_text
from tlora.utils.text import metrics_text

if TYPE_CHECKING:
    from tlora.results import Meta


@flatten_options
def evaluate(
    ctx: typer.Context,
    adapter: AdapterName,
    task: TaskName,
    placement: Placement,
    model: BaseModel = None,
    batch_size: Annotated[int, option("Data", "Samples at a time.", min=1)] = 16,
    eval_limit: Annotated[int | None, option("Data", "Most test samples. Default: all.", min=1)] = None,
    base: Annotated[bool, option("Output", "Also without the adapter, side by side.", "--base")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Metrics of an adapter on the test samples of a task.

    On the task that it was trained on, these are the samples that were held out: sizes and seed are taken from the
    record of the run, if it was made on the command line. Of another file a tenth are test samples, as in training; of
    a folder with a test file alone, all.

    Examples
    --------
    `tlora evaluate demo family_relationships --base`

    `tlora evaluate demo answers.jsonl --eval-limit 100 --json`
    """
    from tlora.adapters.hub import adapter_folder
    from tlora.tasks.splits import TooFewSamplesError

    report, folder = Report(quiet), adapter_folder(adapter)
    name, where = base_name(folder, model)
    record, data, is_trained_on, copied = recorded_data(folder, task)
    try:
        loaded = load_data(name, data, report, **where)
    except TooFewSamplesError as error:
        raise ValueError(
            f"{error.finding}: give more, or put {task} into a folder of its own, as its test.jsonl, and give the "
            "folder: all are test samples then"
        ) from error
    if record:
        compare_with_training(adapter, task, loaded, record.meta, is_trained_on)
    bare = load_base(name, loaded, data.seed, placement, report, **where)
    options: dict[str, Any] = {"limit": eval_limit, "batch_size": batch_size, "progress": report.progress}
    metrics: dict[str, dict[str, float]] = {}
    if base:  # before the adapter, which may have parts in the base itself
        with report.step("evaluating the base"):
            metrics["base"] = loaded.evaluate(bare, **options)
    with report.step("evaluating"):
        metrics["adapter"] = loaded.evaluate(tlora.load_adapter(folder, bare), **options)
    samples = min(len(loaded.test), eval_limit or len(loaded.test))
    if as_json:
        print_json({"task": loaded.name, "samples": samples, "metrics": metrics})
        return
    typer.echo(f"{metrics_text(metrics)}\n({samples} test samples of {loaded.name}{copied})\n")
    following = ctx.params | {"output": with_suffix(adapter, "-merged"), "format": "merged"}
    typer.echo(summary_text({"next": next_command(ctx, "export", following)}))


class Recorded(NamedTuple):
    """What the run of an adapter says of a task.

    ``data`` is how the task was split if the adapter was trained on it, or on a file with the same contents; ``copied``
    says which file that was.
    """

    record: tlora.TrainingRun | None
    data: Data
    is_trained_on: bool
    copied: str


def recorded_data(folder: Path, task: str) -> Recorded:
    """Read the run of an adapter, and compare its task with this one."""
    from tlora.adapters.files import RUN
    from tlora.tasks.load import digest_task

    record = tlora.TrainingRun.load(folder) if (folder / RUN).exists() else None
    recipe = record.meta.recipe if record else {}
    recorded, contents = recipe.get("data", {}), recipe.get("contents")
    is_same = bool(recorded) and _is_same_task(recorded["task"], task)
    is_copy = bool(recorded and contents) and not is_same and digest_task(task, {}).get("task") == contents
    data = Data(**recorded | {"task": task}) if is_same or is_copy else Data(task=task)
    copied = f", with the contents of {recorded['task']}" if is_copy else ""
    return Recorded(record, data, is_same or is_copy, copied)


def _is_same_task(recorded: str, task: str) -> bool:
    return recorded == task or (Path(recorded).exists() and Path(task).exists() and Path(task).samefile(recorded))


def compare_with_training(adapter: str, task: str, loaded: tlora.Task, trained: Meta, is_trained_on: bool) -> None:
    """Refuse other classes than those of the training; warn if the test samples may have been trained on."""
    from tlora.tasks.load import digest_task

    classes = trained.recipe.get("classes")
    if classes and not loaded.classes:
        raise ValueError(
            f"{adapter} distinguishes {', '.join(classes)}, and {task} has no labels: give it the columns text and "
            "label"
        )
    if classes and classes != list(loaded.classes):
        raise ValueError(
            f"{adapter} distinguishes {', '.join(classes)}, in this order, and {task} has "
            f"{', '.join(loaded.classes)}: name the labels as they were in training"
        )
    if is_trained_on and trained.recipe.get("contents") not in (None, digest_task(task, {}).get("task")):
        reason = f"{task} has changed since {adapter} was trained on it, and is split differently"
    elif not is_trained_on and trained.task == loaded.name and is_split_here(task):
        reason = f"{adapter} does not record how {task} was split for training"
    else:
        return
    warnings.warn(f"{reason}: these test samples may have been among the training samples", stacklevel=1)


def is_split_here(task: str) -> bool:
    """Whether the test samples of a task are drawn from the same rows as those for training."""
    from tlora.tasks.load import task_files
    from tlora.tasks.presets import PRESETS

    if task not in PRESETS:
        return bool(files := task_files(task)) and "test" not in files
    preset = PRESETS[task]
    splits = (preset.packaged() if preset.packaged else None) or preset.splits.values()
    return preset.splits.get("test", "test") not in splits


def report(
    adapter: Annotated[str, typer.Argument(help="Folder of an adapter.", callback=check_adapter)],
    output: Annotated[
        Path | None, option("Output", "HTML file. Default: report.html in the folder.", "--output", "-o")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """One HTML page to hand on: data, spectra, sensitivity, allocation, training, and how to make it all again.

    The page holds its pictures, runs no scripts and needs no network.

    Examples
    --------
    `tlora report demo`
    """
    with Report(quiet).step(f"reporting on {adapter}"):
        path = load_viz().report(adapter, output)
    typer.echo(summary_text({"saved": str(path), "next": shlex.join(["python", "-m", "webbrowser", str(path)])}))
