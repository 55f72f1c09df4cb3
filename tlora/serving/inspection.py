"""Inspection: what a saved adapter holds, how much of its rank it uses, and what each engine computes from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from torch import Tensor

from tlora.adapters.peft_config import module_scalings
from tlora.adapters.rank_use import RANK_COLUMNS, rank_use
from tlora.results import Meta, Result
from tlora.serving.engines import ENGINES, AdapterLayout
from tlora.utils.defaults import ENERGY
from tlora.utils.text import ranks_text


@dataclass(frozen=True, repr=False, eq=False)
class Inspection(Result):
    """The contents of a saved LoRA adapter; from `tlora.inspect`.

    Attributes
    ----------
    config : dict
        Entries of ``adapter_config.json`` that determine what the adapter computes.
    ranks : dict of int
        Rows of ``A``, by full module name.
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of the update.
    singular_values : dict of (r,) float32 tensor
        Singular values of the update ``s B A`` as PEFT computes it, largest first.
    others : dict of tuple of int
        Shapes of the tensors that are not ``A`` or ``B`` of a linear layer: heads, embeddings, magnitudes.
    meta : Meta
        That of the training run, if `TrainingRun.save` wrote the adapter; otherwise the base model's name.

    Examples
    --------
    >>> inspection = tlora.inspect("adapter")
    >>> inspection
    Inspection(14 modules of ..., ranks ...)
    >>> inspection.to_frame()[["module", "rank", "scaling", "used_rank"]].shape
    (14, 4)
    >>> inspection.engines().loc[0, "engine"]
    'PEFT 0.15 and later'
    """

    config: dict[str, Any]
    ranks: dict[str, int]
    shapes: dict[str, tuple[int, int]]
    singular_values: dict[str, Tensor]
    others: dict[str, tuple[int, ...]]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": RANK_COLUMNS["module"],
        "d_out": "outputs of the weight",
        "d_in": "inputs of the weight",
        "rank": RANK_COLUMNS["rank"],
        "scaling": "factor s of the update s B A, as PEFT computes it",
        "used_rank": RANK_COLUMNS["used_rank"] + " (99 %)",
        "effective_rank": RANK_COLUMNS["effective_rank"],
        "update_norm": RANK_COLUMNS["update_norm"],
    }
    engine_columns: ClassVar[dict[str, str]] = {
        "engine": "name, with the versions that it holds for",
        "wrong": "modules with another scale than they were trained with; 0 if the adapter is refused",
        "smallest": "smallest ratio of the engine's scale to the trained one",
        "largest": "largest ratio",
        "refused": "why the engine refuses it or ignores a part of it; empty if it does not",
    }

    @property
    def names(self) -> list[str]:
        """Full names of the adapted modules, layer by layer."""
        return list(self.ranks)

    @property
    def scalings(self) -> dict[str, float]:
        """Scaling ``s`` of each module, as PEFT computes it."""
        return module_scalings(self.config, self.ranks)

    def rank_use(self, energy: float = ENERGY) -> pd.DataFrame:
        """Compare the rank of each module with the directions that hold the share ``energy`` of its update.

        As `TrainingRun.rank_use`.
        """
        return rank_use(self.singular_values, energy)

    def engines(self) -> pd.DataFrame:
        """Return what each engine would compute, one row an engine; see ``engine_columns``."""
        adapter, trained = AdapterLayout(self.config, self.ranks, tuple(self.others)), self.scalings
        rows = []
        for engine in ENGINES:
            refusal, scales = engine.refusal(adapter), engine.scales(adapter)
            ratios = [1.0 if refusal else scales[n] / trained[n] for n in trained if trained[n]]
            wrong = sum(abs(ratio - 1) > 1e-6 for ratio in ratios)
            rows.append((engine.name, wrong, min(ratios, default=1.0), max(ratios, default=1.0), refusal))
        return pd.DataFrame(rows, columns=list(self.engine_columns))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per module; see ``columns``."""
        shapes = pd.DataFrame(self.shapes.values(), columns=["d_out", "d_in"], dtype=int)
        frame = pd.concat([self.rank_use(), shapes], axis=1)
        return frame.assign(scaling=list(self.scalings.values()))[list(self.columns)]

    def _summary(self) -> str:
        wrong = (self.engines()["wrong"] > 0).sum()
        warning = f", {wrong} engines would scale it wrongly" if wrong else ""
        return f"{len(self.ranks)} modules of {self.meta.model}, {ranks_text(self.ranks.values())}{warning}"
