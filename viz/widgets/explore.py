"""explore: calibrate and show the workbench in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tlora.utils.defaults import DEFAULT_RECIPE, RANK, SAMPLES
from tlora.utils.progress import progress_bar
from tlora.utils.validation import check_arguments

if TYPE_CHECKING:
    from tlora.explanation.direction_activations_result import DirectionActivations
    from tlora.models.targets import Model
    from tlora.recipes import Recipe
    from tlora.subspaces.gradient_capture import GradientCapture
    from tlora.subspaces.subspaces import Subspaces
    from tlora.tasks.task import Task
    from viz.widgets.workbench import Workbench

HELD_OUT = 32
"""Validation samples that are captured and read."""

DIRECTIONS_BY_SCORE = 64
"""Directions of each module, if ranks by score leave their number open."""


def explore(
    model: Model,
    task: Task,
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    samples: int = SAMPLES,
    max_rank: int | None = None,
    rank: int = RANK,
    gradient_checkpointing: bool | None = None,
    **options: Any,
) -> Workbench:
    """Prepare an adapter, measure what its directions capture and read of validation samples, and show the workbench.

    ``workbench.plan`` is what it shows, for ``tlora.attach(model, workbench.plan)``.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model. It is observed, not changed.
    task : Task
        From `tlora.load_task`.
    recipe : str or Recipe
        What to begin with: the default of `tlora.prepare`, or ``"tlora-paper"``, the published method.
    samples : int
        Training samples to calibrate on.
    max_rank : int, optional
        Directions computed for each module. Default: four times the rank, or 64 for ranks by score.
    rank : int
        Nominal rank to begin with.
    gradient_checkpointing : bool, optional
        Measure gradients in the memory of a checkpointed training step; as for `tlora.calibrate`.
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
    >>> workbench = viz.explore(model, task, samples=4, rank=2)
    Ranks from ... to ... instead of 2 everywhere...
    >>> workbench = viz.explore(model, task, recipe="tlora-paper", samples=4, max_rank=4, rank=2)
    Ranks from ... to ... instead of 2 everywhere...
    """
    with progress_bar(total=1, desc="loading libraries", show=True, leave=False):  # for the first time, seconds
        from tlora.calibration.expert_use import expert_use
        from tlora.models.experts import is_expert
        from tlora.recipes import Recipe, prepare
        from viz.widgets.workbench import Workbench
    given = {"model": model, "task": task, "recipe": recipe, "rank": rank, "samples": samples}
    check_arguments(prepare, given | {"gradient_checkpointing": gradient_checkpointing})
    recipe = (Recipe.named(recipe) if isinstance(recipe, str) else recipe).override(allocate=options)
    if recipe.kind is not None and (max_rank or not recipe.follows_directions):
        recipe = recipe.override(task_subspaces={"max_rank": max_rank or DIRECTIONS_BY_SCORE})
    plan = prepare(model, task, recipe, rank, samples=samples, gradient_checkpointing=gradient_checkpointing)
    observed: dict[str, Any] = {}
    if plan.subspaces is not None:
        observed = {
            "capture": measure_capture(model, task, plan.subspaces, gradient_checkpointing),
            "activations": read_directions(model, task, plan.subspaces),
        }
    if plan.calibration and any(map(is_expert, plan.calibration.targets)):
        observed["expert_use"] = expert_use(plan.calibration)
    workbench = Workbench.from_plan(plan, model=model, task=task, **observed)
    workbench.display()
    return workbench


def measure_capture(
    model: Any, task: Any, subspaces: Subspaces, gradient_checkpointing: bool | None = None
) -> GradientCapture | None:
    """Measure the captured gradient of validation samples at every rank; None if the task has no such samples."""
    from tlora.subspaces.gradient_capture import gradient_capture
    from tlora.tasks.task import first_batches

    batches = first_batches(task, HELD_OUT)
    if not batches:
        return None
    most = min(len(basis) for basis in subspaces.bases.values())
    kinds, options = {subspaces.kind: subspaces}, {"gradient_checkpointing": gradient_checkpointing, "task": task.name}
    return gradient_capture(model, batches, kinds, range(1, most + 1), **options)


def read_directions(model: Any, task: Any, subspaces: Subspaces) -> DirectionActivations | None:
    """Return what the first directions read of validation samples; None if there are too few of them to compare."""
    from tlora.explanation.direction_activations import direction_activations
    from tlora.tasks.task import first_batches

    if len(task.validation) < 2:
        return None
    options = {"tokenizer": task.tokenizer, "task": task.name}
    return direction_activations(model, subspaces, first_batches(task, HELD_OUT), **options)
