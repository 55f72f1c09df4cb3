"""Heat maps of modules: cells, labels and what does not fit."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

import tlora
import viz
from tests.helpers.experts import routed, tiny_mixture
from tests.helpers.pictured import META, MODELS, alignment, allocation, cells, sensitivity
from tlora.calibration.sensitivity import Sensitivity


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("plot", [viz.plot_sensitivity, viz.plot_allocation, viz.plot_alignment])
def test_each_cell_is_as_wide_and_high_as_its_place(plot, model):
    """One layer or one projection says nothing of how wide its cells are."""
    made = {viz.plot_sensitivity: sensitivity, viz.plot_allocation: allocation, viz.plot_alignment: alignment}
    corners = plot(made[plot](model)).collections[0].get_coordinates()
    projections, layers = MODELS[model]
    assert corners[:, 0, 1].tolist() == [i - 0.5 for i in range(len(projections) + 1)]
    assert corners[0, :, 0].tolist() == [i - 0.5 for i in range(layers + 1)]


def test_all_experts_of_a_parameter_are_one_cell_with_their_mean():
    calibration = routed()
    kinds = [tlora.task_subspaces(tiny_mixture(), calibration, max_rank=2, kind=k, progress=False) for k in ("c", "wc")]
    aligned = tlora.align(*kinds, rank=2)
    scores, overlaps = (
        pd.Series(values).groupby(lambda name: name.partition("[")[0]).mean()
        for values in (calibration.sensitivity.scores, aligned.overlap)
    )
    for ax, means in (
        (viz.plot_sensitivity(calibration.sensitivity), 100 * scores / scores.sum()),
        (viz.plot_alignment(aligned), overlaps),
    ):
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert labels[4:] == ["experts.gate_up_proj", "experts.down_proj"]
        expected = [means[f"model.layers.{layer}.mlp.experts.down_proj"] for layer in (0, 1)]
        np.testing.assert_allclose(cells(ax)[5], expected, rtol=1e-5)


def test_only_the_layers_that_there_are_have_columns():
    whole = sensitivity("30 layers")
    kept = {n: target for n, target in whole.targets.items() if target.layer in (3, 10, 29)}
    part = Sensitivity(kept, whole.per_sample[:, [whole.names.index(n) for n in kept]], META)
    ax = viz.plot_sensitivity(part)
    ax.figure.canvas.draw()
    assert cells(ax).shape[1] == 3
    assert not np.ma.getmaskarray(cells(ax)).any()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["3", "10", "29"]
    rows, columns = list(dict.fromkeys(part.projections.values())), [3, 10, 29]
    for name, score in part.scores.items():
        shown = cells(ax)[rows.index(part.projections[name]), columns.index(part.layers[name])]
        assert shown == pytest.approx(100 * score / sum(part.scores.values()))


def test_texts_of_the_color_bar_do_not_meet():
    """Where modules are excluded, all ranks may lie far from the uniform one and near each other."""
    most = allocation("2 layers", exclude_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"])
    ax = viz.plot_allocation(dataclasses.replace(most, ranks=dict(zip(most.ranks, (27, 29, 28, 28), strict=True))))
    bar = next(each for each in ax.figure.findobj(Axes) if each.get_title() == "rank")
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in bar.get_xticklabels() if label.get_text()]
    assert boxes
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
