"""The running sums of a calibration: covariances from the forward pass, scores and gradients from the backward."""

from __future__ import annotations

import zlib
from typing import Any, Literal

import torch
from torch import Tensor

from tlora.batches import Batch
from tlora.covariance import CovarianceSum
from tlora.gradient import GradientSum
from tlora.linalg import row_tiles
from tlora.passes import by_sample, samples
from tlora.recording import Recorder
from tlora.targets import Target
from tlora.weights import weight

Tokens = Literal["all", "labels"]


def module_seed(seed: int, name: str) -> int:
    """A seed for one module that does not depend on which others are there."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % (1 << 63)


class Statistics:
    """Sums over the samples seen so far.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model that is observed.
    targets : dict of Target
        Its target modules.
    tokens : {"all", "labels"}
        Tokens that the covariances are taken over.
    gradient : bool
        Whether mean gradients are kept.

    Attributes
    ----------
    first : dict of str
        For each module the first one that reads the same input.
    covariances : dict of CovarianceSum
        By first module.
    scores : list of (B, M) tensor
        Per-sample sensitivity scores of each batch.
    gradients : dict of GradientSum or None
        By module.
    samples : int
        Samples seen.
    """

    def __init__(self, model: Any, targets: dict[str, Target], tokens: Tokens, gradient: bool) -> None:
        self.model, self.targets, self.tokens = model, targets, tokens
        self.first: dict[str, str] = {}
        self.covariances: dict[str, CovarianceSum] = {}
        self.scores: list[Tensor] = []
        self.gradients: dict[str, GradientSum] | None = {} if gradient else None
        self.samples = 0
        self._column = {name: i for i, name in enumerate(targets)}
        self._batch: Batch

    def start(self, batch: Batch) -> None:
        """A new batch begins."""
        if self.tokens == "labels" and batch.inputs["labels"].ndim == 1:
            raise ValueError("tokens='labels' needs a label for each token, this task labels whole texts: use 'all'")
        self._batch = batch
        self.samples += len(batch)
        self.scores.append(torch.zeros(len(batch), len(self.targets), device=batch.real.device))

    def forward_done(self, recorder: Recorder) -> None:
        """Add the inputs of a forward pass to the covariances, an input that modules share only once."""
        readers: dict[tuple[int, ...], str] = {}
        for name, target in self.targets.items():
            inputs = recorder.inputs.get(name)
            if not inputs:
                raise RuntimeError(
                    f"{name} did not run in the model's forward pass, so nothing is known of it: "
                    "leave it out with target_modules=[...]"
                )
            # the recorder holds these tensors, so that no other one can have their ids
            first = readers.setdefault(tuple(id(x) for x in inputs), name)
            if self.first.setdefault(name, first) != first:
                raise RuntimeError(
                    f"{name} shares its input with {self.first[name]} in one batch and with {first} in another: "
                    f"calibrate it on its own with target_modules=[{name!r}]"
                )
            if first == name:
                self._add_inputs(target, inputs)

    def _add_inputs(self, target: Target, inputs: list[Tensor]) -> None:
        counted = self._batch.counted_tokens(target, self.tokens)
        x, counted = by_sample(inputs[0].detach(), counted), counted.to(inputs[0].device)
        if len(inputs) > 1:  # the tokens of all its calls are one sample's
            x = torch.cat([by_sample(each.detach(), counted) for each in inputs], 1)
            counted = torch.cat([counted] * len(inputs), 1)
        if target.name not in self.covariances:
            self.covariances[target.name] = CovarianceSum(target.d_in, x.device)
        self.covariances[target.name].update(x, counted)

    def gradient_arrived(self, name: str, inputs: list[Tensor], gradients: list[Tensor]) -> None:
        """Add ``mean |W * dL_n/dW|`` of each sample ``n``; calls of one module in one pass are summed before."""
        target, w = self.targets[name], weight(self.model.get_submodule(name))
        real = self._batch.real_tokens(target)
        x = samples(inputs, real)
        d = samples(gradients, real)
        totals = torch.zeros(len(real), device=w.device)
        for rows in row_tiles(target.d_out, target.d_in):
            magnitude = w[rows].float().abs().flatten()
            for n in range(len(real)):
                tile = d[n][:, rows].T @ x[n]
                if self.gradients is not None:
                    self._gradient_sum(target, w.device).update(rows, tile)
                totals[n] += torch.dot(magnitude, tile.abs_().flatten())
        self.scores[-1][:, self._column[name]] = totals / (target.d_out * target.d_in)

    def _gradient_sum(self, target: Target, device: torch.device) -> GradientSum:
        assert self.gradients is not None
        if target.name not in self.gradients:
            seed = module_seed(0, target.name)
            self.gradients[target.name] = GradientSum(target.d_out, target.d_in, seed, device)
        return self.gradients[target.name]
