"""The report: one HTML file that shows what was found, decided and reached, and needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tlora.results import Result
from tlora.utils.files import replace_file
from viz.reports import contents, formatting
from viz.reports.allocation import allocation
from viz.reports.calibration import alignment, data, sensitivity, spectra
from viz.reports.contents import Findings
from viz.reports.rendering import template
from viz.reports.reproduce import reproduce
from viz.reports.training import ENERGY, rank_use, training

SECTIONS = (data, spectra, alignment, sensitivity, allocation, training, rank_use, reproduce)
FILE = "report.html"


def report(
    folder_or_results: str | os.PathLike[str] | Result | Iterable[Result],
    output: str | os.PathLike[str] | None = None,
) -> Path:
    """Write one HTML page on an adapter: what was found, allocated, trained, and how to do it again.

    The page holds its pictures and styles, runs no script and fetches nothing. Parts that are missing are left
    out; the page says how to get them.

    Parameters
    ----------
    folder_or_results : path-like, Result or iterable of Result
        The folder of an adapter, as ``tlora run`` leaves it; or results, at most one of each kind: Sensitivity,
        Spectrum, Alignment, GradientCapture, Allocation, TrainingRun.
    output : path-like, optional
        File to write; an earlier one is replaced. ``report.html`` in the folder when left out.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    FileNotFoundError
        If the folder holds no adapter, or no results.
    IsADirectoryError
        If ``output`` is a folder.
    TypeError
        If something is neither a path nor a result that a page shows.
    ValueError
        If a result is damaged, there is none or two of a kind, or results are given without an ``output``; or if that
        is not an HTML file.
    """
    if isinstance(folder_or_results, str | os.PathLike):
        found = contents.load(folder_or_results)
        path = Path(folder_or_results, FILE) if output is None else Path(output)
    elif output is None:
        raise ValueError(f"results alone have no folder to write to: pass output, e.g. output={FILE!r}")
    else:
        found, path = contents.collect(folder_or_results), Path(output)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the file, e.g. {path / FILE}")
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"output={str(path)!r}: the report is a web page, end its name with .html")
    page = html(found)
    with replace_file(path) as fresh:
        fresh.write_text(page, encoding="utf-8")
    return path


def html(found: Findings) -> str:
    """The page itself."""
    sections = [make(found) for make in SECTIONS]
    return template("report.html").render(
        title=found.title,
        tiles=_tiles(found),
        sections=[section for section in sections if section.parts],
        missing=[section for section in sections if not section.parts],
        version=next((m.versions["tlora"] for m in reversed(found.metas.values()) if "tlora" in m.versions), ""),
    )


def _tiles(found: Findings) -> list[tuple[str, str, str]]:
    """The numbers that sum it all up: what, how much, and beside what."""
    tiles = []
    run, allocation = found.run, found.allocation
    if run is not None:
        tiles += [_metric_tile(name, run.before, run.after) for name in _headlines(run.after)]
    if allocation is not None:
        ours, lora = allocation.footprint(freeze_a=run is None or run.frozen_a), allocation.lora
        part = formatting.percent(ours.trainable_parameters / lora.trainable_parameters)
        tiles.append(("trainable parameters", formatting.whole(ours.trainable_parameters), f"{part} of uniform LoRA's"))
        part = formatting.percent(ours.optimizer_bytes / lora.optimizer_bytes)
        tiles.append(("optimiser state", formatting.size(ours.optimizer_bytes), f"{part} of uniform LoRA's"))
        ranks = allocation.ranks.values()
        low, high = min(ranks), max(ranks)
        tiles.append(
            ("ranks", f"{low} to {high}", f"instead of {allocation.rank} everywhere")
            if low < high
            else ("rank", f"{low}", f"of {formatting.whole(len(ranks))} modules")
        )
    if run is not None and run.ranks:
        use = run.rank_use(ENERGY)
        part = use["used_rank"].sum() / use["rank"].sum()
        tiles.append(("rank used", formatting.percent(part), f"of {formatting.whole(use['rank'].sum())} ranks given"))
    return tiles


def _headlines(metrics: dict[str, float]) -> list[str]:
    """The first metric that is not a loss, or else the first."""
    return [*[name for name in metrics if "loss" not in name and name != "perplexity"], *metrics][:1]


def _metric_tile(name: str, before: dict[str, float], after: dict[str, float]) -> tuple[str, str, str]:
    return (
        formatting.worded(name),
        formatting.metric(name, after[name], before.get(name)),
        f"{formatting.metric(name, before.get(name), after[name])} before training",
    )
