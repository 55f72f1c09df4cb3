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


def deal_splits(
    splits: Mapping[str, Dataset],
    sizes: Mapping[str, int | None],
    seed: int,
    columns: Sequence[str],
    leave_out_shared: bool,
) -> dict[str, Dataset]:
    """Train, validation and test of the sizes asked for, no sample in two of them.

    A split that is missing is taken from the training rows (a tenth where no size is given), rows that agree
    in ``columns`` staying together. Where there is a ``label``, every class keeps its share.

    Parameters
    ----------
    splits : mapping of str to Dataset
        What there is.
    sizes : mapping of str to int or None
        Rows wanted of each split; None for all there are.
    seed : int
        Seed of what is drawn.
    columns : sequence of str
        What makes two rows the same sample.
    leave_out_shared : bool
        Whether training rows that stand in another given split too, and validation rows that stand in the test
        split, are left out, or only warned of.

    Returns
    -------
    dict of Dataset
        All three; empty where the size is 0, and the training split where only a test set was given.

    Raises
    ------
    ValueError
        If there are fewer rows than asked for, or too few for one in each split.
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
                _check_enough(len(rows), [name for name in missing[number:] if sizes[name] is None], sizes["train"])
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
    """The columns that make two rows of a task the same sample: what the model is given."""
    for names in (("prompt",), ("messages",), ("text", "text_pair")):
        if names[0] in rows.column_names:
            return tuple(name for name in names if name in rows.column_names)
    raise ValueError(f"no column of a task among {rows.column_names}")


def _keys(rows: Dataset, columns: Sequence[str]) -> list[str]:
    if not columns:
        return [str(index) for index in range(len(rows))]
    return ["\0".join(map(_given, values)) for values in zip(*(rows[name][:] for name in columns), strict=True)]


def _given(value: Any) -> str:
    """What the model is given of a value: of messages, those before the last turn that is trained on."""
    if isinstance(value, list):
        said = [place for place, message in enumerate(value) if is_trained_on(message)]
        given = value[: said[-1]] if said else value
        value = [{key: each for key, each in unpack_message(message).items() if key != "weight"} for message in given]
    return str(value)


def _without_shared(
    splits: Mapping[str, Dataset], split: str, others: Sequence[str], columns: Sequence[str], leave_out: bool
) -> Dataset:
    """The rows of a split, those that stand in others too left out or warned of."""
    rows = splits[split]
    held_out = {key for other in others if other in splits for key in _keys(splits[other], columns)}
    if not held_out:
        return rows
    own = [index for index, key in enumerate(_keys(rows, columns)) if key not in held_out]
    shared = len(rows) - len(own)
    if shared:
        name = "training" if split == "train" else split
        done = f"left out of {name}" if leave_out else "kept: metrics on held-out samples will be too good"
        warnings.warn(f"{shared} {name} samples are in another split too; {done}", stacklevel=4)
    return rows.select(own) if leave_out else rows


def _check_enough(rows: int, unsized: Sequence[str], train: int | None) -> None:
    """Refuse to hold out the only samples: each split without a size takes one at least, and so does training."""
    parts = unsized if train == 0 else ["train", *unsized]
    if rows < len(parts):
        counted = "1 sample" if rows == 1 else f"{rows} samples"
        raise ValueError(
            f"{counted} cannot be split into {', '.join(parts)}: give at least {len(parts)}, or load the task with "
            f"{' and '.join(f'{split}=0' for split in unsized)}"
        )


def _draw(
    rows: Dataset, size: int, rng: np.random.Generator, columns: Sequence[str], split: str, exact: bool
) -> np.ndarray:
    """Sorted indices of ``size`` rows, every class with its share, rows of one key together."""
    if size > len(rows):
        raise ValueError(f"{split}={size} asks for more than the {len(rows)} samples there are: ask for fewer")
    if not size:
        return np.array([], dtype=int)
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(_keys(rows, columns)):
        groups.setdefault(key, []).append(index)
    strata = rows["label"][:] if "label" in rows.column_names else [0] * len(rows)
    left = _shares(strata, size)
    members = [group for _, group in sorted(zip(rng.permutation(len(groups)), groups.values(), strict=True))]
    drawn: list[int] = []
    for group in members:
        if len(group) <= left[strata[group[0]]]:
            left[strata[group[0]]] -= len(group)
            drawn += group
    if not drawn and len(members) > 1:
        drawn = min(members, key=len)
    _check_drawn(len(drawn), size, len(members), split, exact)
    return np.sort(np.array(drawn, dtype=int))


def _check_drawn(drawn: int, size: int, groups: int, split: str, exact: bool) -> None:
    if not drawn:
        raise ValueError(
            f"no sample can be held out for {split}: all have the same text, and stay together; "
            f"give {split} data of its own, or load the task with {split}=0"
        )
    if exact and drawn != size:
        warnings.warn(
            f"{split} has {drawn} samples, not {size}: samples with the same text stay together, "
            f"and there are {groups} different ones",
            stacklevel=5,
        )


def _shares(strata: Sequence[int], size: int) -> dict[int, int]:
    values, counts = np.unique(np.array(strata), return_counts=True)
    shares = apportion(counts.tolist(), size, [0] * len(values), counts.tolist())
    return dict(zip(values.tolist(), shares, strict=True))
