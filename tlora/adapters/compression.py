"""A compressed adapter: the ranks that are kept, what that loses at every budget, and the smaller adapter itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tlora.adapters.adapter import ComputedAdapter
from tlora.adapters.files import COMPRESS
from tlora.results import Meta, Result
from tlora.utils.validation import require_fraction, require_positive, require_positive_int

PLAIN, TASK, HELD_OUT = "plain", "task", "held out"
UNIFORM = "uniform"
MEASURES = {PLAIN: "the weights", TASK: "the outputs on the task", HELD_OUT: "the outputs on held-out samples"}
"""The quantity each measure's error refers to."""
Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, repr=False, eq=False)
class Compression(ComputedAdapter, Result):
    """A LoRA adapter of lower rank, cut from another one; from `tlora.compress`.

    Attributes
    ----------
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each module, by full name; of the experts of a parameter their sums.
    original_ranks, ranks : dict of int
        Rank of each module before and after; 0 for a module that is dropped.
    cuts : list of str
        Ways to cut it: ``"plain"``, by the weights, and with a calibration ``"task"``, by the outputs on the task. The
        last one was used.
    measures : list of str
        Measures of the loss: ``"plain"``, and ``"task"`` and ``"held out"`` if calibrations were given.
    energies : dict of (cuts, measures, r) float64 tensor
        Contribution of each direction of a cut to the squared norm that is kept, in each measure, the most important
        direction first.
    config : dict
        ``adapter_config.json`` of the smaller adapter.
    adapter : dict of Tensor
        Its tensors, under the names that PEFT saves them by; embeddings and heads are those of the original.
    fingerprints : dict of (16,) float32 tensor
        Of the base weights, if the original has them; `tlora.load_adapter` recognizes another base by them.
    meta : Meta
        The base model, the task and number of samples of the calibration, and the budget.

    Examples
    --------
    >>> half = tlora.compress("adapter", parameters=0.5)
    >>> half
    Compression(... parameters, error ... of the weights)
    >>> half.to_frame()[["module", "rank_before", "rank", "error"]].shape
    (14, 4)
    >>> half.save_adapter("half").name
    'half'
    """

    shapes: dict[str, tuple[int, int]]
    original_ranks: dict[str, int]
    ranks: dict[str, int]
    cuts: list[str]
    measures: list[str]
    energies: dict[str, Float[Tensor, "cuts measures rank"]]
    config: dict[str, Any]
    adapter: dict[str, Tensor]
    fingerprints: dict[str, Tensor]
    meta: Meta

    _writer: ClassVar[str] = COMPRESS
    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "d_out": "outputs of the weight, of all experts of a parameter",
        "d_in": "inputs of the weight, of all experts of a parameter",
        "rank_before": "rank of the original",
        "rank": "rank that is kept, 0 if the module is dropped",
        "parameters": "parameters of A and B after the cut",
        "energy": "share of the update's squared norm that is kept, in the measure of the cut",
        "error": "norm of what is lost divided by that of the update, in the measure of the cut: sqrt(1 - energy)",
        "held_out_error": "the same in the outputs on held-out samples; NaN without any",
    }
    curve_columns: ClassVar[dict[str, str]] = {
        "cut": "plain or task, with the budget shared over modules; or uniform, one rank for all modules",
        "parameters": "parameters of all A and B",
        "share": "parameters divided by those of the original",
        "error": "norm of what is lost divided by that of the update, over all modules",
        "measure": "what the norm is of: weights (plain), outputs on the task, or on held-out samples",
    }

    @property
    def parameters(self) -> tuple[int, int]:
        """Parameters of all ``A`` and ``B``, before and after."""
        costs = _costs(self.shapes)
        return _spent(self.original_ranks, costs), _spent(self.ranks, costs)

    def error(self, measure: str | None = None) -> float:
        """Return the norm of what is lost divided by that of the update, over all modules.

        Parameters
        ----------
        measure : {"plain", "task", "held out"}, optional
            By default that of the cut.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If this measure was not taken.
        """
        measure = self.cuts[-1] if measure is None else measure
        if measure not in self.measures:
            raise ValueError(f"measure={measure!r}: this compression has {', '.join(map(repr, self.measures))}")
        return _error(self._energies(self.cuts[-1], measure), self.ranks)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per module; see ``columns``."""
        cut_energies = self._energies(self.cuts[-1], self.cuts[-1])
        shares = [_lost(cut_energies[name], self.ranks[name]) for name in self.names]
        held = self._energies(self.cuts[-1], HELD_OUT) if HELD_OUT in self.measures else None
        costs = _costs(self.shapes)
        return pd.DataFrame(
            {
                "module": self.names,
                "d_out": [d_out for d_out, _ in self.shapes.values()],
                "d_in": [d_in for _, d_in in self.shapes.values()],
                "rank_before": list(self.original_ranks.values()),
                "rank": list(self.ranks.values()),
                "parameters": [costs[name] * self.ranks[name] for name in self.names],
                "energy": [1 - share for share in shares],
                "error": np.sqrt(shares),
                "held_out_error": [
                    math.nan if held is None else _lost(held[n], self.ranks[n]) ** 0.5 for n in self.names
                ],
            }
        )

    def curves(self, points: int = 60) -> pd.DataFrame:
        """Return the loss at every budget: plain, on the task, and with one rank for all modules.

        Parameters
        ----------
        points : int
            Number of budgets, evenly spaced from none to all parameters.

        Returns
        -------
        pandas.DataFrame
            See ``curve_columns``. Errors are in the last of ``measures``; the uniform cut is by the last of ``cuts``.
        """
        budgets = np.linspace(0, self.parameters[0], require_positive_int(points, "points", 2)).astype(int)
        costs, rows = _costs(self.shapes), []
        for cut in self.cuts:
            cut_energies, measured = self._energies(cut, cut), self._energies(cut, self.measures[-1])
            for budget in budgets:
                ranks = share_budget(cut_energies, costs, int(budget))
                rows.append((cut, _spent(ranks, costs), _error(measured, ranks)))
        measured = self._energies(self.cuts[-1], self.measures[-1])
        for k in range(max(self.original_ranks.values()) + 1):
            ranks = {name: min(k, rank) for name, rank in self.original_ranks.items()}
            rows.append((UNIFORM, _spent(ranks, costs), _error(measured, ranks)))
        frame = pd.DataFrame(rows, columns=["cut", "parameters", "error"])
        return frame.assign(share=frame["parameters"] / self.parameters[0], measure=self.measures[-1])[
            list(self.curve_columns)
        ]

    def _energies(self, cut: str, measure: str) -> dict[str, NDArray[np.float64]]:
        at = self.cuts.index(cut), self.measures.index(measure)
        return {name: tensor[at].numpy() for name, tensor in self.energies.items()}

    def _summary(self) -> str:
        before, after = self.parameters
        held = f", {self.error(HELD_OUT):.1%} on held-out samples" if HELD_OUT in self.measures else ""
        return (
            f"{sum(map(bool, self.ranks.values()))} of {len(self.ranks)} modules of {self.meta.model}, "
            f"{after:,} of {before:,} parameters, error {self.error():.1%} of {MEASURES[self.cuts[-1]]}{held}"
        )


def check_budget(budget: Mapping[str, Any]) -> None:
    """Refuse anything but one budget, by the arguments of `tlora.compress`."""
    names = [name for name, value in budget.items() if value is not None]
    if len(names) != 1:
        options = ", ".join(f"{name}=" for name in budget)
        raise ValueError(f"{' and '.join(names) or 'no budget'} given: pass one of {options}")
    (name,) = names
    if name in ("energy", "error"):
        require_fraction(budget[name], name)
    elif not isinstance(budget[name], Mapping):
        require_positive(budget[name], name)


def choose_ranks(
    energies: Mapping[str, Tensor],
    shapes: Shapes,
    *,
    rank: int | Mapping[str, int] | None,
    parameters: float | None,
    energy: float | None,
    error: float | None,
) -> dict[str, int]:
    """Return the ranks that the one budget pays for; see `tlora.compress`.

    ``energies`` are what each direction of a module adds to the squared norm that is kept, (r,), the largest first.
    """
    values, costs = {name: tensor.numpy() for name, tensor in energies.items()}, _costs(shapes)
    whole = {name: len(array) for name, array in values.items()}
    if isinstance(rank, Mapping):
        if unknown := [name for name in rank if name not in whole]:
            raise ValueError(f"rank= names {unknown[0]}, which the adapter does not change: it has {next(iter(whole))}")
        return {
            name: min(require_positive_int(rank.get(name, r), f"rank of {name}", 0), r) for name, r in whole.items()
        }
    if rank is not None:
        return {name: min(require_positive_int(rank, "rank"), r) for name, r in whole.items()}
    if parameters is not None:
        is_share = not isinstance(parameters, Integral) and parameters <= 1
        budget = math.floor(parameters * _spent(whole, costs)) if is_share else int(parameters)
        if budget < (least := min(costs.values())):
            raise ValueError(f"parameters={budget:,} do not pay for one rank of any module: use {least:,} or more")
        return share_budget(values, costs, budget)
    if energy is not None:
        return _keep_energy(values, costs, energy)
    assert error is not None
    return {
        name: next(k for k in range(len(array) + 1) if _lost(array, k) ** 0.5 <= error)
        for name, array in values.items()
    }


def share_budget(energies: Mapping[str, NDArray[np.float64]], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Return the ranks that a budget of parameters pays for, taking directions of most energy per parameter first."""
    ranks, left = dict.fromkeys(energies, 0), budget
    for name in _order(energies, costs):
        if costs[name] <= left:  # once one does not fit, no later one does: a module's directions cost the same
            ranks[name] += 1
            left -= costs[name]
    return ranks


def _keep_energy(energies: Mapping[str, NDArray[np.float64]], costs: Mapping[str, int], share: float) -> dict[str, int]:
    """Return the ranks with the fewest parameters that keep a share of all energy."""
    ranks, left = dict.fromkeys(energies, 0), share * sum(values.sum() for values in energies.values())
    for name in _order(energies, costs):
        if left <= _NOTHING * energies[name][0]:
            break
        left -= energies[name][ranks[name]]
        ranks[name] += 1
    return ranks


def _order(energies: Mapping[str, NDArray[np.float64]], costs: Mapping[str, int]) -> list[str]:
    """Return the module of each direction with energy, in decreasing order of energy per parameter."""
    names = list(energies)
    modules = np.repeat(np.arange(len(names)), [len(values) for values in energies.values()])
    values = np.concatenate([np.minimum.accumulate(array) / costs[name] for name, array in energies.items()])
    order = np.argsort(-values, kind="stable")
    return [names[modules[place]] for place in order if values[place] > 0]


_NOTHING = 1e-12
"""Share of the largest energy below which a remainder is rounding of sums."""


def _costs(shapes: Shapes) -> dict[str, int]:
    """Return the parameters of one rank, by module."""
    return {name: d_out + d_in for name, (d_out, d_in) in shapes.items()}


def _spent(ranks: Mapping[str, int], costs: Mapping[str, int]) -> int:
    return sum(costs[name] * rank for name, rank in ranks.items())


def _lost(energies: NDArray[np.float64], rank: int) -> float:
    """Return the share of the energy beyond a rank; 0 if there is no energy."""
    total = energies.sum()
    return float(energies[rank:].sum() / total) if total > 0 else 0.0


def _error(energies: Mapping[str, NDArray[np.float64]], ranks: Mapping[str, int]) -> float:
    total = sum(float(array.sum()) for array in energies.values())
    lost = sum(float(array[ranks[name] :].sum()) for name, array in energies.items())
    return (lost / total) ** 0.5 if total > 0 else 0.0
