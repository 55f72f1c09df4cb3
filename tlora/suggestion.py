"""Suggest rank, modules and samples for a task before training, with the numbers behind each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import kendalltau
from torch import Tensor

from tlora.allocation.footprint import ADAMW_STATES, BYTES, KINDS, bits_text, size_text, uniform_footprints
from tlora.calibration.calibrate import calibrate
from tlora.models.forward import IGNORED, evaluating, sample_losses, to_device
from tlora.numerics.statistics import bootstrap_means, interval
from tlora.results import Meta, Result
from tlora.subspaces.alignment import align
from tlora.subspaces.gradient_capture import GradientCapture, gradient_capture
from tlora.subspaces.subspaces import task_subspaces
from tlora.tasks.task import Task
from tlora.utils.validation import check_type, confidence_level, positive_int

BITS_A_PARAMETER = 2.0
"""What a trained parameter was seen to hold of facts: arXiv 2404.05405."""

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Ranks to choose from."""

START = 8
"""The smallest that is suggested: what the package begins with."""

RESAMPLES = 1000
"""Bootstrap resamples behind the interval of the loss."""

ALIKE = 0.8
"""Kendall's tau of the modules' order, and overlap of their directions, from which on two halves say the same."""


@dataclass(frozen=True, repr=False, eq=False)
class Suggestion(Result):
    """A rank, modules and samples to begin with, and what they rest on.

    Attributes
    ----------
    rank : int
        The smallest rank whose adapter holds the answers, 8 or more.
    enough : int or None
        The smallest rank whose adapter holds them, ``A`` and ``B`` trained; None where not even the largest does.
    samples : int or None
        Calibration samples that are enough: half of those looked at; None where the halves differ too much.
    kendall : float
        Kendall's tau-b between the modules' sensitivity in one half of the samples and in the other.
    overlap : float
        Overlap of the published directions found in either half, ``||A_1 A_2^T||_F^2 / r``, mean over modules, at
        the rank that is suggested.
    bits : float
        What the model does not know yet of the answers of the training split: their loss, in bits.
    bits_low, bits_high : float
        Ends of its interval over samples.
    labels : int
        Labelled tokens of the training split; its samples, for classification.
    ranks : list of int
        That were looked at.
    trainable : dict of list of int
        By rank, heads left out: ``"A and B"``, as LoRA, and ``"B"``, ``A`` frozen.
    captured, captured_low, captured_high : list of float
        Share of the squared gradient of held-out samples that a frozen ``A`` along the published directions follows, by
        rank, and the ends of its interval; NaN beyond the rank that is suggested.
    chance, best : list of float
        The same of random directions, and of the best in hindsight.
    projections : dict of list of float
        Share of the squared gradient, and of an adapter's parameters, by projection.
    meta : Meta
        Model, task and number of samples looked at.

    Notes
    -----
    A loss of ``L`` nats a label over ``T`` labels is a message of ``T L / ln 2`` bits (Shannon): what has to be stored
    to know every answer exactly. It bounds the rank from the side of memory alone, and from above: what generalises
    need not be stored answer by answer. How easily a rank is trained it does not say.

    References
    ----------
    Allen-Zhu & Li, "Physics of Language Models: Part 3.3", arXiv 2404.05405: two bits a parameter. Schulman et al.,
    "LoRA Without Regret", 2025, for the comparison of a data set's loss with an adapter's parameters.
    """

    rank: int
    enough: int | None
    samples: int | None
    kendall: float
    overlap: float
    bits: float
    bits_low: float
    bits_high: float
    labels: int
    ranks: list[int]
    trainable: dict[str, list[int]]
    captured: list[float]
    captured_low: list[float]
    captured_high: list[float]
    chance: list[float]
    best: list[float]
    projections: dict[str, list[float]]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "rank": "of every module",
        "trainable": "parameters of A and B",
        "trainable_b": "parameters of B alone, A frozen",
        "filled": "bits of the answers by what A and B can hold; above 1 they do not fit",
        "filled_b": "the same for B alone",
        "captured": "share of the squared gradient that a frozen A along the published directions follows",
        "captured_low": "lower end of its interval over held-out samples",
        "captured_high": "upper end",
        "chance": "share that random directions follow",
        "best": "share of the best directions in hindsight",
    }

    def to_frame(self) -> pd.DataFrame:
        """One row a rank; see ``columns``."""
        both, alone = (np.array(self.trainable[kind]) for kind in ("A and B", "B"))
        return pd.DataFrame(
            {
                "rank": self.ranks,
                "trainable": both,
                "trainable_b": alone,
                "filled": self.bits / (BITS_A_PARAMETER * both),
                "filled_b": self.bits / (BITS_A_PARAMETER * alone),
                "captured": self.captured,
                "captured_low": self.captured_low,
                "captured_high": self.captured_high,
                "chance": self.chance,
                "best": self.best,
            }
        )

    def sentences(self) -> list[str]:
        """What is suggested and why, and what is not known."""
        return [self._about_rank(), self._about_modules(), self._about_samples(), self._about_freezing(), *UNKNOWN]

    def _about_rank(self) -> str:
        nats = self.bits * math.log(2) / self.labels
        message = (
            f"{self.labels:,} labels at {nats:.2f} nats are at most {bits_text(self.bits)} to learn "
            f"({bits_text(self.bits_low)} to {bits_text(self.bits_high)})"
        )
        if self.enough is None:
            holds = BITS_A_PARAMETER * self.trainable["A and B"][-1]
            return (
                f"Rank {self.rank}, or full fine-tuning: {message}, and LoRA of rank {self.ranks[-1]} holds "
                f"{bits_text(holds)} at {BITS_A_PARAMETER:g} bits a parameter."
            )
        holds = BITS_A_PARAMETER * self.trainable["A and B"][self.ranks.index(self.enough)]
        reason = "the smallest that is enough" if self.enough == self.rank else f"which is enough; {START} is usual"
        trained = (self.trainable[kind][self.ranks.index(self.rank)] for kind in ("A and B", "B"))
        both, alone = (f"{n:,} parameters ({size_text(BYTES * ADAMW_STATES * n)} of AdamW)" for n in trained)
        return (
            f"Rank {self.rank}: {message}. LoRA of rank {self.enough} holds {bits_text(holds)} at "
            f"{BITS_A_PARAMETER:g} bits a parameter, {reason}. That trains {both}, or {alone} with A frozen."
        )

    def _about_modules(self) -> str:
        least = min(self.projections, key=lambda name: self.projections[name][0] / self.projections[name][1])
        gradient, parameters = self.projections[least]
        return (
            f"All modules: rather less rank everywhere than fewer modules. If some must go, {least}: {gradient:.1%} of "
            f"the squared gradient at {parameters:.1%} of the parameters."
        )

    def _about_samples(self) -> str:
        half = (self.meta.samples or 0) // 2
        enough = f"More than {2 * half}" if self.samples is None else str(self.samples)
        return (
            f"{enough} calibration samples: two halves of {half} order the modules with a Kendall's tau of "
            f"{self.kendall:.2f} and find directions that overlap by {self.overlap:.0%}."
        )

    def _about_freezing(self) -> str:
        place = max(n for n, rank in enumerate(self.ranks) if rank <= self.rank and not math.isnan(self.captured[n]))
        return (
            f"Freezing A trains fewer parameters. Along the published directions it follows {self.captured[place]:.1%} "
            f"({self.captured_low[place]:.1%} to {self.captured_high[place]:.1%}) of the squared gradient of other "
            f"samples at rank {self.ranks[place]}; random directions follow {self.chance[place]:.1%}, the best "
            f"{self.best[place]:.1%}. Over eight tasks this share did not tell what freezing costs: tlora.race does."
        )

    def _summary(self) -> str:
        enough = "no rank looked at holds" if self.enough is None else f"rank {self.enough} holds"
        return (
            f"rank {self.rank} for {self.meta.task} on {self.meta.model}: {enough} the {bits_text(self.bits)} of "
            f"{self.labels:,} labels"
        )

    def _repr_html_(self) -> str:
        return f"<ul>{''.join(f'<li>{sentence}</li>' for sentence in self.sentences())}</ul>{super()._repr_html_()}"


UNKNOWN = (
    "Not known before training: how much of the answers generalises and need not be stored, the learning rate, and "
    "whether more rank trains more easily. Train at twice the rank and compare: that is the proof.",
)


def suggest(
    model: Any,
    task: Task,
    *,
    samples: int = 32,
    ranks: Sequence[int] = RANKS,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> Suggestion:
    """A rank, modules and samples for a task, before any training.

    Two halves of the samples are calibrated on and compared with each other; how much of the gradient a frozen ``A``
    follows is measured on the half that it does not come from.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model. It is observed, not changed.
    task : tlora.Task
        Its training split is what has to be learned.
    samples : int
        Training samples to look at, four or more.
    ranks : sequence of int
        Ranks to choose from.
    confidence : float
        Of the intervals.
    seed : int
        Of subspaces and resampling.
    progress : bool
        Show progress bars.

    Returns
    -------
    Suggestion

    Raises
    ------
    TypeError
        If the task is not a `tlora.Task`.
    ValueError
        If a number is out of range, no rank fits all modules, or the training split has fewer samples.
    """
    check_type(task, Task, "tlora.load_task(...)")
    if positive_int(samples, "samples") < 4:
        raise ValueError(f"samples={samples}: give four or more, for halves and for intervals")
    ranks, level = sorted({positive_int(rank, "ranks") for rank in ranks}), confidence_level(confidence)
    batches = task.calibration(samples, batch_size=1)  # in the order of their lengths, so that halves are alike
    first, second = (calibrate(model, half, progress=progress) for half in (batches[::2], batches[1::2]))
    shapes = first.sensitivity.shapes
    if ranks[0] > (smallest := min(map(min, shapes.values()))):
        raise ValueError(f"ranks={ranks} are beyond the smallest module: give one of {smallest} or less")
    labels = int(task.describe().loc["train", "labelled"]) or len(task.train)
    bits, low, high = (labels / math.log(2) * nats for nats in _losses(model, task, batches, level, seed))
    footprints = [uniform_footprints(shapes, rank) for rank in ranks]
    trainable = {kind: [found[kind].trainable_parameters for found in footprints] for kind in KINDS}
    enough = next((r for r, n in zip(ranks, trainable["A and B"], strict=True) if BITS_A_PARAMETER * n >= bits), None)
    rank = ranks[-1] if enough is None else max([enough, *(r for r in ranks if r <= START)])
    most = min(rank, smallest)
    one, other = (task_subspaces(model, half, max_rank=most, seed=seed, progress=progress) for half in (first, second))
    kendall = float(kendalltau(*(list(half.sensitivity.scores.values()) for half in (first, second))).statistic)
    overlap = float(np.mean(list(align(one, other, most).overlap.values())))
    capture = gradient_capture(
        model,
        batches[1::2],
        {"wc": one},
        [r for r in ranks if r <= most],
        confidence=level,
        seed=seed,
        progress=progress,
    )
    shares = capture.overall().set_index("rank").reindex(ranks)
    return Suggestion(
        rank=rank,
        enough=enough,
        samples=samples // 2 if min(kendall, overlap) >= ALIKE else None,
        kendall=kendall,
        overlap=overlap,
        bits=bits,
        bits_low=low,
        bits_high=high,
        labels=labels,
        ranks=ranks,
        trainable=trainable,
        captured=shares["captured"].tolist(),
        captured_low=shares["low"].tolist(),
        captured_high=shares["high"].tolist(),
        chance=shares["random"].tolist(),
        best=shares["best"].tolist(),
        projections=_projections(capture, shapes),
        meta=Meta(model=first.meta.model, task=task.name, recipe={"confidence": level}, seed=seed, samples=samples),
    )


def _losses(
    model: Any, task: Task, batches: Iterable[Mapping[str, Tensor]], level: float, seed: int
) -> tuple[float, float, float]:
    """Mean loss a label, nats, and the ends of its interval over samples."""
    found = []
    with evaluating(model):
        for batch in batches:  # of one sample each
            count = 1 if task.kind == "classification" else int((batch["labels"] != IGNORED).sum())
            loss = sample_losses(model, to_device(dict(batch), model))
            found.append((count * float(loss), count))
    sums = np.array(found)
    means = bootstrap_means(sums, RESAMPLES, seed)
    low, high = interval(means[:, :1] / means[:, 1:], level)
    return float(sums[:, 0].sum() / sums[:, 1].sum()), float(low[0]), float(high[0])


def _projections(capture: GradientCapture, shapes: Mapping[str, tuple[int, int]]) -> dict[str, list[float]]:
    """Share of the squared gradient, and of what a uniform rank costs, by projection."""
    gradient = capture.total.double().sum(0).tolist()
    sizes = [sum(shapes[name]) for name in capture.targets]
    found: dict[str, list[float]] = {}
    for projection, energy, size in zip(capture.projections.values(), gradient, sizes, strict=True):
        shares = found.setdefault(projection, [0.0, 0.0])
        shares[0] += energy / sum(gradient)
        shares[1] += size / sum(sizes)
    return found
