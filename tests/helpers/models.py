"""Tiny models built from configs, and small masked batches for them: shared by all tests.

Every model has two blocks, a width of 32, an MLP of 48, a vocabulary of 64, float32 weights from a fixed
seed, and is in eval mode. Where the family has grouped queries, key heads are half as many as query heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tokenizers
import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 64
_DEPTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
_ALL_HEADS = _DEPTH | {"intermediate_size": 48}
ROPE = _ALL_HEADS | {"num_key_value_heads": 2}
_GEMMA = ROPE | {"head_dim": 8}
_ENCODER = _ALL_HEADS | {"max_position_embeddings": 80, "num_labels": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SPECIAL_ROBERTA = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}

# family -> (config class, model class, config values)
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", ROPE | SPECIAL),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", ROPE | SPECIAL),
    "mistral": ("MistralConfig", "MistralForCausalLM", ROPE | SPECIAL),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _GEMMA | SPECIAL),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _GEMMA | SPECIAL),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA | SPECIAL),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 64} | SPECIAL,
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _ALL_HEADS | SPECIAL),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {"word_embed_proj_dim": 32, "ffn_dim": 48} | _DEPTH | SPECIAL,
    ),
    "bert": ("BertConfig", "BertForSequenceClassification", _ENCODER | SPECIAL),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", _ENCODER | _SPECIAL_ROBERTA),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
        | {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
    ),
}
FAMILIES = tuple(_FAMILIES)
DECODERS = ("llama", "qwen2", "mistral", "gemma", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt")
ENCODERS = ("bert", "roberta")


def tiny_config(family: str, **config: Any) -> transformers.PretrainedConfig:
    """The config of a tiny model of the family, with values replaced by ``config``."""
    name, _, values = _FAMILIES[family]
    # The usual initialization (0.02) leaves attention almost uniform at this width; 0.2 makes it matter.
    defaults = {"vocab_size": VOCABULARY} | ({} if family == "t5" else {"initializer_range": 0.2})
    return getattr(transformers, name)(**(defaults | values | config))


def tiny_model(family: str, *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A tiny model in eval mode, float32; the same seed gives the same weights."""
    _, architecture, _ = _FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, architecture)(tiny_config(family, **config)).float().eval()
        for name, parameter in model.named_parameters():
            if name.endswith("pooler.dense.bias"):
                torch.nn.init.normal_(parameter, std=0.2)  # as trained: with zeros it would be taken for a new one
        return model


def tiny_batch(
    model: PreTrainedModel | str,
    lengths: Sequence[int] = (7, 4, 9),
    padding: str = "right",
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """A padded batch for a tiny model or family: samples of the given lengths in tokens.

    Labels are (B, T) for decoders, -100 at padding and in the first third of each sample (the prompt); (B,)
    for classifiers; (B, T + 1) for T5, whose decoder samples have the encoder samples' lengths in reverse,
    plus one.
    """
    config = tiny_config(model) if isinstance(model, str) else model.config
    kind = _kind(config, model)
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, config.vocab_size, (n,), generator=generator) for n in lengths]
    batch = {
        "input_ids": _pad(rows, config.pad_token_id, padding),
        "attention_mask": _pad([torch.ones_like(row) for row in rows], 0, padding),
    }
    if kind == "classification":
        return batch | {"labels": torch.arange(len(lengths)) % 2}
    if kind == "seq2seq":
        targets = [torch.randint(3, config.vocab_size, (n + 1,), generator=generator) for n in reversed(lengths)]
        return batch | {"labels": _pad(targets, -100, "right")}
    labels = [row.clone() for row in rows]
    for row in labels:
        row[: max(1, len(row) // 3)] = -100
    return batch | {"labels": _pad(labels, -100, padding)}


def tiny_tokenizer(**special: str | None) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of words ``w4`` to ``w63`` after four special tokens; ``pad_token=None`` leaves one out."""
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(4, VOCABULARY))]
    model = tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(names | special))


def singles(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The samples of a batch from `tiny_batch`, each as a batch of one without padding."""
    return [_single(batch, index) for index in range(len(batch["input_ids"]))]


def _single(batch: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    real = batch["attention_mask"][index].bool()
    labels = batch["labels"][index]
    if labels.ndim and batch["labels"].shape == batch["input_ids"].shape:
        labels = labels[real]
    elif labels.ndim:  # a decoder's own tokens
        labels = labels[labels != -100]
    values = {
        "input_ids": batch["input_ids"][index][real],
        "attention_mask": real[real].long(),
        "labels": labels,
    }
    return {key: value.unsqueeze(0) for key, value in values.items()}


def _kind(config: transformers.PretrainedConfig, model: PreTrainedModel | str) -> str:
    if config.is_encoder_decoder:
        return "seq2seq"
    name = _FAMILIES[model][1] if isinstance(model, str) else type(model).__name__
    return "classification" if "Classification" in name else "generation"


def _pad(rows: Sequence[torch.Tensor], value: int, padding: str) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=padding)
