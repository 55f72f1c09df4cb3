"""Save a trained adapter with its results, pictures and model card, and print a summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

import tlora
from tlora.cli.output import Report, draw_into, load_viz, run_facts
from tlora.utils.file_names import ADAPTER_CONFIG, RESULT_SUFFIX
from tlora.utils.files import replace_file, replace_files
from tlora.utils.text import metrics_text

RESULTS = ("allocation", "sensitivity", "expert_use", "spectrum", "calibration", "subspaces")
"""Results that a run leaves in ``tlora/``; others there are the user's."""


def save_run(
    run: tlora.TrainingRun,
    results: Mapping[str, Any],
    output: Path,
    write_more: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Write the adapter's folder with the results in it, and more, all or nothing; those of an earlier run go."""
    from tlora.adapters.files import RUN, earlier_files

    earlier = [*earlier_files(output), *(RUN.with_name(f"{name}{RESULT_SUFFIX}") for name in RESULTS)]
    with replace_files(output, last=ADAPTER_CONFIG, first=RUN.name, earlier=earlier) as fresh:
        run.save(fresh)
        write_more(fresh / RUN.parent)
        for name, result in results.items():
            if result is not None:
                result.save(fresh / RUN.parent / name)


def draw_pictures(results: Mapping[str, Any], output: Path, report: Report) -> str:
    """Draw the results and write the model card; without matplotlib the run is whole all the same.

    A page of the user stays: it does not end as every card does.
    """
    from tlora.adapters.files import PAGE

    try:
        viz = load_viz()
    except ModuleNotFoundError as error:
        report.say(f"no pictures: {error}")
        return ""
    folder = output / "pictures"
    folder.mkdir(exist_ok=True)
    with report.step("drawing"):
        for name in ("spectrum", "sensitivity", "expert_use", "allocation", "training"):
            picture = folder / f"{name}.png"
            is_flat = name == "allocation" and len(set(results[name].ranks.values())) == 1  # shows nothing
            if is_flat or name not in results:
                picture.unlink(missing_ok=True)  # of an earlier run
            else:
                draw_into(picture, viz, getattr(viz, f"plot_{name}")(results[name]))
        page, text = output / PAGE, viz.card(output)
        if page.exists() and not page.read_bytes().rstrip().endswith(text.splitlines()[-1].encode()):
            report.say(f"{page} is not a card of tlora and stays: print(viz.card({str(output)!r})) shows the new card")
        else:
            with replace_file(page) as fresh:
                fresh.write_text(text, encoding="utf-8")
    return str(folder)


def summarize(run: tlora.TrainingRun) -> dict[str, str]:
    """Print the metrics before and after, and return the size of the adapter and what its training took."""
    if run.before:
        samples = f"{run.meta.recipe['evaluated_samples']} {run.evaluated_on} samples"
        typer.echo(f"{metrics_text({'before': run.before, 'after': run.after}, samples)}\n")
    return run_facts(run)
