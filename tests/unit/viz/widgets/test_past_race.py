"""A race that has ended, as it is listed: its numbers are those of the result."""

import json

import pytest

from tests.helpers.races import make_race
from viz.widgets.past_race import PastRace, RacedArm, describe_difference

PLACES = ["layer 0 q", "layer 0 v", "layer 1 q", "layer 1 v"]


def arm(*ranks, scaling=1.0):
    return RacedArm(f"ranks {ranks}", "", sum(ranks), list(ranks), [scaling] * len(ranks))


KEPT, NEW = arm(4, 4, 4, 4), arm(2, 7, 4, 5)


def test_it_lists_what_each_arm_was_and_what_the_result_says():
    result = make_race({"kept": 1.9, "new": 1.8}, seeds=[0])
    shown = PastRace(result, {"kept": KEPT, "new": NEW}).values(PLACES)
    json.dumps(shown, allow_nan=False)
    assert (shown["said"], shown["leader"]) == (result.headline, "new")
    assert shown["basis"].startswith(result.basis)
    (pair,) = result.differences().itertuples()
    kept, new = shown["arms"]["kept"], shown["arms"]["new"]
    assert "interval" not in new
    assert [float(end) for end in kept["interval"].split(" to ")] == pytest.approx([pair.low, pair.high], abs=0.005)
    for name, one, raced in (("kept", kept, KEPT), ("new", new, NEW)):
        rows = result.to_frame().query(f"arm == {name!r}")
        assert one["held"] == list(zip(rows["step"], rows["loss"], strict=True))
        assert (one["loss"], one["seconds"]) == (rows["loss"].iloc[-1], rows["seconds"].iloc[-1])
        assert (one["code"], one["ranks"], one["parameters"]) == (raced.code, raced.ranks, sum(raced.ranks))
        assert (one["step"], one["planned"], one["rate"]) == (10, 10, 1e-3)


@pytest.mark.parametrize(
    ("arms", "is_of"),
    [
        ({"kept": arm(4, 4, 4, 4), "new": arm(2, 7, 4, 5)}, True),
        ({"uniform": arm(4, 4, 4, 4), "kept": arm(2, 7, 4, 5)}, False),
        ({"kept": arm(4, 4, 4, 4), "new": arm(2, 7, 5, 4)}, False),
        ({"kept": arm(4, 4, 4, 4), "new": arm(2, 7, 4, 5, scaling=2.0)}, False),
        ({}, False),
    ],
)
def test_it_is_of_arms_with_the_same_ranks_and_scalings(arms, is_of):
    assert PastRace(make_race({"kept": 1.9, "new": 1.8}), {"kept": KEPT, "new": NEW}).is_of(arms) == is_of


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (
            NEW,
            "Compared with kept, new adds 4 ranks in 2 modules, most to layer 0 v (+3), and removes 2 ranks in 1 "
            "module, most from layer 0 q (\u22122).",
        ),
        (arm(4, 5, 4, 4), "Compared with kept, new adds 1 rank in 1 module, most to layer 0 v (+1)."),
        (arm(4, 4, 4, 1), "Compared with kept, new removes 3 ranks in 1 module, most from layer 1 v (\u22123)."),
        (arm(4, 4, 4, 4, scaling=2.0), "kept and new have the same ranks and other scalings."),
    ],
)
def test_the_difference_is_a_sentence(new, words):
    assert describe_difference({"kept": KEPT, "new": new}, PLACES) == words


def test_without_two_arms_there_is_no_difference():
    assert describe_difference({}, PLACES) == ""
