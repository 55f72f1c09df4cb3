"""Allocate: share a budget of ranks among the modules by their sensitivity or gradient (stage 4 of TLoRA)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import torch
from torch import Tensor

from tlora.allocation.allocation import Allocation, apportion_ranks
from tlora.allocation.constraints import excluded_modules, possible_ranks, rank_limits
from tlora.allocation.options import AllocationOptions
from tlora.calibration.sensitivity import Sensitivity, check_scores
from tlora.models.experts import parameter_name
from tlora.models.targets import Target, join_experts
from tlora.utils.defaults import GRADIENT_KINDS, RanksBy
from tlora.utils.validation import check_arguments


@runtime_checkable
class Directions(Protocol):
    """What `allocate` reads of `tlora.Subspaces`, which is made for allocations and so cannot be imported here."""

    @property
    def kind(self) -> str:
        """What the directions are."""

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``(d_out, d_in)`` by full module name."""

    @property
    def singular_values(self) -> dict[str, Tensor]:
        """One for each direction, descending, by full module name."""


def allocate(
    sensitivity: Sensitivity,
    rank: SupportsIndex,
    alpha: int | float | None = AllocationOptions.alpha,
    scaling: str = AllocationOptions.scaling,
    budget: str = AllocationOptions.budget,
    adapt_ranks: bool = AllocationOptions.adapt_ranks,
    adapt_scales: bool = AllocationOptions.adapt_scales,
    max_rank: SupportsIndex | Mapping[str, SupportsIndex] | None = AllocationOptions.max_rank,
    *,
    min_rank: SupportsIndex | Mapping[str, SupportsIndex] = AllocationOptions.min_rank,
    pinned: Mapping[str, SupportsIndex] | None = None,
    exclude_modules: str | int | Collection[str | int] = (),
    temperature: int | float = AllocationOptions.temperature,
    score: str = AllocationOptions.score,
    by: RanksBy = AllocationOptions.by,
    rank_by_expert: bool = AllocationOptions.rank_by_expert,
    subspaces: Directions | Allocation | None = None,
) -> Allocation:
    """Give more rank and a larger scale to the modules the loss is more sensitive to.

    The budget is that of a uniform allocation, ``rank`` for each of the M modules of the sensitivity. Limits, pins and
    exclusions never change the budget, only who gets it. No model is needed.

    Parameters
    ----------
    sensitivity : Sensitivity
        Scores ``S_i``: ``calibrate(...).sensitivity``.
    rank : int
        Nominal rank, as in LoRA.
    alpha : float, optional
        Nominal alpha, as in LoRA; ``rank`` by default.
    scaling : {"nominal", "allocated"}
        Divide ``alpha_i`` by ``rank`` (``s_i = alpha_i / r``) or by the module's own rank (``s_i = alpha_i / r_i``).
    budget : {"ranks", "parameters"}
        Spend exactly ``rank * M`` ranks, or at most the ``rank * sum d_out`` entries of ``B`` of the uniform
        allocation. With ``"parameters"`` the remainder is smaller than the least ``d_out``
        of the modules below their ceilings, and a higher score can get one rank less than a lower score whose
        ``d_out`` is smaller.
    adapt_ranks : bool
        False: share the budget evenly, ``rank`` for every module (unless limits, pins or exclusions differ).
    adapt_scales : bool
        False: ``alpha_i = alpha``.
    max_rank, min_rank : int or mapping of int
        Most and least rank, of every module or by full module name. No module exceeds ``min(d_in, d_out)``. With
        ``min_rank=0`` a module that gets no rank is dropped: it gets no adapter.
    pinned : mapping of int, optional
        Fixed ranks by full module name.
    exclude_modules : str, int or collection of them
        Modules without an adapter: full module names, projections (``"down_proj"``), or indices of layers.
    temperature : float
        From 0 to 1: scores enter ranks and scales as ``S_i ** temperature``. 1 is in proportion, 0 is uniform.
    score : {"mean", "sum", "per_parameter"}
        The score that ranks and scales are in proportion to; see `Sensitivity.rescale`.
    by : {"score", "captured"}
        ``"captured"``: each next unit of rank goes to the direction of ``subspaces`` that captures most of the squared
        gradient for its cost, 1 or ``d_out`` by ``budget``. Scales follow the score all the same.
    rank_by_expert : bool
        True: the experts of a parameter share its ranks by the same rule, see the notes.
    subspaces : Subspaces or Allocation, optional
        For ``by="captured"``: directions of a gradient, of kind ``"fisher"`` or ``"g"``, of all modules; or an
        `Allocation` by captured gradient, which keeps what each direction captures. No module gets more rank than it
        has directions there.

    Returns
    -------
    Allocation

    Raises
    ------
    KeyError
        If a name is not in the sensitivity.
    ValueError
        If all scores are zero, an option is out of range, the subspaces are not of a gradient or lack a module, or the
        limits cannot be met. The message names the module and the nearest possible value.

    Notes
    -----
    By score, ranks are in proportion to scores within the limits, rounded by largest remainders. The authors round each
    rank and put the whole error on the largest module, which can result in a rank of 0 or above the size of the matrix.
    ``scaling="nominal"`` is what their code computes: its layers divide by the configured rank before the allocated one
    is set. The paper's text suggests ``"allocated"``.

    ``by="captured"`` is of this project. The squared singular values of a gradient are the squared gradient along its
    singular vectors, and they descend; so with ``budget="ranks"`` no other ranks within the limits capture more.

    Experts of a parameter have one rank, for PEFT holds one: the parameter is one module here, its score is the mean of
    theirs, and a rank of it costs as many ranks, or entries of ``B``, as it has experts. With ``rank_by_expert`` this
    rank is their mean: the E experts of a parameter of rank r share ``E r`` ranks by the same rule and within the same
    limits, see `Allocation.expert_ranks`. The budget counts these. PEFT then holds the largest rank for all of them:
    the other rows of ``A`` and columns of ``B`` are zero and stay zero, and take memory all the same. Bound it by
    ``max_rank``.

    ``alpha_i = max(alpha, round(alpha * M * S_i / sum_j S_j))``, with M and the sum over the modules that are not
    excluded.

    References
    ----------
    TLoRA, arXiv 2604.18124: sensitivity-based allocation of ranks and scaling factors.

    Examples
    --------
    >>> allocation = tlora.allocate(calibration.sensitivity, rank=4)
    >>> sum(allocation.ranks.values()) == 4 * len(calibration.names)
    True
    >>> pinned = tlora.allocate(calibration.sensitivity, rank=4, pinned={calibration.names[0]: 6})
    >>> pinned.decided_by[calibration.names[0]], pinned.budget_used == allocation.budget_used
    ('pinned', True)
    >>> gradient = tlora.task_subspaces(model, calibration, max_rank=16, kind="g", progress=False)
    >>> captured = tlora.allocate(calibration.sensitivity, rank=4, by="captured", subspaces=gradient)
    >>> uniform = sum(float(values[:4].square().sum()) for values in gradient.singular_values.values())
    >>> captured.to_frame()["captured"].sum() >= uniform
    np.True_
    """
    check_arguments(allocate, locals())
    options: dict[str, Any] = {
        "rank": rank,
        "alpha": alpha,
        "scaling": scaling,
        "budget": budget,
        "adapt_ranks": adapt_ranks,
        "adapt_scales": adapt_scales,
        "max_rank": max_rank,
        "min_rank": min_rank,
        "pinned": pinned,
        "exclude_modules": exclude_modules,
        "temperature": temperature,
        "score": score,
        "by": by,
        "rank_by_expert": rank_by_expert,
    }
    return apply_options(sensitivity, AllocationOptions(**options), subspaces)


def apply_options(
    sensitivity: Sensitivity,
    options: AllocationOptions,
    subspaces: Directions | Allocation | None = None,
    edits: Mapping[str, int] | None = None,
) -> Allocation:
    """Return the allocation of these options, with the ranks in ``edits`` set by hand, as `Allocation.edit` sets them.

    The options have to be possible without the edits too.
    """
    sensitivity = sensitivity.by_parameter()
    options, scores, energies = _read_options(sensitivity, options, subspaces)
    gains = _expert_gains(sensitivity, options, subspaces, scores)
    recipe: dict[str, Any] = {"sensitivity": sensitivity.meta.recipe}
    if isinstance(subspaces, Allocation):
        recipe["kind"] = subspaces.meta.recipe.get("kind")
    elif subspaces is not None:
        recipe["kind"] = subspaces.kind
    meta = replace(sensitivity.meta, recipe=recipe)
    if edits:
        rank_limits(options, list(scores), sensitivity.targets, {}, energies)
    return apportion_ranks(sensitivity.targets, scores, options, dict(edits or {}), meta, energies, gains)


def ranks_to_edit(
    sensitivity: Sensitivity,
    options: AllocationOptions,
    subspaces: Directions | Allocation | None,
    edits: Mapping[str, int],
    names: Collection[str],
) -> range:
    """Return the ranks that `apply_options` allows as edits of ``names``, the same for all, on top of other edits."""
    sensitivity = sensitivity.by_parameter()
    options, scores, energies = _read_options(sensitivity, options, subspaces)
    rank_limits(options, list(scores), sensitivity.targets, {}, energies)
    return possible_ranks(options, list(scores), sensitivity.targets, edits, energies, names)


def _read_options(
    sensitivity: Sensitivity, options: AllocationOptions, subspaces: Directions | Allocation | None
) -> tuple[AllocationOptions, dict[str, float], dict[str, list[float]]]:
    """The options with their alpha, and scores and energies of the modules that are not excluded."""
    options = replace(options, alpha=options.nominal_alpha)
    excluded = excluded_modules(options.exclude_modules, sensitivity.targets)
    scores = {name: value for name, value in sensitivity.rescale(options.score).scores.items() if name not in excluded}
    check_scores(scores)
    shapes = sensitivity.shapes
    return options, scores, _direction_energies(options, subspaces, {name: shapes[name] for name in scores})


def _direction_energies(
    options: AllocationOptions, subspaces: Directions | Allocation | None, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, list[float]]:
    """The squared gradient along each direction of the modules; nothing by score."""
    if options.by == "score" and subspaces is not None:
        raise ValueError("subspaces= has no effect on by='score': leave it out, or choose by='captured'")
    if subspaces is None and not options.is_captured:
        return {}
    found: Mapping[str, list[float]] = {}
    if subspaces is None:
        there = "there are none"
    elif isinstance(subspaces, Allocation):
        found, there = subspaces.energies, "this allocation is by score"
    else:
        there = f"these are of kind {subspaces.kind!r}"
        if subspaces.kind in GRADIENT_KINDS:
            found = {
                name: sum(experts[1:], experts[0]).tolist()
                for name, experts in _energies_by_parameter(subspaces).items()
            }
    if subspaces is None or not found:
        raise ValueError(
            f"by='captured' reads the gradient along directions, and {there}: pass subspaces=task_subspaces(model, "
            f"calibration, kind=...) of kind {' or '.join(map(repr, GRADIENT_KINDS))}"
        )
    known = {parameter_name(name): shape for name, shape in subspaces.shapes.items()}
    for name, shape in shapes.items():
        if name not in found or known[name] != shape:
            raise ValueError(
                f"the sensitivity has {name}, the subspaces do not: compute both from one calibration, and give "
                "task_subspaces a number as max_rank"
            )
    return {name: found[name] for name in shapes}


def _energies_by_parameter(subspaces: Directions) -> dict[str, list[Tensor]]:
    """Energies of a module, or of each expert of a parameter.

    Their sum is what one more rank of the parameter captures: the next direction of each of its experts.
    """
    energies: dict[str, list[Tensor]] = {}
    for name, values in subspaces.singular_values.items():
        energies.setdefault(parameter_name(name), []).append(values.double().square())
    return energies


def _expert_gains(
    sensitivity: Sensitivity,
    options: AllocationOptions,
    subspaces: Directions | Allocation | None,
    names: Collection[str],
) -> dict[str, Tensor]:
    """What the experts of each parameter share its ranks by; nothing if they have the same rank."""
    parameters = [name for name in names if sensitivity.targets[name].experts > 1]
    if not options.rank_by_expert:
        return {}
    if not options.is_captured:
        known, source = {n: torch.tensor(s)[:, None] for n, s in sensitivity.expert_scores.items()}, "these scores"
    elif isinstance(subspaces, Allocation):
        known, source = subspaces.expert_gains, "this allocation"
    else:
        assert subspaces is not None
        known, source = {n: torch.stack(e) for n, e in _energies_by_parameter(subspaces).items()}, "these subspaces"
    for name in parameters:
        if name not in known:
            raise ValueError(
                f"rank_by_expert=True reads a value of each expert of {name}, and {source} have one for all: allocate "
                "from calibration.sensitivity, with subspaces=task_subspaces(...) if by='captured'"
            )
    return {name: known[name] for name in parameters}


def check_limits(targets: Mapping[str, Target], rank: SupportsIndex, **options: Any) -> None:
    """Check that `allocate` can meet its budget within its limits, whatever the scores will be.

    Needs no scores and no weights, so that impossible limits are refused before a calibration, as `allocate` would.
    """
    checked, targets = AllocationOptions(**dict(options, rank=rank)), join_experts(targets.values())
    excluded = excluded_modules(checked.exclude_modules, targets)
    rank_limits(checked, [name for name in targets if name not in excluded], targets, {}, {})
