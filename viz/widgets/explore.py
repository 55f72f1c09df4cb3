"""explore: calibrate and show the workbench in one call."""

from __future__ import annotations

from typing import Any

from tlora.calibration.calibrate import calibrate
from tlora.explanation.direction_activations import DirectionActivations
from tlora.explanation.observe_directions import direction_activations
from tlora.recipes import Recipe
from tlora.subspaces.gradient_capture import GradientCapture, gradient_capture
from tlora.subspaces.subspaces import Subspaces
from tlora.subspaces.task_subspaces import task_subspaces
from tlora.tasks.task import first_batches
from tlora.utils.defaults import DIRECTIONS
from viz.widgets.workbench import Workbench

HELD_OUT = 32
"""Validation samples that are captured and read."""


def explore(
    model: Any,
    task: Any,
    *,
    recipe: str | Recipe = "tlora-paper",
    samples: int = 32,
    max_rank: int | None = None,
    rank: int = 8,
    **options: Any,
) -> Workbench:
    """Calibrate, compute subspaces, measure what they capture and read of validation samples, and show the workbench.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model. It is observed, not changed.
    task : Task
        From `tlora.load_task`.
    recipe : str or Recipe
        Whose directions and ranks to begin with: ranks by score, as published, or ``"tlora"``, what ``tlora run``
        trains.
    samples : int
        Training samples to calibrate on.
    max_rank : int, optional
        Directions computed for each module. Default: 64, or four times the rank if ranks follow what they capture.
    rank : int
        Nominal rank to begin with.
    **options
        Other arguments of `tlora.allocate` to begin with; they take precedence over the recipe.

    Returns
    -------
    Workbench
        Shown already.

    Raises
    ------
    TypeError, KeyError, ValueError
        If there is no such recipe, or `tlora.calibrate` or `tlora.allocate` refuses something.

    Examples
    --------
    >>> workbench = viz.explore(model, task, samples=4, max_rank=4, rank=2)
    Ranks from ... to ... instead of 2 everywhere...
    >>> workbench = viz.explore(model, task, recipe="tlora", samples=4, rank=2)
    Ranks from ... to ... instead of 2 everywhere...
    """
    recipe = Recipe.named(recipe) if isinstance(recipe, str) else recipe
    options = dict(recipe.allocate) | options
    calibration = calibrate(model, task.calibration(samples), **recipe.calibrate)
    observed: dict[str, Any] = {}
    if recipe.task_subspaces is not None:
        most = max_rank or (DIRECTIONS * rank if options.get("by") == "captured" else 64)
        subspaces = task_subspaces(model, calibration, **({"max_rank": most} | dict(recipe.task_subspaces)))
        observed = {
            "subspaces": subspaces,
            "capture": measure_capture(model, task, subspaces),
            "activations": read_directions(model, task, subspaces),
        }
    workbench = Workbench(calibration, model=model, task=task, rank=rank, **observed, **options)
    workbench.display()
    return workbench


def measure_capture(model: Any, task: Any, subspaces: Subspaces) -> GradientCapture | None:
    """The captured gradient of validation samples at every rank; None if the task has no such samples."""
    batches = first_batches(task, HELD_OUT)
    if not batches:
        return None
    most = min(len(basis) for basis in subspaces.bases.values())
    return gradient_capture(model, batches, {subspaces.kind: subspaces}, range(1, most + 1), task=task.name)


def read_directions(model: Any, task: Any, subspaces: Subspaces) -> DirectionActivations | None:
    """What the first directions read of validation samples; None if the task has too few of them to compare."""
    if len(task.validation) < 2:
        return None
    options = {"tokenizer": task.tokenizer, "task": task.name}
    return direction_activations(model, subspaces, first_batches(task, HELD_OUT), **options)
