"""What a race says about its losses."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch

from tests.helpers.races import make_race


def without(race, arm, *, after, seeds=slice(None), **changes):
    """The race with no losses of an arm after an evaluation."""
    losses = race.losses.clone()
    losses[after + 1 :, race.arms.index(arm), seeds] = torch.nan
    return dataclasses.replace(race, losses=losses, **changes)


def test_its_table_has_the_mean_losses():
    race = make_race({"A": 1.8, "B": 1.9})
    frame = race.to_frame()
    assert list(frame.columns) == list(race.columns)
    assert len(frame) == 2 * 3 * 3
    row = frame.query("arm == 'B' and seed == 1 and step == 10").iloc[0]
    assert row["loss"] == pytest.approx(race.losses[2, 1, 1].mean().item())
    assert (row["seconds"], row["parameters"], row["learning_rate"]) == (10, 200, 1e-3)


def test_differences_are_paired_and_share_the_error_among_the_pairs():
    race = make_race({"A": 1.8, "B": 1.9, "C": 1.85}, seeds=[0])
    frame = race.differences()
    assert list(frame.columns) == list(race.difference_columns)
    assert list(zip(frame["arm"], frame["other"], strict=True)) == [("A", "C"), ("A", "B"), ("C", "B")]
    row = frame.iloc[0]
    differences = (race.losses[2, 2, 0] - race.losses[2, 0, 0]).numpy()
    expected = scipy.stats.ttest_1samp(differences, 0).confidence_interval(1 - 0.05 / 3)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((differences.mean(), *expected))
    assert row["loss"] == pytest.approx(race.losses[2, 0, 0].mean().item())
    assert (row["step"], row["seeds"], row["verdict"]) == (10, 1, "ahead")


def test_the_sentence_says_who_is_ahead_and_by_how_much():
    race = make_race({"B": 1.9, "A": 1.8})
    assert (race.leader, race.is_ahead) == ("A", True)
    row = race.differences().iloc[0]
    assert race.sentence == (
        f"A is ahead of B by {row['low']:.3f} to {row['high']:.3f} nats, with 2 times the trained parameters "
        "(10 steps, 95 % intervals for other seeds and samples, from 3 seeds and 40 held-out samples)"
    )
    assert "which of these adapters" in make_race({"A": 1.8, "B": 1.9}, seeds=[4]).basis


@pytest.mark.parametrize(
    ("ahead", "parameters", "ending"),
    [
        (1.79, {"A": 100, "B": 100}, ", within the 0.02 that do not matter"),
        (1.78, {"A": 102, "B": 100}, ", perhaps within the 0.02 that do not matter"),
        (1.7, {"A": 100, "B": 100}, " nats"),
        (1.79, {"A": 380, "B": 100}, ", within the 0.02 that do not matter, with 3.8 times the trained parameters"),
        (1.7, {"A": 50, "B": 100}, " nats, with 0.5 times the trained parameters"),
    ],
)
def test_the_headline_says_what_a_lead_is_worth_and_costs(ahead, parameters, ending):
    race = dataclasses.replace(
        make_race({"A": ahead, "B": 1.8}, noise=0.001 if ahead == 1.79 else 0.01), parameters=parameters
    )
    low, high = race.differences()[["low", "high"]].iloc[0]
    assert low > 0
    assert ("within" in ending, "perhaps" in ending) == (low <= race.margin, low <= race.margin < high)
    assert race.headline.endswith(ending)


def test_no_difference_is_a_verdict_at_the_end_only():
    assert "no difference larger than 0.02 nats between" in make_race({"A": 1.8, "B": 1.801}).headline
    early = make_race({"A": 1.8, "B": 1.801}, evaluated=[0, 5], noise=0.003)
    assert early.differences()["verdict"].tolist() == ["not decided"]
    assert early.basis.startswith("after 5 of 10 steps")


def test_an_undecided_race_says_what_would_decide_it():
    race = make_race({"A": 1.8, "B": 1.83}, noise=0.3)
    assert not race.is_ahead
    assert race.headline.startswith("A and B: not decided (-0.")
    assert race.headline.endswith("would be needed")


def test_three_arms_are_compared_in_pairs_and_four_with_the_leader():
    def pairs(race):
        return [clause.partition(" by ")[0] for clause in race.headline.split("; ")]

    assert pairs(make_race({"B": 1.9, "C": 2.0, "A": 1.8})) == [
        "A is ahead of B",
        "A is ahead of C",
        "B is ahead of C",
    ]
    four = make_race({"B": 1.9, "C": 2.0, "A": 1.8, "D": 2.1})
    assert pairs(four) == ["A is ahead of B", "A is ahead of C", "A is ahead of D"]


def test_an_arm_that_diverged_is_last_and_not_compared():
    race = without(make_race({"A": 1.8, "B": 1.7, "C": 1.9}), "B", after=1, diverged={"B": 7})
    assert race.ranked == ["A", "C", "B"]
    assert race.is_ahead
    assert race.headline.startswith("A is ahead of C by ")
    assert race.headline.endswith("; B diverged after 7 steps")
    assert len(race.differences()) == 1
    both = dataclasses.replace(make_race({"A": 1.8, "B": 1.9}), diverged={"B": 1, "A": 2})
    assert both.headline == "B diverged after 1 steps; A diverged after 2 steps"
    assert not both.is_ahead


def test_arms_are_compared_at_the_last_evaluation_and_seeds_that_both_reached():
    race = make_race({"A": 1.8, "B": 1.9})
    stopped = without(race, "B", after=1).differences().iloc[0]
    assert (stopped["step"], stopped["seeds"]) == (5, 3)
    interrupted = without(without(race, "B", after=1, seeds=[1]), "B", after=-1, seeds=[2])
    row = interrupted.differences().iloc[0]
    assert (row["step"], row["seeds"]) == (10, 1)
    differences = (race.losses[2, 1, 0] - race.losses[2, 0, 0]).numpy()
    assert row["difference"] == pytest.approx(differences.mean())
    assert "from one seed" in interrupted.basis
    assert np.isfinite(interrupted.to_frame()["loss"]).all()


def test_before_the_first_evaluation_nothing_is_decided():
    race = without(make_race({"A": 1.8, "B": 1.9}), "B", after=0)
    assert "not decided" in race.headline
    with pytest.raises(ValueError, match="no adapter"):
        race.winner  # noqa: B018
