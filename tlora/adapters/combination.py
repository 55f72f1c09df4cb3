"""Several adapters put together: the new adapter, the rank that each module needs, and what a cut loses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from torch import Tensor

from tlora.adapters.adapter import ComputedAdapter
from tlora.adapters.files import COMBINE
from tlora.results import Meta, Result
from tlora.utils.text import ranks_text


@dataclass(frozen=True, repr=False, eq=False)
class Combination(ComputedAdapter, Result):
    """Several LoRA adapters of one base as one adapter; from `tlora.combine`.

    Attributes
    ----------
    weights : dict of float
        Weight of each adapter, by its folder or name.
    method : str
        How they were combined.
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each module, by full name.
    ranks_before : dict of list of int
        Rank of each module in the adapters, in the order of ``weights``; 0 if an adapter does not have it.
    ranks : dict of int
        Rank of each module in the new adapter.
    same_a : dict of bool
        Whether several adapters have the module, and all of them the same ``A``, or the first rows of the largest.
    errors : dict of float
        Share of the norm of each module's combined update that the cut to its rank loses: in the outputs, if a
        calibration was given, and otherwise in the weights. 0 without a cut.
    head : str
        The adapter whose head is kept; empty if none has one.
    config : dict
        ``adapter_config.json`` of the new adapter.
    adapter : dict of Tensor
        Its tensors, under the names that PEFT saves them by.
    fingerprints : dict of (16,) float32 tensor
        Of the base weights, if known; `tlora.load` recognizes another base by them.
    meta : Meta
        The base model, the task and number of samples of the calibration, and the arguments.

    Examples
    --------
    >>> both = tlora.combine({"adapter": 1.0, "other": 1.0})
    >>> both.to_frame()[["module", "ranks_before", "rank", "same_a", "error"]].shape
    (14, 5)
    >>> both.save_adapter("both").name
    'both'
    """

    weights: dict[str, float]
    method: str
    shapes: dict[str, tuple[int, int]]
    ranks_before: dict[str, list[int]]
    ranks: dict[str, int]
    same_a: dict[str, bool]
    errors: dict[str, float]
    head: str
    config: dict[str, Any]
    adapter: dict[str, Tensor]
    fingerprints: dict[str, Tensor]
    meta: Meta

    _writer: ClassVar[str] = COMBINE
    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "d_out": "outputs of the weight",
        "d_in": "inputs of the weight",
        "ranks_before": "rank in each adapter, 0 if one does not have the module",
        "rank": "rank in the new adapter",
        "parameters": "parameters of A and B of the new adapter",
        "same_a": "whether several adapters have the module with the same A, or the first rows of the largest",
        "error": "norm of what a cut loses divided by that of the combined update; 0 without a cut",
    }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per module; see ``columns``."""
        ranks = list(self.ranks.values())
        return pd.DataFrame(
            {
                "module": self.names,
                "d_out": [d_out for d_out, _ in self.shapes.values()],
                "d_in": [d_in for _, d_in in self.shapes.values()],
                "ranks_before": [" + ".join(map(str, before)) for before in self.ranks_before.values()],
                "rank": ranks,
                "parameters": [rank * sum(shape) for rank, shape in zip(ranks, self.shapes.values(), strict=True)],
                "same_a": list(self.same_a.values()),
                "error": list(self.errors.values()),
            }
        )

    def _summary(self) -> str:
        parts = " and ".join(f"{weight:g} {Path(name).name}" for name, weight in self.weights.items())
        same = sum(self.same_a.values())
        cut = f", loses up to {max(self.errors.values()):.1%} of an update" if any(self.errors.values()) else ""
        head = f", head of {Path(self.head).name}" if self.head else ""
        ranks = ranks_text(self.ranks.values())
        modules = f"{len(self.ranks)} modules of {self.meta.model}"
        return f"{self.method} of {parts}: {modules}, {ranks}, the same A in {same}{cut}{head}"
