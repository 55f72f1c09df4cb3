"""Rows of a task before tokenization: read from files and datasets, and checked."""

from __future__ import annotations

import gzip
import json
import re
import warnings
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet
from datasets import ClassLabel, Dataset, concatenate_datasets

from tlora.tasks.chat import check_messages, pack_row
from tlora.tasks.metrics import METRICS, Metric
from tlora.tasks.splits import SPLITS

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")

_ACCEPTED = "prompt and completion; messages (role and content); text and label (optionally text_pair)"
_OPTIONAL = {("prompt", "completion"): (), ("messages",): ("tools",), ("text", "label"): ("text_pair",)}
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
_FRACTION = re.compile(r"[-+]?\d*\.\d+(e[-+]?\d+)?", re.IGNORECASE)
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(-[0-9a-f]+)?")
_UNREADABLE = (
    UnicodeDecodeError,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    pd.errors.EmptyDataError,
    pd.errors.ParserError,
    pyarrow.ArrowException,
)
PlacedRow = tuple[str, dict[str, Any]]
"""A row and its place in a file, for error messages."""


@dataclass(frozen=True)
class Source:
    """A task before tokenization.

    Attributes
    ----------
    name : str
        Name of the task.
    splits : dict of Dataset
        ``prompt`` and ``completion``, ``messages``, or ``text`` and ``label`` (a class index), and whatever else the
        metric reads.
    metric : Metric
        How answers are scored.
    classes : tuple of str
        Names of the classes; empty if the rows have no label.
    separator : str
        Text between prompt and completion when no chat template is used.
    """

    name: str
    splits: dict[str, Dataset]
    metric: Metric
    classes: tuple[str, ...] = ()
    separator: str = ""


def read_path(path: Path) -> Source:
    """Read the rows of a local file, or of a folder with one file or several shards per split."""
    if path.is_dir():
        files = split_files(path)
    elif path.is_file():
        files = {"train": (path,)}
    else:
        raise FileNotFoundError(f"{path} does not exist: pass a file ({', '.join(SUFFIXES)}) or a folder of them")
    return _source(path.name.partition(".")[0], {split: _read_split(paths) for split, paths in files.items()})


def read_dataset(data: Dataset | Mapping[str, Dataset]) -> Source:
    """Read the rows of a `datasets.Dataset`, or of one per split; columns that are not those of a task are left out."""
    splits = {"train": data} if isinstance(data, Dataset) else {_ALIASES.get(key, key): data[key] for key in data}
    known = {split: rows for split, rows in splits.items() if split in SPLITS}
    if not known:
        raise ValueError(f"the splits are {', '.join(splits) or '(none)'}: name them train, validation and test")
    for split, rows in known.items():
        if not isinstance(rows, Dataset):
            raise TypeError(
                f"split {split!r} is a {type(rows).__name__}, not a datasets.Dataset: load it without streaming=True"
            )
    return _source("dataset", {split: _check_dataset(rows, split) for split, rows in known.items()})


def _read_split(paths: Sequence[Path]) -> Dataset:
    """Read a split, in one file or in shards."""
    if paths[0].name.lower().endswith(".parquet"):
        return concatenate_datasets([_check_dataset(read_table(path), str(path)) for path in paths])
    return _collect(chain.from_iterable(map(read_rows, paths)), str(paths[0]))


def _check_dataset(rows: Dataset, where: str) -> Dataset:
    """Check every row and keep the columns of a task; features, and with them class names, stay."""
    rows = rows.with_format(None)
    if not len(rows):
        raise ValueError(f"{where} has no rows: a split needs at least one")
    columns = _task_columns(rows[0], where)
    for number, row in enumerate(rows, start=1):
        _check_row(row, columns, f"{where}, sample {number}")
    return rows.select_columns([name for name in columns if name in rows.column_names])


def _collect(rows: Iterable[PlacedRow], path: str) -> Dataset:
    columns: tuple[str, ...] = ()
    kept: list[dict[str, Any]] = []
    for where, row in rows:
        columns = columns or _task_columns(row, where)
        _check_row(row, columns, where)
        row = pack_row(row) if "messages" in columns else row
        kept.append({name: row.get(name) for name in columns})
    if not kept:
        raise ValueError(f"{path} has no rows: it needs at least one with {_ACCEPTED}")
    empty = {name for name in ("text_pair", "tools") if not any(row.get(name) for row in kept)}
    try:
        return Dataset.from_dict({name: [row[name] for row in kept] for name in columns if name not in empty})
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: a column holds values of different types ({error})") from error


def _task_columns(first: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The columns of a task, by its first row: a second text is in all rows or in none, tools may be in any."""
    for shape, optional in _OPTIONAL.items():
        if set(shape) <= set(first):
            return (*shape, *(name for name in optional if name == "tools" or first.get(name) is not None))
    raise ValueError(f"{where} has the columns {', '.join(first) or '(none)'}; accepted are {_ACCEPTED}: rename yours")


def _check_row(row: Mapping[str, Any], columns: tuple[str, ...], where: str) -> None:
    required = [name for name in columns if name != "tools"]
    for name in required:
        if row.get(name) is None:
            raise ValueError(f"{where}: {name!r} is missing; every row needs {' and '.join(required)}")
        empty = not str(row[name]).strip() and name != "text_pair"
        if name in ("prompt", "completion", "text", "text_pair") and (not isinstance(row[name], str) or empty):
            raise ValueError(f"{where}: {name!r} is {row[name]!r:.60}: expected a text that is not blank")
    if "text" in columns and "text_pair" not in columns and row.get("text_pair") is not None:
        raise ValueError(f"{where}: 'text_pair' is missing in the first row; every row needs one, or none")
    if "messages" in columns:
        check_messages(row["messages"], row.get("tools"), where)
    if "label" in columns:
        _check_label(row["label"], where)


def _check_label(label: Any, where: str) -> None:
    if isinstance(label, float) or (isinstance(label, str) and _FRACTION.fullmatch(label.strip())):
        raise ValueError(
            f"{where}: label {label!r} is a fraction, and regression is not supported: "
            "make classes of it, as integers or names"
        )
    if not (isinstance(label, int) and label >= 0) and not (isinstance(label, str) and label.strip()):
        raise ValueError(f"{where}: label {label!r:.60} is not a class: labels are names, or integers from 0")


def _source(name: str, splits: dict[str, Dataset]) -> Source:
    shapes = sorted({tuple(name for name in rows.column_names if name != "tools") for rows in splits.values()})
    if len(shapes) > 1:
        raise ValueError(f"the splits of {name} have different columns: {shapes}; make them the same")
    if "label" in shapes[0]:
        classes, splits = _number_classes(splits, name)
        return Source(name, splits, METRICS["accuracy"], classes)
    return Source(name, splits, METRICS["exact_match" if "prompt" in shapes[0] else "loss"])


def _number_classes(splits: dict[str, Dataset], name: str) -> tuple[tuple[str, ...], dict[str, Dataset]]:
    """The names of the classes, and the splits with class indices as labels.

    The class names of a `datasets.ClassLabel` of the training split hold for all splits, by name. Other labels are
    sorted and named by their value.
    """
    first = "train" if "train" in splits else next(iter(splits))
    feature = splits[first].features["label"]
    names = {split: _class_names(rows, feature) for split, rows in splits.items()}
    if isinstance(feature, ClassLabel):
        classes: list[Any] = feature.names
        for split, labels in names.items():
            if not set(labels) <= set(classes):
                raise ValueError(
                    f"the classes of {split} are {_examples(labels)}, those of {first} {_examples(classes)}: rename "
                    f"them, or cast the label of {first} to a ClassLabel with all of their names"
                )
    else:
        values = {label for labels in names.values() for label in labels}
        if len({type(value) for value in values}) > 1:
            raise ValueError(f"the labels of {name} are {_examples(values)}: use one type for all")
        numeric = all(isinstance(value, int) or value.removeprefix("-").isdecimal() for value in values)
        classes = sorted(values, key=int) if numeric else sorted(values)
        for split, labels in names.items():
            if new := set(labels) - set(names[first]):
                warnings.warn(
                    f"{split} of {name} has the label {min(new)!r}, which no sample of {first} has "
                    f"({_examples(names[first])}), so it will not be learned: spell labels alike in all splits",
                    stacklevel=4,
                )
    if len(classes) < 2:
        raise ValueError(f"the labels of {name} are {_examples(classes)}: a task needs two classes or more")
    label = ClassLabel(names=[str(value) for value in classes])
    indices = {value: index for index, value in enumerate(classes)}
    numbered = {
        split: rows.remove_columns("label").add_column("label", [indices[each] for each in names[split]], feature=label)
        for split, rows in splits.items()
    }
    return tuple(label.names), numbered


def _class_names(rows: Dataset, trained: Any) -> list[Any]:
    """The class of each row by name; integers are indices of the training split's ClassLabel, if it has one."""
    feature = rows.features["label"]
    names = feature.names if isinstance(feature, ClassLabel) else getattr(trained, "names", None)
    if names is None:
        return [label.strip() if isinstance(label, str) else label for label in rows["label"][:]]
    known = dict(enumerate(names))
    return [known[label] if label in known else str(label).strip() for label in rows["label"][:]]


def _examples(values: Iterable[Any]) -> str:
    return ", ".join(sorted(set(map(repr, values)))[:5])


def split_files(folder: Path, known: Collection[str] = SPLITS) -> dict[str, tuple[Path, ...]]:
    """Find the file of each split in a folder, or its shards in order; other files are ignored."""
    shards: dict[str, list[tuple[int, int, Path]]] = {}
    for path in sorted(folder.iterdir()):
        stem = path.name.partition(".")[0].lower()
        match = _SHARD.fullmatch(stem)
        split, number, count = (match[1], int(match[2]), int(match[3])) if match else (stem, 0, 1)
        split = _ALIASES.get(split, split)
        if split in known and path.name.lower().endswith(SUFFIXES):
            shards.setdefault(split, []).append((number, count, path))
    for split, parts in shards.items():
        parts.sort(key=lambda part: part[0])
        if [number for number, *_ in parts] != list(range(parts[0][1])):
            names = ", ".join(path.name for *_, path in parts[:3])
            raise ValueError(
                f"{folder} holds {names} for {split}: keep one file, or all {parts[0][1]} shards of one set"
            )
    if not shards:
        raise FileNotFoundError(f"{folder} holds no {', '.join(known)} file ({', '.join(SUFFIXES)})")
    return {split: tuple(path for *_, path in parts) for split, parts in shards.items()}


def read_rows(path: Path) -> list[PlacedRow]:
    """Read a CSV or JSON file, each row with its place; values stay as they are written, dates and "NA" too.

    Blank lines are left out; ``.gz`` is unpacked.
    """
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise ValueError(f"{path} is not a {', '.join(SUFFIXES)} file: convert it to one")
    try:
        with (gzip.open if name.endswith(".gz") else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            text = str(file.read())
        return _csv_rows(text, path) if name.endswith(".csv") else _json_rows(text, path)
    except _UNREADABLE as error:
        raise ValueError(f"{path} is damaged, malformed or not UTF-8 text: {str(error).strip()}") from error


def read_placed_rows(path: Path) -> list[PlacedRow]:
    """Read all rows of a file with their places, whatever their columns, with classes by name."""
    placed: list[PlacedRow] = []
    if path.name.lower().endswith(".parquet"):
        rows = read_table(path)
        named = {name: kind.names for name, kind in rows.features.items() if isinstance(kind, ClassLabel)}
        for number, row in enumerate(rows, start=1):
            classes = {name: names[row[name]] for name, names in named.items() if row[name] is not None}
            placed.append((f"{path}, sample {number}", row | classes))
    else:
        placed = read_rows(path)
    if not placed:
        raise ValueError(f"{path} has no rows: it needs at least one request")
    return placed


def read_table(path: Path) -> Dataset:
    """Read a Parquet file, with the class names it keeps."""
    try:
        return Dataset(pyarrow.parquet.read_table(path))
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file, or damaged: {error}") from error


def _csv_rows(text: str, path: Path) -> list[PlacedRow]:
    frame = pd.read_csv(StringIO(text), dtype=str, na_filter=False)
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first field for a name of the row
        raise ValueError(f"{path}: the rows have more fields than the header: quote the commas of a text")
    return [(f"{path}, sample {number}", row) for number, row in enumerate(frame.to_dict("records"), start=1)]


_WAY_OUT = "write an object with columns as keys there"


def _json_rows(text: str, path: Path) -> list[PlacedRow]:
    if text.lstrip().startswith("["):
        rows = [(f"{path}, element {n}", row) for n, row in enumerate(_parse(text, path), start=1)]
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = [(f"{path}, line {n}", _parse(line, path, n)) for n, line in lines if line.strip()]
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {str(row)[:40]!r} is no object: {_WAY_OUT}")
    return rows


def _parse(text: str, path: Path, first: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {first + error.lineno - 1}: not valid JSON ({error.msg}): {_WAY_OUT}"
        ) from error
