"""What goes through elsewhere and gives a wrong result, and bad input: refused in words, the model as it was.

A table in CONTRIBUTING.md says where each guard stands; `tests/long/test_guards.py` takes each of them out.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

import tlora
from tests.helpers import tiny_batch, tiny_config, tiny_model, tiny_tokenizer
from tests.unit.test_adapter import logits, planned, saved_run, step
from tlora.adapters.lora_layers import adapter_layers
from tlora.calibration.batches import Tokens
from tlora.calibration.covariance import CovarianceSum
from tlora.calibration.sensitivity import Sensitivity
from tlora.models.targets import target_modules
from tlora.results import Meta
from tlora.subspaces.subspaces import Kind
from tlora.utils.reproducibility import module_seed

QUICK: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 2, "evaluation_limit": 0, "progress": False}


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


# Wrapped twice.


def test_loading_onto_an_adapted_model_is_refused(folder: Path) -> None:
    model = tiny_model("llama")
    loaded = tlora.load(folder, model)
    for carrier in (model, loaded):
        with pytest.raises(ValueError, match="already has an adapter"):
            tlora.load(folder, carrier)


# Statistics of padding, with dropout, or of nothing.


def test_what_stands_at_padding_is_never_read() -> None:
    counted = torch.tensor([[True, True, False], [True, False, True]])
    x = torch.randn(2, 3, 4)
    tokens = Tokens.of(counted, x.device)
    total, same = CovarianceSum(4), CovarianceSum(4)
    same.update(tokens.samples([x]))
    x[~counted] = torch.tensor([[torch.nan] * 4, [torch.inf] * 4])
    total.update(tokens.samples([x]))
    assert total.finish(2).dense().equal(same.finish(2).dense())


def test_calibration_is_without_dropout() -> None:
    batch = tiny_batch("bert")
    still, dropping = (
        tlora.calibrate(m, [batch], progress=False) for m in (tiny_model("bert"), tiny_model("bert").train())
    )
    assert still.sensitivity.per_sample.equal(dropping.sensitivity.per_sample)


class _NoGraph(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_a_module_that_no_gradient_reaches_is_named() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp = _NoGraph(model.model.layers[1].mlp)
    before = condition(model)
    with pytest.raises(RuntimeError, match=r"no gradient can reach model\.layers\.1\.mlp\.inner\.gate_proj"):
        tlora.calibrate(model, [tiny_batch("llama")], progress=False)
    assert condition(model) == before
    attention = tlora.calibrate(model, [tiny_batch("llama")], target_modules="attention", progress=False)
    assert all(score > 0 for score in attention.sensitivity.scores.values())


def test_a_call_that_leads_nowhere_is_named() -> None:
    """Its module's score would be zero, or that of the other calls."""
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: (mlp.up_proj(x), forward(x))[1]
    with pytest.raises(RuntimeError, match=r"no gradient comes back to model\.layers\.1\.mlp\.up_proj: in at least"):
        tlora.calibrate(model, [tiny_batch("llama")], progress=False)


def test_a_checkpoint_of_ones_own_changes_no_score() -> None:
    """The modules in it run again in the backward pass: seen again, they would wait for gradients that never come."""
    plain, model = tiny_model("llama"), tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.forward = partial(checkpoint, layer.mlp.forward, use_reentrant=False)
    one, other = (tlora.calibrate(m, [tiny_batch("llama")], progress=False) for m in (plain, model))
    torch.testing.assert_close(one.sensitivity.per_sample, other.sensitivity.per_sample)


def test_tokens_before_samples_are_refused() -> None:
    """As the layers of XLNet read them: padding and samples would be told apart by the wrong axis."""
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(x.transpose(0, 1)).transpose(0, 1)
    with pytest.raises(RuntimeError, match=r"tokens first and its samples second.*batches of one sample"):
        tlora.calibrate(model, [tiny_batch("llama")], progress=False)
    singly = [{k: v[n : n + 1] for k, v in tiny_batch("llama").items()} for n in range(2)]
    one, other = (tlora.calibrate(m, singly, progress=False) for m in (model, tiny_model("llama")))
    torch.testing.assert_close(one.sensitivity.per_sample, other.sensitivity.per_sample)


def test_a_module_that_does_not_run_is_named() -> None:
    model = with_a_draft()
    before = condition(model)
    with pytest.raises(RuntimeError, match=r"draft\.model\.layers\.0\.self_attn\.q_proj did not run .*leave it out"):
        tlora.calibrate(model, [tiny_batch("llama")], progress=False)
    assert condition(model) == before


class _NowAndThen(nn.Module):
    """An MLP that hands its two readers one tensor, and from the second pass on two."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.mlp = mlp
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        other = x.clone() if self.passes > 1 else x
        return self.mlp.down_proj(self.mlp.act_fn(self.mlp.gate_proj(x)) * self.mlp.up_proj(other))


def test_an_input_that_is_shared_now_and_then_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp = _NowAndThen(model.model.layers[0].mlp)
    before = condition(model)
    words = r"layers\.0\.mlp\.mlp\.up_proj shares its input with .*gate_proj in one batch and with .*up_proj in another"
    with pytest.raises(RuntimeError, match=words):
        tlora.calibrate(model, [tiny_batch("llama")] * 2, progress=False)
    assert condition(model) == before


class _Checkpointed(nn.Module):
    """A block that recomputes whatever the mode, as code outside transformers does; no gradient reaches into it."""

    gradient_checkpointing = True

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self.gradient_checkpointing:
            return checkpoint(partial(self.block, **kwargs), x, use_reentrant=True)
        return self.block(x, **kwargs)


def test_checkpointing_that_ignores_the_mode_is_off_during_calibration() -> None:
    plain, model = tiny_model("llama"), tiny_model("llama")
    model.model.layers = nn.ModuleList(_Checkpointed(block) for block in model.model.layers)
    expected, found = (tlora.calibrate(m, [tiny_batch("llama")], progress=False) for m in (plain, model))
    assert found.sensitivity.per_sample.equal(expected.sensitivity.per_sample)
    for one, other in zip(found.covariance.values(), expected.covariance.values(), strict=True):
        assert one.dense().equal(other.dense())
    assert all(block.gradient_checkpointing for block in model.model.layers)


# Patterns that match something else, and what PEFT makes of a plan.


def with_a_draft() -> Any:
    """A model that carries another one: full names of the first are suffixes of names of the second."""
    model = tiny_model("llama")
    model.draft = tiny_model("llama", seed=1)
    return model


def plan(model: nn.Module, **knobs: Any) -> tlora.Allocation:
    """Rising scores, so that every module has a rank and a scaling that few others have."""
    targets = target_modules(model)
    scores = torch.arange(1, len(targets) + 1)[None].float()
    shapes = {name: (target.d_out, target.d_in) for name, target in targets.items()}
    layers = {name: target.layer for name, target in targets.items()}
    projections = {name: target.projection for name, target in targets.items()}
    return tlora.allocate(Sensitivity(scores, shapes, layers, projections, Meta()), rank=4, **knobs)


def test_a_name_that_ends_in_another_gets_its_own_rank() -> None:
    model = with_a_draft()
    allocation = plan(model)
    layers = adapter_layers(tlora.attach(model, None, allocation))
    assert {name: layer.r["default"] for name, layer in layers.items()} == allocation.ranks
    assert {name: layer.scaling["default"] for name, layer in layers.items()} == pytest.approx(allocation.scalings)
    name = "model.layers.0.self_attn.q_proj"
    assert allocation.ranks[name] != allocation.ranks[f"draft.{name}"]


def test_a_module_outside_the_plan_is_not_wrapped_silently() -> None:
    model = with_a_draft()
    allocation = plan(model, exclude=[name for name in target_modules(model) if name.startswith("draft")])
    before = condition(model)
    with pytest.raises(RuntimeError, match=r"other modules than planned, e\.g\. draft\.model\.layers\.0"):
        tlora.attach(model, None, allocation)
    assert condition(model) == before


@pytest.mark.parametrize("lost", ["rank_pattern", "alpha_pattern"])
def test_what_peft_gives_is_compared_with_the_plan(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlora.adapters import attach

    config = attach._config

    def forgetful(*arguments: Any) -> LoraConfig:
        made = config(*arguments)
        setattr(made, lost, {})
        return made

    monkeypatch.setattr(attach, "_config", forgetful)
    model = tiny_model("llama")
    before = condition(model)
    with pytest.raises(RuntimeError, match=r"PEFT gave model\.layers\.0.* planned were .*report this PEFT version"):
        tlora.attach(model, None, plan(model))
    assert condition(model) == before


# Reloaded.


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


def cut(file: str, size: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size])


def write(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "adapter_config.json").write_text(text)


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "header": (cut("adapter_model.safetensors", 100), ValueError, r"adapter_model\.safetensors is damaged .*copy it"),
    "tensors": (cut("adapter_model.safetensors", 9000), ValueError, r"adapter_model\.safetensors is damaged .*copy it"),
    "config": (cut("adapter_config.json", 40), ValueError, r"adapter_config\.json is truncated, or no config"),
    "foreign": (write('{"hello": 1}'), ValueError, r"adapter_config\.json is truncated, or no config"),
    "list": (write("[1, 2]"), ValueError, r"adapter_config\.json is truncated, or no config"),
    "ia3": (write('{"peft_type": "IA3"}'), ValueError, "of type IA3: load takes LoRA"),
    "run": (cut("tlora/run/result.json", 40), ValueError, r"result\.json is not valid JSON"),
    "half": (lambda f: (f / "adapter_model.safetensors").unlink(), FileNotFoundError, r"no adapter_model\.safetensors"),
}


@pytest.mark.parametrize(("damage", "error", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_foreign_adapter_is_refused(
    damage: Any, error: type, words: str, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    if "result" not in words:  # without a record of the run, as anybody's
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


# Heads.


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
    with pytest.raises(ValueError, match=r"'heads\.0' is the output head, never a target"):
        target_modules(_Heads(), ["heads.0"])


# Seeds.


def test_the_seed_of_a_module_is_the_same_in_every_process() -> None:
    name = "model.layers.0.mlp.up_proj"
    assert zlib.crc32(b"a") == 0xE8B7BE43  # the check value of CRC-32, whatever computes it
    assert module_seed(0, "a") == 0xE8B7BE43
    assert module_seed(3, name) == 3 * 1_000_003 + zlib.crc32(name.encode())


def test_the_walk_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch(model)], gradient=True, progress=False)
    kinds: tuple[Kind, ...] = ("wc", "random", "wc_half")
    for kind in kinds:
        subspaces = tlora.task_subspaces(model, calibration, max_rank=16, kind=kind, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=4, max_rank=16)
    tlora.attach(model, subspaces, allocation)
    tlora.export(tlora.attach(model, None, allocation, replace=True), tmp_path / "served")
    tlora.load(tmp_path / "served", tiny_model("llama"))
    assert torch.get_rng_state().equal(torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_a_completed_basis_is_the_same_on_two_runs() -> None:
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch(model, lengths=(3, 3))], progress=False)
    one, two = (tlora.task_subspaces(model, calibration, max_rank=8, progress=False) for _ in range(2))
    assert all(one.numerical_rank[name] < 8 for name in one.names)
    assert all(one.bases[name].equal(two.bases[name]) for name in one.names)


# Served.


def test_an_exported_conv1d_is_read_without_a_word_and_merges_right(tmp_path: Path) -> None:
    model, subspaces, allocation = planned("gpt2")
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, tiny_batch("gpt2"))
    expected = logits(adapted.eval(), tiny_batch("gpt2"))
    config = json.loads((tlora.export(adapted, tmp_path / "served") / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"]
    merged = PeftModel.from_pretrained(tiny_model("gpt2"), str(tmp_path / "served")).eval().merge_and_unload()
    torch.testing.assert_close(logits(merged, tiny_batch("gpt2")), expected, atol=1e-5, rtol=0)


def test_a_full_disk_leaves_the_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, _ = trained(tmp_path)
    served = tlora.export(adapted, tmp_path / "served")
    earlier = {path.name: path.read_bytes() for path in served.iterdir()}
    before = condition(adapted)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tlora.export(adapted, served)
    assert {path.name: path.read_bytes() for path in served.iterdir()} == earlier
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "served"]
    assert condition(adapted) == before


# Interrupted.


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


# Bad input that has no test where its function is tested.


def changed(key: str, value: Callable[[torch.Tensor], torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    batch = tiny_batch("llama")
    return [batch | {key: value(batch[key])}]


BAD_BATCHES: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (None, TypeError, r"batches is a NoneType: pass a list of dicts"),
    "one": (tiny_batch("llama"), TypeError, r"batches is a dict: pass a list of dicts"),
    "used up": (iter([]), ValueError, r"no batches to run: the iterable is empty"),
    "float ids": (changed("input_ids", torch.Tensor.float), ValueError, r"input_ids of type torch\.float32"),
    "float labels": (
        changed("labels", torch.Tensor.float),
        ValueError,
        r"labels of type torch\.float32.*whole numbers",
    ),
    "label": (
        changed("labels", lambda x: x + 70 * (x > 0)),
        ValueError,
        r"batch 0 has label \d+, the model knows 0 to 63",
    ),
    "negative": (
        changed("labels", lambda x: x.clamp(min=-1)),
        ValueError,
        r"label -1.*-100 for labels that do not count",
    ),
}


@pytest.mark.parametrize(("batches", "error", "words"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_bad_batches_are_refused(batches: Any, error: type, words: str) -> None:
    model = tiny_model("llama")
    before = condition(model)
    with pytest.raises(error, match=words):
        tlora.calibrate(model, batches, progress=False)
    assert condition(model) == before


def test_arguments_in_the_wrong_place_are_named() -> None:
    model, subspaces, allocation = planned()
    before = condition(model)
    with pytest.raises(TypeError, match=r"model is a str: pass a model, such as tlora\.load_model\(\.\.\.\)\[0\]"):
        tlora.calibrate("smollm2-135m", [tiny_batch(model)], progress=False)
    with pytest.raises(TypeError, match=r"model is a tuple: pass a model, such as tlora\.load_model\(\.\.\.\)\[0\]"):
        tlora.calibrate((model, None), [tiny_batch(model)], progress=False)
    with pytest.raises(TypeError, match="calibration is a LlamaForCausalLM: pass what calibrate"):
        tlora.task_subspaces(None, model, progress=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"takes \(model, subspaces, allocation\), got a Allocation and a Subspaces"):
        tlora.attach(model, allocation, subspaces)  # type: ignore[arg-type]
    assert condition(model) == before


@pytest.mark.parametrize("max_rank", [0, -3, 2.5, "8"])
def test_a_largest_rank_that_is_none_is_refused(max_rank: Any) -> None:
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch(model)], progress=False)
    with pytest.raises(ValueError, match="use a whole number of at least 1"):
        tlora.task_subspaces(model, calibration, max_rank=max_rank, progress=False)
