"""Tiny models with routed experts, of the storage forms that transformers has, and what their experts read."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.helpers.models import tiny_batch
from tlora.calibration.calibrate import calibrate
from tlora.calibration.calibration import Calibration
from tlora.models.experts import is_expert, parameter_name

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


@cache
def routed(experts: int = 4) -> Calibration:
    """Of attention and experts of a tiny mixture, on three samples."""
    batch, select = tiny_batch("llama", lengths=(7, 4, 9)), ["attention", "experts"]
    return calibrate(tiny_mixture(experts=experts), [batch], target_modules=select, fisher=True, progress=False)


def upcycle(dense: PreTrainedModel, experts: int = 4, top_k: int = 2) -> PreTrainedModel:
    """A Llama as a Mixtral of equal experts, each its MLP; the router is random, and weights of a token add up to 1."""
    known = AutoConfig.for_model("mixtral")
    values = {key: value for key, value in dense.config.to_dict().items() if hasattr(known, key)}
    for key in ("model_type", "architectures", "transformers_version"):
        values.pop(key, None)
    values |= {"num_local_experts": experts, "num_experts_per_tok": top_k, "sliding_window": None}
    config = AutoConfig.for_model("mixtral", **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dense.dtype).eval()
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.mlp.gate.weight)
    weights = {name: parameter for name, parameter in dense.state_dict().items() if ".mlp." not in name}
    rest = model.load_state_dict(weights, strict=False)
    assert not rest.unexpected_keys
    assert all(".mlp." in name for name in rest.missing_keys)
    with torch.no_grad():
        for layer, source in zip(model.model.layers, dense.model.layers, strict=True):
            layer.mlp.experts.gate_up_proj.copy_(torch.cat([source.mlp.gate_proj.weight, source.mlp.up_proj.weight]))
            layer.mlp.experts.down_proj.copy_(source.mlp.down_proj.weight)
    return model


def check_pooled(mixture: Calibration, dense: Calibration, experts: int, top_k: int) -> None:
    """Compare sums over equal experts with the model that they come from.

    Each token counts once for each of its experts; gradients at their outputs have its weights, which add up to 1.
    """
    for name in filter(is_expert, mixture.names):
        parameter = parameter_name(name)
        members = [f"{parameter}[{expert}]" for expert in range(experts)]
        mlp = parameter.partition(".experts")[0]
        parts = ("gate_proj", "up_proj") if parameter.endswith("gate_up_proj") else ("down_proj",)
        sources = [f"{mlp}.{part}" for part in parts]
        moment = sum(mixture.covariance[member].second_moment().dense() for member in members)
        expected = top_k * dense.covariance[sources[0]].second_moment().dense()
        torch.testing.assert_close(moment, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        gradient = sum(mixture.gradient[member].dense() for member in members)
        expected = torch.cat([dense.gradient[source].dense() for source in sources])
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def experts_modules(model: PreTrainedModel) -> dict[str, Any]:
    """The modules that hold experts, by name."""
    return {name: module for name, module in model.named_modules() if name.endswith(".experts")}


def as_linear(matrix: Tensor, module: Any) -> Tensor:
    """An expert's matrix, or its gradient, as (d_out, d_in)."""
    return matrix.T if module.is_transposed else matrix
