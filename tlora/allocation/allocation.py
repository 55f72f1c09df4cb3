"""Allocation: which rank and which scale every module gets (stage 4 of TLoRA)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Self, SupportsIndex

import pandas as pd
import torch

from tlora.allocation.constraints import (
    BUDGETS,
    SCALINGS,
    AllocationOptions,
    Limits,
    budget_total,
    excluded_names,
    limits,
    one_or_several,
    whole_or_each,
)
from tlora.allocation.footprint import Footprint, footprint, ranks_text
from tlora.calibration.sensitivity import SCORES, Sensitivity, check_scores
from tlora.models.module_result import ModuleResult
from tlora.numerics.apportionment import total_cost
from tlora.results import Meta
from tlora.utils.defaults import BUDGET, SCALING
from tlora.utils.validation import check_mapping, check_type, fraction, one_of, positive, positive_int


@dataclass(frozen=True, repr=False)
class Allocation(ModuleResult):
    """An allocation: the rank and the scaling of every module, made by `allocate` and changed by `Allocation.edit`.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order; those that were left out too, which count in the budget
        and in `lora`.
    ranks : dict of int
        ``r_i`` by full module name, in model order. Excluded and dropped modules are not in it.
    scalings : dict of float
        ``s_i``, the factor of ``B A``, of the same modules.
    scores : dict of float
        The sensitivity ``S_i`` that the allocation was made from, nats per token; of dropped modules too.
    options : AllocationOptions
        What was asked for.
    edits : dict of int
        Ranks that were set by hand. The allocation is a function of ``scores``, ``options`` and ``edits`` alone.
    meta : Meta
        Model, task, sample count and versions of the sensitivity; the options, edits and the sensitivity's
        own recipe.
    """

    ranks: dict[str, int]
    scalings: dict[str, float]
    scores: dict[str, float]
    options: AllocationOptions
    edits: dict[str, int]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "layer": "index of the block",
        "projection": "role within the block",
        "score": "sensitivity S_i, nats per token",
        "ideal": "rank in proportion to the score, before limits, projection shares and rounding",
        "rank": "r_i",
        "change": "r_i less the nominal rank",
        "alpha": "alpha_i: s_i times the rank that the scaling divides by",
        "scaling": "s_i, the factor of B A",
        "parameters": "entries of B, r_i times d_out",
        "decided_by": "score, floor (min_rank), ceiling (max_rank or the matrix), pinned, or edited",
    }

    @property
    def excluded(self) -> list[str]:
        """Full names of the modules that were left out, in model order."""
        return [name for name in self.targets if name not in self.scores]

    @property
    def dropped(self) -> list[str]:
        """Full names of the modules that share the budget and get nothing of it, as ``min_rank=0`` allows."""
        return [name for name in self.scores if name not in self.ranks]

    @property
    def rank(self) -> int:
        """Nominal rank: what every module would get in a uniform allocation."""
        return self.options.rank

    @property
    def alpha(self) -> int | float:
        """Nominal alpha: the least ``alpha_i``."""
        return self.options.alpha

    @property
    def budget(self) -> str:
        """What the budget counts: ``"ranks"``, spent exactly, or ``"parameters"``, at most."""
        return self.options.budget

    @property
    def budget_total(self) -> int:
        """What the uniform allocation over all modules, excluded ones too, spends: ranks, or entries of ``B``."""
        return budget_total(self.options, self.targets)

    @property
    def budget_used(self) -> int:
        """What this allocation spends; equal to ``budget_total`` where ranks are counted."""
        return total_cost(list(self.ranks.values()), self.options.costs([self.targets[name] for name in self.ranks]))

    @property
    def decided_by(self) -> dict[str, str]:
        """What decided each rank: score, floor, ceiling, pinned or edited, as in the table."""
        by_hand = dict.fromkeys(self.options.pinned, "pinned") | dict.fromkeys(self.edits, "edited")
        reasons = self.limits().reasons([self.ranks.get(name, 0) for name in self.scores], self._ideal())
        decided = dict(zip(self.scores, reasons, strict=True)) | by_hand
        return {name: decided[name] for name in self.ranks}

    def footprint(self, *, freeze_a: bool = True) -> Footprint:
        """Parameters and bytes of the adapter.

        Parameters
        ----------
        freeze_a : bool
            Whether only ``B`` is trained.

        Returns
        -------
        Footprint
        """
        return footprint(self.shapes, self.ranks, freeze_a=freeze_a)

    @property
    def trainable_parameters(self) -> int:
        """Entries of all ``B``: ``sum r_i d_out_i``."""
        return self.footprint().trainable_parameters

    @property
    def adapter_bytes(self) -> int:
        """Bytes of all ``A`` and ``B`` in float32."""
        return self.footprint().adapter_bytes

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of AdamW's two float32 states of ``B``."""
        return self.footprint().optimizer_bytes

    @property
    def lora(self) -> Footprint:
        """The same of plain LoRA: nominal rank in all modules, excluded ones too; ``A`` and ``B`` trained."""
        return footprint(self.shapes, dict.fromkeys(self.targets, self.rank), freeze_a=False)

    def edit(self, ranks: Mapping[str, SupportsIndex | None]) -> Self:
        """Set ranks by hand; the other modules share what is left of the same budget by their scores.

        Parameters
        ----------
        ranks : mapping of int or None
            Rank by full module name; it replaces what ``pinned`` or ``min_rank`` says of the module. None
            takes an earlier edit back. Edits that are not named stay.

        Returns
        -------
        Allocation
            A new allocation that records the edits; this one stays as it is.

        Raises
        ------
        TypeError
            If it is not a mapping.
        KeyError
            If there is no such module.
        ValueError
            If it is excluded, or budget or matrix do not allow the ranks; the message gives the nearest possible one.
        """
        edits = dict(self.edits)
        check_mapping("ranks", ranks, {next(iter(self.targets)): self.rank})
        for name, rank in ranks.items():
            if rank is not None:
                edits[name] = positive_int(rank, f"rank of {name}")
            elif name not in self.scores:
                raise KeyError(f"{name!r} is not a module of this allocation: see .scores for the names")
            else:
                edits.pop(name, None)
        return replace(self, edits=edits)._solved()

    def limits(self) -> Limits:
        """Least and most rank of every module that is not excluded, in model order, and the budget."""
        return limits(self.options, list(self.scores), self.targets, self.edits)

    def compare(self, other: Allocation) -> pd.DataFrame:
        """What this allocation gives to each module, beside another allocation of the same model.

        Parameters
        ----------
        other : Allocation
            The allocation to compare with.

        Returns
        -------
        pandas.DataFrame
            One row a module that is in either allocation: ``module``, ``layer``, ``projection``; ``rank``,
            ``other_rank`` and ``rank_change``; ``scaling``, ``other_scaling`` and ``scaling_change``;
            ``parameters_change`` (entries of ``B``).
            A change is this allocation less the other; a module without an adapter has rank and scaling 0.

        Raises
        ------
        ValueError
            If the allocations are of models with other modules or shapes.
        """
        check_type(other, Allocation, "allocate(...)")
        if self.shapes != other.shapes:
            raise ValueError(
                "the allocations are of different models or target modules: compare two allocations of the same"
            )
        names = [name for name in self.targets if name in self.ranks or name in other.ranks]
        table = self._places(names)
        pairs = (("rank", self.ranks, other.ranks), ("scaling", self.scalings, other.scalings))
        for column, mine, theirs in pairs:
            table[column] = [mine.get(n, 0) for n in names]
            table[f"other_{column}"] = [theirs.get(n, 0) for n in names]
            table[f"{column}_change"] = [mine.get(n, 0) - theirs.get(n, 0) for n in names]
        frame = pd.DataFrame(table)
        return frame.assign(parameters_change=frame["rank_change"] * [self.targets[n].d_out for n in names])

    def to_frame(self) -> pd.DataFrame:
        """One row a module with an adapter; see ``columns``."""
        scores = list(self.scores.values())
        ideal, alphas = (dict(zip(self.scores, of, strict=True)) for of in (self._ideal(), self.options.alphas(scores)))
        frame = pd.DataFrame(
            self._places(self.ranks)
            | {
                "score": [self.scores[name] for name in self.ranks],
                "ideal": [ideal[name] for name in self.ranks],
                "rank": list(self.ranks.values()),
                "change": [rank - self.rank for rank in self.ranks.values()],
                "alpha": [alphas[name] for name in self.ranks],
                "scaling": list(self.scalings.values()),
                "parameters": [rank * self.targets[name].d_out for name, rank in self.ranks.items()],
            }
        )
        return frame.assign(decided_by=list(self.decided_by.values()))

    def _ideal(self) -> list[float]:
        weights = self.options.rank_weights(list(self.scores.values()))
        costs = self.options.costs([self.targets[name] for name in self.scores])
        price = math.fsum(w * cost for w, cost in zip(weights, costs, strict=True))
        total = self.budget_total
        return [total * weight / price for weight in weights]

    def _solved(self) -> Self:
        """The allocation with ranks and scalings worked out from its scores, options and edits."""
        scores = list(self.scores.values())
        solved = zip(self.scores, self.limits().solve(self.options.rank_weights(scores)), strict=True)
        ranks = {name: rank for name, rank in solved if rank}
        divisors = ranks if self.options.scaling == "allocated" else dict.fromkeys(ranks, self.rank)
        alphas = dict(zip(self.scores, self.options.alphas(scores), strict=True))
        scalings = {name: alphas[name] / divisor for name, divisor in divisors.items()}
        recipe = self.meta.recipe | asdict(self.options) | {"edits": self.edits}
        return replace(self, ranks=ranks, scalings=scalings, meta=replace(self.meta, recipe=recipe))

    def _summary(self) -> str:
        edits = f", {len(self.edits)} edited" if self.edits else ""
        dropped = f", {len(self.dropped)} dropped" if self.dropped else ""
        return (
            f"rank {self.rank}, alpha {self.alpha:g} ({self.options.scaling}), {len(self.ranks)} modules with "
            f"{ranks_text(self.ranks.values())}{dropped}, "
            f"{self.budget_used:,} of {self.budget_total:,} {self.options.unit}, "
            f"{self.trainable_parameters:,} trainable{edits}"
        )


def allocate(
    sensitivity: Sensitivity,
    rank: SupportsIndex,
    alpha: int | float | None = None,
    scaling: str = SCALING,
    budget: str = BUDGET,
    adapt_ranks: bool = True,
    adapt_scales: bool = True,
    max_rank: SupportsIndex | Mapping[str, SupportsIndex] | None = None,
    *,
    min_rank: SupportsIndex | Mapping[str, SupportsIndex] = 1,
    pinned: Mapping[str, SupportsIndex] | None = None,
    exclude_modules: str | int | Collection[str | int] = (),
    temperature: int | float = 1.0,
    projection_shares: Mapping[str, int | float] | None = None,
    score: str = "mean",
) -> Allocation:
    """Give more rank and a larger scale to the modules that the loss is more sensitive to.

    Touches no model. The budget is that of a uniform allocation, ``rank`` for each of the M modules of the
    sensitivity; limits, pins and exclusions never change it, they only change who gets it.

    Parameters
    ----------
    sensitivity : Sensitivity
        Scores ``S_i``; of ``calibrate(...).sensitivity``.
    rank : int
        Nominal rank, as in LoRA.
    alpha : float, optional
        Nominal alpha, as in LoRA; ``rank`` by default.
    scaling : {"nominal", "allocated"}
        Divide ``alpha_i`` by ``rank`` (``s_i = alpha_i / r``) or by the module's own rank (``s_i = alpha_i / r_i``).
    budget : {"ranks", "parameters"}
        Spend ``rank * M`` ranks, all of them, or at most the ``rank * sum d_out`` entries of ``B`` of the uniform
        allocation. In the second case the rest (of each of the ``projection_shares``) is smaller than the least
        ``d_out`` of its modules below their ceilings, and a higher score can have a rank less where another ``d_out``
        is smaller.
    adapt_ranks : bool
        Off: the budget is shared evenly, ``rank`` for every module (unless limits, pins or exclusions differ).
    adapt_scales : bool
        Off: ``alpha_i = alpha``.
    max_rank, min_rank : int or mapping of int
        Most and least rank, of every module or of those named. No module exceeds ``min(d_in, d_out)``. With
        ``min_rank=0`` a module that the budget gives nothing is dropped: it gets no adapter.
    pinned : mapping of int, optional
        Ranks that are given, by full module name.
    exclude_modules : str, int or collection of them
        Modules that get no adapter: full module names, projections (``"down_proj"``), or indices of layers.
    temperature : float
        From 0 to 1: scores enter as ``S_i ** temperature``, for ranks and scales. 1 is in proportion, 0 uniform.
    projection_shares : mapping of float, optional
        Parts of the budget, by projection; within a projection scores decide. Those not named share what is
        left.
    score : {"mean", "sum", "per_parameter"}
        What ranks and scales are in proportion to; see `Sensitivity.scored`.

    Returns
    -------
    Allocation
        The allocation.

    Raises
    ------
    TypeError
        If a number is not one, e.g. ``alpha="8"``, or ``sensitivity`` is something else.
    KeyError
        If a name is not in the sensitivity.
    ValueError
        If a score is negative, NaN or infinite, or all are zero; if an option is out of range, a rank is not
        whole, or an option cannot be met. The message names the module and the nearest possible value.

    Notes
    -----
    Ranks are in proportion to scores within the limits, rounded by largest remainders
    (``apportion``). The authors round each rank and put the whole error on the largest module,
    where a rank of 0 or above the size of the matrix can come out. ``scaling="nominal"`` is what their code
    computes: its layers divide by the configured rank before the allocated one is set. The paper's text
    suggests ``"allocated"``.

    ``alpha_i = max(alpha, round(alpha * M * S_i / sum_j S_j))``, with M and the sum over the modules that are not
    excluded.

    References
    ----------
    TLoRA, arXiv 2604.18124: sensitivity-based allocation of ranks and scaling factors.
    """
    check_type(sensitivity, Sensitivity, "calibrate(...).sensitivity")
    nominal = positive_int(rank, "rank")
    example = {next(iter(sensitivity.targets)): nominal}
    parts = {next(iter(sensitivity.targets.values())).projection: 0.5}
    options = AllocationOptions(
        rank=nominal,
        alpha=nominal if alpha is None else _alpha(alpha, len(sensitivity.targets), nominal),
        scaling=one_of("scaling", scaling, SCALINGS),
        budget=one_of("budget", budget, BUDGETS),
        adapt_ranks=bool(adapt_ranks),
        adapt_scales=bool(adapt_scales),
        max_rank=None if max_rank is None else whole_or_each("max_rank", max_rank),
        min_rank=whole_or_each("min_rank", min_rank, least=0),
        pinned={
            name: positive_int(value, f"pinned rank of {name}")
            for name, value in check_mapping("pinned", pinned or {}, example).items()
        },
        exclude_modules=one_or_several(exclude_modules),
        temperature=fraction("temperature", temperature),
        projection_shares={
            name: fraction(f"share of {name}", value)
            for name, value in check_mapping("projection_shares", projection_shares or {}, parts).items()
        },
        score=one_of("score", score, SCORES),
    )
    return _draft(sensitivity, options)._solved()


def _alpha(alpha: int | float, modules: int, rank: int) -> int | float:
    """A nominal alpha of which each module's own, at most all of ``alpha * M``, is a number of float32."""
    value = positive("alpha", alpha)
    if value * modules > torch.finfo(torch.float32).max:
        raise ValueError(f"alpha={alpha} gives scalings that float32 does not hold: use a number near the rank, {rank}")
    return value


def _draft(sensitivity: Sensitivity, options: AllocationOptions) -> Allocation:
    """An allocation without ranks yet: the modules that are in it, their scores checked."""
    targets = sensitivity.targets
    out = excluded_names(options.exclude_modules, targets)
    scores = {name: score for name, score in sensitivity.scored(options.score).scores.items() if name not in out}
    check_scores(scores)
    return Allocation(
        targets=dict(targets),
        ranks={},
        scalings={},
        scores=scores,
        options=options,
        edits={},
        meta=replace(sensitivity.meta, recipe={"sensitivity": sensitivity.meta.recipe}),
    )
