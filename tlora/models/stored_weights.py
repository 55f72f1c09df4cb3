"""The weights of a base model one by one: of a loaded model, or of a saved one, which is then not loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from tlora.models.loading import choose_architecture, load_config, load_model, resolve
from tlora.models.targets import shape
from tlora.models.weights import base_modules, weight
from tlora.utils.files import read_json

_FLOATS = ("F32", "F16", "BF16")
"""Types whose numbers are the weights themselves, as safetensors names them."""

ReadWeight = Callable[[str], Float[Tensor, "d_out d_in"]]


def weight_reader(base: nn.Module | str, names: list[str], **where: Any) -> ReadWeight:
    """Return a function from the full name of a module to its weight, on the CPU.

    Parameters
    ----------
    base : torch.nn.Module or str
        A model, or the name of one as `tlora.load_model` takes it. Of a model in safetensors files one weight at a time
        is read; one that is stored otherwise (GGUF, packed, under other names) is loaded.
    names : list of str
        Modules that will be read.
    **where
        Arguments of `tlora.load_model` that locate the files, such as ``revision``.
    """
    if isinstance(base, str):
        return _stored_reader(base, names, where) or weight_reader(load_model(base, device="cpu", **where)[0], names)
    modules = base_modules(base)
    if missing := next((name for name in names if name not in modules), None):
        raise ValueError(f"the base has no {missing}, which the adapter changes: pass the base that it was trained on")
    return lambda name: weight(modules[name], name).cpu()


def _stored_reader(base: str, names: list[str], where: Mapping[str, Any]) -> ReadWeight | None:
    """Return a reader of files; None if they do not hold all weights as the model computes with them."""
    location = resolve(base, dict(where))
    if "gguf_file" in location.where:
        return None
    folder = Path(location.path)
    if not folder.is_dir():
        files = ["*.json", "*.safetensors"]
        folder = Path(snapshot_download(location.path, revision=where.get("revision"), allow_patterns=files))
    folder = folder / location.where.get("subfolder", "")
    files_by_key, config = _files_by_key(folder), load_config(folder)
    with torch.device("meta"):
        modules = dict(choose_architecture(config, None).from_config(config).named_modules())
    keys: dict[str, str] = {}
    for name in names:
        key = _stored_key(name, files_by_key)
        if key is None or name not in modules:
            return None
        with safe_open(files_by_key[key], "pt") as file:
            stored = file.get_slice(key)
        d_out, d_in = shape(modules[name])
        expected = [d_in, d_out] if isinstance(modules[name], Conv1D) else [d_out, d_in]
        if stored.get_shape() != expected or stored.get_dtype() not in _FLOATS:
            return None
        keys[name] = key

    def read(name: str) -> Tensor:
        with safe_open(files_by_key[keys[name]], "pt") as file:
            tensor = file.get_tensor(keys[name])
        return tensor.T if isinstance(modules[name], Conv1D) else tensor

    return read


def _files_by_key(folder: Path) -> dict[str, Path]:
    """Return the file of each stored tensor, of the files that transformers reads."""
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        index = read_json(folder / SAFE_WEIGHTS_INDEX_NAME)["weight_map"]
        return {key: folder / file for key, file in index.items()}
    if not (folder / SAFE_WEIGHTS_NAME).is_file():
        return {}
    with safe_open(folder / SAFE_WEIGHTS_NAME, "pt") as file:
        return dict.fromkeys(file.keys(), folder / SAFE_WEIGHTS_NAME)


def _stored_key(name: str, keys: Mapping[str, Path]) -> str | None:
    """Return the name that a weight is stored by: the module's, or with or without the prefix of a base model."""
    name = f"{name}.weight"
    without = name.partition(".")[2]
    found = [key for key in keys if key in (name, without) or key.partition(".")[2] == name]
    return name if name in found else found[0] if len(found) == 1 else None
