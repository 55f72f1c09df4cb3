"""The cells are the table, and dots are the intervals that exclude zero."""

import numpy as np

import viz
from tests.helpers.pictured import cells, expert_use


def test_cells_are_shares_by_layer_and_expert():
    use = expert_use(layers=3, experts=8)
    ax = viz.plot_expert_use(use)
    np.testing.assert_allclose(cells(ax), 100 * use.to_frame()["share"].to_numpy().reshape(3, 8).T)
    assert ax.get_title(loc="left").replace("\n", " ") == use.headline
    assert not ax.lines[0].get_xdata().size


def test_differences_to_other_text_are_centered_and_clear_ones_marked():
    use = expert_use(other=True)
    frame = use.to_frame()
    ax = viz.plot_expert_use(use)
    np.testing.assert_allclose(cells(ax), 100 * frame["difference"].to_numpy().reshape(6, 16).T)
    assert ax.collections[0].norm.vmin == -ax.collections[0].norm.vmax
    clear = frame[(frame["low"] > 0) | (frame["high"] < 0)]
    assert 0 < len(clear) < len(frame)
    dots = list(zip(*ax.lines[0].get_data(), strict=True))
    assert dots == list(zip(clear["layer"], clear["expert"], strict=True))


def test_layers_without_experts_have_no_column():
    use = expert_use(layers=4)
    object.__setattr__(use, "layers", [2 * layer + 1 for layer in use.layers])
    ax = viz.plot_expert_use(use)
    assert cells(ax).shape == (16, 4)
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "3", "5", "7"]
