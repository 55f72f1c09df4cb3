"""Options of the command line: each declared once, shared by all commands that take it. None of it loads torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import tlora
from tlora.cli.checks import (
    check_adapter,
    check_device,
    check_model,
    check_positive,
    check_recipe,
    check_task,
    check_texts,
)
from tlora.utils.defaults import (
    BATCH_SIZE,
    COVARIANCE,
    DIRECTIONS,
    EPOCHS,
    KINDS,
    LEARNING_RATE,
    RANK,
    SAMPLES,
    SCALING,
    SKETCH_SIZE,
    TEXTS,
    TOKENS,
    Budget,
    CovarianceForm,
    Dtype,
    Kind,
    RanksBy,
    Rows,
    Scaling,
    StatisticsPlacement,
    Tokens,
)

GENERATED = {"train": 300, "validation": 50, "test": 64}
"""Samples of a reasoning-gym task, which generates any number: minutes on two CPU cores."""


def option(panel: str, text: str, *names: str, **more: Any) -> Any:
    """Return an option under the heading ``panel`` of a command's help, by default named after its parameter."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


_model, _data, _calibration, _allocation, _adapter, _training, _output = (
    partial(option, panel) for panel in ("Model", "Data", "Calibration", "Allocation", "Adapter", "Training", "Output")
)


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
    parameters = {parameter.name: parameter for parameter in ctx.command.params if parameter.name != "config"}
    ctx.default_map = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in parameters:
            nearest = _nearest(name.lower(), parameters)
            raise ValueError(f"{path}: tlora {ctx.command.name} has no option {key!r}{nearest}")
        if value is not None:
            is_list = getattr(parameters[name], "multiple", False) and not isinstance(value, list)
            ctx.default_map[name] = [value] if is_list else value
    return path


def _nearest(name: str, parameters: Mapping[str, Any]) -> str:
    """Return a clause with the option that has this name, or those of nearly this name; empty without any."""
    flag = f"--{name.replace('_', '-')}"
    same = [option for option, parameter in parameters.items() if flag in parameter.opts]
    close = same or difflib.get_close_matches(name, parameters)
    return f": did you mean {' or '.join(map(repr, close))}?" if close else ""


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Base model: smollm2-135m or minilm (packaged), a folder, a .gguf file, or an id on the Hugging Face hub.",
        callback=check_model,
    ),
]
AdapterName = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER",
        help="Folder of a PEFT LoRA adapter, or its name on the hub: owner/name, owner/name@revision.",
        callback=check_adapter,
    ),
]
OtherAdapter = Annotated[
    str | None,
    typer.Argument(metavar="[OTHER]", help="Another adapter to compare it with.", callback=check_adapter),
]
BaseModel = Annotated[
    str | None,
    _model("Base model. Default: the one that the adapter names.", "--model", "-m", callback=check_model),
]
TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="A task of reasoning-gym (family_relationships), one known by name (rotten_tomatoes, gsm8k, ...), or a "
        "JSONL, CSV or Parquet file, or a folder of them, with the columns prompt and completion, messages, or "
        "text and label.",
        callback=check_task,
    ),
]
Texts = Annotated[
    list[str],
    _data(
        f"Text that the adapter was not meant for: {', '.join(TEXTS)}; a .txt file, each paragraph a text; or a task. "
        "May be repeated.",
        "--text",
        callback=check_texts,
    ),
]
Output = Annotated[Path, _output("Folder or file to write.", "--output", "-o")]
Overwrite = Annotated[bool, _output("Replace an earlier result.", "--overwrite")]
Read = Annotated[
    bool,
    _output("Also leave a page with the tokens that the directions read. It holds the text of samples.", "--read"),
]
GradientCheckpointing = Annotated[bool, _calibration("Compute activations twice: less memory, more time.")]
Json = Annotated[bool, _output("Print JSON.", "--json")]
Quiet = Annotated[bool, _output("Show the summary alone, no progress.", "--quiet", "-q")]
Device = Annotated[
    str | None, _model("cpu, cuda, cuda:1, ... Default: CUDA if available, else the CPU.", callback=check_device)
]
Resume = Annotated[
    bool, _output("Continue an unfinished run from where it stopped; with the same options.", "--resume")
]
RecipeOption = Annotated[
    str,
    _allocation(
        "A set of options: captured, A frozen along the directions with the largest squared gradient, ranks by how "
        "much of it they capture, one scale; captured-trained, with A trained as well; captured-freeze-late, with A "
        "trained for the first fifth of the steps; tlora-paper, the published method: ranks and scales by sensitivity, "
        "A frozen along the singular vectors of W C; or lora, plain LoRA. Options given explicitly take precedence.",
        "--recipe",
        callback=check_recipe,
    ),
]
TargetModules = Annotated[
    list[str],
    _model(
        "Modules to adapt: attention, mlp, experts (routed ones), or a projection such as q_proj; may be repeated. "
        "Default: all linear layers of the blocks, without experts.",
        "--target-modules",
    ),
]
Config = Annotated[
    Path | None,
    _output(
        "YAML file with options by their names (learning_rate: 1e-3); options on the command line take precedence. A "
        "run writes the one that repeats it, OUTPUT/tlora/run.yaml.",
        is_eager=True,
        exists=True,
        dir_okay=False,
        callback=read_config,
    ),
]


def module_selection(names: Sequence[str]) -> str | list[str] | None:
    """Return the values of --target-modules as `tlora.target_modules` takes them."""
    if len(names) == 1 and names[0] in ("all", "attention", "mlp", "experts"):
        return names[0]
    return list(names) or None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the model computes, and in which precision."""

    device: Device = None
    dtype: Annotated[Dtype | None, _model("Precision. Default: bfloat16 on CUDA, float32 on the CPU.")] = None
    load_in_4bit: Annotated[bool, _model("Quantize the base to 4 bits (bitsandbytes).", "--load-in-4bit")] = False

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
        _data(
            f"Samples to train on. Default: all there are, or {GENERATED['train']} of reasoning-gym, which generates "
            f"any number ({GENERATED['validation']} and {GENERATED['test']} for validation and test).",
            min=1,
        ),
    ] = None
    validation_samples: Annotated[int | None, _data("Samples for the loss during training.", min=0)] = None
    test_samples: Annotated[int | None, _data("Samples for the metrics before and after training.", min=0)] = None
    max_length: Annotated[
        int | None, _data("Most tokens of a sample. Default: 1,024, or less if the model reads less.", min=2)
    ] = None
    seed: Annotated[
        int, _data("Seed of all that is random: data, a new head, subspaces, order of training.", min=0)
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
    samples: Annotated[int, _calibration("Training samples to calibrate on.", min=1)] = SAMPLES
    tokens: Annotated[
        Tokens, _calibration("Tokens in the covariance: all real ones, the trained ones, or all but the chat template.")
    ] = TOKENS
    covariance: Annotated[
        CovarianceForm, _calibration("Covariances whole, or as sketches: a fraction of the memory for a wide model.")
    ] = COVARIANCE
    sketch_size: Annotated[
        int, _calibration("Columns of a sketch, that of kind fisher too: twice the largest rank is plenty.", min=1)
    ] = SKETCH_SIZE
    calibration_batch_size: Annotated[
        int, _calibration("Samples of the calibration at once: fewer take less memory.", min=1)
    ] = BATCH_SIZE
    statistics: Annotated[
        StatisticsPlacement | None,
        _calibration("Whole covariances beside the model, or on the host. Default: on the host if a GPU lacks room."),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `tlora.calibrate` that recipes have."""
        values = {name: value for name, value in asdict(self).items() if name in OF_RECIPES["calibrate"]}
        return values | {"target_modules": module_selection(self.target_modules)}

    def sizes(self) -> dict[str, Any]:
        """Return how many samples there are, how many are run at once, and where their statistics are summed."""
        sizes = {"samples": self.samples, "batch_size": self.calibration_batch_size}
        return sizes | {"statistics": self.statistics}


@dataclass(frozen=True, kw_only=True)
class AllocationFlags:
    """The arguments of `tlora.allocate`; None leaves an option to the recipe."""

    rank: Annotated[
        int,
        _allocation(
            "Nominal rank, as in LoRA. The budget is what this rank costs in every module: see --budget.",
            "--rank",
            "-r",
            min=1,
        ),
    ] = RANK
    alpha: Annotated[
        float | None, _allocation("Nominal alpha, as in LoRA. Default: the rank.", callback=check_positive)
    ] = None
    scaling: Annotated[
        Scaling | None,
        _allocation(f"Divide a module's alpha by the nominal or by its allocated rank. [default: {SCALING}]"),
    ] = None
    budget: Annotated[
        Budget | None,
        _allocation("What the budget counts: ranks, or trainable parameters. Default: the recipe's."),
    ] = None
    max_rank: Annotated[
        int | None,
        _allocation(
            "Highest rank of a module. Default: the size of its matrix, or of the sketch; "
            f"{DIRECTIONS} times --rank for ranks by captured gradient.",
            min=1,
        ),
    ] = None
    by: Annotated[
        RanksBy | None,
        _allocation(
            "Ranks by sensitivity, or by the squared gradient that directions capture: for --kind fisher or g, up to "
            f"{DIRECTIONS} times the rank or --max-rank. Default: the recipe's."
        ),
    ] = None
    adapt_ranks: Annotated[
        bool | None, _allocation("Ranks by what --by says, or the nominal rank for all that are as large.")
    ] = None
    adapt_scales: Annotated[bool | None, _allocation("Scales by sensitivity, or the nominal alpha for all.")] = None
    rank_by_expert: Annotated[
        bool | None,
        _allocation(
            "Experts of a parameter share its ranks by what --by says. Saves no memory: PEFT holds the largest for all."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class AdapterFlags:
    """How A starts, and whether it is trained; None leaves an option to the recipe."""

    kind: Annotated[
        Kind | None,
        _adapter(
            f"What the rows of A are: {'; '.join(f'{kind}: {facts.meaning}' for kind, facts in KINDS.items())}. "
            "Default: that of the recipe."
        ),
    ] = None
    init: Annotated[bool | None, _adapter("Start A from the task's directions, or at random as LoRA does.")] = None
    freeze_a: Annotated[bool | None, _adapter("Train B alone, or A too.")] = None
    rows: Annotated[
        Rows | None,
        _adapter(
            "Length of the rows of A: by the variance of the inputs along them, or one. [default: variance; "
            "orthonormal in tlora-paper]"
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """The arguments of `tlora.train`."""

    learning_rate: Annotated[
        float,
        _training(
            "Peak learning rate of AdamW; warm-up over a tenth, then a cosine. Worth a search: the best at rank 8 were "
            "5e-4 to 8e-3 for lora, at whose best rate captured learned as much on three tasks of four, and 6e-5 to "
            "4e-3 for tlora-paper. With queries and values alone, captured was best at 3.2e-2.",
            *("--learning-rate", "--lr"),
            callback=check_positive,
        ),
    ] = LEARNING_RATE
    a_learning_rate: Annotated[
        float | None, _training("Peak rate of A, if it is trained. Default: that of B.", callback=check_positive)
    ] = None
    freeze_a_after: Annotated[
        float | None, _training("Freeze A after this part of the steps, such as 0.2.", min=0, max=1)
    ] = None
    epochs: Annotated[float, _training("Passes over the training samples.", callback=check_positive)] = EPOCHS
    steps: Annotated[int | None, _training("Optimizer steps, in place of the epochs.", min=1)] = None
    batch_size: Annotated[int, _training("Samples a step.", min=1)] = BATCH_SIZE
    gradient_accumulation: Annotated[int, _training("Batches of this size in an optimizer step.", min=1)] = 1
    gradient_checkpointing: Annotated[
        bool, _training("Compute activations twice, in the calibration too: less memory, more time.")
    ] = False
    report_to: Annotated[
        str, _training("Where losses are logged: none, all, or as transformers names it: tensorboard, wandb, ...")
    ] = "none"
    eval_limit: Annotated[
        int | None, _training("Most test samples that the metrics are taken on; 0: none. Default: all.", min=0)
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `tlora.train`."""
        arguments = asdict(self)
        arguments["gradient_accumulation_steps"] = arguments.pop("gradient_accumulation")
        arguments["evaluation_limit"] = arguments.pop("eval_limit")
        if (steps := arguments.pop("steps")) is not None:
            arguments["max_steps"] = steps
        return arguments


OF_RECIPES = {
    "calibrate": ("target_modules", "tokens", "covariance", "sketch_size"),
    "task_subspaces": ("kind",),
    "allocate": ("alpha", "scaling", "budget", "max_rank", "by", "adapt_ranks", "adapt_scales", "rank_by_expert"),
    "attach": ("freeze_a", "rows"),
    "train": ("a_learning_rate", "freeze_a_after"),
}
"""Options that a recipe decides unless they are given, by the function that they are arguments of."""


def build_recipe(name: str, *groups: Any) -> tlora.Recipe:
    """Return the recipe of this name, with the options of these groups that were given in place of its own.

    Raises
    ------
    ValueError
        If an option was given that has no effect with this recipe, or its ranks cannot be chosen.
    """
    given = {f.name: value for group in groups for f in fields(group) if (value := getattr(group, f.name)) != f.default}
    recipe = tlora.Recipe.named(name)
    is_random = not given.get("init", recipe.kind is not None)
    changes: dict[str, Any] = {
        function: {option: given[option] for option in options if option in given}
        for function, options in OF_RECIPES.items()
    }
    if "target_modules" in changes["calibrate"]:
        changes["calibrate"]["target_modules"] = module_selection(given["target_modules"])
    if is_random:
        changes |= {"task_subspaces": None, "attach": {"freeze_a": False}}
    is_frozen = {**recipe.attach, **changes["attach"]}.get("freeze_a", True)
    for applies, names, reason in (
        (is_random, ("kind", "rows", "freeze_a"), "A is random: leave it out, or take --init or --recipe captured"),
        (is_frozen, OF_RECIPES["train"], "A is frozen: leave it out, or take --recipe captured-trained"),
        (
            not {**recipe.allocate, **changes["allocate"]}.get("adapt_ranks", True),
            ("budget", "scaling", "max_rank", "by", "rank_by_expert"),
            "all ranks are the same: leave it out, or add --adapt-ranks",
        ),
    ):
        for option in names:
            if applies and given.get(option):
                raise ValueError(f"--{option.replace('_', '-')} has no effect in --recipe {name}, where {reason}")
    if is_frozen:
        changes["train"] = {"freeze_a_after": None}
    recipe = recipe.override(**changes)
    if any(isinstance(group, AllocationFlags) for group in groups):
        from tlora.recipes import allocation_arguments

        allocation_arguments(recipe, given.get("rank", RANK))
    return recipe
