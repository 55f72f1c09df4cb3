"""Section on where everything comes from, and how to make it again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd

from tlora.allocation.allocation import Allocation
from tlora.calibration.calibration import Options
from tlora.results import Meta
from tlora.tasks.presets import PRESETS
from tlora.utils.defaults import default_rows
from viz.reports import formatting
from viz.reports.allocation import changed_knobs
from viz.reports.components import Code, Column, Part, Section, Table, Text, facts, table
from viz.reports.contents import Findings


def reproduce(found: Findings) -> Section:
    """How to get the same results again."""
    about = "The same versions, data and seed give the same results; on other hardware up to rounding."
    parts: list[Part] = []
    if lines := commands(found):
        parts.append(Code("On the command line", "\n".join(lines)))
    else:
        parts += [Code("In Python", snippet(found)), Text(caveat(found))]
    if found.run is not None:
        parts.append(Code("The adapter, to use or to train further", f"model = tlora.load({found.folder!r})"))
    return Section("reproduce", "To reproduce", about, [*parts, _origins(found), facts("Versions", versions(found))])


UNRECORDED = (
    "The results do not keep all arguments. Put back what was not as shown here: those of load_model, load_task and "
    "task_subspaces, the path where the task is data of your own, the optimizer and the callbacks of train."
)
UNKNOWN_START = (
    "Nor do they say how A began, which a run records where attach was called in the same process: attach also takes "
    "rows=, or no subspaces at all; and an adapter that had been trained before comes from tlora.load."
)
TRAINED_BEFORE = "The adapter had been trained before this run, which is not shown here."
# What a run's recipe holds beside the arguments of `tlora.train`, some of it put there by the command line.
BESIDE = (
    "resume", "evaluated_on", "attach", "b_began_at_zero", "command", "data", "num_labels",
    "evaluated_samples",
)  # fmt: skip


def commands(found: Findings) -> list[str]:
    """The command lines that made the results, each once; none where they were made in Python."""
    return list(dict.fromkeys(m.recipe["command"] for m in found.metas.values() if m.recipe.get("command")))


def caveat(found: Findings) -> str:
    """What `snippet` cannot know; empty where there are command lines, which leave nothing out."""
    if commands(found):
        return ""
    if found.run and not attached(found):
        return f"{UNRECORDED} {UNKNOWN_START}"
    was_trained = found.run and not found.run.meta.recipe.get("b_began_at_zero", True)
    return f"{UNRECORDED} {TRAINED_BEFORE}" if was_trained else UNRECORDED


def snippet(found: Findings) -> str:
    """The calls that make the results again, as far as they record their arguments."""
    own = "" if found.task in PRESETS else "  # or the path, where it is data of your own"
    lines = ["import tlora", ""]
    lines.append(f"model, tokenizer = tlora.load_model({found.model!r}{classes(found)})")
    lines.append(f"task = tlora.load_task({found.task!r}, tokenizer){own}")
    if found.calibrated:
        lines.append(f"calibration = tlora.calibrate(model, task.calibration({_calibration(found)})")
    if found.allocation:
        lines.append(f"allocation = tlora.allocate(calibration.sensitivity, {_knobs(found.allocation)}")
        if (kind := attached(found).get("kind", "wc")) is not None:
            more = "" if kind == "wc" else f", kind={kind!r}"
            lines.append(f"subspaces = tlora.task_subspaces(model, calibration, max_rank=allocation{more})")
    if found.run:
        unknown = "" if found.allocation else "  # of an allocation that is not kept here"
        lines.append(f"adapted = tlora.attach(model, {_attaching(found)}){unknown}")
        lines.append(f"run = tlora.train(adapted, task, {_training(found.run.meta)})")
        lines.append(f"run.save({found.folder!r})")
    return "\n".join(lines)


def classes(found: Findings) -> str:
    """The argument that gives a classifier its classes when its base is loaded."""
    labels = found.run.meta.recipe.get("num_labels") if found.run else None
    return f", num_labels={labels}" if labels else ""


def _calibration(found: Findings) -> str:
    recipe, defaults = found.calibration_recipe, asdict(Options()) | {"target_modules": None}
    more = {name: recipe[name] for name in defaults if recipe.get(name, defaults[name]) != defaults[name]}
    samples = found.calibrated.samples if found.calibrated else None
    return f"{samples})" + "".join(f", {name}={value!r}" for name, value in more.items())


def _knobs(allocation: Allocation) -> str:
    written = ", ".join(f"{name}={value!r}" for name, value in changed_knobs(allocation).items())
    return f"{written})" + (f".edit({allocation.edits!r})" if allocation.edits else "")


def attached(found: Findings) -> dict[str, Any]:
    """As `tlora.adapters.attach.attach_options` returns it; empty where that is unknown."""
    began = found.run.meta.recipe.get("attach") if found.run else None
    return began if isinstance(began, dict) else {}


def _attaching(found: Findings) -> str:
    began = attached(found)
    arguments = ["subspaces" if began.get("kind", "wc") else "None", "allocation"]
    if found.run and not found.run.frozen_a:
        arguments.append("freeze_a=False")
    defaults = {"rows": default_rows(began.get("kind", "wc")), "seed": 0}
    arguments += [f"{name}={began[name]!r}" for name in defaults if began.get(name, defaults[name]) != defaults[name]]
    return ", ".join(arguments)


def _training(meta: Meta) -> str:
    recipe = {name: value for name, value in meta.recipe.items() if name not in BESIDE and value is not None}
    return ", ".join(f"{name}={value!r}" for name, value in (recipe | {"seed": meta.seed}).items())


def _origins(found: Findings) -> Table:
    rows = [
        {
            "result": formatting.worded(name),
            "seed": "" if m.seed is None else str(m.seed),
            "samples": f"{m.samples or ''}",
        }
        for name, m in found.metas.items()
    ]
    columns = [Column("result", "result"), Column("seed", "seed", str.strip), Column("samples", "samples", str.strip)]
    return table(pd.DataFrame(rows), "Where the results come from", columns)


def versions(found: Findings) -> dict[str, str]:
    """Versions of the libraries by name; several where the results were made with different ones."""
    seen: dict[str, list[str]] = {}
    for meta in found.metas.values():
        for library, version in meta.versions.items():
            seen.setdefault(library, []).append(version)
    return {name: ", ".join(dict.fromkeys(found_ones)) for name, found_ones in seen.items()}
