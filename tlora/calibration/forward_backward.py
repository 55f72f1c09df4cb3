"""One pass over samples: forward, backward from each sample's own loss, an observer told of what the modules see."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tlora.calibration.batches import Batch, prepare
from tlora.models.forward import input_device, sample_losses
from tlora.models.hooks import Recorder, first_of, recording
from tlora.models.targets import Target
from tlora.utils.reproducibility import exact_products, seeded

LOSS_SCALE = 2.0**10
"""Of a float16 model: a long sample spreads its loss over gradients that are below what float16 holds."""

ROUNDING, COARSE_ROUNDING = 0.01, 0.1
"""By how much a sample in a batch may differ from itself alone, of float32 and of fewer bits.

Padding that is read makes 2 to 90 % of the inputs of a last layer; rounding 0.0001 % in float32, 0.2 % where ten bits
are multiplied, 1 % in bfloat16.
"""


class Observer(Protocol):
    """What is made of a pass."""

    @property
    def samples(self) -> int:
        """Samples seen."""

    def start(self, batch: Batch) -> None:
        """A new batch begins."""

    def forward_done(self, recorder: Recorder) -> None:
        """The inputs of all modules are known."""

    def gradient_arrived(self, name: str, inputs: list[Tensor], gradients: list[Tensor]) -> None:
        """The gradients at all outputs of one module are known; see `Recorder`."""


def prepared(model: Any, batches: Iterable[Any], doing: str, progress: bool) -> Iterator[Batch]:
    """The batches, checked, on the CPU.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model that will read them.
    batches : iterable of dict
        As for `tlora.calibrate`.
    doing : str
        What the progress bar says.
    progress : bool
        Show it.

    Yields
    ------
    Batch

    Raises
    ------
    TypeError
        If the batches are none.
    ValueError
        If a batch does not fit the model.
    """
    for number, raw in enumerate(tqdm(batches, desc=doing, unit="batch", disable=not progress)):
        yield prepare(raw, model, f"batch {number}")


def check_batches(batches: Any) -> None:
    """Refuse what cannot be batches.

    Raises
    ------
    TypeError
        If it is one batch, or nothing that can be iterated over.
    """
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise TypeError(f"batches is a {type(batches).__name__}: pass a list of dicts, such as task.calibration(32)")


def observe(model: Any, targets: Mapping[str, Target], batches: Iterable[Batch], observer: Observer) -> None:
    """Run the batches through the model and backpropagate the sum of the samples' losses.

    Samples stay apart, because no row of a batch reads another: row ``n`` of the gradient at a module's output
    is that of sample ``n`` alone. Of the first batch of several samples, and of the first that is padded, the shortest
    sample is run alone to see that it is so.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Observed, not changed; see `recording`.
    targets : mapping of str to Target
        Modules to watch, by full name.
    batches : iterable of Batch
        From `prepared`.
    observer : Observer
        Called as the pass goes.

    Raises
    ------
    ValueError
        If there are no batches, or one does not fit the model.
    RuntimeError
        If a sample alone is not what it is in its batch.
    """
    scale = LOSS_SCALE if model.dtype == torch.float16 else 1.0

    @exact_products()
    def arrived(name: str, inputs: list[Tensor], gradients: list[Tensor]) -> None:
        whole = [gradient.float() / scale for gradient in gradients] if scale != 1 else gradients
        observer.gradient_arrived(name, inputs, whole)

    with recording(model, targets, arrived) as recorder:
        seen = 0
        for part in itertools.chain.from_iterable(each.told_apart() for each in batches):
            batch = part.on(input_device(model.get_input_embeddings()))
            with exact_products():
                observer.start(batch)
            losses = sample_losses(model, batch.inputs)
            with exact_products():
                observer.forward_done(recorder)
            recorder.backward(losses.sum() * scale)
            if (company := _company(batch)) > seen:
                seen = company
                _check_alone(model, targets, batch, losses.detach(), recorder)
            recorder.clear()
    if not observer.samples:
        raise ValueError("no batches to run: the iterable is empty (a generator that was used up?)")


def _company(batch: Batch) -> int:
    """What a sample of the batch is with: nothing, other samples, or padding, and maybe other samples, too."""
    return 2 if not bool(batch.real.all()) else int(len(batch) > 1)


def _check_alone(model: Any, targets: Mapping[str, Target], batch: Batch, losses: Tensor, recorder: Recorder) -> None:
    """Refuse a model whose samples are others in a batch; after the backward pass, when the recorder is deaf."""
    name = list(targets)[-1]
    n = int(batch.real.sum(1).argmin())
    alone, calls = batch.alone(n), []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, args, kwargs, output: calls.append(first_of(args, kwargs)), with_kwargs=True
    )
    try:
        with torch.no_grad(), seeded():
            loss = sample_losses(model, alone.inputs)[0]
    finally:
        handle.remove()
    one = alone.real_tokens(targets[name]).samples(calls)[0].float()
    other = batch.real_tokens(targets[name]).samples(recorder.inputs[name])[n][: len(one)].float()
    off = max(float((one - other).norm() / one.norm()), float((loss - losses[n]).abs() / (1 + loss.abs())))
    if off > (COARSE_ROUNDING if _is_coarse(model) else ROUNDING):
        raise RuntimeError(
            f"a sample of {len(one)} tokens is another in a batch than alone, by {off:.2g} of what {name} reads or of "
            "its loss: the model reads padding or other samples; pass batches of one sample without padding, e.g. "
            "task.calibration(32, batch_size=1)"
        )


def _is_coarse(model: Any) -> bool:
    """Whether the model computes in fewer bits than float32 has."""
    device = input_device(model.get_input_embeddings()).type
    is_quantised = getattr(model, "hf_quantizer", None) is not None
    return is_quantised or model.dtype.itemsize < 4 or torch.is_autocast_enabled(device)
