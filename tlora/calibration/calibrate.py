"""Calibrate: covariance and sensitivity of every target module in one forward and backward pass (stages 1 and 2)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from operator import length_hint
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from tlora.calibration.accumulators import Statistics
from tlora.calibration.batches import Batch
from tlora.calibration.calibration import Calibration, Options, check_alike, reorder_samples
from tlora.calibration.checkpoint import Checkpoint, RemainingSamples
from tlora.calibration.constant_tokens import count_constant, find_constant_tokens
from tlora.calibration.experts import warn_of_unused_experts
from tlora.calibration.forward_backward import prepare_batches, run_batches
from tlora.calibration.sensitivity import Sensitivity
from tlora.models.experts import model_layer
from tlora.models.forward import has_argument
from tlora.models.hooks import checkpointed_blocks, token_embeddings
from tlora.models.record import record_of
from tlora.models.sharding import is_sharded
from tlora.models.targets import Model, refuse_adapted
from tlora.models.targets import target_modules as find_targets
from tlora.models.weights import fingerprint, model_name, weight
from tlora.results import Meta
from tlora.utils.defaults import COVARIANCE, SKETCH_SIZE, TOKENS, CovarianceForm, StatisticsPlacement, Tokens
from tlora.utils.devices import on_host
from tlora.utils.distributed import Processes
from tlora.utils.progress import progress_bar
from tlora.utils.validation import check_arguments, list_names, require_choice, require_positive_int


def calibrate(
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    *,
    samples: int | None = None,
    tokens: Tokens = TOKENS,
    gradient: bool = False,
    fisher: bool = False,
    target_modules: str | Iterable[str] | None = None,
    covariance: CovarianceForm = COVARIANCE,
    sketch_size: int = SKETCH_SIZE,
    gradient_checkpointing: bool | None = None,
    statistics: StatisticsPlacement | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 300.0,
    task: str = "",
    progress: bool = True,
) -> Calibration:
    """Measure the input covariance and the sensitivity of every target module on a few samples of a task.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model: causal, encoder-decoder or sequence classification, quantized or not, or sharded by FSDP2. It
        is observed, not changed: hooks, modes and ``requires_grad`` are restored when this returns or raises.
    batches : iterable of dict
        Batches with tensors ``input_ids`` (B, T), ``attention_mask`` (B, T) and ``labels``: (B, T) token ids, -100 for
        tokens that do not count, or (B,) classes. Padding on either side and single samples give the same numbers; a
        model whose samples depend on padding or on other samples is refused. ``trainer.get_train_dataloader()`` of a
        Trainer works too. Packed rows are split: ``position_ids`` (B, T) that start again with each sample replace the
        mask, and each sample counts as if it were alone; samples without a label that counts are left out. (Packing
        removes the label of each sample's first token, which nothing predicts, so with ``tokens="labels"`` that token
        does not count.)
    samples : int, optional
        Stop after this many, for a loader that streams; all by default.
    tokens : {"all", "labels", "task"}
        The real tokens that enter the covariance: all; those with a label; or those of the task, without what the chat
        template and the system prompt add, which is found by comparing the samples (see Notes). With ``"task"`` the
        mean gradient is summed over the same tokens, and the sensitivity stays that of the whole gradient.
    gradient : bool
        Keep the mean gradient of each weight too (a sketch for a large weight), for subspaces of kind ``"g"``.
    fisher : bool
        Keep the second moment of each module's inputs with tokens weighted by their squared gradients, for subspaces of
        kind ``"fisher"``; see `Calibration`. Inputs of at least twice ``sketch_size`` are sketched, whatever
        ``covariance`` is: each module has a matrix of its own.
    target_modules : str or iterable of str, optional
        As in `tlora.target_modules`; all linear layers of the blocks by default, without experts. Experts are observed
        one by one, with the tokens that the router sends to them; see Notes.
    covariance : {"dense", "sketch"}
        Keep covariances whole, or as sketches that never form them: a fraction of the memory for a wide model.
    sketch_size : int
        Columns of a sketch: twice the largest rank of later subspaces is plenty. Inputs narrower than twice this are
        kept whole.
    gradient_checkpointing : bool, optional
        Keep only the inputs of blocks from the forward to the backward pass, and run each block twice: the memory of a
        checkpointed training step, the same numbers, more time. By default if the model is set to checkpoint in
        training.
    statistics : {"device", "host"}, optional
        Where covariances, mean gradients and matrices of ``fisher`` that are kept whole are summed: beside the model,
        or in the host's memory, to which each batch then copies as many bytes. The numbers are the same up to rounding.
        By default on the host if they would take more than half of the free memory of a GPU. Sketches stay beside the
        model.
    checkpoint : path-like, optional
        Folder to save the statistics in from time to time and to resume from: an interrupted calibration then gives
        the same numbers as an uninterrupted one. Samples it already contains, in whatever batches, are not run again,
        so more samples can be added to a finished calibration.
    checkpoint_every : float
        Seconds between two saves; 0 saves after every batch.
    task : str
        Name of the task for the result's ``meta``; by default that of the batches, if they have one.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Calibration

    Warns
    -----
    UserWarning
        If gradients are to be checkpointed and the model has no blocks that transformers checkpoints: it is then run
        as without.

    Raises
    ------
    TypeError
        If ``batches`` is a single batch, or the model has no loss.
    ValueError
        If there are no batches, or a streaming loader is given without ``samples``; the model has an adapter; a batch
        has no mask or labels, or a sample no label; a weight or an activation is not finite; ``tokens="task"`` has
        fewer than two different samples to compare; or the checkpoint is of another model, other options or other
        samples. The message names the value and the module.
    RuntimeError
        If a target module does not run in the forward pass, receives no gradient, or its input is changed in place
        afterwards; or if a sample gives a different result in its batch than on its own.
    torch.OutOfMemoryError
        If the memory of the device does not suffice for a single sample; the message says what takes less.

    Notes
    -----
    No parameter requires a gradient: with ``D_n`` the gradient at a module's output, ``dL_n/dW = D_n^T X_n`` is formed
    tile by tile, sample by sample. Products and sums are float32 whatever the model's dtype. The sum of the samples'
    losses is backpropagated: samples stay separate because no row of a batch reads another. To check this, one sample
    of the first batch with padding or several samples is run alone. The loss of a float16 model is scaled by 1024 so
    that small gradients do not underflow.

    With gradient checkpointing a block's inputs enter the covariances in its first run, and its scores are computed in
    its second run, in the backward pass: no more than the inputs of one block are held. Modules that run in several
    blocks, which share their weights, are held as without.

    A batch that runs out of memory is run again in halves, down to single samples, and later batches of its size in
    such parts from the start; the log says so. If processes share a sharded model it is an error at once.

    ``tokens="task"`` needs no tokenizer. The tokens of a sample are runs, alternately without and with labels. The
    longest prefix and suffix of token ids that all samples have in common are left out, separately for the first
    prompts, later prompts, answers, and what follows the last answer: the first token, the system prompt, the turn
    markers and the end token. A text to classify, an encoder's input and a decoder's labels are one run each; a decoder
    reads a label one position later, after a start token, which is left out too. All batches are prepared before the
    first one is run. ``meta.recipe`` holds the ids as ``"constant_tokens"``, and as ``"left_out"`` how many of all
    tokens they are.

    An expert's statistics are of the counted tokens that are routed to it, so its covariance is centered by the mean of
    those of a sample; its sensitivity is zero in a sample that does not reach it. Covariances of layers with 64 or more
    experts are sketched whatever ``covariance`` is, and so are mean gradients. An expert that no token reaches is named
    in the log. `tlora.task_subspaces` gives each expert 16 further rows of all experts of its layer.

    Under ``torchrun`` or ``accelerate launch`` each process passes the same batches (a Trainer's loader gives each its
    own: calibrate before, in one process), runs its part of them, and returns the result of all; let one of them save
    it. For a sharded model no process holds more whole weights than a forward and backward pass needs.

    References
    ----------
    TLoRA, arXiv 2604.18124: the covariance of the initialization and the importance score of the allocation.

    Examples
    --------
    >>> calibration = tlora.calibrate(model, task.calibration(8), gradient=True, progress=False)
    >>> calibration
    Calibration(14 modules with 8 distinct inputs of base, 8 samples, tokens='all')
    >>> calibration.sensitivity.to_frame().nlargest(3, "score")["module"].tolist()
    ['model.layers...', 'model.layers...', 'model.layers...']
    """
    check_arguments(calibrate, locals())
    options = Options(tokens, gradient, fisher, covariance, sketch_size)
    if statistics is not None:
        require_choice(statistics, "statistics", get_args(StatisticsPlacement))
    _check_length(batches, samples)
    refuse_adapted(model)
    if not has_argument(model, "labels"):
        raise TypeError(
            f"a {type(model).__name__} has no loss, for its forward takes no labels: load it with a head, e.g. by "
            "AutoModelForCausalLM or AutoModelForSequenceClassification"
        )
    token_embeddings(model)  # refuses a model without them before anything runs
    processes = Processes.current()
    saves = None if checkpoint is None else Checkpoint(Path(checkpoint), checkpoint_every, processes)
    target_modules = list_names(target_modules)
    targets = find_targets(model, target_modules)
    fingerprints = _fingerprint_weights(model, list(targets))
    recipe = asdict(options) | {"target_modules": target_modules}
    prepared = None
    if tokens == "task":
        prepared = list(prepare_batches(model, batches, samples))
        constant = find_constant_tokens(prepared)
        prepared = [constant.mark(batch) for batch in prepared]
        recipe |= {"constant_tokens": asdict(constant), "left_out": count_constant(prepared)}
    meta = Meta(
        model=model_name(model),
        task=task or getattr(batches, "task", ""),
        recipe=recipe,
        seed=getattr(batches, "seed", None),
    )
    sums = Statistics(model, targets, options, statistics)
    if saves is not None and (earlier := saves.load()) is not None:
        check_alike(earlier, list(targets), recipe, fingerprints, f"the checkpoint in {saves.folder}")
        sums.resume(earlier)

    remaining = RemainingSamples(processes, sums.fingerprints)
    if saves is not None and sums.samples:
        prepared = prepared or list(prepare_batches(model, batches, samples))
        remaining.check(prepared, saves.folder)
    items = batches if prepared is None else prepared
    bar = progress_bar(items, desc="calibrating", unit="batch", show=progress and processes.rank == 0)
    todo = remaining.select(prepare_batches(model, bar, samples) if prepared is None else iter(bar))

    def current_result() -> Calibration:
        return _make_result(sums, fingerprints, meta)

    if saves is not None:
        todo = _save_between(todo, saves, current_result)
    try:
        run_batches(model, targets, todo, sums, gradient_checkpointing=gradient_checkpointing, bar=bar)
    except torch.OutOfMemoryError as error:
        ways = {
            "batches of fewer samples": is_sharded(model),
            "gradient_checkpointing=True": not checkpointed_blocks(model, gradient_checkpointing),
            "statistics='host'": sums.has_whole_sums_on_an_accelerator(),
            "covariance='sketch'": covariance == "dense",
            "shorter samples": True,
        }
        remedy = ", ".join(way for way, is_left in ways.items() if is_left)
        raise torch.OutOfMemoryError(f"calibration ran out of memory: try, in this order, {remedy}; {error}") from error
    if saves is not None:
        saves.save(current_result())
    sums.reduce(processes)
    calibration = reorder_samples(current_result(), remaining.order)
    warn_of_unused_experts(calibration)
    return calibration


def _check_length(batches: Iterable[Any], samples: int | None) -> None:
    """Refuse a streaming loader without a number of samples: it may never end."""
    if samples is not None:
        require_positive_int(samples, "samples")
    elif hasattr(batches, "__len__") and length_hint(batches, -1) < 0:
        raise ValueError(
            f"batches is a {type(batches).__name__} that does not know its length, and may never end: say after how "
            "many samples to stop, samples=32"
        )


def _save_between(
    batches: Iterator[Batch], checkpoint: Checkpoint, current_result: Callable[[], Calibration]
) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        if checkpoint.is_due():  # the next batch is requested, so this one is finished
            checkpoint.save(current_result())


def _fingerprint_weights(model: Any, names: list[str]) -> dict[str, Tensor]:
    """A fingerprint of each weight; refuse weights that are not finite."""
    prints, extremes = [], []
    for name in names:
        matrix = weight(model_layer(model, name), name)
        prints.append(fingerprint(matrix))
        # NaN or infinity reaches the minimum or maximum, which take one pass over the weight and no copy
        extremes.append(torch.stack(torch.aminmax(matrix)))
    values = on_host([*prints, *extremes])
    for name, ends in zip(names, values[len(names) :], strict=True):
        if not bool(torch.isfinite(ends).all()):
            raise ValueError(
                f"the weight of {name} is not finite (NaN or infinity): the checkpoint is damaged; load it again"
            )
    prints_by_name = dict(zip(names, values, strict=False))
    if (kept := record_of(model).fingerprints) is not None:
        kept.update(prints_by_name)
    return prints_by_name


def _make_result(statistics: Statistics, fingerprints: dict[str, Tensor], meta: Meta) -> Calibration:
    targets, meta = statistics.targets, replace(meta, samples=statistics.samples)
    covariances = statistics.finish_covariances()
    per_sample = torch.cat(statistics.scores).cpu()
    for i, name in enumerate(targets):
        first = statistics.first[name]
        # NaN or infinity in an input reaches the diagonal, hence the trace
        if not math.isfinite(covariances[first].trace) or not bool(torch.isfinite(per_sample[:, i]).all()):
            raise ValueError(
                f"the inputs or gradients of {name} are not finite (NaN or infinity) on these samples: "
                "look at the module before it, or load the model with dtype='float32'"
            )
    return Calibration(
        covariances={name: covariances[name] for name in targets if name in covariances},
        shared={name: statistics.first[name] for name in targets},
        sensitivity=Sensitivity(dict(targets), per_sample, meta),
        gradient=statistics.finish_gradients(),
        fisher=statistics.finish_fishers(),
        fingerprints=fingerprints,
        sample_fingerprints=torch.tensor(statistics.fingerprints),
        sketching=dict(statistics.matrices.tensors),
        meta=meta,
    )
