"""explore: calibrate and show the workbench in one call."""

from __future__ import annotations

from typing import Any

from tlora.calibration.calibrate import calibrate
from tlora.subspaces.gradient_capture import GradientCapture, gradient_capture
from tlora.subspaces.subspaces import Subspaces
from tlora.subspaces.task_subspaces import task_subspaces
from viz.widgets.workbench import Workbench

HELD_OUT = 32
"""Validation samples that the captured gradient is measured on."""


def explore(
    model: Any, task: Any, *, samples: int = 32, max_rank: int = 64, rank: int = 8, **options: Any
) -> Workbench:
    """Calibrate, compute subspaces, measure the captured gradient, and show the workbench.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model. It is observed, not changed.
    task : Task
        From `tlora.load_task`.
    samples : int
        Training samples to calibrate on.
    max_rank : int
        Directions computed for each module.
    rank : int
        Nominal rank to begin with.
    **options
        Other arguments of `tlora.allocate` to begin with.

    Returns
    -------
    Workbench
        Shown already.

    Raises
    ------
    TypeError, KeyError, ValueError
        If `tlora.calibrate` or `tlora.allocate` refuses something.

    Examples
    --------
    >>> workbench = viz.explore(model, task, samples=4, max_rank=4, rank=2)
    Ranks from ... to ... instead of 2 everywhere...
    """
    calibration = calibrate(model, task.calibration(samples))
    subspaces = task_subspaces(model, calibration, max_rank=max_rank)
    capture = measure_capture(model, task, subspaces)
    workbench = Workbench(calibration, subspaces, model=model, task=task, capture=capture, rank=rank, **options)
    workbench.display()
    return workbench


def measure_capture(model: Any, task: Any, subspaces: Subspaces) -> GradientCapture | None:
    """The captured gradient of validation samples at every rank; None if the task has no such samples."""
    rows = [task.validation[i] for i in range(min(HELD_OUT, len(task.validation)))]
    if not rows:
        return None
    batches = [task.collate(rows[i : i + 8]) for i in range(0, len(rows), 8)]
    most = min(len(basis) for basis in subspaces.bases.values())
    return gradient_capture(model, batches, {subspaces.kind: subspaces}, range(1, most + 1), task=task.name)
