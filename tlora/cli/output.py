"""What the command line prints and draws: progress on stderr, summaries on stdout, pictures in files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

import tlora
from tlora.cli.command_line import fold_command
from tlora.cli.terminal import styled
from tlora.utils.files import replace_file
from tlora.utils.text import count_text, facts_text, range_text, ranks_text, size_text, table_text

TO_TYPE = ("again", "next")
"""Names of what a summary says that are lines to type."""


def is_first_process() -> bool:
    """Whether this process prints for all that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def show_own_warnings() -> None:
    """Show the warnings of this package; to be called after imports, since some libraries replace all filters."""
    warnings.filterwarnings("always", module=r"tlora\.")


@dataclass(frozen=True)
class Report:
    """Progress of a command: each step on stderr, with the seconds it took; nothing if it is quiet."""

    quiet: bool = False

    @property
    def progress(self) -> bool:
        """Whether progress bars are shown."""
        return not self.quiet and is_first_process()

    def say(self, text: str) -> None:
        """Print a line on stderr, unless it is empty."""
        if text and self.progress:
            typer.echo(text, err=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Print a line when the block begins and another when it has ended well; its bars vanish.

        What libraries say about our own calls is left out.
        """
        from tlora.utils.logs import without_noise
        from tlora.utils.progress import vanishing_bars

        show_own_warnings()
        started = time.perf_counter()
        self.say(text)
        with without_noise(), vanishing_bars(), self._say_logged():
            yield
        self.say(styled(f"  done in {time.perf_counter() - started:.1f} s", err=True, dim=True))

    @contextlib.contextmanager
    def _say_logged(self) -> Iterator[None]:
        """Say what the package logs inside the block; a quiet report leaves logging as it is."""
        if self.quiet:
            yield
            return
        logger, lines = logging.getLogger("tlora"), _Lines(self)
        level = logger.level
        logger.addHandler(lines)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(lines)
            logger.setLevel(level)


class _Lines(logging.Handler):
    """Says what the package logs, as lines of a report."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.INFO)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Say a message."""
        self.report.say(f"  {record.getMessage()}")


def summary_text(facts: Mapping[str, str]) -> str:
    """Return names and values, one per line; commands go on below where they are longer than 80 columns."""
    indent = max(map(len, facts)) + 2
    texts = {name: fold_command(value, indent) if name in TO_TYPE else value for name, value in facts.items()}
    return facts_text({styled(name, dim=True): text for name, text in texts.items()})


def print_json(values: Mapping[str, Any]) -> None:
    """Print values as JSON, which has no NaN: null in its place."""
    typer.echo(json.dumps(json.loads(json.dumps(values), parse_constant=lambda _: None), indent=2))


def allocation_text(allocation: tlora.Allocation, freeze_a: bool = True) -> str:
    """Return the allocation by projection, and what it spends and trains, compared with plain LoRA."""
    frame = allocation.to_frame()
    rows = [["projection", "modules", "ranks", "least", "most", "scaling", "parameters"]]
    for projection, part in [*frame.groupby("projection", sort=False), ("all", frame)]:
        ranks, scalings = part["rank"], part["scaling"]
        counts = [str(len(part)), f"{ranks.sum():,}", str(ranks.min()), str(ranks.max())]
        rows.append([str(projection), *counts, range_text(scalings), f"{part['parameters'].sum():,}"])
    trained = _parameters(allocation.footprint(freeze_a=freeze_a).trainable_parameters, freeze_a)
    zero = f", {allocation.zero_parameters:,} of them zero for good" if allocation.zero_parameters else ""
    spent = {
        "budget": f"{allocation.budget_used:,} of {allocation.budget_total:,} {allocation.options.unit} "
        f"(rank {allocation.rank} in each of {len(allocation.targets)} modules)",
        "trains": f"{trained}{zero}; plain LoRA of the same rank trains {allocation.lora.trainable_parameters:,}",
    }
    return f"{table_text(rows)}\n\n{facts_text(spent)}\n"


def run_facts(run: tlora.TrainingRun) -> dict[str, str]:
    """Return the size of the adapter, and what its training took."""
    ending = ", diverged" if run.diverged else ", interrupted" if run.interrupted else ""
    done, planned = run.meta.recipe["steps"]
    steps = f"{done:,} of {planned:,} steps" if ending else count_text(done, "step")
    size = size_text(sum(tensor.nbytes for tensor in run.adapter.values()))
    trained = _parameters(run.trainable_parameters, run.frozen_a)
    return {
        "adapter": f"{len(run.ranks)} modules, {ranks_text(run.ranks.values())}, {size}",
        "trained": f"{trained}, in {steps}, {run.seconds:.0f} s{ending}",
        "peak": size_text(run.peak_bytes) if run.peak_bytes else "",
    }


def _parameters(count: int, frozen_a: bool) -> str:
    return f"{count:,} parameters, A {'frozen' if frozen_a else 'trained'}"


def load_viz() -> Any:
    """Return `viz`, drawing into memory alone."""
    import viz

    _ = viz.plot_training  # loads matplotlib, or names the extra that it is in
    viz.style.plt.switch_backend("agg")
    return viz


def draw_into(picture: Path, viz: Any, axes: Any) -> None:
    """Save the figure that these axes are on, and close it."""
    figure = axes.get_figure(root=True)
    with replace_file(picture) as fresh:
        figure.savefig(fresh, dpi=150)
    viz.style.plt.close(figure)
