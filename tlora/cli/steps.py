"""Steps of the pipeline that several commands of the command line share."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from tlora.adapters.attach import attach
from tlora.adapters.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    RUN,
    check_files,
    checked,
    earlier_files,
    named_by,
    read_training_record,
    revision,
    saved_config,
)
from tlora.adapters.initial import save_initial
from tlora.adapters.load import load, saved_classes
from tlora.allocation.allocate import allocate
from tlora.allocation.allocation import Allocation
from tlora.calibration.calibrate import calibrate
from tlora.calibration.calibration import Calibration
from tlora.calibration.sensitivity import Sensitivity
from tlora.cli.options import AllocationFlags, Data, Looking, Placement, Start, Training, selected
from tlora.cli.output import Report, facts
from tlora.models.loading import floating_dtype, load_model, resolve_device
from tlora.models.targets import target_modules
from tlora.recipes import RECIPES, Recipe
from tlora.results import SUFFIX, Meta, Result, refuse_other_file, result_file
from tlora.serving.export import MODEL_CONFIG
from tlora.subspaces.subspaces import Subspaces
from tlora.subspaces.task_subspaces import task_subspaces
from tlora.tasks.load import digest_task, load_task_for_model
from tlora.tasks.task import Task
from tlora.training.arguments import check_card, check_numbers, check_report
from tlora.training.phases import TrainingPhases
from tlora.training.run import TrainingRun
from tlora.training.train import train
from tlora.utils.defaults import BATCH_SIZE, RecipeName, default_rows
from tlora.utils.distributed import Processes
from tlora.utils.files import check_folder, replace_file, replace_files

R = TypeVar("R", bound=Result)

CHECKPOINTS = "checkpoints"
OPTIONS = RUN.parent / "run.yaml"
WITHOUT = {
    "init": ("A is random", ("kind", "rows")),
    "adapt_ranks": ("all ranks are the same", ("budget", "scaling", "max_rank")),
}
"""Options that have no effect without another: why, and which."""


def check_output(path: Path, holds: str, overwrite: bool = False) -> None:
    """Refuse, before anything is computed, a folder that could not be written; an earlier result ``holds`` a file."""
    target = path.resolve()
    check_folder(target, holds)
    if (target / holds).exists() and not overwrite:
        raise FileExistsError(f"{path} holds an earlier result: replace it with --overwrite, or name another")
    check_writable(target)


def check_writable(path: Path) -> None:
    """Refuse a place on a file system that cannot be written."""
    path = path.resolve()
    parent = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        tempfile.TemporaryDirectory(prefix=".tlora-", dir=parent).cleanup()
    except OSError as error:
        raise OSError(f"cannot write {path} in {parent} ({error.strerror}): name another folder") from error


def check_result(path: Path, kind: type[Result], overwrite: bool) -> None:
    """Refuse, before anything is computed, a file that could not be written or is not a result of this kind."""
    file = result_file(path)
    refuse_other_file(file, kind.__name__)
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file} holds an earlier result: replace it with --overwrite, or name another")
    check_writable(file.parent)


def unfinished(output: Path) -> Path:
    """Where a run keeps what it has, beside its output, until it is whole."""
    return beside(output, "-unfinished")


def beside(folder: Path, suffix: str) -> Path:
    """The folder's name with a suffix, in the same place."""
    return folder.parent / f"{folder.resolve().name}{suffix}"


def check_start(placement: Placement, output: Path, overwrite: bool) -> None:
    """Refuse, before anything is computed, an adapter that could not be attached or saved."""
    resolve_device(placement.device, {})
    check_output(output, ADAPTER_WEIGHTS, overwrite)


def check_run(
    start: Start, training: Training, placement: Placement, output: Path, left: Iterable[Path], overwrite: bool
) -> None:
    """Refuse, before anything is computed, what could not be trained or saved; ``left`` is what an earlier run left."""
    check_numbers(training.learning_rate, training.epochs, training.batch_size, training.eval_limit)
    TrainingPhases(training.a_learning_rate, training.head_learning_rate, training.freeze_a_after)
    for name in ("a_learning_rate", "freeze_a_after"):
        if start.init and start.freeze_a and (value := getattr(training, name)) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} {value:g} is for an A that is trained: add --no-freeze-a, or take "
                "--recipe tlora-trained"
            )
    check_report(training.report_to)
    check_card(resolve_device(placement.device, {}))
    check_start(placement, output, overwrite)
    for found in left:
        if not overwrite:
            raise FileExistsError(
                f"{found} is left from an interrupted run: resume with tlora train and the run's --recipe (--resume "
                "where there are checkpoints), remove it, or start again with --overwrite"
            )


def by_recipe(ctx: Any, recipe: RecipeName, *groups: Any) -> tuple[Any, ...]:
    """Groups of options with the recipe's values where none were given; ``ctx.params`` gets them too.

    A recipe on the line counts more than a file's options that any recipe sets.

    Raises
    ------
    ValueError
        If an option is given that has no effect beside the others.
    """
    found = []
    values = _of_recipe(Recipe.named(recipe))
    any_recipe = {name for other in RECIPES.values() for name in _of_recipe(other)}
    weaker = {"DEFAULT", "DEFAULT_MAP"} if given(ctx, "recipe") == "COMMANDLINE" else {"DEFAULT"}
    for group in groups:
        free = {f.name: f.default for f in fields(group) if f.name in any_recipe and given(ctx, f.name) in weaker}
        asked: dict[str, Any] = free | {name: value for name, value in values.items() if name in free}
        if isinstance(group, Start) and not group.init:  # a random A has the length that PEFT gives it
            asked.pop("rows", None)
        group = replace(group, **asked)
        _check_effect(ctx, group)
        if isinstance(group, Start) and group.init and group.rows is None:
            asked["rows"] = default_rows(group.kind)
            group = replace(group, rows=asked["rows"])
        ctx.params.update(asked)
        found.append(group)
    return tuple(found)


def _of_recipe(recipe: Recipe) -> dict[str, Any]:
    return recipe.flat() | {"init": recipe.task_subspaces is not None}


def _check_effect(ctx: Any, group: Any) -> None:
    """Refuse options that are for another start, or for ranks that differ, rather than pass over them."""
    for switch, (what, names) in WITHOUT.items():
        for name in names if not getattr(group, switch, True) else ():
            value = getattr(group, name)
            if given(ctx, name) == "COMMANDLINE" or value != getattr(type(group), name):
                flag = switch.replace("_", "-")
                raise ValueError(
                    f"--{name.replace('_', '-')} {value} has no effect where {what}, by --recipe lora or --no-{flag}: "
                    f"leave it out, or take --recipe tlora without --no-{flag}"
                )


def given(ctx: Any, name: str) -> str:
    """Where an option has its value from: ``"COMMANDLINE"``, a file (``"DEFAULT_MAP"``), or ``"DEFAULT"``."""
    return str(ctx.get_parameter_source(name).name)


def checkpoints(output: Path) -> list[Path]:
    """Checkpoints of an interrupted training."""
    return sorted(unfinished(output).glob(f"{CHECKPOINTS}/checkpoint-*"))


def once(act: Callable[[], object]) -> None:
    """Have the first of several processes write what all would write alike."""
    Processes.current().run_on_first(act)


def load_base(name: str, data: Data, placement: Placement, report: Report, **where: Any) -> tuple[Any, Task]:
    """The model, with as many classes as the task has, and the task tokenized for it."""
    if placement.dtype is not None:
        floating_dtype(placement.dtype)  # refused before the task is loaded
    with report.step(f"loading {name} and {data.task}"):
        options = {"max_length": data.max_length, "seed": data.seed, "progress": report.progress}
        task = load_task_for_model(name, data.task, **options, **data.sizes())
        model, _ = load_model(name, num_labels=task.num_labels, seed=data.seed, **placement.arguments(), **where)
    dtype = str(model.dtype).removeprefix("torch.")
    report.say(f"  {type(model).__name__}, {model.num_parameters():,} parameters, {dtype} on {model.device}")
    report.say(f"  {task!r}")
    return model, task


def make_allocation(sensitivity: Sensitivity, allocating: AllocationFlags) -> Allocation:
    """The allocation that the options ask for."""
    return allocate(sensitivity, **asdict(allocating))


def rehearse(model: Any, looking: Looking, allocating: AllocationFlags) -> None:
    """Make the allocation with equal scores, so that one that cannot be met is refused before the calibration."""
    targets = target_modules(model, selected(looking.target_modules))
    make_allocation(Sensitivity(targets, torch.ones(1, len(targets)), Meta()), allocating)


def check_calibration(calibration: Calibration | None, place: Path | None, task: Task) -> None:
    """Warn if the calibration is of another task: the start of A and the allocation are then for that task."""
    if calibration and calibration.meta.task not in ("", task.name):
        warnings.warn(
            f"{place} is of {calibration.meta.task}, and this trains on {task.name}: is that meant?", stacklevel=1
        )


def directions(calibration: Calibration) -> int | None:
    """Most directions that a covariance has, where it is a sketch."""
    recipe = calibration.meta.recipe
    return recipe["sketch_size"] if recipe.get("covariance") == "sketch" else None


def look_at(
    model: Any, task: Task, looking: Looking, gradient: bool, report: Report, checkpoint: Path | None = None
) -> Calibration:
    """Calibrate on training samples of the task."""
    options = {"gradient": gradient, "checkpoint": checkpoint, "progress": report.progress} | looking.arguments()
    each = max(1, looking.samples // Processes.current().count)  # so that every process has a batch
    with report.step(f"calibrating on {looking.samples} samples"):
        return calibrate(model, task.calibration(looking.samples, min(BATCH_SIZE, each)), **options)


def origin(line: str, data: Data) -> dict[str, Any]:
    """What a result keeps of the command that made it: the line, its data, and the digest of their files."""
    return {"command": line, "data": asdict(data), "contents": digest_task(data.task, {}).get("task")}


def marked(result: R, **recipe: Any) -> R:
    """The result with more in its recipe, and so that of its parts which are saved on their own."""
    parts: dict[str, Any] = {"meta": replace(result.meta, recipe=result.meta.recipe | recipe)}
    if isinstance(result, Calibration):
        parts["sensitivity"] = replace(result.sensitivity, **parts)
    return replace(result, **parts)  # type: ignore[type-var]  # every result is a dataclass


@dataclass(frozen=True)
class Found:
    """What was found before training: the start of A, the allocation, and what is saved beside the adapter."""

    subspaces: Subspaces | None
    allocation: Allocation
    results: dict[str, Result]

    def saved(self, subspaces: bool) -> dict[str, Result]:
        """The results by the names of their folders, the subspaces among them where asked for."""
        return self.results | ({"subspaces": self.subspaces} if subspaces and self.subspaces else {})


def find(
    model: Any, calibration: Calibration | None, allocation: Allocation, start: Start, seed: int, report: Report
) -> Found:
    """Spectrum and subspaces, with as many directions as the allocation gives ranks."""
    results: dict[str, Result] = {"allocation": allocation}
    if calibration is None:
        return Found(None, allocation, results)
    with report.step("spectrum of the inputs"):
        results |= {"sensitivity": calibration.sensitivity, "spectrum": calibration.spectrum()}
    if not start.init:
        return Found(None, allocation, results)
    with report.step(f"subspaces of kind {start.kind}, up to rank {max(allocation.ranks.values())}"):
        subspaces = task_subspaces(
            model, calibration, max_rank=allocation, kind=start.kind, seed=seed, progress=report.progress
        )
    return Found(subspaces, allocation, results)


def attached(model: Any, found: Found, start: Start, seed: int) -> Any:
    """The model with the adapter that was found."""
    return attach(model, found.subspaces, found.allocation, start.init and start.freeze_a, start.rows, seed=seed)


def save_start(model: Any, found: Found, start: Start, output: Path, seed: int) -> None:
    """Write the results, and last the adapter before it is trained: where that is, all is."""
    adapted = attached(model, found, start, seed)
    for name, result in found.results.items():
        result.save(output / RUN.parent / name)
    save_initial(adapted, output)


def train_adapter(
    model: Any,
    task: Task,
    found: Found,
    start: Start,
    training: Training,
    output: Path,
    seed: int,
    report: Report,
    resume: bool = False,
) -> TrainingRun:
    """Attach the allocation and train it; checkpoints go beside the output until that is whole."""
    adapted = attached(model, found, start, seed)
    more: dict[str, Any] = {} if training.max_steps is None else {"max_steps": training.max_steps}
    with report.step("training, with the metrics before and after"):
        run = train(
            adapted,
            task,
            learning_rate=training.learning_rate,
            a_learning_rate=training.a_learning_rate,
            head_learning_rate=training.head_learning_rate,
            freeze_a_after=training.freeze_a_after,
            epochs=training.epochs,
            batch_size=training.batch_size,
            seed=seed,
            output_dir=unfinished(output) / CHECKPOINTS,
            resume=resume,
            evaluation_limit=training.eval_limit,
            progress=report.progress,
            gradient_accumulation_steps=training.gradient_accumulation,
            gradient_checkpointing=training.gradient_checkpointing,
            report_to=training.report_to,
            **more,
        )
    limit, held_out = training.eval_limit, len(getattr(task, run.evaluated_on, ()))
    evaluated = held_out if limit is None else min(limit, held_out)
    return marked(run, num_labels=task.num_labels, classes=list(task.classes), evaluated_samples=evaluated)


def save_run(run: TrainingRun, results: Mapping[str, Result], output: Path) -> None:
    """Write the adapter's folder with the results in it: all of it, or nothing. Those of an earlier run go."""
    results_there = [file.relative_to(output) for file in (output / RUN.parent).glob(f"*{SUFFIX}")]
    with replace_files(output, last=ADAPTER_CONFIG, earlier=[*earlier_files(output), *results_there]) as fresh:
        run.save(fresh)
        for name, result in results.items():
            result.save(fresh / RUN.parent / name)


def save_options(ctx: Any, output: Path) -> None:
    """Write the file that repeats a run: all of its options, so that other defaults change nothing."""
    names = [option.name for option in ctx.command.params if option.name not in ("config", "quiet", "overwrite")]
    values = {name: ctx.params[name] for name in names if ctx.params.get(name) is not None}
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    with replace_file(output / OPTIONS) as fresh:
        fresh.write_text(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), encoding="utf-8")


@contextlib.contextmanager
def going_on(rest: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Add to an error what is kept of the run, and how to resume it."""
    try:
        yield
    except BaseException as error:
        if kept := rest():
            error.add_note(facts(kept))
        raise


def clear(work: Path, inputs: bool) -> None:
    """Remove what a whole run has left beside its output; results there stay where the user named them as inputs."""
    shutil.rmtree(work / CHECKPOINTS if inputs else work, ignore_errors=True)
    if work.exists() and not any(work.iterdir()):
        work.rmdir()


def check_new(folder: Path) -> None:
    """Refuse a folder that holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is never overwritten: name another folder")
    check_output(folder, MODEL_CONFIG)


def base_of(folder: Path, model: str | None) -> tuple[str, dict[str, Any]]:
    """The base model of an adapter, and its revision where the adapter names one."""
    check_files(folder)
    config = saved_config(folder, "tlora") if model is None else {"base_model_name_or_path": model}
    if not (name := config.get("base_model_name_or_path")):
        raise ValueError(f"the adapter in {folder} does not say what its base model is: pass --model")
    return name, revision(config)


def recorded(folder: Path) -> TrainingRun | None:
    """The run that made an adapter; None where it was made by something else."""
    return TrainingRun.load(folder) if (folder / RUN).is_file() else None


def loaded(folder: Path, model: str | None, placement: Placement) -> tuple[Any, Any]:
    """The base with the adapter on it, and its tokenizer."""
    name, where = base_of(folder, model)
    labels = saved_classes(folder, *checked(folder, "tlora"), read_training_record(folder))
    with named(folder, model):
        base, tokenizer = load_model(name, num_labels=labels, **placement.arguments(), **where)
    return load(folder, base), tokenizer


def named(folder: Path, model: str | None) -> contextlib.AbstractContextManager[None]:
    """Adds to an error about a base that its name comes from the adapter, unless the command line gave it."""
    return named_by(folder, "--model") if model is None else contextlib.nullcontext()
