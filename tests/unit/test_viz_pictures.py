"""What each picture shows equals the table of its result."""

from __future__ import annotations

import dataclasses
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.text import Text

import viz
from tests.pictured import META, MODELS, alignment, allocation, cells, sensitivity, spectrum, texts, training_run
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from viz import style


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


# Sensitivity


@pytest.mark.parametrize("model", MODELS)
def test_sensitivity_cells_are_the_scores(model):
    result = sensitivity(model)
    ax = viz.plot_sensitivity(result)
    projections, layers = MODELS[model]
    expected = [[result.scores[f"layers.{layer}.{p}"] for layer in range(layers)] for p in projections]
    np.testing.assert_allclose(cells(ax), expected)
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
    assert texts(viz.plot_sensitivity(result))[:-1] == [f"{share:.1%}" for share in shares]
    assert len(texts(viz.plot_sensitivity(sensitivity("80 layers")))) == 1


def test_a_module_that_is_missing_leaves_a_blank_cell():
    whole = sensitivity("2 layers")
    kept = [n for n in whole.names if n != "layers.1.k_proj"]
    part = Sensitivity(
        whole.per_sample[:, [whole.names.index(n) for n in kept]],
        *({n: values[n] for n in kept} for values in (whole.shapes, whole.layers, whole.projections)),
        META,
    )
    mask = np.ma.getmaskarray(cells(viz.plot_sensitivity(part)))
    assert np.argwhere(mask).tolist() == [[1, 1]]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("plot", [viz.plot_sensitivity, viz.plot_allocation, viz.plot_alignment])
def test_each_cell_is_as_wide_and_high_as_its_place(plot, model):
    """One layer or one projection says nothing of how wide its cells are."""
    made = {viz.plot_sensitivity: sensitivity, viz.plot_allocation: allocation, viz.plot_alignment: alignment}
    corners = plot(made[plot](model)).collections[0].get_coordinates()
    projections, layers = MODELS[model]
    assert corners[:, 0, 1].tolist() == [i - 0.5 for i in range(len(projections) + 1)]
    assert corners[0, :, 0].tolist() == [i - 0.5 for i in range(layers + 1)]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_none_is_refused_by_name(score):
    whole = sensitivity("2 layers")
    scores = whole.per_sample.clone()
    scores[0, 3] = score
    with pytest.raises(ValueError, match=rf"layers\.0\.o_proj is {score}, not a score"):
        viz.plot_sensitivity(dataclasses.replace(whole, per_sample=scores))
    assert not plt.get_fignums()


def test_scores_that_are_equal_are_told_as_such():
    whole = sensitivity("2 layers")
    scores = torch.ones_like(whole.per_sample)
    scores[:, 0] = 0
    ax = viz.plot_sensitivity(dataclasses.replace(whole, per_sample=scores))
    assert ax.get_title(loc="left") == "The loss is most sensitive to 13 modules alike"


def test_colours_are_logarithmic_only_over_more_than_a_decade():
    values = pd.Series([1.0, 5.0])
    even, spread = viz.heatmap.scale(values), viz.heatmap.scale(pd.Series([0.0, 1.0, 50.0]))
    assert not isinstance(even, LogNorm)
    assert isinstance(spread, LogNorm)
    assert (spread.vmin, spread.vmax) == (1, 50)


def test_a_score_of_zero_has_the_lowest_colour():
    whole = sensitivity("2 layers")
    scores = whole.per_sample * torch.logspace(0, 3, len(whole.names))
    scores[:, 0] = 0
    ax = viz.plot_sensitivity(dataclasses.replace(whole, per_sample=scores))
    mesh = ax.collections[0]
    assert isinstance(mesh.norm, LogNorm)
    assert tuple(mesh.to_rgba(mesh.get_array())[0, 0]) == style.SEQUENTIAL(0)
    assert ax.texts[0].get_text() == "0.0%"


def test_scores_that_are_all_zero_have_no_order_and_no_shares():
    whole = sensitivity("2 layers")
    ax = viz.plot_sensitivity(dataclasses.replace(whole, per_sample=torch.zeros_like(whole.per_sample)))
    assert ax.get_title(loc="left") == "The loss reaches no module"
    assert texts(ax) == ["all scores are zero  ·  smollm2-135m, family_relationships, 5\u00a0samples"]
    mesh = ax.collections[0]
    assert {tuple(face) for face in mesh.to_rgba(mesh.get_array()).reshape(-1, 4)} == {style.SEQUENTIAL(0)}


# Allocation


@pytest.mark.parametrize("model", MODELS)
def test_allocation_cells_are_the_ranks_and_bars_their_sums(model):
    result = allocation(model)
    ax = viz.plot_allocation(result)
    projections, layers = MODELS[model]
    expected = np.array([[result.ranks[f"layers.{i}.{p}"] for i in range(layers)] for p in projections])
    np.testing.assert_array_equal(cells(ax), expected)
    above, beside = ax.figure.axes[1:3]
    assert [bar.get_height() for bar in above.containers[0]] == expected.sum(0).tolist()
    assert [bar.get_width() for bar in beside.containers[0]] == expected.sum(1).tolist()


def test_allocation_shows_the_uniform_plan():
    ax = viz.plot_allocation(allocation("30 layers"))
    above, beside = ax.figure.axes[1:3]
    assert set(above.patches[-1].get_data().values) == {8 * 7}
    assert set(beside.patches[-1].get_data().values) == {8 * 30}
    norm = ax.collections[0].norm
    assert norm(8) == pytest.approx(0.5)
    assert norm(16) - 0.5 == pytest.approx(0.5 - norm(4))


@pytest.mark.parametrize("max_rank", [12, None])
def test_no_rank_is_beyond_the_colours(max_rank):
    mesh = viz.plot_allocation(allocation("30 layers", max_rank=max_rank)).collections[0]
    shades = mesh.norm(mesh.get_array())
    assert (shades.min() >= 0, shades.max() <= 1) == (True, True)


def test_allocation_writes_ranks_into_cells_and_says_the_range():
    result = allocation("30 layers")
    ax = viz.plot_allocation(result)
    ranks = list(result.ranks.values())
    assert texts(ax)[:-1] == [str(rank) for rank in ranks]
    title = ax.get_title(loc="left").replace("\n", " ")
    assert f"Ranks from {min(ranks)} to {max(ranks)} instead of 8 everywhere" in title
    assert f"{sum(ranks):,} of {8 * 210:,} ranks" in texts(ax)[-1]


def test_a_uniform_allocation_is_drawn_too():
    ax = viz.plot_allocation(allocation("2 layers", ranks=False))
    assert set(cells(ax).ravel()) == {8}
    assert ax.get_title(loc="left") == "Every module gets rank 8"


def test_what_is_left_out_is_blank():
    plan = allocation("2 layers", exclude=["v_proj", "layers.1.o_proj"], budget="parameters")
    ax = viz.plot_allocation(plan)
    projections = MODELS["2 layers"][0]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(projections)
    expected = [[plan.ranks.get(f"layers.{layer}.{p}", -1) for layer in range(2)] for p in projections]
    np.testing.assert_array_equal(np.ma.filled(cells(ax), -1), expected)
    assert texts(ax)[:-1] == [str(rank) for rank in plan.ranks.values()]
    assert "entries of B" in texts(ax)[-1]


def test_the_uniform_plan_holds_the_excluded_modules_too():
    """At the same budget for every layer, totals meet the line; a layer without a module has a line and no bar."""
    ax = viz.plot_allocation(allocation("30 layers", ranks=False, exclude=["gate_proj", "up_proj", "down_proj"]))
    above, beside = ax.figure.axes[1:3]
    assert {bar.get_height() for bar in above.containers[0]} == {8 * 7}
    assert set(above.patches[-1].get_data().values) == {8 * 7}
    assert set(beside.patches[-1].get_data().values) == {8 * 30}
    assert [bar.get_width() for bar in beside.containers[0]] == [*[14 * 30] * 4, 0, 0, 0]
    assert "uniform, with the 90 excluded" in texts(ax)[-1].replace("\n", " ")


def test_a_layer_that_is_excluded_leaves_a_gap_below_the_line():
    ax = viz.plot_allocation(allocation("30 layers", exclude=[4, "layers.7.q_proj"]))
    above, beside = ax.figure.axes[1:3]
    steps = above.patches[-1].get_data()
    np.testing.assert_array_equal(steps.edges, np.arange(31) - 0.5)
    assert set(steps.values) == {8 * 7}
    heights = [bar.get_height() for bar in above.containers[0]]
    assert (len(heights), heights[4]) == (30, 0)
    assert set(beside.patches[-1].get_data().values) == {8 * 30}


# Spectrum


def test_each_input_gets_a_curve_where_there_are_few():
    result = spectrum("2 layers")
    ax = viz.plot_spectrum(result)
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert len(lines) == 2 * 5
    line = lines["layer 1 q_proj, k_proj, v_proj"]
    expected = result.curves(["layers.1.q_proj"])
    np.testing.assert_array_equal(line.get_xdata(), expected["direction"])
    np.testing.assert_allclose(line.get_ydata(), expected["cumulative"])


def test_many_inputs_are_summed_up_by_projection():
    result = spectrum("30 layers")
    ax = viz.plot_spectrum(result, view="eigenvalues")
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["q_proj, k_proj, v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    shares = [v / v.sum() for n, v in result.eigenvalues.items() if n.endswith("down_proj")]
    np.testing.assert_allclose(lines["down_proj"].get_ydata(), np.median(shares, axis=0), rtol=1e-5)
    assert len(ax.collections) == 5  # the bands


def test_effective_ranks_over_layers():
    result = spectrum("30 layers")
    ax = viz.plot_spectrum(result, view="effective_rank")
    line = next(line for line in ax.lines if line.get_label() == "o_proj")
    expected = [result.effective_rank[f"layers.{layer}.o_proj"] for layer in range(30)]
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_spectrum_of_chosen_modules():
    result = spectrum("30 layers")
    ax = viz.plot_spectrum(result, modules=["layers.3.k_proj"])
    assert next(line.get_label() for line in ax.lines) == "layer 3 k_proj"
    rank = style.number(result.effective_rank["layers.3.k_proj"])
    assert ax.get_title(loc="left") == f"Effective rank of layer 3 k_proj: {rank} of 40"


def test_long_curves_are_thinned_and_keep_their_ends():
    values = torch.arange(1, 5001).float() ** -1
    result = Spectrum(
        {"m": values},
        {"m": float(values.sum())},
        {"m": 5000},
        {"m": "m"},
        {"m": 0},
        {"m": "o"},
        "covariance",
        META,
    )
    x = viz.plot_spectrum(result).lines[0].get_xdata()
    assert len(x) <= 151
    assert (x[0], x[-1]) == (1, 5000)


@pytest.mark.parametrize(
    ("trace", "k", "words"),
    [(None, 40, ""), (None, 4, "upper bounds"), (float("nan"), 4, "lower bounds")],
)
def test_a_truncated_spectrum_says_which_way_its_figures_err(trace, k, words):
    ax = viz.plot_spectrum(spectrum(k=k, trace=trace))
    assert words in texts(ax)[-1]
    assert ("bounds" in texts(ax)[-1]) == bool(words)
    assert ("known directions" in ax.get_ylabel()) == (words == "lower bounds")


def test_an_input_without_variance_is_no_unknown_trace():
    some = spectrum("30 layers")
    dead = "layers.3.down_proj"
    ax = viz.plot_spectrum(
        dataclasses.replace(
            some,
            eigenvalues=some.eigenvalues | {dead: torch.zeros(40)},
            traces=some.traces | {dead: 0.0},
        )
    )
    assert "bounds" not in texts(ax)[-1]


@pytest.mark.parametrize("view", ["variance", "eigenvalues"])
def test_a_single_direction_is_a_point(view):
    ax = viz.plot_spectrum(spectrum(k=1), view=view)
    curves = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert len(curves) == 10
    assert {line.get_marker() for line in curves} == {"o"}


def test_bad_choices_for_a_spectrum_are_refused():
    with pytest.raises(ValueError, match="view is 'log'"):
        viz.plot_spectrum(spectrum(), view="log")
    with pytest.raises(KeyError, match=r"nowhere.*layers\.0\.q_proj"):
        viz.plot_spectrum(spectrum(), modules=["nowhere"])
    with pytest.raises(ValueError, match="modules is empty"):
        viz.plot_spectrum(spectrum(), modules=[])
    assert not plt.get_fignums()


# Training


def test_training_draws_the_history_and_the_ends():
    run = training_run()
    ax = viz.plot_training(run)
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["training loss", "validation loss", "test loss, before and after"]
    np.testing.assert_array_equal(lines["training loss"].get_ydata(), run.history["loss"])
    np.testing.assert_array_equal(lines["validation loss"].get_xdata(), [5, 10, 15, 20])
    ends = lines["test loss, before and after"].get_xydata()
    np.testing.assert_array_equal(ends, [[0, 3.21], [20, 1.19]])
    assert ax.get_title(loc="left") == "Test loss 3.21 → 1.19, exact match 2.0 % → 41.5 %"


@pytest.mark.parametrize(
    ("split", "metric", "labels", "headline"),
    [
        ("validation", "loss", ["validation loss, before and after"], "Validation loss 3.00 → 2.00"),
        ("train", "train_loss", [], "Training loss 3.00 → 2.00"),
    ],
)
def test_training_says_what_was_evaluated(split, metric, labels, headline):
    meta = dataclasses.replace(META, recipe={"evaluated_on": split})
    ax = viz.plot_training(training_run(before={metric: 3.0}, after={metric: 2.0}, meta=meta))
    assert [line.get_label() for line in ax.lines[2:]] == labels
    assert ax.get_title(loc="left") == headline


def test_losses_have_three_digits_each():
    ax = viz.plot_training(training_run(before={"loss": 100.2}, after={"loss": 0.56}))
    assert ax.get_title(loc="left") == "Test loss 100 → 0.560"
    assert texts(ax)[:2] == ["100", "0.560"]


def test_training_without_metrics_or_evaluation():
    history = training_run().history.assign(eval_loss=np.nan)
    ax = viz.plot_training(training_run(history=history, before={}, after={}, interrupted=True))
    assert [line.get_label() for line in ax.lines] == ["training loss"]
    assert ax.get_title(loc="left") == "Training loss 3.00 → 1.10"
    assert "interrupted" in texts(ax)[-1]


def test_a_run_that_logged_nothing_is_an_empty_picture():
    ax = viz.plot_training(training_run(steps=0, before={}, after={}))
    assert not ax.lines
    assert ax.get_title(loc="left") == "Nothing was logged"


# Settings


def test_what_a_backend_sets_when_the_first_picture_starts_it_stays():
    @style.styled
    def first_picture():
        plt.rcParams["interactive"] = True  # as the backend of Jupyter does, without which it shows no later figure

    with plt.rc_context({"interactive": False}):
        first_picture()
        assert plt.rcParams["interactive"]


def test_settings_are_put_back_after_an_error():
    @style.styled
    def broken():
        assert plt.rcParams["legend.frameon"] is False
        raise KeyError

    before = plt.rcParams.copy()
    with pytest.raises(KeyError):
        broken()
    assert plt.rcParams.copy() == before


def test_texts_of_the_colour_bar_do_not_meet():
    """Where modules are excluded, all ranks may lie far from the uniform one and near each other."""
    most = allocation("2 layers", exclude=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"])
    ax = viz.plot_allocation(dataclasses.replace(most, ranks=dict(zip(most.ranks, (27, 29, 28, 28), strict=True))))
    bar = next(each for each in ax.figure.findobj(Axes) if each.get_title() == "rank")
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in bar.get_xticklabels() if label.get_text()]
    assert boxes
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("view", ["variance", "effective_rank"])
def test_a_legend_of_many_inputs_is_as_long_as_there_is_room(view):
    names = [f"layers.{layer}.p{n}" for layer in range(2) for n in range(30)]
    values = torch.arange(1, 9).flip(0).float()
    found = Spectrum(
        dict.fromkeys(names, values), dict.fromkeys(names, 36.0), dict.fromkeys(names, 8), {n: n for n in names},
        {n: int(n.split(".")[1]) for n in names}, {n: n.split(".")[2] for n in names}, "covariance", META,
    )  # fmt: skip
    ax = viz.plot_spectrum(found, view=view)
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1] == "and 13 more"
    box = ax.get_legend().get_window_extent()
    assert ax.figure.bbox.y0 <= box.y0
    assert box.x1 <= ax.figure.bbox.x1
    assert style.inches(ax) > 4


@pytest.mark.parametrize("losses", [(1e7, 5e7), (2.302585, 2.302586), (1e-6, 2e-6)])
def test_losses_need_no_factor_above_the_axis(losses):
    run = training_run(2, before={}, after={})
    ax = viz.plot_training(dataclasses.replace(run, history=run.history.assign(loss=losses, eval_loss=np.nan)))
    ax.figure.canvas.draw()
    assert not ax.yaxis.get_offset_text().get_text()
    assert len({label.get_text() for label in ax.get_yticklabels()}) == len(ax.get_yticklabels())


def test_one_step_has_whole_numbers_below():
    ax = viz.plot_training(training_run(1, before={}, after={}))
    assert all(tick == round(tick) for tick in ax.get_xticks())


def test_a_grey_line_stays_in_the_picture():
    meta = dataclasses.replace(META, model="Qwen2.5-0.5B-Instruct", task="gsm8k", samples=32)
    excluded = allocation("2 layers", exclude=["q_proj"])
    ax = viz.plot_allocation(dataclasses.replace(excluded, meta=meta))
    ax.figure.canvas.draw()
    assert all(text.get_window_extent().x1 <= ax.figure.bbox.x1 for text in ax.texts)


def test_latex_of_the_users_settings_is_none_of_the_pictures():
    with plt.rc_context({"text.usetex": True}):
        ax = viz.plot_training(training_run())
        assert not any(text.get_usetex() for text in ax.figure.findobj(Text))
        assert plt.rcParams["text.usetex"]
