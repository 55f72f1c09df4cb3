"""What each picture shows equals the table of its result."""

import numpy as np
import pytest

import tlora
import viz
from tests.helpers.pictured import MODELS, allocation, cells, texts
from tests.helpers.sensitivities import sensitivity
from viz.plots.allocation import allocation_headline


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


def test_allocation_shows_the_uniform_allocation():
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


def test_what_is_set_by_hand_is_outlined():
    result = allocation("2 layers", pinned={"layers.1.k_proj": 2}).edit({"layers.0.o_proj": 7})
    ax = viz.plot_allocation(result)
    middles = sorted((box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2) for box in ax.patches)
    rows = MODELS["2 layers"][0]
    assert middles == [pytest.approx((0, rows.index("o_proj"))), pytest.approx((1, rows.index("k_proj")))]
    assert "outlined: set by hand" in texts(ax)[-1].replace("\n", " ")
    assert not viz.plot_allocation(allocation("2 layers")).patches


def test_what_is_left_out_is_blank():
    made = allocation("2 layers", exclude_modules=["v_proj", "layers.1.o_proj"], budget="parameters")
    ax = viz.plot_allocation(made)
    projections = MODELS["2 layers"][0]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(projections)
    expected = [[made.ranks.get(f"layers.{layer}.{p}", -1) for layer in range(2)] for p in projections]
    np.testing.assert_array_equal(np.ma.filled(cells(ax), -1), expected)
    assert texts(ax)[:-1] == [str(rank) for rank in made.ranks.values()]
    assert "entries of B" in texts(ax)[-1]


def test_a_layer_that_is_excluded_leaves_a_gap_below_the_line():
    ax = viz.plot_allocation(allocation("30 layers", exclude_modules=[4, "layers.7.q_proj"]))
    above, beside = ax.figure.axes[1:3]
    steps = above.patches[-1].get_data()
    np.testing.assert_array_equal(steps.edges, np.arange(31) - 0.5)
    assert set(steps.values) == {8 * 7}
    heights = [bar.get_height() for bar in above.containers[0]]
    assert (len(heights), heights[4]) == (30, 0)
    assert set(beside.patches[-1].get_data().values) == {8 * 30}


def tied() -> tlora.Allocation:
    return tlora.allocate(sensitivity([8.0, 1.0, 8.0, 1.0, 8.0, 1.0]), rank=4, max_rank=6)


def test_the_headline_names_ties_and_what_is_left_out():
    assert allocation_headline(tied()).endswith("most to 3 modules")
    made = tlora.allocate(
        sensitivity([8.0, 1.0, 3.0, 4.0, 2.0, 6.0]), rank=4, adapt_ranks=False, exclude_modules=["k_proj"]
    )
    assert allocation_headline(made) == "Every module that is adapted gets rank 6"


def test_modules_that_get_nothing_are_grey_and_counted():
    made = tlora.allocate(
        sensitivity([8.0, 0.0, 8.0, 0.0, 0.0, 8.0]), rank=4, min_rank=0, exclude_modules=["down_proj"]
    )
    ax = viz.plot_allocation(made)
    assert np.ma.getmaskarray(cells(ax)).sum() == 6 - len(made.ranks)
    assert f"with the 2 excluded and {len(made.dropped)} dropped" in texts(ax)[-1].replace("\n", " ")
