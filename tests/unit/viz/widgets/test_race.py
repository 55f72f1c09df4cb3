"""A race in a thread: what it reports is what the result says."""

import threading

import pytest
import torch

import tlora
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tests.helpers.races import allocations
from viz.widgets.race import LiveRace

pytestmark = pytest.mark.filterwarnings("ignore:B is still zero", "ignore:`is_gradient")
OPTIONS = {"seeds": [0], "learning_rate": 1e-2, "batch_size": 4, "steps": 6}


def live(report, **options):
    arms = {"A": allocations()["score"], "B": allocations()["uniform"]}
    return LiveRace(report, tiny_model("llama"), task(), arms, **OPTIONS | options)


def test_it_reports_losses_updates_answers_and_the_sentence(tmp_path):
    states, threads = [], set()

    def report(state):
        states.append(state)
        threads.add(threading.current_thread())

    race = live(report)
    race.wait()
    assert len(threads) == 2  # of the caller and of the training
    assert states[0]["running"]
    stages = dict.fromkeys(state["bar"]["words"].split(", ")[0] for state in states if state["bar"].get("words"))
    assert list(stages)[:5] == ["calibrating", "subspaces fisher", "loss of the base", "timing two steps", "A"]
    last = states[-1]
    assert last["bar"] == {}
    assert (last["running"], last["said"], last["winner"]) == (False, race.result.headline, race.result.leader)
    assert last["basis"].startswith(race.result.basis)
    assert "0.01" in last["basis"]  # the learning rate of both
    for name, arm in last["arms"].items():
        run = race.result.runs[name][0]
        assert [loss for _, loss in arm["losses"]] == run.history["loss"].tolist()
        assert (arm["step"], arm["planned"], arm["stopped"], arm["running"]) == (6, 6, False, False)
        frame = race.result.to_frame().query("arm == @name")
        assert arm["held"] == list(zip(frame["step"], frame["loss"], strict=True))
        answered = task().predict(tlora.load_adapter(run.save(tmp_path / name), tiny_model("llama")), limit=6)
        assert [one["by"][name]["text"] for one in last["answers"]] == answered["prediction"].tolist()
        assert [one["right"] for one in last["answers"]] == answered["answer"].tolist()
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


def test_without_steps_it_plans_at_least_eight_and_says_so_before_it_begins():
    said, bars = [], []

    def report(state):
        said.append((state["said"], state["arms"]["A"]["planned"]))
        bars.append(state["bar"].get("words"))

    race = live(report, steps=None, seconds=0.001)
    race.wait()
    assert race.result.steps == 8
    assert "timing two steps" in bars
    plan = next(planned for text, planned in said if text.startswith("8 steps each at learning rate 0.01, about "))
    assert plan == 0


def test_an_attached_adapter_stays_as_it_is():
    adapted = tlora.attach(tiny_model("llama"), None, allocations()["uniform"])
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    arms = {"A": allocations()["score"], "B": allocations()["uniform"]}
    race = LiveRace(lambda state: None, adapted, task(), arms, **OPTIONS)
    race.wait()
    alone = live(lambda state: None)
    alone.wait()
    assert torch.equal(race.result.losses, alone.result.losses)
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())


def test_a_race_that_fails_says_why():
    race = live(lambda state: None, seeds=[])
    race.wait()
    assert race.status.startswith("The race failed: seeds=")
    assert (race.result, race.running) == (None, False)
