"""What a race says of what it has measured."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch

from tests.helpers.races import raced


def test_its_table_has_the_mean_losses():
    found = raced({"A": 1.8, "B": 1.9})
    frame = found.to_frame()
    assert list(frame.columns) == list(found.columns)
    assert len(frame) == 2 * 3 * 3
    row = frame.query("arm == 'B' and seed == 1 and step == 10").iloc[0]
    assert row["loss"] == pytest.approx(found.losses[2, 1, 1].mean().item())
    assert (row["seconds"], row["parameters"], row["learning_rate"]) == (10, 200, 1e-3)


def test_differences_are_paired_and_share_the_error_among_the_pairs():
    found = raced({"A": 1.8, "B": 1.9, "C": 1.85}, seeds=[0])
    frame = found.differences()
    assert list(frame.columns) == list(found.difference_columns)
    assert len(frame) == 2 * 3
    row = frame.query("step == 10 and arm == 'A' and other == 'C'").iloc[0]
    paired = (found.losses[2, 2, 0] - found.losses[2, 0, 0]).numpy()
    expected = scipy.stats.ttest_1samp(paired, 0).confidence_interval(1 - 0.04 / 3)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((paired.mean(), *expected))
    assert row["verdict"] == "ahead"
    assert frame.query("step == 10 and arm == 'B' and other == 'C'").iloc[0]["verdict"] == "behind"


def test_who_is_ahead_and_by_how_much():
    found = raced({"B": 1.9, "A": 1.8})
    assert found.leader == "A"
    assert found.is_ahead
    row = found.differences().iloc[-1]
    low, high = -row["high"], -row["low"]
    assert found.sentence.startswith(f"A is ahead of B by {low:.3f} to {high:.3f} nats (")
    assert (
        "10 steps, 95 % intervals for other seeds and samples, from 3 seeds and 40 held-out samples" in found.sentence
    )


def test_of_one_seed_it_speaks_of_these_adapters():
    assert raced({"A": 1.8, "B": 1.9}, seeds=[4]).sentence.endswith(
        "(10 steps, 95 % intervals for other samples, from one seed and 40 held-out samples: they say which of these "
        "adapters is better, not which way of making one)"
    )


def test_no_difference_is_a_finding_of_the_end_alone():
    means = {"A": 1.8, "B": 1.801}
    assert "no difference larger than 0.02 nats between A and B" in raced(means).sentence
    early = raced(means, looks=[0, 5], ending="interrupted", noise=0.003)
    assert "not decided" in early.sentence
    assert "after 5 of 10 steps" in early.sentence
    by_time = raced(means, looks=[0, 5, 8], ending="time", noise=0.003)
    assert "no difference" in by_time.sentence
    assert by_time.differences()["verdict"].tolist() == ["not decided", "no difference"]


def test_what_is_not_decided_says_what_would_decide():
    found = raced({"A": 1.8, "B": 1.83}, noise=0.3)
    assert not found.is_ahead
    assert found.sentence.startswith("A and B: not decided (-0.")
    assert "times the" in found.sentence
    assert "would be needed" in found.sentence


def test_of_three_arms_each_pair_is_told_of_and_of_more_the_first_against_each():
    three = raced({"B": 1.9, "C": 2.0, "A": 1.8})
    assert three.ranked == ["A", "B", "C"]
    assert [clause.partition(" by ")[0] for clause in three.finding.split("; ")] == [
        "A is ahead of B",
        "A is ahead of C",
        "B is ahead of C",
    ]
    four = raced({"B": 1.9, "C": 2.0, "A": 1.8, "D": 2.1})
    assert [clause.partition(" by ")[0] for clause in four.finding.split("; ")] == [
        "A is ahead of B",
        "A is ahead of C",
        "A is ahead of D",
    ]


def out(found, name, why, first):
    """The race with an arm gone from a look on."""
    losses = found.losses.clone()
    losses[first:, found.arms.index(name)] = np.nan
    return dataclasses.replace(found, losses=losses, out={name: why})


def test_an_arm_that_diverged_is_out_and_not_compared():
    found = raced({"A": 1.8, "B": 1.7, "C": 1.9})
    found = out(found, "B", "diverged after 7 steps at learning rate 10", 2)
    assert found.leader == "A"
    assert found.is_ahead
    assert found.sentence.startswith("A is ahead of C by ")
    assert "; B diverged after 7 steps at learning rate 10 (" in found.sentence
    assert len(found.to_frame().query("arm == 'B'")) == 6
    assert np.isnan(found.differences().query("other == 'B' and step == 10")["low"]).all()


def test_an_arm_that_was_stopped_is_compared_until_then():
    found = out(raced({"A": 1.8, "B": 1.9}), "B", "was stopped after 7 steps at learning rate 0.001", 2)
    assert "B was stopped after 7 steps at learning rate 0.001; before that, A is ahead of B by" in found.sentence


def test_where_all_are_out_the_sentence_says_so():
    found = out(raced({"A": 1.8, "B": 1.9}), "B", "diverged after 1 steps at learning rate 10", 1)
    found = dataclasses.replace(out(found, "A", "diverged", 1), out={"A": "diverged after 2 steps", **found.out})
    assert "B diverged after 1 steps" in found.sentence


def test_before_its_first_look_nothing_is_decided():
    found = raced({"A": 1.8, "B": 1.9}, looks=[0], ending="interrupted")
    assert "not decided, as the race ended before its first look" in found.sentence
    assert len(found.differences()) == 0


def test_while_it_goes_on_there_is_no_winner():
    with pytest.raises(ValueError, match="still going on"):
        raced({"A": 1.8, "B": 1.9}).winner  # noqa: B018


def test_equal_losses_are_no_difference():
    found = raced({"A": 1.8, "B": 1.8})
    same = dataclasses.replace(found, losses=torch.stack([found.losses[:, 0]] * 2, 1))
    assert "no difference larger than 0.02 nats" in same.sentence
