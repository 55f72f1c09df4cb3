"""Attaching, loading and merging, with PEFT as the judge."""

import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertModel, BertPreTrainedModel

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.commands import done
from tests.helpers.foreign import BATCH, PARTS, biased, experts, foreign
from tests.helpers.models import FAMILIES, tiny_batch, tiny_config, tiny_model, tiny_tokenizer
from tlora.adapters.lora_layers import adapter_layers
from tlora.calibration.sensitivity import Sensitivity
from tlora.models.targets import target_modules
from tlora.results import Meta


def planned(family="llama", max_rank=16, **options):
    model = tiny_model(family)
    calibration = tlora.calibrate(model, [tiny_batch(model)], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=max_rank, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=4, **{"max_rank": max_rank, **options})
    return model, subspaces, allocation


def calibrated(model, **options):
    return tlora.calibrate(model, [tiny_batch(model, **options)], progress=False)


def logits(model, batch):
    with torch.no_grad():
        return model(**{k: v for k, v in batch.items() if k != "labels"} | decoder(model, batch)).logits


def decoder(model, batch):
    return {"labels": batch["labels"]} if model.config.is_encoder_decoder else {}


def step(model, batch, learning_rate=0.05):
    """One step of gradient descent on what is trainable."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    model(**batch).loss.backward()
    with torch.no_grad():
        for p in parameters:
            p -= learning_rate * p.grad
            p.grad = None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_allocation_is_what_peft_computes(family):
    model, subspaces, allocation = planned(family)
    batch = tiny_batch(model)
    before = logits(model, batch)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    adapted = tlora.attach(model, subspaces, allocation, rows="orthonormal")
    assert isinstance(adapted, PeftModel)
    assert torch.equal(logits(adapted, batch), before)  # step 0 is the base, to the bit
    layers = adapter_layers(adapted)
    assert list(layers) == list(allocation.ranks)
    for name, layer in layers.items():
        assert layer.r["default"] == allocation.ranks[name]
        assert layer.scaling["default"] == pytest.approx(allocation.scalings[name], rel=1e-6)
        assert torch.equal(layer.lora_A["default"].weight, subspaces.basis(name, allocation.ranks[name]))
        assert not layer.lora_B["default"].weight.any()
    trainable = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert all("lora_B" in n or "modules_to_save" in n for n in trainable)
    b = sum(p.numel() for n, p in adapted.named_parameters() if p.requires_grad and "lora_B" in n)
    assert b == allocation.trainable_parameters
    step(adapted, batch)
    assert not torch.equal(logits(adapted, batch), before)
    base = adapted.unload().state_dict()
    same = [k for k, v in weights.items() if torch.equal(base[k], v)]  # W was never written to
    assert set(weights) - set(same) <= {k for k in weights if k.startswith("classifier")}


def test_a_stays_frozen_whatever_peft_does():
    model, subspaces, allocation = planned()
    adapted = tlora.attach(model, subspaces, allocation)
    frozen = lambda: [p.requires_grad for n, p in adapted.named_parameters() if "lora_A" in n]  # noqa: E731
    with adapted.disable_adapter():
        logits(adapted, tiny_batch(model))
    assert not any(frozen())
    adapted.set_adapter("default")
    assert not any(frozen())
    adapted.train().eval()
    adapted.set_requires_grad("default")
    assert not any(frozen())
    assert all(p.requires_grad for n, p in adapted.named_parameters() if "lora_B" in n)


def test_freeze_a_off_trains_both():
    model, subspaces, allocation = planned()
    adapted = tlora.attach(model, subspaces, allocation, freeze_a=False)
    assert all(p.requires_grad for n, p in adapted.named_parameters() if "lora_" in n)
    assert all(not p.requires_grad for n, p in adapted.named_parameters() if "lora_" not in n)


@pytest.mark.parametrize(("init", "ranks", "scales"), list(itertools.product([True, False], repeat=3)))
def test_the_eight_cells_of_the_ablation(init, ranks, scales):
    model, subspaces, allocation = planned(adapt_ranks=ranks, adapt_scales=scales)
    start, length = (subspaces, "orthonormal") if init else (None, None)
    adapted = tlora.attach(model, start, allocation, freeze_a=init, rows=length)
    layers = adapter_layers(adapted).values()
    assert (len({layer.r["default"] for layer in layers}) > 1) == ranks
    assert (len({layer.scaling["default"] for layer in layers}) > 1) == scales
    rows = torch.cat([layer.lora_A["default"].weight.norm(dim=1) for layer in layers])
    assert torch.allclose(rows, torch.ones_like(rows), atol=1e-5) == init
    assert all(layer.lora_A["default"].weight.requires_grad != init for layer in layers)


def test_random_a_is_seeded_and_leaves_the_global_generator_alone():
    def first_row(seed):
        model, _, allocation = planned()
        torch.manual_seed(5)
        adapted = tlora.attach(model, None, allocation, freeze_a=False, seed=seed)
        return next(iter(adapter_layers(adapted).values())).lora_A["default"].weight, torch.rand(1)

    (one, after_one), (two, after_two), (other, _) = first_row(0), first_row(0), first_row(1)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert after_one == after_two


def test_rows_are_by_variance_by_default():
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch(model, (30, 40))], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=4, max_rank=8)
    adapted = tlora.attach(model, subspaces, allocation)
    for name, layer in adapter_layers(adapted).items():
        a, c = layer.lora_A["default"].weight.double(), calibration.covariance[name].dense().double()
        expected = float(c.trace()) / (3 * c.shape[0])
        torch.testing.assert_close(
            (a @ c @ a.T).diagonal(), torch.full((len(a),), expected).double(), rtol=1e-3, atol=0
        )


def test_attaching_twice_is_refused_or_replaces():
    model, subspaces, allocation = planned()
    adapted = tlora.attach(model, subspaces, allocation)
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    for carrier in (model, adapted):
        with pytest.raises(ValueError, match="already has an adapter"):
            tlora.attach(carrier, subspaces, allocation)
    again = tlora.attach(model, subspaces, allocation, replace=True)
    assert sum(p.numel() for p in again.parameters() if p.requires_grad) == count
    assert len(adapter_layers(again)) == len(allocation.ranks)
    with pytest.raises(ValueError, match="already has an adapter"):
        tlora.calibrate(model, [tiny_batch(model)], progress=False)


def test_a_refused_replacement_leaves_the_adapter_on():
    model, subspaces, allocation = planned()
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, tiny_batch(model))
    small = tlora.task_subspaces(model, calibrated(tiny_model("llama")), max_rank=2, progress=False)
    before = logits(adapted, tiny_batch(model))
    for refused in (small, tlora.task_subspaces(tiny_model("gpt2"), calibrated(tiny_model("gpt2")), progress=False)):
        with pytest.raises(ValueError, match=r"max_rank|calibration of this model"):
            tlora.attach(adapted, refused, allocation, replace=True)
    with pytest.raises(ValueError, match=r"my\.run"):
        tlora.attach(adapted, subspaces, allocation, replace=True, adapter_name="my.run")
    assert torch.equal(logits(adapted, tiny_batch(model)), before)
    assert len(adapter_layers(adapted)) == len(allocation.ranks)


def test_the_adapter_of_a_peft_model_is_replaced():
    model, subspaces, allocation = planned()
    base = logits(model, tiny_batch(model))
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, tiny_batch(model))
    again = tlora.attach(adapted, subspaces, allocation, replace=True)
    assert again.get_base_model() is model
    assert torch.equal(logits(again, tiny_batch(model)), base)


@pytest.mark.parametrize("rows", ["orthonormal", "variance"])
def test_inputs_without_variance_give_rows_all_the_same(rows):
    model = tiny_model("llama")
    batch = tiny_batch(model, (9, 9, 9))
    batch["labels"][:, :-1] = -100  # one labelled token a sample, which varies around its mean by nothing
    calibration = tlora.calibrate(model, [batch], tokens="labels", progress=False)
    assert not any(c.dense().any() for c in calibration.covariances.values())
    with pytest.raises(ValueError, match="kind='wc' needs inputs that vary within a sample"):
        tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, kind="w", progress=False)
    assert subspaces.to_frame()["explained_variance"].isna().all()
    assert subspaces._repr_html_()
    before = logits(model, batch)
    adapted = tlora.attach(model, subspaces, tlora.allocate(calibration.sensitivity, 4, max_rank=8), rows=rows)
    for layer in adapter_layers(adapted).values():
        a = layer.lora_A["default"].weight
        length = 1 if rows == "orthonormal" else 1 / 3  # as long as a random row of LoRA
        torch.testing.assert_close(a @ a.T, length * torch.eye(len(a)), rtol=0, atol=1e-5)
    assert torch.equal(logits(adapted, batch), before)


def test_a_small_alpha_is_saved_and_loaded(tmp_path):
    model, subspaces, _ = planned()
    allocation = tlora.allocate(calibrated(model).sensitivity, 4, alpha=0.25, max_rank=16)
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, tiny_batch(model))
    adapted.save_pretrained(tmp_path)
    loaded = tlora.load(tmp_path, tiny_model("llama"))
    assert torch.equal(logits(loaded, tiny_batch(model)), logits(adapted, tiny_batch(model)))


def test_a_weight_of_zeros_is_the_same_as_itself():
    model = tiny_model("llama")
    name = "model.layers.1.mlp.down_proj"
    model.get_submodule(name).weight.data.zero_()
    calibration = calibrated(model)
    both = calibration.merge(calibrated(model, seed=1))
    subspaces = tlora.task_subspaces(model, both, max_rank=8, progress=False)
    assert tlora.attach(model, subspaces, tlora.allocate(both.sensitivity, 4, max_rank=8))
    other = tiny_model("llama")
    with pytest.raises(ValueError, match=f"{name} has another weight"):
        tlora.task_subspaces(other, both, max_rank=8, progress=False)
    with pytest.raises(ValueError, match="of another model"):
        both.merge(calibrated(other, seed=2))


def test_replacing_gives_the_head_back():
    model, subspaces, allocation = planned("bert")
    names = [n for n, _ in model.named_parameters()]
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, tiny_batch(model))
    tlora.detach(model)
    assert [n for n, _ in model.named_parameters()] == names
    reference = tiny_model("bert").state_dict()
    assert all(torch.equal(v, reference[k]) for k, v in model.state_dict().items())


def test_a_merged_adapter_cannot_be_detached():
    model, subspaces, allocation = planned()
    adapted = tlora.attach(model, subspaces, allocation)
    adapted.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        tlora.attach(model, subspaces, allocation, replace=True)


def test_refusals_leave_the_model_as_it_was(monkeypatch):
    model, subspaces, allocation = planned()
    model.requires_grad_(True)
    modules, flags = [n for n, _ in model.named_modules()], [p.requires_grad for p in model.parameters()]
    small = tlora.task_subspaces(
        model, tlora.calibrate(model, [tiny_batch(model)], progress=False), max_rank=2, progress=False
    )

    def untouched():
        return [n for n, _ in model.named_modules()] == modules and [
            p.requires_grad for p in model.parameters()
        ] == flags

    with pytest.raises(ValueError, match="max_rank"):
        tlora.attach(model, small, allocation)
    assert untouched()
    with pytest.raises(ValueError, match="rows='long'"):
        tlora.attach(model, subspaces, allocation, rows="long")
    with pytest.raises(ValueError, match="another model"):
        tlora.attach(tiny_model("llama", seed=3), subspaces, allocation)
    with pytest.raises(ValueError, match="another model"):
        tlora.attach(tiny_model("gpt2"), None, allocation)
    monkeypatch.setattr("tlora.adapters.attach._apply", lambda *a: (_ for _ in ()).throw(RuntimeError("interrupted")))
    with pytest.raises(RuntimeError, match="interrupted"):
        tlora.attach(model, subspaces, allocation)
    assert untouched()


def test_dropped_modules_get_no_adapter(tmp_path):
    """Through subspaces, attach, the config for other trainers, saving, loading and merging."""
    model = tiny_model("llama")
    calibration = calibrated(model)
    allocation = tlora.allocate(calibration.sensitivity, rank=1, min_rank=0)
    assert allocation.dropped
    subspaces = tlora.task_subspaces(model, calibration, max_rank=allocation, progress=False)
    assert subspaces.names == list(allocation.ranks)
    assert tlora.lora_config(model, allocation).target_modules == set(allocation.ranks)
    adapted = tlora.attach(model, subspaces, allocation)
    assert {name: layer.r["default"] for name, layer in adapter_layers(adapted).items()} == allocation.ranks
    step(adapted, tiny_batch(model))
    adapted.save_pretrained(tmp_path)
    again = tlora.load(tmp_path, tiny_model("llama"))
    assert list(adapter_layers(again)) == list(allocation.ranks)
    torch.testing.assert_close(logits(again, tiny_batch(model)), logits(adapted, tiny_batch(model)))


def test_pattern_keys_match_one_module_only():
    """T5's encoder and decoder blocks have the same suffixes; each must get its own rank."""
    model, subspaces, allocation = planned("t5")
    ranks = {name: 1 + i % 4 for i, name in enumerate(allocation.ranks)}
    changed = tlora.Allocation(**{**vars(allocation), "ranks": ranks})
    adapted = tlora.attach(model, subspaces, changed)
    assert {n: layer.r["default"] for n, layer in adapter_layers(adapted).items()} == ranks


SCRIPT = """
import sys, json, torch
from peft import PeftModel
sys.path.insert(0, {root!r})
from tests.helpers.models import tiny_batch, tiny_model
model = PeftModel.from_pretrained(tiny_model({family!r}), {folder!r}).eval()
batch = tiny_batch({family!r})
extra = {{"labels": batch["labels"]}} if model.config.is_encoder_decoder else {{}}
with torch.no_grad():
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **extra).logits
assert "tlora" not in sys.modules
torch.save(out, {out!r})
"""


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ("bert", "t5", "gpt2"))]
)
def test_the_folder_loads_with_peft_alone_and_trains_on(family, tmp_path, request):
    model, subspaces, allocation = planned(family)
    batch = tiny_batch(model)
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, batch)
    run = saved_run(adapted)
    run.save(tmp_path / "adapter")
    root = str(request.config.rootpath)
    script = SCRIPT.format(root=root, family=family, folder=str(tmp_path / "adapter"), out=str(tmp_path / "out.pt"))
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=root)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), logits(adapted.eval(), batch), atol=1e-5, rtol=0)

    loaded = tlora.load(tmp_path / "adapter", tiny_model(family))
    torch.testing.assert_close(logits(loaded, batch), logits(adapted, batch), atol=1e-6, rtol=0)
    before = {n: p.clone() for n, p in loaded.named_parameters()}
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if "lora_A" in n)
    with loaded.disable_adapter():
        pass
    step(loaded, batch)
    changed = [n for n, p in loaded.named_parameters() if not torch.equal(p, before[n])]
    assert any("lora_B" in n for n in changed)
    assert all("lora_B" in n or "modules_to_save" in n for n in changed)
    merged = tlora.merge(loaded)
    torch.testing.assert_close(
        logits(merged, batch), logits_after(tmp_path, family, loaded, batch, before), atol=1e-5, rtol=0
    )


def logits_after(tmp_path, family, merged, batch, before):
    """The same step on a second copy, unmerged."""
    second = tlora.load(tmp_path / "adapter", tiny_model(family))
    step(second, batch)
    return logits(second, batch)


def saved_run(adapted):
    """A TrainingRun of a model as it stands."""
    from datasets import Dataset

    rows = Dataset.from_list([{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}])
    if adapted.config.is_encoder_decoder or adapted.peft_config["default"].task_type == "SEQ_CLS":
        label = 1 if not adapted.config.is_encoder_decoder else [4, 5]
        rows = Dataset.from_list([{"input_ids": [3, 4, 5], "labels": label}])
    return tlora.train(adapted, rows, learning_rate=1e-3, batch_size=1, max_steps=1, evaluation_limit=0, progress=False)


def test_loading_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no adapter in"):
        tlora.load(tmp_path)


def test_merging_twice_is_refused():
    model, subspaces, allocation = planned()
    adapted = tlora.attach(model, subspaces, allocation)
    adapted.merge_adapter()
    with pytest.raises(ValueError, match="already"):
        tlora.merge(adapted)
    with pytest.raises(TypeError, match="merge takes"):
        tlora.merge(tiny_model("llama"))


def test_a_classifier_is_loaded_with_as_many_classes_as_its_head_has(tmp_path):
    model = tiny_model("bert", num_labels=3)
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model, _ = tlora.load_model(str(tmp_path / "base"), num_labels=3, device="cpu")
    calibration = tlora.calibrate(model, [tiny_batch("bert")], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    adapted = tlora.attach(model, subspaces, tlora.allocate(calibration.sensitivity, rank=2, max_rank=8))
    step(adapted, tiny_batch("bert"))
    expected = logits(adapted.eval(), tiny_batch("bert"))
    saved_run(adapted).save(tmp_path / "adapter")
    loaded = tlora.load(tmp_path / "adapter").eval()
    assert loaded.config.num_labels == 3
    torch.testing.assert_close(
        logits(loaded, tiny_batch("bert")), logits(adapted.eval(), tiny_batch("bert")), atol=1e-5, rtol=0
    )
    assert expected.shape == (3, 3)


def test_attaching_and_loading_say_nothing(tmp_path, recwarn):
    model, subspaces, allocation = planned()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        adapted = tlora.attach(model, subspaces, allocation)
        adapted.save_pretrained(tmp_path, save_embedding_layers=False)
        tlora.detach(model)
        recwarn.clear()
        tlora.attach(model, subspaces, allocation)
        tlora.detach(model)
        tlora.load(tmp_path, model)
    assert [str(warning.message) for warning in recwarn] == []


QUICK: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 2, "evaluation_limit": 0, "progress": False}


def calibrate_and_allocate(model: Any, batch: Any = None, **options: Any) -> tuple[tlora.Calibration, tlora.Allocation]:
    calibration = tlora.calibrate(model, [batch or tiny_batch(model)], progress=False, **options)
    return calibration, tlora.allocate(calibration.sensitivity, 4, max_rank=8)


class Classifier(BertPreTrainedModel):
    """With a head under any name, beside a body under any name."""

    def __init__(self, config: Any, body: str = "bert", head: str = "head") -> None:
        super().__init__(config)
        self.names = body, head
        setattr(self, body, BertModel(config, add_pooling_layer=False))
        setattr(self, head, nn.Linear(config.hidden_size, 2))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule(self.names[0]).get_input_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
        body, head = (self.get_submodule(name) for name in self.names)
        logits = head(body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def classes() -> Dataset:
    return Dataset.from_list([{"input_ids": [3 + n, 9, 5 + n, 7], "labels": n % 2} for n in range(8)])


def test_a_head_of_ones_own_is_trained_and_one_that_is_not_found_is_told() -> None:
    model = Classifier(tiny_config("bert")).eval()
    run = tlora.train(
        tlora.attach(model, None, calibrate_and_allocate(model, tiny_batch("bert"))[1]), classes(), **QUICK
    )
    assert [key for key in run.adapter if "lora" not in key] == [
        "base_model.model.head.weight",
        "base_model.model.head.bias",
    ]
    model = Classifier(tiny_config("bert"), body="encoder_model").eval()
    adapted = tlora.attach(model, None, calibrate_and_allocate(model, tiny_batch("bert"))[1])
    with pytest.warns(UserWarning, match="no head is trained beside the adapter.* which Classifier has to say"):
        tlora.train(adapted, classes(), **QUICK)


@pytest.mark.parametrize("head", ["dense", "output"])
def test_a_head_that_is_called_like_modules_of_the_blocks_is_refused(head: str) -> None:
    model = Classifier(tiny_config("bert"), head=head).eval()
    _, allocation = calibrate_and_allocate(model, tiny_batch("bert"), target_modules="attention")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=f"ends like that of the head, {head}, and PEFT would train both whole"):
        tlora.attach(model, None, allocation)
    assert [name for name, _ in model.named_modules()] == before
    get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=f"ends like that of the head, {head}, and PEFT would train both whole"):
        tlora.attach(model, None, allocation, replace=True)
    assert [name for name, _ in model.named_modules()] == before


@pytest.mark.parametrize("shared", ["weight", "layer"])
def test_a_weight_of_two_modules_is_not_merged_into(shared: str) -> None:
    model = tiny_model("llama")
    one, other = (layer.mlp for layer in model.model.layers)
    if shared == "layer":
        other.up_proj = one.up_proj
    else:
        other.up_proj.weight = one.up_proj.weight
    adapted = tlora.attach(model, None, calibrate_and_allocate(model)[1])
    with pytest.raises(ValueError, match=r"layers\.[01]\.mlp\.up_proj shares its weight with .*: keep the adapter"):
        tlora.merge(adapted)


def test_a_block_that_is_used_twice_is_merged_as_it_computes() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    adapted = tlora.attach(model, None, calibrate_and_allocate(model)[1])
    batch = tiny_batch(model)
    with torch.no_grad():
        for layer in adapter_layers(adapted).values():
            layer.lora_B["default"].weight.normal_(std=0.2)
        expected = adapted(**batch).logits
        torch.testing.assert_close(tlora.merge(adapted)(**batch).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["w", "g", "random"])
def test_rows_along_which_nothing_varies_stay_of_the_usual_length(kind: Any) -> None:
    model = tiny_model("llama")
    batch = tiny_batch(model, (9, 9, 9))
    batch["labels"][:, :-1] = -100  # one token each: without variance within a sample
    calibration, allocation = calibrate_and_allocate(model, batch, tokens="labels", gradient=True)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, kind=kind, progress=False)
    adapted = tlora.attach(model, subspaces, allocation, rows="variance")
    for name, layer in adapter_layers(adapted).items():
        lengths = layer.lora_A["default"].weight.norm(dim=1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, 3**-0.5), msg=name)


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


def condition(model: nn.Module) -> list[Any]:
    """What a refusal must leave as it was."""
    modules = [(n, type(m), m.training, len(m._forward_hooks)) for n, m in model.named_modules()]
    return [modules, [(n, p.requires_grad, p.grad is None) for n, p in model.named_parameters()]]


def with_a_draft() -> Any:
    """A model that carries another one: full names of the first are suffixes of names of the second."""
    model = tiny_model("llama")
    model.draft = tiny_model("llama", seed=1)
    return model


def rising(model: nn.Module, **options: Any) -> tlora.Allocation:
    """Rising scores, so that every module has a rank and a scaling that few others have."""
    targets = target_modules(model)
    scores = torch.arange(1, len(targets) + 1)[None].float()
    return tlora.allocate(Sensitivity(targets, scores, Meta()), rank=4, **options)


def test_a_name_that_ends_in_another_gets_its_own_rank() -> None:
    model = with_a_draft()
    allocation = rising(model)
    layers = adapter_layers(tlora.attach(model, None, allocation))
    assert {name: layer.r["default"] for name, layer in layers.items()} == allocation.ranks
    assert {name: layer.scaling["default"] for name, layer in layers.items()} == pytest.approx(allocation.scalings)
    name = "model.layers.0.self_attn.q_proj"
    assert allocation.ranks[name] != allocation.ranks[f"draft.{name}"]


def test_a_module_outside_the_allocation_is_not_wrapped_silently() -> None:
    model = with_a_draft()
    allocation = rising(model, exclude_modules=[name for name in target_modules(model) if name.startswith("draft")])
    before = condition(model)
    with pytest.raises(ValueError, match=r"not draft\.model\.layers\.0.*PEFT would adapt both"):
        tlora.attach(model, None, allocation)
    assert condition(model) == before


@pytest.mark.parametrize("lost", ["rank_pattern", "alpha_pattern"])
def test_what_peft_gives_is_compared_with_the_allocation(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlora.adapters import attach

    config = attach.checked_config

    def forgetful(*arguments: Any) -> LoraConfig:
        made = config(*arguments)
        setattr(made, lost, {})
        return made

    monkeypatch.setattr(attach, "checked_config", forgetful)
    model = tiny_model("llama")
    before = condition(model)
    with pytest.raises(
        RuntimeError, match=r"PEFT gave model\.layers\.0.* the allocation has .*report this PEFT version"
    ):
        tlora.attach(model, None, rising(model))
    assert condition(model) == before


@pytest.mark.parametrize("where", ["tlora.adapters.attach._apply", "tlora.adapters.attach.get_peft_model"])
def test_an_interrupt_while_attaching_leaves_the_model_as_it_was(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, subspaces, allocation = planned()
    before = condition(model)

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            tlora.attach(model, subspaces, allocation)
    assert condition(model) == before
    assert len(adapter_layers(tlora.attach(model, subspaces, allocation))) == 14, "and the cell can be run again"


def test_arguments_in_the_wrong_place_are_named() -> None:
    model, subspaces, allocation = planned()
    before = condition(model)
    with pytest.raises(
        TypeError, match=r"model is a str: pass a model, such as tlora\.load_model\('smollm2-135m'\)\[0\]"
    ):
        tlora.calibrate("smollm2-135m", [tiny_batch(model)], progress=False)
    with pytest.raises(TypeError, match=r"model is a tuple: pass a model, such as tlora\.load_model\(\.\.\.\)\[0\]"):
        tlora.calibrate((model, None), [tiny_batch(model)], progress=False)
    with pytest.raises(TypeError, match="calibration is a LlamaForCausalLM: pass what calibrate"):
        tlora.task_subspaces(None, model, progress=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"takes \(model, subspaces, allocation\), got a Allocation and a Subspaces"):
        tlora.attach(model, allocation, subspaces)  # type: ignore[arg-type]
    assert condition(model) == before


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_detached_models_have_their_own_trainable_parameters(family: str) -> None:
    model = tiny_model(family)
    frozen = next(iter(dict(model.named_parameters())))
    model.get_parameter(frozen).requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    allocation = tlora.allocate(tlora.calibrate(model, [tiny_batch(model)], progress=False).sensitivity, rank=4)
    for _ in range(2):
        tlora.detach(tlora.attach(model, None, allocation))
        assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert set(vars(model)) == set(vars(tiny_model(family)))


def attributes(model: nn.Module) -> dict[str, set[str]]:
    """Names of what is stored on each module, by the module's name."""
    return {name: set(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_pipeline_stores_nothing_on_the_modules_of_a_model(family: str, tmp_path: Path) -> None:
    config, batch = tiny_config(family), tiny_batch(family)
    # A masked language model has no pooler: that of a classifier is initialized when it is loaded.
    base = transformers.BertForMaskedLM(config) if family == "bert" else transformers.LlamaForCausalLM(config)
    base.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    auto = transformers.AutoModelForSequenceClassification if family == "bert" else transformers.AutoModelForCausalLM
    expected = attributes(auto.from_pretrained(tmp_path))

    model, _ = tlora.load_model(tmp_path)
    assert attributes(model) == expected
    calibration = tlora.calibrate(model, [batch], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=4, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=2, max_rank=4)
    for finish in (tlora.detach, tlora.merge):
        adapted = tlora.attach(model, subspaces, allocation)
        ours = [key for found in attributes(adapted).values() for key in found if "tlora" in key]
        tlora.train(adapted, token_rows(8, classes=2 * (family == "bert")), max_steps=2, batch_size=4, progress=False)
        finish(adapted)
        assert not ours
        assert attributes(model) == expected


QUIET: dict[str, Any] = {"max_steps": 3, "batch_size": 4, "progress": False}


def test_an_adapter_that_was_taken_off_is_not_blamed_on_what_is_left() -> None:
    model = adapted_model()
    tlora.detach(model)
    with pytest.raises(ValueError, match="the adapter was taken off this model: attach one to its base, or load it"):
        tlora.train(model, token_rows(8), **QUIET)
