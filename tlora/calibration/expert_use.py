"""Which routed experts a task uses, and which of them other text uses less."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tlora.calibration.calibration import Calibration
from tlora.calibration.experts import ExpertPool
from tlora.calibration.sensitivity import check_scores
from tlora.models.experts import is_expert, parameter_name
from tlora.models.weights import SIMILARITY_THRESHOLD, fingerprint_similarity
from tlora.numerics.statistics import bootstrap_means, interval
from tlora.results import Meta, Result
from tlora.utils.text import range_text
from tlora.utils.validation import check_arguments, require_confidence, require_fraction, require_positive_int


@dataclass(frozen=True, repr=False, eq=False)
class ExpertUse(Result):
    """What each routed expert did on the samples of a calibration, in model order.

    The work of an expert is its sensitivity, summed over all entries of its weights.

    Attributes
    ----------
    modules : list of str
        Full name of the module that holds each expert.
    layers, experts : list of int
        Index of its block, and its number in the module.
    tokens : list of int
        Counted tokens that were routed to it.
    per_sample : (N, E) float32 tensor
        Its work in each sample, nats per token.
    squared_gradient : (E,) float64 tensor
        Squared gradient of its weights with independent tokens, squared nats per token and unit of weight; NaN without
        ``calibrate(..., fisher=True)``.
    other : (K, E) float32 tensor or None
        Its work in each sample of the other text.
    confidence : float
        Of the intervals.
    resamples : int
        Bootstrap resamples behind them.
    meta, other_meta : Meta
        Model, task and number of the samples, and those of the other text; the seed is that of the resampling.

    Examples
    --------
    >>> use = tlora.expert_use(routed)
    >>> use.headline
    '... of 8 experts do 90 % of the work (95 %: ... to ...)'
    >>> use
    ExpertUse(... of 8 experts do 90 % of the work (95 %: ... to ...), 8 samples)
    """

    modules: list[str]
    layers: list[int]
    experts: list[int]
    tokens: list[int]
    per_sample: Float[Tensor, "samples experts"]
    squared_gradient: Float[Tensor, " experts"]
    other: Float[Tensor, "others experts"] | None
    confidence: float
    resamples: int
    meta: Meta
    other_meta: Meta | None = None

    columns: ClassVar[dict[str, str]] = {
        "module": "full name of the module that holds the expert",
        "layer": "index of the block",
        "expert": "number of the expert in its module",
        "tokens": "counted tokens that were routed to it",
        "score": "sum of its sensitivity over all entries of its weights, nats per token",
        "share": "score divided by the sum over all experts of the model",
        "squared_gradient": "squared gradient of its weights with independent tokens, squared nats per token and unit "
        "of weight; NaN without fisher=True",
        "other_share": "share on the other text; NaN without one, as are the next three",
        "difference": "share minus other_share",
        "low": "lower end of its interval; the intervals of all experts hold together",
        "high": "upper end",
    }

    def count(self, share: float = 0.9) -> tuple[int, int, int]:
        """Return how many experts do this share of the work, and the ends of the interval.

        Parameters
        ----------
        share : float
            Between 0 and 1. The experts with the most work are counted until they do this share of it.

        Returns
        -------
        tuple of int
            Count, lower and upper end. With one sample the interval is everything that is possible.

        Notes
        -----
        A few samples make the work look more concentrated than it is: noise raises some experts above others. So does
        resampling once more, which shows by how much. Twice the count of the samples minus the median of the resamples
        is returned, with the interval that is mirrored in the same way (the basic bootstrap).

        References
        ----------
        Davison & Hinkley, "Bootstrap methods and their application", 1997, section 5.2.
        """
        require_fraction(share, "share")
        size = len(self.modules)
        seen = int(_count_top(self.per_sample.double().mean(0).numpy(), share))
        if len(self.per_sample) < 2:
            return seen, 1, size
        resampled = _count_top(self._resample(self.per_sample), share)[:, None]
        low, high = interval(resampled, self.confidence, method="inverted_cdf")
        values = 2 * seen - np.array([np.median(resampled), high[0], low[0]])
        count, low, high = values.round().clip(1, size).astype(int).tolist()
        return count, low, high

    @property
    def headline(self) -> str:
        """How many experts do most of the work, and how many do more of it than on the other text."""
        count, *ends = self.count()
        level = f"{100 * self.confidence:g} %"
        text = f"{count} of {len(self.modules)} experts do 90 % of the work ({level}: {range_text(ends, str)})"
        if self.other_meta is None:
            return text
        more, less = int((self._table["low"] > 0).sum()), int((self._table["high"] < 0).sum())
        return f"{text}; {more} do more of it than on {self.other_meta.task or 'the other text'}, {less} do less"

    def to_frame(self) -> pd.DataFrame:
        """One row for each expert, in model order; see ``columns``."""
        return self._table.copy()

    @cached_property
    def _table(self) -> pd.DataFrame:
        scores = self.per_sample.double().mean(0).numpy()
        places = {"module": self.modules, "layer": self.layers, "expert": self.experts, "tokens": self.tokens}
        frame = pd.DataFrame(places).assign(
            score=scores, share=_shares(scores), squared_gradient=self.squared_gradient.numpy()
        )
        if self.other is None:
            return frame.assign(other_share=np.nan, difference=np.nan, low=np.nan, high=np.nan)
        other = _shares(self.other.double().mean(0).numpy())
        difference = frame["share"].to_numpy() - other
        half = self._half_widths(difference)
        return frame.assign(other_share=other, difference=difference, low=difference - half, high=difference + half)

    def _half_widths(self, difference: NDArray[np.float64]) -> NDArray[np.float64]:
        """Half widths of intervals of all differences that hold together: by the largest studentized deviation."""
        assert self.other is not None
        if min(len(self.per_sample), len(self.other)) < 2:
            return np.full(len(difference), np.nan)
        ours, theirs = (_shares(self._resample(part, seed)) for seed, part in enumerate((self.per_sample, self.other)))
        deviations = ours - theirs - difference
        spread = deviations.std(0)
        largest = np.abs(deviations / np.where(spread > 0, spread, 1.0)).max(1)
        return np.quantile(largest, self.confidence) * spread

    def _resample(self, per_sample: Tensor, seed: int = 0) -> NDArray[np.float64]:
        return bootstrap_means(per_sample.double().numpy(), self.resamples, (self.meta.seed or 0) + seed)

    def _summary(self) -> str:
        return f"{self.headline}, {len(self.per_sample)} samples"


def expert_use(
    calibration: Calibration,
    other: Calibration | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> ExpertUse:
    """Return what each routed expert did on the samples of a calibration, compared with other text.

    Parameters
    ----------
    calibration : Calibration
        With experts among its ``target_modules``.
    other : Calibration, optional
        Of the same experts on other text, to tell what is the task's own from what the router does as usual.
    confidence : float
        Of the intervals, between 0 and 1.
    resamples : int
        Number of bootstrap resamples.
    seed : int
        Seed of the resampling.

    Returns
    -------
    ExpertUse

    Raises
    ------
    ValueError
        If the calibration has no experts, none of them has a sensitivity, or ``other`` has other experts or weights.

    Notes
    -----
    Samples are resampled, not tokens. The intervals of the differences to other text hold for all experts together
    with the given confidence (the largest studentized deviation of a resample), so that among thousands of experts
    chance finds none.

    Examples
    --------
    >>> mixture, tokenizer = tlora.load_model("mixture")
    >>> task = tlora.load_task("commands.jsonl", tokenizer)
    >>> routed = tlora.calibrate(mixture, task.calibration(8), target_modules="experts", progress=False)
    >>> use = tlora.expert_use(routed)
    >>> use.to_frame().groupby("layer")["tokens"].sum().tolist()  # each token goes to two experts
    [80, 80]
    """
    check_arguments(expert_use, locals())
    seed = require_positive_int(seed, "seed", least=0)
    experts: dict[tuple[str, int], list[str]] = {}
    for name in filter(is_expert, calibration.names):
        number = int(name.rpartition("[")[2].rstrip("]"))
        experts.setdefault((parameter_name(name).rpartition(".")[0], number), []).append(name)
    if not experts:
        raise ValueError('this calibration has no experts: calibrate with target_modules="experts"')
    if other is not None:
        _check_other(calibration, other)
    for part in (calibration, other) if other is not None else (calibration,):
        check_scores({name: part.sensitivity.scores[name] for names in experts.values() for name in names})
    rows, fisher = ExpertPool(calibration).rows, calibration.fisher
    squared = [sum(fisher[name].trace for name in names) if fisher else np.nan for names in experts.values()]
    return ExpertUse(
        modules=[module for module, _ in experts],
        layers=[calibration.targets[names[0]].layer for names in experts.values()],
        experts=[number for _, number in experts],
        tokens=[rows(names[0]) for names in experts.values()],
        per_sample=_work(calibration, experts.values()),
        squared_gradient=torch.tensor(squared, dtype=torch.float64),
        other=None if other is None else _work(other, experts.values()),
        confidence=require_confidence(confidence),
        resamples=require_positive_int(resamples, "resamples"),
        meta=Meta(
            calibration.meta.model, calibration.meta.task, calibration.meta.recipe, seed, calibration.meta.samples
        ),
        other_meta=None if other is None else other.meta,
    )


def _check_other(calibration: Calibration, other: Calibration) -> None:
    """Refuse a calibration of other experts."""
    for name in filter(is_expert, calibration.names):
        ours, theirs = calibration.fingerprints[name], other.fingerprints.get(name)
        if theirs is None or fingerprint_similarity(ours, theirs) < SIMILARITY_THRESHOLD:
            raise ValueError(
                f"other has no {name} with the same weights: calibrate the same model, with the same target_modules"
            )


def _work(calibration: Calibration, experts: Iterable[list[str]]) -> Tensor:
    """The work of each expert in each sample, (N, E)."""
    places = {name: place for place, name in enumerate(calibration.names)}
    scores = calibration.sensitivity.rescale("sum").per_sample
    return torch.stack([scores[:, [places[name] for name in names]].sum(1) for names in experts], dim=1)


def _shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return scores / scores.sum(-1, keepdims=True)


def _count_top(scores: NDArray[np.float64], share: float) -> NDArray[np.int64]:
    """How many of the largest scores of a row add up to a share of all."""
    sums = -np.sort(-scores, axis=-1).cumsum(-1)
    return 1 + (sums < share * sums[..., -1:] * (1 - 1e-12)).sum(-1)
