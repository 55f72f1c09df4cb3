"""A race in a thread: what it reports is what the result says."""

import threading

import pytest

from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tests.helpers.races import allocations
from viz.widgets.race import LiveRace

pytestmark = pytest.mark.filterwarnings("ignore:B is still zero", "ignore:`is_gradient")
OPTIONS = {"seeds": [0], "learning_rate": 1e-2, "batch_size": 4, "steps": 6}


def live(report, **options):
    arms = {"A": allocations()["score"], "B": allocations()["uniform"]}
    return LiveRace(report, tiny_model("llama"), task(), arms, **OPTIONS | options)


def test_it_reports_losses_updates_and_the_sentence():
    states, threads = [], set()

    def report(state):
        states.append(state)
        threads.add(threading.current_thread())

    race = live(report)
    race.wait()
    assert len(threads) == 2  # of the caller and of the training
    assert states[0]["running"]
    last = states[-1]
    assert (last["running"], last["said"], last["winner"]) == (False, race.result.sentence, race.result.leader)
    for name, arm in last["arms"].items():
        run = race.result.runs[name][0]
        assert [loss for _, loss in arm["losses"]] == run.history["loss"].tolist()
        assert (arm["step"], arm["planned"], arm["stopped"], arm["running"]) == (6, 6, False, False)
        frame = race.result.to_frame().query("arm == @name")
        assert arm["held"] == list(zip(frame["step"], frame["loss"], strict=True))
        assert arm["updates"] == run.module_history.query("step == 6").set_index("module")["update_norm"].to_dict()
    assert any(state["said"].startswith("After 2 of 6 steps: ") for state in states)
    assert not any(all(arm["running"] for arm in state["arms"].values()) for state in states)


def test_the_training_that_runs_can_be_stopped_and_the_other_goes_on():
    race = live(lambda state: state["arms"]["A"]["step"] >= 1 and not state["arms"]["A"]["stopped"] and race.stop("A"))
    race.wait()
    assert race.result.runs["A"][0].steps < 6
    assert race.result.runs["B"][0].steps == 6
    race.stop("B")  # which does not run
    assert not race.state["arms"]["B"]["stopped"]


def test_a_race_that_fails_says_why():
    race = live(lambda state: None, steps=None)
    race.wait()
    assert race.status.startswith("The race failed: pass steps= or seconds=")
    assert (race.result, race.running) == (None, False)
