"""An append-only file of runs: one line of JSON each, on disk before the next one begins."""

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

from tlora.utils.files import fsync

Record = dict[str, Any]

CHECKSUM = "checksum"
Floats = NDArray[np.float64]


class Store:
    """Runs in a file that can be read, compared by line and put under version control.

    Several processes may append at the same time. A line that a kill has torn is the last one: it is passed over with
    a warning when reading, and cut off by the next append. Each line has a checksum of its own.

    Parameters
    ----------
    path : path-like
        The file; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read(self) -> list[Record]:
        """All runs, one for each key, in the order in which the keys came first; the last run of a key counts.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ValueError
            If a line other than a torn last one is not a run, or not what was written.

        Warns
        -----
        UserWarning
            If the last line is torn.
        """
        if not self.path.is_file():
            raise FileNotFoundError(f"no runs in {self.path}: name the file that tlora.compare(..., store=) wrote")
        lines = self.path.read_bytes().split(b"\n")
        torn = lines.pop()
        if _is_whole(torn):
            lines.append(torn)  # an editor took the end of the line away
        elif torn:
            warnings.warn(
                f"{self.path}: the last line is torn ({len(torn)} bytes) and was left out: the run that was being "
                "written when the process ended will be done again",
                stacklevel=2,
            )
        found: dict[str, Record] = {}
        for number, line in enumerate(lines, 1):
            record = self._parsed(line, number)
            found[key_text(record["key"])] = record
        return list(found.values())

    def find(self) -> dict[str, Record]:
        """The runs by `key_text`; empty where there is no file yet."""
        return {key_text(record["key"]): record for record in self.read()} if self.path.is_file() else {}

    def check_place(self) -> None:
        """Find out before a run is made that it could not be written.

        Raises
        ------
        ValueError
            If the store is a folder.
        OSError
            If the place is not writable.
        """
        if self.path.is_dir():
            raise ValueError(
                f"store={str(self.path)!r} is a folder: name a file, e.g. {self.path / 'comparison.jsonl'}"
            )
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
            If the record holds a number that is not finite, which JSON has no word for.
        OSError
            If the disk is full or the place is not writable.
        """
        signed = {**record, CHECKSUM: _checksum(record)}
        line = json.dumps(signed, sort_keys=True, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        # No buffer: what was taken back is not written at closing.
        with FileLock(f"{self.path}.lock"), FileIO(self.path, "a+") as file:
            line = _end_last_line(file) + line
            with _whole_or_nothing(file):
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
        if new:
            fsync(self.path.parent)

    def _parsed(self, line: bytes, number: int) -> Record:
        try:
            return _checked(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{self.path}:{number} is not a run ({error!r}): it was damaged, changed by hand or badly merged; "
                "take the line out, and its run will be done again"
            ) from error


def _checked(record: Record) -> Record:
    """A run as it was appended, without its checksum."""
    found = {name: value for name, value in record.items() if name != CHECKSUM}
    if record.get(CHECKSUM) != _checksum(found):
        raise ValueError("its checksum is not that of what it says")
    return found


def _checksum(record: Mapping[str, Any]) -> str:
    """64 bits of the digest of a run's canonical text, in hexadecimal."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _whole_or_nothing(file: FileIO) -> Iterator[None]:
    """Take off again what could not be written whole."""
    size = file.seek(0, os.SEEK_END)
    try:
        yield
    except OSError as error:
        file.truncate(size)
        told = f"{error.strerror} (the runs before are there as they were)"
        raise OSError(error.errno, told, str(file.name)) from error


def key_text(key: Mapping[str, Any]) -> str:
    """A run's key as text that is the same for equal keys."""
    return json.dumps(key, sort_keys=True)


def _is_whole(line: bytes) -> bool:
    """Whether a line without its end is all of a run, by its checksum."""
    try:
        record = json.loads(line)
        return bool(_checked(record)) and CHECKSUM in record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _end_last_line(file: FileIO) -> bytes:
    """Take off a last line that is torn; what a whole one without an end lacks is returned."""
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
    if _is_whole(file.read()):
        return b"\n"
    file.truncate(start)
    return b""


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
