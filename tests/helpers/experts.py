"""Tiny models with routed experts, of the storage forms that transformers has, and what their experts read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

FAMILIES = ("qwen3_moe", "mixtral", "olmoe", "granitemoe", "deepseek_v3", "gpt_oss")
"""Halves, or with gpt-oss transposed, interleaved and with biases."""

_SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "moe_intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0,
    "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "pad_token_id": 0, "max_position_embeddings": 64,
    "sliding_window": 32, "output_router_logits": False, "norm_topk_prob": True,
}  # fmt: skip


def tiny_mixture(family: str = "qwen3_moe", top_k: int = 2, experts: int = 4, **config: Any) -> PreTrainedModel:
    """A tiny random model with experts in each of two blocks, float32 and in evaluation mode."""
    known = AutoConfig.for_model(family)
    sizes = _SIZES | dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), experts)
    values = {key: value for key, value in sizes.items() if hasattr(known, key)} | {"num_experts_per_tok": top_k}
    if family == "deepseek_v3":
        values |= {"num_key_value_heads": 4}
        values.pop("head_dim", None)
    if family == "gpt_oss":
        values["layer_types"] = ["full_attention"] * 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values | config)).float().eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim == 3 else 0.2)
    return model


def experts_modules(model: PreTrainedModel) -> dict[str, Any]:
    """The modules that hold experts, by name."""
    return {name: module for name, module in model.named_modules() if name.endswith(".experts")}


def as_linear(matrix: Tensor, module: Any) -> Tensor:
    """An expert's matrix, or its gradient, as (d_out, d_in)."""
    return matrix.T if module.is_transposed else matrix
