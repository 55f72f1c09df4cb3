"""Section on where everything comes from, and how to make it again."""

from __future__ import annotations

import pandas as pd

from tlora.allocation import Allocation
from tlora.storage import Meta
from viz.pages import words
from viz.pages.findings import Findings
from viz.pages.parts import Code, Column, Part, Section, Table, Text, facts, table
from viz.pages.planned import changed_knobs


def reproduce(found: Findings) -> Section:
    """How to get the same results again."""
    about = "The same versions, data and seed give the same results; on other hardware up to rounding."
    parts: list[Part] = []
    if lines := commands(found):
        parts.append(Code("On the command line", "\n".join(lines)))
    else:
        parts += [Code("In Python", snippet(found)), Text(UNRECORDED)]
    if found.run is not None:
        parts.append(Code("The adapter, to use or to train further", f"model = tlora.load({found.folder!r})"))
    return Section("reproduce", "To reproduce", about, [*parts, _origins(found), facts("Versions", versions(found))])


UNRECORDED = (
    "The arguments of load_task and task_subspaces are not kept in the results; where they were not the defaults shown "
    "here, put them back."
)


def commands(found: Findings) -> list[str]:
    """The command lines that made the results, each once; none where they were made in Python."""
    return list(dict.fromkeys(m.recipe["command"] for m in found.metas.values() if m.recipe.get("command")))


def snippet(found: Findings) -> str:
    """The calls that make the results again, as far as they record their arguments."""
    lines = ["import tlora", ""]
    lines.append(f"model, tokenizer = tlora.load_model({found.model!r})")
    lines.append(f"task = tlora.load_task({found.task!r}, tokenizer)")
    if found.calibrated:
        lines.append(f"calibration = tlora.calibrate(model, task.calibration({_calibration(found)})")
    if found.allocation:
        most = max(found.allocation.ranks.values())
        lines.append(f"subspaces = tlora.task_subspaces(model, calibration, max_rank={most})")
        lines.append(f"allocation = tlora.allocate(calibration.sensitivity, {_knobs(found.allocation)}")
    if found.run:
        unknown = "" if found.allocation else "  # of a plan that is not kept here"
        lines.append(f"adapted = tlora.attach(model, subspaces, allocation){unknown}")
        lines.append(f"run = tlora.train(adapted, task, {_training(found.run.meta)})")
        lines.append(f"run.save({found.folder!r})")
    return "\n".join(lines)


def _calibration(found: Findings) -> str:
    recipe, defaults = found.calibration_recipe, {"tokens": "all", "gradient": False, "target_modules": None}
    more = {name: recipe[name] for name in defaults if recipe.get(name, defaults[name]) != defaults[name]}
    samples = found.calibrated.samples if found.calibrated else None
    return f"{samples})" + "".join(f", {name}={value!r}" for name, value in more.items())


def _knobs(allocation: Allocation) -> str:
    written = ", ".join(f"{name}={value!r}" for name, value in changed_knobs(allocation).items())
    return f"{written})" + (f".edit({allocation.edits!r})" if allocation.edits else "")


def _training(meta: Meta) -> str:
    left_out = ("resume", "command", "data", "num_labels")
    recipe = {name: value for name, value in meta.recipe.items() if name not in left_out and value is not None}
    return ", ".join(f"{name}={value!r}" for name, value in (recipe | {"seed": meta.seed}).items())


def _origins(found: Findings) -> Table:
    rows = [
        {"result": words.worded(name), "seed": "" if m.seed is None else str(m.seed), "samples": f"{m.samples or ''}"}
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
