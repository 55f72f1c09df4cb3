"""Every family of language models that transformers has, tiny and random, and calibration's numbers for it by autograd.

``python -m tests.helpers.families [FAMILY ...]`` prints what becomes of each family, head and padding.
"""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import tlora

HEADS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "sequence-to-sequence": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "image-text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
}
VOCABULARY = 64

_SIZES: tuple[tuple[str, int], ...] = (
    (r"n_group|topk_group|num_hidden_groups|mamba_n_groups|n_groups|pretraining_tp", 1),
    (r".*(vocab_size|num_embeddings|codebook_size).*", VOCABULARY),
    (r"(pad|unk)_(token_id|index)", 0),
    (r"(bos|cls)_(token_id|index)", 1),
    (r".*(eos|sep|decoder_start)_(token_id|index)", 2),
    (r".*_(token_)?(id|index)", 60),
    (r"(max_)?(image|resolution|crop|input|resample).*size|image_size", 32),
    (r"patch_size|spatial_patch_size", 8),
    (r".*(max_)?.*(position_embeddings|positions)|n_ctx|max_seq_len", 80),
    (r".*(key_value_heads|kv_heads)", 2),
    (r".*(num|n|attention)_.*heads|(num|n|attention)_?heads?", 4),
    (r".*(num|n|encoder|decoder)_.*layers|(num|n)_?layers?|layers|depth|.*_depth", 2),
    (r".*(num|n)_.*experts?|zero_expert_num", 4),
    (r".*(per_tok|topk|top_k|moe_k)", 2),
    (r".*(head_dim|rotary_dim|dim_head|d_kv|d_head|head_size|lora_rank)", 8),
    (r".*(inter|ffn|ff|inner|mlp_dim|d_ff|feed_forward).*", 48),
    (r".*(hidden|d_model|embd|embed|width|channels|_dim|dim|latent|size).*", 32),
)
"""Names of a config's numbers, as regular expressions, and what the first that matches makes of a larger one."""

_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
_TINY: dict[str, dict[str, Any]] = {
    "apertus1p5": {"image_token_offset": 0, "audio_token_offset": 32},
    "apertus1p5_text": {"vocab_size": 96},
    "apertus1p5_vision_tokenizer": {"codebook_size": 32},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3]},
    "canine": {"num_hash_buckets": 64, "local_transformer_stride": 4},
    "chameleon": {"vocabulary_map": {"<image>": 60}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "cosmos3_edge_text": _MROPE,
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "deepseek_v2": {"topk_group": 1, "n_group": 1, "num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48},
    "dory": {
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dots3_note_text": {"per_layer_config": {}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "emu3": {"vocabulary_map": {"<image>": 60, "<|extra_200|>": 61}},
    "esm": {"vocab_size": 64},
    "florence_vision": {"embed_dim": (8, 8, 16, 16), "num_heads": (2, 2, 2, 2), "num_groups": (2, 2, 2, 2)},
    "glm4v_text": _MROPE,
    "glm4v_moe_text": {"rope_parameters": _MROPE["rope_parameters"] | {"mrope_section": [1, 1, 0]}},
    "glm5_next_text": {"index_topk": 16, "index_kpool": 2},
    "glm_ocr_text": _MROPE,
    "gemma3n_text": {"intermediate_size": 48},
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {"deepstack_layer_map": [], "spatial_target_layers": []},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl_text": {"head_dim": 8, "rope_parameters": _MROPE["rope_parameters"] | {"mrope_section": [1] * 4}},
    "hy_v4": _MROPE,
    "hy_v4_vl_text": _MROPE,
    "inkling_vision": {"patch_size": 4, "num_hidden_layers": 2},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "led": {"attention_window": 4},
    "lilt": {"hidden_size": 48},
    "longcat_flash": {"qk_head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 16},
    "markuplm": {"tag_pad_id": 30, "subs_pad_id": 30},
    "ministral": {"head_dim": 8},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "muse_spark_audio": {"hidden_sizes": (8, 8), "depths": (1, 1), "patch_sizes": (16, 6)},
    "nemotron": {"num_key_value_heads": 2},
    "neomme": {"head_dim": 16},
    "paddleocr_vl_text": _MROPE,
    "qwen2_vl_text": _MROPE,
    "qwen2_5_vl_text": _MROPE,
    "qwen2_5_omni_text": _MROPE,
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "qwen2_5_omni_thinker": {"vision_start_token_id": 60},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 60},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 10)},
    "rwkv": {"use_cache": False},
    "step3p5": {"sliding_window": 8},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 3200},
    "xlstm": {"use_cache": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
    },
}
"""What else the config of a model type needs to be a tiny one that can be built."""

NOT_BUILT: dict[tuple[str, str], str] = {
    ("causal", "dbrx"): "transformers asks its config for rope_theta, which it lacks",
    ("causal", "dots3_note"): "its widths differ from layer to layer and are checked against each other",
    ("causal", "gemma3n"): "needs timm",
    ("causal", "gemma4_assistant"): "an assistant reads the cache of another model",
    ("sequence-to-sequence", "vibevoice_asr"): "its sound encoder has 687 million parameters, whatever the width",
    ("classification", "layoutlmv2"): "needs detectron2",
    ("image-text", "dots3_note"): "its widths differ from layer to layer and are checked against each other",
    ("image-text", "ernie4_5_vl_moe"): "its experts are of two sizes, of which the second is given layer by layer",
    ("image-text", "evolla"): "its protein encoder has 677 million parameters, whatever the width",
    ("image-text", "fast_vlm"): "needs timm",
    ("image-text", "granite4_vision"): "its vision encoder is at least 64 wide for each head",
    ("image-text", "perception_lm"): "needs timm",
    ("image-text", "pi0"): "a robot's policy: it predicts actions, from 2.9 billion parameters whatever the width",
}
"""Heads and families that no tiny random model is built of, and why."""

LENGTHS, WRITTEN = (7, 4, 9, 7), (5, 9, 8, 6)
"""Tokens of each sample, and of what an encoder-decoder writes for it: in a batch as wide as what it reads."""

PADDINGS: dict[str, tuple[Sequence[Sequence[int]], str]] = {
    "right": (((0, 1, 2),), "right"),
    "left": (((0, 1, 2),), "left"),
    "alone": (((0,), (1,), (2,)), "right"),
    "pair": (((0, 3),), "right"),
}
"""Which samples are in which batches, and where these are padded."""


def cases() -> Iterator[tuple[str, str]]:
    """Every head and family, each class of models once."""
    seen = set()
    for head, classes in HEADS.items():
        for family in classes:
            if (name := _class(head, family)) not in seen:
                yield head, family
            seen.add(name)


def _class(head: str, family: str) -> str:
    name = HEADS[head][family]
    return name if isinstance(name, str) else name[0]


def tiny_config(cls: type[PretrainedConfig], **given: Any) -> PretrainedConfig:
    """A config of a few layers, 32 wide, or as near to that as the family has it."""
    values = given | _numbers(cls) | _TINY.get(cls.model_type, {})
    for name, spec in getattr(cls, "sub_configs_defaults", {}).items():  # transformers 5.17 knows none
        if not spec.optional and name not in values:
            is_any = spec.config_class is transformers.AutoConfig
            sub = CONFIG_MAPPING[spec.model_type] if is_any else spec.config_class
            values[name] = tiny_config(sub, **spec.init_kwargs)
    return cls(**values)


def _numbers(cls: type[PretrainedConfig]) -> dict[str, Any]:
    """The config's whole numbers, made small, and what it says layer by layer, of one layer of each kind."""
    default = vars(cls())
    found = {
        field.name: default.get(cls.attribute_map.get(field.name, field.name), field.default)
        for field in fields(cls)
        if not isinstance(field.default, str)
    }
    small = {key: min(value, _small(key, value)) for key, value in found.items() if type(value) is int}
    if found.get("num_key_value_heads") == found.get("num_attention_heads") and "num_attention_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    depth = found.get("num_hidden_layers")
    by_layer = {key: value for key, value in found.items() if isinstance(value, list | tuple) and len(value) == depth}
    by_layer = {key: value for key, value in by_layer.items() if len(set(map(str, value))) < depth}
    if by_layer:
        kinds = list(zip(*by_layer.values(), strict=True))
        layers = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
        layers = sorted({*layers, 1}) if len(layers) == 1 else layers
        small |= {key: [value[n] for n in layers] for key, value in by_layer.items()}
        small["num_hidden_layers"] = len(layers)
    return small


def _small(name: str, default: int) -> int:
    return next((value for pattern, value in _SIZES if re.fullmatch(pattern, name)), default)


def tiny_model(head: str, family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model in float32 and evaluation mode."""
    cls = getattr(transformers, _class(head, family))
    config = tiny_config(CONFIG_MAPPING[family])
    if family == "encoder-decoder":
        parts = (tiny_config(CONFIG_MAPPING[part]) for part in ("bert", "gpt2"))
        config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    if not isinstance(config, cls.config_class):
        subs = [getattr(config, name) for name in config.sub_configs]
        own = (sub for sub in subs if isinstance(sub, cls.config_class))
        config = next(own, None) or tiny_config(cls.config_class)
    if head == "causal" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    if head == "classification":
        config.num_labels = 3
    for key, value in {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}.items():
        if getattr(config, key, None) not in range(VOCABULARY):
            setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config).float().eval()
        for parameter in model.parameters():
            # what is initialized narrowly leaves attention uniform, and some is not initialized at all
            known = torch.where(parameter.data.abs() < 100, parameter.data, 0)
            parameter.data = known + torch.randn_like(known) * (0.2 if parameter.ndim > 1 else 0.05)
    for module in model.modules():  # as in training: with a cache a decoder may leave its mask out
        if getattr(part := getattr(module, "config", None), "use_cache", False):
            part.use_cache = False
    return model


def samples(model: PreTrainedModel, head: str) -> list[dict[str, Tensor]]:
    """Samples of several lengths, each as a batch of one without padding; some of their labels are -100."""
    generator = torch.Generator().manual_seed(0)
    made, end = [], model.config.eos_token_id
    for n, length in enumerate(LENGTHS):
        ids = torch.randint(5, 55, (1, length), generator=generator)
        if head == "classification":
            labels = torch.tensor([n % 3])
            ids[:, -1] = end  # by which encoder-decoders find the end
        elif model.config.is_encoder_decoder:
            labels = torch.randint(5, 55, (1, WRITTEN[n]), generator=generator)
        else:
            labels = ids.clone()
            labels[:, : length // 3] = -100
        if n == 2 and labels.ndim == 2:
            labels[:, 5] = -100
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


def padded(rows: Sequence[dict[str, Tensor]], side: str, token: int) -> dict[str, Tensor]:
    """One batch of the samples; the labels of an encoder-decoder's own decoder are padded on the right."""
    fill = {"input_ids": token, "attention_mask": 0, "labels": -100}
    return {
        key: torch.cat([row[key] for row in rows])
        if rows[0][key].ndim == 1
        else pad_sequence(
            [row[key][0] for row in rows],
            batch_first=True,
            padding_value=value,
            padding_side=side if rows[0][key].shape == rows[0]["input_ids"].shape else "right",
        )
        for key, value in fill.items()
    }


@dataclass
class Expected:
    """Of one sample, by module name: ``Xc^T Xc`` over its tokens, and ``mean |W * dL/dW|``."""

    covariance: dict[str, Tensor]
    score: dict[str, float]


def by_autograd(model: PreTrainedModel, sample: dict[str, Tensor], names: Sequence[str]) -> Expected:
    """The definition, from the model's own loss on the sample alone."""
    weights = {name: nn.Parameter(model.get_submodule(name).weight.detach().clone()) for name in names}
    inputs: dict[str, list[Tensor]] = defaultdict(list)

    def read(name: str) -> Any:
        return lambda module, args, kwargs: inputs[name].append((args or tuple(kwargs.values()))[0].detach().clone())

    model.requires_grad_(False)
    with contextlib.ExitStack() as undo:
        for name, weight in weights.items():  # a weight that modules share is each one's own, as their adapters are
            module = model.get_submodule(name)
            undo.callback(setattr, module, "weight", module.weight)
            module.weight = weight
            undo.callback(module.register_forward_pre_hook(read(name), with_kwargs=True).remove)
        loss = model(**sample).loss
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    score = {
        name: 0.0 if gradient is None else float((weight * gradient).abs().mean())
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
    return Expected({name: _scatter(inputs[name], sample, model) for name in names}, score)


def _scatter(inputs: list[Tensor], sample: dict[str, Tensor], model: PreTrainedModel) -> Tensor:
    labels = sample["labels"]
    if model.config.is_encoder_decoder and labels.ndim == 2:  # the decoder's own tokens are those with a label
        inputs = [x[:, labels[0] != -100] if x.shape[:2] == labels.shape else x for x in inputs]
    x = torch.cat([x.flatten(0, -2) for x in inputs]).double()
    x = x - x.mean(0)
    return x.T @ x


def batches(model: PreTrainedModel, head: str, padding: str) -> list[dict[str, Tensor]]:
    """The samples of the family in the batches of a padding."""
    rows, (groups, side) = samples(model, head), PADDINGS[padding]
    token = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    return [padded([rows[n] for n in group], side, token) for group in groups]


@dataclass
class Outcome:
    """What calibration made of a model: ``exact``, ``refused`` in a sentence, ``wrong``, or a ``foreign`` error."""

    kind: str
    words: str


def judge(head: str, family: str, paddings: Sequence[str] = tuple(PADDINGS)) -> dict[str, Outcome]:
    """What becomes of the family's calibration, padding by padding."""
    model = tiny_model(head, family)
    rows = samples(model, head)
    known: dict[int, Expected] = {}
    outcomes = {}
    for padding in paddings:
        groups = PADDINGS[padding][0]
        try:
            found = tlora.calibrate(model, batches(model, head, padding), progress=False)
        except Exception as error:
            outcomes[padding] = _refusal(error)
            continue
        try:
            for n in {n for group in groups for n in group} - set(known):
                known[n] = by_autograd(model, rows[n], found.names)
        except Exception as error:
            outcomes[padding] = Outcome("wrong", f"calibrated, and there is no loss: {type(error).__name__}: {error}")
            continue
        outcomes[padding] = _compared(found, [known[n] for group in groups for n in group])
    return outcomes


def _refusal(error: Exception) -> Outcome:
    words, place = str(error), traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(tlora.__file__).parent in Path(place.filename).parents
    sentence = (
        isinstance(error, (TypeError, ValueError, RuntimeError)) and len(words) < 600
    )  # with a list of modules to copy
    if ours and sentence and not re.search(r"\n|[.!?] [A-Z]", words):
        return Outcome("refused", words)
    return Outcome("foreign", f"{type(error).__name__} at {place.filename}:{place.lineno}: {words}")


def _compared(found: tlora.Calibration, expected: list[Expected]) -> Outcome:
    off: dict[str, float] = {}
    largest = max(max(each.score.values()) for each in expected)
    for name in found.names:
        covariance = sum(each.covariance[name] for each in expected) / len(expected)
        score = sum(each.score[name] for each in expected) / len(expected)
        error = found.covariance[name].dense().double() - covariance
        off[f"covariance of {name}"] = float(error.norm() / covariance.norm())
        off[f"score of {name}"] = abs(found.sensitivity.scores[name] - score) / max(score, 1e-6 * largest)
    worst = max(off, key=lambda key: off[key] if off[key] == off[key] else float("inf"))
    wrong = sum(not value < 1e-3 for value in off.values())
    if wrong:
        return Outcome("wrong", f"{worst} is off by {off[worst]:.2g}, and {wrong - 1} others of {len(off)}")
    return Outcome("exact", f"{len(found.names)} modules")


def main(families: Sequence[str]) -> None:
    """Print the table of these families, or of all."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    counts: Counter[str] = Counter()
    for head, family in cases():
        if families and family not in families:
            continue
        why = NOT_BUILT.get((head, family))
        outcomes = judge(head, family) if why is None else {"all": Outcome("not built", why)}
        counts.update(outcome.kind for outcome in outcomes.values())
        kinds = {re.sub(r"\d+", "", f"{outcome.kind} {outcome.words}") for outcome in outcomes.values()}
        for padding, outcome in list(outcomes.items())[: 1 if len(kinds) == 1 else None]:
            which = "all" if len(kinds) == 1 else padding
            print(f"{head:21}{family:26}{which:7}{outcome.kind:10}{' '.join(outcome.words.split())}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))


if __name__ == "__main__":
    main(sys.argv[1:])
