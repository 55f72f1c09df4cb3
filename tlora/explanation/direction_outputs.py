"""Direction outputs: the tokens that the output of a direction promotes and suppresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from tlora.models.module_result import PLACE_COLUMNS, ModuleResult, module_frame
from tlora.results import Meta


@dataclass(frozen=True, repr=False, eq=False)
class DirectionOutputs(ModuleResult):
    """What directions write to the residual stream: ``W a``, through the final norm and the unembedding (a lens).

    A lens skips all layers between the module and the end, so it is weak in early ones. ``correlation`` says how weak:
    the rank correlation, over the vocabulary, of its logits with the change of the model's own when the vector is added
    to the stream.

    Attributes
    ----------
    targets : dict of Target
        The modules that write to the stream (``o_proj``, ``down_proj`` and the like), by full name in model order.
    kinds : list of str
        Labels of the subspaces.
    promoted : dict of (K, R, k) int64 tensor
        By module, kind and direction: the tokens of the highest logits, highest first.
    suppressed : dict of (K, R, k) int64 tensor
        Those of the lowest, lowest first. The sign of a direction is arbitrary: the two may be exchanged.
    texts : dict of str
        Texts of these tokens by their ids, written as text.
    correlation : dict of (K,) float64 tensor
        Of the first direction of each kind, by module; empty if it was not measured.
    meta : Meta
        Model.

    References
    ----------
    The logit lens: nostalgebraist, "interpreting GPT: the logit lens", 2020. On its weakness in early layers: Belrose
    et al., arXiv 2303.08112.

    Examples
    --------
    >>> outputs = tlora.direction_outputs(model, subspaces, tokenizer=tokenizer, batch=task.calibration(4)[0])
    >>> outputs
    DirectionOutputs(4 modules; rank correlation with the model: layer 0 ..., layer 1 ...)
    >>> outputs.to_frame()["promoted"][0]
    ' w... w...'
    """

    kinds: list[str]
    promoted: dict[str, Int[Tensor, "kinds directions k"]]
    suppressed: dict[str, Int[Tensor, "kinds directions k"]]
    texts: dict[str, str]
    correlation: dict[str, Float[Tensor, " kinds"]]
    meta: Meta

    columns: ClassVar[dict[str, str]] = PLACE_COLUMNS | {
        "kind": "label of the subspace",
        "direction": "number of the direction, from 1 on",
        "promoted": "texts of the tokens of the highest logits, one after the other",
        "suppressed": "texts of the tokens of the lowest logits",
        "correlation": "rank correlation of the lens with the model, of the kind's first direction; NaN if unknown",
    }

    def to_frame(self) -> pd.DataFrame:
        """One row for each module, kind and direction; see ``columns``."""
        rows = [
            (
                name,
                kind,
                direction + 1,
                self._text(self.promoted[name][k, direction]),
                self._text(self.suppressed[name][k, direction]),
                float(self.correlation[name][k]) if self.correlation else np.nan,
            )
            for name in self.names
            for k, kind in enumerate(self.kinds)
            for direction in range(self.promoted[name].shape[1])
        ]
        columns = ["module", "kind", "direction", "promoted", "suppressed", "correlation"]
        return module_frame(self.targets.values()).merge(pd.DataFrame(rows, columns=columns), on="module")

    def by_layer(self) -> pd.DataFrame:
        """Mean ``correlation`` of each ``layer`` and ``kind`` over its modules."""
        frame = self.to_frame().query("direction == 1")
        return frame.groupby(["layer", "kind"], sort=False)["correlation"].mean().reset_index()

    def _text(self, tokens: Tensor) -> str:
        return "".join(self.texts[str(int(token))] for token in tokens)

    def _summary(self) -> str:
        count = f"{len(self.targets)} modules"
        if not self.correlation:
            return f"{count}; weak in early layers, pass batch= to measure how much"
        layers = self.by_layer().groupby("layer")["correlation"].mean()
        ends = " ".join(f"layer {layer} {layers[layer]:.2f}," for layer in (layers.index[0], layers.index[-1]))
        return f"{count}; rank correlation with the model: {ends[:-1]}"
