"""What an export may take the place of: an earlier export of the same format, and nothing besides it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import gguf

from tlora.utils.files import check_replaceable, read_json, replace_folder, write_bytes

RECORD = "export.json"
"""File of an exported folder that says of which format it is, and which files are part of it."""

_GGUF_FIELDS = {
    gguf.Keys.General.ARCHITECTURE,
    gguf.Keys.General.TYPE,
    gguf.Keys.General.FILE_TYPE,
    gguf.Keys.Adapter.TYPE,
    gguf.Keys.Adapter.LORA_ALPHA,
}


def check_place(path: Path, format: str, kept: Mapping[str, str | os.PathLike[str]]) -> None:
    """Refuse, before anything is computed, a place where an export would cost anything but an earlier one.

    Parameters
    ----------
    path : pathlib.Path
        The folder, or the file of ``"gguf"``; it need not be there.
    format : {"peft", "gguf", "merged"}
        Of the export.
    kept : mapping of str to path-like
        By what they are, paths that are never replaced; names of a hub and empty ones lie nowhere.

    Raises
    ------
    FileExistsError
        If something would be lost; the message names it.
    """
    target = path.resolve()
    for what, place in kept.items():
        if str(place) and target.exists() and target == Path(place).resolve():
            raise FileExistsError(f"{path} is {what}, which is never replaced: choose another path")
    if format == "gguf":
        _check_file(target)
    else:
        check_replaceable(target, partial(_check_folder, format))


@contextlib.contextmanager
def replace_export(path: Path, format: str) -> Iterator[Path]:
    """A temporary folder that takes the place of an earlier export, with the record by which the next one may.

    Parameters
    ----------
    path : pathlib.Path
        The folder to make or to replace.
    format : {"peft", "merged"}
        Of what is written.

    Yields
    ------
    pathlib.Path
        The temporary folder.

    Raises
    ------
    FileExistsError, OSError
        As `check_place` and `tlora.utils.files.replace_folder`.
    """
    with replace_folder(path, partial(_check_folder, format)) as fresh:
        yield fresh
        record = {"format": format, "files": _files(fresh)}
        write_bytes(fresh / RECORD, json.dumps(record, indent=1).encode())


def _files(folder: Path) -> list[str]:
    entries = (entry for entry in folder.rglob("*") if entry.is_symlink() or not entry.is_dir())
    return sorted(entry.relative_to(folder).as_posix() for entry in entries)


def _check_folder(format: str, folder: Path) -> None:
    if not (folder / RECORD).is_file():
        raise FileExistsError(f"{folder} is no earlier export (no {RECORD}): choose another path, or remove it first")
    try:
        record = read_json(folder / RECORD)
        written, files = record["format"], {RECORD, *record["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{folder / RECORD} is damaged: choose another path, or remove it first") from error
    if written != format:
        raise FileExistsError(f"{folder} is an export as '{written}', not '{format}': choose another path")
    strangers = [name for name in _files(folder) if name not in files]
    if strangers:
        raise FileExistsError(
            f"{folder} also holds {strangers[0]}, which would be lost: choose another path, or remove it"
        )


def _check_file(file: Path) -> None:
    if not file.exists():
        return
    try:
        fields = gguf.GGUFReader(file).fields
    except (OSError, ValueError, LookupError) as error:
        raise FileExistsError(f"{file} exists and is no GGUF file: choose another path or remove it") from error
    if {name for name in fields if not name.startswith("GGUF.")} != _GGUF_FIELDS:
        raise FileExistsError(f"{file} is no earlier export, but another GGUF file: choose another path or remove it")
