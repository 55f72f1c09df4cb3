"""What the command line prints and draws: progress on stderr, summaries on stdout, pictures in files."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

import tlora
from tlora.allocation.footprint import ranks_text, size_text
from tlora.utils.files import replace_file

PICTURES = ("spectrum", "sensitivity", "allocation", "training")


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
        """Print a line on stderr."""
        if self.progress:
            typer.echo(text, err=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Print a line when the block begins and another when it has ended well; transformers prints none."""
        from tlora.models.loading import silence_transformers

        show_own_warnings()
        started = time.perf_counter()
        self.say(text)
        with silence_transformers():
            yield
        self.say(f"  done in {time.perf_counter() - started:.1f} s")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells in columns, the first aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def facts(values: Mapping[str, str]) -> str:
    """Return names and values, one a line; empty values are left out."""
    width = max(map(len, values))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in values.items() if value)


def metrics_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Return metrics side by side; shares in percent."""
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    rows = [[name.replace("_", " "), *(_metric(name, m.get(name)) for m in columns.values())] for name in names]
    return table([["", *columns], *rows])


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if name in ("loss", "perplexity", "train_loss") else f"{100 * value:.1f} %"


def sensitivity_table(calibration: tlora.Calibration, most: int = 5) -> str:
    """Return the modules that the loss is most sensitive to."""
    frame = calibration.sensitivity.to_frame().nlargest(most, "score")
    rows = [[r.module, f"{r.score:.3g}", f"{100 * r.share:.1f} %"] for r in frame.itertuples()]
    return table([["most sensitive", "score", "of all"], *rows])


def allocation_table(allocation: tlora.Allocation) -> str:
    """Return the allocation by projection, and its totals."""
    frame = allocation.to_frame()
    rows = [["projection", "modules", "ranks", "least", "mean", "most", "scaling", "parameters"]]
    rows += [[str(projection), *_totals(part)] for projection, part in frame.groupby("projection", sort=False)]
    return table([*rows, ["all", *_totals(frame)]])


def _totals(frame: Any) -> list[str]:
    ranks, scalings = frame["rank"], frame["scaling"]
    return [
        str(len(frame)),
        f"{ranks.sum():,}",
        str(ranks.min()),
        f"{ranks.mean():.1f}",
        str(ranks.max()),
        f"{scalings.min():.3g} to {scalings.max():.3g}",
        f"{frame['parameters'].sum():,}",
    ]


def budget_text(allocation: tlora.Allocation, freeze_a: bool = True) -> str:
    """Return what the allocation spends and trains, compared with plain LoRA."""
    footprint, lora = allocation.footprint(freeze_a=freeze_a), allocation.lora
    return facts(
        {
            "budget": f"{allocation.budget_used:,} of {allocation.budget_total:,} {allocation.options.unit} "
            f"(rank {allocation.rank} in each of {len(allocation.targets)} modules)",
            "trains": f"{_parameters(footprint.trainable_parameters, freeze_a)}; plain LoRA of the same rank trains "
            f"{lora.trainable_parameters:,}",
            "memory": f"{size_text(footprint.optimizer_bytes)} of optimizer state, {size_text(lora.optimizer_bytes)} "
            "for plain LoRA",
        }
    )


def run_facts(run: tlora.TrainingRun) -> dict[str, str]:
    """Return the size of the adapter, and what its training took."""
    ending = ", diverged" if run.diverged else ", interrupted" if run.interrupted else ""
    size = size_text(sum(tensor.nbytes for tensor in run.adapter.values()))
    return {
        "adapter": f"{len(run.ranks)} modules, {ranks_text(run.ranks.values())}, {size}",
        "trained": f"{_parameters(run.trainable_parameters, run.frozen_a)}, in {run.steps} steps, "
        f"{run.seconds:.0f} s{ending}",
    }


def _parameters(count: int, frozen_a: bool) -> str:
    return f"{count:,} parameters, A {'frozen' if frozen_a else 'trained'}"


def draw_results(results: Mapping[str, Any], folder: Path) -> str:
    """Save a picture of each result that has one, ``viz.plot_NAME``, in a folder; return which there are."""
    viz = load_viz()
    folder.mkdir(exist_ok=True)
    names = [name for name in PICTURES if name in results]
    for name in names:
        draw_into(folder / f"{name}.png", viz, getattr(viz, f"plot_{name}")(results[name]))
    return f"{folder}: {', '.join(f'{name}.png' for name in names)}"


def draw_into(picture: Path, viz: Any, axes: Any) -> None:
    """Save the figure that these axes are on, and close it."""
    figure = axes.get_figure(root=True)
    with replace_file(picture) as fresh:
        figure.savefig(fresh, dpi=150)
    viz.style.plt.close(figure)


def load_viz() -> Any:
    """Return `viz`, drawing into memory alone: unless matplotlib is in use already, it opens no window."""
    backend = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        import viz

        _ = viz.plot_training  # loads matplotlib, or names the extra that it is in
    finally:
        del os.environ["MPLBACKEND"]
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return viz
