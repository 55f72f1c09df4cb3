"""An answer taken apart: what each module, direction and token read did to it, and what leaving a module out costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from tlora.adapters.rank_use import rank_use
from tlora.models.module_result import ModuleResult, module_frame
from tlora.models.targets import Target
from tlora.numerics.statistics import mean_interval
from tlora.results import Meta
from tlora.utils.defaults import ENERGY
from tlora.utils.text import place_text
from tlora.utils.validation import require_choice, require_index, require_module, require_positive_int

Level = Literal["layer", "projection"]
HEAD = "head and biases"
"""Label of the change by a trained head or embedding, in addition to the modules."""
REST = "not in the adapter"
"""Label of what a full fine-tune changes beyond the adapter that was extracted from it."""
CHANGES = ("same", "within three", "beyond")
"""Classes of a token by the rank that the adapter's first choice has in the base model: 1, 2 or 3, and more."""
CONFIDENCE = 0.95
VISIBLE_GAP = 0.05
"""From which share on the sentence says that contributions do not add up."""
VISIBLE_COST = 0.005
"""Nats that two decimals show."""
LARGEST = 10
"""Modules that are always left out, one at a time: those that contribute most."""


@dataclass(frozen=True, repr=False, eq=False)
class ExplainedAnswer:
    """One sample of an `Attribution`. Log-probability and log-odds, in this order, are the two measures, in nats.

    Attributes
    ----------
    prompt, answer : str
        The request, and the answer that is explained.
    tokens : list of str
        The text of each token: the request's, then the answer's; in an encoder-decoder with the token that starts the
        answer in between, and in a classifier with the name of the class at the end.
    positions : list of int
        Places of the answer's K tokens among ``tokens``.
    base, start, adapter : (2, K) float64 tensor
        Each token's measures in the base model, in the model with the adapter at scale 0 (which differs if a head was
        trained), and in the adapted model.
    ranks : (2, K) int64 tensor
        Rank of each token among the choices of the base and of the adapted model; 1 is the first choice.
    choices : list of list of str
        First choices of the base and of the adapted model.
    shifts : (K,) int64 tensor
        Rank of the adapter's first choice in the base model.
    by_module : (2, K, M) float64 tensor
        Contribution of each module.
    by_direction : dict of (K, r) float32 tensor
        Contribution of each direction of a module to the log-probability; of the E experts of a parameter (K, E, r).
    by_token_read : (M, K, T) float16 tensor
        Contribution of each module where it read a token, to the log-probability.
    switched : dict of (2, K) float64 tensor
        The measures with a part of the adapter changed or left out, by its name in ``Attribution.switches``.
    unchanged : dict of (K,) bool tensor
        Whether the first choice is then still the adapted model's.
    generated : list of str
        Greedy answers of the base and of the adapted model; empty if none were generated.
    matches : list of float
        The task's exact match of these two, if it has one.
    points : int
        Quadrature points that were needed.
    ids : list of int
        Token ids of the answer, or the index of the class; empty in a file of format 7.
    tuned : (2, K) float64 tensor, optional
        The measures in the full fine-tune that the adapter was extracted from, if there is one.
    """

    prompt: str
    answer: str
    tokens: list[str]
    positions: list[int]
    base: Float[Tensor, "2 answer"]
    start: Float[Tensor, "2 answer"]
    adapter: Float[Tensor, "2 answer"]
    ranks: Int64[Tensor, "2 answer"]
    choices: list[list[str]]
    shifts: Int64[Tensor, " answer"]
    by_module: Float[Tensor, "2 answer modules"]
    by_direction: dict[str, Float[Tensor, "answer *experts r"]]
    by_token_read: Float[Tensor, "modules answer tokens"]
    switched: dict[str, Float[Tensor, "2 answer"]]
    unchanged: dict[str, Bool[Tensor, " answer"]]
    generated: list[str]
    matches: list[float]
    points: int
    ids: list[int] = field(default_factory=list)
    tuned: Float[Tensor, "2 answer"] | None = None

    @property
    def rise(self) -> Float[Tensor, "2 answer"]:
        """Change of each token's measures by the whole adapter, its head included."""
        return self.adapter - self.base

    @property
    def gaps(self) -> Float[Tensor, "2 answer"]:
        """By how much the contributions of the modules miss the exact difference."""
        return self.by_module.sum(2) - (self.adapter - self.start)


@dataclass(frozen=True, repr=False, eq=False)
class Attribution(ModuleResult):
    """Which module made an answer more likely: contributions that add up, and costs of leaving parts out.

    From `tlora.attribute`. In a test with known answers (docs/results/planted.md), contributions put the right module
    first for 16 of 16 learned skills. The tokens that a module read say less: they are not the words that the answer
    depends on.

    Attributes
    ----------
    targets : dict of Target
        The adapter's modules. Those outside the blocks, such as embeddings, have layer -1.
    ranks : dict of int
        Rank of each module.
    singular_values : dict of (r,) float32 tensor
        Of each module's update ``s B A``, largest first; of experts (E, r).
    samples : list of ExplainedAnswer
        One for each sample.
    switches : dict of list of str
        The parts of the adapter that were left out, by name, with their modules. ``"... rank 4"`` is a module that was
        cut to this rank.
    meta : Meta
        The base model, the task, and the number of samples.

    Examples
    --------
    >>> attribution = tlora.attribute(adapted, task, limit=2, points=4, progress=False)
    >>> attribution.to_frame()[["module", "rank", "contribution", "cost"]].shape
    (14, 4)
    >>> tokens = attribution.tokens()
    >>> tokens.columns[:6].tolist()
    ['sample', 'position', 'token', 'base', 'adapter', 'rise']
    >>> attribution.sums("layer")["layer"].tolist()
    ['layer 0', 'layer 1']
    """

    ranks: dict[str, int]
    singular_values: dict[str, Float[Tensor, "*experts r"]]
    samples: list[ExplainedAnswer]
    switches: dict[str, list[str]]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "layer": "index of its block, -1 outside of all",
        "projection": "role in the block",
        "rank": "rank of the module",
        "used_rank": "directions that hold 99 % of the update's squared norm",
        "update_norm": "||s B A||_F",
        "contribution": "nats of log-probability that the module added to an answer, mean over samples",
        "low": "lower end of the 95 % interval over samples, NaN for one sample",
        "high": "upper end",
        "log_odds": "the same contribution in nats of log-odds",
        "cost": "nats of log-probability lost if this module alone is left out; NaN if not tested",
        "cost_log_odds": "the same cost in nats of log-odds",
        "changed": "answer tokens whose first choice changes if it is left out, per sample; NaN if not tested",
    }
    token_columns: ClassVar[dict[str, str]] = {
        "sample": "number of the sample, from 0",
        "position": "place among the sample's tokens",
        "token": "text of the answer's token",
        "base": "log-probability in the base model, nats",
        "adapter": "log-probability in the adapted model, nats",
        "rise": "their difference",
        "head": "part of it that a trained head or embedding adds",
        "gap": "by how much the contributions miss the rest",
        "log_odds": "rise of the log-odds, nats",
        "base_rank": "rank of the token in the base model, 1 for the first choice",
        "adapter_rank": "rank in the adapted model",
        "base_choice": "first choice of the base model",
        "adapter_choice": "first choice of the adapted model",
        "change": "rank of the adapter's first choice in the base model: same, within three, or beyond",
    }
    cost_columns: ClassVar[dict[str, str]] = {
        "left_out": "name of the part",
        "modules": "number of its modules",
        "contribution": "nats of log-probability that it added, mean over samples",
        "cost": "nats of log-probability lost without it, mean over samples",
        "low": "lower end of the 95 % interval of the cost over samples, NaN for one sample",
        "high": "upper end",
        "log_odds": "its contribution in nats of log-odds",
        "cost_log_odds": "its cost in nats of log-odds",
        "changed": "answer tokens whose first choice changes, per sample",
    }

    @property
    def rise(self) -> float:
        """Nats of log-probability that the adapter adds to an answer, mean over samples."""
        return float(np.mean([float(sample.rise[0].sum()) for sample in self.samples]))

    @property
    def head(self) -> float:
        """Nats that a trained head, embedding, norm or bias adds, mean over samples; in no row of `to_frame`."""
        return float(np.mean([float((sample.start - sample.base)[0].sum()) for sample in self.samples]))

    @property
    def rest(self) -> float:
        """Nats that the full fine-tune adds beyond the adapter, mean over samples; 0 if there is none."""
        return float(_rest(self.samples)[0].mean())

    @property
    def gap(self) -> float:
        """The tokens' gaps in log-probability relative to their rises, both as sums of absolute values."""
        gaps, rises = (sum(float(x[0].abs().sum()) for x in parts) for parts in zip(*_gaps(self.samples), strict=True))
        return gaps / rises if rises else math.nan

    def contributions(self, measure: int = 0) -> NDArray[np.float64]:
        """Contribution of each module to each sample's answer, (samples, modules) nats; ``measure`` 1 is log-odds."""
        measure = require_index(measure, "measure", 2)
        return np.stack([sample.by_module[measure].sum(0).numpy() for sample in self.samples])

    def to_frame(self) -> pd.DataFrame:
        """Return one row per module; see ``columns``."""
        use = rank_use(self.singular_values, ENERGY)[["rank", "used_rank", "update_norm"]]
        parts = [self._row(name, [name]) for name in self.names]
        return pd.concat([module_frame(self.targets.values()), use, pd.DataFrame(parts)], axis=1)[list(self.columns)]

    def largest(self, count: int = LARGEST) -> pd.DataFrame:
        """Return the ``count`` rows of `to_frame` that contributed most, for or against, the largest first."""
        return self.to_frame().loc[order_by_size(self.contributions())[: require_positive_int(count, "count", 0)]]

    def sums(self, by: Level) -> pd.DataFrame:
        """Sum the contributions of each layer or projection.

        Parameters
        ----------
        by : {"layer", "projection"}
            What to sum over.

        Returns
        -------
        pandas.DataFrame
            ``by``, then as in ``columns``: ``contribution`` to ``changed``. What a trained head or embedding adds is a
            row of its own, and so is what a full fine-tune adds beyond the adapter.
        """
        require_choice(by, "by", get_args(Level))
        rows = [{by: label} | self._row(label, names) for label, names in groups(self.targets, by).items()]
        if self.head:
            heads = [sample.start - sample.base for sample in self.samples]
            values = [np.array([float(head[measure].sum()) for head in heads]) for measure in (0, 1)]
            rows.append({by: HEAD} | _mean_row(*values))
        if self.rest:
            rows.append({by: REST} | _mean_row(*_rest(self.samples)))
        return pd.DataFrame(rows)

    def costs(self) -> pd.DataFrame:
        """Return what was lost without each part that was left out, one row per part; see ``cost_columns``."""
        rows = []
        for label, names in self.switches.items():
            row, (low, high) = self._row(label, names), mean_interval(self._lost(label, 0)[:, None], CONFIDENCE)
            ends = {"low": float(low[0]), "high": float(high[0])}
            rows.append({"left_out": label, "modules": len(names)} | row | ends)
        return pd.DataFrame(rows, columns=list(self.cost_columns))

    def tokens(self) -> pd.DataFrame:
        """Return one row an answer token: before, after, and what changed; see ``token_columns``."""
        return pd.concat([self._token_rows(number) for number in range(len(self.samples))], ignore_index=True)

    def answers(self) -> pd.DataFrame:
        """Return the greedy answers of the base and of the adapted model, one row per sample.

        Returns
        -------
        pandas.DataFrame
            ``prompt``, ``answer`` (the one that is explained), ``base``, ``adapter``; and if the task compares texts,
            ``base_match`` and ``adapter_match``. The answers are empty if none were generated.
        """
        rows = []
        for sample in self.samples:
            said = dict(zip(("base", "adapter"), sample.generated or ("", ""), strict=True))
            scores = dict(zip(("base_match", "adapter_match"), sample.matches, strict=False))
            rows.append({"prompt": sample.prompt, "answer": sample.answer} | said | scores)
        return pd.DataFrame(rows)

    def from_tokens(self, module: str | None = None, sample: int = 0, token: int | None = None) -> pd.DataFrame:
        """Split contributions to the log-probability over the tokens that were read.

        Parameters
        ----------
        module : str, optional
            Full name; by default the sum over all modules.
        sample : int
            Number of the sample.
        token : int, optional
            Which of the answer's tokens, from 0; by default their sum.

        Returns
        -------
        pandas.DataFrame
            ``token`` (its text) and ``contribution`` (nats), one row per token of the sample.
        """
        explained = self.samples[require_index(sample, "sample", len(self.samples))]
        modules = slice(None) if module is None else [self.names.index(require_module(module, self.names))]
        part = explained.by_token_read[modules].double().sum(0)
        values = part.sum(0) if token is None else part[require_index(token, "token", len(part))]
        return pd.DataFrame({"token": explained.tokens, "contribution": values.numpy()})

    def by_direction(self, module: str) -> pd.DataFrame:
        """Split the contribution of a module over the rows of its ``A``; of experts over the k-th rows of all.

        Parameters
        ----------
        module : str
            Full name.

        Returns
        -------
        pandas.DataFrame
            ``direction``, from 1 on, and ``contribution``, ``low`` and ``high`` as in ``columns``.
        """
        values = self._by_row(require_module(module, self.names)).sum(1)
        return pd.DataFrame({"direction": 1 + np.arange(values.shape[1])} | _means(values))

    def experts(self) -> pd.DataFrame:
        """Split the contribution of each parameter with experts over its experts.

        Returns
        -------
        pandas.DataFrame
            ``module`` (full name of the parameter), ``layer``, ``projection``, ``expert`` (its number), and
            ``contribution``, ``low`` and ``high`` as in ``columns``; no rows if the adapter has no experts.
        """
        places = ["module", "layer", "projection", "expert"]
        parts = [pd.DataFrame(columns=[*places, "contribution", "low", "high"])]
        for name, target in self.targets.items():
            if target.part == "experts":
                values = self._by_row(name).sum(2)
                where = {"module": name, "layer": target.layer, "projection": target.projection}
                parts.append(pd.DataFrame(where | {"expert": np.arange(values.shape[1])} | _means(values)))
        return pd.concat(parts[1:] or parts, ignore_index=True)

    def _by_row(self, module: str) -> NDArray[np.float64]:
        """Contribution of each row of ``A`` to each answer, (samples, experts, r)."""
        rows = [sample.by_direction[module].double().sum(0) for sample in self.samples]
        return np.stack([row.reshape(-1, row.shape[-1]).numpy() for row in rows])

    @property
    def headline(self) -> str:
        """The finding: what the largest module contributed, and what leaving it out alone costs."""
        top, rise = self.largest(1).iloc[0], self.rise
        mean = f", mean of {len(self.samples)} answers" if len(self.samples) > 1 else ""
        share = f"contributed {top['contribution']:.2f} of {rise:.2f} nats"
        if max(top["contribution"], rise) < 0:
            share = f"took away {-top['contribution']:.2f} of the {-rise:.2f} nats that the answer lost"
        return f"{_place(top)} {share}{mean}; leaving it out alone costs {top['cost']:.2f}"

    @property
    def sentence(self) -> str:
        """The finding, the same in log-odds, a trained head, and a gap if there is one."""
        top = self.largest(1).iloc[0]
        likelier = ", so the answer is likelier that way" if top["cost"] < -VISIBLE_COST else ""
        odds = np.mean([float(sample.rise[1].sum()) for sample in self.samples])
        head = f" Besides the modules, {HEAD} added {self.head:+.2f} nats." if self.head else ""
        rest = f" The full fine-tune adds {self.rest:+.2f} nats that are {REST}." if self.rest else ""
        gap = ""
        if self.gap > VISIBLE_GAP:
            gap = (
                f" The contributions do not add up here: they miss what the tokens gained by {self.gap:.0%}, even at "
                f"{max(sample.points for sample in self.samples)} points, so go by the costs."
            )
        return (
            f"{self.headline}{likelier}. In log-odds, which have no ceiling, it contributed {top['log_odds']:.1f} of "
            f"{odds:.1f}, and leaving it out costs {top['cost_log_odds']:.1f}.{head}{rest}{gap}"
        )

    def _row(self, label: str, names: Sequence[str]) -> dict[str, float]:
        """Contribution of some modules with its interval, and what was lost without them."""
        places = [self.names.index(name) for name in names]
        row = _mean_row(*(self.contributions(measure)[:, places].sum(1) for measure in (0, 1)))
        if label not in self.switches:
            return row | {"cost": math.nan, "cost_log_odds": math.nan, "changed": math.nan}
        changed = np.mean([int((~sample.unchanged[label]).sum()) for sample in self.samples])
        cost, odds = (float(self._lost(label, measure).mean()) for measure in (0, 1))
        return row | {"cost": cost, "cost_log_odds": odds, "changed": float(changed)}

    def _lost(self, label: str, measure: int) -> NDArray[np.float64]:
        return np.array([float((s.adapter - s.switched[label])[measure].sum()) for s in self.samples])

    def _token_rows(self, number: int) -> pd.DataFrame:
        explained = self.samples[number]
        frame = pd.DataFrame(
            {
                "sample": number,
                "position": explained.positions,
                "token": [explained.tokens[place] for place in explained.positions],
                "base": explained.base[0].numpy(),
                "adapter": explained.adapter[0].numpy(),
                "rise": explained.rise[0].numpy(),
                "head": (explained.start - explained.base)[0].numpy(),
                "gap": explained.gaps[0].numpy(),
                "log_odds": explained.rise[1].numpy(),
                "base_rank": explained.ranks[0].numpy(),
                "adapter_rank": explained.ranks[1].numpy(),
                "base_choice": explained.choices[0],
                "adapter_choice": explained.choices[1],
                "change": [CHANGES[0 if rank == 1 else 1 if rank <= 3 else 2] for rank in explained.shifts.tolist()],
            }
        )
        return frame[list(self.token_columns)]

    def _summary(self) -> str:
        count = len(self.samples)
        answers = f"{count} answers" if count > 1 else "one answer"
        return f"{len(self.targets)} modules of {self.meta.model}, {answers}, {self.rise:+.2f} nats, gap {self.gap:.1%}"


def order_by_size(contributions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers of the modules by the size of their mean contribution, the largest first; (samples, modules) nats."""
    return np.argsort(-np.abs(contributions.mean(0)), kind="stable")


def groups(targets: Mapping[str, Target], by: str) -> dict[str, list[str]]:
    """The modules of each layer or projection, by its name; ``by="module"`` gives each its own."""
    found: dict[str, list[str]] = {}
    for name, target in targets.items():
        layer = f"{target.stack} layer {target.layer}".strip() if target.layer >= 0 else "outside the blocks"
        label = {"module": name, "layer": layer, "projection": target.projection}[by]
        found.setdefault(label, []).append(name)
    return found


def _gaps(samples: Iterable[ExplainedAnswer]) -> list[tuple[Tensor, Tensor]]:
    return [(sample.gaps, sample.adapter - sample.start) for sample in samples]


def _rest(samples: Sequence[ExplainedAnswer]) -> NDArray[np.float64]:
    """Nats that the full fine-tune adds to each answer beyond the adapter, (measures, samples)."""
    parts = [torch.zeros(2) if one.tuned is None else (one.tuned - one.adapter).sum(1) for one in samples]
    return torch.stack(parts, 1).double().numpy()


def _means(values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Means over samples with their intervals, by column; (samples, parts)."""
    low, high = mean_interval(values, CONFIDENCE)
    return {"contribution": values.mean(0), "low": low, "high": high}


def _mean_row(values: NDArray[np.float64], odds: NDArray[np.float64]) -> dict[str, float]:
    low, high = mean_interval(values[:, None], CONFIDENCE)
    ends = {"low": float(low[0]), "high": float(high[0])}
    return {"contribution": float(values.mean())} | ends | {"log_odds": float(odds.mean())}


def _place(row: Any) -> str:
    return place_text(row["layer"], row["projection"], str(row["module"]))
