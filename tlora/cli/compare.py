"""`tlora compare`: methods against each other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import tlora
from tlora.allocation.footprint import size_text
from tlora.cli.command_line import flat, written
from tlora.cli.options import Quiet, TargetModules, option, selected
from tlora.cli.output import FORMATS, Report, _viz, check_picture, draw_into, facts, table
from tlora.utils.defaults import RATES

# As in the library; a test holds them equal.
METHODS = (
    "lora", "rslora", "dora", "lora+", "pissa", "olora", "eva", "corda", "lora-ga", "lora-fa", "adalora", "vera",
    "full", "head", "tlora+", "qa-lora", "talklora", "tlora-paper", "tlora", "tlora-trained", "tlora-freeze-late",
)  # fmt: skip
PRINCIPAL = ("lora", "pissa", "lora-fa", "tlora-paper", "tlora", "tlora-trained")
"""Methods that are compared where nobody says which."""

LISTED = (
    "method", "task", "model", "rank", "learning_rate", "seed", "metric", "value", "trainable_parameters", "best_rate",
)  # fmt: skip
COMPARING = """Examples:

`tlora compare --model minilm --task rotten_tomatoes --test-samples 2000 --method lora --method tlora`

`tlora compare --store comparison.jsonl --list`
"""


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """What is compared, and how it is trained."""

    model: Annotated[
        str | None,
        option(
            "Compare",
            "Base model, as for `tlora run`. Without one nothing is run: what --store has of these tasks, methods and "
            "ranks is shown.",
            "--model",
            "-m",
        ),
    ] = None
    target_modules: TargetModules = ()  # type: ignore[assignment]
    task: Annotated[list[str], option("Compare", "A task, as for `tlora run`; may be repeated.", "--task", "-t")] = ()  # type: ignore[assignment]
    method: Annotated[
        list[str],
        option(
            "Compare",
            f"A method; may be repeated. There are {', '.join(METHODS)}; tlora and tlora-* are recipes of `tlora run`. "
            f"Default: {', '.join(PRINCIPAL)}.",
        ),
    ] = ()  # type: ignore[assignment]
    rank: Annotated[
        list[int], option("Compare", "A nominal rank; may be repeated. Default: 8.", "--rank", "-r", min=1)
    ] = ()  # type: ignore[assignment]
    train_samples: Annotated[
        int | None,
        option(
            "Data",
            "Samples to train on. Default, here and in the next two: all there are, and 1000, 100, 200 for "
            "reasoning-gym, which draws any number.",
            min=1,
        ),
    ] = None
    validation_samples: Annotated[int | None, option("Data", "Samples that learning rates are chosen on.", min=1)] = (
        None
    )
    test_samples: Annotated[int | None, option("Data", "Samples that results are of.", min=1)] = None
    metric: Annotated[
        str | None, option("Data", "Of generated answers: exact_match, final_answer, or loss, which generates none.")
    ] = None
    learning_rate: Annotated[
        list[float],
        option(
            "Training",
            "A rate of the grid to begin with; repeated, each the same factor higher. One alone is that of every "
            "method; then only the rate of a classifier's head is searched.",
            "--learning-rate",
            "--lr",
        ),
    ] = RATES  # type: ignore[assignment]
    seeds: Annotated[int, option("Training", "Final runs of each method, with the seeds 0, 1, ...", min=1)] = 3
    search_seeds: Annotated[
        int, option("Training", "Seeds that rates are searched with; others than those of the final runs.", min=1)
    ] = 2
    steps: Annotated[int, option("Training", "Optimiser steps of a run.", min=1)] = 250
    batch_size: Annotated[int, option("Training", "Samples a step.", min=1)] = 16
    samples: Annotated[int, option("Training", "Training samples that a method may calibrate on.", min=1)] = 32
    forgetting: Annotated[
        list[str],
        option(
            "Training",
            "A task whose loss is measured before and after: what a language model forgets; may be repeated.",
        ),
    ] = ()  # type: ignore[assignment]
    device: Annotated[str | None, option("Training", "cpu, cuda, cuda:1, ... Default: CUDA where there is one.")] = None
    dtype: Annotated[str, option("Training", "Of the base: float32, bfloat16 or float16.")] = "float32"
    workers: Annotated[int, option("Training", "Processes side by side, each on its part of the cores.", min=1)] = 1
    retry: Annotated[bool, option("Training", "Do again what failed before.", "--retry")] = False
    store: Annotated[Path, option("Output", "File that runs are read from and appended to.")] = Path("comparison.jsonl")

    @property
    def methods(self) -> list[str]:
        """Those that are run."""
        return list(self.method or PRINCIPAL)

    @property
    def ranks(self) -> list[int]:
        """Those that are run."""
        return list(self.rank or (8,))

    def data(self) -> dict[str, Any]:
        """Arguments of `tlora.load_task` that were asked for."""
        sizes = {split: getattr(self, f"{split}_samples") for split in ("train", "validation", "test")}
        return {name: value for name, value in (sizes | {"metric": self.metric}).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Showing:
    """What is shown of a comparison."""

    as_list: Annotated[bool, option("Output", f"Print the runs as CSV: {', '.join(LISTED)}.", "--list")] = False
    picture: Annotated[Path | None, option("Output", f"Draw the comparison into this file: {', '.join(FORMATS)}.")] = (
        None
    )
    baseline: Annotated[
        str | None, option("Output", "Method that the others are compared with. Default: lora, where it is there.")
    ] = None
    baseline_rank: Annotated[
        str,
        option(
            "Output",
            "Hold against the baseline at the same rank (same), at that with about as many parameters (nearest), or at "
            "this one: a number.",
        ),
    ] = "same"
    loss: Annotated[bool, option("Output", "Show the held-out loss in place of the task's metric.", "--loss")] = False

    def __post_init__(self) -> None:
        if self.baseline_rank not in ("same", "nearest") and not self.baseline_rank.isdecimal():
            raise ValueError(f"--baseline-rank {self.baseline_rank}: choose same, nearest, or a rank of the baseline")
        check_picture(self.picture)

    def shared(self) -> dict[str, Any]:
        """Arguments that `Comparison.summary` and the picture share."""
        rank = self.baseline_rank
        return {
            "baseline": self.baseline,
            "baseline_rank": int(rank) if rank.isdecimal() else rank,
            "metric": "loss" if self.loss else None,
        }

    def check_run(self, options: Comparing) -> None:
        """Refuse, before hours of runs, a baseline that is not among them."""
        rank, baseline = self.shared()["baseline_rank"], self.baseline or "lora"
        named = self.baseline is not None or isinstance(rank, int)
        if named and (baseline not in options.methods or rank not in ("same", "nearest", *options.ranks)):
            raise ValueError(
                f"the baseline, {baseline} at rank {rank}, is not among the runs: add --method {baseline} and its "
                "--rank, or name another with --baseline and --baseline-rank"
            )


@flat
def compare(ctx: typer.Context, options: Comparing, showing: Showing, quiet: Quiet = False) -> None:
    """Methods against each other: the same training for all, and each at its own learning rate.

    Learning rates are chosen on the validation split, results are of the test split, intervals are for other seeds and
    samples, and paired. Each run is in --store before the next begins: the same command resumes what was
    interrupted, and what is there already is not run again.
    """
    comparison = compared(options, showing, Report(quiet), written(compare, ctx.params))
    typer.echo(listed(comparison) if showing.as_list else f"{comparison!r}\n\n{summary_text(comparison, showing)}")
    if showing.picture:
        viz = _viz()
        draw_into(showing.picture, viz, viz.plot_comparison(comparison, **showing.shared()))


def compared(options: Comparing, showing: Showing, report: Report, line: str) -> tlora.Comparison:
    """Run what is asked for, or read what there is."""
    if options.model is None:
        return tlora.Comparison.read(options.store, tasks=options.task, methods=options.method, ranks=options.rank)
    showing.check_run(options)
    try:
        with _told(report):
            found = tlora.compare(
                options.methods,
                {task: options.data() for task in options.task},
                options.model,
                ranks=options.ranks,
                learning_rates=options.learning_rate,
                seeds=range(options.seeds),
                search_seeds=range(1000, 1000 + options.search_seeds),
                steps=options.steps,
                batch_size=options.batch_size,
                samples=options.samples,
                target_modules=selected(options.target_modules),
                forgetting=options.forgetting,
                store=options.store,
                device=options.device,
                dtype=options.dtype,
                workers=options.workers,
                retry=options.retry,
                progress=False,
            )
    except BaseException as error:
        if options.store.exists() and not isinstance(error, ValueError | TypeError):  # those would be raised again
            error.add_note(facts({"kept": str(options.store), "next": line}))
        raise
    if found.runs["status"].eq("failed").all():
        raise ValueError(f"all {len(found.runs)} runs failed, for the reasons above; {options.store} keeps the record")
    return found


@contextlib.contextmanager
def _told(report: Report) -> Iterator[None]:
    """Say each run when it is done."""

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            report.say(record.getMessage())

    logger, teller = logging.getLogger("tlora.comparison.compare"), Teller(logging.INFO)
    level = logger.level
    if report.progress:
        logger.setLevel(logging.INFO)  # the workers take it over
    logger.addHandler(teller)
    try:
        yield
    finally:
        logger.removeHandler(teller)
        logger.setLevel(level)


def listed(comparison: tlora.Comparison) -> str:
    """Runs as CSV, without the last line's end: of the test split, which no column tells, those at the chosen rate."""
    frame = comparison.to_frame()
    frame = frame[(frame["split"] == "validation") | frame["best_rate"]]
    frame = frame.astype({"trainable_parameters": "Int64"})
    return frame[list(LISTED)].to_csv(index=False).removesuffix("\n")


def summary_text(comparison: tlora.Comparison, showing: Showing) -> str:
    """Tables of the summary, one a task, model and rank."""
    frame = comparison.summary(**showing.shared())
    frame = frame.sort_values("value", ascending=False, kind="stable", na_position="last")
    parts = []
    for (task, model, rank), rows in frame.groupby(["task", "model", "rank"], sort=False):
        lines = [
            ["method", "value", "interval", "against", "interval", "rate", "seeds", "parameters", "seconds", "peak"]
        ]
        lines += [_line(row) for _, row in rows.iterrows()]
        names = ", ".join(dict.fromkeys(filter(None, rows["metric"])))
        parts.append(f"{task}, {model}, rank {rank}: {names or 'no result'}\n{table(lines)}")
    return "\n\n".join(parts)


def _line(row: Any) -> list[str]:
    interval, against = (f"{row[f'{p}low']:.4f} to {row[f'{p}high']:.4f}" for p in ("", "difference_"))
    cells = [f"{row['value']:.4f}", interval, f"{row['difference']:+.4f}", against, f"{row['learning_rate']:g}"]
    odd = "".join(f" ({row[name]} {name})" for name in ("diverged", "failed") if row[name])
    size, peak = row["trainable_parameters"], row["peak_bytes"]
    cells += [
        f"{row['seeds']}{odd}",
        f"{size:,.0f}",
        f"{row['seconds']:.0f}",
        size_text(peak) if peak == peak else "-",  # NaN,
    ]
    return [row["method"], *("-" if "nan" in cell else cell for cell in cells)]
