"""Options of the command line: each declared once, shared by all commands that take it. None of it loads torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tlora.cli.checks import check_adapter, check_device, check_fraction, check_model, check_positive, check_task
from tlora.utils.defaults import (
    BATCH_SIZE,
    BUDGET,
    COVARIANCE,
    EPOCHS,
    KIND,
    LEARNING_RATE,
    RANK,
    RECIPES,
    SAMPLES,
    SCALING,
    SKETCH_SIZE,
    TOKENS,
    Budget,
    CovarianceForm,
    Dtype,
    Kind,
    RecipeName,
    Rows,
    Scaling,
    Tokens,
)

GENERATED = {"train": 300, "validation": 50, "test": 64}
"""Samples of a reasoning-gym task, which generates any number: minutes on two CPU cores."""


def option(panel: str, text: str, *names: str, **more: Any) -> Any:
    """Return an option under the heading ``panel`` of a command's help, by default named after its parameter."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take options that are not on the command line from a file."""
    if path is None:
        return None
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no options: write one a line, such as learning_rate: 1e-3")
    values = {str(name).replace("-", "_"): value for name, value in values.items() if value is not None}
    parameters = {parameter.name: parameter for parameter in ctx.command.params if parameter.name != "config"}
    for name in values.keys() - parameters.keys():
        close = difflib.get_close_matches(name, map(str, parameters))
        hint = f": did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"{path} has the option {name!r}, which tlora {ctx.command.name} does not have{hint}")
    ctx.default_map = {
        name: [value] if getattr(parameters[name], "multiple", False) and not isinstance(value, list) else value
        for name, value in values.items()
    }
    return path


Model = Annotated[
    str,
    option(
        "Model",
        "Base model: smollm2-135m or minilm (packaged), a folder, a .gguf file, or an id on the Hugging Face hub.",
        "--model",
        "-m",
        callback=check_model,
    ),
]
AdapterName = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER",
        help="Folder of a PEFT LoRA adapter, or its name on the hub: owner/name, owner/name@revision.",
        show_default=False,
        callback=check_adapter,
    ),
]
BaseModel = Annotated[
    str | None,
    option("Model", "Base model. Default: the one that the adapter names.", "--model", "-m", callback=check_model),
]
TaskName = Annotated[
    str,
    option(
        "Data",
        "A task of reasoning-gym (family_relationships), one known by name (rotten_tomatoes, gsm8k, ...), or a "
        "JSONL, CSV or Parquet file, or a folder of them, with the columns prompt and completion, messages, or "
        "text and label.",
        "--task",
        "-t",
        "--data",
        callback=check_task,
    ),
]
Output = Annotated[Path, option("Output", "Folder to write.", "--output", "-o")]
Overwrite = Annotated[bool, option("Output", "Replace an earlier result.", "--overwrite")]
Json = Annotated[bool, option("Output", "Print JSON.", "--json")]
Quiet = Annotated[bool, option("Output", "Show the summary alone, no progress.", "--quiet", "-q")]
Device = Annotated[
    str | None,
    option("Model", "cpu, cuda, cuda:1, ... Default: CUDA if available, else the CPU.", callback=check_device),
]
Recipe = Annotated[
    RecipeName,
    option(
        "Allocation",
        "A set of options: lora, plain LoRA; tlora, with ranks, scales and a frozen A from the task; tlora-paper, the "
        "same with rows of length one; tlora-trained, with A trained as well; tlora-freeze-late, with A trained for "
        "the first fifth of the steps; or uniform, tlora with one rank and one scale. Options given explicitly take "
        "precedence.",
    ),
]
TargetModules = Annotated[
    list[str],
    option(
        "Model",
        "Modules to adapt: attention, mlp, or a projection such as q_proj, which may be repeated. Default: all linear "
        "layers of the blocks.",
        "--target-modules",
    ),
]
SaveCalibration = Annotated[
    bool,
    option(
        "Output",
        "Keep the calibration (its covariances are large: 200 MB for smollm2-135m) and the subspaces too.",
        "--save-calibration",
    ),
]
Checkpoint = Annotated[
    Path | None,
    option("Calibration", "Folder to save the progress in every five minutes, and to resume from.", file_okay=False),
]
Config = Annotated[
    Path | None,
    option(
        "Output",
        "YAML file with options by their names (learning_rate: 1e-3); options on the command line take precedence. A "
        "run writes the one that repeats it, OUTPUT/tlora/run.yaml.",
        "--config",
        is_eager=True,
        exists=True,
        dir_okay=False,
        callback=read_config,
    ),
]


def module_selection(names: Sequence[str]) -> str | list[str] | None:
    """Return the values of --target-modules as `tlora.target_modules` takes them."""
    if len(names) == 1 and names[0] in ("all", "attention", "mlp"):
        return names[0]
    return list(names) or None


def sketch_columns(calibration: Mapping[str, Any]) -> int | None:
    """Return the columns of the sketches of a calibration with these arguments; None if covariances are dense."""
    return calibration["sketch_size"] if calibration.get("covariance") == "sketch" else None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the model computes, and in which precision."""

    device: Device = None
    dtype: Annotated[
        Dtype | None, option("Model", "Precision of the base. Default: bfloat16 on CUDA, float32 on the CPU.")
    ] = None
    load_in_4bit: Annotated[
        bool, option("Model", "Quantize the base to 4 bits (bitsandbytes).", "--load-in-4bit", show_default=False)
    ] = False

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `tlora.load_model`."""
        arguments: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        if self.load_in_4bit:
            from transformers import BitsAndBytesConfig

            arguments["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True)
        return arguments


@dataclass(frozen=True, kw_only=True)
class Data:
    """The task, how much of it, and the seed of everything random."""

    task: TaskName
    train_samples: Annotated[
        int | None,
        option(
            "Data",
            "Samples to train on. Default, here and in the next two: all there are, and "
            + ", ".join(map(str, GENERATED.values()))
            + " for reasoning-gym, which generates any number.",
            min=1,
        ),
    ] = None
    validation_samples: Annotated[int | None, option("Data", "Samples for the loss during training.", min=0)] = None
    test_samples: Annotated[int | None, option("Data", "Samples for the metrics before and after training.", min=0)] = (
        None
    )
    max_length: Annotated[
        int | None,
        option("Data", "Most tokens of a sample. Default: 1,024, or less if the model reads less.", min=2),
    ] = None
    seed: Annotated[
        int, option("Data", "Seed of all that is random: data, a new head, subspaces, order of training.", min=0)
    ] = 0

    def sizes(self) -> dict[str, int | None]:
        """Return the samples of each split as `tlora.load_task` takes them."""
        from tlora.tasks.load import task_files
        from tlora.tasks.presets import PRESETS

        is_generated = self.task not in PRESETS and not task_files(self.task)
        sizes = {split: getattr(self, f"{split}_samples") for split in GENERATED}
        return {split: GENERATED[split] if is_generated and n is None else n for split, n in sizes.items()}


@dataclass(frozen=True, kw_only=True)
class CalibrationFlags:
    """Samples and modules of a calibration, and the form of its covariances."""

    target_modules: TargetModules = ()  # type: ignore[assignment]
    samples: Annotated[int, option("Calibration", "Training samples to calibrate on.", min=1)] = SAMPLES
    tokens: Annotated[
        Tokens, option("Calibration", "Tokens in the covariance: all real ones, or those that are trained on.")
    ] = TOKENS
    covariance: Annotated[
        CovarianceForm,
        option("Calibration", "Keep covariances whole, or as sketches: a fraction of the memory for a wide model."),
    ] = COVARIANCE
    sketch_size: Annotated[
        int, option("Calibration", "Columns of a sketch: twice the largest rank of a module is plenty.", min=1)
    ] = SKETCH_SIZE

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `tlora.calibrate`, except for the samples."""
        arguments = asdict(self) | {"target_modules": module_selection(self.target_modules)}
        del arguments["samples"]
        return arguments


@dataclass(frozen=True, kw_only=True)
class AllocationFlags:
    """The arguments of `tlora.allocate`; None leaves an option to the recipe."""

    rank: Annotated[
        int, option("Allocation", "Nominal rank, as in LoRA: the budget is rank x modules.", "--rank", "-r", min=1)
    ] = RANK
    alpha: Annotated[
        float | None, option("Allocation", "Nominal alpha, as in LoRA. Default: the rank.", callback=check_positive)
    ] = None
    scaling: Annotated[
        Scaling | None,
        option("Allocation", f"Divide a module's alpha by the nominal or by its allocated rank. [default: {SCALING}]"),
    ] = None
    budget: Annotated[
        Budget | None,
        option(
            "Allocation",
            f"What may add up to as much as in a uniform allocation: ranks, or trained parameters. [default: {BUDGET}]",
        ),
    ] = None
    max_rank: Annotated[
        int | None,
        option("Allocation", "Most rank of a module. Default: the size of its matrix, or of the sketch.", min=1),
    ] = None
    adapt_ranks: Annotated[
        bool | None, option("Allocation", "Ranks by sensitivity, or the nominal rank for every module.")
    ] = None
    adapt_scales: Annotated[
        bool | None, option("Allocation", "Scales by sensitivity, or the nominal alpha for every module.")
    ] = None

    def cap_rank(self, most: int | None) -> AllocationFlags:
        """Return the options with no more than this rank for a module; None for no change."""
        return replace(self, max_rank=min((n for n in (self.max_rank, most) if n is not None), default=None))


@dataclass(frozen=True, kw_only=True)
class AdapterFlags:
    """How A starts, and whether it is trained; None leaves an option to the recipe."""

    kind: Annotated[
        Kind | None,
        option(
            "Adapter",
            "Matrix whose right singular vectors A takes: weight x covariance (wc, TLoRA), weight (w), covariance "
            "(c), weight x root of the covariance (wc_half), mean gradient (g), that whitened (g_whitened); or random "
            f"orthonormal rows. [default: {KIND}]",
        ),
    ] = None
    init: Annotated[
        bool | None, option("Adapter", "Start A from the task's directions, or from random numbers as LoRA does.")
    ] = None
    freeze_a: Annotated[bool | None, option("Adapter", "Train B alone, or A too.")] = None
    rows: Annotated[
        Rows | None,
        option(
            "Adapter",
            "Length of the rows of A: by the variance of the inputs along them; whitened, of g_whitened; or one. "
            "Default: what goes with the kind; one in tlora-paper.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """The arguments of `tlora.train`."""

    learning_rate: Annotated[
        float,
        option(
            "Training",
            "Peak learning rate of AdamW; warm-up over a tenth, then a cosine. Worth a search: the best of our "
            "comparison at rank 8 were 5e-4 to 4e-3 for lora, 5e-4 to 8e-3 for tlora, 6e-5 to 4e-3 for "
            "tlora-paper, 1e-3 to 2e-3 for tlora-trained.",
            "--learning-rate",
            "--lr",
            callback=check_positive,
        ),
    ] = LEARNING_RATE
    a_learning_rate: Annotated[
        float | None,
        option("Training", "Peak learning rate of A, if it is trained. Default: that of B.", callback=check_positive),
    ] = None
    head_learning_rate: Annotated[
        float | None,
        option("Training", "Peak learning rate of a classifier's head. Default: that of B.", callback=check_positive),
    ] = None
    freeze_a_after: Annotated[
        float | None,
        option("Training", "Freeze A after this part of the steps, such as 0.2.", callback=check_fraction),
    ] = None
    epochs: Annotated[float, option("Training", "Passes over the training samples.", callback=check_positive)] = EPOCHS
    max_steps: Annotated[int | None, option("Training", "Optimizer steps, in place of the epochs.", min=1)] = None
    batch_size: Annotated[int, option("Training", "Samples a step.", min=1)] = BATCH_SIZE
    gradient_accumulation: Annotated[int, option("Training", "Batches of this size in an optimizer step.", min=1)] = 1
    gradient_checkpointing: Annotated[
        bool,
        option("Training", "Compute activations again in the backward pass: less memory, more time."),
    ] = False
    report_to: Annotated[
        str,
        option("Training", "Where losses are logged: none, all, or as transformers names it: tensorboard, wandb, ..."),
    ] = "none"
    eval_limit: Annotated[
        int | None,
        option("Training", "Most test samples that the metrics are taken on; 0: none. Default: all.", min=0),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `tlora.train`."""
        arguments = asdict(self)
        arguments["gradient_accumulation_steps"] = arguments.pop("gradient_accumulation")
        arguments["evaluation_limit"] = arguments.pop("eval_limit")
        if self.max_steps is None:
            del arguments["max_steps"]
        return arguments


def apply_recipe(recipe: RecipeName, *groups: Any) -> tuple[Any, ...]:
    """Return groups of options, with the values of a recipe for the options that were left to it.

    Raises
    ------
    ValueError
        If an option was given that has no effect with this recipe.
    """
    values: dict[str, Any] = {"adapt_ranks": True, "adapt_scales": True, "freeze_a": True, "init": True}
    for function, arguments in RECIPES[recipe].items():
        values |= {"init": False} if (function, arguments) == ("task_subspaces", None) else arguments
    explicit = {
        f.name: value for group in groups for f in fields(group) if (value := getattr(group, f.name)) is not None
    }
    values |= explicit
    if not values["init"]:
        frozen = ("freeze_a",) if explicit.get("freeze_a") else ()
        _refuse(explicit, ("kind", "rows", *frozen), "A is random", "--no-init")
        values |= {"rows": None, "freeze_a": False}
    if not values["adapt_ranks"]:
        _refuse(explicit, ("budget", "scaling", "max_rank"), "all ranks are the same", "--no-adapt-ranks")
    if values["freeze_a"]:
        _refuse(explicit, ("a_learning_rate", "freeze_a_after"), "A is frozen", "--freeze-a", "tlora-trained")
        values |= {"freeze_a_after": None}
    values = {"kind": KIND, "budget": BUDGET, "scaling": SCALING} | values
    return tuple(replace(g, **{f.name: values[f.name] for f in fields(g) if f.name in values}) for g in groups)


def _refuse(
    explicit: Mapping[str, Any], names: Sequence[str], reason: str, flag: str, other: RecipeName = "tlora"
) -> None:
    for name in names:
        if name in explicit:
            raise ValueError(
                f"--{name.replace('_', '-')} {explicit[name]} has no effect: {reason}, by the recipe or by {flag}. "
                f"Leave it out, or take --recipe {other} without {flag}"
            )
