"""Adapters that other trainers made: what of them the base holds, what has no place in it, and who reads them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.commands import done, invoke
from tests.helpers.foreign import BATCH, PARTS, biased, experts, foreign
from tests.helpers.models import tiny_batch, tiny_config, tiny_model, tiny_tokenizer
from tests.unit.adapters.test_attach import logits, planned, saved_run, step
from tlora.adapters.lora_layers import adapter_layers
from tlora.models.targets import head_modules


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
def test_more_classes_than_a_head_is_wide(tmp_path: Path) -> None:
    """The last matrix of a head tells its classes, not the smallest."""
    for made in (tiny_model("roberta", num_labels=40), tiny_model("roberta")):
        made.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base, _ = tlora.load_model("base", num_labels=40)
    foreign(base, tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS")
    assert tlora.load(tmp_path / "adapter").config.num_labels == 40
    done("merge adapter merged --quiet")


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


ROWS = Dataset.from_list([{"input_ids": [3 + n, 9, 5 + n, 7], "labels": [-100, 9, 5 + n, 7]} for n in range(8)])
QUIET = {"batch_size": 2, "epochs": 1, "evaluation_limit": 0, "progress": False}


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A trained adapter, with the checkpoint of its last step."""
    path = tmp_path_factory.mktemp("trained")
    model, subspaces, allocation = planned()
    adapted = tlora.attach(model, subspaces, allocation)
    run = tlora.train(adapted, ROWS, learning_rate=1e-3, output_dir=path / "steps", save_steps=4, **QUIET)
    run.save(path / "adapter")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_not_merged_into_the_same_base_twice(trained_once, dtype):
    base = tiny_model("llama").to(dtype)
    batch = tiny_batch("llama")
    merged = tlora.merge(tlora.load(trained_once / "adapter", base))
    once = logits(merged, batch)
    with pytest.raises(ValueError, match="as it was before an adapter was merged into it; pass the base"):
        tlora.load(trained_once / "adapter", merged)
    assert torch.equal(logits(merged, batch), once)
    _, subspaces, allocation = planned()
    with pytest.raises(ValueError, match="before an adapter was merged into it; calibrate this model"):
        tlora.attach(merged, subspaces, allocation)


def test_what_was_made_for_the_merged_model_goes_on_it(trained_once, tmp_path):
    merged = tlora.merge(tlora.load(trained_once / "adapter", tiny_model("llama")))
    calibration = tlora.calibrate(merged, [tiny_batch("llama")], progress=False)
    subspaces = tlora.task_subspaces(merged, calibration, max_rank=8, progress=False)
    second = tlora.attach(merged, subspaces, tlora.allocate(calibration.sensitivity, rank=2, max_rank=8))
    tlora.train(second, ROWS, learning_rate=1e-3, **QUIET).save(tmp_path / "second")
    expected = logits(second, tiny_batch("llama"))
    again = tlora.load(tmp_path / "second", tlora.merge(tlora.load(trained_once / "adapter", tiny_model("llama"))))
    assert torch.allclose(logits(again, tiny_batch("llama")), expected, atol=1e-5)


def test_an_adapter_of_unknown_origin_on_a_merged_base_is_told(trained_once, tmp_path):
    merged = tlora.merge(tlora.load(trained_once / "adapter", tiny_model("llama")))
    tlora.load(trained_once / "adapter", tiny_model("llama")).save_pretrained(str(tmp_path))
    with pytest.warns(UserWarning, match="it counts twice now"):
        tlora.load(tmp_path, merged)


def test_a_checkpoint_is_loaded_as_it_was_trained(trained_once):
    found = tlora.load(trained_once / "steps" / "checkpoint-4", tiny_model("llama"))
    a = [parameter for name, parameter in found.named_parameters() if "lora_A" in name]
    assert a
    assert not any(parameter.requires_grad for parameter in a)
    trainable = tlora.load(trained_once / "steps" / "checkpoint-4", tiny_model("llama"), freeze_a=False)
    assert all(p.requires_grad for name, p in trainable.named_parameters() if "lora_A" in name)
    torch.manual_seed(5)
    with pytest.raises(ValueError, match="another weight there"):
        tlora.load(trained_once / "steps" / "checkpoint-4", type(found.get_base_model())(found.get_base_model().config))


def test_a_checkpoint_of_a_trained_a_is_trained_on_alike(tmp_path):
    model, subspaces, allocation = planned()
    adapted = tlora.attach(model, subspaces, allocation, freeze_a=False)
    tlora.train(adapted, ROWS, learning_rate=1e-3, output_dir=tmp_path, save_steps=4, **QUIET)
    found = tlora.load(tmp_path / "checkpoint-4", tiny_model("llama"))
    assert all(p.requires_grad for name, p in found.named_parameters() if "lora_A" in name)


@pytest.fixture
def without_pooler(tmp_path):
    """A masked language model: a classifier of it has a pooler that was drawn at random."""
    transformers.BertForMaskedLM(tiny_config("bert")).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def _own_classifier(path, seed):
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification.from_pretrained(path, num_labels=2).eval()


def test_a_pooler_that_transformers_drew_is_saved_with_the_adapter(without_pooler, tmp_path):
    rows = Dataset.from_list([{"input_ids": [3 + n, 9, 5 + n, 7], "labels": n % 2} for n in range(8)])
    model, batch = _own_classifier(without_pooler, seed=1), tiny_batch("bert")
    calibration = tlora.calibrate(model, [batch], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    adapted = tlora.attach(model, subspaces, tlora.allocate(calibration.sensitivity, rank=2, max_rank=8))
    run = tlora.train(adapted, rows, learning_rate=5e-3, **QUIET)
    run.save(tmp_path / "adapter")
    expected = logits(adapted, batch)
    for base in (None, _own_classifier(without_pooler, seed=2)):
        assert torch.allclose(logits(tlora.load(tmp_path / "adapter", base), batch), expected, atol=1e-5)


def test_a_trained_pooler_is_the_bases_own(without_pooler):
    model = _own_classifier(without_pooler, seed=1)
    torch.nn.init.normal_(model.bert.pooler.dense.bias)
    assert head_modules(model) == ["classifier"]


def test_an_adapter_without_the_pooler_is_refused_where_that_is_drawn(without_pooler, tmp_path):
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2)  # saves the classifier alone
    get_peft_model(_own_classifier(without_pooler, seed=1), config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense is randomly initialized"):
        tlora.load(tmp_path / "adapter")
    tlora.load(tmp_path / "adapter", _own_classifier(without_pooler, seed=1))


QUICK: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 2, "evaluation_limit": 0, "progress": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two trained adapters of one base, of different allocations."""
    place = tmp_path_factory.mktemp("adapters")
    made = {}
    for seed, (name, options) in enumerate({"one": {}, "two": {"adapt_ranks": False}}.items()):
        model, subspaces, allocation = planned(**options)
        adapted = tlora.attach(model, subspaces, allocation)
        step(adapted, tiny_batch("llama", seed=seed))
        made[name] = saved_run(adapted).save(place / name)
    return made


def both(folders: dict[str, Path]) -> PeftModel:
    return tlora.load(folders["two"], tlora.load(folders["one"], tiny_model("llama"), name="one"), name="two")


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def of(model: nn.Module, part: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if part in name}


def test_each_computes_what_it_does_alone(folders: dict[str, Path]) -> None:
    model = both(folders).eval()
    assert model.active_adapters == ["two"]
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        alone = PeftModel.from_pretrained(tiny_model("llama"), str(folders[name]))
        assert torch.equal(logits(model, BATCH), logits(alone, BATCH))
    with model.disable_adapter():
        assert torch.equal(logits(model, BATCH), logits(tiny_model("llama"), BATCH))


def test_a_stays_frozen_in_each(folders: dict[str, Path]) -> None:
    model = both(folders)
    assert trainable(model) == of(model, "lora_B.two")
    with model.disable_adapter():
        pass
    assert trainable(model) == of(model, "lora_B.two")
    model.set_adapter("one")
    assert trainable(model) == of(model, "lora_B.one")
    with model.disable_adapter():
        pass
    model.set_adapter("two")
    assert trainable(model) == of(model, "lora_B.two")


def test_one_is_trained_on_and_saved_beside_the_other(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = Dataset.from_list([{"input_ids": [3 + n, 9, 5 + n, 7], "labels": [-100, 9, 5 + n, 7]} for n in range(4)])
    model = both(folders)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = tlora.train(model, rows, **QUICK)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == of(model, "lora_B.two")
    again = tlora.load(run.save(tmp_path / "two"), tiny_model("llama"))
    assert torch.equal(logits(again.eval(), BATCH), logits(model.eval(), BATCH))
    model.set_adapter("one")
    alone = tlora.load(folders["one"], tiny_model("llama"))
    assert torch.equal(logits(model, BATCH), logits(alone.eval(), BATCH))


def test_taking_them_off_gives_the_base(folders: dict[str, Path]) -> None:
    reference = tiny_model("llama").state_dict()
    for take_off in (lambda model: model.unload(), lambda model: tlora.detach(model) or model.get_base_model()):
        base = take_off(both(folders))
        assert not adapter_layers(base)
        state = base.state_dict()
        assert state.keys() == reference.keys()
        assert all(torch.equal(state[key], reference[key]) for key in reference)


def test_the_active_one_is_merged_and_only_once(folders: dict[str, Path]) -> None:
    model = both(folders)
    model.set_adapter("one")
    expected = logits(model.eval(), BATCH)
    merged = tlora.merge(model)
    torch.testing.assert_close(logits(merged, BATCH), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no adapter left to merge"):
        tlora.merge(model)
    with pytest.raises(TypeError, match="merge takes"):
        tlora.merge(merged)
    torch.testing.assert_close(logits(merged, BATCH), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["a", "lora", "base", "o", "layer"])
def test_an_adapter_may_be_called_like_a_part_of_a_word(name: str, folders: dict[str, Path]) -> None:
    model = tlora.load(folders["two"], tlora.load(folders["one"], tiny_model("llama"), name="one"), name=name).eval()
    for adapter, folder in {name: "two", "one": "one"}.items():
        model.set_adapter(adapter)
        alone = PeftModel.from_pretrained(tiny_model("llama"), str(folders[folder]))
        assert torch.equal(logits(model, BATCH), logits(alone, BATCH))


@pytest.mark.parametrize("name", ["q_proj", "model", "lora_A", "weight", "0"])
def test_an_adapter_may_not_be_called_like_a_module(name: str, folders: dict[str, Path]) -> None:
    """PEFT would save another adapter without what is called so."""
    for model in (tiny_model("llama"), tlora.load(folders["one"], tiny_model("llama"), name="one")):
        with pytest.raises(ValueError, match=f"name='{name}' is also part of the names .*: choose another name"):
            tlora.load(folders["two"], model, name=name)


def test_what_cannot_stand_beside_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tlora.load(folders["one"], tiny_model("llama"))
    with pytest.raises(ValueError, match=r"already has an adapter called 'default': .*another name="):
        tlora.load(folders["two"], model)
    other = tlora.load(folders["one"], tiny_model("llama"))
    nn.init.normal_(other.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").base_layer.weight)
    with pytest.raises(ValueError, match="of another model"):
        tlora.load(folders["two"], other, name="two")
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        tlora.load(folders["two"], model, name="two")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("llama", r"model is a str: pass a model, such as tlora\.load_model\('llama'\)\[0\]"),
        ((tiny_model("llama"), None), r"model is a tuple: pass a model, such as tlora\.load_model\(\.\.\.\)\[0\]"),
    ],
    ids=["name", "pair"],
)
def test_what_is_no_model_is_refused(model: Any, words: str, folders: dict[str, Path]) -> None:
    with pytest.raises(TypeError, match=words):
        tlora.load(folders["one"], model)


def test_what_fails_leaves_the_others_as_they_were(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tlora.load(folders["one"], tiny_model("llama"), name="one")
    before = ([name for name, _ in model.named_parameters()], trainable(model), logits(model, BATCH))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tlora.adapters.load.freeze", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tlora.load(folders["two"], model, name="two")
    assert model.active_adapters == ["one"]
    assert [name for name, _ in model.named_parameters()] == before[0]
    assert trainable(model) == before[1]
    assert torch.equal(logits(model, BATCH), before[2])
    tlora.load(folders["two"], model, name="two")  # and may be tried again


def test_freezing_can_be_said(folders: dict[str, Path], tmp_path: Path) -> None:
    thawed = tlora.load(folders["one"], tiny_model("llama"), freeze_a=False)
    assert trainable(thawed) == of(thawed, "lora_")
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path, save_embedding_layers=False)
    for freeze_a, part in ((None, "lora_"), (True, "lora_B")):
        foreign = tlora.load(tmp_path, tiny_model("llama"), freeze_a=freeze_a)
        foreign.set_adapter("default")
        assert trainable(foreign) == of(foreign, part)


def test_heads_stand_beside_each_other(tmp_path: Path) -> None:
    batch, folders = tiny_batch("bert"), {}
    for seed, name in enumerate(("one", "two")):
        adapted = tlora.attach(*planned("bert"))
        step(adapted, tiny_batch("bert", seed=seed))
        folders[name] = saved_run(adapted).save(tmp_path / name)
    model = tlora.load(folders["two"], tlora.load(folders["one"], tiny_model("bert"), name="one"), name="two").eval()
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        alone = PeftModel.from_pretrained(tiny_model("bert"), str(folders[name]))
        assert torch.equal(logits(model, batch), logits(alone, batch))


def condition(model: nn.Module) -> list[Any]:
    """What a refusal must leave as it was."""
    modules = [(n, type(m), m.training, len(m._forward_hooks)) for n, m in model.named_modules()]
    return [modules, [(n, p.requires_grad, p.grad is None) for n, p in model.named_parameters()]]


def texts(classes: bool = False) -> Dataset:
    rows = [{"input_ids": [3 + n, 9, 5 + n, 7], "labels": n % 2 if classes else [-100, 9, 5 + n, 7]} for n in range(4)]
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter of the tiny Llama."""
    return trained(tmp_path_factory.mktemp("run"))[1]


def trained(place: Path, family: str = "llama") -> tuple[PeftModel, Path]:
    model, subspaces, allocation = planned(family)
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, tiny_batch(model))
    return adapted, saved_run(adapted).save(place / "adapter")


def test_loading_onto_an_adapted_model_is_refused(folder: Path) -> None:
    model = tiny_model("llama")
    loaded = tlora.load(folder, model)
    for carrier in (model, loaded):
        with pytest.raises(ValueError, match="already has an adapter"):
            tlora.load(folder, carrier)


def test_training_on_after_a_reload_changes_b_alone(tmp_path: Path) -> None:
    model, subspaces, allocation = planned()
    adapted = tlora.attach(model, subspaces, allocation)
    tlora.train(adapted, texts(), **QUICK).save(tmp_path / "adapter")
    loaded = tlora.load(tmp_path / "adapter", tiny_model("llama"))
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    run = tlora.train(loaded, texts(), **QUICK)
    run.save(tmp_path / "adapter")
    again = tlora.load(tmp_path / "adapter", tiny_model("llama")).state_dict()
    changed = {name for name, tensor in again.items() if not tensor.equal(before[name])}
    assert changed == {name for name in before if "lora_B" in name}
    assert run.trainable_parameters == allocation.trainable_parameters


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_an_adapter_with_a_hole_is_refused(family: str, tmp_path: Path) -> None:
    _, folder = trained(tmp_path, family)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for part in ("lora_A", "lora_B", *(["classifier"] if family == "bert" else [])):
        hole = next(key for key in tensors if part in key)
        save_file({key: tensor for key, tensor in tensors.items() if key != hole}, file)
        model = tiny_model(family)
        before = condition(model)
        with pytest.raises(ValueError, match="copy it again"):
            tlora.load(folder, model)
        assert condition(model) == before


def test_a_module_that_is_missing_is_found_without_a_record_too(tmp_path: Path) -> None:
    _, folder = trained(tmp_path, "llama")
    shutil.rmtree(folder / "tlora")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    module = next(iter(tensors)).split(".lora_")[0]
    save_file({key: tensor for key, tensor in tensors.items() if not key.startswith(f"{module}.lora_")}, file)
    model = tiny_model("llama")
    before = condition(model)
    with pytest.raises(ValueError, match=r"is incomplete .*: copy it again"):
        tlora.load(folder, model)
    assert condition(model) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 5}, r"model\.layers\.0\.self_attn\.q_proj has another weight there \(likeness -?0\.\d\d of 1\)"),
        ({"num_hidden_layers": 1}, "of another model"),
        ({"num_key_value_heads": 4, "seed": 0}, "of another model"),
        ("gpt2", r"it has model\.layers\.0\.self_attn\.q_proj, this one does not"),
    ],
)
def test_an_adapter_is_not_loaded_onto_another_base(folder: Path, change: Any, words: str) -> None:
    model = tiny_model(change) if isinstance(change, str) else tiny_model("llama", **change)
    before = condition(model)
    with pytest.raises(ValueError, match=f"the adapter in .* is of another model: .*{words}|{words}.*base model"):
        tlora.load(folder, model)
    assert condition(model) == before


def test_the_same_base_in_half_precision_is_the_same_base(folder: Path) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    assert len(adapter_layers(tlora.load(folder, model))) == 14


@pytest.mark.parametrize("config", [{"hidden_size": 64}, {"family": "gpt2"}])
def test_an_adapter_of_peft_that_does_not_fit_is_refused_too(config: dict[str, Any], tmp_path: Path) -> None:
    get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    model = tiny_model(**({"family": "llama"} | config))
    before = condition(model)
    with pytest.raises(ValueError, match=r"does not fit this (Llama|GPT2).*pass the base model"):
        tlora.load(tmp_path, model)
    assert condition(model) == before


def test_an_adapter_that_generates_is_not_put_on_a_classifier(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    model = transformers.LlamaForSequenceClassification(tiny_config("llama"))
    before = condition(model)
    with pytest.raises(ValueError, match=r"trained to generate text, which a LlamaForSequenceClassification does not"):
        tlora.load(tmp_path, model)
    assert condition(model) == before


def test_an_adapter_that_classifies_is_not_put_on_a_language_model(tmp_path: Path) -> None:
    """PEFT would leave its head out, and say nothing."""
    base = transformers.LlamaForSequenceClassification(tiny_config("llama"))
    get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS")).save_pretrained(tmp_path)
    model = tiny_model("llama")
    before = condition(model)
    with pytest.raises(ValueError, match=r"trained to classify, and a LlamaForCausalLM generates text: its head would"):
        tlora.load(tmp_path, model)
    assert condition(model) == before


def test_a_classifier_with_other_classes_is_told_so(tmp_path: Path) -> None:
    _, folder = trained(tmp_path, "bert")
    model = tiny_model("bert", num_labels=3)
    before = condition(model)
    with pytest.raises(ValueError, match=r"size mismatch for .*classifier.*with as many classes"):
        tlora.load(folder, model)
    assert condition(model) == before


def test_an_adapter_that_names_no_base_wants_one(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"does not name its base model: pass it as model="):
        tlora.load(folder)


def of_base(folder: Path, name: str, revision: str | None = None) -> None:
    """Somebody's adapter, of this base."""
    adapted_model().save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    named = config | {"base_model_name_or_path": name, "revision": revision}
    (folder / "adapter_config.json").write_text(json.dumps(named))


def test_the_base_is_the_one_that_the_adapter_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_base(tmp_path, "somebody/base", "step3000")
    asked = {}

    def load_model(name: str, **arguments: Any) -> tuple[Any, None]:
        asked.update(arguments, name=name)
        return tiny_model("llama"), None

    monkeypatch.setattr("tlora.adapters.load.load_model", load_model)
    tlora.load(tmp_path)
    assert (asked["name"], asked["revision"]) == ("somebody/base", "step3000")


def test_a_base_that_is_gone_is_said_to_be_named_by_the_adapter(tmp_path: Path) -> None:
    of_base(tmp_path, "./elsewhere/llama")
    with pytest.raises(ValueError, match=r"no model '\./elsewhere/llama'") as error:
        tlora.load(tmp_path)
    assert any("pass model= where it is elsewhere now" in note for note in error.value.__notes__)


def cut(file: str, size: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size])


def write(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "adapter_config.json").write_text(text)


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "header": (cut("adapter_model.safetensors", 100), ValueError, r"adapter_model\.safetensors is damaged .*copy it"),
    "tensors": (cut("adapter_model.safetensors", 9000), ValueError, r"adapter_model\.safetensors is damaged .*copy it"),
    "config": (cut("adapter_config.json", 40), ValueError, r"adapter_config\.json is truncated, or not the config"),
    "foreign": (write('{"hello": 1}'), ValueError, r"adapter_config\.json is truncated, or not the config"),
    "list": (write("[1, 2]"), ValueError, r"adapter_config\.json is truncated, or not the config"),
    "ia3": (write('{"peft_type": "IA3"}'), ValueError, "of type IA3: load takes LoRA"),
    "run": (cut("tlora/run.safetensors", 40), ValueError, r"run\.safetensors is truncated"),
    "half": (lambda f: (f / "adapter_model.safetensors").unlink(), FileNotFoundError, r"no adapter_model\.safetensors"),
}


@pytest.mark.parametrize(("damage", "error", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_foreign_adapter_is_refused(
    damage: Any, error: type, words: str, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    if "run" not in words or "config" in words:  # without a record of the run, as anybody's
        shutil.rmtree(copy / "tlora")
    damage(copy)
    model = tiny_model("llama")
    before = condition(model)
    with pytest.raises(error, match=words):
        tlora.load(copy, model)
    assert condition(model) == before


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_that_its_run_did_not_train_is_refused_until_the_record_goes(
    name: str, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    blob = bytearray((copy / name).read_bytes())
    place = blob.index(b'"lora_dropout": 0.0') + 18 if name.endswith("json") else len(blob) - 2
    blob[place] ^= 1
    (copy / name).write_bytes(blob)
    for read in (tlora.inspect, lambda path: tlora.load(path, tiny_model("llama")), tlora.TrainingRun.load):
        with pytest.raises(ValueError, match=rf"{name} is not what this run trained.*remove .*copy.tlora to take"):
            read(copy)
    shutil.rmtree(copy / "tlora")
    assert tlora.inspect(copy).ranks
    assert adapter_layers(tlora.load(copy, tiny_model("llama")))


def test_a_fresh_head_and_pooler_are_trained_saved_and_found_again(tmp_path: Path) -> None:
    """The checkpoint has neither, so that each load draws others: only what was saved can make them agree."""
    transformers.BertForMaskedLM(tiny_config("bert")).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")

    def base(seed: int) -> Any:
        return tlora.load_model(tmp_path / "base", num_labels=2, device="cpu", seed=seed)[0]

    model, batch = base(0), tiny_batch("bert")
    calibration = tlora.calibrate(model, [batch], progress=False)
    assert not any("classifier" in name or "pooler" in name for name in calibration.names)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    adapted = tlora.attach(model, subspaces, tlora.allocate(calibration.sensitivity, rank=2, max_rank=8))
    untrained = logits(adapted, batch)
    run = tlora.train(adapted, texts(classes=True), **QUICK)
    expected = logits(adapted.eval(), batch)
    folder = run.save(tmp_path / "adapter")
    fresh = {"classifier.bias", "classifier.weight", "bert.pooler.dense.bias", "bert.pooler.dense.weight"}
    assert {key.removeprefix("base_model.model.") for key in run.adapter if "lora" not in key} == fresh
    loaded = tlora.load(folder, base(1))
    torch.testing.assert_close(logits(loaded, batch), expected, atol=1e-5, rtol=0)
    plain = PeftModel.from_pretrained(base(2), str(folder)).eval()
    torch.testing.assert_close(logits(plain, batch), expected, atol=1e-5, rtol=0)
    assert (expected - untrained).abs().max() > 1e-3
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    tlora.train(loaded, texts(classes=True), **QUICK)
    changed = {name for name, tensor in loaded.state_dict().items() if not tensor.equal(before[name])}
    assert {name for name in changed if "lora_B" not in name} == {
        f"base_model.model.{name.rpartition('.')[0]}.modules_to_save.default.{name.rpartition('.')[2]}"
        for name in fresh
    }


def test_an_interrupt_while_loading_leaves_the_model_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    before = condition(model)

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PeftModel, "load_adapter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tlora.load(folder, model)
    assert condition(model) == before
    assert len(adapter_layers(tlora.load(folder, model))) == 14


def changed(key: str, value: Callable[[torch.Tensor], torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    batch = tiny_batch("llama")
    return [batch | {key: value(batch[key])}]


def test_adapters_that_repeat_layers_are_left_to_peft(tmp_path: Any) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model("llama"), config)
    with pytest.raises(ValueError, match=r"layer_replication=.* adds layers that the base does not have"):
        tlora.train(model, token_rows(8), progress=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="layer_replication="):
        tlora.load(tmp_path, tiny_model("llama"))


WITHOUT_EVALUATION: dict[str, Any] = {"progress": False, "evaluation_limit": 0, "batch_size": 4}


@pytest.mark.parametrize("name", ["my.adapter", ""])
def test_a_name_that_no_adapter_can_have_is_refused(name: str, tmp_path: Path) -> None:
    tlora.train(adapted_model(), token_rows(8), **WITHOUT_EVALUATION).save(tmp_path / "a")
    with pytest.raises(ValueError, match="choose a word without dots"):
        tlora.load(tmp_path / "a", tiny_model("llama"), name=name)
