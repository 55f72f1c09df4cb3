"""What each picture shows equals the table of its result."""

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.colors import LogNorm

import viz
from tests.helpers.pictured import MODELS, cells, sensitivity, texts
from viz import style


@pytest.mark.parametrize("model", MODELS)
def test_sensitivity_cells_are_the_shares(model):
    result = sensitivity(model)
    ax = viz.plot_sensitivity(result)
    projections, layers = MODELS[model]
    expected = [[result.scores[f"layers.{layer}.{p}"] for layer in range(layers)] for p in projections]
    total = sum(result.scores.values())
    np.testing.assert_allclose(cells(ax), 100 * np.array(expected) / total)
    written = [role if len(role) <= 40 else f"…{role[-39:]}" for role in projections]
    assert [label.get_text() for label in ax.get_yticklabels()] == written
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the block runs from top to bottom


def test_sensitivity_says_which_module_is_highest():
    result = sensitivity("30 layers")
    ax = viz.plot_sensitivity(result)
    top = max(result.scores, key=result.scores.__getitem__)
    share = result.scores[top] / sum(result.scores.values())
    assert f"layer {result.layers[top]} {result.projections[top]}" in ax.get_title(loc="left")
    assert f"{100 * share:.2g} % of the total" in texts(ax)[-1]


def test_sensitivity_writes_shares_only_where_they_fit():
    result = sensitivity("2 layers")
    shares = result.to_frame()["share"]
    assert texts(viz.plot_sensitivity(result))[:-1] == [f"{100 * share:.1f}" for share in shares]
    assert len(texts(viz.plot_sensitivity(sensitivity("80 layers")))) == 1


def test_a_score_of_zero_has_the_lowest_color():
    whole = sensitivity("2 layers")
    scores = whole.per_sample * torch.logspace(0, 3, len(whole.names))
    scores[:, 0] = 0
    ax = viz.plot_sensitivity(dataclasses.replace(whole, per_sample=scores))
    mesh = ax.collections[0]
    assert isinstance(mesh.norm, LogNorm)
    assert tuple(mesh.to_rgba(mesh.get_array())[0, 0]) == style.SEQUENTIAL(0)
    assert ax.texts[0].get_text() == "0.0"


def test_scores_that_are_all_zero_have_no_order_and_no_shares():
    whole = sensitivity("2 layers")
    ax = viz.plot_sensitivity(dataclasses.replace(whole, per_sample=torch.zeros_like(whole.per_sample)))
    assert ax.get_title(loc="left") == "The loss reaches no module"
    assert texts(ax) == ["all scores are zero  ·  smollm2-135m, family_relationships, 5\u00a0samples"]
    mesh = ax.collections[0]
    assert {tuple(face) for face in mesh.to_rgba(mesh.get_array()).reshape(-1, 4)} == {style.SEQUENTIAL(0)}
