"""Tiny models written as GGUF files the way llama.cpp's converter lays them out: names and row orders spelled out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tests.helpers.models import ROPE, SPECIAL, VOCABULARY, tiny_model
from tlora.adapters.lora_layers import adapter_layers

LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
QWEN3 = LLAMA | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GEMMA2 = LLAMA | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GEMMA3 = GEMMA2 | QWEN3 | {k: GEMMA2[k] for k in ("post_attention_layernorm",)}
PHI3 = LLAMA | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
NEOX = {
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
# family -> (general.architecture, names, modules for an adapter)
FAMILIES = {
    "llama": ("llama", LLAMA, ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]),
    "mistral": ("llama", LLAMA, ["q_proj", "k_proj", "up_proj"]),
    "smollm3": ("smollm3", LLAMA, ["q_proj", "k_proj", "v_proj", "gate_proj"]),
    "granite": ("granite", LLAMA, ["q_proj", "k_proj", "o_proj"]),
    "qwen2": ("qwen2", LLAMA, ["q_proj", "k_proj", "v_proj", "down_proj"]),
    "qwen3": ("qwen3", QWEN3, ["q_proj", "k_proj", "up_proj"]),
    "gemma": ("gemma", LLAMA, ["q_proj", "k_proj", "o_proj", "up_proj"]),
    "gemma2": ("gemma2", GEMMA2, ["q_proj", "k_proj", "o_proj", "gate_proj"]),
    "gemma3": ("gemma3", GEMMA3, ["q_proj", "k_proj", "v_proj", "down_proj"]),
    "phi3": ("phi3", PHI3, ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "gpt2": ("gpt2", GPT2, ["c_attn", "c_proj", "c_fc"]),
    "gpt_neox": ("gptneox", NEOX, ["query_key_value", "dense", "dense_4h_to_h"]),
}
_SIZES = ROPE | SPECIAL | {"vocab_size": VOCABULARY, "initializer_range": 0.2}
_MORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {"tie_word_embeddings": False}),
    "granite": (
        "GraniteConfig",
        "GraniteForCausalLM",
        {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.3},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {}),
}


def model_of(family: str) -> PreTrainedModel:
    """A tiny model in eval mode, float32."""
    if family not in _MORE:
        return tiny_model(family, **({"query_pre_attn_scalar": 8} if family in ("gemma2", "gemma3") else {}))
    config, architecture, values = _MORE[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, architecture)(getattr(transformers, config)(**_SIZES, **values)).float().eval()


def tensors_of(model: PreTrainedModel, family: str) -> dict[str, np.ndarray]:
    """The model's tensors under the names and in the order of its GGUF."""
    _, names, _ = FAMILIES[family]
    found = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = tensor.detach().numpy().astype(np.float32)
        module, _, kind = key.rpartition(".")
        name = gguf_name(module, names)
        if family == "gpt2" and name.split(".")[-1] in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"):
            array = array.T
        if family.startswith("gemma") and "norm" in name:
            array = array + 1
        found[f"{name}.{kind}"] = np.ascontiguousarray(array[row_order(name, len(array), model.config, family)])
    return found


def gguf_name(module: str, names: dict[str, str]) -> str:
    """``blk.N.`` and the part's name, by the table."""
    parts = module.split(".")
    layer = next((part for part in parts if part.isdecimal()), None)
    if layer is None:
        return names[module]
    return f"blk.{layer}.{names['.'.join(parts[parts.index(layer) + 1 :])]}"


def row_order(name: str, rows: int, config: Any, family: str) -> list[int]:
    """The row of transformers that stands at each row of the GGUF, counted one by one."""
    part = name.split(".")[-1]
    if family in ("llama", "mistral", "smollm3", "granite") and part in ("attn_q", "attn_k"):
        heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
        size = rows // heads
        return [h * size + half * (size // 2) + i for h in range(heads) for i in range(size // 2) for half in (0, 1)]
    if family == "gpt_neox" and part == "attn_qkv":
        heads = config.num_attention_heads
        size = rows // heads // 3
        return [(h * 3 + which) * size + i for which in range(3) for h in range(heads) for i in range(size)]
    return list(range(rows))


def write_model(path: Path, model: PreTrainedModel, family: str, tensors: dict[str, np.ndarray]) -> None:
    """A GGUF that llama.cpp and transformers load."""
    architecture, _, _ = FAMILIES[family]
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")  # llama.cpp looks for words in names
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(48 if family == "gpt2" else config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(0)
    _add_norms_and_rotation(writer, config, family, head)
    _add_vocabulary(writer)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_norms_and_rotation(writer: gguf.GGUFWriter, config: Any, family: str, head: int) -> None:
    epsilon = next(
        getattr(config, n) for n in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") if n in vars(config)
    )
    if family in ("gpt2", "gpt_neox"):
        writer.add_layer_norm_eps(epsilon)
    else:
        writer.add_layer_norm_rms_eps(epsilon)
    if family != "gpt2":
        rope = getattr(config, "rope_parameters", None) or {}
        rope = rope.get("full_attention", rope)
        writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
        writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    if family == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)
    if family.startswith("gemma") or family == "qwen3":
        writer.add_key_length(head)
        writer.add_value_length(head)
    if family in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if family == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.max_position_embeddings)
        writer.add_sliding_window(0)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([chr(ord("0") + n) for n in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["0 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def adapted_of(family: str, **changes) -> PeftModel:
    """An adapter whose ranks and scalings differ by layer, B not zero."""
    config = {"r": 3, "lora_alpha": 5, "target_modules": FAMILIES[family][2], "task_type": "CAUSAL_LM"}
    config |= {
        "rank_pattern": {r".*\.0\..*": 2},
        "alpha_pattern": {r".*\.0\..*": 9},
        "fan_in_fan_out": family == "gpt2",
    }
    model = get_peft_model(model_of(family), LoraConfig(**config | changes))
    generator = torch.Generator().manual_seed(0)
    for layer in adapter_layers(model).values():
        for part in (layer.lora_A, layer.lora_B):
            part["default"].weight.data.normal_(0, 0.3, generator=generator)
    return model.eval()
