"""Deal the rows of a task to train, validation and test, no sample in two of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from tlora.numerics.apportionment import apportion
from tlora.tasks.chat import is_trained_on, unpack_message

SPLITS = ("train", "validation", "test")


class TooFewSamplesError(ValueError):
    """There are fewer samples than splits; ``finding`` says so without the way out, which not every caller has."""

    def __init__(self, finding: str, way_out: str) -> None:
        super().__init__(f"{finding}: {way_out}")
        self.finding = finding


def deal_splits(
    splits: Mapping[str, Dataset],
    sizes: Mapping[str, int | None],
    seed: int,
    columns: Sequence[str],
    leave_out_shared: bool,
) -> dict[str, Dataset]:
    """Deal rows to train, validation and test, no sample in two of them.

    A missing split is taken from the training rows (a tenth, if no size is given); rows that agree in ``columns`` stay
    together. If there is a ``label``, every class keeps its share.

    Parameters
    ----------
    splits : mapping of str to Dataset
        The splits of the data.
    sizes : mapping of str to int or None
        Rows wanted in each split; None for all.
    seed : int
        Seed of random draws.
    columns : sequence of str
        Columns that identify a sample.
    leave_out_shared : bool
        Whether to leave out training rows that are also in another split, and validation rows that are also in the
        test split. Otherwise only warn.

    Returns
    -------
    dict of Dataset
        All three splits; one of size 0 is empty, and so is the training split if only a test set is given.
    """
    rng = np.random.default_rng(seed)
    empty = next(iter(splits.values())).select([])
    result = dict(splits)
    if "validation" in splits:
        result["validation"] = _without_shared(splits, "validation", ["test"], columns, leave_out_shared)
    if "train" in splits:
        result["train"] = _without_shared(splits, "train", ["validation", "test"], columns, leave_out_shared)
        tenth = max(1, round(len(result["train"]) / 10))
        missing = [split for split in ("test", "validation") if split not in splits]
        for number, split in enumerate(missing):
            rows, size = result["train"], sizes[split]
            if size is None:
                unsized = [name for name in missing[number:] if sizes[name] is None]
                _check_enough(len(rows), unsized, sizes["train"], sizes[missing[0]] if number else None)
            held = _draw(rows, tenth if size is None else size, rng, columns, split, exact=size is not None)
            result[split] = rows.select(held)
            result["train"] = rows.select(np.setdiff1d(np.arange(len(rows)), held))
    for split in SPLITS:
        rows, size = result.get(split, empty), sizes[split]
        if size is not None and (split in splits or split == "train"):
            rows = rows.select(_draw(rows, size, rng, (), split, exact=True))
        result[split] = rows
    return {split: result[split] for split in SPLITS}


def key_columns(rows: Dataset) -> tuple[str, ...]:
    """The columns that identify a sample of a task: the model's input."""
    return tuple(name for name in ("prompt", "messages", "text", "text_pair") if name in rows.column_names)


def _keys(rows: Dataset, columns: Sequence[str]) -> list[str]:
    if not columns:
        return [str(index) for index in range(len(rows))]
    return ["\0".join(map(_model_input, values)) for values in zip(*(rows[name][:] for name in columns), strict=True)]


def _model_input(value: Any) -> str:
    """A value as text; of messages only those before the last turn that is trained on."""
    if isinstance(value, list):
        turns = [place for place, message in enumerate(value) if is_trained_on(message)]
        before = value[: turns[-1]] if turns else value
        value = [{key: each for key, each in unpack_message(message).items() if key != "weight"} for message in before]
    return str(value)


def _without_shared(
    splits: Mapping[str, Dataset], split: str, others: Sequence[str], columns: Sequence[str], leave_out: bool
) -> Dataset:
    """Leave out the rows of a split that are also in others, or warn of them."""
    rows = splits[split]
    held_out = {key for other in others if other in splits for key in _keys(splits[other], columns)}
    if not held_out:
        return rows
    kept = [index for index, key in enumerate(_keys(rows, columns)) if key not in held_out]
    shared = len(rows) - len(kept)
    if shared:
        name = "training" if split == "train" else split
        done = f"left out of {name}" if leave_out else "kept: metrics on held-out samples will be too good"
        warnings.warn(f"{shared} {name} samples are in another split too; {done}", stacklevel=4)
    return rows.select(kept) if leave_out else rows


def _check_enough(rows: int, unsized: Sequence[str], train: int | None, test: int | None) -> None:
    """Refuse to hold out the only samples: each split without a size, and training, takes at least one."""
    parts = unsized if train == 0 else ["train", *unsized]
    if rows < len(parts) and test:
        way = f", or pass {' and '.join(f'{name}=0' for name in unsized)}" if rows else ""
        raise ValueError(
            f"test={test} takes {test} of {rows + test} samples and leaves {rows} for {' and '.join(parts)}: ask for "
            f"fewer{way}"
        )
    if rows < len(parts):
        counted = "1 sample" if rows == 1 else f"{rows} samples"
        raise TooFewSamplesError(
            f"{counted} cannot be split into {', '.join(parts)}",
            f"give at least {len(parts)}, or load the task with {' and '.join(f'{split}=0' for split in unsized)}",
        )


def _draw(
    rows: Dataset, size: int, rng: np.random.Generator, columns: Sequence[str], split: str, exact: bool
) -> np.ndarray:
    """Draw sorted indices of ``size`` rows; every class keeps its share, rows with one key stay together."""
    if size > len(rows):
        raise ValueError(f"{split}={size} asks for more than the {len(rows)} samples there are: ask for fewer")
    if not size:
        return np.array([], dtype=int)
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(_keys(rows, columns)):
        groups.setdefault(key, []).append(index)
    strata = rows["label"][:] if "label" in rows.column_names else [0] * len(rows)
    values, counts = np.unique(np.array(strata), return_counts=True)
    left = dict(zip(values.tolist(), apportion(counts.tolist(), size, [0] * len(values), counts.tolist()), strict=True))
    members = [group for _, group in sorted(zip(rng.permutation(len(groups)), groups.values(), strict=True))]
    drawn: list[int] = []
    for group in members:
        if len(group) <= left[strata[group[0]]]:
            left[strata[group[0]]] -= len(group)
            drawn += group
    if not drawn and len(members) > 1:
        drawn = min(members, key=len)
    if not drawn:
        raise ValueError(
            f"no sample can be held out for {split}: all have the same text, and stay together; "
            f"give {split} data of its own, or load the task with {split}=0"
        )
    if exact and len(drawn) != size:
        warnings.warn(
            f"{split} has {len(drawn)} samples, not {size}: samples with the same text stay together, "
            f"and there are {len(members)} different ones",
            stacklevel=4,
        )
    return np.sort(np.array(drawn, dtype=int))
