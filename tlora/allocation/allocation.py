"""Allocation: the rank and the scale of every module (the result of stage 4 of TLoRA)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import ClassVar, SupportsIndex

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tlora.allocation.constraints import RankLimits, rank_ceiling, rank_floor, rank_limits
from tlora.allocation.footprint import Footprint, footprint
from tlora.allocation.options import AllocationOptions
from tlora.models.experts import expert_names
from tlora.models.module_result import PLACE_COLUMNS, ModuleResult, module_frame
from tlora.models.targets import Target
from tlora.numerics.apportionment import total_cost
from tlora.results import Meta
from tlora.utils.text import ranks_text
from tlora.utils.validation import check_arguments, require_positive_int


@dataclass(frozen=True, repr=False)
class Allocation(ModuleResult):
    """The rank and the scaling of every module, from `allocate` or `Allocation.edit`.

    Attributes
    ----------
    targets : dict of Target
        Every target module by full name, in model order; all experts of a parameter are one, by the parameter's name.
        Modules without an adapter are included: they count in the
        budget and in `lora`.
    ranks : dict of int
        ``r_i`` by full module name, in model order; the mean rank of the experts of a parameter. Excluded and dropped
        modules are not included.
    scalings : dict of float
        ``s_i``, the factor of ``B A``, of the same modules.
    scores : dict of float
        The sensitivity ``S_i`` behind the allocation, nats per token; dropped modules are included.
    options : AllocationOptions
        The arguments of `allocate`.
    edits : dict of int
        Ranks set by hand.
    meta : Meta
        Model, task, sample count and versions of the sensitivity; the recipe holds the options, the edits and the
        sensitivity's own recipe.
    energies : dict of list of float
        With ``by="captured"`` the squared gradient along each known direction of the modules in ``scores``, descending,
        (nats per token and unit of weight) squared; empty by score. The allocation is a function of ``scores``,
        ``energies``, ``options``, ``edits`` and ``expert_gains`` alone.
    expert_gains : dict of (E, k) float64 tensor
        With ``rank_by_expert`` what the experts of each parameter share its ranks by: the score of each, or the squared
        gradient along each of its directions.

    Examples
    --------
    >>> allocation
    Allocation(rank 4, alpha 4 (nominal), 14 modules with ranks ..., 56 of 56 ranks, ... trainable)
    >>> name = allocation.names[0]
    >>> allocation.edit({name: 2}).ranks[name]
    2
    """

    ranks: dict[str, int]
    scalings: dict[str, float]
    scores: dict[str, float]
    options: AllocationOptions
    edits: dict[str, int]
    meta: Meta
    energies: dict[str, list[float]] = field(default_factory=dict)
    expert_gains: dict[str, Float[Tensor, "experts k"]] = field(default_factory=dict)

    columns: ClassVar[dict[str, str]] = PLACE_COLUMNS | {
        "score": "sensitivity S_i, nats per token",
        "captured": "squared gradient along the directions, of each token (kind fisher) or of the mean (kind g), "
        "the square of nats per token and weight; NaN by score",
        "ideal": "rank before limits: in proportion to the score and not rounded, or by captured "
        "gradient, inf if it takes all known directions",
        "rank": "r_i; of experts their mean",
        "change": "r_i minus the nominal rank",
        "alpha": "alpha_i: s_i times the rank that the scaling divides by",
        "scaling": "s_i, the factor of B A",
        "parameters": "entries of B that are not zero for good, r_i times d_out, of all experts",
        "decided_by": "score, captured or uniform, floor (min_rank), ceiling (max_rank, the matrix or the known "
        "directions), pinned, or edited",
    }

    @property
    def excluded(self) -> list[str]:
        """Full names of the excluded modules, in model order."""
        return [name for name in self.targets if name not in self.scores]

    @property
    def dropped(self) -> list[str]:
        """Full names of the modules that share the budget but get no rank, which ``min_rank=0`` allows."""
        return [name for name in self.scores if name not in self.ranks]

    @property
    def rank(self) -> int:
        """Nominal rank: the rank of every module in a uniform allocation."""
        return self.options.rank

    @property
    def alpha(self) -> int | float:
        """Nominal alpha: the lower bound of ``alpha_i``."""
        return self.options.nominal_alpha

    @property
    def budget(self) -> str:
        """What the budget counts: ``"ranks"``, spent exactly, or ``"parameters"``, an upper bound."""
        return self.options.budget

    @property
    def budget_total(self) -> int:
        """Cost of the uniform allocation over all modules, excluded ones too: ranks, or entries of ``B``."""
        return self.options.budget_total(self.targets)

    @property
    def budget_used(self) -> int:
        """Cost of this allocation; equal to ``budget_total`` if ranks are counted."""
        return total_cost(list(self.ranks.values()), self.options.costs([self.targets[name] for name in self.ranks]))

    @property
    def decided_by(self) -> dict[str, str]:
        """What decided each rank: score, captured (energy) or uniform, floor, ceiling, pinned or edited."""
        rule = self.options.by if self.options.adapt_ranks else "uniform"
        ranks = [self.ranks.get(name, 0) for name in self.scores]
        reasons = self.limits.reasons(ranks, list(self.ideals.values()), rule)
        by_hand = dict.fromkeys(self.options.pinned, "pinned") | dict.fromkeys(self.edits, "edited")
        decisions = dict(zip(self.scores, reasons, strict=True)) | by_hand
        return {name: decisions[name] for name in self.ranks}

    @cached_property
    def expert_ranks(self) -> dict[str, list[int]]:
        """Rank of each expert, by the parameter that holds it; their mean is the parameter's rank."""
        targets = {name: self.targets[name] for name in self.ranks if self.targets[name].experts > 1}
        return {name: self._share_rank(name) for name in targets}

    def _share_rank(self, name: str) -> list[int]:
        """The rank of a parameter, shared by its experts by the rule and within the limits that it came by itself."""
        rank, experts = self.ranks[name], self.targets[name].experts
        if not self.expert_gains:
            return [rank] * experts
        least = min(rank, rank_floor(self.options, name))
        most = rank_ceiling(self.options, self.targets[name], self.energies.get(name)).rank
        limits = RankLimits([least] * experts, [most] * experts, [1] * experts, experts * rank)
        gains = dict(zip(expert_names(name, experts), self.expert_gains[name].tolist(), strict=True))
        return limits.share_ranks(self.options, {expert: values[0] for expert, values in gains.items()}, gains)

    @property
    def stored_ranks(self) -> dict[str, int]:
        """Rank that PEFT holds by full module name: of a parameter with experts the largest of theirs."""
        return self.ranks | {name: max(ranks) for name, ranks in self.expert_ranks.items()}

    @property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        """Entries of ``B`` and of ``A`` that one rank of a module costs."""
        return {name: (t.experts * t.d_out, t.experts * t.d_in) for name, t in self.targets.items()}

    def footprint(self, *, freeze_a: bool = True) -> Footprint:
        """Parameters and bytes of the adapter; with ``freeze_a`` only ``B`` is trained.

        With ``rank_by_expert`` it holds rows and columns that stay zero: they are counted, as they take memory.
        """
        return footprint(self._sizes, self.stored_ranks, freeze_a=freeze_a)

    @property
    def trainable_parameters(self) -> int:
        """Entries of all ``B``: ``sum r_i d_out_i``, with the largest rank of the experts of a parameter for all."""
        return self.footprint().trainable_parameters

    @property
    def zero_parameters(self) -> int:
        """Those of ``trainable_parameters`` that stay zero: columns of ``B`` beyond the own rank of an expert."""
        return self.trainable_parameters - footprint(self._sizes, self.ranks, freeze_a=True).trainable_parameters

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
        """Size of plain LoRA: the nominal rank in all modules, excluded ones too; ``A`` and ``B`` trained."""
        return footprint(self._sizes, dict.fromkeys(self.targets, self.rank), freeze_a=False)

    def edit(self, ranks: Mapping[str, SupportsIndex | None]) -> Allocation:
        """Set ranks by hand; the other modules share the rest of the same budget by the same rule.

        Parameters
        ----------
        ranks : mapping of int or None
            Rank by full module name; it replaces ``pinned`` and ``min_rank`` of that module. None removes an earlier
            edit. Edits of other modules stay.

        Returns
        -------
        Allocation
            A new allocation that records the edits.

        Raises
        ------
        KeyError
            If there is no such module.
        ValueError
            If the module is excluded, or the budget or the matrix does not allow the ranks; the message gives the
            nearest possible rank.
        """
        check_arguments(Allocation.edit, locals())
        edits = dict(self.edits)
        for name, rank in ranks.items():
            if rank is not None:
                edits[name] = require_positive_int(rank, f"rank of {name}")
            elif name not in self.scores:
                raise KeyError(f"{name!r} is not a module of this allocation: see .scores for the names")
            else:
                edits.pop(name, None)
        return edit_ranks(self, edits)

    @cached_property
    def limits(self) -> RankLimits:
        """Least and most rank of every module that is not excluded, in model order, and the budget."""
        return rank_limits(self.options, list(self.scores), self.targets, self.edits, self.energies)

    def compare(self, other: Allocation) -> pd.DataFrame:
        """Compare the ranks and scalings with those of another allocation of the same model.

        Parameters
        ----------
        other : Allocation
            The allocation to compare with.

        Returns
        -------
        pandas.DataFrame
            One row for each module that has a rank in either allocation: ``module``, ``layer``, ``projection``;
            ``rank``, ``other_rank`` and ``rank_change``; ``scaling``, ``other_scaling`` and ``scaling_change``;
            ``parameters_change`` (entries of ``B``). A change is this allocation minus the other; a module without an
            adapter has rank and scaling 0.

        Raises
        ------
        ValueError
            If the allocations are of models with other modules or shapes.
        """
        check_arguments(Allocation.compare, locals())
        if self.shapes != other.shapes:
            raise ValueError(
                "the allocations are of different models or target modules: compare two allocations of the same"
            )
        targets = [target for name, target in self.targets.items() if name in self.ranks or name in other.ranks]
        table = module_frame(targets)
        for column in ("rank", "scaling"):
            for label, side in ((column, self), (f"other_{column}", other)):
                values = getattr(side, f"{column}s")
                table[label] = [values.get(target.name, 0) for target in targets]
            table[f"{column}_change"] = table[column] - table[f"other_{column}"]
        return table.assign(
            parameters_change=table["rank_change"] * [target.experts * target.d_out for target in targets]
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each module with an adapter; see ``columns``."""
        scores = list(self.scores.values())
        alphas = dict(zip(self.scores, self.options.alphas(scores), strict=True))
        return module_frame(self.targets[name] for name in self.ranks).assign(
            score=[self.scores[name] for name in self.ranks],
            captured=[self._captured(name) for name in self.ranks],
            ideal=[self.ideals[name] for name in self.ranks],
            rank=list(self.ranks.values()),
            change=[rank - self.rank for rank in self.ranks.values()],
            alpha=[alphas[name] for name in self.ranks],
            scaling=list(self.scalings.values()),
            parameters=[rank * self._sizes[name][0] for name, rank in self.ranks.items()],
            decided_by=list(self.decided_by.values()),
        )

    def by_expert(self) -> pd.DataFrame:
        """List the rank of each expert.

        Returns
        -------
        pandas.DataFrame
            One row for each expert of a parameter with an adapter: ``module``, the parameter, ``layer``,
            ``projection``, ``expert``, ``rank``, and ``stored_rank``, which PEFT holds for all experts of a parameter.
            The rows of ``A`` and columns of ``B`` between the two are zero.
        """
        rows = [(name, expert, rank) for name, ranks in self.expert_ranks.items() for expert, rank in enumerate(ranks)]
        stored = self.stored_ranks
        return module_frame(self.targets[name] for name, _, _ in rows).assign(
            expert=[expert for _, expert, _ in rows],
            rank=[rank for _, _, rank in rows],
            stored_rank=[stored[name] for name, _, _ in rows],
        )

    def by_projection(self) -> pd.DataFrame:
        """Summarize the allocation by projection.

        Returns
        -------
        pandas.DataFrame
            One row for each projection: ``projection``; ``modules`` with an adapter; ``ranks``, their sum; ``uniform``,
            the sum in the uniform allocation, excluded modules included; ``least``, ``mean`` and ``most`` rank;
            ``least_scaling``, ``mean_scaling`` and ``most_scaling``; ``parameters`` of ``B``.

        Examples
        --------
        >>> allocation.by_projection()[["projection", "modules", "uniform"]].head(2)
          projection  modules  uniform
        0     q_proj        2        8
        1     k_proj        2        8
        """
        members = pd.Series(self.projections).groupby(self.projections, sort=False).size()
        groups = self.to_frame().groupby("projection", sort=False)
        table = groups.agg(
            modules=("rank", "size"),
            ranks=("rank", "sum"),
            least=("rank", "min"),
            mean=("rank", "mean"),
            most=("rank", "max"),
            least_scaling=("scaling", "min"),
            mean_scaling=("scaling", "mean"),
            most_scaling=("scaling", "max"),
            parameters=("parameters", "sum"),
        ).reindex(members.index)
        table.insert(2, "uniform", members * self.rank)
        counts = ["modules", "ranks", "parameters"]
        return (
            table.fillna(dict.fromkeys(counts, 0))
            .astype(dict.fromkeys(counts, int))
            .rename_axis("projection")
            .reset_index()
        )

    def costs(self, *, freeze_a: bool = True) -> pd.DataFrame:
        """Compare the size of the adapter with that of plain LoRA of the nominal rank.

        Parameters
        ----------
        freeze_a : bool
            Whether only ``B`` is trained; plain LoRA trains ``A`` too.

        Returns
        -------
        pandas.DataFrame
            Rows ``trainable_parameters``, ``parameters``, ``adapter_bytes`` and ``optimizer_bytes``; columns
            ``allocation``, ``lora`` and ``ratio``.

        Examples
        --------
        >>> costs = allocation.costs()
        >>> bool(costs.loc["optimizer_bytes", "ratio"] < 0.6)
        True
        """
        names = ["trainable_parameters", "parameters", "adapter_bytes", "optimizer_bytes"]
        sizes = {"allocation": self.footprint(freeze_a=freeze_a), "lora": self.lora}
        table = pd.DataFrame({label: [getattr(size, name) for name in names] for label, size in sizes.items()}, names)
        return table.assign(ratio=table["allocation"] / table["lora"])

    @cached_property
    def ideals(self) -> dict[str, float]:
        """Rank before limits, of every module that is not excluded: the column ``ideal``. Edits do not change it."""
        costs = self.options.costs([self.targets[name] for name in self.scores])
        total = self.budget_total
        if self.options.is_captured:
            known = [len(self.energies[name]) for name in self.scores]
            shapes = self.shapes
            full = [min(shapes[name]) for name in self.scores]
            limits = RankLimits([0] * len(known), known, costs, total)
            ranks = limits.share_ranks(self.options, self.scores, self.energies)
            ideals = [math.inf if rank == k < d else rank for rank, k, d in zip(ranks, known, full, strict=True)]
            return dict(zip(self.scores, ideals, strict=True))
        weights = self.options.rank_weights(list(self.scores.values()))
        cost = math.fsum(w * cost for w, cost in zip(weights, costs, strict=True))
        return {name: total * weight / cost for name, weight in zip(self.scores, weights, strict=True)}

    def _captured(self, name: str) -> float:
        """The squared gradient along the directions of a module; NaN by score."""
        if not self.energies:
            return math.nan
        if not self.expert_gains or name not in self.expert_ranks:
            return math.fsum(self.energies[name][: self.ranks[name]])
        gains = zip(self.expert_gains[name].tolist(), self.expert_ranks[name], strict=True)
        return math.fsum(value for values, rank in gains for value in values[:rank])

    def _summary(self) -> str:
        edits = f", {len(self.edits)} edited" if self.edits else ""
        dropped = f", {len(self.dropped)} dropped" if self.dropped else ""
        by = " by captured gradient" if self.options.is_captured else ""
        zero = f", {self.zero_parameters:,} of them zero for good" if self.zero_parameters else ""
        return (
            f"rank {self.rank}, alpha {self.alpha:g} ({self.options.scaling}), {len(self.ranks)} modules with "
            f"{ranks_text(self.ranks.values())}{by}{dropped}, "
            f"{self.budget_used:,} of {self.budget_total:,} {self.options.unit}, "
            f"{self.trainable_parameters:,} trainable{zero}{edits}"
        )


def edit_ranks(allocation: Allocation, edits: dict[str, int]) -> Allocation:
    """Return the allocation with ``edits`` as all of its ranks set by hand, in place of those that it has."""
    parts = allocation.targets, allocation.scores, allocation.options, edits, allocation.meta, allocation.energies
    edited = apportion_ranks(*parts, allocation.expert_gains)
    if "ideals" in vars(allocation):
        vars(edited)["ideals"] = allocation.ideals  # what the property would compute again
    return edited


def apportion_ranks(
    targets: Mapping[str, Target],
    scores: Mapping[str, float],
    options: AllocationOptions,
    edits: dict[str, int],
    meta: Meta,
    energies: dict[str, list[float]],
    expert_gains: dict[str, Tensor],
) -> Allocation:
    """Work out ranks and scalings from the scores, or energies, of the modules that are not excluded."""
    limits = rank_limits(options, list(scores), targets, edits, energies)
    apportioned = limits.share_ranks(options, scores, energies)
    ranks = {name: rank for name, rank in zip(scores, apportioned, strict=True) if rank}
    divisors = ranks if options.scaling == "allocated" else dict.fromkeys(ranks, options.rank)
    alphas = dict(zip(scores, options.alphas(list(scores.values())), strict=True))
    scalings = {name: alphas[name] / divisor for name, divisor in divisors.items()}
    meta = replace(meta, recipe=meta.recipe | asdict(options) | {"edits": edits})
    allocation = Allocation(dict(targets), ranks, scalings, dict(scores), options, edits, meta, energies, expert_gains)
    vars(allocation)["limits"] = limits  # what the property would compute again
    return allocation
