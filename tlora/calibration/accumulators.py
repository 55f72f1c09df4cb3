"""The running sums of a calibration: covariances from the forward pass, scores and gradients from the backward pass."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from tlora.calibration.batches import Batch
from tlora.calibration.calibration import Calibration, Options
from tlora.calibration.covariance import Covariance, CovarianceSum, MomentSum
from tlora.calibration.gradient import Gradient, GradientSum, sketch_sizes
from tlora.calibration.placement import choose_placement
from tlora.models.experts import SKETCHED_FROM, model_layer, parameter_name
from tlora.models.forward import input_device
from tlora.models.hooks import ObservationError
from tlora.models.observe_experts import Rows
from tlora.models.targets import Target
from tlora.models.weights import weight
from tlora.numerics.linalg import tiles
from tlora.numerics.sketching import SketchingMatrices
from tlora.utils.defaults import StatisticsPlacement
from tlora.utils.devices import free_bytes
from tlora.utils.distributed import Processes
from tlora.utils.text import size_text

logger = logging.getLogger(__name__)


class Statistics:
    """Sums over the samples seen so far, collected by `run_batches`.

    ``first`` has for each module the first module that reads the same input, ``covariances`` are by first module, and
    ``scores`` are (B, M) for each batch, in the order of ``fingerprints``. ``placement`` says where sums are kept that
    are no sketches; None chooses.
    """

    def __init__(
        self, model: Any, targets: dict[str, Target], options: Options, placement: StatisticsPlacement | None = None
    ) -> None:
        self.model, self.targets, self.options = model, targets, options
        self.matrices = SketchingMatrices()
        self.first: dict[str, str] = {}
        self.covariances: dict[str, CovarianceSum] = {}
        self.scores: list[Tensor] = []
        self.gradients: dict[str, GradientSum] = {}
        self.fishers: dict[str, MomentSum] = {}
        self.fingerprints: list[int] = []
        self._column = {name: i for i, name in enumerate(targets)}
        self._experts = Counter(parameter_name(name) for name in targets)
        self._batch: Batch
        self._added: set[tuple[str, ...]]
        self._scores: Tensor
        self._readers: dict[tuple[int, ...], str] = {}
        needed = self._whole_bytes()
        self._is_on_host = (placement or choose_placement(needed, free_bytes)) == "host"
        if placement is None and self._is_on_host:
            logger.info("statistics take up to %s: summing them on the host", size_text(sum(needed.values())))

    @property
    def samples(self) -> int:
        """Number of samples seen."""
        return len(self.fingerprints)

    def start_batch(self, batch: Batch) -> None:
        """Prepare for a new batch."""
        if self.options.tokens == "labels" and batch.inputs["labels"].ndim == 1:
            raise ValueError("tokens='labels' needs a label for each token, this task labels whole texts: use 'all'")
        self.fingerprints += batch.fingerprints
        self.scores.append(torch.zeros(len(batch), len(self.targets), device=batch.device))

    def start_part(self, part: Batch, samples: slice, added: set[tuple[str, ...]]) -> None:
        """Prepare for samples of the batch; see `Observer`.

        Each sum is complete once it has changed: what an update needs is allocated before it changes anything.
        """
        self._batch, self._added = part, added
        self._scores = self.scores[-1][samples]
        self._readers.clear()

    def add_inputs(self, name: str, inputs: list[Rows], tensors: tuple[int, ...]) -> None:
        """Add the inputs of a module to its covariance; an input that modules share is added once."""
        first = self._readers.setdefault(tensors, name) if inputs else name
        if self.first.setdefault(name, first) != first:
            raise ObservationError(
                f"{name} shares its input with {self.first[name]} in one batch and with {first} in another: "
                f"calibrate it on its own with target_modules=[{name!r}]"
            )
        if first == name and ("covariance", name) not in self._added:
            total = self._covariance_sum(name, inputs[0].device if inputs else self._device(name))
            if inputs:  # an expert may read none
                total.update(self._batch.counted_rows(inputs, self.options.tokens))
            self._added.add(("covariance", name))

    def add_gradients(self, name: str, inputs: list[Rows], gradients: list[Rows]) -> None:
        """Add what a module's gradients give, after summing over its calls."""
        if self.options.fisher and ("fisher", name) not in self._added:
            self._add_fisher(name, inputs, gradients)
            self._added.add(("fisher", name))
        if ("score", name) not in self._added:
            self._add_scores(name, inputs, gradients)
            self._added.add(("score", name))

    def _add_scores(self, name: str, inputs: list[Rows], gradients: list[Rows]) -> None:
        """Add ``mean |W * dL_n/dW|`` of each sample ``n``, and its gradient to the mean gradient."""
        target, w = self.targets[name], weight(model_layer(self.model, name), name)
        x = [each.float() for each in self._batch.gradient_rows(inputs)]
        d = [each.float() for each in self._batch.gradient_rows(gradients)]
        mean = self._gradient_sum(name, w.device) if self.options.gradient else None
        x_counted, d_counted = x, d
        if mean is not None and self.options.tokens == "task":
            x_counted = [each.float() for each in self._batch.counted_rows(inputs, "task")]
            d_counted = [each.float() for each in self._batch.counted_rows(gradients, "task")]
        totals = torch.zeros(len(d), device=w.device)
        for rows, columns in tiles(target.d_out, target.d_in, w.device):
            magnitude = w[rows, columns].float().abs().flatten()
            for n in range(len(d)):
                tile = d[n][:, rows].T @ x[n][:, columns]
                if mean is not None:
                    whole = x_counted is x
                    mean.update(rows, columns, tile if whole else d_counted[n][:, rows].T @ x_counted[n][:, columns])
                totals[n] += torch.dot(magnitude, tile.abs_().flatten())
                del tile
            del magnitude
        self._scores[:, self._column[name]] = (totals / (target.d_out * target.d_in)).to(self._scores.device)

    def _add_fisher(self, name: str, inputs: list[Rows], gradients: list[Rows]) -> None:
        """Add ``sum_t |d_t|^2 x_t x_t^T`` over the counted tokens."""
        x, d = (torch.cat(self._batch.counted_rows(calls, self.options.tokens)) for calls in (inputs, gradients))
        rows = x.float() * torch.linalg.vector_norm(d, dim=1, keepdim=True, dtype=torch.float32)
        self._fisher_sum(name, x.device).add(rows)

    def _covariance_sum(self, name: str, device: torch.device) -> CovarianceSum:
        """The running covariance of a module, created at the first use."""
        if name not in self.covariances:
            omega = self._covariance_omega(name, device)
            self.covariances[name] = CovarianceSum(self.targets[name].d_in, self._place(device, omega), omega)
        return self.covariances[name]

    def _fisher_sum(self, name: str, device: torch.device) -> MomentSum:
        """The running Fisher matrix of a module, created at the first use."""
        if name not in self.fishers:
            omega = self._fisher_omega(name, device)
            self.fishers[name] = MomentSum(self.targets[name].d_in, self._place(device, omega), omega)
        return self.fishers[name]

    def _gradient_sum(self, name: str, device: torch.device) -> GradientSum:
        """The running gradient of a module, created at the first use."""
        if name not in self.gradients:
            target = self.targets[name]
            matrices = self._gradient_matrices(name, device)
            place = self._place(device, *matrices)
            self.gradients[name] = GradientSum(target.d_out, target.d_in, place, *matrices)
        return self.gradients[name]

    def _place(self, device: torch.device, *matrices: Tensor | None) -> torch.device:
        """The device of a sum: of its rows for a sketch, which has matrices, else that or the host."""
        is_sketch = any(matrix is not None for matrix in matrices)
        return torch.device("cpu") if self._is_on_host and not is_sketch else device

    def _whole_bytes(self) -> dict[torch.device, int]:
        """The bytes of all whole sums on each device, at most: as if no modules shared an input."""
        sizes: Counter[torch.device] = Counter()
        for name, target in self.targets.items():
            is_many, is_wide = self._is_one_of_many(name), self.options.is_wide(target.d_in)
            is_whole = not (is_wide and (is_many or self.options.covariance == "sketch"))
            numbers = target.d_in**2 * (is_whole + (self.options.fisher and not is_wide))
            if self.options.gradient and sketch_sizes(target.d_out, target.d_in, is_one_of_many=is_many) is None:
                numbers += target.d_out * target.d_in
            sizes[self._device(name)] += torch.float32.itemsize * numbers
        return dict(sizes)

    def has_whole_sums_on_an_accelerator(self) -> bool:
        """Whether there are sums that could be kept on the host instead."""
        sizes = self._whole_bytes()
        return not self._is_on_host and any(sizes[device] for device in sizes if device.type != "cpu")

    def _covariance_omega(self, name: str, device: torch.device | str = "cpu") -> Tensor | None:
        is_sketched = self.options.covariance == "sketch" or self._is_one_of_many(name)
        return self._fisher_omega(name, device) if is_sketched else None

    def _fisher_omega(self, name: str, device: torch.device | str = "cpu") -> Tensor | None:
        d_in = self.targets[name].d_in
        return self.matrices.get(d_in, self.options.sketch_size, device) if self.options.is_wide(d_in) else None

    def _is_one_of_many(self, name: str) -> bool:
        return self._experts[parameter_name(name)] >= SKETCHED_FROM

    def _gradient_matrices(self, name: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor] | tuple[()]:
        target = self.targets[name]
        sizes = sketch_sizes(target.d_out, target.d_in, is_one_of_many=self._is_one_of_many(name))
        if sizes is None:
            return ()
        return self.matrices.get(target.d_in, sizes[0], device), self.matrices.get(target.d_out, sizes[1], device)

    def resume(self, earlier: Calibration) -> None:
        """Start from the sums of an earlier run over other samples."""
        self.first = dict(earlier.shared)
        self.matrices = SketchingMatrices(earlier.sketching)
        for name, covariance in earlier.covariances.items():
            self._covariance_sum(name, self._device(name)).resume(covariance)
        for name, gradient in (earlier.gradient or {}).items():
            self._gradient_sum(name, self._device(name)).resume(gradient)
        for name, fisher in (earlier.fisher or {}).items():
            self._fisher_sum(name, self._device(name)).resume(fisher)
        self.scores = [earlier.sensitivity.per_sample.to(input_device(self.model.get_input_embeddings()))]
        self.fingerprints = earlier.sample_fingerprints.tolist()

    def _device(self, name: str) -> torch.device:
        return input_device(model_layer(self.model, name))

    def reduce(self, processes: Processes) -> None:
        """Replace the sums by those over all processes."""
        self._create_sums()
        sums: list[dict[str, Any]] = [self.covariances, self.fishers]
        bounds = [{name: covariance.rank_bound for name, covariance in each.items()} for each in sums]
        parts = processes.gather((self.first, bounds, torch.cat(self.scores).cpu(), self.fingerprints))
        firsts, all_bounds, scores, fingerprints = zip(*parts, strict=True)
        if any(first != self.first for first in firsts):
            raise RuntimeError("modules share their inputs in one process and not in another: calibrate in one process")
        for kind, each in enumerate(sums):
            for name, covariance in each.items():
                covariance.reduce(processes)
                covariance.rank_bound = sum(bounds[kind][name] for bounds in all_bounds)
        for name in self.targets if self.options.gradient else ():
            processes.sum_(self.gradients[name].tensors())
        self.scores, self.fingerprints = list(scores), [each for part in fingerprints for each in part]

    def _create_sums(self) -> None:
        """Create the sums of experts that no token was routed to."""
        for name in self.targets:
            if self.options.fisher:
                self._fisher_sum(name, self._device(name))
            if self.options.gradient:
                self._gradient_sum(name, self._device(name))

    def finish_covariances(self) -> dict[str, Covariance]:
        """The covariances, on the CPU."""
        return {name: c.finish(self.samples, self._covariance_omega(name)) for name, c in self.covariances.items()}

    def finish_gradients(self) -> dict[str, Gradient] | None:
        """The mean gradients in model order, on the CPU; None if they are not kept."""
        if not self.options.gradient:
            return None
        self._create_sums()
        return {
            name: self.gradients[name].finish(self.samples, *self._gradient_matrices(name)[1:]) for name in self.targets
        }

    def finish_fishers(self) -> dict[str, Covariance] | None:
        """The Fisher matrices in model order, on the CPU; None if they are not kept."""
        if not self.options.fisher:
            return None
        self._create_sums()
        return {name: self.fishers[name].finish(self.samples, self._fisher_omega(name)) for name in self.targets}
