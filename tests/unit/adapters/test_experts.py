"""Adapters of experts: put on a model, trained, saved, merged, and read again by tlora and by PEFT."""

from __future__ import annotations

import copy
import logging

import peft
import pytest
import torch
from datasets import Dataset
from torch import Tensor

import tlora
from tests.helpers.adapted import token_rows
from tests.helpers.experts import FAMILIES, experts_modules, tiny_mixture
from tests.helpers.models import tiny_batch, tiny_tokenizer
from tlora.adapters.lora_layers import adapter_layers, lora_updates

# PEFT compares rank_pattern with modules alone, and warns of each key of a parameter; the ranks are right.
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")

BATCH = tiny_batch("llama")
INPUTS = {key: BATCH[key] for key in ("input_ids", "attention_mask")}
REAL = BATCH["attention_mask"].bool()


def _prepare(model, select="experts", rank=2, **options):
    recipe = tlora.Recipe.named("captured").override(calibrate={"target_modules": select}, **options)
    return tlora.prepare(model, [BATCH], recipe, rank, progress=False)


def _logits(model) -> Tensor:
    return model(**INPUTS).logits[REAL].detach()


def _move(adapted, seed=1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_peft_computes_is_the_base_plus_each_experts_update(family, tmp_path):
    model = tiny_mixture(family)
    before, bare = _logits(model), copy.deepcopy(model)
    plan = _prepare(model)
    adapted = tlora.attach(model, plan)
    torch.testing.assert_close(_logits(adapted), before, msg="B is zero")
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_B" in name for name in trained), "A is frozen"
    _move(adapted)
    after = _logits(adapted)
    assert (after - before).abs().max() > 0.01

    naive = copy.deepcopy(bare)
    with torch.no_grad():
        for module_name, module in experts_modules(naive).items():
            for key in ("gate_up_proj", "down_proj"):
                layer = adapter_layers(adapted)[f"{module_name}.{key}"]
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                rank = plan.allocation.ranks[f"{module_name}.{key}"]
                for expert in range(4):
                    basis = plan.subspaces.basis(f"{module_name}.{key}[{expert}]", rank)
                    rows = a[expert * rank : (expert + 1) * rank]
                    unit = rows / rows.norm(dim=1, keepdim=True)
                    torch.testing.assert_close(unit, basis, msg="rows of A are the expert's directions")
                    columns = b[:, expert::4]  # by rank, then by expert
                    delta = plan.allocation.scalings[f"{module_name}.{key}"] * columns @ rows
                    getattr(module, key)[expert] += delta.T if module.is_transposed else delta
    torch.testing.assert_close(_logits(naive), after, atol=1e-4, rtol=1e-4)

    adapted.save_pretrained(tmp_path / "plain", save_embedding_layers=False)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path / "plain")
    torch.testing.assert_close(_logits(again), after, rtol=0, atol=0)
    ours = tlora.load_adapter(tmp_path / "plain", copy.deepcopy(bare))
    torch.testing.assert_close(_logits(ours), after, rtol=0, atol=0)
    assert {n: u.rank for n, u in lora_updates(ours).items()} == plan.allocation.ranks
    merged = tlora.merge(adapted)
    torch.testing.assert_close(_logits(merged), after, atol=1e-4, rtol=1e-4)


def test_ranks_are_by_parameter_and_spend_the_budget():
    plan = _prepare(tiny_mixture(), ["attention", "experts"], rank=3)
    allocation = plan.allocation
    assert sum("experts" in name for name in allocation.ranks) == 4
    b = {name: target.d_out * target.experts for name, target in allocation.targets.items()}
    used = sum(rank * b[name] for name, rank in allocation.ranks.items())
    assert allocation.budget_total - min(b.values()) < used <= allocation.budget_total == 3 * sum(b.values())
    by_score = tlora.allocate(plan.calibration.sensitivity, 3)
    cost = {name: target.experts for name, target in by_score.targets.items()}
    assert sum(rank * cost[name] for name, rank in by_score.ranks.items()) == 3 * (8 + 4 * 4)
    name = "model.layers.0.mlp.experts.down_proj"
    energies = [plan.subspaces.singular_values[f"{name}[{expert}]"].double().square() for expert in range(4)]
    assert allocation.energies[name] == pytest.approx(sum(energies).tolist())
    scores = plan.calibration.sensitivity.scores
    assert by_score.scores[name] == pytest.approx(sum(scores[f"{name}[{expert}]"] for expert in range(4)) / 4)
    adapted = tlora.attach(tiny_mixture(), plan)
    held = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert held == allocation.trainable_parameters
    assert sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n) == allocation.footprint().parameters


def test_training_lowers_the_loss_with_a_frozen_and_goes_on(tmp_path):
    model = tiny_mixture()
    bare = copy.deepcopy(model)
    adapted = tlora.attach(model, _prepare(model, ["attention", "experts"]))
    a = {n: p.detach().clone() for n, p in adapted.named_parameters() if "lora_A" in n}
    run = tlora.train(adapted, token_rows(6), max_steps=12, batch_size=3, learning_rate=2e-2, progress=False,
                      output_dir=tmp_path / "steps", save_steps=6)  # fmt: skip
    assert run.after["train_loss"] < run.before["train_loss"]
    for name, parameter in adapted.named_parameters():
        if name in a:
            torch.testing.assert_close(parameter.detach(), a[name], rtol=0, atol=0)
    assert set(run.ranks) == set(lora_updates(adapted))
    use = run.rank_use()
    assert (use["used_rank"] > 0).all()
    assert (run.module_history["gradient_norm"] > 0).all()
    folder = run.save(tmp_path / "adapter")
    again = tlora.load_adapter(folder, copy.deepcopy(bare))
    torch.testing.assert_close(_logits(again), _logits(adapted), rtol=0, atol=0)
    assert not any(p.requires_grad for n, p in again.named_parameters() if "lora_A" in n)
    with pytest.raises(ValueError, match="another weight"):
        tlora.load_adapter(folder, _moved(bare))
    inspection = tlora.inspect(folder)
    assert dict(inspection.ranks) == run.ranks
    for engine, refused in inspection.engines()[["engine", "refused"]].to_numpy():
        assert ("experts" in refused) == (not engine.startswith(("PEFT", "mlx")))


def _moved(model):
    other = copy.deepcopy(model)
    for module in experts_modules(other).values():
        module.down_proj.data = torch.randn_like(module.down_proj)
    return other


def _by_expert(model, **attach):
    """A plan whose experts have ranks of their own."""
    allocate = {"rank_by_expert": True, "min_rank": 0}
    return _prepare(model, ["attention", "experts"], 3, allocate=allocate, **({"attach": attach} if attach else {}))


def _expert_factors(adapted, name, expert) -> tuple[Tensor, Tensor]:
    """``A`` and ``B`` of an expert, by PEFT's order: rows by expert and then rank, columns by rank and then expert."""
    layer = adapter_layers(adapted)[name]
    a, b = (factors["default"].weight.detach() for factors in (layer.lora_A, layer.lora_B))
    return a.reshape(4, -1, a.shape[1])[expert], b[:, expert::4]


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("random", [False, True])
def test_each_expert_has_the_rank_of_its_own_and_the_rest_is_zero(random, family, tmp_path):
    model = tiny_mixture(family)
    bare, plan = copy.deepcopy(model), _by_expert(model)
    allocation = plan.allocation
    assert any(len(set(ranks)) > 1 for ranks in allocation.expert_ranks.values())
    adapted = tlora.attach(model, None if random else plan.subspaces, allocation)
    assert {n: u.rank for n, u in lora_updates(adapted).items()} == allocation.stored_ranks
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == allocation.trainable_parameters
    before = copy.deepcopy(_deltas(adapted))
    assert not any(delta.any() for delta in before.values())
    run = tlora.train(adapted, token_rows(6), max_steps=6, batch_size=3, learning_rate=2e-2, progress=False)
    assert run.trainable_parameters == allocation.trainable_parameters
    after, naive, zeros = _logits(adapted), copy.deepcopy(bare), 0
    with torch.no_grad():
        for name, ranks in allocation.expert_ranks.items():
            module = naive.get_submodule(name.rpartition(".")[0])
            for expert, rank in enumerate(ranks):
                a, b = _expert_factors(adapted, name, expert)
                assert not a[rank:].any()
                assert not b[:, rank:].any()
                assert a[:rank].any(dim=1).all()
                zeros += b[:, rank:].numel()
                delta = allocation.scalings[name] * b[:, :rank] @ a[:rank]
                getattr(module, name.rpartition(".")[2])[expert] += delta.T if module.is_transposed else delta
        for name, delta in _deltas(adapted).items():
            if "experts" not in name:
                naive.get_submodule(name).weight += delta
    assert zeros == allocation.zero_parameters > 0
    torch.testing.assert_close(_logits(naive), after, atol=1e-4, rtol=1e-4)
    folder = run.save(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(bare), folder)
    torch.testing.assert_close(_logits(again), after, rtol=0, atol=0)
    ours = tlora.load_adapter(folder, copy.deepcopy(bare))
    torch.testing.assert_close(_logits(ours), after, rtol=0, atol=0)
    assert dict(tlora.inspect(folder).ranks) == run.ranks == allocation.stored_ranks
    use = run.rank_use().set_index("module")
    assert (use["used_rank"] <= use["rank"]).all()
    merged = tlora.merge(adapted)
    torch.testing.assert_close(_logits(merged), after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"freeze_a_after": 0.5}])
def test_with_a_trained_too_rows_beyond_the_rank_of_an_expert_stay_zero(options):
    model = tiny_mixture()
    plan = _by_expert(model, freeze_a=False)
    adapted = tlora.attach(model, plan)
    start = {n: p.detach().clone() for n, p in adapted.named_parameters() if "lora_A" in n}
    tlora.train(adapted, token_rows(6), max_steps=8, batch_size=3, learning_rate=2e-2, progress=False, **options)
    assert all((p.detach() != start[n]).any() for n, p in adapted.named_parameters() if n in start), "A is trained"
    for name, ranks in plan.allocation.expert_ranks.items():
        for expert, rank in enumerate(ranks):
            a, b = _expert_factors(adapted, name, expert)
            assert not a[rank:].any()
            assert not b[:, rank:].any()


def test_what_is_done_to_an_adapter_keeps_the_ranks_of_the_experts(tmp_path):
    model = tiny_mixture()
    bare, plan = copy.deepcopy(model), _by_expert(model)
    folder = tlora.save_initial(tlora.attach(model, plan), tmp_path / "start")
    adapted = tlora.load_adapter(folder, copy.deepcopy(bare))
    tlora.train(adapted, token_rows(6), max_steps=4, batch_size=3, learning_rate=2e-2, progress=False)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    whole = _plain(tmp_path / "adapter")
    adapter = tlora.LoraAdapter.read(tmp_path / "adapter")
    (2 * adapter).save(tmp_path / "twice")
    tlora.combine({tmp_path / "adapter": 1.0, tmp_path / "start": 1.0}).save_adapter(tmp_path / "sum")
    tlora.compress(tmp_path / "adapter", energy=1.0).save_adapter(tmp_path / "small")
    for name, factor in (("twice", 2), ("sum", 1), ("small", 1)):
        for module, delta in _plain(tmp_path / name).items():
            torch.testing.assert_close(delta, factor * whole[module], atol=1e-5, rtol=1e-4)
    data = Dataset.from_dict({"prompt": ["w4 w5 w6"], "completion": ["w7 w8"]})
    task = tlora.load_task({"test": data}, tiny_tokenizer())
    (sample,) = tlora.attribute(adapted, task, answers=False, progress=False).samples
    for name, ranks in plan.allocation.expert_ranks.items():
        for expert, rank in enumerate(ranks):
            assert not sample.by_direction[name][:, expert, rank:].any()


def test_an_untrained_start_is_saved(tmp_path):
    model = tiny_mixture()
    folder = tlora.save_initial(tlora.attach(model, _prepare(model)), tmp_path / "start")
    again = tlora.load_adapter(folder, tiny_mixture())
    assert all("lora_B" in name for name, p in again.named_parameters() if p.requires_grad)


def test_the_config_of_an_allocation_names_the_parameters():
    model = tiny_mixture()
    allocation = _prepare(model, ["attention", "experts"]).allocation
    config = tlora.lora_config(model, allocation)
    assert sorted(config.target_parameters) == [name for name in sorted(allocation.ranks) if "experts" in name]
    adapted = peft.get_peft_model(model, config)
    assert {n: u.rank for n, u in lora_updates(adapted).items()} == allocation.ranks
    assert {n: u.scaling for n, u in lora_updates(adapted).items()} == pytest.approx(allocation.scalings)


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"lora_bias": True}, {"use_dora": True}])
def test_options_that_experts_do_not_have_are_refused(options):
    model = tiny_mixture()
    allocation = _prepare(model).allocation
    with pytest.raises(ValueError, match=next(iter(options))):
        tlora.lora_config(model, allocation, **options)


def _trained(folder, seed=1, select=("attention", "experts")):
    """A saved adapter with random B on a tiny mixture, and the model that it is on."""
    model = tiny_mixture()
    adapted = tlora.attach(model, _prepare(model, list(select)))
    _move(adapted, seed)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted


def _deltas(adapted) -> dict[str, Tensor]:
    """The dense update of each module and expert, by what PEFT adds to the weight."""
    deltas = {}
    for name, layer in adapter_layers(adapted).items():
        delta = layer.get_delta_weight("default").detach()
        deltas |= {f"{name}[{e}]": part for e, part in enumerate(delta)} if delta.ndim == 3 else {name: delta}
    return deltas


def _parameter(name: str) -> str:
    return name.partition("[")[0]


def _plain(folder) -> dict[str, Tensor]:
    """The dense updates of a saved adapter, read by PEFT itself."""
    return _deltas(peft.PeftModel.from_pretrained(tiny_mixture(), folder))


@pytest.mark.parametrize("select", [("experts",), ("experts.down_proj",), ("attention", "experts.gate_up_proj")])
def test_an_adapter_with_experts_is_read_scaled_and_saved_again(select, tmp_path):
    adapted = _trained(tmp_path / "adapter", select=select)
    expected = _deltas(adapted)
    for source in (adapted, tmp_path / "adapter"):
        halved = (0.5 * tlora.LoraAdapter.read(source)).save(tmp_path / "half")
        there = _plain(halved)
        assert there.keys() == expected.keys()
        for name, delta in there.items():
            torch.testing.assert_close(delta, 0.5 * expected[name], rtol=1e-6, atol=1e-7)


def test_a_cut_keeps_the_leading_directions_of_each_expert_and_its_error_is_of_all(tmp_path):
    before = _deltas(_trained(tmp_path / "adapter"))
    adapter = tlora.LoraAdapter.read(tmp_path / "adapter")
    half = tlora.compress(tmp_path / "adapter", parameters=0.5)
    sizes = {name: update.a.numel() + update.b.numel() for name, update in adapter.updates.items()}
    kept = sum(half.ranks[name] * size / adapter.ranks[name] for name, size in sizes.items())
    assert half.parameters == (sum(sizes.values()), kept)
    after = _plain(half.save_adapter(tmp_path / "half"))
    lost, whole = {}, {}
    for name, delta in before.items():
        u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
        rank = half.ranks[_parameter(name)]
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(after.get(name, torch.zeros_like(delta)).double(), best, rtol=1e-4, atol=1e-5)
        for sums, values in ((lost, s[rank:]), (whole, s)):
            sums[_parameter(name)] = sums.get(_parameter(name), 0) + float(values.square().sum())
    table = half.to_frame().set_index("module")
    for name in whole:
        assert table["error"][name] == pytest.approx((lost[name] / whole[name]) ** 0.5, rel=1e-4, abs=1e-6)


def test_a_cut_by_outputs_loses_least_on_the_rows_that_each_expert_reads(tmp_path):
    before = _deltas(_trained(tmp_path / "adapter"))
    calibration = tlora.calibrate(tiny_mixture(), [BATCH], target_modules=["attention", "experts"], progress=False)
    cut = tlora.compress(tmp_path / "adapter", rank=1, calibration=calibration)
    after = _plain(cut.save_adapter(tmp_path / "cut"))
    lost, whole = {}, {}
    for name, delta in before.items():
        moment = calibration.covariance[calibration.shared[name]].second_moment().dense().double()
        values, vectors = torch.linalg.eigh(moment)
        root = vectors * values.clamp(min=0).sqrt()
        s = torch.linalg.svdvals(delta.double() @ root)
        error = ((after[name] - delta).double() @ root).square().sum()
        assert float(error) == pytest.approx(float(s[1:].square().sum()), rel=1e-3, abs=1e-6)
        for sums, value in ((lost, error), (whole, s.square().sum())):
            sums[_parameter(name)] = sums.get(_parameter(name), 0) + float(value)
    table = cut.to_frame().set_index("module")
    for name in whole:
        assert table["error"][name] == pytest.approx((lost[name] / whole[name]) ** 0.5, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", ["sum", "magnitude_prune"])
def test_two_adapters_with_experts_are_combined_expert_by_expert(method, tmp_path):
    first, second = _deltas(_trained(tmp_path / "a", 1)), _deltas(_trained(tmp_path / "b", 2, ["experts"]))
    both = tlora.combine(
        {tmp_path / "a": 1.0, tmp_path / "b": -0.5}, method=method, rank=None if method == "sum" else 32
    )
    after = _plain(both.save_adapter(tmp_path / "both"))
    for name, delta in first.items():
        terms = [(1.0, delta), (-0.5, second.get(name))]
        expected = sum(weight * (part if method == "sum" else _largest_half(part)) for weight, part in terms
                       if part is not None)  # fmt: skip
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-5)
    numel = {name: update.a.numel() + update.b.numel() for name, update in both.lora.updates.items()}
    assert both.to_frame().set_index("module")["parameters"].to_dict() == numel


def _largest_half(delta: Tensor) -> Tensor:
    kept = torch.zeros_like(delta).flatten()
    order = delta.abs().flatten().argsort(descending=True)[: delta.numel() // 2]
    kept[order] = delta.flatten()[order]
    return kept.reshape(delta.shape)


def test_a_calibration_without_the_experts_is_refused(tmp_path):
    _trained(tmp_path / "adapter")
    calibration = tlora.calibrate(tiny_mixture(), [BATCH], target_modules="attention", progress=False)
    with pytest.raises(ValueError, match=r"no model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        tlora.compress(tmp_path / "adapter", rank=1, calibration=calibration)


def test_a_parameter_that_holds_no_experts_is_refused():
    adapted = peft.get_peft_model(
        tiny_mixture(), peft.LoraConfig(r=2, target_modules=[], target_parameters=["q_proj.weight"])
    )
    with pytest.raises(ValueError, match=r"q_proj\.weight"):
        tlora.LoraAdapter.read(adapted)


@pytest.mark.parametrize("function", ["export", "interference", "survival"])
def test_functions_without_experts_say_so(function, tmp_path):
    adapted = _trained(tmp_path / "adapter")
    calls = {
        "export": lambda: tlora.export(adapted, tmp_path / "out"),
        "interference": lambda: tlora.interference(adapted, tmp_path / "adapter"),
        "survival": lambda: tlora.survival(adapted),
    }
    with pytest.raises(ValueError, match=rf"experts.*{function}"):
        calls[function]()


def test_captured_gradient_of_held_out_samples_is_measured_by_expert(caplog):
    model = tiny_mixture()
    with caplog.at_level(logging.ERROR):
        plan = _prepare(model)
    capture = tlora.gradient_capture(
        model, [tiny_batch("llama", seed=3)], {"fisher": plan.subspaces}, ranks=[2], progress=False
    )
    assert set(capture.names) == set(plan.subspaces.names)
    row = capture.overall().iloc[0]
    assert row["random"] < row["captured"] <= row["best"]
