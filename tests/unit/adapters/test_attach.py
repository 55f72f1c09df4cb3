"""Attaching, detaching and merging, with PEFT as the judge."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model

import tlora
from tests.helpers.adapted import (
    calibrate_tiny,
    check_layers,
    condition,
    logits,
    model_with_draft,
    prepare,
    rising_allocation,
    step,
    train_once,
)
from tests.helpers.foreign import BATCH, experts, foreign
from tests.helpers.models import FAMILIES, tiny_batch, tiny_model
from tlora.adapters.lora_layers import adapter_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_the_allocation_is_what_peft_computes(family: str) -> None:
    model, subspaces, allocation = prepare(family)
    batch = tiny_batch(model)
    before = logits(model, batch)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    adapted = tlora.attach(model, subspaces, allocation, rows="orthonormal")
    assert isinstance(adapted, PeftModel)
    assert torch.equal(logits(adapted, batch), before)  # step 0 is the base, to the bit
    check_layers(adapted, allocation)
    for name, layer in adapter_layers(adapted).items():
        assert torch.equal(layer.lora_A["default"].weight, subspaces.basis(name, allocation.ranks[name]))
        assert not layer.lora_B["default"].weight.any()
    trainable = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_B" in n or "modules_to_save" in n for n in trainable)
    assert sum(p.numel() for n, p in trainable.items() if "lora_B" in n) == allocation.trainable_parameters
    step(adapted, batch)
    assert not torch.equal(logits(adapted, batch), before)
    base = adapted.unload().state_dict()
    changed = {k for k, v in weights.items() if not torch.equal(base[k], v)}  # W was never written to
    assert all(key.startswith("classifier") for key in changed)


def test_a_stays_frozen_whatever_peft_does() -> None:
    model, subspaces, allocation = prepare()
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


@pytest.mark.parametrize(("init", "ranks", "scales"), list(itertools.product([True, False], repeat=3)))
def test_the_eight_cells_of_the_ablation(init: bool, ranks: bool, scales: bool) -> None:
    model, subspaces, allocation = prepare(adapt_ranks=ranks, adapt_scales=scales)
    start = subspaces if init else None
    adapted = tlora.attach(model, start, allocation, freeze_a=init, rows="orthonormal")
    layers = adapter_layers(adapted).values()
    assert (len({layer.r["default"] for layer in layers}) > 1) == ranks
    assert (len({layer.scaling["default"] for layer in layers}) > 1) == scales
    rows = torch.cat([layer.lora_A["default"].weight.norm(dim=1) for layer in layers])
    assert torch.allclose(rows, torch.ones_like(rows), atol=1e-5) == init
    assert all(layer.lora_A["default"].weight.requires_grad != init for layer in layers)
    assert all(not p.requires_grad for n, p in adapted.named_parameters() if "lora_" not in n)


def test_random_a_is_seeded_and_leaves_the_global_generator_alone() -> None:
    def first_row(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        model, _, allocation = prepare()
        torch.manual_seed(5)
        adapted = tlora.attach(model, None, allocation, freeze_a=False, seed=seed)
        return next(iter(adapter_layers(adapted).values())).lora_A["default"].weight, torch.rand(1)

    (one, after_one), (two, after_two), (other, _) = first_row(0), first_row(0), first_row(1)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert after_one == after_two


def test_rows_are_by_variance_by_default() -> None:
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch(model, (30, 40))], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    adapted = tlora.attach(model, subspaces, tlora.allocate(calibration.sensitivity, rank=4, max_rank=8))
    for name, layer in adapter_layers(adapted).items():
        a, c = layer.lora_A["default"].weight.double(), calibration.covariance[name].dense().double()
        expected = float(c.trace()) / (3 * c.shape[0])
        torch.testing.assert_close(
            (a @ c @ a.T).diagonal(), torch.full((len(a),), expected).double(), rtol=1e-3, atol=0
        )


@pytest.mark.parametrize("rows", ["orthonormal", "variance"])
def test_inputs_without_variance_give_rows_of_the_usual_length(rows: Any) -> None:
    model = tiny_model("llama")
    batch = tiny_batch(model, (9, 9, 9))
    batch["labels"][:, :-1] = -100  # one labeled token a sample, which varies around its mean by nothing
    calibration = tlora.calibrate(model, [batch], tokens="labels", gradient=True, progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, kind="w", progress=False)
    assert subspaces.to_frame()["explained_variance"].isna().all()
    before = logits(model, batch)
    adapted = tlora.attach(model, subspaces, tlora.allocate(calibration.sensitivity, 4, max_rank=8), rows=rows)
    for layer in adapter_layers(adapted).values():
        a = layer.lora_A["default"].weight
        length = 1 if rows == "orthonormal" else 1 / 3  # as long as a random row of LoRA
        torch.testing.assert_close(a @ a.T, length * torch.eye(len(a)), rtol=0, atol=1e-5)
    assert torch.equal(logits(adapted, batch), before)


def test_attaching_twice_is_refused_or_replaces() -> None:
    model, subspaces, allocation = prepare()
    base = logits(model, tiny_batch(model))
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, tiny_batch(model))
    for carrier in (model, adapted):
        with pytest.raises(ValueError, match="already has an adapter"):
            tlora.attach(carrier, subspaces, allocation)
    with pytest.raises(ValueError, match="already has an adapter"):
        calibrate_tiny(model)
    again = tlora.attach(adapted, subspaces, allocation, replace=True)
    assert again.get_base_model() is model
    assert sum(p.numel() for p in again.parameters() if p.requires_grad) == allocation.trainable_parameters
    check_layers(again, allocation)
    assert torch.equal(logits(again, tiny_batch(model)), base)


def test_an_alpha_below_one_is_saved_and_loaded(tmp_path: Path) -> None:
    model, subspaces, _ = prepare()
    allocation = tlora.allocate(calibrate_tiny(model).sensitivity, 4, alpha=0.25, max_rank=16)
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, tiny_batch(model))
    adapted.save_pretrained(tmp_path)
    loaded = tlora.load_adapter(tmp_path, tiny_model("llama"))
    assert torch.equal(logits(loaded, tiny_batch(model)), logits(adapted, tiny_batch(model)))


def test_dropped_modules_get_no_adapter(tmp_path: Path) -> None:
    """Through subspaces, attach, the config for other trainers, saving and loading."""
    model = tiny_model("llama")
    calibration = calibrate_tiny(model)
    allocation = tlora.allocate(calibration.sensitivity, rank=1, min_rank=0)
    assert allocation.dropped
    subspaces = tlora.task_subspaces(model, calibration, max_rank=allocation, progress=False)
    assert subspaces.names == list(allocation.ranks)
    assert tlora.lora_config(model, allocation).target_modules == set(allocation.ranks)
    adapted = tlora.attach(model, subspaces, allocation)
    check_layers(adapted, allocation)
    step(adapted, tiny_batch(model))
    adapted.save_pretrained(tmp_path)
    again = tlora.load_adapter(tmp_path, tiny_model("llama"))
    assert list(adapter_layers(again)) == list(allocation.ranks)
    torch.testing.assert_close(logits(again, tiny_batch(model)), logits(adapted, tiny_batch(model)))


def test_a_name_that_ends_in_another_gets_its_own_rank() -> None:
    model = model_with_draft()
    allocation = rising_allocation(model)
    check_layers(tlora.attach(model, None, allocation), allocation)


@pytest.mark.parametrize("lost", ["rank_pattern", "alpha_pattern"])
def test_what_peft_gives_is_compared_with_the_allocation(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlora.adapters import attach

    def forgetful(model: Any, config: LoraConfig, **options: Any) -> PeftModel:
        setattr(config, lost, {})
        return get_peft_model(model, config, **options)

    monkeypatch.setattr(attach, "get_peft_model", forgetful)
    model = tiny_model("llama")
    before = condition(model)
    with pytest.raises(RuntimeError, match=r"PEFT gave model\.layers\.0"):
        tlora.attach(model, None, rising_allocation(model))
    assert condition(model) == before


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
def test_the_folder_loads_with_peft_alone_and_trains_on(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model, subspaces, allocation = prepare(family)
    batch = tiny_batch(model)
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, batch)
    train_once(adapted).save(tmp_path / "adapter")
    root = str(request.config.rootpath)
    script = SCRIPT.format(root=root, family=family, folder=str(tmp_path / "adapter"), out=str(tmp_path / "out.pt"))
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=root)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), logits(adapted.eval(), batch), atol=1e-5, rtol=0)

    loaded = tlora.load_adapter(tmp_path / "adapter", tiny_model(family))
    torch.testing.assert_close(logits(loaded, batch), logits(adapted, batch), atol=1e-6, rtol=0)
    before = {n: p.clone() for n, p in loaded.named_parameters()}
    with loaded.disable_adapter():
        pass
    step(loaded, batch)
    changed = [n for n, p in loaded.named_parameters() if not torch.equal(p, before[n])]
    assert any("lora_B" in n for n in changed)
    assert all("lora_B" in n or "modules_to_save" in n for n in changed)
    expected = logits(loaded, batch)
    torch.testing.assert_close(logits(tlora.merge(loaded), batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shared", ["weight", "layer"])
def test_a_weight_of_two_modules_is_not_merged_into(shared: str) -> None:
    model = tiny_model("llama")
    one, other = (layer.mlp for layer in model.model.layers)
    if shared == "layer":
        other.up_proj = one.up_proj
    else:
        other.up_proj.weight = one.up_proj.weight
    adapted = tlora.attach(model, None, tlora.allocate(calibrate_tiny(model).sensitivity, 4, max_rank=8))
    with pytest.raises(ValueError, match=r"layers\.[01]\.mlp\.up_proj shares its weight"):
        tlora.merge(adapted)


def test_a_block_that_is_used_twice_is_merged_as_it_computes() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    adapted = tlora.attach(model, None, tlora.allocate(calibrate_tiny(model).sensitivity, 4, max_rank=8))
    batch = tiny_batch(model)
    with torch.no_grad():
        for layer in adapter_layers(adapted).values():
            layer.lora_B["default"].weight.normal_(std=0.2)
        expected = adapted(**batch).logits
        torch.testing.assert_close(tlora.merge(adapted)(**batch).logits, expected, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_detached_models_are_as_they_were(family: str) -> None:
    model, subspaces, allocation = prepare(family)
    frozen = next(iter(dict(model.named_parameters())))
    model.get_parameter(frozen).requires_grad_(False)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    for _ in range(2):
        adapted = tlora.attach(model, subspaces, allocation)
        step(adapted, tiny_batch(model))
        tlora.detach(adapted)
        assert [name for name, _ in model.named_parameters()] == list(before)
        assert all(p.requires_grad == before[n][0] and p.equal(before[n][1]) for n, p in model.named_parameters())
    stored = (
        {name: set(vars(module)) for name, module in each.named_modules()} for each in (model, tiny_model(family))
    )
    assert next(stored) == next(stored)


def refused_attachments() -> dict[str, tuple[Callable[[Any, Any, Any], Any], type[Exception], str]]:
    attach = tlora.attach
    small = tlora.task_subspaces(tiny_model("llama"), calibrate_tiny(tiny_model("llama")), max_rank=2, progress=False)
    return {
        "rank": (lambda m, _, a: attach(m, small, a, replace=True), ValueError, "max_rank"),
        "rows": (lambda m, s, a: attach(m, s, a, rows="long", replace=True), ValueError, "rows"),
        "order": (lambda m, s, a: attach(m, a, s, replace=True), TypeError, "plan is an Allocation: pass a Plan"),
        "weights": (lambda _, s, a: attach(tiny_model("llama", seed=3), s, a), ValueError, "another model"),
        "names": (lambda _, s, a: attach(tiny_model("gpt2"), None, a), ValueError, "another model"),
        "config": (
            lambda m, s, a: attach(m, s, a, config=LoraConfig(r=16), replace=True), ValueError, "r=16",
        ),
    }  # fmt: skip


def test_refusals_leave_the_adapter_on() -> None:
    model, subspaces, allocation = prepare()
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, tiny_batch(model))
    before = condition(adapted), logits(adapted, tiny_batch(model))
    for refused, error, words in refused_attachments().values():
        with pytest.raises(error, match=words):
            refused(model, subspaces, allocation)
    assert condition(adapted) == before[0]
    assert torch.equal(logits(adapted, tiny_batch(model)), before[1])


@pytest.mark.parametrize("where", ["check_ranks_and_scalings", "get_peft_model"])
def test_an_interrupt_while_attaching_leaves_the_model_as_it_was(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, subspaces, allocation = prepare()
    before = condition(model)

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"tlora.adapters.attach.{where}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tlora.attach(model, subspaces, allocation)
    assert condition(model) == before
    assert len(adapter_layers(tlora.attach(model, subspaces, allocation))) == 14, "and the cell can be run again"


def test_what_cannot_be_taken_off_or_merged_is_refused() -> None:
    model, subspaces, allocation = prepare()
    adapted = tlora.attach(model, subspaces, allocation)
    adapted.merge_adapter()
    pissa = foreign(tiny_model("llama"), init_lora_weights="pissa")
    other_kind = get_peft_model(tiny_model("llama"), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    for call, words in (
        (lambda: tlora.merge(adapted), "merged"),
        (lambda: tlora.detach(adapted), "merged"),
        (lambda: tlora.detach(pissa), "pissa"),
        (lambda: tlora.merge(other_kind), "no LoRA layers"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
