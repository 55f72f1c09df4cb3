"""What is loaded or merged a second time, or from a checkpoint, is what it was, or refused."""

from __future__ import annotations

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import tlora
from tests.helpers import tiny_batch, tiny_config, tiny_model, tiny_tokenizer
from tests.unit.test_adapter import logits, planned
from tlora.models.targets import head_modules

ROWS = Dataset.from_list([{"input_ids": [3 + n, 9, 5 + n, 7], "labels": [-100, 9, 5 + n, 7]} for n in range(8)])
QUIET = {"batch_size": 2, "epochs": 1, "evaluation_limit": 0, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained adapter, with the checkpoint of its last step."""
    path = tmp_path_factory.mktemp("trained")
    model, subspaces, allocation = planned()
    adapted = tlora.attach(model, subspaces, allocation)
    run = tlora.train(adapted, ROWS, learning_rate=1e-3, output_dir=path / "steps", save_steps=4, **QUIET)
    run.save(path / "adapter")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_not_merged_into_the_same_base_twice(folder, dtype):
    base = tiny_model("llama").to(dtype)
    batch = tiny_batch("llama")
    merged = tlora.merge(tlora.load(folder / "adapter", base))
    once = logits(merged, batch)
    with pytest.raises(ValueError, match="as it was before an adapter was merged into it; pass the base"):
        tlora.load(folder / "adapter", merged)
    assert torch.equal(logits(merged, batch), once)
    _, subspaces, allocation = planned()
    with pytest.raises(ValueError, match="before an adapter was merged into it; calibrate this model"):
        tlora.attach(merged, subspaces, allocation)


def test_what_was_made_for_the_merged_model_goes_on_it(folder, tmp_path):
    merged = tlora.merge(tlora.load(folder / "adapter", tiny_model("llama")))
    calibration = tlora.calibrate(merged, [tiny_batch("llama")], progress=False)
    subspaces = tlora.task_subspaces(merged, calibration, max_rank=8, progress=False)
    second = tlora.attach(merged, subspaces, tlora.allocate(calibration.sensitivity, rank=2, max_rank=8))
    tlora.train(second, ROWS, learning_rate=1e-3, **QUIET).save(tmp_path / "second")
    expected = logits(second, tiny_batch("llama"))
    again = tlora.load(tmp_path / "second", tlora.merge(tlora.load(folder / "adapter", tiny_model("llama"))))
    assert torch.allclose(logits(again, tiny_batch("llama")), expected, atol=1e-5)


def test_an_adapter_of_unknown_origin_on_a_merged_base_is_told(folder, tmp_path):
    merged = tlora.merge(tlora.load(folder / "adapter", tiny_model("llama")))
    tlora.load(folder / "adapter", tiny_model("llama")).save_pretrained(str(tmp_path))
    with pytest.warns(UserWarning, match="it counts twice now"):
        tlora.load(tmp_path, merged)


def test_a_checkpoint_is_loaded_as_it_was_trained(folder):
    found = tlora.load(folder / "steps" / "checkpoint-4", tiny_model("llama"))
    a = [parameter for name, parameter in found.named_parameters() if "lora_A" in name]
    assert a
    assert not any(parameter.requires_grad for parameter in a)
    trainable = tlora.load(folder / "steps" / "checkpoint-4", tiny_model("llama"), freeze_a=False)
    assert all(p.requires_grad for name, p in trainable.named_parameters() if "lora_A" in name)
    torch.manual_seed(5)
    with pytest.raises(ValueError, match="another weight there"):
        tlora.load(folder / "steps" / "checkpoint-4", type(found.get_base_model())(found.get_base_model().config))


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
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense is drawn at random"):
        tlora.load(tmp_path / "adapter")
    tlora.load(tmp_path / "adapter", _own_classifier(without_pooler, seed=1))
