"""How much of it? Measure an adapter's task and other text while it is scaled down or modules are left out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import get_args

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from tlora.adapters.lora_layers import adapter_config, adapter_layers, adapter_tensors, warn_resized_vocabulary
from tlora.explanation.attribute import adapter_targets
from tlora.explanation.attribution import groups
from tlora.explanation.gated_adapter import GatedAdapter
from tlora.explanation.rescaling import LEFT_OUT, PART, SCALE, TASK, RescaledPoint, Rescaling
from tlora.explanation.side_effects import NO_TEXTS, check_texts
from tlora.models.forward import evaluation_mode
from tlora.models.weights import base_fingerprints, model_name
from tlora.results import Meta
from tlora.tasks.evaluation import summed_losses
from tlora.tasks.task import Task
from tlora.utils.defaults import Parts
from tlora.utils.progress import progress_bar
from tlora.utils.validation import require_choice, require_positive_int

SCALES = 9
"""Scales of the whole adapter, and most points at which several parts are left out."""


def rescale(
    adapted: PeftModel,
    task: Task,
    texts: Mapping[str, Task],
    *,
    limit: float | None = None,
    parts: Parts | None = None,
    only: str | None = None,
    samples: int = 64,
    split: str = "validation",
    batch_size: int = 8,
    progress: bool = True,
) -> Rescaling:
    """Measure the loss on the task and on other text at nine scales of an adapter, and find the best within a limit.

    Parameters
    ----------
    adapted : peft.PeftModel
        A base that writes text, with one active LoRA adapter, whoever trained it. It is not changed.
    task : Task
        What the adapter was trained for.
    texts : mapping of str to Task
        Sets of texts by name that the adapter should leave alone, as from `load_texts`; of a task its test samples.
    limit : float, optional
        Most nats per token that the loss of each set of texts may rise.
    parts : {"layers", "projections", "modules"}, optional
        Also leave out each part alone, and then more and more of them: first those whose absence costs the task least
        and helps the texts most. That takes a pass over all samples for each part.
    only : str, optional
        A layer, projection or module to scale, such as ``"layer 3"`` or ``"v_proj"``; the others stay as trained. All
        are scaled by default.
    samples : int
        Most samples of the task and of each set, drawn with their seed.
    split : str
        Split of the task. What is chosen on validation samples can be tested on others.
    batch_size : int
        Most samples at a time.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Rescaling
        Its `Rescaling.save_adapter` writes the best point as an ordinary adapter.

    Raises
    ------
    ValueError
        If the adapter is not plain LoRA (DoRA, PiSSA that was not converted), the model is a classifier, a set is for
        another architecture or tokenizer or empty, there are no sets, the limit is negative, or no module is called
        ``only``.

    Notes
    -----
    Each module computes ``W x + t s B A x``, with one ``t`` for all modules that are scaled and 1 for the others; or
    with 0 for those left out and 1 for the others. A trained head is kept as trained. The order in which parts are
    left out is by the loss of the task without the part alone minus what the texts gain, mean over sets. Parts
    interact, so every point is measured.

    Examples
    --------
    >>> texts = tlora.load_texts(tokenizer, "code")
    >>> rescaling = tlora.rescale(adapted, task, texts, limit=0.05, samples=4, parts="layers", progress=False)
    >>> [point.label for point in rescaling.points][-3:]
    ['without layer 0', 'without layer 1', 'without 1 of 2 layers']
    """
    if limit is not None and not limit >= 0:
        raise ValueError(f"limit={limit} is negative: pass the most nats per token that each text may lose")
    require_choice(parts, "parts", (None, *get_args(Parts)))
    gated = GatedAdapter(adapted, "rescale")
    if not texts:
        raise ValueError(NO_TEXTS)
    if TASK in texts:
        raise ValueError(f"a set of texts cannot be called {TASK!r}, as what the adapter was trained for is: rename it")
    sets = {TASK: task} | dict(texts)
    warn_resized_vocabulary(adapted)
    rows = {name: each.rows(split if name == TASK else "test", samples) for name, each in sets.items()}
    check_texts(gated.model, dict(texts) | {TASK: task}, rows)
    counts: dict[str, Tensor] = {}
    require_positive_int(batch_size, "batch_size")

    def measure(scaled: contextlib.AbstractContextManager[PeftModel]) -> dict[str, Tensor]:
        losses = {}
        with scaled as model, evaluation_mode(model):
            for name, each in sets.items():
                losses[name], counts[name] = summed_losses(model, each, rows[name], batch_size, False)
        bar.update()
        return losses

    def add(label: str, kind: str, factors: dict[str, float]) -> RescaledPoint:
        changes = {name: t * torch.eye(gated.ranks[name]) for name, t in factors.items() if t != 1}
        points.append(RescaledPoint(label, kind, factors, measure(gated.changed(changes))))
        return points[-1]

    targets = adapter_targets(gated)
    by_parts = {by: groups(targets, by.removesuffix("s")) for by in get_args(Parts)}
    named = {label: names for members in by_parts.values() for label, names in members.items()}
    if only is not None and only not in named:
        raise ValueError(f"only={only!r} is no part of this adapter: pass one of {', '.join([*named][:3])}, ...")
    scaled = targets if only is None else named[only]
    members = by_parts[parts] if parts else {}
    path = np.unique(np.linspace(0, len(members), SCALES).round().astype(int))[1:-1]
    points: list[RescaledPoint] = []
    with progress_bar(show=progress, total=1 + SCALES + len(members) + len(path), desc="rescale") as bar:
        base = measure(gated.as_base())
        for t in np.linspace(0, 1, SCALES).tolist():
            add(
                f"scale {t:.3g}{f' of {only}' if only else ''}",
                SCALE,
                dict.fromkeys(targets, 1.0) | dict.fromkeys(scaled, t),
            )
        whole = points[-1]
        worth = {}
        for label, names in members.items():
            point = add(f"without {label}", PART, {name: float(name not in names) for name in targets})
            change = {name: (point.losses[name] - whole.losses[name]).sum() / counts[name].sum() for name in sets}
            worth[label] = float(change[TASK]) + float(np.mean([change[name] for name in texts]))
        order = sorted(members, key=worth.__getitem__)
        for count in path.tolist():
            gone = {name for label in order[:count] for name in members[label]}
            label = f"without {count} of {len(members)} {parts}"
            add(label, LEFT_OUT, {name: float(name not in gone) for name in targets})
    layers = adapter_layers(gated.peft)
    return Rescaling(
        targets=targets,
        ranks=gated.ranks,
        scalings={name: float(layers[name].scaling[gated.adapter]) for name in targets},
        counts=counts,
        base=base,
        points=points,
        limit=limit,
        config=adapter_config(adapted),
        adapter={key: tensor.detach().cpu().clone() for key, tensor in adapter_tensors(adapted).items()},
        fingerprints=base_fingerprints(adapted),
        meta=Meta(
            model_name(gated.model),
            task.name,
            {"texts": list(texts), "limit": limit, "parts": parts, "only": only, "samples": samples, "split": split},
            task.seed,
            len(rows[TASK]),
        ),
    )
