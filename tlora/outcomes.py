"""What a model makes of each sample of a split, kept small: what paired comparisons are made of."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlora.tasks.evaluation import per_sample
from tlora.tasks.task import Task

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """Metrics of a split, and the values that they are the means of.

    Attributes
    ----------
    metrics : dict of float
        As `Task.evaluate` gives them: ``loss`` and the task's own.
    per_sample : dict of (N,) float64 array
        By metric, in the order of the split; the mean is the metric. A sample's loss is weighted by its part of all
        labelled tokens, ``N * (summed loss of the sample) / (tokens of the split)``.
    """

    metrics: dict[str, float]
    per_sample: dict[str, Floats]


def outcomes(model: Any, task: Task, split: str, *, batch_size: int = 16) -> Outcomes:
    """Evaluate a model sample by sample: its loss, and the task's headline metric.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        Left in the modes it had.
    task : Task
        Where the samples come from.
    split : str
        ``"train"``, ``"validation"`` or ``"test"``.
    batch_size : int
        Most samples at a time.

    Raises
    ------
    ValueError
        If the split is empty.
    """
    rows = getattr(task, split)
    if not len(rows):
        raise ValueError(f"the {split} split of {task.name!r} is empty: load the task with {split}= of at least 1")
    each = per_sample(model, task, rows, batch_size, progress=False)
    found = {name: each[name] for name in dict.fromkeys(("loss", task.metric))}
    return Outcomes({name: float(values.mean()) for name, values in found.items()}, found)


def packed(values: Floats) -> dict[str, Any]:
    """Values as text: one bit each where all are 0 or 1, else 16-bit floats; base64.

    Parameters
    ----------
    values : (N,) float64 array
        Finite.

    Returns
    -------
    dict
        ``kind`` (``"bits"`` or ``"float16"``), ``count`` and ``data``.
    """
    if np.isin(values, (0.0, 1.0)).all():
        kind, data = "bits", np.packbits(values.astype(bool)).tobytes()
    else:
        largest = float(np.finfo(np.float16).max)
        kind, data = "float16", values.clip(-largest, largest).astype("<f2").tobytes()
    return {"kind": kind, "count": len(values), "data": base64.b64encode(data).decode()}


def unpacked(text: Mapping[str, Any]) -> Floats:
    """The values that `packed` wrote, 16-bit floats rounded as they were stored.

    Raises
    ------
    ValueError
        If they are not what was written.
    """
    data = base64.b64decode(text["data"], validate=True)
    bits = text["kind"] == "bits"
    values = np.unpackbits(np.frombuffer(data, np.uint8)) if bits else np.frombuffer(data, "<f2")
    if len(values) < text["count"] or len(values) - text["count"] >= 8:
        raise ValueError(f"{len(values)} outcomes where {text['count']} were written: the store was changed by hand")
    return values[: text["count"]].astype(np.float64)
