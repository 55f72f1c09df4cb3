"""Alignment: whether two task subspaces point the same way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tlora.models.module_result import ModuleResult
from tlora.models.targets import Target
from tlora.models.weights import SIMILARITY_THRESHOLD, fingerprint_similarity
from tlora.numerics.linalg import nested_overlap, orthonormal, overlap_by_rank, principal_angles
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.validation import check_type, positive_int


@dataclass(frozen=True, repr=False, eq=False)
class Alignment(ModuleResult):
    """Principal angles and overlap of two subspaces on each module.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    sides : tuple of str
        What the two subspaces are called.
    rank : int
        Directions compared.
    angles : dict of (rank,) float64 tensor
        Principal angles at that rank, radians, rising; by full module name.
    overlaps : dict of (rank,) float64 tensor
        Overlap of the first 1, 2, ... ``rank`` directions, see ``tlora.numerics.linalg.overlap_by_rank``.
    determined : dict of int
        How many of the directions both sides' matrices determine. The rest are random completions, and agree
        by chance only.
    meta : Meta
        Model; the task, or both tasks; recipe of each side; the seed where both have the same.

    Notes
    -----
    Single directions near a small gap of the spectrum are not determined, subspaces are: judge by overlap, and
    by what the first and the last angle say together.

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, equation 4: the same overlap (there of
    the update's singular vectors).
    """

    sides: tuple[str, str]
    rank: int
    angles: dict[str, Tensor]
    overlaps: dict[str, Tensor]
    determined: dict[str, int]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "layer": "index of the block",
        "projection": "role within the block",
        "rank": "directions compared",
        "overlap": "mean squared cosine of the principal angles: 1 the same subspace, 0 orthogonal",
        "random": "overlap expected of two random subspaces, rank / d_in",
        "first_angle": "smallest principal angle, degrees",
        "median_angle": "median principal angle, degrees",
        "last_angle": "largest principal angle, degrees",
        "determined": "directions that both matrices determine; the rest are random completions",
    }

    @property
    def overlap(self) -> dict[str, float]:
        """Mean squared cosine of the principal angles at ``rank``, by full module name."""
        return {name: float(values[-1]) for name, values in self.overlaps.items()}

    @property
    def random(self) -> dict[str, float]:
        """Overlap expected of two random subspaces of that rank, ``rank / d_in``."""
        return {name: self.rank / target.d_in for name, target in self.targets.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row a module; see ``columns``."""
        degrees = np.rad2deg(torch.stack(list(self.angles.values())).numpy())
        return self.at(self.rank).assign(
            first_angle=degrees[:, 0],
            median_angle=np.median(degrees, axis=1),
            last_angle=degrees[:, -1],
            determined=list(self.determined.values()),
        )

    def at(self, rank: int) -> pd.DataFrame:
        """The overlaps at a rank up to that of the angles; nothing is decomposed again.

        Parameters
        ----------
        rank : int
            First directions of both sides to compare.

        Returns
        -------
        pandas.DataFrame
            One row a module: ``module``, ``layer``, ``projection``, ``rank``, ``overlap``, ``random``.

        Raises
        ------
        ValueError
            If the rank is below 1 or beyond ``rank``.
        """
        if not 1 <= rank <= self.rank:
            raise ValueError(f"rank {rank} of an alignment up to rank {self.rank}: use 1 to {self.rank}")
        return pd.DataFrame(
            self._places()
            | {
                "rank": rank,
                "overlap": [float(values[rank - 1]) for values in self.overlaps.values()],
                "random": [rank / target.d_in for target in self.targets.values()],
            }
        )

    def _summary(self) -> str:
        one, other = self.sides
        overlap, random = np.mean(list(self.overlap.values())), np.mean(list(self.random.values()))
        return (
            f"{one} and {other} at rank {self.rank} on {len(self.angles)} modules of {self.meta.model}: overlap "
            f"{overlap:.1%} on average, {random:.1%} by chance"
        )


@dataclass(frozen=True, repr=False, eq=False)
class LayerAlignment(ModuleResult):
    """Overlap of the subspaces of one projection between all pairs of layers.

    Attributes
    ----------
    targets : dict of Target
        The modules of the projection, by full module name in model order.
    kind : str
        Kind of the subspaces.
    rank : int
        Directions compared.
    overlap : (L, L) float64 tensor
        Mean squared cosine of the principal angles: 1 on the diagonal, ``rank / d_in`` by chance.
    meta : Meta
        Of the subspaces.
    """

    kind: str
    rank: int
    overlap: Float[Tensor, "layers layers"]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "layer": "index of the block of one module",
        "other": "index of the block of the other",
        "overlap": "mean squared cosine of the principal angles: 1 the same subspace, 0 orthogonal",
        "random": "overlap expected of two random subspaces, rank / d_in",
    }

    @property
    def projection(self) -> str:
        """Role of the modules within their blocks."""
        return self.targets[self.names[0]].projection

    @property
    def d_in(self) -> int:
        """Dimension that the directions live in."""
        return self.targets[self.names[0]].d_in

    @property
    def random(self) -> float:
        """Overlap expected of two random subspaces of that rank, ``rank / d_in``."""
        return self.rank / self.d_in

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of layers, each pair both ways; see ``columns``."""
        layers = list(self.layers.values())
        return pd.DataFrame(
            {
                "layer": np.repeat(layers, len(layers)),
                "other": np.tile(layers, len(layers)),
                "overlap": self.overlap.flatten().numpy().copy(),
                "random": self.random,
            }
        )

    def _summary(self) -> str:
        apart = self.overlap[~torch.eye(len(self.targets), dtype=torch.bool)]
        return (
            f"{self.projection} of {len(self.targets)} layers of {self.meta.model}, kind {self.kind!r}, "
            f"rank {self.rank}: overlap {float(apart.mean()):.1%} on average, {self.random:.1%} by chance"
        )


def align(a: Subspaces, b: Subspaces, rank: int, *, labels: tuple[str, str] | None = None) -> Alignment:
    """Principal angles and overlap of two subspaces on every module of one model.

    Two kinds, two tasks, two seeds, or two halves of the samples (two calibrations, each of one half): whatever
    made the two, they must be of the same modules.

    Parameters
    ----------
    a, b : Subspaces
        From `task_subspaces`.
    rank : int
        First directions of both to compare.
    labels : tuple of str, optional
        What to call the two; by default their kinds, and where these are the same, what else sets them apart.

    Returns
    -------
    Alignment

    Raises
    ------
    TypeError
        If one of them is not a Subspaces.
    ValueError
        If they are of other modules, other models or other widths, or the rank is beyond what one of them has.
    """
    for side in (a, b):
        check_type(side, Subspaces, "task_subspaces(...)")
    rank = positive_int(rank, "rank")
    _check_comparable(a, b)
    rows = {name: (a.basis(name, rank), b.basis(name, rank)) for name in a.names}
    one, other = labels or told_apart((a, b))
    sides = [{"kind": s.kind, "task": s.meta.task, "samples": s.meta.samples, "seed": s.meta.seed} for s in (a, b)]
    return Alignment(
        targets=dict(a.targets),
        sides=(one, other),
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


def told_apart(sides: Sequence[Subspaces]) -> list[str]:
    """What to call several subspaces: their kinds; where two are the same, with what else differs, or with a number."""
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


def align_layers(subspaces: Subspaces, projection: str, rank: int) -> LayerAlignment:
    """Overlap of the subspaces of one projection between all pairs of layers.

    Parameters
    ----------
    subspaces : Subspaces
        From `task_subspaces`.
    projection : str
        Role within the block, e.g. ``"q_proj"``.
    rank : int
        First directions to compare.

    Returns
    -------
    LayerAlignment

    Raises
    ------
    ValueError
        If the projection is in fewer than two layers, its modules read inputs of different width, or the rank
        is beyond what one of them has.
    """
    rank = positive_int(rank, "rank")
    check_type(subspaces, Subspaces, "task_subspaces(...)")
    targets = {name: target for name, target in subspaces.targets.items() if target.projection == projection}
    if len(targets) < 2:
        there = ", ".join(_repeated(subspaces.projections.values())) or "none"
        raise ValueError(
            f"projection={projection!r} is in {len(targets)} layers, and layers are compared in pairs: "
            f"choose from {there}"
        )
    _check_one_width(targets)
    rows = torch.stack([orthonormal(subspaces.basis(name, rank)) for name in targets])
    products = [torch.einsum("rd,lsd->lrs", one, rows) for one in rows]
    overlap = torch.stack([product.square().sum((1, 2)) / rank for product in products]).clamp(max=1)
    return LayerAlignment(
        targets=targets,
        kind=subspaces.kind,
        rank=rank,
        overlap=overlap,
        meta=subspaces.meta,
    )


def overlap_with_neighbours(subspaces: Subspaces) -> dict[str, Tensor]:
    """Overlap of each module's subspace with that of its projection one layer before and one layer after.

    Parameters
    ----------
    subspaces : Subspaces
        From `task_subspaces`.

    Returns
    -------
    dict of (r,) float64 tensor
        Overlap of the first 1, 2, ... r directions, the mean of both neighbours where there are two; by full module
        name, without modules that have none of their width.
    """
    check_type(subspaces, Subspaces, "task_subspaces(...)")
    found: dict[str, list[Tensor]] = {}
    for projection in dict.fromkeys(subspaces.projections.values()):
        members = [name for name, role in subspaces.projections.items() if role == projection]
        for pair in pairwise(members):
            if len({subspaces.targets[name].d_in for name in pair}) == 1:
                rank = min(len(subspaces.bases[name]) for name in pair)
                overlap = nested_overlap(*(subspaces.basis(name, rank).double() for name in pair))
                for name in pair:
                    found.setdefault(name, []).append(overlap)
    common = {name: min(map(len, overlaps)) for name, overlaps in found.items()}
    return {name: torch.stack([one[: common[name]] for one in found[name]]).mean(0) for name in found}


def _check_comparable(a: Subspaces, b: Subspaces) -> None:
    if only := sorted(set(a.names) ^ set(b.names)):
        side = "first" if only[0] in a.bases else "second"
        raise ValueError(
            f"the two subspaces are of different modules: {only[0]} is in the {side} only; calibrate one model with "
            "the same target_modules for both"
        )
    for name in a.names:
        one, other = a.targets[name].d_in, b.targets[name].d_in
        if one != other:
            raise ValueError(
                f"the two subspaces are of different models: {name} reads {one} inputs in the first and {other} in the "
                "second; calibrate one model for both"
            )
        alike = fingerprint_similarity(a.fingerprints[name], b.fingerprints[name])
        if not alike > SIMILARITY_THRESHOLD:
            raise ValueError(
                f"the two subspaces are of different models: the weight of {name} is not the same (likeness "
                f"{alike:.2f} of 1); calibrate one model for both"
            )


def _check_one_width(targets: dict[str, Target]) -> None:
    first, *others = targets.values()
    for other in others:
        if other.d_in != first.d_in:
            raise ValueError(
                f"{first.name} reads {first.d_in} inputs and {other.name} {other.d_in}, and no angles are between "
                "spaces of different width: choose a projection whose layers are alike"
            )


def _repeated(values: Iterable[str]) -> list[str]:
    seen = list(values)
    return [value for value in dict.fromkeys(seen) if seen.count(value) > 1]
