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
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["A: 100 parameters, rate 0.001", "B: 200 parameters, rate 0.001"]


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


def test_the_headline_is_the_sentence():
    race = make_race({"A": 1.8, "B": 1.9})
    ax = viz.plot_race(race)
    assert " ".join(ax.get_title(loc="left").split()) == race.headline
    assert race.basis in " ".join(" ".join(texts(ax)).split())


def test_an_arm_that_diverged_is_drawn_as_far_as_it_was_evaluated():
    race = make_race({"A": 1.8, "B": 1.9, "C": 2})
    losses = race.losses.clone()
    losses[1:, 1] = torch.nan
    ax = viz.plot_race(dataclasses.replace(race, losses=losses, diverged={"B": 3}))
    assert [len(line.get_xdata()) for line in thick_lines(ax)] == [3, 1, 3]
    assert len(ax.containers) == 1


def test_before_the_first_evaluation_there_is_a_picture():
    assert "not decided" in viz.plot_race(make_race({"A": 1.8, "B": 1.9}, evaluated=[0])).get_title(loc="left")
