"""An append-only file of runs: one line of JSON each, on disk before the next one begins."""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]


class Store:
    """Runs in a file that can be read, compared by line and put under version control.

    Several processes may append at the same time. A line that a kill has torn is the last one: it is passed over with
    a warning when reading, and cut off by the next append.

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
            If a line other than a torn last one is no run.

        Warns
        -----
        UserWarning
            If the last line is torn.
        """
        if not self.path.is_file():
            raise FileNotFoundError(f"no runs in {self.path}: name the file that tlora.compare(..., store=) wrote")
        with self._locked("rb", fcntl.LOCK_SH) as file:
            lines = file.read().split(b"\n")
        torn = lines.pop()
        if torn:
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

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a run at the end, and wait until it is on disk.

        Raises
        ------
        ValueError
            If the record holds a number that is not finite, which JSON has no word for.
        OSError
            If the disk is full or the place is not writable.
        """
        line = json.dumps(record, sort_keys=True, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked("ab+", fcntl.LOCK_EX) as file:
            _cut_torn_line(file)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _locked(self, mode: str, kind: int) -> Iterator[IO[bytes]]:
        with open(self.path, mode) as file:
            fcntl.flock(file, kind)  # let go of when the file is closed
            yield file

    def _parsed(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
            record["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path}:{number} is no run ({error!r}): it was changed by hand or badly merged; "
                "take the line out, and its run will be done again"
            ) from error
        return dict(record)


def key_text(key: Mapping[str, Any]) -> str:
    """A run's key as text that is the same for equal keys."""
    return json.dumps(key, sort_keys=True)


def _cut_torn_line(file: IO[bytes]) -> None:
    """Take off what follows the last whole line."""
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
    if start < size:
        file.truncate(start)
