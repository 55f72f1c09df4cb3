"""Adapters that other trainers made: what of them the base holds, what has no place in it, and who reads them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import tlora
from tests.commands import done, invoke, saved, workplace  # noqa: F401
from tests.helpers import tiny_batch, tiny_config, tiny_model, tiny_tokenizer
from tests.unit.test_adapter import logits
from tlora.serving.verify import export_difference

BATCH = tiny_batch("llama")
PARTS = {"bias": {"bias": "lora_only"}, "weights": {"init_lora_weights": "pissa"}}


def biased(**config: Any) -> Any:
    return tiny_model("llama", attention_bias=True, **config)


def foreign(base: Any, folder: Path | None = None, **config: Any) -> PeftModel:
    """An adapter whose every trained number was moved, and saved."""
    model = get_peft_model(base, LoraConfig(**({"r": 2, "target_modules": ["q_proj", "v_proj"]} | config))).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    if folder is not None:
        model.save_pretrained(folder, save_embedding_layers=False)
    return model


@pytest.mark.parametrize("part", PARTS)
def test_what_is_in_the_base_itself_is_in_nobody_elses(part: str, tmp_path: Path) -> None:
    """PEFT writes it into the base that the others compute with, and leaves it there."""
    foreign(biased(), tmp_path / "plain")
    foreign(biased(), tmp_path / "part", **PARTS[part])
    model = tlora.load(tmp_path / "plain", biased(), name="plain")
    expected = logits(model, BATCH)
    with pytest.raises(ValueError, match="the others on this model would compute with: load it on a base of its own"):
        tlora.load(tmp_path / "part", model, name="part")
    assert list(model.peft_config) == ["plain"]
    assert torch.equal(logits(model, BATCH), expected)
    alone = tlora.load(tmp_path / "part", biased(), name="part")
    expected = logits(alone, BATCH)
    with pytest.raises(ValueError, match=r"the adapter 'part' has .*: load another one on a base of its own"):
        tlora.load(tmp_path / "plain", alone, name="plain")
    with pytest.raises(ValueError, match="would stay behind: load the base model again"):
        tlora.detach(alone)
    assert torch.equal(logits(alone, BATCH), expected)


@pytest.mark.parametrize("part", PARTS)
def test_a_base_that_an_adapter_could_not_be_put_on_is_as_it_was(part: str, tmp_path: Path) -> None:
    foreign(biased(), tmp_path / "part", **PARTS[part])
    file = tmp_path / "part" / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[next(key for key in tensors if ".layers.1." in key and "lora_B" in key)]
    save_file(tensors, file)
    model = biased()
    with pytest.raises(ValueError, match="incomplete"):
        tlora.load(tmp_path / "part", model)
    assert torch.equal(logits(model, BATCH), logits(biased(), BATCH))


@pytest.mark.parametrize("part", ["none", *PARTS])
@pytest.mark.usefixtures("workplace")
def test_the_base_beside_an_adapter_is_the_base(part: str, tmp_path: Path) -> None:
    base = biased()
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model, _ = tlora.load_model(tmp_path / "base")
    foreign(model, tmp_path / "adapter", task_type="CAUSAL_LM", **PARTS.get(part, {}))
    found = done("evaluate adapter --task pairs.jsonl --base --json --quiet")
    task = tlora.load_task("pairs.jsonl", tiny_tokenizer(), progress=False)
    alone = task.evaluate(tlora.load_model(tmp_path / "base")[0], progress=False)
    assert json.loads(found.stdout)["metrics"]["base"]["loss"] == pytest.approx(alone["loss"], rel=1e-6)


HEADS = {
    "TOKEN_CLS": ("BertForTokenClassification", "classifier"),
    "QUESTION_ANS": ("BertForQuestionAnswering", "qa_outputs"),
    "FEATURE_EXTRACTION": ("BertModel", None),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_base_with_another_head_is_not_taken_for_a_classifier(kind: str, tmp_path: Path) -> None:
    """They were loaded as classifiers of whole texts, and the head that was trained was lost."""
    name, _ = HEADS[kind]

    def base() -> Any:
        torch.manual_seed(0)
        return getattr(transformers, name)(tiny_config("bert", num_labels=2)).eval()

    base().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = base()
    model.name_or_path = model.config._name_or_path = str(tmp_path / "base")
    trained = foreign(model, tmp_path / "adapter", target_modules=["query"], task_type=kind)
    with pytest.raises(ValueError, match=f"is for task_type='{kind}': load its base by a class of transformers"):
        tlora.load(tmp_path / "adapter")
    merged = invoke(f"merge {tmp_path / 'adapter'} {tmp_path / 'merged'} --quiet")
    assert merged.exit_code == 2
    assert "load its base by a class of transformers" in merged.stderr
    classifier = transformers.BertForSequenceClassification(tiny_config("bert", num_labels=2))
    if kind != "FEATURE_EXTRACTION":
        with pytest.raises(ValueError, match=r"for a base .*, and this is a BertForSequenceClassification"):
            tlora.load(tmp_path / "adapter", classifier)
    inputs = {key: value for key, value in tiny_batch("bert").items() if key != "labels"}
    with torch.no_grad():
        assert torch.equal(tlora.load(tmp_path / "adapter", base()).eval()(**inputs)[0], trained(**inputs)[0])


def test_a_head_that_the_base_has_no_place_for_is_not_left_out(tmp_path: Path) -> None:
    base = transformers.BertForQuestionAnswering(tiny_config("bert"))
    foreign(base, tmp_path, target_modules=["query"], modules_to_save=["qa_outputs"])
    with pytest.raises(ValueError, match=r"holds qa_outputs.bias, for which a BertForMaskedLM has no place"):
        tlora.load(tmp_path, transformers.BertForMaskedLM(tiny_config("bert")))


@pytest.mark.usefixtures("workplace")
def test_classifiers_of_others_are_merged_with_their_classes(tmp_path: Path) -> None:
    base, _ = tlora.load_model("bert", num_labels=3)
    trained = foreign(base, tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS")
    done("merge adapter merged --quiet")
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    inputs = {key: value for key, value in tiny_batch("bert").items() if key != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(whole(**inputs).logits, trained(**inputs).logits, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("workplace")
def test_more_classes_than_a_head_is_wide(tmp_path: Path) -> None:
    """The last matrix of a head tells its classes, not the smallest."""
    for made in (tiny_model("roberta", num_labels=40), tiny_model("roberta")):
        made.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base, _ = tlora.load_model("base", num_labels=40)
    foreign(base, tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS")
    assert tlora.load(tmp_path / "adapter").config.num_labels == 40
    done("merge adapter merged --quiet")


def experts(**config: Any) -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    torch.manual_seed(0)
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes | heads)).eval()


def test_lora_of_experts_is_refused_by_its_name(tmp_path: Path) -> None:
    """PEFT puts all experts' factors into one A and one B, whose rank looks like a damaged file's."""
    model = foreign(experts(), tmp_path / "adapter", target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    rows = [{"input_ids": [4, 5, 6], "labels": [4, 5, 6]}]
    acts = (
        lambda: tlora.inspect(tmp_path / "adapter"),
        lambda: tlora.load(tmp_path / "adapter", experts()),
        lambda: tlora.export(model, tmp_path / "x"),
        lambda: tlora.export(model, tmp_path / "x", format="merged", tokenizer=tiny_tokenizer()),
        lambda: tlora.train(model, datasets.Dataset.from_list(rows), progress=False),
    )
    for act in acts:
        with pytest.raises(ValueError, match=r"LoRA of experts .*, which PEFT alone reads"):
            act()
    assert not (tmp_path / "x").exists()


STRAY = {
    "lora_B.bias": {"lora_bias": True},
    "trainable_tokens_delta": {"trainable_token_indices": [5]},
}


@pytest.mark.parametrize("stray", STRAY)
def test_engines_that_read_a_and_b_alone_do_not_take_what_is_beside_them(stray: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foreign(biased(), tmp_path, **STRAY[stray])
    refused = tlora.inspect(tmp_path).engines().set_index("engine")["refused"]
    assert refused["PEFT 0.15 and later"] == ""
    readers = [name for name in refused.index if not name.startswith(("PEFT", "mlx"))]
    assert len(readers) == 6
    for name in readers:
        assert f"{stray}, which is neither A nor B" in refused[name]


def test_heads_and_embeddings_are_no_strays(tmp_path: Path) -> None:
    foreign(biased(), tmp_path, target_modules=["q_proj", "v_proj", "embed_tokens"])
    refused = tlora.inspect(tmp_path).engines().set_index("engine")["refused"]
    assert refused["vLLM 0.32"] == ""


def tied(**config: Any) -> PeftModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        return foreign(tiny_model("llama", tie_word_embeddings=True), **config)


def test_a_weight_that_a_gguf_model_holds_once_is_no_second_one_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lm_head shares its weight with model.embed_tokens, and a GGUF model"):
        tlora.export(tied(target_modules=["q_proj", "lm_head"]), tmp_path / "x.gguf", format="gguf")
    assert not list(tmp_path.iterdir())


def test_advice_can_be_followed(tmp_path: Path) -> None:
    """Where merging is refused as well, another format is not the way out."""
    model = tied(target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(ValueError, match="serve it with PEFT, for merged it would change lm_head as well"):
        tlora.export(model, tmp_path / "x")
    model = tied(modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(ValueError, match=r"are one weight, .*format='merged'"):
        tlora.export(model, tmp_path / "x")
    path = tlora.export(model, tmp_path / "x", format="merged", tokenizer=tiny_tokenizer())
    torch.testing.assert_close(logits(tlora.load_model(path)[0], BATCH), logits(model, BATCH), atol=1e-5, rtol=0)


def test_merged_weights_beyond_the_type_are_refused(tmp_path: Path) -> None:
    base = tiny_model("llama")
    base.model.norm.weight.data[0] = 1e5
    with pytest.raises(ValueError, match=r"model.norm.weight holds numbers that are not finite in torch.float16"):
        tlora.export(foreign(base), tmp_path / "x", format="merged", dtype="float16", tokenizer=tiny_tokenizer())
    assert not (tmp_path / "x").exists()


def test_an_export_tells_of_tokens_that_it_does_not_hold(tmp_path: Path) -> None:
    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "base")
    base.config._name_or_path = str(tmp_path / "base")
    base.resize_token_embeddings(66)
    with pytest.warns(UserWarning, match=r"66 tokens and .* has 64: the adapter holds none of the others"):
        tlora.export(foreign(base), tmp_path / "x")


def test_measuring_an_export_leaves_the_names_of_the_model(tmp_path: Path) -> None:
    model = foreign(tiny_model("llama"), layers_to_transform=[1])
    names = [name for name, _ in model.named_parameters()]
    path = tlora.export(model, tmp_path / "x")
    assert export_difference(model, path, [BATCH])[0] < 1e-5
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("lost", ["v_proj.lora_A", "v_proj.lora_B", "layers.0.self_attn.v_proj"])
def test_an_adapter_that_lacks_a_part_is_refused_beside_another_as_well(lost: str, tmp_path: Path) -> None:
    """PEFT says so of the first adapter of a model alone: what is missing stays as it was drawn."""
    foreign(tiny_model("llama"), tmp_path / "one", target_modules=["q_proj"])
    foreign(tiny_model("llama"), tmp_path / "two")
    file = tmp_path / "two" / "adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if lost not in key}, file)
    model = tlora.load(tmp_path / "one", tiny_model("llama"), name="one")
    keys, expected = set(model.state_dict()), logits(model, BATCH)
    for base in (tiny_model("llama"), model):
        with pytest.raises(ValueError, match="is incomplete"):
            tlora.load(tmp_path / "two", base, name="two")
    assert set(model.state_dict()) == keys  # nor is anything left of what was wrapped for it
    assert torch.equal(logits(model, BATCH), expected)


@pytest.mark.parametrize("kind", ["tokens", "experts", "inside what another saves whole"])
def test_what_peft_wraps_otherwise_comes_off_whole(kind: str, tmp_path: Path) -> None:
    base = experts() if kind == "experts" else tiny_model("llama")
    keys, expected = list(base.state_dict()), logits(base, BATCH)
    config = {
        "tokens": {"trainable_token_indices": {"embed_tokens": [5, 6]}, "modules_to_save": ["lm_head"]},
        "experts": {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    }.get(kind, {})
    model = foreign(base, **config)
    if not config:
        model.add_adapter("two", LoraConfig(r=2, target_modules=["up_proj"], modules_to_save=["self_attn"]))
    tlora.detach(model)
    assert list(base.state_dict()) == keys
    assert torch.equal(logits(base.to(torch.float32), BATCH), expected)
    base.save_pretrained(tmp_path)
    assert torch.equal(logits(type(base).from_pretrained(tmp_path).eval(), BATCH), expected)


@pytest.mark.parametrize("more", [{"alora_invocation_tokens": [5, 6]}, {"layer_replication": [(0, 2), (1, 2)]}])
def test_engines_do_not_compute_what_is_more_than_w_and_b_a(more: dict[str, Any], tmp_path: Path) -> None:
    foreign(tiny_model("llama"), tmp_path, task_type="CAUSAL_LM", **more)
    refused = tlora.inspect(tmp_path).engines().set_index("engine")["refused"]
    assert refused["PEFT 0.15 and later"] == ""
    readers = [name for name in refused.index if not name.startswith(("PEFT", "mlx"))]
    assert len(readers) == 6
    assert all(refused[name].startswith(f"{next(iter(more))}=") for name in readers)
