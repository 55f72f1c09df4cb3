"""How serving engines read a LoRA adapter in PEFT's format: the scale that each computes, or why it refuses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tlora.adapters.peft_config import COMPUTES_MORE, module_scalings, rank_exponent, rewrites_base
from tlora.utils.defaults import EngineName

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's ``--max-lora-rank`` may have."""

FOREIGN = "PEFT's format is not read"
"""Why an engine accepts no adapter of PEFT at all."""


@dataclass(frozen=True)
class AdapterLayout:
    """What an engine reads of a saved adapter: its config, the rank of each module, the names of other tensors."""

    config: Mapping[str, Any]
    ranks: Mapping[str, int]
    others: Collection[str] = ()

    def unsupported_part(self, known: Collection[str] = ()) -> str:
        """First part that is neither ``A``, ``B`` nor a saved module of a known name; empty if there is none.

        Changed weights of the base count: ``A`` and ``B`` alone, on the base as it is, compute something else.
        """
        if rewrites_base(self.config):
            return f"init_lora_weights={self.config['init_lora_weights']!r}"
        if self.config.get("bias", "none") != "none":
            return f"bias={self.config['bias']!r}"
        if self.config.get("use_dora"):
            return "DoRA"
        saved = set(self.config.get("modules_to_save") or ())
        if unknown := sorted(saved.difference(known)):
            return f"modules_to_save={unknown}"
        # A and B of embeddings have names of their own.
        heads = tuple(f".{name}." for name in saved)
        stray = [name for name in self.others if ".lora_embedding_" not in name and not any(h in name for h in heads)]
        if stray:
            return f"{stray[0]}, which is neither A nor B"
        if self.config.get("target_parameters"):
            return "experts (target_parameters)"
        key = next((key for key in COMPUTES_MORE if self.config.get(key)), "")
        return key and f"{key}={self.config[key]!r}"


def scale_by_patterns(adapter: AdapterLayout) -> dict[str, float]:
    """Return the scales by the patterns, as PEFT computes them."""
    return module_scalings(adapter.config, adapter.ranks)


def global_scale(adapter: AdapterLayout) -> dict[str, float]:
    """Return ``lora_alpha / r`` for all modules, or ``lora_alpha / sqrt(r)`` under rsLoRA."""
    config = adapter.config
    return dict.fromkeys(adapter.ranks, config["lora_alpha"] / config["r"] ** rank_exponent(config))


def global_scale_without_rslora(adapter: AdapterLayout) -> dict[str, float]:
    """Return ``lora_alpha / r`` for all modules, rsLoRA or not."""
    return dict.fromkeys(adapter.ranks, adapter.config["lora_alpha"] / adapter.config["r"])


def scale_by_tensor_rank(adapter: AdapterLayout) -> dict[str, float]:
    """Return ``lora_alpha`` divided by the rank of the module's own tensors."""
    return {name: adapter.config["lora_alpha"] / rank for name, rank in adapter.ranks.items()}


def vllm_refusal(adapter: AdapterLayout) -> str:
    """Say what vLLM does not accept; empty if it accepts the adapter."""
    if part := adapter.unsupported_part(known=("classifier", "score")):
        return part
    if max(adapter.ranks.values()) > VLLM_RANKS[-1]:
        return f"rank {max(adapter.ranks.values())}, above {VLLM_RANKS[-1]}"
    return ""


def sglang_refusal(adapter: AdapterLayout) -> str:
    """Say what SGLang does not accept; empty if it accepts the adapter."""
    if part := adapter.unsupported_part():
        return part
    r = adapter.config["r"]
    other_ranks = {name: rank for name, rank in adapter.ranks.items() if rank != r}
    if other_ranks:
        name = next(iter(other_ranks))
        return f"{len(other_ranks)} modules have another rank than r = {r}, e.g. {other_ranks[name]} at {name}"
    kinds = {name.rpartition(".")[2] for name in adapter.ranks}
    return "q_proj without v_proj" if "q_proj" in kinds and "v_proj" not in kinds else ""


def stacking_refusal(adapter: AdapterLayout) -> str:
    """Say what engines that stack the layers of one kind do not accept; empty if they accept the adapter."""
    different = len(set(adapter.ranks.values()))
    stacked = f"{different} different ranks: layers of one kind are stacked" if different > 1 else ""
    return adapter.unsupported_part() or stacked


@dataclass(frozen=True)
class Engine:
    """An engine, by its sources as of November 2026.

    ``scales`` returns the scale of each module of an adapter, ``refusal`` why the engine refuses it or ignores a part
    of it, empty if it does not.
    """

    name: str
    scales: Callable[[AdapterLayout], dict[str, float]]
    refusal: Callable[[AdapterLayout], str]


ENGINES = (
    Engine("PEFT 0.15 and later", scale_by_patterns, lambda adapter: ""),
    Engine("vLLM 0.32", scale_by_patterns, vllm_refusal),
    Engine("vLLM 0.31 and earlier", global_scale, vllm_refusal),
    Engine("SGLang 0.5", global_scale_without_rslora, sglang_refusal),
    Engine("TensorRT-LLM", scale_by_tensor_rank, AdapterLayout.unsupported_part),
    Engine("LoRAX, TGI", global_scale, stacking_refusal),
    Engine("llama.cpp, by its converter", scale_by_tensor_rank, AdapterLayout.unsupported_part),
    Engine("mlx-lm 0.32", global_scale_without_rslora, lambda adapter: FOREIGN),
)


def vllm_max_rank(rank: int) -> int:
    """Return the smallest ``--max-lora-rank`` that accepts this rank."""
    return next(allowed for allowed in VLLM_RANKS if allowed >= rank)


@dataclass(frozen=True)
class Server:
    """What an export for one engine looks like, and the command that serves it, if there is one.

    The base in it is a GGUF file if adapters are, and otherwise a folder or the name on a hub.
    """

    engine: Engine
    reads: Literal["peft", "gguf"] = "peft"
    padded_rank: Callable[[int], int] = int
    start: str = ""


_BY_NAME = {engine.name: engine for engine in ENGINES}

SERVERS: dict[EngineName, Server] = {
    "peft": Server(_BY_NAME["PEFT 0.15 and later"]),
    "vllm": Server(
        _BY_NAME["vLLM 0.32"],
        padded_rank=vllm_max_rank,
        start="vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules adapter={adapter}",
    ),
    "sglang": Server(
        _BY_NAME["SGLang 0.5"],
        start="python -m sglang.launch_server --model-path {base} --enable-lora --lora-paths adapter={adapter}",
    ),
    "tensorrt-llm": Server(_BY_NAME["TensorRT-LLM"]),
    "lorax": Server(_BY_NAME["LoRAX, TGI"]),
    "llama.cpp": Server(
        _BY_NAME["llama.cpp, by its converter"], reads="gguf", start="llama-server -m {base} --lora {adapter}"
    ),
}
"""Values of the argument ``engine`` of `tlora.export`."""
