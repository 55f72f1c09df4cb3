"""Panel "Reproduce": where the results come from, and the commands or calls that make them again."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from tlora.calibration.calibration import Options
from tlora.results import Meta
from tlora.tasks.presets import PRESETS
from tlora.utils.defaults import ROWS
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Part, code, facts, text, texts
from viz.widgets.results import Results, scores_to_show
from viz.widgets.state import allocation_code, state_from_allocation

UNRECORDED = (
    "The results do not keep all arguments. Put back what was not as shown here: those of load_model, load_task and "
    "task_subspaces, the path of your own data, the optimizer and the callbacks of train."
)
UNKNOWN_START = (
    "They do not say how A began either, which a run records if attach was called in the same process: attach also "
    "takes rows=, or no subspaces at all; and an adapter that was trained before comes from tlora.load."
)
TRAINED_BEFORE = "The adapter was trained before this run, which is not shown here."
NOT_ARGUMENTS = (
    "resume", "evaluated_on", "attach", "b_began_at_zero", "command", "data", "num_labels", "classes",
    "evaluated_samples", "example", "steps",
)  # fmt: skip
"""What the recipe of a run holds in addition to the arguments of `tlora.train`."""


class ReproducePanel(Panel):
    """Commands, calls, origins and versions."""

    name, title = "reproduce", "Reproduce"
    stage = "data"
    about = "The same versions, data and seed give the same results; other hardware gives them up to rounding."
    needs = ("run", "allocation")

    def parts(self) -> list[Part]:
        """The command lines, or else the calls and what these leave out; then two tables."""
        results, parts = self.results, list[Part]()
        if lines := commands(results):
            parts.append(code("On the command line", "\n".join(lines)))
        else:
            parts += [code("In Python", python_calls(results)), text(caveat(results))]
        if results.run is not None:
            again = f"model = tlora.load_adapter({results.folder!r})"
            parts.append(code("The adapter, to use or to train further", again))
        return [*parts, _origins(results), facts("Versions", versions(results))]


def commands(results: Results) -> list[str]:
    """The command lines that made the results, each once; empty if they were made in Python."""
    return list(dict.fromkeys(m.recipe["command"] for m in results.metas.values() if m.recipe.get("command")))


def caveat(results: Results) -> str:
    """What `python_calls` cannot know; empty if there are command lines, which leave nothing out."""
    if commands(results):
        return ""
    if results.run and not attach_arguments(results):
        return f"{UNRECORDED} {UNKNOWN_START}"
    trained_before = results.run and not results.run.meta.recipe.get("b_began_at_zero", True)
    return f"{UNRECORDED} {TRAINED_BEFORE}" if trained_before else UNRECORDED


def python_calls(results: Results) -> str:
    """The calls that make the results again, as far as their arguments are recorded."""
    own = "" if results.task in PRESETS else "  # or the path of your own data"
    lines = ["import tlora", ""]
    lines.append(f"model, tokenizer = tlora.load_model({results.model!r}{num_labels_argument(results)})")
    lines.append(f"task = tlora.load_task({results.task!r}, tokenizer){own}")
    if results.calibrated:
        lines.append(f"calibration = tlora.calibrate(model, task.calibration({_calibration(results)})")
    if results.allocation:
        state = replace(state_from_allocation(results.allocation), directions=None)
        calls = [f"allocation = {allocation_code(scores_to_show(results), state)}"]
        if (kind := attach_arguments(results).get("kind", "wc")) is not None:
            known = [len(values) for values in results.allocation.energies.values()]  # the directions came first
            most, more = max(known, default="allocation"), "" if kind == "wc" else f", kind={kind!r}"
            line = f"subspaces = tlora.task_subspaces(model, calibration, max_rank={most}{more})"
            calls.insert(0 if known else 1, line)
        lines += calls
    if results.run:
        unknown = "" if results.allocation else "  # of an allocation that is not kept here"
        lines.append(f"adapted = tlora.attach(model, {_attach(results)}){unknown}")
        lines.append(f"run = tlora.train(adapted, task, {_train(results.run.meta)})")
        lines.append(f"run.save({results.folder!r})")
    return "\n".join(lines)


def num_labels_argument(results: Results) -> str:
    """The argument that gives a classifier its classes when its base is loaded; empty for other models."""
    labels = results.run.meta.recipe.get("num_labels") if results.run else None
    return f", num_labels={labels}" if labels else ""


def attach_arguments(results: Results) -> dict[str, Any]:
    """Arguments of `tlora.attach` that the run recorded; empty if unknown."""
    recorded = results.run.meta.recipe.get("attach") if results.run else None
    return recorded if isinstance(recorded, dict) else {}


def _calibration(results: Results) -> str:
    recipe, defaults = results.calibration_recipe, asdict(Options()) | {"target_modules": None}
    more = {name: recipe[name] for name in defaults if recipe.get(name, defaults[name]) != defaults[name]}
    samples = results.calibrated.samples if results.calibrated else None
    return f"{samples})" + "".join(f", {name}={value!r}" for name, value in more.items())


def _attach(results: Results) -> str:
    recorded = attach_arguments(results)
    arguments = ["subspaces" if recorded.get("kind", "wc") else "None", "allocation"]
    if results.run and not results.run.frozen_a:
        arguments.append("freeze_a=False")
    defaults = {"rows": ROWS, "seed": 0}
    differing = [name for name, default in defaults.items() if recorded.get(name) not in (None, default)]
    return ", ".join([*arguments, *(f"{name}={recorded[name]!r}" for name in differing)])


def _train(meta: Meta) -> str:
    recipe = {name: value for name, value in meta.recipe.items() if name not in NOT_ARGUMENTS and value is not None}
    return ", ".join(f"{name}={value!r}" for name, value in (recipe | {"seed": meta.seed}).items())


def _origins(results: Results) -> Part:
    rows = [
        [name, "" if meta.seed is None else str(meta.seed), f"{meta.samples or ''}"]
        for name, meta in results.metas.items()
    ]
    return texts("Where the results come from", ["result", "seed", "samples"], rows)


def versions(results: Results) -> dict[str, str]:
    """Versions of the libraries by name; several if the results were made with different ones."""
    seen: dict[str, list[str]] = {}
    for meta in results.metas.values():
        for library, version in meta.versions.items():
            seen.setdefault(library, []).append(version)
    return {name: ", ".join(dict.fromkeys(each)) for name, each in seen.items()}
