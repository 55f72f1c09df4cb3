"""One file for every result: tensors in safetensors, everything else as JSON in the metadata of the same file.

A result is a frozen dataclass. `write_result` walks its fields and puts each tensor into the file under the path of its
field, e.g. ``covariances.model.layers.0.self_attn.q_proj.total``; what remains is JSON, with the name of each tensor in
its place. `read_result` walks the type hints of the class and rebuilds it. Loading executes no code. A checksum covers
the whole file, so a flipped bit is refused wherever it is.
"""

from __future__ import annotations

import html
import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import isfunction, signature
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from tlora.utils.file_names import result_file
from tlora.utils.files import read_json, replace_file
from tlora.utils.packages import library_versions
from tlora.utils.validation import check_arguments, with_checked_arguments

FORMAT_VERSION = 8
"""Raised whenever files are written that an earlier version would not read, or would read wrongly."""

WITHOUT_CHECKSUM = 7
"""The format before, which stays readable; damage to its numbers goes unnoticed, to its names rarely."""

HEADER_LIMIT = 100_000_000
"""Bytes of the longest header that safetensors reads."""

_KEY = "tlora"
"""Key of the JSON in the metadata of the file. It is the only one: the order of several would be random."""

_BLANK = "0" * 8
"""Stands in the place of the checksum, which is the CRC-32 of the whole file with this in its place."""

_NO_CHECKSUM = "%s has format %d, without a checksum: damage to its numbers goes unnoticed, save it again"

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Meta:
    """Where a result comes from: what it is and how to make it again.

    Attributes
    ----------
    model : str
        Name or path of the base model.
    task : str
        Name of the task, ``""`` if the batches came from elsewhere.
    recipe : dict
        Arguments of the call that made the result: JSON values only, tuples are kept as lists.
    seed : int or None
        Seed of everything random in it; None if nothing is random.
    samples : int or None
        Number of samples that went in.
    versions : dict of str
        Versions of the libraries that made it.

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
        # Checked here, not when hours of work are saved; and a loaded recipe equals the original one.
        try:
            recipe = json.loads(json.dumps(self.recipe, default=_plain))
        except TypeError as error:
            raise TypeError(f"a recipe takes JSON values only, got {self.recipe!r} ({error})") from error
        object.__setattr__(self, "recipe", recipe)
        object.__setattr__(self, "seed", None if self.seed is None else int(self.seed))


def _plain(value: Any) -> Any:
    """A number, or an array of them, of NumPy or torch as one of Python."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


class Result:
    """Base of all results, which are frozen dataclasses: table, summary, `save` and `load`.

    A subclass defines its table (``columns`` and `to_frame`) and its one-line summary (`_summary`). It can then be
    shown, saved and loaded: its fields may be tensors, tables, dataclasses, JSON values, and dictionaries, lists and
    tuples of them. Results hold CPU tensors and no model.
    """

    columns: ClassVar[dict[str, str]] = {}
    meta: Meta

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let every method that takes arguments check their kinds."""
        super().__init_subclass__(**kwargs)
        for name, method in list(vars(cls).items()):
            if isfunction(method) and not name.startswith("_") and len(signature(method).parameters) > 1:
                setattr(cls, name, with_checked_arguments(method))

    def to_frame(self) -> pd.DataFrame:
        """The result as a table whose columns are described in ``columns``."""
        raise NotImplementedError

    def _summary(self) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._summary()})"

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        more = f"<p>{len(frame) - 10} more rows: <code>.to_frame()</code></p>" if len(frame) > 10 else ""
        table = frame.head(10).to_html(index=False, float_format="%.4g")
        return f"<p><b>{html.escape(repr(self))}</b></p>{table}{more}"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one file. An earlier result of the same kind is replaced at once.

        Parameters
        ----------
        path : path-like
            The file; ``.safetensors`` is added to a name that does not end in it.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        OSError
            If the disk is full or the place is not writable; an earlier result is left as it was.
        FileExistsError
            If there is a file that is not a result of this kind.

        Examples
        --------
        >>> file = calibration.save("calibration")
        >>> file.name
        'calibration.safetensors'
        >>> tlora.Calibration.load(file).names == calibration.names
        True
        """
        check_arguments(Result.save, locals())
        file = result_file(path)
        refuse_other_file(file, type(self).__name__)
        write_result(file, self)
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result of this kind that `save` wrote; `tlora.load_result` reads any.

        Parameters
        ----------
        path : path-like
            The file, with or without ``.safetensors``.

        Returns
        -------
        Result
            An instance of the class that ``load`` was called on.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is another kind of result, of another format, truncated or damaged.
        """
        check_arguments(Result.load, locals())
        return read_result(result_file(path), {cls.__name__: cls})


def refuse_other_file(file: Path, kind: str) -> None:
    """Refuse to replace a file that is not a result of this kind."""
    if not file.exists():
        return
    try:
        with file.open("rb") as opened:
            there = json.loads((_read_metadata(opened) or {})[_KEY])["result"]  # of whatever format
    except (ValueError, OSError, LookupError, TypeError, AttributeError):
        there = "something that is not a tlora result"
    if there != kind:
        raise FileExistsError(f"{file} holds {there}, which {kind} would replace: choose another path, or remove it")


def write_result(file: Path, result: Result, **more: Any) -> None:
    """Write a result to ``file``, whatever is there, with ``more`` JSON values for other readers of the file."""
    tensors: dict[str, Tensor] = {}
    values = _Packer(tensors).pack(result, "")
    head = {"crc32": _BLANK, "format": FORMAT_VERSION, "result": type(result).__name__, "values": values | more}
    blob = memoryview(dump_tensors(tensors, {_KEY: json.dumps(head)}))
    before, after = _around_checksum(blob, _BLANK)
    with replace_file(file) as fresh, fresh.open("wb") as opened:
        opened.writelines((before, _checksum(before, after).encode(), after))


def count_bytes(result: Result) -> int:
    """Bytes that `write_result` would write, to within the names of the tensors."""
    tensors: dict[str, Tensor] = {}
    values = _Packer(tensors).pack(result, "")
    return sum(tensor.nbytes for tensor in tensors.values()) + len(json.dumps(values))


def read_result(file: Path, classes: Mapping[str, type[T]]) -> T:
    """Read a result of one of several kinds as an instance of a dataclass with its fields, or with some of them."""
    if not file.is_file():
        raise FileNotFoundError(f"no result at {file}: name a file that save() wrote")
    try:
        # Opened once: `safe_open` opens the file twice, and another process may replace it in between.
        with file.open("rb") as opened:
            head = _head(file, _read_metadata(opened))
            opened.seek(0)
            blob = opened.read()
        if head["format"] == WITHOUT_CHECKSUM:
            logger.warning(_NO_CHECKSUM, file, WITHOUT_CHECKSUM)
        elif _checksum(*_around_checksum(memoryview(blob), head["crc32"])) != head["crc32"]:
            raise ValueError("its checksum is that of other bytes")
        tensors = load_tensors(blob)
        if (kind := head["result"]) not in classes:
            wanted = " or ".join(classes)
            raise _OtherFileError(
                f"{file} holds {kind}, not {wanted}: tlora.load_result reads every kind that it knows"
            )
        result = unpack(classes[kind], head["values"], tensors)
        if head["format"] == WITHOUT_CHECKSUM and isinstance(result, Result):
            result._repr_html_()  # some damage shows only when parts that belong together are put together
        return result
    except _OtherFileError:
        raise
    except (
        SafetensorError,
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        MemoryError,
        RuntimeError,
    ) as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"  # the repr of some errors holds the whole file
        raise ValueError(f"{file} is truncated or damaged ({why}): copy it or make the result again") from error


class _OtherFileError(ValueError):
    """The file is whole, but not what was asked for."""


def _read_metadata(opened: BinaryIO) -> Mapping[str, str] | None:
    """Read the metadata of a safetensors file that was just opened; ValueError if it does not begin like one."""
    size = int.from_bytes(opened.read(8), "little")
    if size > HEADER_LIMIT:
        raise ValueError(f"a header of {size:,} bytes")
    metadata: Mapping[str, str] | None = json.loads(opened.read(size)).get("__metadata__")
    return metadata


def _around_checksum(blob: memoryview, checksum: str) -> tuple[memoryview, memoryview]:
    """The bytes of a file before and after its checksum, which is the first value of the JSON."""
    size = int.from_bytes(blob[:8], "little")
    start = bytes(blob[: 8 + size]).index(checksum.encode())
    return blob[:start], blob[start + len(checksum) :]


def _checksum(before: memoryview, after: memoryview) -> str:
    return f"{zlib.crc32(after, zlib.crc32(_BLANK.encode(), zlib.crc32(before))):08x}"


def _head(file: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    if _KEY not in (metadata or {}):
        raise _OtherFileError(f"{file} is not a tlora result")
    head: dict[str, Any] = json.loads(metadata[_KEY])  # type: ignore[index]
    if head["format"] not in (WITHOUT_CHECKSUM, FORMAT_VERSION):
        raise _OtherFileError(
            f"{file} has format {head['format']!r}, this version of tlora reads {WITHOUT_CHECKSUM} and "
            f"{FORMAT_VERSION}: use the version that wrote it, or make the result again"
        )
    return head


class _Packer:
    """Turns a value into JSON and moves its tensors into a dictionary, each tensor once however many fields hold it."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._names: dict[Any, Any] = {}

    def pack(self, value: Any, path: str) -> Any:
        """``value`` as JSON; ``path`` names its tensors."""
        if isinstance(value, Tensor):
            return self._tensor(value.detach().cpu(), path)
        if isinstance(value, pd.DataFrame):
            return self._table(value, path)
        if is_dataclass(value):
            values = {one.name: self.pack(getattr(value, one.name), _join(path, one.name)) for one in fields(value)}
            return {"class": type(value).__name__} | values if _is_subclass(value) else values
        if isinstance(value, Mapping):
            return {key: self.pack(one, _join(path, key)) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.pack(one, _join(path, place)) for place, one in enumerate(value)]
        return value.item() if isinstance(value, np.generic) else value

    def _tensor(self, tensor: Tensor, path: str) -> Any:
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key in self._names and tensor.numel():
            return self._names[key]
        name = path if path not in self._tensors else f"{path}#{len(self._tensors)}"
        if _is_symmetric(tensor):
            rows, columns = torch.triu_indices(*tensor.shape)
            self._tensors[name] = tensor[rows, columns]
            packed: Any = {"upper": name}  # half of the bytes
        else:
            self._tensors[name] = tensor.contiguous()
            packed = name
        self._names[key] = packed
        return packed

    def _table(self, table: pd.DataFrame, path: str) -> dict[str, Any]:
        columns = {name: self._column(table[name], _join(path, name)) for name in table.columns}
        is_numbered = table.index.equals(pd.RangeIndex(len(table)))
        return {"columns": columns, "index": None if is_numbered else table.index.tolist()}

    def _column(self, column: pd.Series, path: str) -> dict[str, Any]:
        if column.dtype.kind in "ifb":
            return {"numbers": self._tensor(torch.from_numpy(column.to_numpy(copy=True)), path)}
        codes, values = pd.factorize(column, use_na_sentinel=False)
        rows = self._tensor(torch.from_numpy(codes.astype("int64")), path)
        return {"rows": rows, "values": list(values), "dtype": str(column.dtype)}


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _is_subclass(value: Any) -> bool:
    """Whether its field may be annotated with a base class, as `Covariance` is of `DenseCovariance`."""
    return not isinstance(value, Result) and any(map(is_dataclass, type(value).__bases__))


def _is_symmetric(tensor: Tensor) -> bool:
    is_square = tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] > 1
    return is_square and tensor.dtype == torch.float32 and bool(tensor.equal(tensor.T))


def read_dataclass(file: Path, cls: type[T], upgrade: Callable[[Any], Any] = lambda values: values) -> T:
    """Read a JSON file as a dataclass without tensors, by its type hints; keys with a default may be missing.

    ``upgrade`` turns the values of an earlier version into those of this one.
    """
    values = read_json(file)
    try:
        return unpack(cls, upgrade(values), {})
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): copy it or save it again") from error


def unpack(hint: Any, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Rebuild a value from JSON and tensors by its type hint: the inverse of `_Packer`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        hints = [one for one in arguments if one is not NoneType]
        if value is None and len(hints) < len(arguments):
            return None
        return unpack(next((one for one in hints if _fits(one, value)), hints[-1]), value, tensors)
    if origin in (dict, Mapping):
        return {key: unpack(arguments[1], one, tensors) for key, one in value.items()}
    if origin is list:
        return [unpack(arguments[0], one, tensors) for one in value]
    if origin is tuple:
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return tuple(unpack(one, part, tensors) for one, part in zip(hints, value, strict=True))
    if getattr(hint, "array_type", hint) is Tensor:  # as itself, or as Float[Tensor, "..."] of jaxtyping
        return tensors[value] if isinstance(value, str) else _full(tensors[value["upper"]])
    if hint is pd.DataFrame:
        return _unpack_table(value, tensors)
    if is_dataclass(hint):
        return _unpack_dataclass(hint, value, tensors)  # type: ignore[arg-type]
    if (origin is Literal and value not in arguments) or not _fits(hint, value):
        raise TypeError(f"{str(value)[:50]!r} is not {hint}")
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a JSON value may be of a plain type; of other hints only the value itself can tell."""
    return type(value) in _PLAIN.get(hint, (type(value),))


_PLAIN: dict[Any, tuple[type, ...]] = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}


def _unpack_dataclass(cls: type[T], values: dict[str, Any], tensors: Mapping[str, Tensor]) -> T:
    if "class" in values:
        cls = {one.__name__: one for one in (cls, *cls.__subclasses__())}[values["class"]]
    hints = get_type_hints(cls)
    names = [one.name for one in fields(cls) if one.name in values]  # type: ignore[arg-type]
    return cls(**{name: unpack(hints[name], values[name], tensors) for name in names})


def _unpack_table(value: dict[str, Any], tensors: Mapping[str, Tensor]) -> pd.DataFrame:
    columns = {}
    for name, column in value["columns"].items():
        if "numbers" in column:
            columns[name] = pd.Series(tensors[column["numbers"]].numpy())
        else:
            values = [column["values"][row] for row in tensors[column["rows"]].tolist()]
            columns[name] = pd.Series(values, dtype=column["dtype"])
    table = pd.DataFrame(columns)
    return table if value["index"] is None else table.set_axis(value["index"])


def _full(triangle: Tensor) -> Tensor:
    """The symmetric matrix of which these are the entries of the upper triangle, row by row."""
    d = int(((8 * triangle.numel() + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.triu_indices(d, d)
    matrix = triangle.new_empty(d, d)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix
