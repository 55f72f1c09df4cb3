"""What the command line says: progress on stderr, summaries on stdout."""

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
from safetensors import SafetensorError
from typer.core import TyperCommand, TyperGroup

import tlora
from tlora.allocation.footprint import ranks_text, size_text
from tlora.utils.files import replace_file

EXPECTED = (ValueError, TypeError, LookupError, OSError, RuntimeError, ImportError, MemoryError, SafetensorError)
"""What the library raises where something is asked of it that it cannot do: shown as a sentence."""

PICTURES = ("spectrum", "sensitivity", "allocation", "training")
FORMATS = (".png", ".svg", ".pdf")
"""What a picture's name may end with."""


def is_first() -> bool:
    """Whether this process speaks for all that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Report:
    """Progress of a command: each step on stderr, with the seconds it took; nothing if it is quiet."""

    quiet: bool = False

    @property
    def progress(self) -> bool:
        """Whether progress bars are shown."""
        return not self.quiet and is_first()

    def say(self, text: str) -> None:
        """A line on stderr."""
        if self.progress:
            typer.echo(text, err=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A line when the block begins, and another when it has ended well."""
        started = time.perf_counter()
        self.say(text)
        yield
        self.say(f"  done in {time.perf_counter() - started:.1f} s")


class Command(TyperCommand):
    """Shows warnings of this package as sentences, and none of its libraries."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        if _debug(ctx):
            return super().invoke(ctx)
        from tlora.models.loading import silence_transformers

        def tell(message: Warning | str, *args: object, **kwargs: object) -> None:
            if is_first():
                typer.echo(f"warning: {message}", err=True)

        with warnings.catch_warnings(), silence_transformers():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", module=r"tlora\.")
            warnings.showwarning = tell
            return super().invoke(ctx)


class Commands(TyperGroup):
    """Shows what the library refuses as one sentence, and an interruption as one line."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the command line."""
        with _interruptions():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit with 2 where it is refused, with 130 where it is interrupted."""
        with _interruptions(), contextlib.ExitStack() as undo:
            if not is_first():
                undo.enter_context(contextlib.redirect_stdout(undo.enter_context(open(os.devnull, "w"))))
            try:
                return super().invoke(ctx)
            except (typer.Exit, typer.Abort, BrokenPipeError):  # of `| head`: typer ends quietly
                raise
            except EXPECTED as error:
                if _debug(ctx):
                    raise
                _tell(f"error: {error_text(error)}", error)
                raise typer.Exit(2) from None


@contextlib.contextmanager
def _interruptions() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        _tell("interrupted", error)
        raise typer.Exit(130) from None


def _debug(ctx: Any) -> bool:
    return bool(ctx.find_root().params.get("debug"))


def _tell(text: str, error: BaseException) -> None:
    typer.echo("\n".join([text, *getattr(error, "__notes__", ())]), err=True)


def error_text(error: BaseException) -> str:
    """An error in one line: what it says, without the number that the system gives it."""
    if isinstance(error, OSError) and error.strerror:
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return " -> ".join(named) + (": " if named else "") + error.strerror
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns: the first aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def facts(values: Mapping[str, str]) -> str:
    """Names and values, one a line."""
    width = max(map(len, values))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in values.items() if value)


def metrics_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics side by side; shares in percent."""
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    rows = [["", *columns]]
    rows += [[name.replace("_", " "), *(_metric(name, m.get(name)) for m in columns.values())] for name in names]
    return table(rows)


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("loss", "perplexity", "train_loss"):
        return f"{value:.4g}"
    return f"{100 * value:.1f} %"


def sensitivity_table(calibration: tlora.Calibration, most: int = 5) -> str:
    """The modules that the loss is most sensitive to."""
    frame = calibration.sensitivity.to_frame().nlargest(most, "score")
    rows = [["most sensitive", "score", "of all"]]
    rows += [[r.module, f"{r.score:.3g}", f"{100 * r.share:.1f} %"] for r in frame.itertuples()]
    return table(rows)


def allocation_table(allocation: tlora.Allocation) -> str:
    """The allocation by projection, and its totals beside those of a uniform allocation."""
    frame = allocation.to_frame()
    rows = [["projection", "modules", "ranks", "least", "mean", "most", "scaling", "parameters"]]
    for projection, part in frame.groupby("projection", sort=False):
        rows.append([str(projection), *_totals(part)])
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
    """What the allocation spends, and what it costs beside plain LoRA."""
    footprint, lora = allocation.footprint(freeze_a=freeze_a), allocation.lora
    trained = f"{footprint.trainable_parameters:,} parameters, A {'frozen' if freeze_a else 'trained'}"
    return facts(
        {
            "budget": f"{allocation.budget_used:,} of {allocation.budget_total:,} {allocation.options.unit} "
            f"(rank {allocation.rank} in each of {len(allocation.targets)} modules)",
            "trains": f"{trained}; plain LoRA of the same rank trains {lora.trainable_parameters:,}",
            "memory": f"{size_text(footprint.optimizer_bytes)} of optimiser state, {size_text(lora.optimizer_bytes)} "
            "for plain LoRA",
        }
    )


def run_facts(run: tlora.TrainingRun) -> dict[str, str]:
    """The adapter, and what its training took."""
    ending = ", diverged" if run.diverged else ", interrupted" if run.interrupted else ""
    size = size_text(sum(t.nbytes for t in run.adapter.values()))
    trained = f"{run.trainable_parameters:,} parameters, A {'frozen' if run.frozen_a else 'trained'}"
    return {
        "adapter": f"{len(run.ranks)} modules, {ranks_text(run.ranks.values())}, {size}",
        "trained": f"{trained}, in {run.steps} steps, {run.seconds:.0f} s{ending}",
    }


def draw(viz: Any, results: Mapping[str, Any], folder: Path) -> str:
    """Save a picture of each result that has one, ``viz.plot_NAME``, in a folder; returns which there are."""
    folder.mkdir(exist_ok=True)
    files = []
    for name in PICTURES:
        if name in results:
            draw_into(folder / f"{name}.png", viz, getattr(viz, f"plot_{name}")(results[name]))
            files.append(f"{name}.png")
    return f"{folder}: {', '.join(files)}"


def check_picture(picture: Path | None) -> None:
    """Refuse a file for a picture whose name says no format of `FORMATS`."""
    if picture and picture.suffix.lower() not in FORMATS:
        raise ValueError(f"--picture {picture}: end its name with one of {', '.join(FORMATS)}")


def draw_into(picture: Path, viz: Any, drawn: Any) -> None:
    """Save the figure that is drawn, or that these axes are on, and close it."""
    figure = drawn.get_figure(root=True)
    with replace_file(picture) as fresh:
        figure.savefig(fresh, dpi=150)
    viz.style.plt.close(figure)


def _viz() -> Any:
    """`viz`, drawing into memory alone: matplotlib, where it is not in use yet, opens no window."""
    chosen = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        import viz

        _ = viz.plot_training  # loads matplotlib, or names the extra that it is in
    finally:
        del os.environ["MPLBACKEND"]
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
    return viz
