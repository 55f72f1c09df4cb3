"""Statistics by expert against their definitions: autograd of the three-dimensional parameters, hooks, NumPy."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor

import tlora
from tests.helpers.experts import FAMILIES, as_linear, check_pooled, experts_modules, tiny_mixture, upcycle
from tests.helpers.models import singles, tiny_batch, tiny_model
from tlora.calibration.experts import PRIOR_ROWS, ExpertPool


def _calibrate(model, batches, **options):
    options = {"target_modules": "experts", "gradient": True, "fisher": True} | options
    return tlora.calibrate(model, batches, progress=False, **options)


def _loss(model, sample) -> Tensor:
    return model(**sample).loss


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_by_sample_and_expert_are_those_of_autograd(family, top_k, padding):
    model = tiny_mixture(family, top_k)
    exact = copy.deepcopy(model).double()
    exact.config._experts_implementation = "eager"
    batch = tiny_batch("llama", padding=padding)
    modules = experts_modules(exact)
    expected, total = {}, {}
    for n, sample in enumerate(singles(batch)):
        exact.zero_grad()
        _loss(exact, sample).backward()
        for name, module in modules.items():
            for key in ("gate_up_proj", "down_proj"):
                parameter = getattr(module, key)
                for expert in range(4):
                    target = f"{name}.{key}[{expert}]"
                    gradient = as_linear(parameter.grad[expert], module)
                    w = as_linear(parameter.detach()[expert], module)
                    expected[target, n] = float((w * gradient).abs().mean())
                    total[target] = total.get(target, 0) + gradient / 3
    calibration = _calibrate(model, [batch])
    scores = dict(zip(calibration.names, calibration.sensitivity.per_sample.T.tolist(), strict=True))
    assert scores.keys() == total.keys()
    for name, by_sample in scores.items():
        assert by_sample == pytest.approx([expected[name, n] for n in range(3)], rel=1e-4, abs=1e-9)
        gradient = calibration.gradient[name].dense().double()
        torch.testing.assert_close(gradient, total[name], rtol=1e-4, atol=1e-5 * float(total[name].abs().max()) + 1e-9)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_covariances_are_of_the_rows_that_the_router_sends(family, padding):
    """By a hook on the module, sample by sample without padding: masked tokens count nowhere."""
    model = tiny_mixture(family)
    batch = tiny_batch("llama", padding=padding)
    seen: list = []
    name, module = next(iter(experts_modules(model).items()))
    handle = module.register_forward_pre_hook(lambda _, args: seen.append([arg.detach() for arg in args]))
    for sample in singles(batch):
        model(**sample)
    handle.remove()
    covariance = _calibrate(model, [batch]).covariance
    for expert in range(4):
        total, count, samples = torch.zeros(32, 32), 0, 0
        for hidden, index, _ in seen:
            rows = hidden.reshape(-1, 32)[(index == expert).any(-1)]
            if len(rows):
                centered = rows - rows.mean(0)
                total += centered.T @ centered / 3
                count, samples = count + len(rows), samples + 1
        ours = covariance[f"{name}.gate_up_proj[{expert}]"]
        torch.testing.assert_close(ours.dense(), total, rtol=1e-4, atol=1e-5)
        assert (ours.rank_bound, ours.rank_bound + ours.means.count) == (count - samples, count)


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (8, 3)])
def test_a_model_upcycled_to_equal_experts_has_the_statistics_of_the_model(experts, top_k):
    dense, batch = tiny_model("llama"), tiny_batch("llama")
    mixture = upcycle(dense, experts, top_k)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(mixture(**inputs).logits[real], dense(**inputs).logits[real])
    whole = tlora.calibrate(dense, [batch], gradient=True, progress=False)
    check_pooled(_calibrate(mixture, [batch]), whole, experts, top_k)


def test_batches_of_any_shape_give_the_same_numbers():
    model, batch = tiny_mixture(), tiny_batch("llama")
    whole, alone = _calibrate(model, [batch]), _calibrate(model, singles(batch))
    torch.testing.assert_close(whole.sensitivity.per_sample, alone.sensitivity.per_sample, rtol=1e-4, atol=1e-8)
    for name in whole.names:
        torch.testing.assert_close(whole.fisher[name].dense(), alone.fisher[name].dense(), rtol=1e-4, atol=1e-6)


def test_linear_layers_have_the_same_statistics_with_experts_and_without():
    model, batch = tiny_mixture(), tiny_batch("llama")
    alone = tlora.calibrate(model, [batch], progress=False, target_modules="attention")
    both = tlora.calibrate(model, [batch], progress=False, target_modules=["attention", "experts"])
    for name in alone.names:
        assert both.sensitivity.scores[name] == pytest.approx(alone.sensitivity.scores[name], rel=1e-4)


def test_experts_are_given_rows_of_the_pool():
    calibration = _calibrate(tiny_mixture(), [tiny_batch("llama", lengths=(9, 12, 5))])
    parameter = "model.layers.0.mlp.experts.down_proj"
    names = [f"{parameter}[{expert}]" for expert in range(4)]
    pool = ExpertPool(calibration)
    shrunk = {
        "covariance": {name: pool.moment(name, centered=True) for name in names},
        "fisher": {name: pool.fisher(name) for name in names},
    }
    for what, result in shrunk.items():
        raw = getattr(calibration, what)
        rows = sum(raw[name].rank_bound for name in names)
        pooled = sum(raw[name].dense() for name in names) / rows
        for name in names:
            torch.testing.assert_close(result[name].dense(), raw[name].dense() + PRIOR_ROWS * pooled)
            assert result[name].trace == pytest.approx(float(result[name].dense().trace()), rel=1e-4)
    rows = sum(map(pool.rows, names))
    mean = sum(calibration.gradient[name].dense() for name in names) / rows
    for name in names:
        expected = calibration.gradient[name].dense() + PRIOR_ROWS * mean
        torch.testing.assert_close(pool.gradient(name).dense(), expected)


def test_an_expert_without_rows_gets_the_pooled_directions_and_is_named(caplog):
    model = tiny_mixture("mixtral", top_k=1)
    with torch.no_grad():  # equal logits: the router always chooses the same expert
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()
    calibration = _calibrate(model, [tiny_batch("llama")])
    assert "12 of 16 experts" in caplog.text
    assert re.search(r"experts\.gate_up_proj\[\d\]", caplog.text)
    rows = ExpertPool(calibration).rows
    names = [f"model.layers.0.mlp.experts.down_proj[{expert}]" for expert in range(4)]
    (used,), unused = [name for name in names if rows(name)], next(name for name in names if not rows(name))
    for kind in ("fisher", "c"):
        bases = tlora.task_subspaces(model, calibration, max_rank=4, kind=kind, progress=False).bases
        torch.testing.assert_close(bases[unused].abs(), bases[used].abs(), atol=1e-3, rtol=0)
    assert calibration.sensitivity.scores[unused] == 0


def test_statistics_of_many_experts_are_sketched():
    model = tiny_mixture("mixtral", experts=64)
    covariances = _calibrate(model, [tiny_batch("llama")], sketch_size=8).covariances
    assert {c.total.shape[1] for c in covariances.values()} == {8}
    few = _calibrate(tiny_mixture("mixtral"), [tiny_batch("llama")], sketch_size=8).covariances
    assert {c.total.shape[0] == c.total.shape[1] for c in few.values()} == {True}


def test_an_interrupted_calibration_goes_on(tmp_path):
    model, batches = tiny_mixture(), singles(tiny_batch("llama"))
    whole = _calibrate(model, batches)
    _calibrate(model, batches[:2], checkpoint=tmp_path, checkpoint_every=0)
    resumed = _calibrate(model, batches, checkpoint=tmp_path)
    for name in whole.names:
        torch.testing.assert_close(resumed.fisher[name].total, whole.fisher[name].total)
        torch.testing.assert_close(resumed.gradient[name].corange, whole.gradient[name].corange)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpointed_calibration_has_the_same_numbers(family):
    model, batch = tiny_mixture(family), tiny_batch("llama")
    select = {"target_modules": ["attention", "experts"]}
    plain = _calibrate(model, [batch], **select)
    checkpointed = _calibrate(model, [batch], gradient_checkpointing=True, **select)
    torch.testing.assert_close(checkpointed.sensitivity.per_sample, plain.sensitivity.per_sample, rtol=0, atol=0)
    for name, covariance in plain.covariances.items():
        torch.testing.assert_close(checkpointed.covariances[name].total, covariance.total, rtol=0, atol=0)
        torch.testing.assert_close(checkpointed.fisher[name].total, plain.fisher[name].total, rtol=0, atol=0)
