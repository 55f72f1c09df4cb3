"""How much of it? Measure an adapter's task and other text while it is scaled down or modules are left out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from peft import PeftModel
from torch import Tensor

from tlora.adapters.adapter import adapter_of
from tlora.adapters.files import MEASURE_SCALES
from tlora.adapters.lora_layers import adapter_config, adapter_layers, adapter_tensors, warn_resized_vocabulary
from tlora.explanation.attribute import adapter_targets
from tlora.explanation.attribution import CONFIDENCE, groups
from tlora.explanation.gated_adapter import GatedAdapter
from tlora.explanation.side_effects import NO_TEXTS, check_texts
from tlora.models.forward import evaluation_mode
from tlora.models.module_result import ModuleResult
from tlora.models.weights import base_fingerprints, model_name
from tlora.numerics.statistics import ratio_interval
from tlora.results import Meta
from tlora.tasks.evaluation import summed_losses
from tlora.tasks.task import Task
from tlora.utils.defaults import Parts
from tlora.utils.progress import progress_bar
from tlora.utils.validation import check_arguments, require_choice, require_positive_int

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
        """Factor of the scaled modules; 1 if modules are left out."""
        return min(self.factors.values()) if self.kind == SCALE else max(self.factors.values())


@dataclass(frozen=True, repr=False, eq=False)
class Rescaling(ModuleResult):
    """The loss on the adapter's task and on other text at several scales; from `tlora.measure_scales`.

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
        Of the base weights; `tlora.load_adapter` recognizes another base by them.
    meta : Meta
        The base model, the task and its number of samples.

    Examples
    --------
    >>> rescaling = tlora.measure_scales(adapted, task, tlora.load_texts(tokenizer, mine=["w4 w5 w6"]), limit=0.05,
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
        require_choice(name, "name", list(self.counts))
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
        if not (within := self._within()):
            least = min(self.points, key=self.lost)
            raise ValueError(
                f"no point keeps every text within limit={self.limit}: {least.label} loses "
                f"{self.lost(least):.3f} nats: raise the limit, or pass a point"
            )
        return min(within, key=lambda point: self.loss(point, TASK))

    def _within(self) -> list[RescaledPoint]:
        """The points within the limit."""
        return [point for point in self.points if self.limit is None or self.lost(point) <= self.limit]

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
        """Write the adapter at a point as PEFT writes one; `tlora.load_adapter` reads it.

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
        return whole.with_updates(updates, embeddings).save(folder, MEASURE_SCALES)

    @property
    def headline(self) -> str:
        """The finding: the best point, its loss on the task and what the texts lose."""
        whole = next(point for point in self.points if point.kind == SCALE and point.scale == 1)
        parts = [
            f"{point.label}: task {self.loss(point, TASK):.3f}, other text {self.lost(point):+.3f}"
            for point in dict.fromkeys((whole, *([self.best] if self._within() else [])))
        ]
        return "; ".join(parts if self._within() else [*parts, f"no point is within limit={self.limit}"])

    def _summary(self) -> str:
        return f"{len(self.points)} points on {len(self.counts)} sets, nats per token; {self.headline}"


SCALES = 9
"""Scales of the whole adapter, and most points at which several parts are left out."""


def measure_scales(
    adapted: PeftModel,
    task: Task,
    texts: Mapping[str, Task],
    *,
    limit: float | None = None,
    parts: Parts | None = None,
    only: str | None = None,
    samples: int = 64,
    split: str = "validation",
    batch_size: int = 8,
    progress: bool = True,
) -> Rescaling:
    """Measure the loss on the task and on other text at nine scales of an adapter, and find the best within a limit.

    Parameters
    ----------
    adapted : peft.PeftModel
        A base that writes text, with one active LoRA adapter, whoever trained it. It is not changed.
    task : Task
        What the adapter was trained for.
    texts : mapping of str to Task
        Sets of texts by name that the adapter should leave alone, as from `load_texts`; of a task its test samples.
    limit : float, optional
        Most nats per token that the loss of each set of texts may rise.
    parts : {"layers", "projections", "modules"}, optional
        Also leave out each part alone, and then more and more of them: first those whose absence costs the task least
        and helps the texts most. That takes a pass over all samples for each part.
    only : str, optional
        A layer, projection or module to scale, such as ``"layer 3"`` or ``"v_proj"``; the others stay as trained. All
        are scaled by default.
    samples : int
        Most samples of the task and of each set, drawn with their seed.
    split : str
        Split of the task. What is chosen on validation samples can be tested on others.
    batch_size : int
        Most samples at a time.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Rescaling
        Its `Rescaling.save_adapter` writes the best point as an ordinary adapter.

    Raises
    ------
    ValueError
        If the adapter is not plain LoRA (DoRA, PiSSA that was not converted), the model is a classifier, a set is for
        another architecture or tokenizer or empty, there are no sets, the limit is negative, or no module is called
        ``only``.

    Notes
    -----
    Each module computes ``W x + t s B A x``, with one ``t`` for all modules that are scaled and 1 for the others; or
    with 0 for those left out and 1 for the others. A trained head is kept as trained. The order in which parts are
    left out is by the loss of the task without the part alone minus what the texts gain, mean over sets. Parts
    interact, so every point is measured.

    Examples
    --------
    >>> texts = tlora.load_texts(tokenizer, "code")
    >>> rescaling = tlora.measure_scales(adapted, task, texts, limit=0.05, samples=4, parts="layers", progress=False)
    >>> [point.label for point in rescaling.points][-3:]
    ['without layer 0', 'without layer 1', 'without 1 of 2 layers']
    """
    check_arguments(measure_scales, locals())
    if limit is not None and not limit >= 0:
        raise ValueError(f"limit={limit} is negative: pass the most nats per token that each text may lose")
    require_choice(parts, "parts", (None, *get_args(Parts)))
    gated = GatedAdapter(adapted, "measure_scales")
    if not texts:
        raise ValueError(NO_TEXTS)
    if TASK in texts:
        raise ValueError(f"a set of texts cannot be called {TASK!r}, as what the adapter was trained for is: rename it")
    sets = {TASK: task} | dict(texts)
    warn_resized_vocabulary(adapted)
    rows = {name: each.rows(split if name == TASK else "test", samples) for name, each in sets.items()}
    check_texts(gated.model, dict(texts) | {TASK: task}, rows)
    counts: dict[str, Tensor] = {}
    require_positive_int(batch_size, "batch_size")

    def measure(scaled: contextlib.AbstractContextManager[PeftModel]) -> dict[str, Tensor]:
        losses = {}
        with scaled as model, evaluation_mode(model):
            for name, text_set in sets.items():
                losses[name], counts[name] = summed_losses(model, text_set, rows[name], batch_size, False)
        bar.update()
        return losses

    def add(label: str, kind: str, factors: dict[str, float]) -> RescaledPoint:
        changes = {name: t * torch.eye(gated.ranks[name]) for name, t in factors.items() if t != 1}
        points.append(RescaledPoint(label, kind, factors, measure(gated.changed(changes))))
        return points[-1]

    targets = adapter_targets(gated)
    by_parts = {by: groups(targets, by.removesuffix("s")) for by in get_args(Parts)}
    named = {label: names for members in by_parts.values() for label, names in members.items()}
    if only is not None and only not in named:
        raise ValueError(f"only={only!r} is no part of this adapter: pass one of {', '.join([*named][:3])}, ...")
    scaled = targets if only is None else named[only]
    members = by_parts[parts] if parts else {}
    path = np.unique(np.linspace(0, len(members), SCALES).round().astype(int))[1:-1]
    points: list[RescaledPoint] = []
    with progress_bar(show=progress, total=1 + SCALES + len(members) + len(path), desc="scales") as bar:
        base = measure(gated.as_base())
        for t in np.linspace(0, 1, SCALES).tolist():
            add(
                f"scale {t:.3g}{f' of {only}' if only else ''}",
                SCALE,
                dict.fromkeys(targets, 1.0) | dict.fromkeys(scaled, t),
            )
        whole = points[-1]
        worth = {}
        for label, names in members.items():
            point = add(f"without {label}", PART, {name: float(name not in names) for name in targets})
            change = {name: (point.losses[name] - whole.losses[name]).sum() / counts[name].sum() for name in sets}
            worth[label] = float(change[TASK]) + float(np.mean([change[name] for name in texts]))
        order = sorted(members, key=worth.__getitem__)
        for count in path.tolist():
            gone = {name for label in order[:count] for name in members[label]}
            label = f"without {count} of {len(members)} {parts}"
            add(label, LEFT_OUT, {name: float(name not in gone) for name in targets})
    layers = adapter_layers(gated.peft)
    return Rescaling(
        targets=targets,
        ranks=gated.ranks,
        scalings={name: float(layers[name].scaling[gated.adapter]) for name in targets},
        counts=counts,
        base=base,
        points=points,
        limit=limit,
        config=adapter_config(adapted),
        adapter={key: tensor.detach().cpu().clone() for key, tensor in adapter_tensors(adapted).items()},
        fingerprints=base_fingerprints(adapted),
        meta=Meta(
            model_name(gated.model),
            task.name,
            {"texts": list(texts), "limit": limit, "parts": parts, "only": only, "samples": samples, "split": split},
            task.seed,
            len(rows[TASK]),
        ),
    )
