"""Adapters for llama.cpp: one GGUF file, with tensors named and arranged as in the GGUF of the base."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tlora.adapters.update import LoraUpdate
from tlora.serving.uniform_lora import MERGED
from tlora.utils.files import replace_file

FILE = "adapter.gguf"
_TYPES = {
    torch.float32: ("F32", "ALL_F32"),
    torch.float16: ("F16", "MOSTLY_F16"),
    torch.bfloat16: ("BF16", "MOSTLY_BF16"),
}

Order = Callable[[str, int, Any], Int[Tensor, " d_out"]]


def _keep_order(tensor: str, d_out: int, config: Any) -> Tensor:
    return torch.arange(d_out)


def _rotate_pairs(tensor: str, d_out: int, config: Any) -> Tensor:
    """Queries and keys of Llama: transformers rotates the two halves of a head, llama.cpp neighboring rows."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(tensor)
    if heads is None:
        return torch.arange(d_out)
    return torch.arange(d_out).view(heads, 2, -1).transpose(1, 2).reshape(-1)


def _split_fused_heads(tensor: str, d_out: int, config: Any) -> Tensor:
    """Queries, keys and values of GPT-NeoX: head by head in transformers, all queries first in llama.cpp."""
    if tensor != "attn_qkv":
        return torch.arange(d_out)
    return torch.arange(d_out).view(config.num_attention_heads, 3, -1).transpose(0, 1).reshape(-1)


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores a family of models: ``general.architecture``, and the order of a tensor's rows."""

    name: str
    order: Order = _keep_order


# By `model_type`: only families that were served by llama.cpp and compared with transformers.
ARCHITECTURES = {
    "llama": Architecture("llama", _rotate_pairs),
    "mistral": Architecture("llama", _rotate_pairs),
    "smollm3": Architecture("smollm3", _rotate_pairs),
    "granite": Architecture("granite", _rotate_pairs),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma"),
    "gemma2": Architecture("gemma2"),
    "gemma3_text": Architecture("gemma3"),
    "phi3": Architecture("phi3"),
    "gpt2": Architecture("gpt2"),
    "gpt_neox": Architecture("gptneox", _split_fused_heads),
}


@dataclass(frozen=True)
class Layout:
    """Names and row orders of the weights of one model in its GGUF; ``config`` is that of its text part."""

    config: Any
    architecture: Architecture
    names: Any

    @classmethod
    def from_config(cls, config: Any) -> Layout:
        """Return the layout of a model, by its config."""
        import gguf

        config = config.get_text_config()
        if config.model_type not in ARCHITECTURES:
            raise ValueError(
                f"no GGUF adapter for {config.model_type!r} models, only for {', '.join(ARCHITECTURES)}: {MERGED}, "
                "and convert that with llama.cpp's convert_hf_to_gguf.py"
            )
        architecture = ARCHITECTURES[config.model_type]
        number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
        return cls(config, architecture, gguf.get_tensor_name_map(number, config.num_hidden_layers))

    def tensor(self, module: str) -> str:
        """Return the name of a module's weight."""
        name = self.names.get_name(module)
        if name is None:
            raise ValueError(f"llama.cpp's {self.architecture.name!r} has no tensor for {module}: {MERGED}")
        return f"{name}.weight"

    def rows(self, module: str, d_out: int) -> Int[Tensor, " d_out"]:
        """Return, for each row of the tensor, the row of the module's weight that it is."""
        kind = self.tensor(module).removesuffix(".weight").rpartition(".")[2]
        return self.architecture.order(kind, d_out, self.config)


def write_gguf(path: Path, updates: Mapping[str, LoraUpdate], config: Any, dtype: torch.dtype) -> None:
    """Write updates of any ranks, by full name of the module, in the format of llama.cpp.

    llama.cpp multiplies an update by ``adapter.lora.alpha`` divided by the rank of the tensor at hand, and by one where
    alpha is 0. Alpha is the largest rank here, and ``s B`` is scaled by ``rank / alpha`` against it.
    """
    import gguf

    if dtype not in _TYPES:
        raise ValueError(f"dtype={dtype}: a GGUF adapter is float32, float16 or bfloat16")
    stored, file_type = gguf.GGMLQuantizationType[_TYPES[dtype][0]], gguf.LlamaFileType[_TYPES[dtype][1]]
    layout, alpha = Layout.from_config(config), max(update.rank for update in updates.values())
    writer = gguf.GGUFWriter(None, layout.architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_file_type(file_type)
    for name, update in updates.items():
        rows = update.b[layout.rows(name, update.shape[0])] * (update.scaling * update.rank / alpha)
        for suffix, x in (("lora_a", update.a), ("lora_b", rows)):
            data = gguf.quantize(x.contiguous().numpy(), stored)
            writer.add_tensor(f"{layout.tensor(name)}.{suffix}", data, raw_dtype=stored)
    with replace_file(path) as fresh:
        with contextlib.closing(writer):
            writer.write_header_to_file(fresh)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        _check_written(fresh)


def _check_written(file: Path) -> None:
    """Read the file once: on a full disk, `numpy.ndarray.tofile` of the writer silently writes a part only."""
    import gguf

    try:
        gguf.GGUFReader(file)
    except (ValueError, IndexError) as error:
        raise OSError(errno.ENOSPC, "No space left for all of it") from error


def read_gguf(path: str | os.PathLike[str], names: Mapping[str, Any], config: Any) -> dict[str, LoraUpdate]:
    """Return the updates that `write_gguf` wrote, float32, by full name of the module."""
    import gguf

    reader, layout = gguf.GGUFReader(path), Layout.from_config(config)
    tensors = {t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    updates = {}
    for name in names:
        pair = [tensors.pop(f"{layout.tensor(name)}.{suffix}", None) for suffix in ("lora_a", "lora_b")]
        a, b = pair
        if a is None or b is None or len(a) != b.shape[1]:
            raise ValueError(f"{path} holds no matching pair of tensors for {name}: export the adapter again")
        back = torch.argsort(layout.rows(name, len(b)))
        updates[name] = LoraUpdate(name, a, b[back] * (alpha / len(a)))
    if tensors:
        raise ValueError(f"{path} also holds {next(iter(tensors))}, of no module of the adapter: export it again")
    return updates
