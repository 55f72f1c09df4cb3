"""A compressed adapter: which ranks were kept, what that loses at every budget, and the smaller adapter itself."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tlora.adapters.files import ADAPTER_CONFIG, BASE, earlier_files, refuse_trained, write_adapter
from tlora.results import Meta, Result
from tlora.utils.files import replace_files
from tlora.utils.validation import fraction, positive, positive_int

PLAIN, TASK, HELD_OUT = "plain", "task", "held out"
UNIFORM = "uniform"
MEASURES = {PLAIN: "the weights", TASK: "the outputs on the task", HELD_OUT: "the outputs on held-out samples"}
"""What is lost of, in words."""
Shapes = Mapping[str, tuple[int, int]]
Choice = Callable[[Mapping[str, Tensor], Shapes], dict[str, int]]


@dataclass(frozen=True, repr=False, eq=False)
class Compression(Result):
    """A LoRA adapter of less rank, beside the one that it was cut from.

    Attributes
    ----------
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each module, by full name.
    original_ranks, ranks : dict of int
        Rank of each module before and after; 0 where the module is left out.
    cuts : list of str
        How it could be cut: ``"plain"``, by the weights, and with a calibration ``"task"``, by the outputs on the task.
        The last one is how it was cut.
    measures : list of str
        Of what is lost: ``"plain"``, ``"task"`` and ``"held out"``, as far as given.
    energies : dict of (cuts, measures, r) float64 tensor
        What each direction of a cut, the most important first, adds to the squared norm that is kept, in each measure.
    config : dict
        ``adapter_config.json`` of the smaller adapter.
    adapter : dict of Tensor
        Its tensors, under the names that PEFT saves them by; embeddings and heads are those of the original.
    fingerprints : dict of (16,) float32 tensor
        Of the base weights, where the original has them; `tlora.load` tells another base by them.
    meta : Meta
        The base model, the task and number of samples of the calibration, and what was asked for.

    References
    ----------
    See `compress`.
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

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "d_out": "outputs of the weight",
        "d_in": "inputs of the weight",
        "rank_before": "rank of the original",
        "rank": "rank that is kept, 0 where the module is left out",
        "parameters": "of A and B after the cut",
        "energy": "share of the update's squared norm that is kept, in the measure of the cut",
        "error": "norm of what is lost divided by that of the update, in the measure of the cut: sqrt(1 - energy)",
        "held_out_error": "the same in the outputs on held-out samples; NaN without any",
    }
    curve_columns: ClassVar[dict[str, str]] = {
        "cut": "plain or on the task, the budget shared over modules; or uniform, one rank for all",
        "parameters": "of all A and B",
        "share": "parameters divided by those of the original",
        "error": "norm of what is lost divided by that of the update, over all modules",
        "measure": "what the norm is of: weights (plain), outputs on the task, or on held-out samples",
    }

    @property
    def names(self) -> list[str]:
        """Full names of the modules of the original, layer by layer."""
        return list(self.shapes)

    @property
    def parameters(self) -> tuple[int, int]:
        """Parameters of all ``A`` and ``B``, before and after."""
        costs = _costs(self.shapes)
        return _spent(self.original_ranks, costs), _spent(self.ranks, costs)

    def error(self, measure: str | None = None) -> float:
        """Norm of what is lost divided by that of the update, over all modules.

        Parameters
        ----------
        measure : {"plain", "task", "held out"}, optional
            That of the cut by default.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If nothing was measured like that.
        """
        measure = self.cuts[-1] if measure is None else measure
        if measure not in self.measures:
            raise ValueError(f"measure={measure!r}: this compression has {', '.join(map(repr, self.measures))}")
        return _error(self._of(self.cuts[-1], measure), self.ranks)

    def to_frame(self) -> pd.DataFrame:
        """One row a module; see ``columns``."""
        own = self._of(self.cuts[-1], self.cuts[-1])
        shares = [_lost(own[name], self.ranks[name]) for name in self.names]
        held = self._of(self.cuts[-1], HELD_OUT) if HELD_OUT in self.measures else None
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
        """What is lost at every budget: plain, on the task and with one rank for all modules.

        Parameters
        ----------
        points : int
            Budgets, evenly from none to all parameters.

        Returns
        -------
        pandas.DataFrame
            See ``curve_columns``. Errors are in the last of ``measures``, the held-out one where there is one; the
            uniform cut is by the last of ``cuts``.
        """
        budgets = np.linspace(0, self.parameters[0], positive_int(points, "points", 2)).astype(int)
        costs, rows = _costs(self.shapes), []
        for cut in self.cuts:
            own, measured = self._of(cut, cut), self._of(cut, self.measures[-1])
            for budget in budgets:
                ranks = shared_budget(own, costs, int(budget))
                rows.append((cut, _spent(ranks, costs), _error(measured, ranks)))
        measured = self._of(self.cuts[-1], self.measures[-1])
        for k in range(max(self.original_ranks.values()) + 1):
            ranks = {name: min(k, rank) for name, rank in self.original_ranks.items()}
            rows.append((UNIFORM, _spent(ranks, costs), _error(measured, ranks)))
        frame = pd.DataFrame(rows, columns=["cut", "parameters", "error"])
        return frame.assign(share=frame["parameters"] / self.parameters[0], measure=self.measures[-1])[
            list(self.curve_columns)
        ]

    def save_adapter(self, folder: str | os.PathLike[str]) -> Path:
        """Write the smaller adapter as PEFT writes one; `tlora.load`, and with it `export`, read it.

        Parameters
        ----------
        folder : path-like
            Folder to write: ``adapter_config.json`` and ``adapter_model.safetensors``, and the fingerprints of the base
            where they are known. Other files stay.

        Returns
        -------
        pathlib.Path
            The folder.

        Raises
        ------
        FileExistsError
            If the folder holds the record of a training, which would be of another adapter then.
        OSError
            If the disk is full or the place is not writable; an earlier adapter is left as it was.
        """
        refuse_trained(folder)
        prints = {name: values.tolist() for name, values in self.fingerprints.items()}
        with replace_files(folder, last=ADAPTER_CONFIG, earlier=earlier_files(folder)) as fresh:
            write_adapter(fresh, self.adapter, self.config, {BASE: prints} if prints else None)
        return Path(folder)

    def _of(self, cut: str, measure: str) -> dict[str, NDArray[np.float64]]:
        at = self.cuts.index(cut), self.measures.index(measure)
        return {name: found[at].numpy() for name, found in self.energies.items()}

    def _summary(self) -> str:
        before, after = self.parameters
        held = f", {self.error(HELD_OUT):.1%} on held-out samples" if HELD_OUT in self.measures else ""
        return (
            f"{sum(map(bool, self.ranks.values()))} of {len(self.ranks)} modules of {self.meta.model}, "
            f"{after:,} of {before:,} parameters, error {self.error():.1%} of {MEASURES[self.cuts[-1]]}{held}"
        )


def chosen_ranks(
    *, rank: int | Mapping[str, int] | None, parameters: float | None, energy: float | None, error: float | None
) -> Choice:
    """What makes ranks of energies, for the one budget that is given; see `tlora.compress`.

    Raises
    ------
    TypeError, ValueError
        If none or several are given, or one is out of range.
    """
    given = {"rank": rank, "parameters": parameters, "energy": energy, "error": error}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ValueError(f"{' and '.join(names) or 'no budget'} given: pass one of {', '.join(f'{n}=' for n in given)}")
    if isinstance(rank, Mapping):
        return lambda energies, shapes: _at_most(energies, rank)
    if rank is not None:
        most = positive_int(rank, "rank")
        return lambda energies, shapes: {name: min(most, len(found)) for name, found in energies.items()}
    if parameters is not None:
        budget = positive("parameters", parameters)
        if isinstance(budget, float) and not (budget <= 1 or budget.is_integer()):
            raise ValueError(f"parameters={budget}: use a whole number, or a share of at most 1.0")
        return lambda energies, shapes: _within(energies, shapes, budget)
    if energy is not None:
        share = fraction("energy", energy)
        if not share:
            raise ValueError("energy=0 keeps nothing: use a share above 0, such as 0.99")
        return lambda energies, shapes: _keeping(energies, shapes, share)
    assert error is not None
    most_lost = fraction("error", error)
    if most_lost == 1:
        raise ValueError("error=1 loses everything: use a share below 1, such as 0.1")
    return lambda energies, shapes: {
        name: next(k for k in range(len(found) + 1) if _lost(found.numpy(), k) ** 0.5 <= most_lost)
        for name, found in energies.items()
    }


def _at_most(energies: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, int]:
    if strange := [name for name in ranks if name not in energies]:
        raise ValueError(
            f"rank= names {strange[0]}, which the adapter does not change: it has {next(iter(energies))}, ..."
        )
    whole = {name: len(found) for name, found in energies.items()}
    return {name: min(positive_int(ranks.get(name, most), f"rank of {name}", 0), most) for name, most in whole.items()}


def _within(energies: Mapping[str, Tensor], shapes: Shapes, budget: float) -> dict[str, int]:
    costs = _costs(shapes)
    if isinstance(budget, float) and budget <= 1:
        budget = math.floor(budget * sum(costs[name] * len(found) for name, found in energies.items()))
    if budget < (least := min(costs.values())):
        raise ValueError(
            f"parameters={int(budget):,} is less than one rank of the smallest module: use {least:,} or more"
        )
    return shared_budget({name: found.numpy() for name, found in energies.items()}, costs, int(budget))


def shared_budget(energies: Mapping[str, NDArray[np.float64]], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Ranks that a budget of parameters pays for: the directions of most energy per parameter, while they fit."""
    ranks, left = dict.fromkeys(energies, 0), budget
    for name in _order(energies, costs):
        if costs[name] <= left:  # what does not fit once never does: a module's directions cost the same
            ranks[name] += 1
            left -= costs[name]
    return ranks


def _keeping(energies: Mapping[str, Tensor], shapes: Shapes, share: float) -> dict[str, int]:
    """Ranks with the fewest parameters that keep a share of all energy."""
    found, costs = {name: values.numpy() for name, values in energies.items()}, _costs(shapes)
    ranks, left = dict.fromkeys(found, 0), share * sum(values.sum() for values in found.values())
    for name in _order(found, costs):
        if left <= _NOTHING * found[name][0]:
            break
        left -= found[name][ranks[name]]
        ranks[name] += 1
    return ranks


def _order(energies: Mapping[str, NDArray[np.float64]], costs: Mapping[str, int]) -> list[str]:
    """Modules of all directions that hold something, by energy per parameter, falling; within a module as they come."""
    names = list(energies)
    modules = np.repeat(np.arange(len(names)), [len(values) for values in energies.values()])
    values = np.concatenate([np.minimum.accumulate(found) / costs[name] for name, found in energies.items()])
    order = np.argsort(-values, kind="stable")
    return [names[modules[place]] for place in order if values[place] > 0]


_NOTHING = 1e-12
"""Of the largest energy: the rounding of sums."""


def _costs(shapes: Shapes) -> dict[str, int]:
    """Parameters of one rank."""
    return {name: d_out + d_in for name, (d_out, d_in) in shapes.items()}


def _spent(ranks: Mapping[str, int], costs: Mapping[str, int]) -> int:
    return sum(costs[name] * rank for name, rank in ranks.items())


def _lost(energies: NDArray[np.float64], rank: int) -> float:
    """Share of the energy beyond a rank; nothing is lost of nothing."""
    total = energies.sum()
    return float(energies[rank:].sum() / total) if total > 0 else 0.0


def _error(energies: Mapping[str, NDArray[np.float64]], ranks: Mapping[str, int]) -> float:
    total = sum(float(found.sum()) for found in energies.values())
    lost = sum(float(found[ranks[name] :].sum()) for name, found in energies.items())
    return (lost / total) ** 0.5 if total > 0 else 0.0
