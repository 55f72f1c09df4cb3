"""Calibration: covariance and sensitivity of every target module, from a few samples of a task."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, get_args

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from tlora.calibration.covariance import Covariance
from tlora.calibration.gradient import Gradient
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum, spectrum
from tlora.models.module_result import PLACE_COLUMNS, module_frame
from tlora.models.targets import Target
from tlora.results import Meta, Result
from tlora.utils.defaults import COVARIANCE, SKETCH_SIZE, TOKENS, CovarianceForm, Tokens
from tlora.utils.packages import library_versions
from tlora.utils.validation import check_arguments, require_choice, require_positive_int

SAME_WEIGHT = 1e-3
"""Largest relative difference between the fingerprints of a weight whose statistics may be added."""


@dataclass(frozen=True, repr=False, eq=False)
class Calibration(Result):
    """Input covariance and sensitivity of each target module on a few samples of a task.

    Attributes
    ----------
    covariances : dict of Covariance
        By the name of the first module that reads the input.
    shared : dict of str
        For each module the key into ``covariances``: modules that read one tensor share one covariance.
    sensitivity : Sensitivity
        Scores of the modules, sample by sample.
    gradient : dict of Gradient or None
        Mean gradient of each weight, if requested.
    fisher : dict of Covariance or None
        If requested, ``(1/N) sum_t |d_t|^2 x_t x_t^T`` of each module: the second moment of its inputs, each token
        weighted by its squared gradient ``d_t`` at the module's output. It is the sum of the diagonal blocks, one for
        each output, of the empirical Fisher matrix of the weight with independent tokens. Squared nats per token.
    fingerprints : dict of (16,) float32 tensor
        A random projection of each weight, which identifies the model.
    sample_fingerprints : (N,) int64 tensor
        A number that identifies each sample, in the order of ``sensitivity.per_sample``.
    sketching : dict of Tensor
        The random matrices behind the sketches, by their size.
    meta : Meta
        Model, task, sample count, options.

    Examples
    --------
    >>> calibration
    Calibration(14 modules with 8 distinct inputs of base, 8 samples, tokens='all')
    >>> calibration.to_frame()[["module", "trace", "score"]].shape
    (14, 3)
    >>> calibration.spectrum()
    Spectrum(covariance, 14 modules, effective rank ...)
    """

    covariances: dict[str, Covariance]
    shared: dict[str, str]
    sensitivity: Sensitivity
    gradient: dict[str, Gradient] | None
    fisher: dict[str, Covariance] | None
    fingerprints: dict[str, Tensor]
    sample_fingerprints: Int[Tensor, " samples"]
    sketching: dict[str, Tensor]
    meta: Meta

    columns: ClassVar[dict[str, str]] = PLACE_COLUMNS | {
        "d_out": "outputs of the weight",
        "d_in": "inputs of the weight",
        "trace": "total variance of the inputs, squared units of the activation",
        "error": "share of the trace that a sketch misses, 0 for a dense covariance",
        "rank_bound": "largest possible rank of the covariance: tokens minus one, summed over samples",
        "shares_with": "first module that reads the same input: they share a covariance",
        "score": "sensitivity score, nats per token",
    }

    @property
    def names(self) -> list[str]:
        """Full names of the target modules, in model order."""
        return list(self.shared)

    @property
    def targets(self) -> dict[str, Target]:
        """The target modules by full name."""
        return self.sensitivity.targets

    @property
    def covariance(self) -> dict[str, Covariance]:
        """Covariance by full module name; modules that read the same tensor share one object."""
        return {name: self.covariances[first] for name, first in self.shared.items()}

    def spectrum(self) -> Spectrum:
        """Eigenvalues and effective ranks of all covariances."""
        return spectrum(self.covariances, self.shared, self.targets, self.meta)

    def to_frame(self) -> pd.DataFrame:
        """One row for each module; see ``columns``."""
        figures = {name: (c.trace, c.error, c.rank_bound) for name, c in self.covariances.items()}
        traces, errors, bounds = zip(*(figures[first] for first in self.shared.values()), strict=True)
        return module_frame(self.targets.values()).assign(
            d_out=[target.d_out for target in self.targets.values()],
            d_in=[target.d_in for target in self.targets.values()],
            trace=traces,
            error=errors,
            rank_bound=bounds,
            shares_with=list(self.shared.values()),
            score=list(self.sensitivity.scores.values()),
        )

    def merge(self, other: Calibration) -> Calibration:
        """Add the statistics of other samples, as if one pass had seen all of them.

        Parameters
        ----------
        other : Calibration
            Of other samples, on the same model, with the same options.

        Returns
        -------
        Calibration
            This one's samples come first. Sums are added, so the result is exact up to float32 rounding.

        Raises
        ------
        ValueError
            If the other is of another model, of other modules or of other options, or if a sample is in both.

        Examples
        --------
        >>> batches = task.calibration(8, batch_size=4)
        >>> first = tlora.calibrate(model, batches[:1], gradient=True, progress=False)
        >>> second = tlora.calibrate(model, batches[1:], gradient=True, progress=False)
        >>> first.merge(second).meta.samples
        8
        """
        check_arguments(Calibration.merge, locals())
        check_alike(self, other.names, other.meta.recipe, other.fingerprints, "the other calibration")
        common = set(self.sample_fingerprints.tolist()) & set(other.sample_fingerprints.tolist())
        if common:
            raise ValueError(f"{len(common)} samples are in both calibrations and would count twice: use others")
        if self.shared != other.shared or not _are_close(self.sketching, other.sketching):
            raise ValueError("the other calibration shares or sketches inputs differently: use one version for both")
        return _sum(self, other)

    def _summary(self) -> str:
        kept = "" if self.meta.recipe.get("covariance") == "dense" else ", sketched"
        left_out = ""
        if "left_out" in self.meta.recipe:
            constant, tokens = self.meta.recipe["left_out"]
            left_out = f" ({100 * constant / tokens:.0f} % left out)"
        return (
            f"{len(self.shared)} modules with {len(self.covariances)} distinct inputs of {self.meta.model}, "
            f"{self.meta.samples} samples, tokens={self.meta.recipe.get('tokens')!r}{left_out}{kept}"
        )


def reorder_samples(calibration: Calibration, order: list[int]) -> Calibration:
    """The calibration with its samples in the order of these fingerprints; refuse other samples."""
    fingerprints = calibration.sample_fingerprints.tolist()
    if Counter(fingerprints) != Counter(order):
        raise RuntimeError(
            f"{len(fingerprints)} samples were processed, {len(order)} expected: give every process the same batches "
            "in the same order, of which it takes its part"
        )
    places = defaultdict(list)  # a sample can occur several times
    for place, fingerprint in reversed(list(enumerate(fingerprints))):
        places[fingerprint].append(place)
    index = torch.tensor([places[fingerprint].pop() for fingerprint in order])
    sensitivity = replace(calibration.sensitivity, per_sample=calibration.sensitivity.per_sample[index])
    return replace(calibration, sensitivity=sensitivity, sample_fingerprints=calibration.sample_fingerprints[index])


def check_alike(
    calibration: Calibration, names: list[str], recipe: dict[str, Any], fingerprints: dict[str, Tensor], what: str
) -> None:
    """Refuse to add statistics of other modules, options or weights; ``what`` names them in the error."""
    if names != calibration.names:
        sizes = f"{len(calibration.names)} and {len(names)}"
        raise ValueError(f"{what} is of other modules, {sizes}: use the same target_modules")
    for option in fields(Options):
        ours, theirs = calibration.meta.recipe[option.name], recipe[option.name]
        is_unused = option.name == "sketch_size" and recipe["covariance"] == "dense" and not recipe["fisher"]
        if ours != theirs and not is_unused:
            raise ValueError(f"{what} differs in {option.name}={ours!r} and {theirs!r}: calibrate with the same")
    if calibration.meta.recipe.get("constant_tokens") != recipe.get("constant_tokens"):
        raise ValueError(
            f"{what} leaves out other tokens with tokens='task', as its samples have another prefix or suffix in "
            "common: calibrate all samples in one call, without the earlier statistics"
        )
    for name, expected in calibration.fingerprints.items():
        difference, size = float((fingerprints[name] - expected).norm()), float(expected.norm())
        if not difference <= SAME_WEIGHT * size:
            raise ValueError(
                f"{what} is of another model, or of the same at another precision: the weights of {name} differ by "
                f"{difference / size:.1e} of their size; calibrate the same model"
            )


def _are_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(t, other[key], atol=1e-6) for key, t in one.items())


def _sum(one: Calibration, other: Calibration) -> Calibration:
    tasks = dict.fromkeys([one.meta.task, other.meta.task])
    recipe = dict(one.meta.recipe)
    if "left_out" in recipe:
        recipe["left_out"] = [a + b for a, b in zip(recipe["left_out"], other.meta.recipe["left_out"], strict=True)]
    meta = replace(
        one.meta,
        recipe=recipe,
        task=" + ".join(task for task in tasks if task),
        seed=one.meta.seed if one.meta.seed == other.meta.seed else None,
        samples=len(one.sample_fingerprints) + len(other.sample_fingerprints),
        versions=library_versions(),
    )
    gradient = None
    if one.gradient is not None and other.gradient is not None:
        gradient = {name: g.merge(other.gradient[name]) for name, g in one.gradient.items()}
    fisher = None
    if one.fisher is not None and other.fisher is not None:
        fisher = {name: f.merge(other.fisher[name]) for name, f in one.fisher.items()}
    scores = torch.cat([one.sensitivity.per_sample, other.sensitivity.per_sample])
    return replace(
        one,
        covariances={name: c.merge(other.covariances[name]) for name, c in one.covariances.items()},
        sensitivity=replace(one.sensitivity, per_sample=scores, meta=meta),
        gradient=gradient,
        fisher=fisher,
        sample_fingerprints=torch.cat([one.sample_fingerprints, other.sample_fingerprints]),
        meta=meta,
    )


@dataclass(frozen=True)
class Options:
    """The options of `tlora.calibrate` that change its numbers; see there for what each of them does."""

    tokens: Tokens = TOKENS
    gradient: bool = False
    fisher: bool = False
    covariance: CovarianceForm = COVARIANCE
    sketch_size: int = SKETCH_SIZE

    def __post_init__(self) -> None:
        for name, choices in (("tokens", Tokens), ("covariance", CovarianceForm)):
            require_choice(getattr(self, name), name, get_args(choices))
        require_positive_int(self.sketch_size, "sketch_size")

    def is_wide(self, d_in: int) -> bool:
        """Whether inputs are so wide that a sketch of their second moment takes at most half of its size."""
        return d_in >= 2 * self.sketch_size
