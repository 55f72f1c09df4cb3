"""A race: each arm as it is alone, the base as it was, and how it ends."""

import copy
import dataclasses
import math
import os
import signal
import time
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

import tlora
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tests.helpers.races import allocations, started_elsewhere
from tests.helpers.trainings import condition_of
from tlora.comparison import race as races
from tlora.comparison.methods import METHODS, Method

pytestmark = pytest.mark.filterwarnings("ignore:B is still zero", "ignore:`is_gradient")
OPTIONS = {"learning_rate": 1e-2, "batch_size": 4, "progress": False}


@cache
def base():
    return tiny_model("llama")


@cache
def subspaces():
    calibration = tlora.calibrate(tiny_model("llama"), task().calibration(4), progress=False)
    return tlora.task_subspaces(tiny_model("llama"), calibration, max_rank=8, progress=False)


def run(arms=None, **options):
    arms = arms or {"A": allocations()["score"], "B": allocations()["uniform"], "LoRA": "lora"}
    return tlora.race(base(), task(), arms, **{"subspaces": subspaces(), "steps": 6} | OPTIONS | options)


@cache
def finished():
    return run(seeds=(0, 3))


def alone(arm, seed):
    """The arm by `tlora.attach`, or by PEFT itself, on a copy of the base, trained by `tlora.train`."""
    model = copy.deepcopy(base())
    if arm == "LoRA":
        names = list(allocations()["score"].targets)
        torch.manual_seed(seed)
        config = LoraConfig(r=2, lora_alpha=2, target_modules=names, task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
    else:
        allocation = allocations()["score" if arm == "A" else "uniform"]
        adapted = tlora.attach(model, subspaces(), allocation, rows="variance", seed=seed)
    options = OPTIONS | {"max_steps": 6, "evaluation_limit": 0}
    return adapted, tlora.train(adapted, task(), seed=seed, **options)


@pytest.mark.parametrize("arm", ["A", "B", "LoRA"])
def test_each_arm_has_the_losses_that_it_has_alone(arm):
    for i, seed in enumerate((0, 3)):
        adapted, expected = alone(arm, seed)
        found = finished().runs[arm][i]
        np.testing.assert_allclose(found.history["loss"], expected.history["loss"], atol=1e-5, rtol=0)
        held_out = task().evaluate(adapted, "test")["loss"]
        last = finished().to_frame().query("arm == @arm and seed == @seed and step == 6").iloc[0]
        assert last["loss"] == pytest.approx(held_out, abs=1e-5)
        assert found.after["loss"] == last["loss"]
        assert last["parameters"] == expected.trainable_parameters == found.trainable_parameters
        for name, tensor in expected.adapter.items():
            torch.testing.assert_close(found.adapter[name], tensor, atol=1e-5, rtol=0)


def test_the_base_is_untouched():
    before = {name: tensor.clone() for name, tensor in base().state_dict().items()}
    condition, rng = condition_of(base()), torch.get_rng_state()
    run({"A": allocations()["score"], "dora": "dora"}, steps=2, seeds=[0])
    assert condition_of(base()) == condition
    assert torch.get_rng_state().equal(rng)
    for name, tensor in base().state_dict().items():
        assert tensor.equal(before[name])


def test_it_is_looked_at_at_even_distances_and_kept(tmp_path):
    found = finished()
    assert found.looks == [0, 2, 3, 5, 6]
    assert sum(found.errors) == pytest.approx(0.05)
    assert found.losses.shape == (5, 3, 2, 8)
    assert found.losses[0, 0].equal(found.losses[0, 1])  # B begins at zero
    assert (found.clock[1:] > found.clock[:-1]).all()
    read = tlora.Race.load(found.save(tmp_path / "race"))
    assert read.sentence == found.sentence
    folder = read.winner.save(tmp_path / "adapter")
    loaded = tlora.load(folder, copy.deepcopy(base()))
    assert task().evaluate(loaded, "test")["loss"] == pytest.approx(read.winner.after["loss"], abs=1e-5)


def test_equal_arms_are_equal():
    one = allocations()["score"]
    same = run({"A": one, "B": one}, seeds=(0, 1), steps=3)
    assert same.losses[:, 0].equal(same.losses[:, 1])
    assert "no difference larger than 0.02 nats" in same.sentence


def test_a_planted_difference_is_found_and_ends_the_race_in_the_middle():
    one, many = allocations()["score"], task()
    many = dataclasses.replace(many, test=concatenate_datasets([many.train, many.test]))
    rates = OPTIONS | {"learning_rate": {"A": 3e-2, "B": 1e-5}}
    found = tlora.race(base(), many, {"A": one, "B": one}, subspaces=subspaces(), steps=40, **rates)
    assert (found.ending, found.leader) == ("decided", "A")
    assert found.differences()["verdict"].tolist() == ["ahead", "ahead"]
    assert found.looks == [0, 10, 20]  # not at once: who learns quickly need not end better
    assert found.winner.steps == 20
    assert found.sentence.startswith("A is ahead of B by ")
    assert "after 20 of 40 steps" in found.sentence


@pytest.mark.parametrize("shift", [100, pytest.param(200, marks=pytest.mark.slow)])
def test_two_equal_allocations_from_other_starts_are_not_told_apart(shift):
    """A few of the races of tests/slow/test_race.py."""
    one = allocations()["score"]
    arms = {"A": started_elsewhere("A", one, 0), "B": started_elsewhere("B", one, 1000)}
    found = run(arms, seeds=(shift, shift + 1, shift + 2))
    assert not found.losses[-1, 0].equal(found.losses[-1, 1])
    assert not found.is_ahead


def test_an_arm_whose_numbers_are_not_finite_is_out_and_the_others_go_on():
    found = run(learning_rate={"A": 1e-2, "B": 1e38, "LoRA": 1e-2}, seeds=(0, 1))
    assert list(found.out) == ["B"]
    assert "B diverged after" in found.sentence
    assert found.runs["A"][1].steps == found.runs["LoRA"][0].steps == 6
    assert found.leader != "B"


class Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 4


class Interrupts(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)


def test_one_arm_can_be_stopped():
    found = run(callbacks={"B": [Stops()]}, seeds=(0, 1))
    assert found.out == {"B": "was stopped after 4 steps at learning rate 0.01"}
    assert found.runs["B"][0].steps == 4
    assert found.runs["A"][0].steps == 6
    assert found.losses[2, 1].isfinite().all()  # the look at step 3
    assert found.losses[3:, 1].isnan().all()


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_keeps_what_was_trained():
    found = run(callbacks={"A": [Interrupts()]}, seeds=(0, 1))
    assert found.ending == "interrupted"
    assert found.looks == [0, 2, 3]
    assert found.winner.interrupted
    assert found.runs["A"][0].steps == 4
    assert found.runs["B"][0].steps == 3
    assert "after 3 of 6 steps" in found.sentence
    assert found.winner.after == {} or found.winner.steps == 3


def test_an_interrupt_before_anything_was_trained_is_one():
    def interrupt(job):
        raise KeyboardInterrupt

    method = tlora.Method("broken", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run({"A": method, "B": "lora"})


def test_when_the_time_is_up_the_last_look_spends_what_is_left(monkeypatch):
    left = iter([100.0] * 3)
    monkeypatch.setattr(races._Plan, "left", property(lambda self: next(left, -1.0)))
    monkeypatch.setattr(races._Course, "_affordable", lambda self: 8)
    found = run(seconds=100, steps=None, seeds=[0])
    assert found.ending == "time"
    assert found.looks[-1] == 4
    assert sum(found.errors) == pytest.approx(0.05)


def test_steps_are_planned_for_the_seconds(monkeypatch):
    """Two arms with two seeds, half a second a step and one to prepare each training."""

    class Tried:
        preparation = 0.4
        training = SimpleNamespace(preparation=0.6, seconds=0.5 * races.TRIED)

        def losses(self, rows):
            time.sleep(0.1)

    monkeypatch.setattr(races._Course, "_tried", lambda *args: Tried())
    monkeypatch.setattr(races._Plan, "left", 100.0)
    plan = races._Plan(base(), task(), None, 100.0, (0, 1), 4, 0.02, 0.95, 8)
    arms = races._entered(plan, {"A": "lora", "B": "dora"}, None, None, "tlora")
    given = races._Course(plan, arms, {"A": 1e-3, "B": 1e-3}, {}, None)
    looks = 0.1 * (2 * 2 * races.LOOKS + 1)
    assert given._affordable() == pytest.approx(0.9 * (100 - 4 - looks) / (2 * 2 * 0.5), abs=1)
    searched = races._Course(plan, arms, {}, {}, None)
    trials, each = 2 * 3, 0.25 * 0.5
    left = 100 - 4 - looks - trials * (1 + 0.1)
    assert searched._affordable() == pytest.approx(0.9 * left / (2 * 2 * 0.5 + trials * each), abs=1)


def test_too_few_seconds_are_refused_with_how_many_there_must_be():
    with pytest.raises(ValueError, match=r"seconds=0.1 is too little for 8 steps of 3 arms .* pass at least \d+"):
        run(steps=None, seconds=0.1)


def test_without_a_rate_three_are_tried_for_each_arm():
    found = run({"A": allocations()["score"], "plus": "lora+"}, learning_rate=None, seeds=[0], steps=8)
    tried = {name: [rate for arm, rate, _ in found.ladder if arm == name] for name in found.arms}
    assert tried["A"] == [5e-4, 2e-3, 8e-3]
    assert tried["plus"] == pytest.approx([5e-4 / 16, 2e-3 / 16, 8e-3 / 16], rel=0.01)
    for name in found.arms:
        best = min((loss, rate) for arm, rate, loss in found.ladder if arm == name)[1]
        assert found.learning_rates[name] == best
    some = run({"A": allocations()["score"], "B": "lora"}, learning_rate={"A": 1e-2}, seeds=[0], steps=2)
    assert {arm for arm, *_ in some.ladder} == {"B"}


def test_its_own_subspaces_are_computed_where_none_are_given():
    found = run({"A": allocations()["score"], "tlora": "tlora"}, subspaces=None, seeds=[0], steps=2)
    attached = found.winner.meta.recipe["attach"]
    assert (attached["kind"], attached["rows"], attached["freeze_a"]) == ("wc", "variance", True)


def test_it_is_watched_as_it_goes():
    seen = []
    found = run(watch=seen.append, seeds=[0])
    assert [race.looks[-1] for race in seen] == found.looks[1:]
    assert seen[0].ending == ""
    assert seen[0].sentence


def without(**splits):
    found = task()
    return {name: getattr(found, name).select(range(count)) for name, count in splits.items()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test": 0, "validation": 0}, "has no held-out samples: load it with test= or validation="),
        ({"test": 1}, "the test split of '.*' has one sample"),
        ({"train": 0}, "has no training samples"),
    ],
)
def test_samples_that_do_not_suffice_are_refused(changes, said):
    some = dataclasses.replace(task(), **without(**changes))
    with pytest.raises(ValueError, match=said):
        tlora.race(base(), some, {"A": "lora", "B": "tlora"}, steps=4, **OPTIONS)


def test_rates_are_not_chosen_on_the_samples_that_results_are_of():
    for changes in ({"test": 0}, {"validation": 0}):
        some = dataclasses.replace(task(), **without(**changes))
        arms = {"A": "lora", "B": "tlora"}
        with pytest.raises(ValueError, match=r"no validation samples beside its .* pass learning_rate="):
            tlora.race(base(), some, arms, steps=4, progress=False)
        assert tlora.race(base(), some, arms, steps=2, seeds=[0], **OPTIONS).looks == [0, 1, 2]


def test_arms_of_another_model_are_refused():
    calibration = tlora.calibrate(tiny_model("gpt2"), task().calibration(4), progress=False)
    other = tlora.allocate(calibration.sensitivity, rank=2, max_rank=8)
    with pytest.raises(ValueError, match=r"arm 'B' is of another model: it has transformer.h.0"):
        run({"A": allocations()["score"], "B": other})
    wider = tlora.calibrate(tiny_model("llama", intermediate_size=64), task().calibration(4), progress=False)
    with pytest.raises(
        ValueError, match=r"arm 'B' is of another model: .*mlp.* was \(64, 32\) there, here it is \(48, 32\)"
    ):
        run({"A": allocations()["score"], "B": tlora.allocate(wider.sensitivity, rank=2, max_rank=8)})


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"arms": {"A": "lora"}}, ValueError, "a race takes at least two"),
        ({"arms": ["lora", "dora"]}, TypeError, "arms is a list: pass a mapping"),
        ({"arms": {"A": "lora", "B": "lorra"}}, ValueError, "unknown method 'lorra'"),
        ({"arms": {"A": "lora", "B": 3}}, TypeError, "a method is a name"),
        ({"steps": None}, ValueError, "pass steps= or seconds="),
        ({"seconds": 5}, ValueError, "pass steps= or seconds="),
        ({"steps": 1}, ValueError, "steps=1: use a whole number of at least 2"),
        ({"seeds": ()}, ValueError, "pass at least one, each once"),
        ({"seeds": (1, 1)}, ValueError, "pass at least one, each once"),
        ({"learning_rate": {"Z": 1e-3}}, ValueError, "names 'Z', which is not an arm"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate of A must be above 0"),
        ({"margin": 0}, ValueError, "margin must be above 0"),
        ({"confidence": 1}, ValueError, "confidence must be above 0 and below 1"),
        ({"evaluation_limit": 1}, ValueError, "evaluation_limit=1"),
        ({"rank": 0}, ValueError, "rank=0"),
        ({"callbacks": {"Z": []}}, ValueError, "callbacks for 'Z'"),
    ],
)
def test_bad_input_is_refused(options, kind, said):
    with pytest.raises(kind, match=said):
        run(**options)


def test_a_base_with_an_adapter_and_something_else_than_a_task_are_refused():
    adapted = tlora.attach(copy.deepcopy(base()), subspaces(), allocations()["score"])
    with pytest.raises(ValueError, match="already has an adapter"):
        tlora.race(adapted, task(), {"A": "lora", "B": "dora"}, steps=2)
    with pytest.raises(TypeError, match="race takes a task from"):
        tlora.race(base(), task().train, {"A": "lora", "B": "dora"}, steps=2)


def test_each_counted_part_is_in_the_seconds():
    found = finished()
    assert found.seconds > sum(run.seconds for runs in found.runs.values() for run in runs)


def test_a_method_is_told_for_how_many_steps_it_trains():
    """As AdaLoRA's schedule has to know."""
    told = []
    method = Method("mine", lambda job: told.append(job.steps) or METHODS["lora"].adapt(job))
    race = run({"mine": method, "LoRA": "lora"}, learning_rate={"LoRA": 1e-2}, steps=None, seconds=6, seeds=(0,))
    assert told == [races.TRIED] + [math.ceil(races.PART * race.steps)] * len(races.LADDER) + [race.steps]
