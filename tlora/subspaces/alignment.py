"""Alignment: how much two task subspaces overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tlora.models.experts import is_expert
from tlora.models.module_result import PLACE_COLUMNS, ModuleResult, module_frame
from tlora.models.weights import SIMILARITY_THRESHOLD, fingerprint_similarity
from tlora.numerics.linalg import nested_overlap, overlap_by_rank, principal_angles
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.validation import check_arguments, require_positive_int


@dataclass(frozen=True, repr=False, eq=False)
class Alignment(ModuleResult):
    """Principal angles and overlap of two subspaces of each module.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    sides : tuple of str
        Labels of the two subspaces.
    rank : int
        Number of directions compared.
    angles : dict of (rank,) float64 tensor
        Principal angles at that rank by full module name, radians, ascending.
    overlaps : dict of (rank,) float64 tensor
        Overlap of the first 1, 2, ... ``rank`` directions: the mean squared cosine of their principal angles.
    determined : dict of int
        Number of directions that both matrices determine. The rest are random completions that agree only by chance.
    meta : Meta
        Model, task or both tasks, recipe of each side, and the seed if both have the same.

    Notes
    -----
    Single directions near a small gap of the spectrum are not determined, subspaces are: judge by the overlap, and by
    the first and the last angle together.

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, equation 4: the same overlap, of
    the update's singular vectors.

    Examples
    --------
    >>> random = tlora.task_subspaces(model, calibration, max_rank=8, kind="random", progress=False)
    >>> alignment = tlora.align(subspaces, random, rank=4)
    >>> alignment
    Alignment(wc and random at rank 4 on 14 modules of base: overlap ...% on average, ...% by chance)
    >>> alignment.to_frame()[["module", "overlap", "random"]].shape
    (14, 3)
    """

    sides: tuple[str, str]
    rank: int
    angles: dict[str, Tensor]
    overlaps: dict[str, Tensor]
    determined: dict[str, int]
    meta: Meta

    columns: ClassVar[dict[str, str]] = PLACE_COLUMNS | {
        "rank": "directions compared",
        "overlap": "mean squared cosine of the principal angles: 1 the same subspace, 0 orthogonal",
        "random": "expected overlap of two random subspaces, rank / d_in",
        "first_angle": "smallest principal angle, degrees",
        "median_angle": "median principal angle, degrees",
        "last_angle": "largest principal angle, degrees",
        "determined": "directions determined by both matrices; the rest are random completions",
    }

    @property
    def overlap(self) -> dict[str, float]:
        """Mean squared cosine of the principal angles at ``rank``, by full module name."""
        return {name: float(values[-1]) for name, values in self.overlaps.items()}

    @property
    def random(self) -> dict[str, float]:
        """Expected overlap of two random subspaces of that rank, ``rank / d_in``."""
        return {name: self.rank / target.d_in for name, target in self.targets.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row for each module; see ``columns``."""
        degrees = np.rad2deg(torch.stack(list(self.angles.values())).numpy())
        return self.at(self.rank).assign(
            first_angle=degrees[:, 0],
            median_angle=np.median(degrees, axis=1),
            last_angle=degrees[:, -1],
            determined=list(self.determined.values()),
        )

    def at(self, rank: int) -> pd.DataFrame:
        """Overlaps at a lower rank, without another decomposition.

        Parameters
        ----------
        rank : int
            Number of directions to compare, at most that of the alignment.

        Returns
        -------
        pandas.DataFrame
            One row for each module: ``module``, ``layer``, ``projection``, ``rank``, ``overlap``, ``random``.
        """
        if not 1 <= rank <= self.rank:
            raise ValueError(f"rank {rank} of an alignment up to rank {self.rank}: use 1 to {self.rank}")
        return module_frame(self.targets.values()).assign(
            rank=rank,
            overlap=[float(values[rank - 1]) for values in self.overlaps.values()],
            random=[rank / target.d_in for target in self.targets.values()],
        )

    def _summary(self) -> str:
        first, second = self.sides
        overlap, random = np.mean(list(self.overlap.values())), np.mean(list(self.random.values()))
        return (
            f"{first} and {second} at rank {self.rank} on {len(self.angles)} modules of {self.meta.model}: overlap "
            f"{overlap:.1%} on average, {random:.1%} by chance"
        )


def align(a: Subspaces, b: Subspaces, rank: int, *, labels: tuple[str, str] | None = None) -> Alignment:
    """Compare two subspaces of every module of one model by principal angles and overlap.

    They can be of two kinds, tasks, seeds or sets of samples, but must be of the same modules.

    Parameters
    ----------
    a, b : Subspaces
        From `task_subspaces`.
    rank : int
        Number of directions of each to compare.
    labels : tuple of str, optional
        Labels of the two; by default their kinds, with the task, the samples or the seed if the kinds are equal.

    Returns
    -------
    Alignment

    Raises
    ------
    ValueError
        If they are of other modules or other models, or one of them has fewer directions than ``rank``.

    Examples
    --------
    >>> weight_alone = tlora.task_subspaces(model, calibration, max_rank=8, kind="w", progress=False)
    >>> alignment = tlora.align(subspaces, weight_alone, rank=4)
    >>> alignment.sides
    ('wc', 'w')
    """
    check_arguments(align, locals())
    rank = require_positive_int(rank, "rank")
    _check_comparable(a, b)
    rows = {name: (a.basis(name, rank), b.basis(name, rank)) for name in a.names}
    first, second = labels or label_subspaces((a, b))
    sides = [{"kind": s.kind, "task": s.meta.task, "samples": s.meta.samples, "seed": s.meta.seed} for s in (a, b)]
    return Alignment(
        targets=dict(a.targets),
        sides=(first, second),
        rank=rank,
        angles={name: principal_angles(*pair) for name, pair in rows.items()},
        overlaps={name: overlap_by_rank(*pair) for name, pair in rows.items()},
        determined={n: min(a.numerical_rank[n], b.numerical_rank[n], rank) for n in rows},
        meta=Meta(
            model=a.meta.model,
            task=" and ".join(dict.fromkeys(s.meta.task for s in (a, b) if s.meta.task)),
            recipe={"rank": rank, "sides": sides},
            seed=a.meta.seed if a.meta.seed == b.meta.seed else None,
            samples=min((s.meta.samples for s in (a, b) if s.meta.samples), default=None),
        ),
    )


def label_subspaces(sides: Sequence[Subspaces]) -> list[str]:
    """Distinct labels: the kinds, with whatever else differs, or a number, if kinds are equal."""
    labels = [side.kind for side in sides]
    more = [
        [side.meta.task for side in sides],
        [f"{side.meta.samples} sample{'s' * (side.meta.samples != 1)}" for side in sides],
        [f"seed {side.meta.seed}" for side in sides],
    ]
    differing = [parts for parts in more if len(set(parts)) > 1]
    if len(set(labels)) < len(labels) and differing:
        labels = [f"{kind} of {', '.join(parts)}" for kind, *parts in zip(labels, *differing, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({number})" for number, label in enumerate(labels, 1)]
    return labels


def overlap_with_neighbors(subspaces: Subspaces) -> dict[str, Tensor]:
    """Overlap of each linear layer's subspace with that of the same projection in the neighboring layers.

    Overlaps of the first 1, 2, ... r directions (r,) float64 by full module name, the mean of both neighbors if there
    are two; modules without a neighbor of their width are left out, and so are experts, whose numbers are arbitrary.
    """
    neighbors: dict[str, list[Tensor]] = {}
    for projection in dict.fromkeys(subspaces.projections.values()):
        members = [n for n, role in subspaces.projections.items() if role == projection and not is_expert(n)]
        for pair in pairwise(members):
            if len({subspaces.targets[name].d_in for name in pair}) == 1:
                rank = min(len(subspaces.bases[name]) for name in pair)
                overlap = nested_overlap(*(subspaces.basis(name, rank).double() for name in pair))
                for name in pair:
                    neighbors.setdefault(name, []).append(overlap)
    common = {name: min(map(len, overlaps)) for name, overlaps in neighbors.items()}
    return {name: torch.stack([one[: common[name]] for one in each]).mean(0) for name, each in neighbors.items()}


def _check_comparable(a: Subspaces, b: Subspaces) -> None:
    if only := sorted(set(a.names) ^ set(b.names)):
        side = "first" if only[0] in a.bases else "second"
        raise ValueError(
            f"the two subspaces are of different modules: {only[0]} is in the {side} only; calibrate one model with "
            "the same target_modules for both"
        )
    for name in a.names:
        similarity = fingerprint_similarity(a.fingerprints[name], b.fingerprints[name])
        if a.shapes[name] != b.shapes[name] or not similarity > SIMILARITY_THRESHOLD:
            raise ValueError(
                f"the two subspaces are of different models: the weight of {name} is not the same; calibrate one model "
                "for both"
            )
