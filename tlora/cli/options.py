"""Options of the command line: each written down once, shared by all commands that take it. None of it loads torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tlora.utils.defaults import BATCH_SIZE, Budget, CovarianceForm, Kind, RecipeName, Rows, Scaling, Tokens

DRAWN = {"train": 300, "validation": 50, "test": 64}
"""Samples of a reasoning-gym task, which has as many as are asked for: minutes on two CPU cores."""


def option(panel: str, text: str, *names: str, **more: Any) -> Any:
    """An option, under the heading ``panel`` of a command's help; by default it goes by the name of what it sets."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take options that are not on the command line from a file."""
    if path is None:
        return None
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no options: write one a line, such as learning_rate: 1e-3")
    named = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = [parameter.name for parameter in ctx.command.params if parameter.name not in (None, "config")]
    for name in named.keys() - set(known):
        close = difflib.get_close_matches(name, known)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(map(str, known))}"
        raise ValueError(f"{path} has the option {name!r}, which tlora {ctx.command.name} does not have: {hint}")
    repeated = {parameter.name for parameter in ctx.command.params if getattr(parameter, "multiple", False)}
    ctx.default_map = {
        name: [value] if name in repeated and not isinstance(value, list) else value
        for name, value in named.items()
        if value is not None
    }
    return path


Model = Annotated[
    str,
    option(
        "Model",
        "Base model: smollm2-135m or minilm (packaged), a folder, a .gguf file, or an id on the Hugging Face hub.",
        "--model",
        "-m",
    ),
]
Adapter = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER",
        help="Folder of a PEFT LoRA adapter, or its name on the hub: owner/name, owner/name@revision.",
        show_default=False,
    ),
]
BaseModel = Annotated[
    str | None, option("Model", "Base model, where it is not the one that the adapter names.", "--model", "-m")
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
    ),
]
Output = Annotated[Path, option("Output", "Folder to write.", "--output", "-o")]
Overwrite = Annotated[bool, option("Output", "Replace an earlier result.", "--overwrite")]
Recipe = Annotated[
    RecipeName,
    option(
        "Allocation",
        "A set of options: lora, plain LoRA; tlora, where the task gives ranks and scales and points A, which is "
        "frozen; tlora-paper, the same with rows of length one; tlora-trained, with A trained as well; or "
        "tlora-freeze-late, with A trained for the first fifth of the steps. Options given explicitly take precedence.",
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
    option(
        "Calibration", "Folder to save what is done in every five minutes, and to go on from where it holds something."
    ),
]
Config = Annotated[
    Path | None,
    option(
        "Output",
        "YAML file with options by their names (learning_rate: 1e-3); those on the line count more. A run writes the "
        "one that repeats it, OUTPUT/tlora/run.yaml.",
        "--config",
        is_eager=True,
        callback=read_config,
    ),
]
Quiet = Annotated[bool, option("Output", "Show the summary alone, no progress.", "--quiet", "-q")]


def selected(names: Sequence[str]) -> str | list[str] | None:
    """The values of --target-modules as `tlora.target_modules` takes them."""
    if len(names) == 1 and names[0] in ("all", "attention", "mlp"):
        return names[0]
    return list(names) or None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the model computes, and in what."""

    device: Annotated[str | None, option("Model", "cpu, cuda, cuda:1, ... Default: CUDA where there is one.")] = None
    dtype: Annotated[
        str | None,
        option("Model", "float32, bfloat16 or float16. Default: bfloat16 on CUDA, float32 on the CPU."),
    ] = None
    load_in_4bit: Annotated[
        bool, option("Model", "Quantise the base to 4 bits (bitsandbytes).", "--load-in-4bit", show_default=False)
    ] = False

    def arguments(self) -> dict[str, Any]:
        """What `tlora.load_model` is called with."""
        found: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        if self.load_in_4bit:
            from transformers import BitsAndBytesConfig

            found["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True)
        return found


@dataclass(frozen=True, kw_only=True)
class Data:
    """The task, how much of it, and the seed of everything random."""

    task: TaskName
    train_samples: Annotated[
        int | None,
        option(
            "Data",
            "Samples to train on. Default, here and in the next two: all there are, and "
            + ", ".join(map(str, DRAWN.values()))
            + " for reasoning-gym, which draws any number.",
            min=1,
        ),
    ] = None
    validation_samples: Annotated[int | None, option("Data", "Samples for the loss during training.", min=0)] = None
    test_samples: Annotated[int | None, option("Data", "Samples for the metrics before and after training.", min=0)] = (
        None
    )
    max_length: Annotated[
        int | None,
        option("Data", "Most tokens of a sample. Default: 1,024, or what the model reads.", min=2),
    ] = None
    seed: Annotated[
        int, option("Data", "Seed of all that is random: data, a new head, subspaces, order of training.", min=0)
    ] = 0

    def sizes(self) -> dict[str, int | None]:
        """Samples of each split as `tlora.load_task` takes them."""
        from tlora.tasks.load import task_files
        from tlora.tasks.presets import PRESETS

        is_drawn = self.task not in PRESETS and not task_files(self.task)
        asked = {split: getattr(self, f"{split}_samples") for split in DRAWN}
        return {split: DRAWN[split] if is_drawn and n is None else n for split, n in asked.items()}


@dataclass(frozen=True, kw_only=True)
class Looking:
    """What the calibration looks at, and how."""

    target_modules: TargetModules = ()  # type: ignore[assignment]
    samples: Annotated[int, option("Calibration", "Training samples to calibrate on.", min=1)] = 32
    tokens: Annotated[
        Tokens, option("Calibration", "Tokens in the covariance: all real ones, or those that are trained on.")
    ] = "all"
    covariance: Annotated[
        CovarianceForm,
        option("Calibration", "Keep covariances whole, or as sketches: a fraction of the memory for a wide model."),
    ] = "dense"
    sketch_size: Annotated[
        int, option("Calibration", "Columns of a sketch: twice the largest rank of a module is plenty.", min=1)
    ] = 256

    def arguments(self) -> dict[str, Any]:
        """What `tlora.calibrate` is called with, beside the samples."""
        return {
            "target_modules": selected(self.target_modules),
            "tokens": self.tokens,
            "covariance": self.covariance,
            "sketch_size": self.sketch_size,
        }

    @property
    def directions(self) -> int | None:
        """Most directions that a covariance has, where it is a sketch."""
        return self.sketch_size if self.covariance == "sketch" else None


@dataclass(frozen=True, kw_only=True)
class AllocationFlags:
    """What the allocation is asked for."""

    rank: Annotated[
        int, option("Allocation", "Nominal rank, as in LoRA: the budget is rank x modules.", "--rank", "-r", min=1)
    ] = 8
    alpha: Annotated[float | None, option("Allocation", "Nominal alpha, as in LoRA. Default: the rank.")] = None
    scaling: Annotated[
        Scaling, option("Allocation", "Divide a module's alpha by the nominal or by its allocated rank.")
    ] = "nominal"
    budget: Annotated[
        Budget,
        option(
            "Allocation", "As much as a uniform allocation has: of ranks, exactly, or of trained parameters, at most."
        ),
    ] = "ranks"
    max_rank: Annotated[
        int | None,
        option("Allocation", "Most rank of a module. Default: the size of its matrix, or of the sketch.", min=1),
    ] = None
    adapt_ranks: Annotated[
        bool,
        option(
            "Allocation",
            "Give every module the nominal rank, whatever its sensitivity.",
            " /--no-adapt-ranks",
            show_default=False,
        ),
    ] = True
    adapt_scales: Annotated[
        bool,
        option(
            "Allocation",
            "Give every module the nominal alpha, whatever its sensitivity.",
            " /--no-adapt-scales",
            show_default=False,
        ),
    ] = True

    def within(self, directions: int | None) -> AllocationFlags:
        """The allocation, with no more rank for a module than this, if anything."""
        most = min((n for n in (self.max_rank, directions) if n is not None), default=None)
        return replace(self, max_rank=most)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where A comes from, and whether it is trained."""

    kind: Annotated[
        Kind,
        option(
            "Adapter",
            "Matrix whose right singular vectors A takes: weight x covariance (wc, TLoRA), weight (w), covariance "
            "(c), weight x root of the covariance (wc_half), mean gradient (g), that whitened (g_whitened); or random "
            "orthonormal rows.",
        ),
    ] = "wc"
    init: Annotated[
        bool,
        option(
            "Adapter",
            "A is random, and trained: plain LoRA, with --no-adapt-ranks and --no-adapt-scales.",
            " /--no-init",
            show_default=False,
        ),
    ] = True
    freeze_a: Annotated[bool, option("Adapter", "Train A too.", " /--no-freeze-a", show_default=False)] = True
    rows: Annotated[
        Rows | None,
        option(
            "Adapter",
            "Length of the rows of A: by the variance of the inputs along them; whitened, of g_whitened; or one.",
            show_default="what goes with the kind; one in tlora-paper",
        ),
    ] = None

    @property
    def of_gradient(self) -> bool:
        """Whether the directions are made of the mean gradient, which the calibration then has to keep."""
        return self.kind in ("g", "g_whitened")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the adapter is trained."""

    learning_rate: Annotated[
        float,
        option(
            "Training",
            "Peak learning rate of AdamW; warm-up over a tenth, then a cosine. Worth a search: the best of our "
            "comparison at rank 8 were 5e-4 to 4e-3 for lora, 5e-4 to 8e-3 for tlora, 6e-5 to 4e-3 for "
            "tlora-paper, 1e-3 to 2e-3 for tlora-trained.",
            "--learning-rate",
            "--lr",
        ),
    ] = 1e-3
    a_learning_rate: Annotated[
        float | None, option("Training", "Peak learning rate of A, where it is trained. Default: that of B.")
    ] = None
    head_learning_rate: Annotated[
        float | None, option("Training", "Peak learning rate of a classifier's head. Default: that of B.")
    ] = None
    freeze_a_after: Annotated[
        float | None,
        option("Training", "Part of the steps after which A, where it is trained, stays as it is, e.g. 0.2."),
    ] = None
    epochs: Annotated[float, option("Training", "Passes over the training samples.")] = 1.0
    max_steps: Annotated[int | None, option("Training", "Optimiser steps, in place of the epochs.", min=1)] = None
    batch_size: Annotated[int, option("Training", "Samples a step.", min=1)] = BATCH_SIZE
    gradient_accumulation: Annotated[int, option("Training", "Batches of this size in an optimiser step.", min=1)] = 1
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
