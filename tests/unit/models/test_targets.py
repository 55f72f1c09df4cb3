"""Target modules are found by structure, for every family, and nothing else is."""

import copy
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

import tlora
from tests.helpers import families
from tests.helpers.models import tiny_batch, tiny_config, tiny_model, tiny_tokenizer
from tests.helpers.quantized import QuantLinear
from tlora.adapters.lora_layers import adapter_layers
from tlora.models.targets import head_modules, target_modules

LLAMA_LIKE = [
    *((f"self_attn.{p}_proj", f"{p}_proj", "attention") for p in "qkvo"),
    *((f"mlp.{p}_proj", f"{p}_proj", "mlp") for p in ("gate", "up", "down")),
]
BERT_LIKE = [
    *((f"attention.self.{p}", p, "attention") for p in ("query", "key", "value")),
    ("attention.output.dense", "attention.output.dense", "attention"),
    ("intermediate.dense", "intermediate.dense", "mlp"),
    ("output.dense", "output.dense", "mlp"),
]
# family -> (block, [(path in the block, projection, part)]), in the order of the architecture's modules
EXPECTED = {
    **dict.fromkeys(("llama", "qwen2", "mistral", "gemma", "gemma2", "gemma3"), ("model.layers", LLAMA_LIKE)),
    "gpt2": (
        "transformer.h",
        [
            ("attn.c_attn", "c_attn", "attention"),
            ("attn.c_proj", "attn.c_proj", "attention"),
            ("mlp.c_fc", "c_fc", "mlp"),
            ("mlp.c_proj", "mlp.c_proj", "mlp"),
        ],
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        [
            ("attention.query_key_value", "query_key_value", "attention"),
            ("attention.dense", "dense", "attention"),
            ("mlp.dense_h_to_4h", "dense_h_to_4h", "mlp"),
            ("mlp.dense_4h_to_h", "dense_4h_to_h", "mlp"),
        ],
    ),
    "opt": (
        "model.decoder.layers",
        [
            *((f"self_attn.{p}_proj", f"{p}_proj", "attention") for p in ("k", "v", "q", "out")),
            ("fc1", "fc1", "mlp"),
            ("fc2", "fc2", "mlp"),
        ],
    ),
    "bert": ("bert.encoder.layer", BERT_LIKE),
    "roberta": ("roberta.encoder.layer", BERT_LIKE),
}
MOE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


@pytest.mark.parametrize("family", EXPECTED)
def test_names_layers_projections_and_parts(family, caplog):
    block, inner = EXPECTED[family]
    expected = [
        (f"{block}.{layer}.{path}", layer, projection, part, "")
        for layer in range(2)
        for path, projection, part in inner
    ]
    found = target_modules(tiny_model(family))
    assert not caplog.records
    assert [(t.name, t.layer, t.projection, t.part, t.stack) for t in found.values()] == expected
    assert list(found) == [t.name for t in found.values()]


def test_t5_keeps_its_stacks_apart():
    found = target_modules(tiny_model("t5"))
    attention = [f"SelfAttention.{p}" for p in "qkvo"]
    crossing = [f"EncDecAttention.{p}" for p in "qkvo"]
    encoder = [f"encoder.{p}" for p in ("q", "k", "v", "o", "wi", "wo")]
    decoder = [f"decoder.{p}" for p in (*attention, *crossing, "wi", "wo")]
    assert [(t.stack, t.layer, t.projection) for t in found.values()] == [
        *(("encoder", layer, projection) for layer in range(2) for projection in encoder),
        *(("decoder", layer, projection) for layer in range(2) for projection in decoder),
    ]
    assert len(target_modules(tiny_model("t5"), ["q"])) == 6


def test_llama_2_7b_has_the_published_counts():
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=32))
    found = target_modules(model)
    sizes = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (4096, 4096)),
        **dict.fromkeys(("gate_proj", "up_proj"), (11008, 4096)),
        "down_proj": (4096, 11008),
    }
    assert len(found) == 224
    assert [t.layer for t in found.values()] == [layer for layer in range(32) for _ in range(7)]
    assert all((t.d_out, t.d_in) == sizes[t.projection] for t in found.values())
    assert 32 * sum(t.d_out + t.d_in for t in found.values()) == 79_953_920
    assert 32 * sum(t.d_out for t in found.values()) == 43_515_904


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("T5ForSequenceClassification", "classification_head"),
        ("LlamaForSequenceClassification", "score"),
        ("BertForSequenceClassification", "classifier"),
        ("DistilBertForSequenceClassification", "pre_classifier classifier"),
        ("XLNetForSequenceClassification", "sequence_summary logits_proj"),
        ("BertModel", ""),
        ("T5ForConditionalGeneration", ""),
    ],
)
def test_heads_are_what_stands_outside_the_base_model(name, head):
    architecture = getattr(transformers, name)
    with torch.device("meta"):
        model = architecture(architecture.config_class())
    assert head_modules(model) == head.split()
    heads = tuple(head.split()) or ("lm_head", "cls")
    assert not any(target.startswith(heads) for target in target_modules(model))


class ManyHeads(nn.Module):
    """A classifier with its heads in a list, as blocks are."""

    base_model_prefix = "base"

    def __init__(self):
        super().__init__()
        self.base = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"up": nn.Linear(4, 4)})])})
        self.heads = nn.ModuleList([nn.ModuleDict({"out": nn.Linear(4, 2)})])


def test_a_list_of_heads_is_no_list_of_blocks():
    assert head_modules(ManyHeads()) == ["heads"]
    assert list(target_modules(ManyHeads())) == ["base.layers.0.up"]


def test_mixtral_leaves_router_and_experts_and_says_so(caplog):
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**MOE, num_local_experts=4))
    with caplog.at_level(logging.WARNING, logger="tlora"):
        found = target_modules(model)
    assert {t.projection for t in found.values()} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    (record,) = caplog.records
    assert "4 weights of routed experts" in record.message  # two stacked tensors in each of two blocks
    assert "model.layers.0.mlp.experts.gate_up_proj" in record.message


QWEN_MOE = transformers.Qwen2MoeConfig(**MOE, num_experts=4)


@pytest.mark.parametrize("family", ["deepseek_v3", "hunyuan_v1_moe"])
def test_what_peft_takes_for_a_routed_expert_is_left_out(family, caplog):
    """Shared experts and dense layers have the names that routed experts had, and PEFT adapts these instead."""
    model = families.tiny_model("causal", family)
    found = target_modules(model)
    assert {t.part for t in found.values()} == {"attention"}
    assert re.search(r"layers \(e\.g\. model\.layers\.\S+gate_proj\) are not target modules", caplog.text)
    with pytest.raises(ValueError, match="PEFT would adapt the routed experts instead"):
        target_modules(model, ["gate_proj"])
    scores = tlora.calibrate(model, [tiny_batch("llama")], progress=False).sensitivity
    assert set(adapter_layers(tlora.attach(model, None, tlora.allocate(scores, 2)))) == set(found)


class Routed(nn.Module):
    """Experts as linear layers of their own, with a linear router, as older checkpoints have them."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.ModuleDict({"w1": nn.Linear(8, 8)}) for _ in range(4))
        self.router = nn.ModuleDict({"classifier": nn.Linear(8, 4)})
        self.dense = nn.Linear(8, 8)


def test_routers_and_experts_of_linear_layers_are_left_out(caplog):
    found = target_modules(nn.ModuleDict({"layers": nn.ModuleList([Routed()])}))
    assert list(found) == ["layers.0.dense"]
    assert "4 weights of routed experts (e.g. layers.0.experts.0.w1)" in caplog.text


class Gated(nn.Module):
    """Gates that choose no expert."""

    def __init__(self):
        super().__init__()
        self.gate, self.out_gate, self.wg = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.attn = nn.ModuleDict({"g_proj": nn.Linear(8, 8), "gate": nn.ModuleDict({"proj": nn.Linear(8, 8)})})


def test_gates_without_experts_are_projections():
    names = [f"layers.0.{name}" for name in ("gate", "out_gate", "wg", "attn.g_proj", "attn.gate.proj")]
    assert list(target_modules(nn.ModuleDict({"layers": nn.ModuleList([Gated()])}))) == names


def test_what_reads_images_is_left_out():
    config = transformers.Gemma3Config(
        text_config=tiny_config("gemma3").to_dict(),
        vision_config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28},
    )
    with torch.device("meta"):
        model = transformers.Gemma3ForConditionalGeneration(config)
    found = target_modules(model)
    assert len(found) == 14
    assert all(name.startswith("model.language_model.layers.") for name in found)


def test_quantized_layers_are_found_by_class_with_their_true_size():
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj = QuantLinear(48, 32)
    target = target_modules(model)["model.layers.1.mlp.down_proj"]
    assert (target.d_out, target.d_in) == (32, 48)


@pytest.mark.parametrize(
    ("select", "count"),
    [
        (None, 14),
        ("attention", 8),
        ("mlp", 6),
        (["q_proj"], 2),
        (["model.layers.1.self_attn.q_proj"], 1),
        (iter(["v_proj", "v_proj"]), 2),
        (r"model\.layers\.1\..*", 7),
        (r".*(q|v)_proj", 4),
    ],
)
def test_selections(select, count):
    model = tiny_model("llama")
    every = target_modules(model)
    found = target_modules(model, select)
    assert len(found) == count
    assert list(found) == [name for name in every if name in found], "model order"
    assert all(found[name] == every[name] for name in found)


@pytest.mark.parametrize("select", [["self_attn.o_proj"], r".*\.(0|1)\.mlp\.\w+_proj"])
def test_names_and_patterns_mean_what_they_mean_in_peft(select):
    model = tiny_model("llama")
    config = peft.LoraConfig(target_modules=select)
    expected = [name for name, _ in model.named_modules() if check_target_module_exists(config, name)]
    assert list(target_modules(model, select)) == expected


@pytest.mark.parametrize(
    ("family", "select", "named"),
    [
        ("llama", [], "nothing"),
        ("llama", ["q_porj"], "'q_porj' .* q_proj, k_proj"),
        ("llama", ["q_proj", "nonsense"], "'nonsense'"),
        ("llama", ["q_proj", "lm_head"], "output head"),
        ("llama", ["embed_tokens"], "'model.embed_tokens' is an embedding"),
        ("llama", ["norm"], "LlamaRMSNorm"),
        ("llama", "q_proj", "regular expression"),
        ("roberta", ["classifier.out_proj"], "classification head"),
        ("bert", ["pooler.dense"], r"'bert\.pooler\.dense' is a Linear outside the blocks"),
        ("qwen2_moe", ["shared_expert_gate"], "a router"),
    ],
)
def test_a_selection_of_nothing_is_refused(family, select, named):
    moe = family == "qwen2_moe"
    model = transformers.Qwen2MoeForCausalLM(QWEN_MOE) if moe else tiny_model(family)
    with pytest.raises(ValueError, match=named):
        target_modules(model, select)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_called_so(tied):
    model = tiny_model("llama", tie_word_embeddings=tied)
    with pytest.raises(ValueError, match="lm_head") as error:
        target_modules(model, ["lm_head"])
    assert ("tied to the embeddings" in str(error.value)) == tied


PROMPT = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("model", "error", "named"),
    [
        ("smollm2-135m", TypeError, r"tlora\.load_model\('smollm2-135m'\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), ValueError, "Sequential"),
        (lambda: torch.compile(tiny_model("llama")), ValueError, r"model\._orig_mod"),
        (lambda: nn.DataParallel(tiny_model("llama")), ValueError, r"model\.module"),
        (lambda: peft.get_peft_model(tiny_model("llama"), PROMPT), ValueError, "already has an adapter"),
    ],
)
def test_a_model_without_modules_to_adapt_is_refused(model, error, named):
    with pytest.raises(error, match=named):
        target_modules(model() if callable(model) and not isinstance(model, nn.Module) else model)


def test_a_model_with_an_adapter_is_refused_until_it_is_taken_off():
    base = tiny_model("llama")
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"]))
    for model in (adapted, base):
        with pytest.raises(ValueError, match=r"tlora\.detach\(model\)"):
            target_modules(model)
    tlora.detach(base)
    assert len(target_modules(base)) == 14


class AttentionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.up = nn.Linear(4, 4), nn.Linear(4, 8)


def test_a_block_that_is_called_attention_still_has_an_mlp():
    found = target_modules(nn.ModuleDict({"h": nn.ModuleList([AttentionBlock()])}))
    assert [t.part for t in found.values()] == ["attention", "mlp"]


@pytest.mark.parametrize("form", [iter, set, np.array])
def test_target_modules_come_in_any_iterable(form: Any) -> None:
    names, model = ["v_proj", "q_proj"], tiny_model("llama")
    found = tlora.calibrate(model, [tiny_batch("llama")], target_modules=form(names), progress=False)
    assert {name.rpartition(".")[2] for name in found.names} == set(names)
    assert sorted(found.meta.recipe["target_modules"]) == sorted(names)
    assert list(target_modules(model, form(names))) == found.names
    estimate = tlora.estimate(tiny_config("llama"), target_modules=form(names), length=8)
    assert list(estimate.shapes) == found.names


class _Heads(nn.Module):
    """A language model with several output heads in a list, as models that predict several tokens have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(4, 4)})])
        self.heads = nn.ModuleList([nn.Linear(4, 9)])

    def get_output_embeddings(self) -> nn.Module:
        return self.heads[0]


def test_an_output_head_in_a_list_is_no_target() -> None:
    assert list(target_modules(_Heads())) == ["layers.0.up"]
    with pytest.raises(ValueError, match=r"'heads\.0' .*output head"):
        target_modules(_Heads(), ["heads.0"])


def test_the_pooler_that_a_checkpoint_lacks_is_trained_in_a_copy_of_the_model_too(tmp_path: Path) -> None:
    transformers.BertForMaskedLM(tiny_config("bert")).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, _ = tlora.load_model(tmp_path)
    assert head_modules(model) == ["bert.pooler.dense", "classifier"]
    assert head_modules(copy.deepcopy(model)) == ["bert.pooler", "classifier"]
