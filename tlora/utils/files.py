"""Files and folders that are there whole or not at all: written beside their place, flushed to disk, and put into it.

A process that is killed leaves what was there before. Its unfinished folder, ``.tlora-`` and 32 hexadecimal digits,
goes with the next write in the same place: it is told from one that is still being written by the lock on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

T = TypeVar("T")
Expected = str | Callable[[Path], None]

LARGEST_JSON = 2**28
"""Bytes: more than any file of ours, less than what brings a machine down."""

_UNFINISHED = re.compile(r"\.tlora-[0-9a-f]{32}")
_KEPT = "what was there before is as it was"
_OS_ERROR = re.compile(r"(.*) \(os error (\d+)\)")
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is larger than `LARGEST_JSON`, no JSON, or nested too deeply.
    """
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ValueError(f"{path} has {size:,} bytes, far more than any such file: it is damaged, or not one of ours")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): truncated, or not one of ours") from error


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; a large one is read in parts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def undisturbed(folder: Path, read: Callable[[], T]) -> T:
    """What ``read()`` finds in a folder, once more where the folder was replaced while it was read."""
    while True:
        before = _identity(folder)
        try:
            return read()
        except (OSError, ValueError):
            if _identity(folder) == before:
                raise


def _identity(folder: Path) -> tuple[int, ...] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def write_bytes(path: Path, blob: bytes) -> None:
    """Write a file and flush it to disk."""
    with open(path, "wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())


def flush(path: Path) -> None:
    """Have a file or a folder, with all that is in it, on disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            fsync(Path(folder, name))
        fsync(Path(folder))
    if path.is_file():
        fsync(path)


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
    with _said_of(target), _scratch(target.parent) as scratch:
        yield scratch / target.name
        flush(scratch)
        (scratch / target.name).replace(target)
        fsync(target.parent)


@contextlib.contextmanager
def replace_folder(path: str | os.PathLike[str], expects: Expected) -> Iterator[Path]:
    """A temporary folder that takes the place of ``path`` when the block ends well, and vanishes otherwise.

    Parameters
    ----------
    path : path-like
        The folder to make or to replace.
    expects : str or callable
        File that a folder must hold to be replaced: nobody else's folder is ever removed. Or what is called with
        whatever is there, and raises FileExistsError where it must stay.

    Yields
    ------
    pathlib.Path
        The temporary folder, on the same file system.

    Raises
    ------
    FileExistsError
        If ``path`` is a file, a folder without what it ``expects``, the current folder or a mount point.
    OSError
        If the disk is full or the place is not writable; the earlier folder is left as it was.

    Notes
    -----
    The two folders are exchanged in one step where the system can (Linux, on its own file systems). Elsewhere the old
    one stands aside, as ``.tlora-*.old``, for the moment between two renames.
    """
    target = Path(path).resolve()  # behind a link, the folder is replaced and the link stays
    check_replaceable(target, expects)
    with _said_of(target), _scratch(target.parent) as scratch:
        yield scratch
        flush(scratch)
        check_replaceable(target, expects)  # another process may have put something there since
        _put_in_place(scratch, target)
        fsync(target.parent)


def check_replaceable(target: Path, expects: Expected) -> None:
    """Refuse what `replace_folder` does not replace.

    Parameters
    ----------
    target : pathlib.Path
        The folder, resolved; it need not be there.
    expects : str or callable
        As for `replace_folder`.

    Raises
    ------
    FileExistsError
        If it must stay.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file, and no folder: choose another path or remove it")
    if target in (Path.cwd(), *Path.cwd().parents) or target.is_mount():
        raise FileExistsError(f"{target} is the current folder or a mount point: name a folder inside it")
    if not any(target.iterdir()):
        return
    if not isinstance(expects, str):
        expects(target)
    elif not (target / expects).exists():
        raise FileExistsError(f"{target} exists and holds no {expects}: choose another path or remove it")


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
    """A new folder to write in, locked while it is, and gone afterwards with whatever it holds then."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(parent)
    fresh, lock = _locked_folder(parent)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    while True:
        fresh = parent / f".tlora-{uuid.uuid4().hex}"
        fresh.mkdir()
        with contextlib.suppress(FileNotFoundError):  # until it is locked, others may take it for abandoned
            lock = os.open(fresh, os.O_RDONLY)
            _lock(lock, wait=True)
            if fresh.exists():
                return fresh, lock
            os.close(lock)


def _lock(descriptor: int, wait: bool) -> bool:
    """Whether the lock is ours now; a file system without locks gives it to nobody."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_unfinished(parent: Path) -> None:
    """Remove what killed processes have left: nobody holds a lock on it."""
    for left in parent.glob(".tlora-*"):
        if not _UNFINISHED.fullmatch(left.name):
            continue
        with contextlib.suppress(OSError):  # gone already, or not ours to open
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _lock(lock, wait=False):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _put_in_place(fresh: Path, target: Path) -> None:
    """Make ``fresh`` the target; what was the target is ``fresh`` afterwards, or gone."""
    while True:
        try:
            fresh.rename(target)  # where there is nothing, or an empty folder
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        with contextlib.suppress(FileNotFoundError):  # somebody removed the target meanwhile
            _exchange(fresh, target)
            return


def _exchange(fresh: Path, target: Path) -> None:
    try:
        _rename_exchange(fresh, target)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _rename_twice(fresh, target)


def _rename_exchange(one: Path, other: Path) -> None:
    """Exchange two folders at once: renameat2(2) with RENAME_EXCHANGE, which Python has no function for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    at_cwd, exchange = -100, 2
    if libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def _rename_twice(fresh: Path, target: Path) -> None:
    aside = fresh.with_suffix(".old")
    try:
        target.rename(aside)
        fresh.rename(target)
    finally:  # whatever came between the two renames, an interrupt included, the old folder goes back
        if aside.exists() and not target.exists():
            aside.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
