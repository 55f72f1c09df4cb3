"""Files that are written whole or not at all: in a temporary folder on the same disk, flushed, then moved into place.

Files of others in the same folder are left alone. A process that is killed leaves its temporary folder,
``.tlora-<host>-<process>-<8 hexadecimal digits>``, which the next write in the same place removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
from safetensors import SafetensorError

LARGEST_JSON = 2**28
"""Bytes: more than any file of ours, less than what brings a machine down."""

_KEPT = "what was there before is as it was"
_OS_ERROR = re.compile(r"(.*) \(os error (\d+)\)")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is larger than `LARGEST_JSON`, no JSON, nested too deeply, or holds something else than an object.
    """
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ValueError(f"{path} has {size:,} bytes, far more than any such file: it is damaged, or not one of ours")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): truncated, or not one of ours") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object but {str(found)[:50]}: it is damaged, or not one of ours")
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; a large one is read in parts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have a folder, with all that is in it, on disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            fsync(Path(folder, name))
        fsync(Path(folder))


def fsync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write a file to, which takes the place of ``path`` when the block ends well, and vanishes otherwise.

    Parameters
    ----------
    path : path-like
        The file to make or to replace.

    Yields
    ------
    pathlib.Path
        A file of the same name, not there yet, in a temporary folder on the same file system.

    Raises
    ------
    OSError
        If the disk is full or the place is not writable; the earlier file is left as it was.
    """
    target = Path(path).resolve()  # behind a link, the file is replaced and the link stays
    with _said_of(target), replace_files(target.parent, last=target.name) as scratch:
        yield scratch / target.name


@contextlib.contextmanager
def replace_files(
    folder: str | os.PathLike[str], last: str, first: str = "", earlier: Iterable[str | Path] = ()
) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` when the block ends well, and vanish otherwise.

    Parameters
    ----------
    folder : path-like
        Where the files belong; whatever else it holds stays as it is.
    last : str
        The file by which readers take the files for one set. It is moved after all others.
    first : str, optional
        Name of files that list others of the set. They are moved before, for the next write to find what a kill left.
    earlier : iterable of str or pathlib.Path
        Files of an earlier set, relative to ``folder``, some of which have the names of new ones. Then the earlier
        ``last`` is removed first, so that no reader ever takes old and new files for one set; those of them that are
        not written again are removed too, with folders that become empty.

    Yields
    ------
    pathlib.Path
        The temporary folder, on the same file system.

    Raises
    ------
    FileExistsError
        If ``folder`` is a file.
    OSError
        If the disk is full or the place is not writable; the earlier files are left as they were.
    """
    target = Path(folder).resolve()  # behind a link, files are replaced and the link stays
    _refuse_file(target)
    with contextlib.ExitStack() as stack:
        with _said_of(target):
            scratch = stack.enter_context(_scratch(target if target.is_dir() else target.parent))
            yield scratch
            flush(scratch)
        _put_in_place(scratch, target, Path(last), first, set(map(Path, earlier)))


def check_folder(folder: Path, holds: str) -> None:
    """Refuse to write among the files of others.

    Parameters
    ----------
    folder : pathlib.Path
        The folder; it need not be there.
    holds : str
        File that a folder of ours has, or else must be empty.

    Raises
    ------
    FileExistsError
        If it is a file, or a folder with other files.
    """
    _refuse_file(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / holds).exists():
        raise FileExistsError(f"{folder} exists and holds no {holds}: choose another path or remove it")


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, and no folder: choose another path or remove it")


@contextlib.contextmanager
def _said_of(target: Path) -> Iterator[None]:
    """Errors of the system in one sentence that names the target, and not the temporary file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = _OS_ERROR.search(str(error)) if isinstance(error, SafetensorError) else None
        number = int(found[2]) if found else getattr(error, "errno", None)
        if number is None:
            raise
        reason = found[1] if found else str(getattr(error, "strerror", None))
        told = reason if _KEPT in reason else f"{reason} ({_KEPT})"
        raise OSError(number, told, str(target)) from error


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A new folder to write in, gone afterwards with whatever it holds then."""
    parent.mkdir(parents=True, exist_ok=True)
    ours = f".tlora-{socket.gethostname()}"
    for left in parent.glob(f"{ours}-*"):
        process = re.fullmatch(r"-(\d+)-[0-9a-f]{8}", left.name.removeprefix(ours))
        if process and not psutil.pid_exists(int(process[1])):  # it was killed
            shutil.rmtree(left, ignore_errors=True)
    fresh = parent / f"{ours}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _put_in_place(scratch: Path, target: Path, last: Path, first: str, earlier: set[Path]) -> None:
    try:
        scratch.rename(target)  # where there is nothing yet, all files appear at once
    except OSError:
        files = [path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()]
        if earlier:
            (target / last).unlink(missing_ok=True)
        for name in earlier.difference(files):
            (target / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds more
                (target / name).parent.rmdir()
        for name in sorted(files, key=lambda file: (file == last, file.name != first)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / name, target / name)
        for folder in {(target / name).parent for name in files}:
            fsync(folder)
    else:
        fsync(target.parent)
