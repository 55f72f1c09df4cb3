"""What the picture of a race shows equals its tables."""

import dataclasses

import numpy as np
import pytest

import viz
from tests.helpers.pictured import texts
from tests.helpers.races import raced


def lines(ax, marker):
    return [line for line in ax.get_lines() if line.get_marker() == marker and len(line.get_xdata()) > 1]


def test_lines_are_the_losses():
    found = raced({"A": 1.8, "B": 1.9})
    above, _ = viz.plot_race(found).axes
    frame = found.to_frame()
    means = frame.groupby(["arm", "step"])["loss"].mean()
    for arm, line in zip(("A", "B"), lines(above, "o"), strict=True):
        np.testing.assert_allclose(line.get_xydata(), means[arm].reset_index())
    assert len(above.get_lines()) == 2 + 2 * 3  # each training, thin
    legend = [text.get_text() for text in above.get_legend().get_texts()]
    assert legend == ["A: 100 parameters, rate 0.001", "B: 200 parameters, rate 0.001"]


@pytest.mark.parametrize("arms", [{"A": 1.8, "B": 1.9, "C": 1.85}, {"C": 1.85, "B": 1.9, "A": 1.8}])
def test_bands_are_the_intervals_whatever_the_order_of_the_arms(arms):
    found = raced(arms)
    _, below = viz.plot_race(found).axes
    frame = found.differences()
    bands = below.collections
    others = [name for name in arms if name != "A"]
    assert len([band for band in bands if band.get_alpha() == 0.22]) == len(others)
    for other, band in zip(others, [band for band in bands if band.get_alpha() == 0.22], strict=True):
        row = frame[frame["step"].eq(10) & (frame[["arm", "other"]].isin(["A", other]).all(axis=1))].iloc[0]
        sign = 1 if row["arm"] == "A" else -1
        corners = band.get_paths()[0].vertices
        at_end = corners[corners[:, 0] == 10][:, 1]
        assert (at_end.min(), at_end.max()) == pytest.approx(tuple(sorted((sign * row["low"], sign * row["high"]))))
        assert at_end.min() > 0  # the best is ahead: above zero


def test_over_seconds():
    found = raced({"A": 1.8, "B": 1.9})
    found = dataclasses.replace(found, clock=found.clock * 3)
    above, below = viz.plot_race(found, by="seconds").axes
    assert lines(above, "o")[0].get_xdata().tolist() == [0, 15, 30]
    assert below.get_xlabel() == "seconds of training"


def test_the_headline_is_the_sentence():
    found = raced({"A": 1.8, "B": 1.9})
    above, _ = viz.plot_race(found).axes
    assert " ".join(above.get_title(loc="left").split()) == found.finding
    assert found.basis in " ".join(" ".join(texts(above)).split())


def test_an_arm_that_is_out_has_the_looks_at_which_it_was_there():
    found = raced({"A": 1.8, "B": 1.9, "C": 2})
    losses = found.losses.clone()
    losses[1:, 1] = np.nan
    above, below = viz.plot_race(dataclasses.replace(found, losses=losses, out={"B": "diverged after 3 steps"})).axes
    assert [len(line.get_xdata()) for line in above.get_lines() if line.get_marker() == "o"] == [3, 1, 3]
    assert len([band for band in below.collections if band.get_alpha() == 0.22]) == 1


def test_before_its_first_look_there_is_a_picture():
    figure = viz.plot_race(raced({"A": 1.8, "B": 1.9}, looks=[0], ending=""))
    assert "not decided" in figure.axes[0].get_title(loc="left").replace("\n", " ")


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="expected a Race, got a list"):
        viz.plot_race([])
    with pytest.raises(ValueError, match="by must be 'step' or 'seconds', got 'hours'"):
        viz.plot_race(raced({"A": 1.8, "B": 1.9}), by="hours")
