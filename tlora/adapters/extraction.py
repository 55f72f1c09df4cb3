"""An extracted adapter: the low-rank part of a full fine-tune, and how much of its change that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tlora.adapters.adapter import ComputedAdapter
from tlora.adapters.compression import MEASURES, PLAIN, TASK
from tlora.adapters.files import EXTRACT
from tlora.models.targets import is_within
from tlora.results import Meta, Result
from tlora.utils.text import ranks_text


@dataclass(frozen=True, repr=False, eq=False)
class Extraction(ComputedAdapter, Result):
    """A LoRA adapter taken from a full fine-tune of a base; from `tlora.extract`.

    Attributes
    ----------
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each module of the adapter, by full name.
    ranks : dict of int
        Rank of each module.
    measures : list of str
        ``"plain"``, in the weights, and with a calibration ``"task"``, in the outputs on the task. The cut is by the
        last one.
    changes : dict of (measures,) float64 tensor
        Squared norm of the whole change of each module, in each measure.
    energies : dict of (measures, r) float64 tensor
        The part of it that each direction of the adapter holds, the most important direction first.
    outside : dict of float
        Squared norm of the change of every other parameter that changed: norms, biases, embeddings, modules that got no
        rank. A head that the base has no weights for is not among them.
    saved : list of str
        Modules that the adapter holds whole: the head of a classifier, and those that were asked for.
    config : dict
        ``adapter_config.json`` of the adapter.
    adapter : dict of Tensor
        Its tensors, under the names that PEFT saves them by.
    fingerprints : dict of (16,) float32 tensor
        Of the base weights; `tlora.load_adapter` recognizes another base by them.
    meta : Meta
        The base model, the task and number of samples of the calibration, and the arguments.

    Examples
    --------
    >>> extraction = tlora.extract("base", "tuned", rank=4, progress=False)
    >>> extraction
    Extraction(14 modules of base, ...)
    >>> extraction.to_frame()[["module", "rank", "share", "energy"]].shape
    (14, 4)
    >>> extraction.rest().columns.tolist()
    ['parameter', 'share', 'saved']
    >>> extraction.save_adapter("extracted").name
    'extracted'
    """

    shapes: dict[str, tuple[int, int]]
    ranks: dict[str, int]
    measures: list[str]
    changes: dict[str, Float[Tensor, " measures"]]
    energies: dict[str, Float[Tensor, "measures r"]]
    outside: dict[str, float]
    saved: list[str]
    config: dict[str, Any]
    adapter: dict[str, Tensor]
    fingerprints: dict[str, Tensor]
    meta: Meta

    _writer: ClassVar[str] = EXTRACT
    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "d_out": "outputs of the weight",
        "d_in": "inputs of the weight",
        "rank": "rank in the adapter",
        "parameters": "parameters of A and B",
        "share": "share of the squared norm of everything that changed, in the weights",
        "energy": "share of the squared norm of the module's change that its rank holds, in the weights",
        "task_energy": "the same in the module's outputs on the task; NaN without a calibration",
    }
    rest_columns: ClassVar[dict[str, str]] = {
        "parameter": "full name",
        "share": "share of the squared norm of everything that changed",
        "saved": "whether the adapter holds its module whole",
    }

    @property
    def held(self) -> dict[str, float]:
        """Share of the squared norm of the change of all modules of the adapter that it holds, by measure."""
        parts = [sum(float(part[place].sum()) for part in self.energies.values()) for place in self._places]
        wholes = [sum(float(whole[place]) for whole in self.changes.values()) for place in self._places]
        return {name: part / whole for name, part, whole in zip(self.measures, parts, wholes, strict=True)}

    def to_frame(self) -> pd.DataFrame:
        """Return one row per module of the adapter; see ``columns``."""
        total, ranks = self._total, list(self.ranks.values())
        shares = {measure: self._shares(measure) for measure in (PLAIN, TASK)}
        return pd.DataFrame(
            {
                "module": self.names,
                "d_out": [d_out for d_out, _ in self.shapes.values()],
                "d_in": [d_in for _, d_in in self.shapes.values()],
                "rank": ranks,
                "parameters": [rank * sum(shape) for rank, shape in zip(ranks, self.shapes.values(), strict=True)],
                "share": [float(self.changes[name][0]) / total for name in self.names],
                "energy": shares[PLAIN],
                "task_energy": shares[TASK],
            }
        )

    def rest(self) -> pd.DataFrame:
        """Return what changed outside the modules of the adapter, the largest first; see ``rest_columns``."""
        rows = [(name, change / self._total, is_within(name, self.saved)) for name, change in self.outside.items()]
        frame = pd.DataFrame(rows, columns=list(self.rest_columns))
        return frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)

    @property
    def left_out(self) -> float:
        """Share of the squared norm of everything that changed that is in no module of the adapter, nor saved."""
        rest = self.rest()
        return float(rest["share"][~rest["saved"].astype(bool)].sum())

    @property
    def _places(self) -> range:
        return range(len(self.measures))

    @property
    def _total(self) -> float:
        return sum(float(whole[0]) for whole in self.changes.values()) + sum(self.outside.values())

    def _shares(self, measure: str) -> list[float]:
        if measure not in self.measures:
            return [np.nan] * len(self.names)
        place = self.measures.index(measure)
        return [float(self.energies[n][place].sum() / self.changes[n][place]) for n in self.names]

    def _summary(self) -> str:
        held = " and ".join(f"{share:.1%} of the change of {MEASURES[m]}" for m, share in self.held.items())
        saved = f", {len(self.saved)} modules whole" if self.saved else ""
        return (
            f"{len(self.ranks)} modules of {self.meta.model}, {ranks_text(self.ranks.values())}{saved}: {held} held, "
            f"{self.left_out:.1%} of the change is outside them"
        )
