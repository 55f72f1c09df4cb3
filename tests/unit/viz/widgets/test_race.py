"""A race in a thread: what it tells as it goes is what it has found in the end."""

import threading

import pytest

from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tests.helpers.races import allocations
from viz.widgets.race import LiveRace

pytestmark = pytest.mark.filterwarnings("ignore:B is still zero", "ignore:`is_gradient")
OPTIONS = {"seeds": [0], "learning_rate": 1e-2, "batch_size": 4, "steps": 6}


def live(tell, **options):
    arms = {"A": allocations()["score"], "B": allocations()["uniform"]}
    return LiveRace(tell, tiny_model("llama"), task(), arms, **OPTIONS | options)


def test_it_tells_losses_updates_and_the_sentence():
    told, threads = [], set()

    def tell(state):
        told.append(state)
        threads.add(threading.current_thread())

    it = live(tell)
    it.wait()
    assert len(threads) > 1  # not that of the caller alone
    assert told[0]["running"]
    last = told[-1]
    assert (last["running"], last["said"], last["winner"]) == (False, it.result.sentence, it.result.leader)
    for name, arm in last["arms"].items():
        run = it.result.runs[name][0]
        assert [loss for _, loss in arm["losses"]] == run.history["loss"].tolist()
        assert (arm["step"], arm["planned"], arm["stopped"]) == (6, 6, False)
        frame = it.result.to_frame().query("arm == @name")
        assert arm["held"] == list(zip(frame["step"], frame["loss"], strict=True))
        moved = run.module_history.query("step == 6").set_index("module")["update_norm"]
        assert arm["updates"] == moved.to_dict()
    assert any(state["said"].startswith("After 2 of 6 steps: ") for state in told)


def test_one_can_be_stopped_and_the_other_goes_on():
    it = live(lambda state: state["arms"]["A"]["step"] >= 1 and not state["arms"]["A"]["stopped"] and it.stop("A"))
    it.wait()
    assert it.result.runs["A"][0].steps < 6
    assert it.result.runs["B"][0].steps == 6
    assert "A was stopped after" in it.said
    with pytest.raises(KeyError):
        it.stop("C")


def test_a_race_that_fails_says_why():
    it = live(lambda state: None, steps=None)
    it.wait()
    assert it.said == "The race failed: pass steps= or seconds=, one of them: how long the race may be"
    assert it.result is None
    assert not it.running
