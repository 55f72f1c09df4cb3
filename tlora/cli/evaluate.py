"""Commands on an adapter that is trained: evaluate it, merge it, report on it."""

from __future__ import annotations

import json
import shlex
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

import tlora
from tlora.cli.command_line import flat, written
from tlora.cli.options import Adapter, BaseModel, Data, Placement, Quiet, TaskName, option
from tlora.cli.output import Report, _viz, facts, metrics_table

EVALUATING = """Examples:

`tlora evaluate demo --task family_relationships --base`

`tlora evaluate demo --task answers.jsonl --eval-limit 100 --json`
"""


@flat
def evaluate(
    ctx: typer.Context,
    adapter: Adapter,
    task: TaskName,
    placement: Placement,
    model: BaseModel = None,
    batch_size: Annotated[int, option("Data", "Samples at a time.", min=1)] = 16,
    eval_limit: Annotated[
        int | None, typer.Option(min=1, help="Most test samples. Default: all.", rich_help_panel="Data")
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Also without the adapter, side by side.", rich_help_panel="Output")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel="Output")] = False,
    quiet: Quiet = False,
) -> None:
    """Metrics of an adapter on the test samples of a task.

    On the task that it was trained on these are the samples that were held out: sizes and seed are taken from
    the record of the run, where it was made on the command line. Of another file a tenth are test samples, as in
    training; of a folder with a test file alone, all.
    """
    from tlora.adapters.files import checked
    from tlora.adapters.hub import adapter_folder
    from tlora.cli import steps
    from tlora.tasks.load import digest_task

    report, folder = Report(quiet), adapter_folder(adapter)
    record = steps.recorded(folder)
    known = _data_of(record, task)
    name, where = steps.base_of(folder, model)
    with steps.named(folder, model):
        bare, loaded = steps.load_base(name, known or Data(task=task), placement, report, **where)
    kept = record.meta.recipe if record else {}
    if kept.get("classes") and kept["classes"] != list(loaded.classes):
        raise ValueError(
            f"{adapter} tells {', '.join(kept['classes'])} apart, in this order, and {task} has "
            f"{', '.join(loaded.classes)}: name the labels as they were in training"
        )
    if known and kept.get("contents") not in (None, digest_task(task, {}).get("task")):
        warnings.warn(
            f"{task} has changed since {adapter} was trained on it, and is split differently: these test samples may "
            "have been among the training samples",
            stacklevel=1,
        )
    if not known and record and record.meta.task == loaded.name and _is_dealt(task):
        warnings.warn(
            f"nothing in {adapter} says how {task} was split when it was trained on: these test samples may have been "
            "among the training samples",
            stacklevel=1,
        )
    options: dict[str, Any] = {"limit": eval_limit, "batch_size": batch_size, "progress": report.progress}
    checked(folder, "evaluate")  # now, and not when the base was evaluated
    metrics: dict[str, dict[str, float]] = {}
    if base:  # before the adapter, which may have parts in the base itself
        with report.step("evaluating the base"):
            metrics["base"] = loaded.evaluate(bare, **options)
    adapted = tlora.load(folder, bare)
    with report.step("evaluating"):
        metrics["adapter"] = loaded.evaluate(adapted, **options)
    samples = min(len(loaded.test), eval_limit or len(loaded.test))
    if as_json:
        typer.echo(json.dumps({"task": loaded.name, "samples": samples, "metrics": metrics}, indent=2))
        return
    typer.echo(f"{metrics_table(metrics)}\n({samples} test samples of {loaded.name})\n")
    then = {"output": next_to(adapter, "-merged")}
    typer.echo(facts({"next": written(merge, ctx.params | then)}))


def next_to(adapter: str, suffix: str) -> Path:
    """Where the next command can write: beside the folder; an adapter of the hub has none, so here."""
    from tlora.cli import steps

    return steps.beside(Path(adapter), suffix) if Path(adapter).exists() else Path(f"adapter{suffix}")


@flat
def merge(
    adapter: Adapter,
    output: Annotated[Path, typer.Argument(help="Folder to write; it must not hold anything.", show_default=False)],
    placement: Placement,
    model: BaseModel = None,
    quiet: Quiet = False,
) -> None:
    """Fold an adapter into the weights of its base: a whole model, which transformers loads on its own."""
    from tlora.adapters.hub import adapter_folder
    from tlora.cli import steps
    from tlora.serving.export import save_model

    report = Report(quiet)
    steps.check_new(output)
    with report.step(f"merging {adapter}"):
        adapted, tokenizer = steps.loaded(adapter_folder(adapter), model, placement)
        merged = tlora.merge(adapted)
    with report.step(f"writing {output}"):
        save_model(merged, tokenizer, output)
    kind = type(merged).__name__
    code = f"from transformers import {kind}; print({kind}.from_pretrained({json.dumps(str(output))}))"
    told = {"saved": f"{output}: {kind} with its tokenizer", "next": f"python -c {shlex.quote(code)}"}
    typer.echo(facts(told))


@flat
def report(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter of ours.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file. Default: report.html in the folder.", rich_help_panel="Output"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """One HTML page to hand on: data, spectra, sensitivity, allocation, training, and how to make it all again.

    The page holds its pictures, runs no scripts and needs no network.
    """
    with Report(quiet).step(f"reporting on {adapter}"):
        path = _viz().report(adapter, output)
    typer.echo(facts({"saved": str(path), "next": shlex.join(["python", "-m", "webbrowser", str(path)])}))


def _data_of(run: tlora.TrainingRun | None, task: str) -> Data | None:
    """The task as an adapter was trained on it, where that is recorded: others may be split otherwise."""
    data = run.meta.recipe.get("data", {}) if run else {}
    recorded = data.get("task", "")
    there = recorded and Path(recorded).exists() and Path(task).exists()
    same = recorded == task or (there and Path(task).samefile(recorded))
    return Data(**data | {"task": task}) if same else None


def _is_dealt(task: str) -> bool:
    """Whether the test samples of a task are drawn from the same rows as those for training."""
    from tlora.tasks.load import task_files
    from tlora.tasks.presets import PRESETS

    if task not in PRESETS:
        return bool(files := task_files(task)) and "test" not in files
    preset = PRESETS[task]
    there = (preset.packaged() if preset.packaged else None) or preset.splits.values()
    return preset.splits.get("test", "test") not in there
