"""An exported adapter computes the same in PEFT and in a server that knows one global alpha / r."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

import tlora
from tests.helpers.adapted import logits, prepare, step, train_once
from tests.helpers.foreign import BATCH, experts, foreign, tied
from tests.helpers.models import tiny_batch, tiny_model, tiny_tokenizer
from tlora.adapters.lora_layers import adapter_layers
from tlora.serving.verify import export_difference


def served_with_one_scale(family, folder):
    """What an engine computes that reads one global alpha / r: W + alpha / r * B A, straight from the files."""
    model = tiny_model(family)
    config = json.loads(Path(folder, "adapter_config.json").read_text())
    tensors = load_file(Path(folder, "adapter_model.safetensors"))
    scale = config["lora_alpha"] / config["r"]
    for key, a in tensors.items():
        if "lora_A" not in key:
            continue
        b = tensors[key.replace("lora_A", "lora_B")]
        module = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        with torch.no_grad():
            module.weight += (scale * b @ a).T if isinstance(module, Conv1D) else scale * b @ a
    return model


def trained(family):
    model, subspaces, allocation = prepare(family)
    adapted = tlora.attach(model, subspaces, allocation)
    for _ in range(3):
        step(adapted, tiny_batch(model))
    return adapted.eval(), allocation


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_every_reader_computes_the_same(family, tmp_path):
    adapted, allocation = trained(family)
    assert len(set(allocation.ranks.values())) > 1
    assert len(set(allocation.scalings.values())) > 1
    batch = tiny_batch(family)
    expected = logits(adapted, batch)
    tlora.export(adapted, tmp_path / "served")
    config = json.loads((tmp_path / "served" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == max(allocation.ranks.values())
    assert not {"rank_pattern", "alpha_pattern"} & set(config)
    tensors = load_file(tmp_path / "served" / "adapter_model.safetensors")
    assert {min(t.shape) if "lora_A" in k else t.shape[1] for k, t in tensors.items()} == {config["r"]}
    peft = PeftModel.from_pretrained(tiny_model(family), str(tmp_path / "served")).eval()
    torch.testing.assert_close(logits(peft, batch), expected, atol=1e-5, rtol=0)
    served = served_with_one_scale(family, tmp_path / "served")
    torch.testing.assert_close(logits(served, batch), expected, atol=1e-5, rtol=0)
    # and the folder as trained is what such an engine gets wrong
    train_once(adapted).save(tmp_path / "trained")
    wrong = served_with_one_scale(family, tmp_path / "trained")
    assert (logits(wrong, batch) - logits(adapted, batch)).abs().max() > 1e-3


def test_the_model_is_only_read_and_the_head_goes_along(tmp_path):
    adapted, _ = trained("bert")
    before = {k: v.clone() for k, v in adapted.state_dict().items()}
    tlora.export(adapted, tmp_path / "served")
    assert all(torch.equal(v, before[k]) for k, v in adapted.state_dict().items())
    peft = PeftModel.from_pretrained(tiny_model("bert", seed=0), str(tmp_path / "served")).eval()
    torch.testing.assert_close(logits(peft, tiny_batch("bert")), logits(adapted, tiny_batch("bert")), atol=1e-5, rtol=0)


# Fields of `LoraConfig` in PEFT 0.13 (September 2024), which refuses a config with any other.
PEFT_0_13 = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_config_is_one_that_old_versions_read(family, tmp_path):
    adapted, allocation = trained(family)
    config = json.loads((tlora.export(adapted, tmp_path / "served") / "adapter_config.json").read_text())
    assert config.keys() <= PEFT_0_13
    names = [name for name, _ in tiny_model(family).named_modules()]
    listed = config["target_modules"]
    meant = [n for n in names if any(n == entry or n.endswith(f".{entry}") for entry in listed)]
    assert sorted(meant) == sorted(allocation.ranks)


def test_a_layer_without_the_module_of_another_gets_zeros(tmp_path):
    model = tiny_model("llama")
    targets = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()
    expected = logits(adapted, tiny_batch("llama"))
    tlora.export(adapted, tmp_path / "served")
    seen = tlora.inspect(tmp_path / "served")
    assert seen.names == [f"model.layers.{n}.self_attn.{part}_proj" for n in (0, 1) for part in "qv"]
    assert [bool(s.any()) for s in seen.singular_values.values()] == [True, False, False, True]
    assert json.loads((tmp_path / "served" / "adapter_config.json").read_text())["target_modules"] == [
        "q_proj",
        "v_proj",
    ]
    peft = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "served")).eval()
    torch.testing.assert_close(logits(peft, tiny_batch("llama")), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (9, 16)])
def test_vllm_gets_a_rank_that_it_can_be_set_to(rank, allowed, tmp_path):
    adapted = peft_adapter(r=rank)
    tlora.export(adapted, tmp_path / "served", engine="vllm")
    assert set(tlora.inspect(tmp_path / "served").ranks.values()) == {allowed}
    peft = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "served")).eval()
    torch.testing.assert_close(logits(peft, tiny_batch("llama")), logits(adapted, tiny_batch("llama")))


def peft_adapter(family="llama", **changes):
    config = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | changes
    return get_peft_model(tiny_model(family), LoraConfig(**config)).eval()


@pytest.mark.parametrize(
    ("changes", "engine", "words"),
    [
        ({"use_dora": True}, None, "use_dora"),
        ({"init_lora_weights": "pissa"}, None, "'pissa'"),
        ({"bias": "lora_only"}, None, "bias='lora_only'"),
        (
            {"target_modules": ["embed_tokens", "q_proj"]},
            None,
            "embed_tokens.lora_embedding_A",
        ),
        ({"trainable_token_indices": [3]}, None, "neither A nor B"),
        ({"modules_to_save": ["norm"]}, "vllm", "modules_to_save="),
        ({"r": 513}, "vllm", "rank 513, above 512"),
        ({"target_modules": ["q_proj"]}, "sglang", "q_proj without v_proj"),
    ],
)
def test_what_plain_lora_or_the_engine_cannot_hold_is_refused_with_the_way_out(changes, engine, words, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft_adapter(**changes)
    with pytest.raises(ValueError, match=f"(?s){words}.*format='merged'"):
        tlora.export(adapted, tmp_path / "x", engine=engine)
    assert not (tmp_path / "x").exists()
    path = tlora.export(adapted, tmp_path / "x", engine=engine, format="merged", tokenizer=tiny_tokenizer())
    whole, _ = tlora.load_model(path)
    expected = logits(adapted, tiny_batch("llama"))
    torch.testing.assert_close(logits(whole, tiny_batch("llama")), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"format": "onnx"}, "format"),
        ({"engine": "ollama"}, "engine"),
        ({"engine": "llama.cpp", "format": "peft"}, "llama.cpp"),
        ({"engine": "vllm", "format": "gguf"}, "vllm"),
        ({"dtype": "int8"}, "int8"),
        ({"format": "merged"}, "tokenizer="),
    ],
)
def test_refusals_of_arguments(arguments, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        tlora.export(peft_adapter(), tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()


def test_refusals_of_models(tmp_path):
    merged = peft_adapter()
    merged.merge_adapter()
    two = peft_adapter()
    two.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    two.base_model.set_adapter(["default", "other"])
    repeated = LoraConfig(r=4, target_modules=["q_proj"], layer_replication=[(0, 2), (1, 2)], task_type="CAUSAL_LM")
    moe = foreign(experts(), target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    for model, words in (
        (merged, "unmerge_adapter"),
        (two, "2 adapters are active"),
        (get_peft_model(tiny_model("llama"), repeated), "layer_replication="),
        (moe, "LoRA of experts"),
    ):
        with pytest.raises(ValueError, match=words):
            tlora.export(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_dtype_of_an_adapter(tmp_path):
    adapted, _ = trained("bert")  # with a head
    tlora.export(adapted, tmp_path / "served", dtype="float16")
    tensors = load_file(tmp_path / "served" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float16}


def test_numbers_beyond_the_dtype_are_refused(tmp_path):
    adapted = peft_adapter()
    adapter_layers(adapted)["model.layers.1.self_attn.q_proj"].scaling["default"] = 1e9
    for format in ("peft", "gguf"):
        with pytest.raises(ValueError, match=r"layers.1.self_attn.q_proj .*torch.float16"):
            tlora.export(adapted, tmp_path / "x", format=format, dtype="float16")
    base = tiny_model("llama")
    base.model.norm.weight.data[0] = 1e5
    with pytest.raises(ValueError, match=r"model.norm.weight .*torch.float16"):
        tlora.export(foreign(base), tmp_path / "x", format="merged", dtype="float16", tokenizer=tiny_tokenizer())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_merged_is_the_whole_model_and_the_adapted_one_is_only_read(family, tmp_path):
    adapted, _ = trained(family)
    batch, before = tiny_batch(family), {k: v.clone() for k, v in adapted.state_dict().items()}
    trainable = {name: p.requires_grad for name, p in adapted.named_parameters()}
    expected = logits(adapted, batch)
    if family == "llama":
        adapted.generation_config.temperature, adapted.generation_config.do_sample = 0.25, True
    tlora.export(adapted, tmp_path / "whole", format="merged", tokenizer=tiny_tokenizer())
    assert all(torch.equal(v, before[k]) for k, v in adapted.state_dict().items())
    assert trainable == {name: p.requires_grad for name, p in adapted.named_parameters()}
    whole, tokenizer = tlora.load_model(tmp_path / "whole")
    assert tokenizer("w5 w9")["input_ids"] == [5, 9]
    torch.testing.assert_close(logits(whole, batch), expected, atol=1e-5, rtol=0)
    if family == "llama":
        assert whole.generation_config.temperature == 0.25
    modes = {oct(file.stat().st_mode) for file in (tmp_path / "whole").iterdir()}
    assert len(modes) == 1  # whoever may read the config may read the weights
    tlora.export(adapted, tmp_path / "whole", format="merged", dtype="bfloat16", tokenizer=tiny_tokenizer())
    stored = load_file(tmp_path / "whole" / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.bfloat16}
    assert all(torch.equal(v, before[k]) for k, v in adapted.state_dict().items())


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def computes_nothing(monkeypatch):
    """What is refused is refused before the model is looked into."""

    def never(*_, **__):
        raise AssertionError("computed something before refusing")

    for name in ("uniform_lora", "merge"):
        monkeypatch.setattr(sys.modules["tlora.serving.export"], name, never)  # tlora.export is the function


def test_a_coarse_base_is_merged_in_the_type_that_is_asked_for(tmp_path):
    """In bfloat16 the sum would round most of so small an update away."""
    adapted, _ = trained("llama")
    adapted.to(torch.bfloat16)
    layer = adapter_layers(adapted)["model.layers.0.mlp.up_proj"]
    base = layer.get_base_layer().weight.detach().float()
    a, b = (part["default"].weight.detach().float() for part in (layer.lora_A, layer.lora_B))
    scale = 1e-3 * base.norm() / (b @ a).norm()
    with torch.no_grad():
        layer.lora_B["default"].weight.mul_(scale)
    update = layer.scaling["default"] * layer.lora_B["default"].weight.detach().float() @ a
    tlora.export(adapted, tmp_path / "whole", format="merged", dtype="float32", tokenizer=tiny_tokenizer())
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="float32")
    added = whole.model.layers[0].mlp.up_proj.weight - base
    assert (added - update).norm() < 0.01 * update.norm()
    assert layer.get_base_layer().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("format", ["peft", "merged"])
@pytest.mark.usefixtures("computes_nothing")
def test_what_no_export_wrote_is_not_replaced(format, tmp_path):
    adapted, _ = trained("llama")
    folder = train_once(adapted).save(tmp_path / "adapter")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "ranks.png").write_text("mine")
    tiny_model("llama").save_pretrained(tmp_path / "base")
    peft_adapter().save_pretrained(tmp_path / "foreign", save_embedding_layers=False)
    (tmp_path / "foreign" / "README.md").unlink()  # config and tensors alone, as of an export
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "export.json").write_text("[]")
    (tmp_path / "file").write_text("mine")
    before = content(tmp_path)
    for name in ("adapter", "base", "foreign", "damaged", "file"):
        with pytest.raises(FileExistsError, match=name):
            tlora.export(adapted, tmp_path / name, format=format, tokenizer=tiny_tokenizer())
    assert content(tmp_path) == before


@pytest.mark.parametrize("format", ["peft", "merged"])
def test_an_earlier_export_is_replaced_and_nothing_else(format, tmp_path):
    adapted, _ = trained("llama")
    options = {"format": format, "tokenizer": tiny_tokenizer()}
    path = tlora.export(adapted, tmp_path / "x", **options)
    (tmp_path / "link").symlink_to(path)
    first = content(path)
    (path / "pictures").mkdir()
    (path / "pictures" / "loss.png").write_text("mine")
    tlora.export(adapted, tmp_path / "link", **options, dtype="bfloat16")
    assert content(path).keys() == first.keys() | {path / "pictures" / "loss.png"}
    assert content(path).items() != first.items()
    other = {"peft": "merged", "merged": "peft"}[format]
    with pytest.raises(FileExistsError, match=f"'{format}'"):
        tlora.export(adapted, path, **options | {"format": other})


def test_the_base_is_not_replaced_though_it_was_exported(tmp_path):
    adapted, _ = trained("llama")
    path = tlora.export(adapted, tmp_path / "base", format="merged", tokenizer=tiny_tokenizer())
    model, tokenizer = tlora.load_model(path)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    before = content(path)
    with pytest.raises(FileExistsError, match="base is read"):
        tlora.export(adapted, tmp_path / "x" / ".." / "base", format="merged", tokenizer=tokenizer)
    assert content(path) == before


@pytest.mark.parametrize(
    ("family", "format"),
    [("llama", "peft"), ("llama", "merged"), ("llama", "gguf"), ("bert", "merged"), ("t5", "peft")],
)
def test_the_difference_is_that_of_the_logits(family, format, tmp_path):
    adapted, _ = trained(family)
    batches = [{k: v for k, v in tiny_batch(family).items() if k != "labels"}]
    state = {k: v.clone() for k, v in adapted.state_dict().items()}
    trainable = {name: p.requires_grad for name, p in adapted.named_parameters()}
    path = tlora.export(adapted, tmp_path / "x", format=format, tokenizer=tiny_tokenizer())
    difference, change = export_difference(adapted, path, batches)
    assert difference < 1e-5 < change
    rounded = tlora.export(adapted, tmp_path / "y", format=format, dtype="bfloat16", tokenizer=tiny_tokenizer())
    assert 1e-5 < export_difference(adapted, rounded, batches)[0] < 0.2
    assert list(adapted.peft_config) == ["default"]
    assert adapted.active_adapter == "default"
    assert all(torch.equal(v, state[k]) for k, v in adapted.state_dict().items())
    assert trainable == {name: p.requires_grad for name, p in adapted.named_parameters()}


@pytest.mark.parametrize("format", ["peft", "merged", "gguf"])
def test_the_active_one_of_several_adapters_is_exported(format, tmp_path):
    adapted = peft_adapter()
    more = LoraConfig(r=3, lora_alpha=7, target_modules=["down_proj", "q_proj"], init_lora_weights=False)
    adapted.add_adapter("other", more)
    adapted.set_adapter("other")
    batches = [{k: v for k, v in tiny_batch("llama").items() if k != "labels"}]
    expected = logits(adapted, batches[0])
    path = tlora.export(adapted, tmp_path / "x", format=format, tokenizer=tiny_tokenizer())
    assert export_difference(adapted, path, batches)[0] < 1e-5
    assert adapted.active_adapters == ["other"]
    assert torch.equal(logits(adapted, batches[0]), expected)
    if format == "peft":
        peft = PeftModel.from_pretrained(tiny_model("llama"), str(path)).eval()
        torch.testing.assert_close(logits(peft, batches[0]), expected, atol=1e-5, rtol=0)


def test_a_wrong_export_is_told(tmp_path):
    adapted, _ = trained("llama")
    batches = [{k: v for k, v in tiny_batch("llama").items() if k != "labels"}]
    path = tlora.export(adapted, tmp_path / "x")
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))
    assert export_difference(adapted, path, batches)[0] > 1e-2
    with pytest.raises(FileNotFoundError, match="no export"):
        export_difference(adapted, tmp_path, batches)


def test_no_hub_is_asked_about_the_base(tmp_path):
    adapted, _ = trained("llama")
    for config in (adapted.peft_config["default"], adapted.config):
        config.base_model_name_or_path = config._name_or_path = "nobody/no-such-model"
    tlora.export(adapted, tmp_path / "served")  # PEFT warns where its question finds no answer


def test_a_tied_embedding_is_not_merged_into_the_head(tmp_path: Path) -> None:
    model = tied(target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(ValueError, match=r"serve it with PEFT, .* shares its weight with lm_head"):
        tlora.export(model, tmp_path / "x")
    model = tied(modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(ValueError, match=r"are one weight, .*format='merged'"):
        tlora.export(model, tmp_path / "x")
    path = tlora.export(model, tmp_path / "x", format="merged", tokenizer=tiny_tokenizer())
    torch.testing.assert_close(logits(tlora.load_model(path)[0], BATCH), logits(model, BATCH), atol=1e-5, rtol=0)


def test_an_export_tells_of_tokens_that_it_does_not_hold(tmp_path: Path) -> None:
    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "base")
    base.config._name_or_path = str(tmp_path / "base")
    base.resize_token_embeddings(66)
    with pytest.warns(UserWarning, match=r"66 tokens and .* has 64"):
        tlora.export(foreign(base), tmp_path / "x")
