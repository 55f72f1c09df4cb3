"""One format for every result: a folder with ``result.json`` and the file of tensors that it names.

Nothing here executes code on loading: tensors come from safetensors, everything else from JSON, and both are
checked against the digests written with them. The file of tensors is named after its content, and ``result.json`` is
replaced last (`tlora.utils.files`): whenever a save breaks off, the earlier result is there or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from tlora.utils.files import read_json, replace_files
from tlora.utils.packages import library_versions

RESULT = "result.json"
_TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")

FORMAT_VERSION = 5
"""Raised whenever files are written that an earlier version would not read, or would read wrongly."""


@dataclass(frozen=True)
class Meta:
    """Where a result comes from: enough to say what it is and to make it again.

    Attributes
    ----------
    model : str
        Name or path of the base model.
    task : str
        Name of the task, ``""`` where the batches came from elsewhere.
    recipe : dict
        Arguments of the call that made the result: JSON values only, tuples are kept
        as lists.
    seed : int or None
        Seed of everything random in it; None where nothing is random.
    samples : int or None
        Number of samples that went in.
    versions : dict of str
        Library versions at the time of making.

    Raises
    ------
    TypeError
        If the recipe holds something that JSON cannot.
    """

    model: str = ""
    task: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    samples: int | None = None
    versions: dict[str, str] = field(default_factory=library_versions)

    def __post_init__(self) -> None:
        # Found out here, not when hours of work are saved; and what is loaded equals what was made.
        try:
            recipe = json.loads(json.dumps(self.recipe, default=_plain))
        except TypeError as error:
            raise TypeError(f"a recipe takes JSON values only, got {self.recipe!r} ({error})") from error
        object.__setattr__(self, "recipe", recipe)
        object.__setattr__(self, "seed", None if self.seed is None else int(self.seed))


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


class Result:
    """What every result of this package can do; the subclasses are frozen dataclasses.

    A subclass says what its table looks like (``columns`` and `to_frame`), what its one-line summary is
    (`_summary`), and, where not all of its parts are JSON values, how it is taken apart into tensors and such values
    (`_pack`) and put together again (`_unpack`). In return it can be shown, saved and loaded. Results hold CPU tensors
    and no model.
    """

    columns: ClassVar[dict[str, str]] = {}
    meta: Meta

    def to_frame(self) -> pd.DataFrame:
        """The result as a table whose columns are described in ``columns``."""
        raise NotImplementedError

    def _summary(self) -> str:
        raise NotImplementedError

    def _pack(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        parts = fields(self)  # type: ignore[arg-type]  # every result is a dataclass
        return {}, {part.name: getattr(self, part.name) for part in parts if part.name != "meta"}

    @classmethod
    def _unpack(cls, tensors: dict[str, torch.Tensor], values: dict[str, Any], meta: Meta) -> Self:
        return cls(**values, meta=meta)  # type: ignore[call-arg]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._summary()})"

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        more = f"<p>{len(frame) - 10} more rows: <code>.to_frame()</code></p>" if len(frame) > 10 else ""
        table = frame.head(10).to_html(index=False, float_format="%.4g")
        return f"<p><b>{html.escape(repr(self))}</b></p>{table}{more}"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to the folder ``path``; an earlier result of its kind is replaced, other files stay.

        Parameters
        ----------
        path : path-like
            Folder to write: ``result.json`` and ``tensors-<digest>.safetensors``.

        Returns
        -------
        pathlib.Path
            The folder.

        Raises
        ------
        OSError
            If the disk is full or the place is not writable; the earlier result, if any, is left as it was.
        FileExistsError
            If ``path`` is a file, or holds a result of another kind.
        """
        self.check_place(path)
        earlier = saved_files(path)
        with replace_files(path, last=RESULT) as folder:
            self._write(folder, *self._pack())
        for file in set(earlier).difference(saved_files(path)):
            Path(path, file).unlink(missing_ok=True)
        return Path(path)

    @classmethod
    def check_place(cls, path: str | os.PathLike[str]) -> None:
        """Refuse a folder that holds a result of another kind, which `save` would replace.

        Parameters
        ----------
        path : path-like
            The folder, which need not be there.

        Raises
        ------
        FileExistsError
            If it does; the message names the kind.
        """
        file = Path(path, RESULT)
        if not file.is_file():
            return
        try:
            kind = _parse(file)["result"]
        except ValueError as error:
            raise FileExistsError(f"{error}; choose another folder, or remove it first") from error
        if kind != cls.__name__:
            raise FileExistsError(
                f"{path} holds {kind}, which would be lost to {cls.__name__}: choose another folder, or remove it first"
            )

    def _write(self, folder: Path, tensors: dict[str, torch.Tensor], values: Any) -> None:
        """The two files of what `_pack` gives, in a folder that is there."""
        blob = dump_tensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        digest = hashlib.sha256(blob).hexdigest()
        file = f"tensors-{digest[:16]}.safetensors"
        head = {
            "format": FORMAT_VERSION,
            "result": type(self).__name__,
            "tensors": {"file": file, "bytes": len(blob), "sha256": digest},
            "meta": asdict(self.meta),
            "values": values,
        }
        head["sha256"] = _digest(head)
        (folder / file).write_bytes(blob)
        (folder / RESULT).write_bytes(json.dumps(head, indent=1, allow_nan=True).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result that `save` wrote.

        Parameters
        ----------
        path : path-like
            The folder.

        Returns
        -------
        Result
            An instance of the class that ``load`` was called on.

        Raises
        ------
        FileNotFoundError
            If there is no result in the folder.
        ValueError
            If it is another kind of result, of a newer format, truncated or changed since it was written.
        """
        parts = read_parts(Path(path), cls.__name__)
        with _damage_in(Path(path)):
            return cls._unpack(*parts)


# What taking apart raises where the parts are of the wrong kinds, besides the ValueError that it is told as.
_DAMAGE = (SafetensorError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError)


def read_parts(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], Meta]:
    """Tensors, JSON values and `Meta` of a saved result, without an object of its class.

    Parameters
    ----------
    path : pathlib.Path
        The result's folder.
    kind : str
        Name of its class.

    Raises
    ------
    FileNotFoundError
        If there is no result in the folder.
    ValueError
        If it is another kind of result, of a newer format, truncated or changed since it was written.
    """
    written = _written(path)
    head = read_head(path)
    if head["result"] != kind:
        there = head["result"]
        raise ValueError(f"{path} holds {there}, not {kind}: use {there}.load({str(path)!r})")
    with _damage_in(path):
        file = path / _tensors_name(head)
        try:
            blob = _checked_blob(file, head["tensors"])
        except FileNotFoundError:
            if _written(path) == written:
                raise
            return read_parts(path, kind)  # another result was saved meanwhile, and perhaps this one again
        values = head["values"]
        if "shapes" in values:  # JSON has no tuples
            values["shapes"] = {name: (int(rows), int(columns)) for name, (rows, columns) in values["shapes"].items()}
        return load_tensors(blob), values, Meta(**head["meta"])


def _written(path: Path) -> tuple[int, int] | None:
    """What tells one save of a folder from the next, even of the same result; None where there is no result."""
    with contextlib.suppress(OSError):
        found = (path / RESULT).stat()
        return found.st_ino, found.st_mtime_ns
    return None


@contextlib.contextmanager
def _damage_in(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged ({error!r}): make the result again") from error


def saved_files(folder: str | os.PathLike[str], places: str | Path = "") -> list[Path]:
    """Files of the results in a folder, relative to it.

    Parameters
    ----------
    folder : path-like
        The folder, which need not be there.
    places : str or pathlib.Path, optional
        Pattern of the results' own folders in it. Default: it is itself the folder of a result.

    Returns
    -------
    list of pathlib.Path
        Of a result that is damaged, only ``result.json``.
    """
    found = []
    for file in Path(folder).glob(str(Path(places, RESULT))):
        found.append(file.relative_to(folder))
        with contextlib.suppress(ValueError, *_DAMAGE):
            found.append(found[-1].with_name(_tensors_name(_parse(file))))
    return found


def _tensors_name(head: dict[str, Any]) -> str:
    name = head["tensors"]["file"]
    if not _TENSORS.fullmatch(name):
        raise ValueError(
            f"{RESULT} names {name!r}, which is not a file of tensors: it was changed since it was written"
        )
    return str(name)


def _checked_blob(path: Path, expected: dict[str, Any]) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the result was not copied whole; copy both of its files")
    size = path.stat().st_size
    blob = path.read_bytes() if size == expected["bytes"] else b""  # a file that has grown is not read
    if hashlib.sha256(blob).hexdigest() != expected["sha256"]:
        raise ValueError(
            f"{path} is not what was written ({size} bytes of {expected['bytes']}, or other content): "
            "it is truncated or was changed; copy it again or make the result again"
        )
    return blob


def read_head(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``result.json`` of a result folder, checked for completeness.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is not JSON, not ours, or of a format version that this one does not read.
    """
    file = Path(path) / RESULT
    if not file.is_file():
        raise FileNotFoundError(f"no result in {path}: expected a folder with {RESULT}")
    head = _parse(file)
    if head["format"] != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format {head['format']!r}, this version of tlora reads {FORMAT_VERSION}: use the version that "
            "wrote it, or make the result again"
        )
    lacks = {"tensors", "meta", "values", "sha256"} - head.keys()
    if lacks or head["sha256"] != _digest(head):
        raise ValueError(f"{file} was changed since it was written: copy it again or make the result again")
    return head


def _parse(file: Path) -> dict[str, Any]:
    head = read_json(file)
    if not {"format", "result"} <= head.keys():
        raise ValueError(f"{file} is not a tlora result: it names no format and no kind of result")
    return head


def _digest(head: dict[str, Any]) -> str:
    rest = {key: value for key, value in head.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()
