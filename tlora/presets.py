"""Load a task known by name: from an installed package, from the hub, or from local files like the hub's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from tlora.catalogue import INSTALL, PRESETS, Preset
from tlora.metrics import METRICS
from tlora.sources import SUFFIXES, Source
from tlora.splits import arrange

DataFiles = str | os.PathLike[str] | Mapping[str, Any]


def load_preset(
    name: str, sizes: Mapping[str, int | None], seed: int, chat: bool, data_files: DataFiles | None = None
) -> Source:
    """The rows of a task known by name, dealt to three splits.

    Parameters
    ----------
    name : str
        Key of `PRESETS`.
    sizes : mapping of str to int or None
        Rows of each split, see `tlora.splits.arrange`.
    seed : int
        Seed of what is drawn.
    chat : bool
        Whether a chat template will be used: code is asked for in other words then.
    data_files : path-like or mapping of str to path-like, optional
        Local files of the same columns in place of the hub's: a file, a folder, or one a split.

    Returns
    -------
    Source
        All three splits.

    Raises
    ------
    ConnectionError
        If the data is not installed and the hub cannot be reached.
    FileNotFoundError
        If a local file does not exist.
    ValueError
        If a column is missing, a file is damaged, or there are fewer rows than asked for.
    """
    preset = PRESETS[name]
    raw = _fetch(name, preset, data_files)
    for split, rows in raw.items():
        missing = set(preset.columns) - set(rows.column_names)
        if missing:
            raise ValueError(
                f"{name} needs the columns {', '.join(preset.columns)}; "
                f"{split} of {data_files or preset.hub} has {', '.join(rows.column_names)}"
            )
        _check_labels(name, preset, split, rows)
    raw = {split: rows.select_columns(list(preset.columns)) for split, rows in raw.items()}
    dealt = arrange(raw, sizes, seed, preset.same, leave_out_shared=True)
    splits = {split: _converted(rows, preset, chat) for split, rows in dealt.items()}
    return Source(name, splits, METRICS[preset.metric], preset.classes, preset.separator)


def _check_labels(name: str, preset: Preset, split: str, rows: Dataset) -> None:
    if not preset.classes:
        return
    strange = set(rows["label"][:]) - set(range(len(preset.classes)))
    if strange:
        raise ValueError(
            f"{split} of {name} has the label {strange.pop()!r}: labels are 0 to {len(preset.classes) - 1} "
            f"({', '.join(preset.classes)}); where they are hidden (-1) take another split"
        )


def _converted(rows: Dataset, preset: Preset, chat: bool) -> Dataset:
    if not len(rows):
        return rows
    return Dataset.from_list([preset.convert(row, chat) for row in rows])


def _fetch(name: str, preset: Preset, data_files: DataFiles | None) -> dict[str, Dataset]:
    if data_files is not None:
        data = _load_files(data_files)
    else:
        packaged = preset.packaged() if preset.packaged else None
        data = packaged or _load_hub(name, preset)
    # A local file may go by the hub's name of the split, or by ours.
    found = {
        ours: data[hubs if hubs in data else ours]
        for ours, hubs in preset.splits.items()
        if hubs in data or ours in data
    }
    if not found:
        raise ValueError(
            f"{name} has the splits {', '.join(preset.splits.values())}; {data_files or preset.hub} has "
            f"{', '.join(data)}"
        )
    return found


def _load_hub(name: str, preset: Preset) -> DatasetDict:
    try:
        with _quiet():
            return datasets.load_dataset(preset.hub, preset.config)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        ways = (
            f"connect to the hub once, or pass data_files= with columns {', '.join(preset.columns)} (a file whose "
            "columns are prompt and completion, or text and label, is a task by itself)"
        )
        if preset.packaged:
            ways = f"install it with {INSTALL}; or {ways}"
        raise ConnectionError(f"{name} is not here and {preset.hub} cannot be reached ({error}): {ways}") from error


def _load_files(data_files: DataFiles) -> DatasetDict:
    named = dict(data_files) if isinstance(data_files, Mapping) else {"train": data_files}
    paths = {split: [Path(path) for path in listed(files)] for split, files in named.items()}
    for path in [path for files in paths.values() for path in files]:
        if not path.exists():
            raise FileNotFoundError(f"data_files: {path} does not exist")
    first = next(iter(paths.values()))[0]
    folders = [path for files in paths.values() for path in files if path.is_dir()]
    if folders and isinstance(data_files, Mapping):
        raise ValueError(f"data_files: {folders[0]} is a folder: name the files of each split, or one folder of all")
    where = {split: [str(path) for path in files] for split, files in paths.items()}
    try:
        with _quiet():
            if first.is_dir():
                return datasets.load_dataset(str(first))
            return datasets.load_dataset(_builder(first), data_files=where)
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:  # earlier versions let pandas' through
        raise ValueError(f"data_files: {first} cannot be read ({error.__cause__ or error})") from error


def listed(files: Any) -> list[Any]:
    """One path, or several, as a list."""
    return [files] if isinstance(files, str | os.PathLike) else list(files)


def _builder(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    if not name.endswith(SUFFIXES):
        raise ValueError(f"data_files: {path} is no {', '.join(SUFFIXES)} file: convert it to one")
    return "json" if name.endswith((".json", ".jsonl")) else name.rpartition(".")[2]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of `datasets`."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
