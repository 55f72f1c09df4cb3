"""One pass over the samples: forward, then backward from each sample's own loss, with an observer of all modules."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tlora.calibration.batches import Batch, prepare_batch
from tlora.calibration.packing import unpack_batch
from tlora.models.experts import is_expert, model_layer
from tlora.models.forward import both_losses, input_device, sample_losses
from tlora.models.hooks import ObservationError, observe_gradients, observe_inputs
from tlora.models.observe_experts import RoutedRows, Rows
from tlora.models.sharding import model_processes
from tlora.models.targets import Target
from tlora.models.weights import weight
from tlora.utils.devices import on_host
from tlora.utils.progress import Bar, note_progress
from tlora.utils.reproducibility import exact_products, temporary_seed

logger = logging.getLogger(__name__)

LOSS_SCALE = 2.0**10
"""Loss scale of a float16 model: the gradients of a long sample would underflow."""

CHECKED_ROWS = 16
"""Combinations of a sample's tokens that are compared: what a whole sample reads in all blocks would be too large."""

LOSS_TOLERANCE = 1e-4
"""Largest difference between the model's own loss and ours of the same logits, which are summed in another order."""


class Observer(Protocol):
    """Collects statistics during a pass."""

    @property
    def samples(self) -> int:
        """Number of samples seen."""

    def start_batch(self, batch: Batch) -> None:
        """Prepare for a new batch."""

    def start_part(self, part: Batch, samples: slice, added: set[tuple[str, ...]]) -> None:
        """Prepare for samples of the batch that run together: all, or fewer if memory does not suffice for all.

        The observer notes in ``added`` what it has added of these samples, in terms of its own, and skips what is
        there: if memory runs out, they are run again in smaller parts.
        """

    def add_inputs(self, name: str, inputs: list[Rows], tensors: tuple[int, ...]) -> None:
        """Use the inputs of a module in the forward pass, one entry for each call; see `Recorder`."""

    def add_gradients(self, name: str, inputs: list[Rows], gradients: list[Rows]) -> None:
        """Use the inputs of a module and the gradients at its outputs, one entry for each call."""


def prepare_batches(model: Any, batches: Iterable[Any], samples: int | None = None) -> Iterator[Batch]:
    """Check batches and split packed rows; stop after so many samples."""
    left = math.inf if samples is None else samples
    for number, raw in enumerate(batches):
        for part in unpack_batch(raw, model, f"batch {number}"):
            batch = prepare_batch(part, model, f"batch {number}")
            yield batch if len(batch) <= left else batch.select(list(range(int(left))))
            left -= len(batch)
            if left <= 0:
                return


@dataclass
class _Part:
    """Samples that run together; ``start`` is the first one's place in the batch, None until the observer knows it."""

    batch: Batch
    start: int | None = None
    added: set[tuple[str, ...]] = field(default_factory=set)

    def split(self, batches: list[Batch]) -> list[_Part]:
        """The same samples in smaller batches."""
        starts = itertools.accumulate(map(len, batches), initial=self.start or 0)
        return [
            _Part(batch, None if self.start is None else start, set(self.added))
            for batch, start in zip(batches, starts, strict=False)
        ]


def run_batches(
    model: Any,
    targets: Mapping[str, Target],
    batches: Iterable[Batch],
    observer: Observer,
    backward: bool = True,
    gradient_checkpointing: bool | None = None,
    bar: Bar | None = None,
) -> None:
    """Run batches from `prepare_batches` through the model and backpropagate the sum of the samples' losses.

    Without ``backward`` only the forward pass is run, and observed. ``gradient_checkpointing`` is that of `calibrate`.
    The ``bar`` over the batches counts the modules that a forward or backward pass has passed.

    Samples stay separate because no row of a batch reads another: row ``n`` of the gradient at a module's output is
    that of sample ``n`` alone. To check this, and that the loss is the model's own, the shortest sample is run alone:
    of the first batch, of the first batch with several samples, and of the first with padding. Modules that read tokens
    before samples, or rows that belong to no sample, such as positions, are run sample by sample. If blocks are
    checkpointed, their inputs are summed as they come, so such a batch is first run without being observed. A sharded
    model gathers its weights as it runs: a process that has no batch left runs one of another process and observes
    nothing.

    A batch that runs out of memory is run again in halves, down to single samples, and so are later ones of its size;
    not if the model is sharded, since its processes run in step.
    """
    scale = LOSS_SCALE if model.dtype == torch.float16 else 1.0
    passed = {"forward": itertools.count(), "backward": itertools.count()}

    def note_module(direction: str) -> None:
        if bar is not None:
            note_progress(bar, f"{direction}, {next(passed[direction]) % len(targets) + 1} of {len(targets)} modules")

    @exact_products()
    def add_inputs(name: str, inputs: list[Rows], tensors: tuple[int, ...]) -> None:
        _check_rows(targets, batch, {name: inputs})
        if single is not None and not is_expert(name):
            single.compare(name, inputs, batch)
        if is_own:
            observer.add_inputs(name, inputs, tensors)

    @exact_products()
    def add_gradients(name: str, inputs: list[Rows], gradients: list[Rows]) -> None:
        if not is_own:
            weight(model_layer(model, name), name)  # another process may be gathering it
            return
        unscaled = [_unscaled(gradient, scale) for gradient in gradients] if scale != 1 else gradients
        observer.add_gradients(name, inputs, unscaled)
        note_module("backward")

    linear = [name for name in targets if not is_expert(name)]  # what is routed to experts may differ by rounding
    parts: list[_Part] = []
    batch: Batch
    single: _Single | None = None
    checked: set[str] = set()
    one_by_one, too_many = False, math.inf

    def each_part() -> Iterator[_Part]:
        for batch in batches:
            whole = batch.singles() if one_by_one else batch.split_square()
            parts[:] = [_Part(part) for each in whole for part in _parts_below(each, too_many)]
            while parts:
                yield parts.pop(0)

    def run() -> Tensor:
        with (
            contextlib.nullcontext() if backward else _no_saved_tensors(),
            observe_inputs(model, linear, lambda name, _: note_module("forward")),
        ):
            return sample_losses(model, batch.inputs)

    def run_part(part: _Part, is_own: bool) -> None:
        nonlocal batch, single, one_by_one
        batch, single, losses = part.batch.to(device, model), None, None
        has = {"several samples": len(batch) > 1, "padding": not bool(batch.real.all()), "any": True}
        kinds = {kind for kind, is_there in has.items() if is_there}
        is_new = processes.any(not kinds <= checked)
        inputs: Mapping[str, list[Rows]] = {}
        if not recorder.has_blocks:
            losses, inputs = run(), recorder.inputs
        elif is_new:
            with recorder.looking() as looked, _no_saved_tensors():
                sample_losses(model, batch.inputs)
            inputs = looked
        _check_rows(targets, batch, inputs)
        if processes.any(not all(batch.has_sample_rows(x) for calls in inputs.values() for x in calls)):
            one_by_one, parts[:0] = True, [part] * is_own
            parts[:] = [single for each in parts for single in each.split(each.batch.singles())]
            return
        if is_new:
            with recorder.paused():
                single = _Single(model, part.batch, batch, linear)
        if is_own:
            with exact_products():
                if part.start is None:
                    observer.start_batch(batch)
                    part.start = 0
                observer.start_part(batch, slice(part.start, part.start + len(batch)), part.added)
        losses = run() if losses is None else losses
        recorder.end_forward()
        if backward:
            recorder.backward(losses.sum() * scale)
        if single is not None:
            single.check(model, losses.detach())
        checked.update(kinds)

    device, processes = input_device(model.get_input_embeddings()), model_processes(model)
    with observe_gradients(model, targets, add_inputs, add_gradients, gradient_checkpointing) as recorder:
        for part, is_own in processes.synchronized_items(each_part()):
            try:
                run_part(part, is_own)
            except torch.OutOfMemoryError:
                if len(part.batch) == 1 or processes.count > 1:
                    raise
                too_many = part.batch.real.numel()
                parts[:0] = part.split(part.batch.halves())
                rows, columns = part.batch.real.shape
                logger.info("out of memory with %d samples of %d tokens: running half as many at a time", rows, columns)
            recorder.clear()
    if not observer.samples:
        raise ValueError("no batches to run: the iterable is empty (an exhausted generator?)")


def _parts_below(batch: Batch, tokens: float) -> list[Batch]:
    """Halve a batch until its parts have fewer tokens than this, padding included, or are single samples."""
    if len(batch) == 1 or batch.real.numel() < tokens:
        return [batch]
    return [part for half in batch.halves() for part in _parts_below(half, tokens)]


def _unscaled(gradient: Rows, scale: float) -> Rows:
    return gradient.scaled(1 / scale) if isinstance(gradient, RoutedRows) else gradient.float() / scale


def _no_saved_tensors() -> saved_tensors_hooks:
    """Inside, a forward pass keeps nothing for a backward pass, but still knows what depends on the embeddings."""
    return saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing)


def _check_rows(targets: Mapping[str, Target], batch: Batch, inputs: Mapping[str, list[Rows]]) -> None:
    """Refuse modules that read rows other than those of tokens: which of these are padding is unknown."""
    unknown = [n for n, calls in inputs.items() if any(x.requires_grad and not batch.has_token_rows(x) for x in calls)]
    if unknown:
        rest = sorted({t.projection for t in targets.values()} - {targets[name].projection for name in unknown})
        raise ObservationError(
            f"{unknown[0]} and {len(unknown) - 1} other modules read other rows than those of the {batch.real.numel()} "
            "tokens of the batch, and which of these are padding is unknown: "
            + (f"leave them out, target_modules={rest}" if rest else "such a model is not supported")
        )


class _Single:
    """The shortest sample of a batch run alone, to compare what modules read there with what they read in the batch.

    Of a longer sample ``CHECKED_ROWS`` random combinations of its tokens are kept: ``|P (X - Y)|^2`` is ``|X - Y|^2``
    on average.
    """

    def __init__(self, model: Any, part: Batch, batch: Batch, names: Iterable[str]) -> None:
        self.sample = int(part.real.sum(1).argmin())
        single = part.single(self.sample).to(batch.device, model)
        self.length = single.real.shape[1]
        self._distances: dict[str, list[Tensor]] = {}
        self._read: dict[str, list[tuple[torch.Size, Tensor, Tensor]]] = defaultdict(list)
        last: list[Any] = [None, None]

        def see(name: str, x: Tensor) -> None:
            if last[0] is not x:  # modules that read one tensor do so one after another
                rows = x.flatten(0, -2)
                last[:] = x, (rows.shape, _combine_rows(rows), torch.linalg.vector_norm(rows, dtype=torch.float32))
            self._read[name].append(last[1])

        with torch.no_grad(), temporary_seed(), observe_inputs(model, names, see):
            self.losses = both_losses(model, single.inputs)

    def compare(self, name: str, inputs: list[Rows], batch: Batch) -> None:
        """Note how far what a module reads in the batch is from what it reads of the sample alone."""
        self._distances[name] = []
        for call, (shape, combined, norm) in enumerate(self._read.pop(name, ())):
            rows = batch.gradient_rows(inputs[call : call + 1])
            x = rows[self.sample][: shape[0]] if rows else combined[:0]
            distance = combined.new_tensor(torch.inf)
            if x.shape == shape:
                tiny = torch.finfo(torch.float32).tiny
                distance = torch.linalg.vector_norm(combined - _combine_rows(x)) / norm.clamp(min=tiny)
            self._distances[name].append(distance)

    def check(self, model: Any, losses: Tensor) -> None:
        """Refuse a model that is trained with another loss, or whose samples give other results in a batch."""
        actual, loss = self.losses
        differences = {f"what {name} reads": torch.stack(each).amax() for name, each in self._distances.items() if each}
        differences["its loss"] = _difference(loss, losses[self.sample])
        actual, loss, *values = on_host([actual, loss, *differences.values()])
        by_name = dict(zip(differences, map(float, values), strict=True))
        if float(_difference(actual, loss)) > max(LOSS_TOLERANCE, 4 * torch.finfo(actual.dtype).eps):
            raise ValueError(
                f"a {type(model).__name__} is trained with a loss of {float(actual):.5g} on a sample of {self.length} "
                f"tokens, and calibration would measure {float(loss):.5g}, the mean over its labels (tokens are "
                "predicted from those before them): pass a causal, encoder-decoder or text classification model"
            )
        what = max(by_name, key=by_name.__getitem__)
        if by_name[what] > _tolerance(model):
            raise RuntimeError(
                f"a sample of {self.length} tokens gives a different result in a batch than on its own, by "
                f"{by_name[what]:.2g} of {what}: the model reads padding or other samples; pass batches of one sample "
                "without padding, e.g. task.calibration(32, batch_size=1)"
            )


def _combine_rows(rows: Tensor) -> Tensor:
    """Random combinations of rows, float32; a copy of the rows if there are no more than ``CHECKED_ROWS``."""
    if len(rows) <= CHECKED_ROWS:
        return rows.to(torch.float32, copy=True)
    signs = torch.randint(0, 2, (CHECKED_ROWS, len(rows)), generator=torch.Generator().manual_seed(0))
    return ((2 * signs - 1) / CHECKED_ROWS**0.5).to(rows.device) @ rows.float()


def _difference(one: Tensor, other: Tensor) -> Tensor:
    """Difference of two losses: in nats if they are small, relative if they are large."""
    return (one.float() - other.float()).abs() / (1 + one.float().abs())


def _tolerance(model: Any) -> float:
    """Half of the digits that the model computes in: the largest difference of a sample in a batch and alone.

    Padding that is read changes some module's input by 5 to 150 %; rounding, through 30 layers, by 0.0003 % in float32,
    0.4 % in float16, 3 % in bfloat16.
    """
    device = input_device(model.get_input_embeddings()).type
    products = {"highest": torch.float32, "high": torch.float16, "medium": torch.bfloat16}  # with as many digits
    dtypes = [model.dtype, products[torch.get_float32_matmul_precision()]]
    if torch.is_autocast_enabled(device):
        dtypes.append(torch.get_autocast_dtype(device))
    if getattr(model, "hf_quantizer", None) is not None:
        dtypes.append(torch.bfloat16)
    return max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
