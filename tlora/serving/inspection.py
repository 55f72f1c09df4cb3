"""Inspection: what a saved adapter holds, how much of its rank it uses, and what each engine computes from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from torch import Tensor

from tlora.adapters.files import Adapter, by_layer
from tlora.adapters.lora_layers import RANK_COLUMNS, rank_use
from tlora.allocation.footprint import ranks_text
from tlora.results import Meta, Result
from tlora.serving.engines import ENGINES
from tlora.utils.defaults import ENERGY


@dataclass(frozen=True, repr=False, eq=False)
class Inspection(Result):
    """A LoRA adapter as it lies in its folder.

    Attributes
    ----------
    config : dict
        What of ``adapter_config.json`` says how the adapter is computed.
    ranks : dict of int
        Rows of ``A``, by full module name.
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of the update.
    singular_values : dict of (r,) float32 tensor
        Of the update ``s B A`` as PEFT computes it, largest first.
    others : dict of tuple of int
        Tensors that are no ``A`` or ``B`` of a linear layer, with their shapes: heads, embeddings, magnitudes.
    meta : Meta
        That of the run, where the adapter is one of ours; otherwise the base model's name.
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
        "scaling": "s of the update s B A, as PEFT computes it",
        "used_rank": RANK_COLUMNS["used_rank"] + " (99 %)",
        "effective_rank": RANK_COLUMNS["effective_rank"],
        "update_norm": RANK_COLUMNS["update_norm"],
    }
    engine_columns: ClassVar[dict[str, str]] = {
        "engine": "name, with the versions that it holds for",
        "wrong": "modules whose scale is not the one that was trained; none where the adapter is refused",
        "smallest": "smallest ratio of the engine's scale to the trained one",
        "largest": "largest ratio",
        "refused": "why the engine does not take it, or not all of it; empty where it does",
    }

    @property
    def names(self) -> list[str]:
        """Full names of the adapted modules, layer by layer."""
        return list(self.ranks)

    @property
    def scalings(self) -> dict[str, float]:
        """``s`` of each module, as PEFT computes it."""
        return by_layer(Adapter(self.config, self.ranks))

    def rank_use(self, energy: float = ENERGY) -> pd.DataFrame:
        """Was the rank used? Directions that the update needs, against the rank that was given.

        Parameters
        ----------
        energy : float
            Share of the update's squared Frobenius norm that the used directions hold, in (0, 1].

        Returns
        -------
        pandas.DataFrame
            One row a module, as from `TrainingRun.rank_use`.

        Raises
        ------
        ValueError
            If ``energy`` is not in (0, 1].
        """
        return rank_use(self.singular_values, energy)

    def engines(self) -> pd.DataFrame:
        """One row an engine; see ``engine_columns``."""
        adapter, trained = Adapter(self.config, self.ranks, tuple(self.others)), self.scalings
        rows = []
        for engine in ENGINES:
            refused, read = engine.refusal(adapter), engine.scales(adapter)
            ratios = [1.0 if refused else read[n] / trained[n] for n in trained if trained[n]]
            wrong = sum(abs(ratio - 1) > 1e-6 for ratio in ratios)
            rows.append((engine.name, wrong, min(ratios, default=1.0), max(ratios, default=1.0), refused))
        return pd.DataFrame(rows, columns=list(self.engine_columns))

    def to_frame(self) -> pd.DataFrame:
        """One row a module; see ``columns``."""
        shapes = pd.DataFrame(self.shapes.values(), columns=["d_out", "d_in"], dtype=int)
        frame = pd.concat([self.rank_use(), shapes], axis=1)
        return frame.assign(scaling=list(self.scalings.values()))[list(self.columns)]

    def _summary(self) -> str:
        wrong = (self.engines()["wrong"] > 0).sum()
        served = f", {wrong} engines would scale it wrongly" if wrong else ""
        return f"{len(self.ranks)} modules of {self.meta.model}, {ranks_text(self.ranks.values())}{served}"
