"""What a calibration finds: covariance and sensitivity of every target module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from tlora.covariance import Covariance, DenseCovariance, SketchedCovariance
from tlora.gradient import Gradient
from tlora.results import Meta, Result
from tlora.sensitivity import Sensitivity

if TYPE_CHECKING:
    from tlora.spectrum import Spectrum


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
    def covariance(self) -> dict[str, Covariance]:
        """Covariance by full module name; modules that read the same tensor give the same object."""
        return {name: self.covariances[first] for name, first in self.shared.items()}

    def spectrum(self) -> Spectrum:
        """Eigenvalues and effective ranks of all covariances."""
        from tlora.spectrum import spectrum

        return spectrum(self)

    def to_frame(self) -> pd.DataFrame:
        """One row a module; see ``columns``."""
        scores, covariance = self.sensitivity, self.covariance
        traces = {first: c.trace for first, c in self.covariances.items()}
        errors = {first: c.error for first, c in self.covariances.items()}
        return pd.DataFrame(
            {
                "module": self.names,
                "layer": [scores.layers[n] for n in self.names],
                "projection": [scores.projections[n] for n in self.names],
                "d_out": [scores.shapes[n][0] for n in self.names],
                "d_in": [scores.shapes[n][1] for n in self.names],
                "trace": [traces[self.shared[n]] for n in self.names],
                "error": [errors[self.shared[n]] for n in self.names],
                "rank_bound": [covariance[n].rank_bound for n in self.names],
                "shares_with": list(self.shared.values()),
                "score": list(scores.scores.values()),
            }
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the covariances and gradients, and of what sketches were made with."""
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
            If the other is no calibration.
        ValueError
            If it is of another model, of other modules or made with other options, or if a sample is in both.
        """
        from tlora.merging import merged

        return merged(self, other)

    def _summary(self) -> str:
        kept = "" if self.meta.recipe.get("covariance") == "dense" else ", sketched"
        return (
            f"{len(self.shared)} modules with {len(self.covariances)} distinct inputs of {self.meta.model}, "
            f"{self.meta.samples} samples, tokens={self.meta.recipe.get('tokens')!r}{kept}"
        )

    def _pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        scores, values = self.sensitivity._pack()
        tensors = scores | {"sample_fingerprints": self.sample_fingerprints}
        tensors |= {f"sketching.{key}": t for key, t in self.sketching.items()}
        tensors |= {f"fingerprint.{n}": f for n, f in self.fingerprints.items()}
        bounds, traces = {}, {}
        for name, c in self.covariances.items():
            bounds[name] = c.rank_bound
            if isinstance(c, SketchedCovariance):
                traces[name] = c.total_trace
            tensors[f"covariance.{name}"] = c.total if name in traces else upper(c.total)
        for name, gradient in (self.gradient or {}).items():
            tensors[f"gradient.{name}"] = gradient.corange
            if gradient.range is not None:
                tensors[f"gradient_range.{name}"] = gradient.range
        extra = {"shared": self.shared, "rank_bounds": bounds, "traces": traces, "gradient": self.gradient is not None}
        return tensors, values | extra

    @classmethod
    def _unpack(cls, tensors: dict[str, Tensor], values: dict[str, Any], meta: Meta) -> Self:
        shared, traces = values["shared"], values["traces"]
        sketching = {k.removeprefix("sketching."): t for k, t in tensors.items() if k.startswith("sketching.")}
        prints = tensors["sample_fingerprints"]
        covariances: dict[str, Covariance] = {}
        for name, bound in values["rank_bounds"].items():
            total = tensors[f"covariance.{name}"]
            if name in traces:
                omega = sketching[_key(total)]
                covariances[name] = SketchedCovariance(total, bound, len(prints), omega=omega, total_trace=traces[name])
            else:
                covariances[name] = DenseCovariance(full(total), bound, len(prints))
        sensitivity = Sensitivity._unpack(tensors, values, meta)
        gradient = None
        if values["gradient"]:
            shapes = sensitivity.shapes
            gradient = {n: _gradient(tensors, sketching, n, shapes[n], len(prints)) for n in shared}
        fingerprints = {n: tensors[f"fingerprint.{n}"] for n in shared}
        return cls(covariances, shared, sensitivity, gradient, fingerprints, prints, sketching, meta)


def _key(sketch: Tensor) -> str:
    """The key of the matrix that a sketch (d, size) was made with."""
    return f"{sketch.shape[0]}.{sketch.shape[1]}"


def _gradient(
    tensors: dict[str, Tensor], sketching: dict[str, Tensor], name: str, shape: tuple[int, int], samples: int
) -> Gradient:
    corange, range_ = tensors[f"gradient.{name}"], tensors.get(f"gradient_range.{name}")
    psi = None if range_ is None else sketching[f"{shape[0]}.{len(corange)}"]
    return Gradient(corange, samples, range_, psi)


def upper(matrix: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix as one vector: half of the bytes on disk."""
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns]


def full(triangle: Tensor) -> Tensor:
    """The symmetric matrix of an upper triangle from `upper`."""
    d = int(((8 * triangle.numel() + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.triu_indices(d, d)
    matrix = triangle.new_empty(d, d)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix
