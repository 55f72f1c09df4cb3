"""Calibrate: one forward and backward pass over a few samples, for every target module."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlora.calibration.accumulators import Statistics
from tlora.calibration.batches import Batch
from tlora.calibration.calibration import Calibration, Options, Products, check_alike, in_order
from tlora.calibration.checkpoint import Checkpoint, Share
from tlora.calibration.forward_backward import check_batches, observe, prepared
from tlora.calibration.sensitivity import Sensitivity
from tlora.models.forward import has_argument
from tlora.models.hooks import token_embeddings
from tlora.models.targets import refuse_adapted
from tlora.models.targets import target_modules as find_targets
from tlora.models.weights import fingerprint, weight
from tlora.results import Meta
from tlora.utils.defaults import COVARIANCE, SKETCH_SIZE, TOKENS, CovarianceForm, Tokens
from tlora.utils.devices import on_host
from tlora.utils.distributed import Processes
from tlora.utils.validation import list_names, positive_int


def calibrate(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    samples: int | None = None,
    tokens: Tokens = TOKENS,
    gradient: bool = False,
    target_modules: str | Iterable[str] | None = None,
    covariance: CovarianceForm = COVARIANCE,
    sketch_size: int = SKETCH_SIZE,
    products: Products = "float32",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 300.0,
    task: str = "",
    progress: bool = True,
) -> Calibration:
    """Covariance and sensitivity of every target module, in one forward and backward pass over the samples.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model: causal, encoder-decoder or sequence classification, quantised or not, or sharded by FSDP2. It
        is observed, not changed: hooks, modes and ``requires_grad`` are as before when this returns or raises.
    batches : iterable of dict
        Each with tensors ``input_ids`` (B, T), ``attention_mask`` (B, T) and ``labels``: (B, T) token ids with -100
        where a token does not count, or (B,) classes. Padding on either side, or single samples: the numbers are the
        same, and a model that reads padding, or other samples, is refused. ``trainer.get_train_dataloader()`` of a
        Trainer will do. Packed rows are taken apart: ``position_ids`` (B, T) that start again with each sample stand
        for the mask, and each sample counts as if it were alone; one without a label that counts is left out. (Packing
        takes the label off the first token of each, which nothing predicts: with ``tokens="labels"`` that token does
        not count then.)
    samples : int, optional
        Stop after so many, as a loader that streams needs; all by default.
    tokens : {"all", "labels"}
        Which real tokens enter the covariance: all, or those with a label.
    gradient : bool
        Keep the mean gradient of each weight too (a sketch where the weight is large), for subspaces of kind ``"g"``.
    target_modules : str or iterable of str, optional
        As in `tlora.target_modules`; all linear layers of the blocks by default.
    covariance : {"dense", "sketch"}
        Keep covariances whole, or as sketches that never form them: a fraction of the memory for a wide model.
    sketch_size : int
        Columns of a sketch: twice the largest rank that subspaces will be asked for is plenty. Inputs narrower than
        twice this are kept whole.
    products : {"float32", "model"}
        Precision of the factors of products: float32, or what the model computes in, twice as fast for a bfloat16
        model on a machine that has it (for a float16 model float32 all the same, as its products would overflow). Sums
        are float32 in either case. With ``"model"`` what a sketch says that it misses is an estimate, and can come out
        too small.
    checkpoint : path-like, optional
        Folder to save the statistics in now and then, and to go on from where it holds some: a calibration that was
        killed then gives the numbers of one that was not. Samples that are in it already, in whatever batches, are
        not run again, so that more can be added to a finished one.
    checkpoint_every : float
        Seconds between two saves; 0 saves after every batch.
    task : str
        Name of the task, kept in the result's ``meta``; by default that which the batches carry, if any.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Calibration

    Raises
    ------
    TypeError
        If the model is not a language model of transformers with a loss; if the batches are one batch, or nothing to go
        through, or can be gone through once alone and a checkpoint holds some of them; if a weight is packed so that it
        cannot be unpacked.
    ValueError
        If there are no batches, or a loader that does not know how many and may never end is given without
        ``samples``; the model carries an adapter; a batch lacks mask or labels or a sample of it has no
        label; a weight or an activation is not finite; no target module is found; the checkpoint is of another model,
        of other options or holds samples that are not among these. The message names the value and the module.
    RuntimeError
        If a target module does not run in the forward pass, no gradient comes back to it, or its input is
        changed in place afterwards; if a sample is another in its batch than alone.

    Notes
    -----
    No parameter requires a gradient: with ``D_n`` the gradient at a module's output, ``dL_n/dW = D_n^T X_n`` is formed
    tile by tile, sample by sample. Sums are float32 whatever the model computes in. The sum of the samples' losses is
    backpropagated: samples stay apart, because no row of a batch reads another; one sample, the shortest, of the first
    batch that is padded, or has several, is run alone to see that it is so. That of a float16 model is scaled by
    1024 on its way back, so that small gradients do not underflow.

    Under ``torchrun`` or ``accelerate launch`` each process gives the same batches (a Trainer's loader gives each its
    own: calibrate before, in one process), runs its part of them, and returns the result of all; let one of them save
    it. Of a sharded model no process holds more whole weights than a forward and backward pass needs.

    References
    ----------
    TLoRA, arXiv 2604.18124: the covariance of the initialisation and the importance score of the allocation.
    """
    options = Options(tokens, gradient, covariance, sketch_size, products)
    check_batches(batches)
    _check_ends(batches, samples)
    _check_model(model)
    processes = Processes.current()
    saves = None if checkpoint is None else Checkpoint(Path(checkpoint), checkpoint_every, processes)
    target_modules = list_names(target_modules)
    targets = find_targets(model, target_modules)
    fingerprints = _checked_fingerprints(model, list(targets))
    recipe = asdict(options) | {"target_modules": target_modules}
    meta = Meta(
        model=model.config._name_or_path or type(model).__name__,
        task=task or getattr(batches, "task", ""),
        recipe=recipe,
        seed=getattr(batches, "seed", None),
    )
    statistics = Statistics(model, targets, options)
    if saves is not None and (earlier := saves.load()) is not None:
        check_alike(earlier, list(targets), recipe, fingerprints, f"the checkpoint in {saves.folder}")
        statistics.go_on(earlier)
    share = Share(processes, statistics.fingerprints)
    if saves is not None and statistics.samples:
        _check_can_be_read_twice(batches)
        share.check(prepared(model, batches, "", False, samples), saves.folder)
    todo = share.left(prepared(model, batches, "calibrating", progress and processes.rank == 0, samples))

    def so_far() -> Calibration:
        return _result(statistics, fingerprints, meta)

    observe(model, targets, todo if saves is None else _saving(todo, saves, so_far), statistics)
    if saves is not None:
        saves.save(so_far())
    statistics.add_up(processes)
    return in_order(so_far(), share.order)


def _check_ends(batches: Iterable[Any], samples: int | None) -> None:
    """Refuse a loader of a stream, unless it is said after how many samples to stop."""
    if samples is not None:
        positive_int(samples, "samples")
    elif hasattr(batches, "__len__") and length_hint(batches, -1) < 0:
        raise ValueError(
            f"batches is a {type(batches).__name__} that does not know its length, and may never end: say after how "
            "many samples to stop, samples=32"
        )


def _check_model(model: Any) -> None:
    """Refuse, before anything runs, a model that calibration cannot call or has no loss of."""
    refuse_adapted(model)
    name = type(model).__name__
    if not hasattr(model, "config"):
        raise TypeError(f"a {name} has no config, which says how it is called: pass a model of transformers")
    if not has_argument(model, "input_ids"):
        raise TypeError(f"a {name} reads no text, for its forward does not take input_ids: pass a language model")
    if not has_argument(model, "labels"):
        raise TypeError(
            f"a {name} has no loss of labels, which its forward does not take: load it with a head, e.g. by "
            "AutoModelForCausalLM or AutoModelForSequenceClassification"
        )
    token_embeddings(model)


def _saving(batches: Iterator[Batch], checkpoint: Checkpoint, so_far: Callable[[], Calibration]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        if checkpoint.is_due():  # asked for the next batch: this one has gone through
            checkpoint.save(so_far())


def _check_can_be_read_twice(batches: Iterable[Any]) -> None:
    if iter(batches) is batches:
        raise TypeError(
            f"batches is a {type(batches).__name__}, which can be read only once: going on from a checkpoint looks at "
            "all samples before; pass a list"
        )


def _checked_fingerprints(model: Any, names: list[str]) -> dict[str, Tensor]:
    prints, extremes = [], []
    for name in names:
        matrix = weight(model.get_submodule(name), name)
        prints.append(fingerprint(matrix))
        # what is not finite shows in the extremes, which take one pass over the weight and no copy of it
        extremes.append(torch.stack(torch.aminmax(matrix)))
    found = on_host([*prints, *extremes])
    for name, ends in zip(names, found[len(names) :], strict=True):
        if not bool(torch.isfinite(ends).all()):
            raise ValueError(
                f"the weight of {name} is not finite (NaN or infinity): the checkpoint is damaged; load it again"
            )
    return dict(zip(names, found, strict=False))


def _result(statistics: Statistics, fingerprints: dict[str, Tensor], meta: Meta) -> Calibration:
    targets, meta = statistics.targets, replace(meta, samples=statistics.samples)
    covariances = statistics.finished_covariances()
    per_sample = torch.cat(statistics.scores).cpu()
    for i, name in enumerate(targets):
        first = statistics.first[name]
        # what is not finite in an input is not finite on the diagonal
        if not math.isfinite(covariances[first].trace) or not bool(torch.isfinite(per_sample[:, i]).all()):
            raise ValueError(
                f"the inputs or gradients of {name} are not finite (NaN or infinity) on these samples: "
                "look at the module before it, or load the model with dtype='float32'"
            )
    return Calibration(
        covariances={name: covariances[name] for name in targets if name in covariances},
        shared={name: statistics.first[name] for name in targets},
        sensitivity=Sensitivity(dict(targets), per_sample, meta),
        gradient=statistics.finished_gradients(),
        fingerprints=fingerprints,
        sample_fingerprints=torch.tensor(statistics.fingerprints),
        sketching=dict(statistics.matrices.tensors),
        meta=meta,
    )
