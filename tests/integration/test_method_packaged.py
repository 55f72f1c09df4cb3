"""The method's numbers on the packaged real models, against their definitions written out with autograd."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import tlora
from tests.helpers.models import singles
from tlora.models.weights import weight

pytestmark = pytest.mark.packaged


@pytest.fixture(scope="module")
def family(smollm):
    model, tokenizer = smollm
    task = tlora.load_task("family_relationships", tokenizer, train=8, validation=2, test=2)
    batches = task.calibration(4, batch_size=4)
    return model, batches, tlora.calibrate(model, batches, progress=False)


def captured_by_hooks(model, sample, names):
    """Inputs of modules and gradients of their weights for one sample, by plain hooks and autograd."""
    inputs, handles = {}, []
    for name in names:
        module = model.get_submodule(name)
        handles.append(
            module.register_forward_hook(lambda m, a, o, name=name, inputs=inputs: inputs.update({name: a[0]}))
        )
        module.weight.requires_grad_(True)
    model(**sample, use_cache=False).loss.backward()
    gradients = {name: model.get_submodule(name).weight.grad.clone() for name in names}
    for handle in handles:
        handle.remove()
    for name in names:
        model.get_submodule(name).weight.requires_grad_(False)
        model.get_submodule(name).weight.grad = None
    return {name: x.detach()[0].double().numpy() for name, x in inputs.items()}, gradients


def test_smollm_equals_the_definition(family):
    model, batches, calibration = family
    names = [f"model.layers.{i}.{p}" for i in (0, 14, 29) for p in ("self_attn.k_proj", "mlp.down_proj")]
    flags = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    covariance, scores = {}, []
    samples = singles(batches[0])
    for sample in samples:
        inputs, gradients = captured_by_hooks(model, sample, names)
        for name, x in inputs.items():
            x = x - x.mean(0)
            covariance[name] = covariance.get(name, 0) + x.T @ x / len(samples)
        scores.append([float((model.get_submodule(n).weight.detach() * g).abs().mean()) for n, g in gradients.items()])
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    for i, name in enumerate(names):
        found = calibration.covariance[name].dense().numpy()
        assert np.linalg.norm(found - covariance[name]) <= 1e-4 * np.linalg.norm(covariance[name]), name
        column = calibration.names.index(name)
        naive = np.array(scores)[:, i]
        found = calibration.sensitivity.per_sample[:, column].numpy()
        assert np.linalg.norm(found - naive) <= 1e-4 * np.linalg.norm(naive), name


def test_smollm_subspaces_capture_the_optimum(family):
    model, _, calibration = family
    found = tlora.task_subspaces(model, calibration, max_rank=32, progress=False)
    for name in ("model.layers.0.mlp.up_proj", "model.layers.29.self_attn.o_proj"):
        m = weight(model.get_submodule(name)).double() @ calibration.covariance[name].dense().double()
        best = torch.linalg.svdvals(m).square()
        for rank in (1, 8, 32):
            energy = float((m @ found.basis(name, rank).double().T).square().sum())
            assert energy >= 0.9999 * float(best[:rank].sum()), (name, rank)


def test_smollm_starts_as_the_base_and_two_runs_are_one(family, smollm):
    model, batches, _ = family
    with torch.no_grad():
        expected = model(input_ids=batches[0]["input_ids"], attention_mask=batches[0]["attention_mask"]).logits
    states = []
    for _ in range(2):
        fresh = copy.deepcopy(model)
        calibration = tlora.calibrate(fresh, batches, progress=False)
        subspaces = tlora.task_subspaces(fresh, calibration, max_rank=16, seed=3, progress=False)
        allocation = tlora.allocate(calibration.sensitivity, rank=4, max_rank=16)
        adapted = tlora.attach(fresh, subspaces, allocation)
        with torch.no_grad():
            logits = adapted(input_ids=batches[0]["input_ids"], attention_mask=batches[0]["attention_mask"]).logits
        torch.testing.assert_close(logits, expected, atol=0, rtol=0)
        states.append(
            (allocation.ranks, allocation.scalings, {k: v for k, v in adapted.state_dict().items() if "lora_A" in k})
        )
    assert states[0][:2] == states[1][:2]
    assert all(torch.equal(v, states[1][2][k]) for k, v in states[0][2].items())
    assert sum(states[0][0].values()) == 4 * 210


def test_a_bigger_allocation_costs_no_new_decomposition(family):
    model, _, calibration = family
    subspaces = tlora.task_subspaces(model, calibration, max_rank=16, progress=False)
    for rank in (1, 2, 4):
        allocation = tlora.allocate(calibration.sensitivity, rank=rank, max_rank=16)
        adapted = tlora.attach(model, subspaces, allocation, replace=True)
        assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == allocation.trainable_parameters
    tlora.detach(model)


def test_minilm_equals_the_definition(minilm):
    model, tokenizer = minilm
    task = tlora.load_task("rotten_tomatoes", tokenizer, train=32, validation=8, test=8)
    batches = task.calibration(4, batch_size=4)
    calibration = tlora.calibrate(model, batches, progress=False)
    assert len(calibration.names) == 36
    names = [calibration.names[i] for i in (0, 17, 35)]
    flags = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    total = dict.fromkeys(names, 0)
    for i, sample in enumerate(singles(batches[0])):
        inputs = {}
        handles = [
            model.get_submodule(n).register_forward_hook(lambda m, a, o, n=n, inputs=inputs: inputs.update({n: a[0]}))
            for n in names
        ]
        for n in names:
            model.get_submodule(n).weight.requires_grad_(True)
        model(**sample).loss.backward()
        for handle in handles:
            handle.remove()
        for n in names:
            x = inputs[n].detach()[0].double().numpy()
            x = x - x.mean(0)
            total[n] = total[n] + x.T @ x / 4
            w = model.get_submodule(n).weight
            score = float((w.detach() * w.grad).abs().mean())
            assert float(calibration.sensitivity.per_sample[i, calibration.names.index(n)]) == pytest.approx(
                score, rel=1e-3
            )
            w.grad = None
            w.requires_grad_(False)
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    for n in names:
        found = calibration.covariance[n].dense().numpy()
        assert np.linalg.norm(found - total[n]) <= 1e-4 * np.linalg.norm(total[n])
