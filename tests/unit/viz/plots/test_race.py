"""What the picture of a race shows equals its tables."""

import dataclasses

import numpy as np
import pytest
import torch

import viz
from tests.helpers.pictured import texts
from tests.helpers.races import make_race


def thick_lines(ax):
    return [line for line in ax.get_lines() if line.get_marker() == "o"]


def test_lines_are_the_losses():
    race = make_race({"A": 1.8, "B": 1.9})
    ax = viz.plot_race(race)
    means = race.to_frame().groupby(["arm", "step"])["loss"].mean()
    for arm, line in zip(("A", "B"), thick_lines(ax), strict=True):
        np.testing.assert_allclose(line.get_xydata(), means[arm].reset_index())
    assert len([line for line in ax.get_lines() if line.get_alpha() == 0.45]) == 2 * 3  # each training, thin
    assert ax.get_legend() is None
    assert texts(ax)[:2] == ["A\n100 parameters", "B\n200 parameters"]
    assert "learning rate 0.001" in " ".join(texts(ax)[-1].split())


@pytest.mark.parametrize("arms", [{"A": 1.8, "B": 1.9, "C": 1.85}, {"C": 1.85, "B": 1.9, "A": 1.8}])
def test_bars_are_the_intervals_from_the_loss_of_the_best(arms):
    race = make_race(arms)
    ax = viz.plot_race(race)
    pairs = race.differences().query("arm == 'A'")
    bars = [bar.lines[2][0].get_segments()[0] for bar in ax.containers]
    assert len(bars) == len(pairs) == 2
    for bar, pair in zip(bars, pairs.itertuples(), strict=True):
        np.testing.assert_allclose(bar, [[10, pair.loss + pair.low], [10, pair.loss + pair.high]])
        assert bar[0][1] > pair.loss + race.margin  # A is ahead


@pytest.mark.parametrize("arms", [{"A": 1.8, "B": 1.9}, {"C": 1.95, "B": 1.9, "A": 1.8}])
def test_the_title_compares_the_best_with_the_next(arms):
    race = make_race(arms)
    ax = viz.plot_race(race)
    title = " ".join(ax.get_title(loc="left").split())
    assert title == race.verdict
    assert title.startswith("A is ahead of B by ")
    assert "C" not in title
    assert race.basis in " ".join(" ".join(texts(ax)).split())


def test_an_arm_that_diverged_is_drawn_as_far_as_it_was_evaluated():
    race = make_race({"A": 1.8, "B": 1.9, "C": 2})
    losses = race.losses.clone()
    losses[1:, 1] = torch.nan
    ax = viz.plot_race(dataclasses.replace(race, losses=losses, diverged={"B": 3}))
    assert [len(line.get_xdata()) for line in thick_lines(ax)] == [3, 1, 3]
    assert len(ax.containers) == 1
    assert "B diverged after 3 steps" in " ".join(texts(ax)[-1].split())


def test_rates_that_differ_are_named_with_their_arms():
    ax = viz.plot_race(make_race({"A": 1.8, "B": 1.9}, learning_rates={"A": 1e-3, "B": 2e-3}))
    assert texts(ax)[:2] == ["A\n100 parameters, rate 0.001", "B\n200 parameters, rate 0.002"]


@pytest.mark.parametrize(("best", "scale"), [(1.8, "linear"), (0.02, "log")])
def test_losses_that_span_more_than_a_factor_of_ten_are_on_a_logarithmic_axis(best, scale):
    assert viz.plot_race(make_race({"A": best, "B": 1.9})).get_yscale() == scale


def test_before_the_first_evaluation_there_is_a_picture():
    assert "not decided" in viz.plot_race(make_race({"A": 1.8, "B": 1.9}, evaluated=[0])).get_title(loc="left")
