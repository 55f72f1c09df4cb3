"""An adapter at several scales, and without some of its modules: the loss on its task and on other text."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from jaxtyping import Float, Int64
from torch import Tensor

from tlora.adapters.adapter import adapter_of
from tlora.adapters.files import RESCALE
from tlora.explanation.attribution import CONFIDENCE
from tlora.models.module_result import ModuleResult
from tlora.numerics.statistics import ratio_interval
from tlora.results import Meta

TASK = "task"
"""Name of the adapter's own task among the sets of texts."""
SCALE, PART, LEFT_OUT = "scale", "part", "left out"
"""Kinds of points: the whole adapter scaled; without one part; without several, those of least cost first."""


@dataclass(frozen=True, repr=False, eq=False)
class RescaledPoint:
    """One point of a `Rescaling`.

    Attributes
    ----------
    label : str
        What it is, such as ``"scale 0.5"`` or ``"without layer 3"``.
    kind : str
        ``"scale"``, ``"part"`` or ``"left out"``.
    factors : dict of float
        What each module's update is multiplied by; 0 leaves the module out.
    losses : dict of (samples,) float64 tensor
        Summed loss of each sample, by set, nats.
    """

    label: str
    kind: str
    factors: dict[str, float]
    losses: dict[str, Float[Tensor, " samples"]]

    @property
    def scale(self) -> float:
        """What the scaled modules are multiplied by; 1 if modules are left out."""
        return min(self.factors.values()) if self.kind == SCALE else max(self.factors.values())


@dataclass(frozen=True, repr=False, eq=False)
class Rescaling(ModuleResult):
    """The loss on the adapter's task and on other text at several scales; from `tlora.rescale`.

    Attributes
    ----------
    targets : dict of Target
        The adapter's modules.
    ranks : dict of int
        Rank of each module.
    scalings : dict of float
        ``s`` of each module as trained.
    counts : dict of (samples,) int64 tensor
        Measured tokens of each sample, by set: ``"task"`` and the texts.
    base : dict of (samples,) float64 tensor
        Summed loss of each sample in the base model, by set, nats.
    points : list of RescaledPoint
        What was measured.
    limit : float or None
        Most nats per token that each set of texts may lose.
    config : dict
        ``adapter_config.json`` as trained.
    adapter : dict of Tensor
        The adapter's tensors, under the names that PEFT saves them by.
    fingerprints : dict of (16,) float32 tensor
        Of the base weights; `tlora.load` recognizes another base by them.
    meta : Meta
        The base model, the task and its number of samples.

    Examples
    --------
    >>> rescaling = tlora.rescale(adapted, task, tlora.load_texts(tokenizer, mine=["w4 w5 w6"]), limit=0.05,
    ...                           progress=False)
    >>> rescaling.to_frame()[["point", "scale", "set", "loss"]].shape
    (18, 4)
    >>> rescaling.best.kind
    'scale'
    >>> rescaling.save_adapter("milder").name
    'milder'
    """

    ranks: dict[str, int]
    scalings: dict[str, float]
    counts: dict[str, Int64[Tensor, " samples"]]
    base: dict[str, Float[Tensor, " samples"]]
    points: list[RescaledPoint]
    limit: float | None
    config: dict[str, Any]
    adapter: dict[str, Tensor]
    fingerprints: dict[str, Tensor]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "point": "what was measured",
        "kind": "scale: the whole adapter; part: without one part; left out: without several",
        "scale": "factor of the updates that are scaled, 1 if modules are left out",
        "modules": "number of modules whose update is not left out",
        "set": "task, or the name of a set of texts",
        "loss": "mean over all tokens, nats",
        "change": "loss minus that of the base model",
        "low": "lower end of its 95 % interval over samples, NaN for one sample",
        "high": "upper end",
    }

    def loss(self, point: RescaledPoint, name: str) -> float:
        """Mean loss per token of a set at a point, nats.

        Parameters
        ----------
        point : RescaledPoint
            One of ``points``.
        name : str
            ``"task"``, or the name of a set of texts.

        Returns
        -------
        float
        """
        return float(point.losses[name].sum() / self.counts[name].sum())

    def lost(self, point: RescaledPoint) -> float:
        """Largest rise of the loss of a set of texts over the base at ``point``, nats per token."""
        texts = [name for name in self.counts if name != TASK]
        changes = [(point.losses[name] - self.base[name]).sum() / self.counts[name].sum() for name in texts]
        return max(map(float, changes))

    @property
    def best(self) -> RescaledPoint:
        """The point with the lowest loss on the task among those within the limit; of all points without a limit.

        Raises
        ------
        ValueError
            If no point is within the limit, as a trained head may change other text by itself.
        """
        within = [point for point in self.points if self.limit is None or self.lost(point) <= self.limit]
        if not within:
            least = min(self.points, key=self.lost)
            raise ValueError(
                f"no point keeps every text within limit={self.limit}: {least.label} loses {self.lost(least):.3f} nats"
            )
        return min(within, key=lambda point: self.loss(point, TASK))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per point and set; see ``columns``."""
        rows = []
        for point in self.points:
            kept = sum(factor > 0 for factor in point.factors.values())
            about = {"point": point.label, "kind": point.kind, "scale": point.scale, "modules": kept}
            for name, counts in self.counts.items():
                change = point.losses[name] - self.base[name]
                low, high = ratio_interval(change.numpy(), counts.numpy(), CONFIDENCE)
                values = {"loss": self.loss(point, name), "change": float(change.sum() / counts.sum())}
                rows.append(about | {"set": name} | values | {"low": low, "high": high})
        return pd.DataFrame(rows, columns=list(self.columns))

    def save_adapter(self, folder: str | os.PathLike[str], point: RescaledPoint | None = None) -> Path:
        """Write the adapter at a point as PEFT writes one; `tlora.load` reads it.

        The factors go into the alphas, so ``A`` and ``B`` keep their bytes. Modules that are left out are not written.

        Parameters
        ----------
        folder : path-like
            Folder to write. Other files in it stay.
        point : RescaledPoint, optional
            One of ``points``; by default the `best`.

        Returns
        -------
        pathlib.Path
            The folder.

        Raises
        ------
        ValueError
            If the point is the base model: nothing would be left.
        FileExistsError
            If the folder holds a model, or an adapter that this method did not write.
        """
        point = self.best if point is None else point
        kept = {name: factor for name, factor in point.factors.items() if factor}
        if not kept:
            if all(self.loss(other, TASK) >= self.loss(point, TASK) for other in self.points):
                raise ValueError(
                    "the adapter lowers the loss on its task at no scale, so there is nothing to write: pass the task "
                    "that it was trained on"
                )
            raise ValueError(f"{point.label} is the base model: raise the limit, or pass another point")
        prints = {name: values for name, values in self.fingerprints.items() if name in kept}
        whole = adapter_of(self.config, self.adapter, prints)
        updates, embeddings = (
            {n: factor * replace(several[n], scaling=self.scalings[n]) for n, factor in kept.items() if n in several}
            for several in (whole.updates, whole.embeddings)
        )
        return whole.with_updates(updates, embeddings).save(folder, RESCALE)

    @property
    def headline(self) -> str:
        """The finding: the best point, its loss on the task and what the texts lose."""
        whole = next(point for point in self.points if point.kind == SCALE and point.scale == 1)
        parts = [
            f"{point.label}: task {self.loss(point, TASK):.3f}, other text {self.lost(point):+.3f}"
            for point in dict.fromkeys((whole, self.best))
        ]
        return "; ".join(parts)

    def _summary(self) -> str:
        return f"{len(self.points)} points on {len(self.counts)} sets, nats per token; {self.headline}"
