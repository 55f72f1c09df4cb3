"""What a calibration finds: covariance and sensitivity of every target module."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from tlora.calibration.covariance import Covariance
from tlora.calibration.gradient import Gradient
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum, spectrum
from tlora.models.targets import Target
from tlora.results import Meta, Result
from tlora.utils.defaults import COVARIANCE, SKETCH_SIZE, TOKENS, CovarianceForm, Tokens
from tlora.utils.packages import library_versions
from tlora.utils.validation import positive_int

SAME_WEIGHT = 1e-3
"""How far apart the projections of a weight may be, relative to their size, where statistics are added up."""


Products = Literal["float32", "model"]


@dataclass(frozen=True, repr=False, eq=False)
class Calibration(Result):
    """What a few samples of a task tell about each target module.

    Attributes
    ----------
    covariances : dict of Covariance
        By the name of the first module that reads the input.
    shared : dict of str
        For each module the key into ``covariances``: modules that read one tensor share one covariance.
    sensitivity : Sensitivity
        Scores of the modules, sample by sample.
    gradient : dict of Gradient or None
        Mean gradient of each weight, where asked for.
    fingerprints : dict of (16,) float32 tensor
        A random projection of each weight, by which `attach` tells another model's results.
    sample_fingerprints : (N,) int64 tensor
        For each sample a number by which it is known again, in the order of ``sensitivity.per_sample``.
    sketching : dict of Tensor
        The random matrices that sketches were made with, by their size; see ``SketchingMatrices``.
    meta : Meta
        Model, task, sample count, how the tokens were counted.
    """

    covariances: dict[str, Covariance]
    shared: dict[str, str]
    sensitivity: Sensitivity
    gradient: dict[str, Gradient] | None
    fingerprints: dict[str, Tensor]
    sample_fingerprints: Int[Tensor, " samples"]
    sketching: dict[str, Tensor]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "layer": "index of the block",
        "projection": "role within the block",
        "d_out": "outputs of the weight",
        "d_in": "inputs of the weight",
        "trace": "total variance of the inputs, squared units of the activation",
        "error": "share of the trace that a sketch misses, 0 where the covariance is dense",
        "rank_bound": "largest possible rank of the covariance: tokens minus one, summed over samples",
        "shares_with": "module whose covariance this one shares (itself where it is the first)",
        "score": "sensitivity score, nats per token",
    }

    @property
    def names(self) -> list[str]:
        """Full names of the target modules, in model order."""
        return list(self.shared)

    @property
    def targets(self) -> dict[str, Target]:
        """What each module is, by full module name; as in ``sensitivity``."""
        return self.sensitivity.targets

    @property
    def covariance(self) -> dict[str, Covariance]:
        """Covariance by full module name; modules that read the same tensor give the same object."""
        return {name: self.covariances[first] for name, first in self.shared.items()}

    def spectrum(self) -> Spectrum:
        """Eigenvalues and effective ranks of all covariances."""
        return spectrum(self.covariances, self.shared, self.targets, self.meta)

    def to_frame(self) -> pd.DataFrame:
        """One row a module; see ``columns``."""
        traces = {first: c.trace for first, c in self.covariances.items()}
        errors = {first: c.error for first, c in self.covariances.items()}
        return pd.DataFrame(
            self.sensitivity.module_columns()
            | {
                "d_out": [target.d_out for target in self.targets.values()],
                "d_in": [target.d_in for target in self.targets.values()],
                "trace": [traces[first] for first in self.shared.values()],
                "error": [errors[first] for first in self.shared.values()],
                "rank_bound": [self.covariances[first].rank_bound for first in self.shared.values()],
                "shares_with": list(self.shared.values()),
                "score": list(self.sensitivity.scores.values()),
            }
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the covariances with the means, of the gradients, and of what sketches were made with."""
        sketching = sum(matrix.nbytes for matrix in self.sketching.values())
        gradients = sum(gradient.nbytes for gradient in (self.gradient or {}).values())
        return sum(c.nbytes for c in self.covariances.values()) + gradients + sketching

    def merge(self, other: Calibration) -> Calibration:
        """The calibration of the samples of both, as one pass over all of them would give it.

        Parameters
        ----------
        other : Calibration
            Of other samples, on the same model, with the same options.

        Returns
        -------
        Calibration
            This one's samples come first. Nothing is computed but sums: it is exact but for float32 rounding.

        Raises
        ------
        TypeError
            If the other is not a calibration.
        ValueError
            If it is of another model, of other modules or made with other options, or if a sample is in both.
        """
        if not isinstance(other, Calibration):
            raise TypeError(f"other is a {type(other).__name__}: pass what calibrate(model, ...) returned")
        check_alike(self, other.names, other.meta.recipe, other.fingerprints, "the other calibration")
        twice = set(self.sample_fingerprints.tolist()) & set(other.sample_fingerprints.tolist())
        if twice:
            raise ValueError(f"{len(twice)} samples are in both calibrations and would count twice: use others")
        if self.shared != other.shared or not _same(self.sketching, other.sketching):
            raise ValueError("the other calibration shares or sketches inputs differently: use one version for both")
        return _sum(self, other)

    def _summary(self) -> str:
        kept = "" if self.meta.recipe.get("covariance") == "dense" else ", sketched"
        return (
            f"{len(self.shared)} modules with {len(self.covariances)} distinct inputs of {self.meta.model}, "
            f"{self.meta.samples} samples, tokens={self.meta.recipe.get('tokens')!r}{kept}"
        )


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
            f"{len(found)} samples were processed, {len(order)} expected: give every process the same batches in the "
            "same order, of which it takes its part"
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
        sizes = f"{len(calibration.names)} and {len(names)}"
        raise ValueError(f"{what} is of other modules, {sizes}: use the same target_modules")
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


@dataclass(frozen=True)
class Options:
    """What is kept of the samples, and how it is computed.

    Attributes
    ----------
    tokens : {"all", "labels"}
        Tokens that the covariances are taken over.
    gradient : bool
        Whether mean gradients are kept.
    covariance : {"dense", "sketch"}
        How covariances are kept.
    sketch_size : int
        Columns of a sketch.
    products : {"float32", "model"}
        Precision of the factors of products: float32, or what the model computes in unless that is float16.
    """

    tokens: Tokens = TOKENS
    gradient: bool = False
    covariance: CovarianceForm = COVARIANCE
    sketch_size: int = SKETCH_SIZE
    products: Products = "float32"

    def __post_init__(self) -> None:
        for name, choices in (("tokens", Tokens), ("covariance", CovarianceForm), ("products", Products)):
            if (value := getattr(self, name)) not in get_args(choices):
                raise ValueError(f"{name}={value!r}: choose {' or '.join(map(repr, get_args(choices)))}")
        positive_int(self.sketch_size, "sketch_size")

    def is_sketched(self, d_in: int) -> bool:
        """Whether a covariance of this width is kept as a sketch: where that is at most half of the whole."""
        return self.covariance == "sketch" and d_in >= 2 * self.sketch_size
