"""Two calibrations of different samples are one of all of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from tlora.calibration import Calibration
from tlora.results import library_versions
from tlora.statistics import Options

SAME_WEIGHT = 1e-3
"""How far apart the projections of a weight may be, relative to their size, where statistics are added up."""


def merged(one: Calibration, other: Calibration) -> Calibration:
    """The calibration of the samples of both; see `Calibration.merge`."""
    if not isinstance(other, Calibration):
        raise TypeError(f"other is a {type(other).__name__}: pass what calibrate(model, ...) returned")
    check_alike(one, other.names, other.meta.recipe, other.fingerprints, "the other calibration")
    twice = set(one.sample_fingerprints.tolist()) & set(other.sample_fingerprints.tolist())
    if twice:
        raise ValueError(f"{len(twice)} samples are in both calibrations and would count twice: use others")
    if one.shared != other.shared or not _same(one.sketching, other.sketching):
        raise ValueError("modules share inputs, or were sketched, in another way there: calibrate with this version")
    return _sum(one, other)


def in_order(calibration: Calibration, order: list[int]) -> Calibration:
    """The calibration with its samples in another order, given by their fingerprints.

    Raises
    ------
    RuntimeError
        If they are not the same samples.
    """
    found = calibration.sample_fingerprints
    if Counter(found.tolist()) != Counter(order):
        raise RuntimeError(
            f"{len(found)} samples went through where {len(order)} were asked for: each process must be given the same "
            "batches in the same order, of which it takes its part"
        )
    index = torch.tensor(_places(found.tolist(), order))
    sensitivity = replace(calibration.sensitivity, per_sample=calibration.sensitivity.per_sample[index])
    return replace(calibration, sensitivity=sensitivity, sample_fingerprints=found[index])


def _places(fingerprints: list[int], order: list[int]) -> list[int]:
    """Where in ``fingerprints`` each of ``order`` is: the same numbers, each as often."""
    found = defaultdict(list)
    for place, fingerprint in reversed(list(enumerate(fingerprints))):
        found[fingerprint].append(place)
    return [found[fingerprint].pop() for fingerprint in order]


def check_alike(
    calibration: Calibration, names: list[str], recipe: dict[str, Any], fingerprints: dict[str, Tensor], what: str
) -> None:
    """Refuse to add up statistics that are not of the same thing.

    Raises
    ------
    ValueError
        If modules, options or weights differ.
    """
    if names != calibration.names:
        raise ValueError(f"{what} is of other modules, {len(calibration.names)} and {len(names)}: target the same ones")
    for option in fields(Options):
        one, other = calibration.meta.recipe[option.name], recipe[option.name]
        is_unused = option.name == "sketch_size" and recipe["covariance"] == "dense"
        if one != other and not is_unused:
            raise ValueError(f"{what} differs in {option.name}={one!r} and {other!r}: calibrate with the same")
    for name, expected in calibration.fingerprints.items():
        apart, size = float((fingerprints[name] - expected).norm()), float(expected.norm())
        if not apart <= SAME_WEIGHT * size:
            raise ValueError(
                f"{what} is of another model, or of the same at another precision: the weights of {name} differ by "
                f"{apart:.1e} where their size is {size:.1e}; calibrate the same model"
            )


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(t, other[key], atol=1e-6) for key, t in one.items())


def _sum(one: Calibration, other: Calibration) -> Calibration:
    tasks = dict.fromkeys([one.meta.task, other.meta.task])
    meta = replace(
        one.meta,
        task=" + ".join(task for task in tasks if task),
        seed=one.meta.seed if one.meta.seed == other.meta.seed else None,
        samples=len(one.sample_fingerprints) + len(other.sample_fingerprints),
        versions=library_versions(),
    )
    gradient = None
    if one.gradient is not None and other.gradient is not None:
        gradient = {name: g.merge(other.gradient[name]) for name, g in one.gradient.items()}
    scores = torch.cat([one.sensitivity.per_sample, other.sensitivity.per_sample])
    return replace(
        one,
        covariances={name: c.merge(other.covariances[name]) for name, c in one.covariances.items()},
        sensitivity=replace(one.sensitivity, per_sample=scores, meta=meta),
        gradient=gradient,
        sample_fingerprints=torch.cat([one.sample_fingerprints, other.sample_fingerprints]),
        meta=meta,
    )
