"""Calibration: covariance and sensitivity of every target module, in one pass over a few samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd
import torch
from torch import Tensor

from tlora.checks import fingerprint
from tlora.covariance import Covariance
from tlora.gradient import Gradient
from tlora.passes import observe
from tlora.sensitivity import Sensitivity
from tlora.statistics import Statistics, Tokens
from tlora.storage import Meta, Result
from tlora.targets import Target
from tlora.targets import target_modules as find_targets
from tlora.weights import weight

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
    meta : Meta
        Model, task, sample count, how the tokens were counted.
    """

    covariances: dict[str, Covariance]
    shared: dict[str, str]
    sensitivity: Sensitivity
    gradient: dict[str, Gradient] | None
    fingerprints: dict[str, Tensor]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "layer": "index of the block",
        "projection": "role within the block",
        "d_out": "outputs of the weight",
        "d_in": "inputs of the weight",
        "trace": "total variance of the inputs, squared units of the activation",
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
        return pd.DataFrame(
            {
                "module": self.names,
                "layer": [scores.layers[n] for n in self.names],
                "projection": [scores.projections[n] for n in self.names],
                "d_out": [scores.shapes[n][0] for n in self.names],
                "d_in": [scores.shapes[n][1] for n in self.names],
                "trace": [traces[self.shared[n]] for n in self.names],
                "rank_bound": [covariance[n].rank_bound for n in self.names],
                "shares_with": list(self.shared.values()),
                "score": list(scores.scores.values()),
            }
        )

    def _summary(self) -> str:
        return (
            f"{len(self.shared)} modules with {len(self.covariances)} distinct inputs of {self.meta.model}, "
            f"{self.meta.samples} samples, tokens={self.meta.recipe.get('tokens')!r}"
        )

    def _pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"covariance.{n}": upper(c.matrix) for n, c in self.covariances.items()}
        tensors |= {f"fingerprint.{n}": f for n, f in self.fingerprints.items()}
        for name, gradient in (self.gradient or {}).items():
            tensors[f"gradient.{name}.right"] = gradient.right
            if gradient.left is not None:
                tensors[f"gradient.{name}.left"] = gradient.left
        scores, values = self.sensitivity._pack()
        bounds = {n: c.rank_bound for n, c in self.covariances.items()}
        extra = {"shared": self.shared, "rank_bounds": bounds, "gradient": self.gradient is not None}
        return tensors | scores, values | extra

    @classmethod
    def _unpack(cls, tensors: dict[str, Tensor], values: dict[str, Any], meta: Meta) -> Self:
        shared, bounds = values["shared"], values["rank_bounds"]
        covariances = {n: Covariance(full(tensors[f"covariance.{n}"]), bounds[n]) for n in bounds}
        gradient = None
        if values["gradient"]:
            gradient = {n: Gradient(tensors.get(f"gradient.{n}.left"), tensors[f"gradient.{n}.right"]) for n in shared}
        fingerprints = {n: tensors[f"fingerprint.{n}"] for n in shared}
        return cls(covariances, shared, Sensitivity._unpack(tensors, values, meta), gradient, fingerprints, meta)


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


def calibrate(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    tokens: Tokens = "all",
    gradient: bool = False,
    target_modules: str | list[str] | None = None,
    task: str = "",
    progress: bool = True,
) -> Calibration:
    """Covariance and sensitivity of every target module, in one forward and backward pass over the samples.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model: causal, encoder-decoder or sequence classification, quantised or not. It is observed, not
        changed: hooks, modes and ``requires_grad`` are as before when this returns or raises.
    batches : iterable of dict
        Each with tensors ``input_ids`` (B, T), ``attention_mask`` (B, T) and ``labels``: (B, T) token ids with -100
        where a token does not count, or (B,) classes. Padding on either side, or single samples: the numbers are the
        same.
    tokens : {"all", "labels"}
        Which real tokens enter the covariance: all, or those with a label.
    gradient : bool
        Keep the mean gradient of each weight too (a sketch where the weight is large), for subspaces of kind ``"g"``.
    target_modules : str or list of str, optional
        As in `tlora.target_modules`; all linear layers of the blocks by default.
    task : str
        Name of the task, kept in the result's ``meta``; by default that which the batches carry, if any.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If there are no batches; a batch lacks mask or labels or a sample of it has no label; a weight or an
        activation is not finite; no target module is found. The message names the value and the module.
    RuntimeError
        If a target module does not run in the forward pass.

    Notes
    -----
    No parameter requires a gradient: with ``D_n`` the gradient at a module's output, ``dL_n/dW = D_n^T X_n`` is formed
    tile by tile, sample by sample. Sums are float32 whatever the model computes in. The sum of the samples' losses is
    backpropagated: samples stay apart, because no row of a batch reads another.

    References
    ----------
    TLoRA, arXiv 2604.18124: the covariance of the initialisation and the importance score of the allocation.
    """
    if tokens not in ("all", "labels"):
        raise ValueError(f"tokens={tokens!r}: choose 'all' or 'labels'")
    targets = find_targets(model, target_modules)
    fingerprints = {name: _checked_fingerprint(model, name) for name in targets}
    statistics = Statistics(model, targets, tokens, gradient)
    observe(model, targets, batches, statistics, doing="calibrating", progress=progress)
    meta = Meta(
        model=model.config._name_or_path or type(model).__name__,
        task=task or getattr(batches, "task", ""),
        recipe={"tokens": tokens, "gradient": gradient, "target_modules": target_modules},
        seed=getattr(batches, "seed", None),
        samples=statistics.samples,
    )
    return _result(statistics, targets, fingerprints, meta)


def _checked_fingerprint(model: Any, name: str) -> Tensor:
    matrix = weight(model.get_submodule(name))
    if matrix.is_meta:
        raise ValueError(f"the weight of {name} is on the meta device and has no values: load the model's weights")
    # a sum is finite only if each term is, and costs one pass over the weight
    if not bool(torch.isfinite(matrix.sum(dtype=torch.float32))):
        raise ValueError(
            f"the weight of {name} is not finite (NaN or infinity): the checkpoint is damaged; load it again"
        )
    return fingerprint(matrix)


def _result(
    statistics: Statistics, targets: dict[str, Target], fingerprints: dict[str, Tensor], meta: Meta
) -> Calibration:
    covariances = {name: c.finish(statistics.samples) for name, c in statistics.covariances.items()}
    per_sample = torch.cat(statistics.scores).cpu()
    for i, name in enumerate(targets):
        first = statistics.first[name]
        # what is not finite in an input is not finite on the diagonal
        if not math.isfinite(covariances[first].trace) or not bool(torch.isfinite(per_sample[:, i]).all()):
            raise ValueError(
                f"the inputs or gradients of {name} are not finite (NaN or infinity) on these samples: "
                "look at the module before it, or load the model with dtype='float32'"
            )
    sensitivity = Sensitivity(
        per_sample,
        {t.name: (t.d_out, t.d_in) for t in targets.values()},
        {t.name: t.layer for t in targets.values()},
        {t.name: t.projection for t in targets.values()},
        meta,
    )
    gradient = None
    if statistics.gradients is not None:
        gradient = {name: statistics.gradients[name].finish(statistics.samples) for name in targets}
    shared = {name: statistics.first[name] for name in targets}
    return Calibration(covariances, shared, sensitivity, gradient, fingerprints, meta)
