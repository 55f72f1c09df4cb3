"""One pass over samples: forward, backward from each sample's own loss, an observer told of what the modules see."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tlora.calibration.batches import Batch, prepare
from tlora.calibration.packing import unpacked
from tlora.models.forward import both_losses, input_device, sample_losses
from tlora.models.hooks import Recorder, observe_gradients, observe_inputs
from tlora.models.sharding import model_processes
from tlora.models.targets import Target
from tlora.models.weights import weight
from tlora.utils.devices import on_host
from tlora.utils.reproducibility import exact_products, temporary_seed

LOSS_SCALE = 2.0**10
"""Of a float16 model: a long sample spreads its loss over gradients that are below what float16 holds."""

OWN_LOSS = 1e-4
"""By how much the model's own loss may differ from ours of the same logits, which are summed in another order."""


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


def prepared(
    model: Any, batches: Iterable[Any], doing: str, progress: bool, samples: int | None = None
) -> Iterator[Batch]:
    """The batches, checked, on the CPU; packed rows as the samples that are in them.

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
    samples : int, optional
        Stop after so many samples, without asking for another batch.

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
    left = math.inf if samples is None else samples
    for number, raw in enumerate(tqdm(batches, desc=doing, unit="batch", disable=not progress)):
        for part in unpacked(raw, model, f"batch {number}"):
            batch = prepare(part, model, f"batch {number}")
            yield batch if len(batch) <= left else batch.only(list(range(int(left))))
            left -= len(batch)
            if left <= 0:
                return


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
    is that of sample ``n`` alone. Of the first batch, the first of several samples, and the first that is padded, the
    shortest sample is run alone to see that it is so, and that the loss is the model's own. Where a module reads tokens
    before samples, or something that is of no sample, such as positions, the samples are run one by one. A sharded
    model gathers its weights as it runs: a process that has no batch left runs one of another, and observes nothing.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Observed, not changed; see `observe_gradients`.
    targets : mapping of str to Target
        Modules to watch, by full name.
    batches : iterable of Batch
        From `prepared`.
    observer : Observer
        Called as the pass goes.

    Raises
    ------
    ValueError
        If there are no batches, or one does not fit the model, or the model is trained with another loss.
    RuntimeError
        If a sample alone is not what it is in its batch, or padding is not known in what a module reads.
    """
    scale = LOSS_SCALE if model.dtype == torch.float16 else 1.0

    @exact_products()
    def arrived(name: str, inputs: list[Tensor], gradients: list[Tensor]) -> None:
        if not mine:
            weight(model.get_submodule(name), name)  # another process may be gathering it
            return
        whole = [gradient.float() / scale for gradient in gradients] if scale != 1 else gradients
        observer.gradient_arrived(name, inputs, whole)

    parts: list[Batch] = []

    def each_part() -> Iterator[Batch]:
        for each in batches:
            parts[:] = each.singles() if singly else each.told_apart()
            while parts:
                yield parts.pop(0)

    device, processes = input_device(model.get_input_embeddings()), model_processes(model)
    with observe_gradients(model, targets, arrived) as recorder:
        seen, singly = -1, False
        for here, mine in processes.synchronized_items(each_part()):
            batch = here.on(device, model)
            losses = sample_losses(model, batch.inputs)
            _check_rows(targets, batch, recorder.inputs)
            if processes.any(not all(batch.is_by_sample(x) for calls in recorder.inputs.values() for x in calls)):
                singly, parts[:0] = True, [here] * mine
                parts[:] = [one for part in parts for one in part.singles()]
                recorder.clear()
                continue
            if mine:
                with exact_products():
                    observer.start(batch)
                    observer.forward_done(recorder)
            recorder.backward(losses.sum() * scale)
            company = _company(batch)
            if processes.any(company > seen):
                seen = max(seen, company)
                _check_alone(model, here, batch, losses.detach(), recorder)
            recorder.clear()
    if not observer.samples:
        raise ValueError("no batches to run: the iterable is empty (a generator that was used up?)")


def _check_rows(targets: Mapping[str, Target], batch: Batch, inputs: Mapping[str, list[Tensor]]) -> None:
    """Refuse modules whose inputs hold rows of which nobody knows whether they are padding, all of them at once."""
    strange = [n for n, calls in inputs.items() if any(x.requires_grad and not batch.is_of_tokens(x) for x in calls)]
    if strange:
        rest = sorted({t.projection for t in targets.values()} - {targets[name].projection for name in strange})
        raise RuntimeError(
            f"{strange[0]} and {len(strange) - 1} other modules read other rows than those of the {batch.real.numel()} "
            "tokens of the batch, and which of these are padding is not known: "
            + (f"leave them out, target_modules={rest}" if rest else "such a model is not supported")
        )


def _company(batch: Batch) -> int:
    """What a sample of the batch is with: nothing, other samples, or padding, and maybe other samples, too."""
    return 2 if not bool(batch.real.all()) else int(len(batch) > 1)


def _check_alone(model: Any, here: Batch, batch: Batch, losses: Tensor, recorder: Recorder) -> None:
    """Refuse a model that is trained with another loss, or whose samples are others in a batch than alone.

    After the backward pass, when the recorder is deaf, and what the modules read in the batch is still there.
    """
    n = int(here.real.sum(1).argmin())
    alone = here.alone(n).on(batch.device, model)
    off: dict[str, list[Tensor]] = {name: [] for name in recorder.inputs}

    def compare(name: str, x: Tensor) -> None:
        call = len(off[name])
        other = batch.real_rows(recorder.inputs[name][call : call + 1])
        off[name].append(_distance(x.flatten(0, -2), other[n][: x.shape[:-1].numel()] if other else x[:0]))

    with torch.no_grad(), temporary_seed(), observe_inputs(model, off, compare):
        own, ours = both_losses(model, alone.inputs)
    seen = {f"what {name} reads": torch.stack(each).amax() for name, each in off.items() if each}
    seen["its loss"] = _difference(ours, losses[n])
    own, ours, *found = on_host([own, ours, *seen.values()])
    apart = dict(zip(seen, map(float, found), strict=True))
    length = alone.real.shape[1]
    if float(_difference(own, ours)) > max(OWN_LOSS, 4 * torch.finfo(own.dtype).eps):
        raise ValueError(
            f"a {type(model).__name__} is trained with a loss of {float(own):.5g} on a sample of {length} tokens, and "
            f"calibration would measure {float(ours):.5g}, the mean over its labels (tokens are predicted from those "
            "before them): pass a causal, encoder-decoder or text classification model"
        )
    what = max(apart, key=apart.__getitem__)
    if apart[what] > _tolerance(model):
        raise RuntimeError(
            f"a sample of {length} tokens gives a different result in a batch than on its own, by {apart[what]:.2g} of "
            f"{what}: the model reads padding or other samples; pass batches of one sample without padding, e.g. "
            "task.calibration(32, batch_size=1)"
        )


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Of two matrices, as a part of the first; infinite where they are not of one shape."""
    if one.shape != other.shape:
        return one.new_tensor(torch.inf)
    return (one.float() - other.float()).norm() / one.float().norm().clamp(min=torch.finfo(torch.float32).tiny)


def _difference(one: Tensor, other: Tensor) -> Tensor:
    """Of two losses, in nats, or as a part of the first where it is large."""
    return (one.float() - other.float()).abs() / (1 + one.float().abs())


def _tolerance(model: Any) -> float:
    """Half of the digits that the model computes in: by so much a sample in a batch may differ from itself alone.

    Padding that is read makes 5 to 150 % of what some module reads; rounding, through 30 layers, 0.0003 % in float32,
    0.4 % in float16, 3 % in bfloat16.
    """
    device = input_device(model.get_input_embeddings()).type
    products = {"highest": torch.float32, "high": torch.float16, "medium": torch.bfloat16}  # by as many digits
    dtypes = [model.dtype, products[torch.get_float32_matmul_precision()]]
    if torch.is_autocast_enabled(device):
        dtypes.append(torch.get_autocast_dtype(device))
    if getattr(model, "hf_quantizer", None) is not None:
        dtypes.append(torch.bfloat16)
    return max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
