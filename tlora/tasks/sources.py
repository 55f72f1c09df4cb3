"""Rows of a task before they are tokenised: read from files and datasets, and checked."""

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

from tlora.tasks.chat import check_messages, check_tools, pack_row
from tlora.tasks.metrics import METRICS, Metric
from tlora.tasks.splits import SPLITS

PAIR, TOOLS = "text_pair", "tools"
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
ACCEPTED = "prompt and completion; messages (role and content); text and label (optionally text_pair)"

_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
_SHAPES = (("prompt", "completion"), ("messages",), ("text", "label"))
_FRACTION = re.compile(r"[-+]?\d*\.\d+(e[-+]?\d+)?", re.IGNORECASE)
_HALF = re.compile("[\ud800-\udfff]")  # of a pair that JSON writes a character as
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(-[0-9a-f]+)?")
Located = tuple[str, dict[str, Any]]  # where a row stands, and the row


@dataclass(frozen=True)
class Source:
    """A task before it is tokenised.

    Attributes
    ----------
    name : str
        Name of the task.
    splits : dict of Dataset
        ``prompt`` and ``completion``, ``messages``, or ``text`` and ``label`` (a class index), and whatever
        else the metric reads.
    metric : Metric
        How answers are scored.
    classes : tuple of str
        Names of the classes; empty where the rows have no label.
    separator : str
        What stands between prompt and completion where there is no chat template.
    """

    name: str
    splits: dict[str, Dataset]
    metric: Metric
    classes: tuple[str, ...] = ()
    separator: str = ""


def read_path(path: str | Path) -> Source:
    """Rows of a local file, or of a folder with one file a split, or its shards.

    Parameters
    ----------
    path : path-like
        A JSONL, JSON, CSV or Parquet file; or a folder with ``train.*`` and optionally ``validation.*``,
        ``test.*``, where a split may be in shards as the hub names them (``train-00000-of-00002.parquet``).

    Returns
    -------
    Source
        Named after the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no split in the folder.
    ValueError
        If a file is empty, of another kind, malformed (with the line), or has not the columns of a task.
    """
    path = Path(path)
    if path.is_dir():
        files = split_files(path)
    elif path.is_file():
        files = {"train": (path,)}
    else:
        raise FileNotFoundError(f"{path} does not exist: pass a file ({', '.join(SUFFIXES)}) or a folder of them")
    return _source(path.name.partition(".")[0], {split: _read(paths) for split, paths in files.items()})


def read_dataset(data: Dataset | Mapping[str, Dataset]) -> Source:
    """Rows of a `datasets.Dataset`, or of a `datasets.DatasetDict` with one dataset a split.

    Parameters
    ----------
    data : Dataset or mapping of str to Dataset
        With the columns of a task; other columns are left out.

    Returns
    -------
    Source
        The rows, checked.

    Raises
    ------
    TypeError
        If a split is not a `datasets.Dataset`.
    ValueError
        If it has no rows, not the columns of a task, or no split that we know.
    """
    parts = {"train": data} if isinstance(data, Dataset) else _named_splits(data)
    for split, rows in parts.items():
        if not isinstance(rows, Dataset):
            raise TypeError(
                f"split {split!r} is a {type(rows).__name__}, not a datasets.Dataset: load it without streaming=True"
            )
    return _source("dataset", {split: _checked(rows, split) for split, rows in parts.items()})


def shape_of(columns: Iterable[str], where: str) -> tuple[str, ...]:
    """Which of the accepted groups of columns there is.

    Raises
    ------
    ValueError
        If there is none, naming what was found and what is accepted.
    """
    found = list(columns)
    for shape in _SHAPES:
        if set(shape) <= set(found):
            return shape
    raise ValueError(f"{where} has the columns {', '.join(found) or '(none)'}; accepted are {ACCEPTED}: rename yours")


def _read(paths: Sequence[Path]) -> Dataset:
    """The rows of a split, in one file or in shards."""
    if not paths[0].name.lower().endswith(".parquet"):
        return _collect(chain.from_iterable(map(read_rows, paths)), str(paths[0]))
    shards = [_checked(read_table(path), str(path)) for path in paths]
    try:
        return concatenate_datasets(shards)
    except ValueError as error:
        raise ValueError(f"the shards beside {paths[0]} have different columns ({error}): write them alike") from error


def _checked(rows: Dataset, where: str) -> Dataset:
    """The columns of a task, every row checked; the features, and with them the class names, are kept."""
    rows = rows.with_format(None)  # plain values, whatever they are asked for as
    shape = shape_of(rows.column_names, where)
    rows = rows.select_columns([name for name in (*shape, *_optional(shape)) if name in rows.column_names])
    if not len(rows):
        raise ValueError(f"{where} has no rows: a split needs at least one")
    columns = _columns(shape, rows[0])
    for number, row in enumerate(rows, start=1):
        _check_row(row, columns, f"{where}, sample {number}")
    return rows.select_columns([name for name in columns if name in rows.column_names])


def _collect(rows: Iterable[Located], path: str) -> Dataset:
    columns: tuple[str, ...] = ()
    values: list[dict[str, Any]] = []
    for where, row in rows:
        columns = columns or _columns(shape_of(row, where), row)
        _check_row(row, columns, where)
        row = pack_row(row) if "messages" in columns else row
        values.append({name: row[name] for name in columns})
    if not values:
        raise ValueError(f"{path} has no rows: it needs at least one with {ACCEPTED}")
    found = {name: [row[name] for row in values] for name in columns}
    try:
        return Dataset.from_dict(
            {name: column for name, column in found.items() if name not in (PAIR, TOOLS) or any(column)}
        )
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: a column holds values of different types ({error})") from error


def _optional(shape: tuple[str, ...]) -> tuple[str, ...]:
    return {("text", "label"): (PAIR,), ("messages",): (TOOLS,)}.get(shape, ())


def _columns(shape: tuple[str, ...], first: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of a task, by its first row: a second text in all rows or in none, tools in any."""
    return (*shape, *(name for name in _optional(shape) if name == TOOLS or first.get(name) is not None))


def _check_row(row: Mapping[str, Any], columns: tuple[str, ...], where: str) -> None:
    if "text" in columns and (row.get(PAIR) is not None) != (PAIR in columns):
        found = "missing" if PAIR in columns else "here"
        raise ValueError(f"{where}: {PAIR!r} is {found}, unlike in the first row; every row needs one, or none")
    needed = [name for name in columns if name != TOOLS]
    for name in needed:
        if row.get(name) is None:
            raise ValueError(f"{where}: {name!r} is missing; every row needs {' and '.join(needed)}")
    if "messages" in columns:
        check_messages(row["messages"], where)
        check_tools(row.get(TOOLS), where)
        return
    for name in columns:
        if name != "label" and not (isinstance(row[name], str) and (row[name].strip() or name == PAIR)):
            raise ValueError(f"{where}: {name!r} is {row[name]!r:.60}, not a text that says something")
        if name != "label" and _HALF.search(row[name]):
            raise ValueError(f"{where}: {name!r} holds half of a character ({row[name]!r:.60}): write it out whole")
    if "label" in columns:
        _check_label(row["label"], where)


def _check_label(label: Any, where: str) -> None:
    if isinstance(label, float) or (isinstance(label, str) and _FRACTION.fullmatch(label.strip())):
        raise ValueError(
            f"{where}: label {label!r} is a fraction, and regression is not supported: "
            "make classes of it, as integers or names"
        )
    is_index = isinstance(label, int) and 0 <= label < 2**63
    if not is_index and not (isinstance(label, str) and label.strip()):
        raise ValueError(f"{where}: label {label!r:.60} is not a class: labels are names, or integers from 0")


def _source(name: str, splits: dict[str, Dataset]) -> Source:
    shapes = sorted({tuple(name for name in rows.column_names if name != TOOLS) for rows in splits.values()})
    if len(shapes) > 1:
        raise ValueError(f"the splits of {name} have different columns: {shapes}; make them the same")
    if "label" in shapes[0]:
        classes, splits = number_classes(splits, name)
        return Source(name, splits, METRICS["accuracy"], classes)
    return Source(name, splits, METRICS["exact_match" if "prompt" in shapes[0] else "loss"])


def number_classes(splits: dict[str, Dataset], name: str) -> tuple[tuple[str, ...], dict[str, Dataset]]:
    """The names of the classes, and the splits with class indices for labels.

    Class names of a `datasets.ClassLabel` are kept, those of training for all splits; other labels are sorted
    and named by what they are.

    Raises
    ------
    ValueError
        If there are not two classes of one type, or a split has a class that the ClassLabel of training has not.

    Warns
    -----
    UserWarning
        If a split has a label that no sample of training has.
    """
    first = "train" if "train" in splits else next(iter(splits))
    feature = splits[first].features["label"]
    if isinstance(feature, ClassLabel):
        if len(feature.names) < 2:
            raise ValueError(f"the labels of {name} are {feature.names}: a task needs two classes or more")
        return tuple(feature.names), {s: _renumbered(rows, s, feature, first) for s, rows in splits.items()}
    named = {split: [_name(label) for label in rows["label"][:]] for split, rows in splits.items()}
    values = {label for labels in named.values() for label in labels}
    if len(values) < 2 or len({type(value) for value in values}) > 1:
        raise ValueError(f"the labels of {name} are {_some(values)}: a task needs two classes or more, all of one type")
    trained = set(named[first])
    for split, labels in named.items():
        if new := set(labels) - trained:
            warnings.warn(
                f"{split} of {name} has the label {min(new)!r}, which is in no sample of {first} ({_some(trained)}) "
                "and will not be learned: spell labels alike in all splits",
                stacklevel=4,
            )
    numeric = all(isinstance(value, int) or value.removeprefix("-").isdecimal() for value in values)
    ordered = sorted(values, key=int) if numeric else sorted(values)
    classes = ClassLabel(names=[str(value) for value in ordered])
    indices = {value: index for index, value in enumerate(ordered)}
    numbered = {}
    for split, rows in splits.items():
        labels = [indices[label] for label in named[split]]
        numbered[split] = rows.remove_columns("label").add_column("label", labels, feature=classes)
    return tuple(classes.names), numbered


def _name(label: int | str) -> int | str:
    return label.strip() if isinstance(label, str) else label


def _some(values: set[int | str]) -> str:
    return ", ".join(sorted(map(repr, values))[:5])


def _renumbered(rows: Dataset, split: str, classes: ClassLabel, first: str) -> Dataset:
    """Each label as the index that its name has among these classes, those of the split ``first``."""
    own = rows.features["label"]
    if isinstance(own, ClassLabel) and own.names == classes.names:
        return rows
    known = dict(enumerate(own.names if isinstance(own, ClassLabel) else classes.names))
    names = [known[label] if label in known else str(label).strip() for label in rows["label"][:]]
    if not set(names) <= set(classes.names):
        raise ValueError(
            f"the classes of {split} are {', '.join(sorted(set(names)))}, those of {first} {', '.join(classes.names)}: "
            f"rename them, or cast the label of {first} to a ClassLabel with all of their names"
        )
    labels = [classes.str2int(name) for name in names]
    return rows.remove_columns("label").add_column("label", labels, feature=classes)


def split_files(folder: Path, known: Collection[str] = SPLITS) -> dict[str, tuple[Path, ...]]:
    """The file of each split in a folder, or its shards in order; ``known`` are the names that splits go by.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If there are two of one split, or not all shards.
    """
    found: dict[str, list[_Part]] = {}
    for path in sorted(folder.iterdir()):
        part = _part(path)
        if part.split in known and path.name.lower().endswith(SUFFIXES):
            found.setdefault(part.split, []).append(part)
    for split, parts in found.items():
        parts.sort(key=lambda part: part.number)
        first = parts[0]
        if other := next((part for part in parts[1:] if part.kind != first.kind or part.number == first.number), None):
            raise ValueError(f"{folder} holds {first.path.name} and {other.path.name}, both {split}: keep one of them")
        if [part.number for part in parts] != list(range(first.count)):
            raise ValueError(f"{folder} holds {len(parts)} of the {first.count} shards of {split}: fetch the others")
    if not found:
        raise FileNotFoundError(f"{folder} holds no {', '.join(known)} file ({', '.join(SUFFIXES)})")
    return {split: tuple(part.path for part in parts) for split, parts in found.items()}


@dataclass(frozen=True)
class _Part:
    """A file, the split that it is named after, and which shard of how many it is."""

    path: Path
    split: str
    number: int = 0
    count: int = 1

    @property
    def kind(self) -> tuple[int, str]:
        return self.count, self.path.name.partition(".")[2].lower()


def _part(path: Path) -> _Part:
    stem = path.name.partition(".")[0].lower()
    shard = _SHARD.fullmatch(stem)
    if shard is None:
        return _Part(path, _ALIASES.get(stem, stem))
    return _Part(path, _ALIASES.get(shard[1], shard[1]), int(shard[2]), int(shard[3]))


def _named_splits(data: Mapping[str, Dataset]) -> dict[str, Dataset]:
    ours = {str(split): _ALIASES.get(str(split), str(split)) for split in data}
    twice = [split for split, name in ours.items() if name in SPLITS and list(ours.values()).count(name) > 1]
    if twice:
        raise ValueError(f"the splits {' and '.join(twice)} are one, named in two ways: keep one of them")
    parts = {ours[str(split)]: rows for split, rows in data.items()}
    known = {split: rows for split, rows in parts.items() if split in SPLITS}
    if not known:
        raise ValueError(f"the splits are {', '.join(parts) or '(none)'}: name them train, validation and test")
    return known


def read_rows(path: Path) -> list[Located]:
    """The rows of a CSV or JSON file, each with its place; values as they are written, dates and "NA" too.

    Blank lines are left out; ``.gz`` is unpacked.

    Raises
    ------
    ValueError
        If the file is damaged, malformed (with the line) or of another kind.
    """
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise ValueError(f"{path} is not a {', '.join(SUFFIXES)} file: convert it to one")
    return _csv_rows(path) if name.endswith(".csv") else _json_rows(path)


def read_table(path: Path) -> Dataset:
    """The rows of a Parquet file, with the names of classes that it keeps.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    try:
        return Dataset(pyarrow.parquet.read_table(path))
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a damaged body has none
            raise
        raise ValueError(f"{path} is not a Parquet file, or a damaged one ({error})") from error


def _csv_rows(path: Path) -> list[Located]:
    try:
        frame = pd.read_csv(StringIO(_text(path)), dtype=str, na_filter=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{path}: malformed CSV ({str(error).strip()}): quote the commas of a text") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first field for a name of the row
        raise ValueError(f"{path}: the rows have more fields than the header: quote the commas of a text")
    return [(f"{path}, sample {number}", row) for number, row in enumerate(frame.to_dict("records"), start=1)]


def _json_rows(path: Path) -> list[Located]:
    text = _text(path)
    if text.lstrip().startswith("["):
        found = [(f"{path}, element {n}", row) for n, row in enumerate(_parsed(text, path), start=1)]
    else:
        lines = enumerate(text.split("\n"), start=1)
        found = [(f"{path}, line {n}", _parsed(line, path, n)) for n, line in lines if line.strip()]
    for where, row in found:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a {type(row).__name__}, not an object with columns as keys")
    return found


def _parsed(text: str, path: Path, first: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {first + error.lineno - 1}: not valid JSON ({error.msg})") from error


def _text(path: Path) -> str:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            return str(file.read())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a gzip file, or a damaged one ({error}): pack it again") from error
