"""Lines of the text files that a task may lie in: JSONL, JSON, CSV, each row with the place where it stands."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Located = tuple[str, dict[str, Any]]  # where a row stands, and the row


@contextlib.contextmanager
def _utf8(path: Path) -> Iterator[None]:
    """Name the file that holds something else than UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error


def read_jsonl(path: Path) -> Iterator[Located]:
    """The objects of a file with one JSON object a line, blank lines left out; ``.gz`` is unpacked."""
    opener = gzip.open if path.suffix == ".gz" else open
    with _utf8(path), opener(path, "rt", encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}, line {number}", _object(line, f"{path}, line {number}")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no gzip file, or a damaged one ({error}): pack it again") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error}); each line must hold one object") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a {type(row).__name__}, not an object with columns as keys")
    return row


def read_json(path: Path) -> Iterator[Located]:
    """A JSON array of objects, or what `read_jsonl` reads."""
    try:
        with _utf8(path), open(path, encoding="utf-8-sig") as file:
            first = next((line.strip() for line in file if not line.isspace()), "")
            file.seek(0)
            rows = json.load(file) if first.startswith("[") else None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error})") from error
    if rows is None:
        yield from read_jsonl(path)
        return
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, element {number}: a {type(row).__name__}, not an object with columns as keys")
        yield f"{path}, element {number}", row


def read_csv(path: Path) -> Iterator[Located]:
    """The rows of a CSV file with a header, blank lines left out."""
    limit = csv.field_size_limit(sys.maxsize)  # a document may be longer than the module expects of a field
    try:
        with _utf8(path), open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if twice := next((name for name, count in Counter(header).items() if count > 1), None):
                raise ValueError(f"{path}: two columns are called {twice!r}: rename one")
            for values in filter(None, reader):  # blank lines aside
                where = f"{path}, line {reader.line_num}"
                if len(values) != len(header):
                    raise ValueError(f"{where}: {len(values)} fields, the header has {len(header)}: quote the commas")
                yield where, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: malformed CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
