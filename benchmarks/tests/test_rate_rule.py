"""Curvatures are eigenvalues of a dense matrix, rules are judged as by hand, and the page is that of the store."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.lab.methods import METHODS, seeded_adapt
from benchmarks.lab.store import Store
from benchmarks.quality import rate_rule
from benchmarks.quality.best_rates import ARM, best_rates
from benchmarks.quality.pages import fill_blocks
from benchmarks.tests.helpers import job
from tlora.adapters.lora_layers import lora_parameters


def test_the_page_is_of_the_store():
    text = rate_rule.PAGE.read_text()
    assert fill_blocks(text, "rate_rule", rate_rule.TABLES) == text, (
        "run python -m benchmarks.quality.rate_rule --table"
    )


def test_every_arm_has_a_best_rate_in_its_study():
    stored = best_rates().set_index(ARM).index
    assert all(tuple(arm.key(0).values())[:-1] in stored for arm in rate_rule.ARMS)


@pytest.fixture(params=[("llama", "lora"), ("llama", "captured"), ("bert", "lora")], ids=" ".join)
def adapted(request):
    """An adapted tiny model in float64, and batches for it."""
    family, method = request.param
    made = job(family)
    return seeded_adapt(METHODS[method], made).double().eval(), made.task.calibration(8, 4)


def jacobians(model, batch):
    """Return the logits of labeled tokens or samples as an (N, classes) array, and their (N, classes, P) Jacobian."""
    logits = rate_rule.label_logits(model, batch)
    parameters = [b for _, b in lora_parameters(model).values()]
    rows = [
        torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters, retain_graph=True)])
        for value in logits.flatten()
    ]
    return logits.detach().numpy(), torch.stack(rows).view(*logits.shape, -1).numpy()


def dense(model, batches):
    """Return the Gauss-Newton matrix (P, P) and the gradient of each batch, from Jacobians by NumPy."""
    matrices, gradients = [], []
    for batch in batches:
        logits, jacobian = jacobians(model, batch)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        curved = np.einsum("nc,cd->ncd", p, np.eye(p.shape[1])) - np.einsum("nc,nd->ncd", p, p)
        matrices.append(np.einsum("ncp,ncd,ndq->pq", jacobian, curved, jacobian, optimize=True) / len(logits))
        labels = batch["labels"]
        labels = labels if labels.dim() == 1 else labels[:, 1:][labels[:, 1:] != -100]
        gradients.append(np.einsum("nc,ncp->p", p - np.eye(p.shape[1])[labels], jacobian) / len(logits))
    return np.mean(matrices, 0), np.array(gradients)


def test_curvatures_are_the_largest_eigenvalues_of_the_dense_matrix(adapted):
    model, batches = adapted
    matrix, gradients = dense(model, batches)
    parameters = [b for _, b in lora_parameters(model).values()]
    vector = torch.randn(len(matrix), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product = rate_rule.gauss_newton_product(model, batches, parameters, vector)
    np.testing.assert_allclose(product.numpy(), matrix @ vector.numpy(), rtol=0, atol=1e-3 * product.abs().max())

    root = np.sqrt(np.sqrt((gradients**2).mean(0)) + rate_rule.EPSILON)
    for values, whole in zip(
        rate_rule.curvatures(model, batches), (matrix, matrix / np.outer(root, root)), strict=True
    ):
        largest = np.linalg.eigvalsh(whole)[-1]
        assert np.all(np.diff(values) > -1e-6 * largest), "a Rayleigh quotient never falls"
        assert 0.9 * largest < values[-1] < 1.001 * largest


def test_a_range_test_begins_with_adamws_first_step(adapted):
    model, batches = adapted
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    loss = model(**batches[0]).loss
    gradients = torch.autograd.grad(loss, parameters)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            gradient = gradient * (1 / norm).clamp(max=1)
            parameter -= rate_rule.TEST_RATES[0] * gradient / (gradient.abs() + rate_rule.EPSILON)
        second = model(**batches[1]).loss.item()
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    losses = rate_rule.range_test(model, [batches[0], batches[1], *batches])
    assert losses[:2] == pytest.approx([loss.item(), second], rel=1e-6)


def test_the_rate_of_a_range_test_is_where_the_mean_over_all_batches_is_lowest():
    losses = [4.0, 3.0, 5.0, 4.0, 3.0, 2.0, 4.0, 3.0, 2.5, 2.6, 9.0, 20.0]  # windows of four: lowest from 2.0 to 2.5
    assert rate_rule.range_rate(losses) == rate_rule.TEST_RATES[8]


@pytest.fixture
def table():
    """Five tasks with both families: the best rate is 3 or 6 over the curvature, the other measurements are noise."""
    curvature = np.array([100.0, 800.0, 3000.0, 24000.0, 50.0])
    rows = [
        {"family": family, "recipe": family, "group": f"task {n}", "best": constant / value, "curvature": 1 / value}
        for family, constant in zip(rate_rule.FAMILIES, (3.0, 6.0), strict=True)
        for n, value in enumerate(curvature)
    ]
    return pd.DataFrame(rows).assign(adam_curvature=1.0, range=[1, 100, 1, 100, 1] * 2)


def test_constants_are_medians_of_the_other_tasks(table):
    assert rate_rule.doublings_off(table, "curvature").tolist() == pytest.approx([0] * 10, abs=1e-12)
    best = table["best"].to_numpy()[:5]
    others = [np.median(np.log2(np.delete(best, n))) for n in range(5)]
    assert rate_rule.doublings_off(table, None)[:5].tolist() == pytest.approx(others - np.log2(best))
    assert rate_rule.doublings_off(table, None, only=rate_rule.LORA)[5:].tolist() == pytest.approx(
        others - np.log2(2 * best)
    )


def test_a_constant_by_recipe_tells_recipes_of_one_family_apart(table):
    table["recipe"] = ["low", "high", "high", "low", "high"] * 2
    table["best"] = table["recipe"].map({"low": 1e-3, "high": 8e-3})
    assert rate_rule.doublings_off(table, None, by="recipe").tolist() == [0] * 10
    assert rate_rule.doublings_off(table, None)[:5].tolist() == pytest.approx([3, -1.5, -1.5, 3, -1.5])
    verdicts = rate_rule.judge(table).set_index("rule")
    assert verdicts.loc[rate_rule.BY_RECIPE, "difference"] == 1
    assert not verdicts.loc[rate_rule.BY_RECIPE, "wins"]


def test_a_rule_wins_if_it_hits_more_often_on_resampled_tasks(table):
    verdicts = rate_rule.judge(table).set_index("rule")
    assert verdicts.loc["curvature", [*rate_rule.FAMILIES, "off"]].tolist() == pytest.approx([1, 1, 0])
    assert verdicts.loc["curvature", "wins"]
    assert verdicts.loc["AdamW's curvature", "difference"] == 0  # the same everywhere, so it is the constant
    assert verdicts.loc[rate_rule.BY_RECIPE, "difference"] == 0  # each family has one recipe here
    assert not verdicts.drop("curvature")["wins"].any()
    constant = (rate_rule.doublings_off(table, None).abs() <= 1).mean()
    assert verdicts.loc["curvature", "difference"] == pytest.approx(1 - constant)


def test_seeds_are_averaged_and_missing_cells_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rate_rule, "STORE", Store(tmp_path / "cells.jsonl"))
    arm = rate_rule.ARMS[0]
    for seed, curvature in enumerate((100.0, 400.0)):
        record = {
            "curvature": [1.0, curvature],
            "adam_curvature": [curvature / 10],
            "losses": [3.0, 2.0, 1.0, 0.0, 9.0],
        }
        rate_rule.STORE.append({"key": arm.key(seed), **record})
    (row,) = rate_rule.measurements().to_dict("records")
    assert (row["task"], row["family"], row["best"]) == ("letter_counting", "LoRA", 8e-3)
    assert (row["curvature"], row["adam_curvature"]) == pytest.approx((1 / 200, 1 / 20))
    assert row["range"] == pytest.approx(rate_rule.TEST_RATES[3])
    assert rate_rule.missing_cells().endswith("70 of them are missing.")
