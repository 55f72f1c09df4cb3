"""Attaching, loading and merging, with PEFT as the judge."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings

import pytest
import torch
from peft import PeftModel

import tlora
from tests.helpers import FAMILIES, tiny_batch, tiny_model, tiny_tokenizer
from tlora.adapters.lora_layers import adapter_layers


def planned(family="llama", max_rank=16, **knobs):
    model = tiny_model(family)
    calibration = tlora.calibrate(model, [tiny_batch(model)], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=max_rank, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=4, **{"max_rank": max_rank, **knobs})
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
def test_the_plan_is_what_peft_computes(family):
    model, subspaces, allocation = planned(family)
    batch = tiny_batch(model)
    before = logits(model, batch)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    adapted = tlora.attach(model, subspaces, allocation)
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
    model, subspaces, allocation = planned(ranks=ranks, scales=scales)
    adapted = tlora.attach(model, subspaces if init else None, allocation, freeze_a=init)
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


def test_rows_by_variance():
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch(model, (30, 40))], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=4, max_rank=8)
    adapted = tlora.attach(model, subspaces, allocation, rows="variance")
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


def test_pattern_keys_match_one_module_only():
    """T5's encoder and decoder blocks have the same suffixes; each must get its own rank."""
    model, subspaces, allocation = planned("t5")
    ranks = {name: 1 + i % 4 for i, name in enumerate(allocation.ranks)}
    plan = tlora.Allocation(**{**vars(allocation), "ranks": ranks})
    adapted = tlora.attach(model, subspaces, plan)
    assert {n: layer.r["default"] for n, layer in adapter_layers(adapted).items()} == ranks


SCRIPT = """
import sys, json, torch
from peft import PeftModel
sys.path.insert(0, {root!r})
from tests.helpers import tiny_batch, tiny_model
model = PeftModel.from_pretrained(tiny_model({family!r}), {folder!r}).eval()
batch = tiny_batch({family!r})
extra = {{"labels": batch["labels"]}} if model.config.is_encoder_decoder else {{}}
with torch.no_grad():
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **extra).logits
assert "tlora" not in sys.modules
torch.save(out, {out!r})
"""


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "gpt2"])
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
