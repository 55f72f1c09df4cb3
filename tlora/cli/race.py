"""`tlora race`: train a few adapters on the same batches and say which is better."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import tlora
from tlora.cli.checks import PICTURE_FORMATS, check_picture, check_positive
from tlora.cli.command_line import again, flatten_options
from tlora.cli.loading import load_base, load_data
from tlora.cli.options import Data, Model, Overwrite, Placement, Quiet, option
from tlora.cli.output import Report, draw_into, load_viz, summary_text
from tlora.utils.defaults import BATCH_SIZE, RECIPE_NAMES
from tlora.utils.files import check_place
from tlora.utils.text import table_text

ARMS = ("captured", "tlora-paper", "lora")
RACE, ADAPTER = "race.safetensors", "adapter"
"""The result, and the folder of the leader's adapter, in the output folder."""


_race = partial(option, "Race")


@dataclass(frozen=True, kw_only=True)
class Racing:
    """Who races, and for how long."""

    arm: Annotated[
        list[str],
        _race(
            f"An arm: a recipe ({', '.join(RECIPE_NAMES)}) or a saved allocation, with a name before it if you like "
            f"(mine=allocation.safetensors); may be repeated. Default: {', '.join(ARMS)}."
        ),
    ] = ()  # type: ignore[assignment]
    steps: Annotated[int | None, _race("Optimizer steps of each training.", min=1)] = None
    seconds: Annotated[
        float | None,
        _race("Time for everything, instead of --steps. Default: 300.", callback=check_positive),
    ] = None
    seeds: Annotated[
        int,
        _race(
            "Trainings of each arm, with the seeds 0, 1, ... One tells which of these adapters is better; which way of "
            "making them is better takes several.",
            min=1,
        ),
    ] = 3
    learning_rate: Annotated[
        float | None,
        _race("Of all arms. Default: three are tried for each.", "--learning-rate", "--lr", callback=check_positive),
    ] = None
    batch_size: Annotated[int, _race("Samples a step.", min=1)] = BATCH_SIZE
    rank: Annotated[
        int | None, _race("Nominal rank. Default: that of the first allocation, or 8.", "--rank", "-r", min=1)
    ] = None
    margin: Annotated[float, _race("Differences up to this do not matter; nats.")] = 0.02
    eval_limit: Annotated[int, _race("Most held-out samples.", min=2)] = 128

    def arms(self) -> dict[str, Any]:
        """The arms by name, as `tlora.race` takes them."""
        from tlora.utils.file_names import result_file

        if len(self.arm) == 1:
            raise ValueError(
                f"--arm {self.arm[0]} is the only arm: a race takes at least two, such as --arm mine=allocation "
                "--arm lora"
            )
        arms: dict[str, Any] = {}
        for text in self.arm or ARMS:
            name, _, value = text.rpartition("=")
            is_file = value not in RECIPE_NAMES and result_file(value).is_file()
            name = name or (Path(value).stem if is_file else value)
            if not is_file and value not in RECIPE_NAMES:
                raise ValueError(f"--arm {text}: no allocation {value}, and no recipe: {', '.join(RECIPE_NAMES)}")
            if name in arms:
                raise ValueError(f"--arm {text}: there is an arm {name!r} already, use NAME={value}")
            arms[name] = tlora.Allocation.load(value) if is_file else value
        return arms

    def arguments(self) -> dict[str, Any]:
        """The other arguments of `tlora.race`."""
        arguments = asdict(self)
        del arguments["arm"]
        arguments["evaluation_limit"] = arguments.pop("eval_limit")
        if self.steps is None and self.seconds is None:
            arguments["seconds"] = 300.0
        return arguments


@flatten_options
def race(
    ctx: typer.Context,
    model: Model,
    data: Data,
    racing: Racing,
    placement: Placement,
    output: Annotated[
        Path | None,
        option(
            "Output", f"Folder for the result, and for the adapter of the best arm: {ADAPTER}/ in it.", "--output", "-o"
        ),
    ] = None,
    picture: Annotated[
        Path | None, option("Output", f"Picture to draw: {', '.join(PICTURE_FORMATS)}.", callback=check_picture)
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Is one adapter better than another on this task? Train them, and say which is ahead and by how much.

    All see the same batches and held-out samples, each at its own learning rate. Ctrl-C ends the race and keeps what
    was trained. The last line is the outcome.

    Examples
    --------
    `tlora race smollm2-135m requests.jsonl --seconds 300`

    `tlora race smollm2-135m requests.jsonl --arm mine=allocation --arm lora --steps 60 --lr 2e-3`
    """
    if output is not None:
        check_place(output, RACE, overwrite=overwrite)
        from tlora.adapters.files import TRAINING, refuse_other_writer

        refuse_other_writer(output / ADAPTER, TRAINING)
    from tlora.comparison.race import held_out_split

    arms, report = racing.arms(), Report(quiet)
    task = load_data(model, data, report, samples=1)
    held_out_split(task)
    base = load_base(model, task, data.seed, placement, report)
    result = tlora.race(base, task, arms, progress=report.progress, **racing.arguments())
    frame = result.to_frame()
    rows = [["arm", "loss", "rate", "parameters", "seconds"]]
    for arm in result.arms:
        part = frame[frame["arm"] == arm]
        last = part[part["step"] == part["step"].max()]
        cells = [f"{last['loss'].mean():.4f}", f"{result.learning_rates[arm]:.2g}", f"{result.parameters[arm]:,}"]
        rows.append([arm, *cells, f"{last['seconds'].mean():.0f}"])
    ending = "interrupted" if result.interrupted else "done"
    typer.echo(f"{table_text(rows)}\n\n{ending}: {result.steps} steps planned for each, {result.seconds:.0f} s\n")
    if output is not None:
        result.save(output / RACE)
        result.winner.save(output / ADAPTER)
        typer.echo(f"{summary_text({'saved': str(output), 'again': again(ctx)})}\n")
    if picture:
        viz = load_viz()
        draw_into(picture, viz, viz.plot_race(result))
    typer.echo(result.sentence)
