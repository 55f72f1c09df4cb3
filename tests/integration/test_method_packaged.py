"""The method's numbers on the packaged models, against their definitions written out with autograd."""

from __future__ import annotations

import copy

import pytest
import torch

import tlora
from tests.helpers.models import singles
from tlora.models.weights import weight

pytestmark = [pytest.mark.packaged, pytest.mark.rest]


@pytest.fixture(scope="module")
def family(smollm):
    model, tokenizer = smollm
    task = tlora.load_task("family_relationships", tokenizer, train=8, validation=2, test=2)
    batches = task.calibration(4, batch_size=4)
    return model, batches, tlora.calibrate(model, batches, progress=False)


def check_definition(model, batch, calibration, names):
    """``X^T X`` of the centered inputs, and ``mean |W * dL/dW|``, of each sample alone, by hooks and autograd."""
    model, covariance, scores = copy.deepcopy(model).requires_grad_(False), dict.fromkeys(names, 0), []
    modules = {name: model.get_submodule(name) for name in names}
    inputs = {}
    for name, module in modules.items():
        module.weight.requires_grad_(True)
        module.register_forward_hook(lambda module, args, output, name=name: inputs.update({name: args[0]}))
    samples = singles(batch)
    for sample in samples:
        gradients = torch.autograd.grad(model(**sample).loss, [module.weight for module in modules.values()])
        for name, x in inputs.items():
            x = x.detach()[0].double()
            covariance[name] += (x - x.mean(0)).T @ (x - x.mean(0)) / len(samples)
        weights = [module.weight.detach() for module in modules.values()]
        scores.append([float((w * g).abs().mean()) for w, g in zip(weights, gradients, strict=True)])
    columns = [calibration.names.index(name) for name in names]
    torch.testing.assert_close(
        calibration.sensitivity.per_sample[:, columns], torch.tensor(scores), rtol=1e-3, atol=1e-9
    )
    for name, expected in covariance.items():
        assert torch.dist(calibration.covariance[name].dense().double(), expected) <= 1e-4 * expected.norm(), name


def test_smollm_equals_the_definition(family):
    model, batches, calibration = family
    names = [f"model.layers.{i}.{p}" for i in (0, 14, 29) for p in ("self_attn.k_proj", "mlp.down_proj")]
    check_definition(model, batches[0], calibration, names)


def test_minilm_equals_the_definition(minilm):
    model, tokenizer = minilm
    task = tlora.load_task("rotten_tomatoes", tokenizer, train=32, validation=8, test=8)
    (batch,) = task.calibration(4, batch_size=4)
    calibration = tlora.calibrate(model, [batch], progress=False)
    check_definition(model, batch, calibration, [calibration.names[i] for i in (0, 17, 35)])


def test_smollm_subspaces_capture_the_optimum(family):
    model, _, calibration = family
    subspaces = tlora.task_subspaces(model, calibration, max_rank=32, progress=False)
    for name in ("model.layers.0.mlp.up_proj", "model.layers.29.self_attn.o_proj"):
        m = weight(model.get_submodule(name)).double() @ calibration.covariance[name].dense().double()
        best = torch.linalg.svdvals(m).square()
        for rank in (1, 8, 32):
            energy = float((m @ subspaces.basis(name, rank).double().T).square().sum())
            assert energy >= 0.9999 * float(best[:rank].sum()), (name, rank)


def test_smollm_starts_as_the_base_and_two_runs_are_one(family):
    model, batches, _ = family
    inputs = {key: batches[0][key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**inputs).logits
    runs = []
    for _ in range(2):
        fresh = copy.deepcopy(model)
        calibration = tlora.calibrate(fresh, batches, progress=False)
        subspaces = tlora.task_subspaces(fresh, calibration, max_rank=16, seed=3, progress=False)
        allocation = tlora.allocate(calibration.sensitivity, rank=4, max_rank=16)
        adapted = tlora.attach(fresh, subspaces, allocation)
        with torch.no_grad():
            assert adapted(**inputs).logits.equal(expected)
        a = {name: tensor for name, tensor in adapted.state_dict().items() if "lora_A" in name}
        runs.append((allocation.ranks, allocation.scalings, a))
    one, other = runs
    assert one[:2] == other[:2]
    assert all(tensor.equal(other[2][name]) for name, tensor in one[2].items())
    assert sum(one[0].values()) == 4 * 210


@pytest.mark.slow
def test_what_tlora_reads_holds_more_of_the_gradient_than_chance_gives(smollm):
    model, tokenizer = smollm
    task = tlora.load_task("family_relationships", tokenizer)
    calibration = tlora.calibrate(model, task.calibration(4), gradient=True, target_modules="attention", progress=False)
    options = {"max_rank": 8, "progress": False}
    subspaces = {kind: tlora.task_subspaces(model, calibration, kind=kind, **options) for kind in ("wc", "g", "random")}
    held_out = [task.collate(list(task.validation.select(range(4))))]
    capture = tlora.gradient_capture(model, held_out, subspaces, [8], progress=False)
    shares, chance = capture.overall().set_index("kind"), 8 / 576
    assert shares.loc["random", "captured"] == pytest.approx(chance, rel=0.3)
    assert shares.loc["wc", "low"] > 10 * chance
    assert shares.loc["g", "low"] > shares.loc["wc", "high"]
    assert (shares["captured"] < shares["best"]).all()
    overlap = tlora.align(subspaces["wc"], subspaces["random"], 8).to_frame()
    assert overlap["overlap"].mean() == pytest.approx(chance, rel=0.3)
