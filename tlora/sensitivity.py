"""Sensitivity: how much the loss of each sample listens to each module (stage 2 of TLoRA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pandas as pd
import torch
from jaxtyping import Float

from tlora.storage import Meta, Result


@dataclass(frozen=True, repr=False)
class Sensitivity(Result):
    """Sensitivity scores of the target modules, sample by sample.

    ``S_i = (1/N) sum_n mean_jk |W_jk (dL_n/dW)_jk|``, with ``L_n`` the mean token loss of sample ``n`` alone.

    Attributes
    ----------
    scores : dict of float
        ``S_i`` by full module name, in model order; nats per token.
    per_sample : (N, M) float32 tensor
        The summand of each sample, in the order of the input; columns in the order of ``scores``.
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each module.
    layers : dict of int
        Index of the block that a module is in.
    projections : dict of str
        What a module is within its block, e.g. ``"q_proj"``.
    meta : Meta
        Model, task, sample count.

    References
    ----------
    TLoRA, arXiv 2604.18124, the importance score of its section on rank allocation.
    """

    per_sample: Float[torch.Tensor, "samples modules"]
    shapes: dict[str, tuple[int, int]]
    layers: dict[str, int]
    projections: dict[str, str]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "layer": "index of the block",
        "projection": "role within the block",
        "score": "S_i, nats per token",
        "share": "S_i divided by the sum over modules",
        "deviation": "standard deviation of the per-sample scores",
    }

    @property
    def names(self) -> list[str]:
        """Full module names, in model order."""
        return list(self.shapes)

    @property
    def scores(self) -> dict[str, float]:
        """``S_i`` by full module name: the mean of ``per_sample`` over samples."""
        return dict(zip(self.names, self.per_sample.double().mean(0).tolist(), strict=True))

    def to_frame(self) -> pd.DataFrame:
        """One row a module; see ``columns``."""
        scores = pd.Series(self.scores)
        return pd.DataFrame(
            {
                "module": self.names,
                "layer": list(self.layers.values()),
                "projection": list(self.projections.values()),
                "score": scores.to_numpy(),
                "share": (scores / scores.sum()).to_numpy(),
                "deviation": self.per_sample.double().std(0, correction=0).numpy(),
            }
        )

    def _summary(self) -> str:
        scores = self.scores
        top = max(scores, key=scores.__getitem__)
        return f"{len(scores)} modules, {len(self.per_sample)} samples, highest {top} at {scores[top]:.3g}"

    def _pack(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        values = {"shapes": self.shapes, "layers": self.layers, "projections": self.projections}
        return {"per_sample": self.per_sample}, values

    @classmethod
    def _unpack(cls, tensors: dict[str, torch.Tensor], values: dict[str, Any], meta: Meta) -> Self:
        shapes = {name: (int(o), int(i)) for name, (o, i) in values["shapes"].items()}
        return cls(tensors["per_sample"], shapes, values["layers"], values["projections"], meta)
