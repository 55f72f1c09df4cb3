"""One pass over samples: forward, backward from each sample's own loss, an observer told of what the modules see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tlora.batches import Batch, prepare
from tlora.losses import sample_losses
from tlora.recording import Recorder, recording
from tlora.targets import Target


class Observer(Protocol):
    """What is made of a pass. ``samples`` counts the samples seen so far."""

    samples: int

    def start(self, batch: Batch) -> None:
        """A new batch begins."""

    def forward_done(self, recorder: Recorder) -> None:
        """The inputs of all modules are known."""

    def gradient_arrived(self, name: str, inputs: list[Tensor], gradients: list[Tensor]) -> None:
        """The gradients at all outputs of one module are known; see `Recorder`."""


def observe(
    model: Any,
    targets: Mapping[str, Target],
    batches: Iterable[Any],
    observer: Observer,
    *,
    doing: str,
    progress: bool,
) -> None:
    """Run the batches through the model and backpropagate the sum of the samples' losses.

    Samples stay apart, because no row of a batch reads another: row ``n`` of the gradient at a module's output
    is that of sample ``n`` alone.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Observed, not changed; see `recording`.
    targets : mapping of str to Target
        Modules to watch, by full name.
    batches : iterable of dict
        As for `tlora.calibrate`.
    observer : Observer
        Called as the pass goes.
    doing : str
        What the progress bar says.
    progress : bool
        Show it.

    Raises
    ------
    TypeError
        If the batches are none.
    ValueError
        If there are no batches, or one does not fit the model.
    """
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise TypeError(f"batches is a {type(batches).__name__}: pass a list of dicts, such as task.calibration(32)")
    with recording(model, targets, observer.gradient_arrived) as recorder:
        for number, raw in enumerate(tqdm(batches, desc=doing, unit="batch", disable=not progress)):
            batch = prepare(raw, model, f"batch {number}")
            observer.start(batch)
            losses = sample_losses(model, batch.inputs)
            observer.forward_done(recorder)
            losses.sum().backward()
            recorder.clear()
    if not observer.samples:
        raise ValueError("no batches to run: the iterable is empty (a generator that was used up?)")


def by_sample(x: Tensor, mask: Tensor) -> Tensor:
    """(B, T, d) whatever the model made of it: some flatten their inputs to (B * T, d)."""
    return x if x.ndim == 3 else x.view(*mask.shape, x.shape[-1])


def samples(calls: list[Tensor], real: Tensor) -> list[Tensor]:
    """The real tokens of each sample, (T_n, d) float32, those of a module's calls one after the other."""
    lengths = real.sum(1).tolist()
    by_call = [by_sample(x, real)[real.to(x.device)].float().split(lengths) for x in calls]
    return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*by_call, strict=True)]
