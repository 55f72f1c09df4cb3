"""A LoRA adapter in double precision for each family, a task of three samples for it, and what the model computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model

import tlora
from tests.helpers.models import tiny_model, tiny_tokenizer

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj", "embed_tokens", "lm_head"],
    "gpt2": ["c_attn", "c_proj", "wte"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "t5": ["q", "v", "wo"],
    "bert": ["query", "output.dense"],
}
TASK_TYPES = {"t5": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS"}
SMOOTH: dict[str, Any] = {
    "gpt2": {"tie_word_embeddings": False},
    "t5": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
# The second sample of T5 reads as many tokens as it writes.
ROWS = [(4, "w8 w9 w10"), (5, "w6 w7 w11 w9"), (3, "w5")]


def task(family: str) -> tlora.Task:
    texts = [" ".join(f"w{4 + (n + 3 * i) % 7}" for i in range(length)) for n, (length, _) in enumerate(ROWS)]
    if family == "bert":
        rows = [{"text": text, "label": n % 2} for n, text in enumerate(texts)]
    else:
        rows = [{"prompt": text, "completion": answer} for text, (_, answer) in zip(texts, ROWS, strict=True)]
    architecture = {"bert": "classification", "t5": "seq2seq"}.get(family, "causal")
    return tlora.load_task({"test": Dataset.from_list(rows)}, tiny_tokenizer(), architecture=architecture)


def exact_norms(model: Any) -> Any:
    """The norms of Llama and T5 compute in single precision: in their place, those of torch."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ in ("LlamaRMSNorm", "T5LayerNorm"):
            norm = torch.nn.RMSNorm(len(module.weight), eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model


def adapter(family: str, base: Any = None, **changes: Any) -> PeftModel:
    """LoRA by PEFT alone in float64, B not zero, several ranks and scalings, and a head that was trained."""
    base = exact_norms(base or tiny_model(family, **SMOOTH.get(family, {})))
    values = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS[family], "init_lora_weights": False}
    values |= {"rank_pattern": {TARGETS[family][0]: 3}, "alpha_pattern": {r"1\..*": 3}, "use_rslora": True}
    values |= {"task_type": TASK_TYPES.get(family, "CAUSAL_LM"), "fan_in_fan_out": family == "gpt2"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(**values | changes)).double()
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
            elif "lora_" in name:
                parameter.data *= 1.0 if family == "gpt_neox" else 0.2
    return model


def values(model: Any, rows: tlora.Task, row: Any) -> np.ndarray:
    """Log-probability and log-odds of each answer token, (2, K), from all logits of the model."""
    batch = rows.collate([row])
    labels = batch["labels"]
    inputs = batch if rows.architecture == "seq2seq" else {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits.double()
    if rows.architecture == "classification":
        logits, labels = logits[:, None], labels[:, None]
    elif rows.architecture == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    p = logits.softmax(-1)[labels != -100]
    p = p.gather(1, labels[labels != -100][:, None])[:, 0].numpy()
    return np.stack([np.log(p), np.log(p) - np.log1p(-p)])


def layers(model: PeftModel) -> dict[str, Any]:
    return {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if hasattr(m, "lora_A")}
