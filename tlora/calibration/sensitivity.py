"""Sensitivity: how sensitive the loss is to each module, sample by sample (stage 2 of TLoRA)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from tlora.models.experts import is_expert, parameter_name
from tlora.models.module_result import PLACE_COLUMNS, ModuleResult, module_frame
from tlora.models.targets import join_experts
from tlora.numerics.statistics import bootstrap_means, gini, interval
from tlora.results import Meta
from tlora.utils.validation import require_choice, require_confidence, require_positive_int

SCORES = ("mean", "sum", "per_parameter")


@dataclass(frozen=True, repr=False, eq=False)
class Sensitivity(ModuleResult):
    """Sensitivity scores of the target modules, sample by sample.

    ``S_i = (1/N) sum_n mean_jk |W_jk (dL_n/dW)_jk|``, with ``L_n`` the mean token loss of sample ``n`` alone.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    per_sample : (N, M) float32 tensor
        The summand of each sample, nats per token, in the order of the input; columns in the order of ``targets``.
    meta : Meta
        Model, task, sample count.
    expert_scores : dict of list of float
        Of `by_parameter`: the score ``S_i`` of each expert, by the parameter that holds it, nats per token.

    References
    ----------
    TLoRA, arXiv 2604.18124, the importance score of its section on rank allocation.

    Examples
    --------
    >>> sensitivity = calibration.sensitivity
    >>> sensitivity
    Sensitivity(14 modules, 8 samples, highest model.layers... at ...)
    >>> round(sensitivity.to_frame()["share"].sum(), 6)
    np.float64(1.0)
    >>> sensitivity.by_layer()["modules"].tolist()
    [7, 7]
    """

    per_sample: Float[torch.Tensor, "samples modules"]
    meta: Meta
    expert_scores: dict[str, list[float]] = field(default_factory=dict)

    columns: ClassVar[dict[str, str]] = PLACE_COLUMNS | {
        "score": "S_i, nats per token",
        "share": "S_i divided by the sum over modules, NaN if that is zero",
        "deviation": "standard deviation of the per-sample scores",
    }

    @property
    def scores(self) -> dict[str, float]:
        """``S_i`` by full module name, nats per token: the mean of ``per_sample`` over samples."""
        return dict(zip(self.names, self.per_sample.double().mean(0).tolist(), strict=True))

    def rescale(self, score: str) -> Sensitivity:
        """Convert the published score to another one, to compare them.

        Parameters
        ----------
        score : {"mean", "sum", "per_parameter"}
            ``"mean"`` is the published ``S_i``, a mean over the entries of the weight: of two equally important modules
            the smaller has the higher score. ``"sum"`` is the sum over the entries, ``S_i * d_in * d_out``;
            ``"per_parameter"`` is that sum divided by the entries of ``A`` and ``B`` for one rank, ``d_in + d_out``.

        Returns
        -------
        Sensitivity
            In nats per token; for ``"per_parameter"``, per parameter.

        Raises
        ------
        ValueError
            If there is no such score, or these scores are already converted to another one.
        """
        current = self.meta.recipe.get("score", "mean")
        if require_choice(score, "score", SCORES) == current:
            return self
        if current != "mean":
            raise ValueError(
                f"these scores are {current!r} already, not {score!r}: take those of calibration.sensitivity"
            )
        entries = [target.experts * target.d_in * target.d_out for target in self.targets.values()]
        costs = [target.experts * (target.d_in + target.d_out) for target in self.targets.values()]
        factors = torch.tensor([n if score == "sum" else n / cost for n, cost in zip(entries, costs, strict=True)])
        meta = replace(self.meta, recipe=dict(self.meta.recipe) | {"score": score})
        return replace(self, per_sample=self.per_sample * factors, meta=meta)

    def by_parameter(self) -> Sensitivity:
        """Return the scores of modules and, for all experts of a parameter together, the mean of their scores.

        The mean over experts is that over all entries of the parameter; ``expert_scores`` has the score of each.
        """
        joined = join_experts(self.targets.values())
        if len(joined) == len(self.targets):
            return self
        columns = {name: place for place, name in enumerate(joined)}
        places = torch.tensor([columns[parameter_name(name)] for name in self.targets])
        sums = torch.zeros(len(self.per_sample), len(joined)).index_add_(1, places, self.per_sample)
        experts: dict[str, list[float]] = {}
        for name, score in self.scores.items():
            if is_expert(name):
                experts.setdefault(parameter_name(name), []).append(score)
        return replace(self, targets=joined, per_sample=sums / places.bincount(), expert_scores=experts)

    @property
    def gini(self) -> float:
        """Gini coefficient of the scores: 0 if all are equal, ``1 - 1/M`` if one module has everything."""
        return gini(self.per_sample.double().mean(0).numpy())

    def to_frame(self) -> pd.DataFrame:
        """One row for each module; see ``columns``."""
        scores = self.per_sample.double().mean(0).numpy()
        return module_frame(self.targets.values()).assign(
            score=scores,
            share=scores / (scores.sum() or math.nan),
            deviation=self.per_sample.double().std(0, correction=0).numpy(),
        )

    def by_layer(self) -> pd.DataFrame:
        """One row for each layer: ``layer``, ``modules`` (their number), ``score`` (their mean), ``share`` (their sum).

        Encoder and decoder layers with the same index are one row.
        """
        return self._grouped("layer")

    def by_projection(self) -> pd.DataFrame:
        """One row for each projection: ``projection``, ``modules``, ``score`` (mean), ``share`` (sum)."""
        return self._grouped("projection")

    def intervals(self, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Percentile bootstrap intervals of the scores over samples.

        Parameters
        ----------
        confidence : float
            Between 0 and 1.
        resamples : int
            Number of bootstrap resamples.
        seed : int
            Seed of the resampling.

        Returns
        -------
        pandas.DataFrame
            One row for each module: ``module``, ``layer``, ``projection``, ``score``, ``low`` and ``high``.

        Raises
        ------
        ValueError
            If there are fewer than two samples.

        Notes
        -----
        Each interval is for one score alone. With few samples percentile intervals are too narrow, by about a tenth at
        16 samples.

        References
        ----------
        Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
        """
        samples = self.resampling_scores()
        resamples, seed = require_positive_int(resamples, "resamples"), require_positive_int(seed, "seed", least=0)
        means = bootstrap_means(samples, resamples, seed)
        low, high = interval(means, require_confidence(confidence))
        return module_frame(self.targets.values()).assign(score=samples.mean(0), low=low, high=high)

    def resampling_scores(self) -> NDArray[np.float64]:
        """``per_sample`` as float64, (N, M); refuse a single sample, which cannot be resampled."""
        if len(self.per_sample) < 2:
            raise ValueError(f"{len(self.per_sample)} sample gives no spread: calibrate with 2 or more")
        check_scores(self.scores)
        return self.per_sample.double().numpy()

    def _grouped(self, column: str) -> pd.DataFrame:
        groups = self.to_frame().groupby(column, sort=False)
        table = groups.agg(modules=("score", "size"), score=("score", "mean"))
        return table.assign(share=groups["share"].sum(min_count=1)).reset_index()

    def _summary(self) -> str:
        scores = self.scores
        top = max(scores, key=scores.__getitem__)
        return f"{len(scores)} modules, {len(self.per_sample)} samples, highest {top} at {scores[top]:.3g}"


def check_scores(scores: Mapping[str, float]) -> None:
    """Refuse scores that are all zero: nothing can be in proportion to them."""
    if not any(scores.values()):
        names = ", ".join(list(scores)[:3]) + (", ..." if len(scores) > 3 else "")
        raise ValueError(
            f"all {len(scores)} sensitivities are zero ({names}): the loss reaches no target module; "
            "calibrate with samples that have labels"
        )
