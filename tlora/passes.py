"""One pass over samples: forward, backward from each sample's own loss, an observer told of what the modules see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tlora.batches import Batch, prepare
from tlora.losses import sample_losses
from tlora.precision import exact_products
from tlora.recording import Recorder, recording
from tlora.targets import Target

LOSS_SCALE = 2.0**10
"""Of a float16 model: a long sample spreads its loss over gradients that are below what float16 holds."""


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
    is that of sample ``n`` alone.

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
    """
    scale = LOSS_SCALE if model.dtype == torch.float16 else 1.0

    @exact_products()
    def arrived(name: str, inputs: list[Tensor], gradients: list[Tensor]) -> None:
        whole = [gradient.float() / scale for gradient in gradients] if scale != 1 else gradients
        observer.gradient_arrived(name, inputs, whole)

    with recording(model, targets, arrived) as recorder:
        for each in batches:
            batch = each.on(input_device(model.get_input_embeddings()))
            with exact_products():
                observer.start(batch)
            losses = sample_losses(model, batch.inputs)
            with exact_products():
                observer.forward_done(recorder)
            recorder.backward(losses.sum() * scale)
            recorder.clear()
    if not observer.samples:
        raise ValueError("no batches to run: the iterable is empty (a generator that was used up?)")


def input_device(module: Any) -> torch.device:
    """Where a module computes: where accelerate says, for its weights may be kept elsewhere."""
    placed = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if placed is None else torch.device(placed)
