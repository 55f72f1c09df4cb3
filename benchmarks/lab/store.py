"""An append-only file of runs: one line of JSON each, on disk before the next run begins."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

Record = dict[str, Any]
"""A run: its ``key``, its status, metrics and costs."""

CHECKSUM = "checksum"
Floats = NDArray[np.float64]
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a line may raise if it is not a run."""


class Store:
    """Runs in a file that can be read, compared line by line and put under version control.

    Several processes may append at the same time. Only the last line can be torn by a kill: reading skips it with a
    warning, and the next append removes it. Each line has its own checksum.

    Parameters
    ----------
    path : path-like
        The file; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read(self) -> list[Record]:
        """All runs in the order in which their keys first appear; of runs with one key, the last counts.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ValueError
            If a line other than a torn last one is damaged.

        Warns
        -----
        UserWarning
            If the last line is torn.
        """
        if not self.path.is_file():
            raise FileNotFoundError(f"no runs in {self.path}: name the file that compare(..., store=) wrote")
        lines = self.path.read_bytes().split(b"\n")
        last = lines.pop()
        if _is_complete(last):
            lines.append(last)  # an editor removed the newline
        elif last:
            warnings.warn(
                f"{self.path}: the last line is torn ({len(last)} bytes) and was skipped: the run that was being "
                "written when the process ended will be repeated",
                stacklevel=2,
            )
        records: dict[str, Record] = {}
        for number, line in enumerate(lines, 1):
            record = self._parse(line, number)
            records[key_text(record["key"])] = record
        return list(records.values())

    def by_key(self) -> dict[str, Record]:
        """The runs by `key_text`; empty if there is no file yet."""
        return {key_text(record["key"]): record for record in self.read()} if self.path.is_file() else {}

    def check_writable(self) -> None:
        """Find out before the first run whether runs can be stored.

        Raises
        ------
        OSError
            If the place is a folder or not writable.
        """
        if self.path.exists():
            self.path.open("ab").close()
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path.parent):
            pass

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a run at the end, and wait until it is on disk.

        Raises
        ------
        ValueError
            If the record holds a number that is not finite, which JSON cannot represent.
        OSError
            If the disk is full or the place is not writable.
        """
        line = json.dumps({**record, CHECKSUM: _checksum(record)}, sort_keys=True, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer: closing the file must not write again what a full disk made us remove.
        with FileLock(f"{self.path}.lock"), FileIO(self.path, "a+") as file:
            line = _repair_end(file) + line
            with _undo_if_full(file):
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())

    def _parse(self, line: bytes, number: int) -> Record:
        try:
            return _verify(json.loads(line))
        except DAMAGE as error:
            raise ValueError(
                f"{self.path}:{number} is not a run ({error!r}): it was damaged, edited or badly merged; "
                "delete the line, and its run will be repeated"
            ) from error


def key_text(key: Mapping[str, Any]) -> str:
    """A key as text; equal keys have equal texts."""
    return json.dumps(key, sort_keys=True)


def _verify(record: Record) -> Record:
    """The run without its checksum, which must be that of its text."""
    run = {name: value for name, value in record.items() if name != CHECKSUM}
    if record.get(CHECKSUM) != _checksum(run):
        raise ValueError("its checksum does not match its text")
    return run


def _checksum(record: Mapping[str, Any]) -> str:
    """64 bits of the digest of a run's canonical text, in hexadecimal."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _is_complete(line: bytes) -> bool:
    """Whether a line without a newline is a whole run, by its checksum."""
    try:
        return bool(_verify(json.loads(line)))
    except DAMAGE:
        return False


@contextmanager
def _undo_if_full(file: FileIO) -> Iterator[None]:
    """Remove a partly written line if the disk is full."""
    size = file.seek(0, os.SEEK_END)
    try:
        yield
    except OSError:
        file.truncate(size)
        raise


def _repair_end(file: FileIO) -> bytes:
    """Remove a torn last line; return the newline that a complete one lacks."""
    size = file.seek(0, os.SEEK_END)
    start = size
    while start:
        step = min(start, 65536)
        file.seek(start - step)
        newline = file.read(step).rfind(b"\n")
        if newline >= 0:
            start += newline + 1 - step
            break
        start -= step
    file.seek(start)
    if _is_complete(file.read()):
        return b"\n"
    file.truncate(start)
    return b""


def pack(values: Floats) -> dict[str, Any]:
    """Outcomes as text: one bit each if all are 0 or 1, else 16-bit floats; base64.

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


def unpack(text: Mapping[str, Any]) -> Floats:
    """Restore the (N,) float64 outcomes that `pack` wrote, rounded to 16 bits as they were stored."""
    data = base64.b64decode(text["data"])
    values = np.unpackbits(np.frombuffer(data, np.uint8)) if text["kind"] == "bits" else np.frombuffer(data, "<f2")
    return values[: text["count"]].astype(np.float64)
