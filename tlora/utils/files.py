"""Files that are written whole or not at all: in a temporary folder on the same disk, flushed, then moved into place.

Other files in the same folder are left alone. A process that is killed leaves its temporary folder,
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

_KEPT = "what was there before is as it was"
_OS_ERROR = re.compile(r"(.*) \(os error (\d+)\)")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): it is truncated, or not a file of tlora") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {str(value)[:50]}, not a JSON object: it is damaged, or not a file of tlora")
    return value


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; a large one is read in parts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a folder, with everything in it, is on disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            fsync(Path(folder, name))
        fsync(Path(folder))


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk. Windows cannot, for what is open for reading."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def check_place(
    path: str | os.PathLike[str],
    marker: str | os.PathLike[str] = "",
    *,
    overwrite: bool = True,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Refuse, before anything is computed, a place that must not or cannot be written.

    This is the one rule for everything that writes: what is read is never replaced, ``overwrite`` replaces what the
    same command wrote before, and all other files stay.

    Parameters
    ----------
    path : path-like
        The folder to write, or the file if there is no ``marker``.
    marker : path-like, optional
        File by which a folder is known to hold an earlier result of the same command.
    overwrite : bool
        Whether an earlier result may be replaced.
    inputs : iterable of path-like, optional
        What the command reads. Names that are no paths, such as those of a hub, do no harm.
    """
    target = Path(path).resolve()
    if target.exists() and target in {Path(place).resolve() for place in inputs if str(place)}:
        raise FileExistsError(f"{path} is read and therefore never replaced: choose another path")
    if marker and target.exists():
        if not target.is_dir():
            raise FileExistsError(f"{path} is a file, not a folder: choose another path or remove it")
        in_use = next(filter(_is_in_use, sorted(target.iterdir())), None)
        if in_use is not None and not (target / marker).exists():
            raise FileExistsError(f"{path} holds {in_use.name} and no {marker}: choose another path or remove it")
    earlier = target / marker if marker else target
    if earlier.exists() and not overwrite:
        raise FileExistsError(f"{Path(path, marker)} exists: replace it with --overwrite, or name another place")
    parent = next(folder for folder in (target if marker else target.parent, *target.parents) if folder.exists())
    try:
        with _scratch_folder(parent):
            pass
    except OSError as error:
        raise OSError(f"cannot write {path} in {parent} ({error.strerror}): name another place") from error


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path of the same name to write a file to; it replaces ``path`` when the block ends well, or vanishes."""
    target = Path(path).resolve()  # of a link, the file behind it is replaced
    with _name_in_errors(target), replace_files(target.parent, last=target.name) as scratch:
        yield scratch / target.name


@contextlib.contextmanager
def replace_files(
    folder: str | os.PathLike[str], last: str, first: str = "", earlier: Iterable[str | Path] = ()
) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` when the block ends well, and vanish otherwise.

    Parameters
    ----------
    folder : path-like
        Where the files belong; other files in it stay.
    last : str
        The file by which readers take the files for one set. It is moved after all others.
    first : str, optional
        Name of a file that says whose set it is. It is moved before all others, and before files of an earlier set are
        removed, so that the next write knows what a kill left.
    earlier : iterable of str or pathlib.Path
        Files of an earlier set, relative to ``folder``. Those that are not written again are removed, with folders that
        become empty. The earlier ``last`` goes first, so that no reader takes old and new files for one set.

    Yields
    ------
    pathlib.Path
        The temporary folder, on the same file system.
    """
    target = Path(folder).resolve()  # of a link, the folder behind it is written
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder: choose another path or remove it")
    with contextlib.ExitStack() as stack:
        with _name_in_errors(target):
            scratch = stack.enter_context(_scratch_folder(target if target.is_dir() else target.parent))
            yield scratch
            flush(scratch)
        _move_into_place(scratch, target, Path(last), first, set(map(Path, earlier)))


@contextlib.contextmanager
def _name_in_errors(target: Path) -> Iterator[None]:
    """Raise errors of the system as one sentence that names the target, not the temporary file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        match = _OS_ERROR.search(str(error)) if isinstance(error, SafetensorError) else None
        number = int(match[2]) if match else getattr(error, "errno", None)
        if number is None:
            raise
        reason = match[1] if match else str(getattr(error, "strerror", None))
        text = reason if _KEPT in reason else f"{reason} ({_KEPT})"
        raise OSError(number, text, str(target)) from error


@contextlib.contextmanager
def _scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder to write in, removed afterwards with whatever is still in it."""
    parent.mkdir(parents=True, exist_ok=True)
    prefix = f".tlora-{socket.gethostname()}"
    for leftover in parent.glob(f"{prefix}-*"):
        process = re.fullmatch(r"-(\d+)-[0-9a-f]{8}", leftover.name.removeprefix(prefix))
        if process and not psutil.pid_exists(int(process[1])):  # it was killed
            shutil.rmtree(leftover, ignore_errors=True)
    fresh = parent / f"{prefix}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace(scratch: Path, target: Path, name: Path) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(scratch / name, target / name)


def remove_folder(folder: Path) -> None:
    """Remove a folder as a whole, if it is there: a process that is killed leaves no part of it under its name."""
    if folder.is_dir():
        with _scratch_folder(folder.parent) as scratch:
            folder.rename(scratch / folder.name)


def _is_in_use(path: Path) -> bool:
    """Whether a path is more than what a killed process has left of a write, or an empty folder."""
    if path.name.startswith(".tlora-"):
        return False
    return not path.is_dir() or any(map(_is_in_use, path.iterdir()))


def _move_into_place(scratch: Path, target: Path, last: Path, first: str, earlier: set[Path]) -> None:
    try:
        scratch.rename(target)  # into a place that is empty, all files appear at once
    except OSError:
        files = [path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()]
        if earlier:
            (target / last).unlink(missing_ok=True)
        listing = [name for name in files if name.name == first]
        for name in listing:
            _replace(scratch, target, name)
        for name in earlier.difference(files):
            (target / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds more
                (target / name).parent.rmdir()
        for name in sorted(set(files).difference(listing), key=lambda file: (file == last, file)):
            _replace(scratch, target, name)
        for folder in {(target / name).parent for name in files}:
            fsync(folder)
    else:
        fsync(target.parent)


def foreign_lora(folder: Path) -> str:
    """Say how to convert the LoRA of a diffusion trainer in a file or folder; empty if there is none.

    Trainers such as kohya's name the factors ``lora_down`` and ``lora_up``, or ``lora.down`` and ``lora.up``.
    """
    for file in [folder] if folder.is_file() else sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                keys = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        except (OSError, ValueError, OverflowError, MemoryError):
            continue
        if key := next((key for key in keys if re.search(r"[._]lora[._](down|up)\.", key)), None):
            return (
                f"{file} holds {key}, as kohya and diffusers name LoRA: convert it to PEFT's names with "
                "examples/stable_diffusion/convert_sd_adapter_to_peft.py of PEFT's repository"
            )
    return ""
