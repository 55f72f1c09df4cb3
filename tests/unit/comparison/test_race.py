"""A race: each arm as it is alone, the base as it was, and how it ends."""

import copy
import dataclasses
import os
import signal
from functools import cache

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from peft import AdaLoraConfig, LoraConfig, LoraGAConfig, VeraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig, EvaConfig
from transformers import TrainerCallback, TrainerControl, TrainerState

import tlora
from tests.helpers.adapted import condition
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tests.helpers.races import allocations
from tlora import Recipe
from tlora.comparison import arms
from tlora.comparison import race as module

pytestmark = pytest.mark.filterwarnings("ignore:B is still zero", "ignore:`is_gradient")
OPTIONS = {"learning_rate": 1e-2, "batch_size": 4, "progress": False}
CONFIGS = {
    "LoRA": LoraConfig(r=2, lora_alpha=2),
    "DoRA": LoraConfig(r=2, lora_alpha=2, use_dora=True),
    "rsLoRA": LoraConfig(r=2, lora_alpha=2, use_rslora=True, target_modules=["q_proj", "v_proj"]),
    "PiSSA": LoraConfig(r=2, lora_alpha=2, init_lora_weights="pissa"),
    "OLoRA": LoraConfig(r=2, lora_alpha=2, init_lora_weights="olora"),
}

NEED_DATA = [
    LoraConfig(init_lora_weights="eva", eva_config=EvaConfig()),
    LoraConfig(init_lora_weights="corda", corda_config=CordaConfig()),
    LoraConfig(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()),
]


@cache
def base():
    return tiny_model("llama")


@cache
def subspaces():
    calibration = tlora.calibrate(tiny_model("llama"), task().calibration(4), progress=False)
    return tlora.task_subspaces(tiny_model("llama"), calibration, max_rank=8, progress=False)


def run(arms=None, **options):
    arms = arms or {"A": allocations()["score"], "B": allocations()["uniform"], "LoRA": CONFIGS["LoRA"]}
    return tlora.race(base(), task(), arms, **{"subspaces": subspaces(), "steps": 6} | OPTIONS | options)


@cache
def finished():
    return run({"A": allocations()["score"], "B": allocations()["uniform"], **CONFIGS}, seeds=(3, 0))


def alone(arm, seed):
    """The arm on a copy of the base by `tlora.attach` or by PEFT, trained by `tlora.train`."""
    model = copy.deepcopy(base())
    if arm in CONFIGS:
        config = copy.deepcopy(CONFIGS[arm])
        config.target_modules = config.target_modules or list(allocations()["score"].targets)
        config.task_type = "CAUSAL_LM"
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    else:
        allocation = allocations()["score" if arm == "A" else "uniform"]
        adapted = tlora.attach(model, subspaces(), allocation, seed=seed)
    options = OPTIONS | {"max_steps": 6, "evaluation_limit": 0}
    return adapted, tlora.train(adapted, task(), seed=seed, **options)


@pytest.mark.parametrize("arm", ["A", "B", *CONFIGS])
def test_each_training_is_that_of_the_arm_alone(arm):
    for i, seed in enumerate((3, 0)):
        adapted, expected = alone(arm, seed)
        trained = finished().runs[arm][i]
        assert trained.history.equals(expected.history)
        assert trained.module_history.equals(expected.module_history)
        assert trained.adapter.keys() == expected.adapter.keys()
        assert all(torch.equal(trained.adapter[name], tensor) for name, tensor in expected.adapter.items())
        last = finished().to_frame().query("arm == @arm and seed == @seed and step == 6").iloc[0]
        assert last["loss"] == pytest.approx(task().evaluate(adapted, "test")["loss"], abs=1e-6)
        assert trained.after["loss"] == last["loss"]
        assert last["parameters"] == expected.trainable_parameters == trained.trainable_parameters


def test_the_order_of_arms_changes_nothing():
    arms = {"LoRA": CONFIGS["LoRA"], "A": allocations()["score"]}
    for race in (run(arms, seeds=[0]), run(dict(reversed(arms.items())), seeds=[0])):
        for arm in arms:
            expected = finished().losses[:, finished().arms.index(arm), 1]
            assert race.losses[:, race.arms.index(arm), 0].equal(expected)


def test_a_recipe_is_the_pipeline():
    race = run({"mine": tlora.Recipe("mine", attach={"freeze_a": False}), "LoRA": "lora"}, rank=2, seeds=[5])
    calibration = tlora.calibrate(base(), task().calibration(20), progress=False)
    allocation = tlora.allocate(calibration.sensitivity, 2)
    directions = tlora.task_subspaces(base(), calibration, max_rank=allocation, progress=False)
    adapted = tlora.attach(copy.deepcopy(base()), directions, allocation, freeze_a=False, seed=5)
    expected = tlora.train(adapted, task(), seed=5, max_steps=6, evaluation_limit=0, **OPTIONS)
    trained = race.runs["mine"][0]
    assert all(torch.equal(trained.adapter[name], tensor) for name, tensor in expected.adapter.items())
    assert set(race.runs["LoRA"][0].ranks.values()) == {2}


def test_a_config_trains_the_head_of_a_classifier():
    labels = task("bert")
    arms = {"DoRA": LoraConfig(r=2, use_dora=True), "frozen": "captured"}
    race = tlora.race(tiny_model("bert"), labels, arms, rank=2, steps=2, seeds=1, **OPTIONS)
    assert race.losses.shape == (3, 2, 1, 8)
    for runs in race.runs.values():
        assert any("classifier" in name for name in runs[0].adapter)
    base = labels.evaluate(tiny_model("bert"), "test")["loss"]
    assert race.losses[0].mean().item() == pytest.approx(base, abs=1e-6)


def test_the_base_is_untouched():
    before = {name: tensor.clone() for name, tensor in base().state_dict().items()}
    state = condition(base())
    run({name: CONFIGS[name] for name in ("PiSSA", "OLoRA", "DoRA")}, steps=2, seeds=[0])
    assert condition(base()) == state
    for name, tensor in base().state_dict().items():
        assert tensor.equal(before[name])


def test_it_is_evaluated_at_even_distances_and_kept(tmp_path):
    race = finished()
    assert race.evaluated == [0, 2, 3, 5, 6]
    assert race.losses.shape == (5, 7, 2, 8)
    assert (race.clock[1:] > race.clock[:-1]).all()
    assert race.seconds > sum(run.seconds for runs in race.runs.values() for run in runs)
    read = tlora.load_result(race.save(tmp_path / "race"))
    assert read.sentence == race.sentence
    assert read.search == race.search
    winner = read.runs["A"][0]
    loaded = tlora.load_adapter(winner.save(tmp_path / "adapter"), copy.deepcopy(base()))
    assert task().evaluate(loaded, "test")["loss"] == pytest.approx(winner.after["loss"], abs=1e-5)


def test_a_planted_difference_is_detected():
    one, many = allocations()["score"], task()
    many = dataclasses.replace(many, test=concatenate_datasets([many.train, many.test]))
    rates = OPTIONS | {"learning_rate": {"A": 3e-2, "B": 1e-5}}
    race = tlora.race(base(), many, {"B": one, "A": one}, subspaces=subspaces(), steps=20, **rates)
    assert (race.leader, race.is_ahead, len(race.seeds)) == ("A", True, 3)
    assert race.winner.after["loss"] < race.runs["B"][0].after["loss"]


def test_an_arm_that_diverges_is_out_and_the_others_go_on():
    race = run(learning_rate={"A": 1e-2, "B": 1e30, "LoRA": 1e-2}, seeds=2)
    assert list(race.diverged) == ["B"]
    assert "B diverged after" in race.sentence
    assert len(race.runs["B"]) == 1
    assert race.runs["A"][1].steps == race.runs["LoRA"][1].steps == 6
    assert race.leader != "B"


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 4


class InterruptAStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_callback_stops_one_training_and_the_others_go_on():
    race = run(callbacks={"B": [Stop()]}, seeds=2)
    assert [each.steps for each in race.runs["B"]] == [4, 4]
    assert [each.steps for each in race.runs["A"]] == [6, 6]
    assert race.runs["B"][0].after == {}
    frame = race.differences()
    assert frame.loc[frame[["arm", "other"]].eq("B").any(axis=1), "step"].tolist() == [3, 3]
    assert not race.interrupted


@pytest.mark.posix
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_keeps_what_was_trained():
    race = run(callbacks={"B": [InterruptAStep()]}, seeds=2)
    assert race.interrupted
    assert {name: len(runs) for name, runs in race.runs.items()} == {"A": 1, "B": 1}
    assert race.runs["A"][0].after
    assert not race.runs["B"][0].after  # its adapter is that of step 4, evaluated at step 3
    row = race.differences().query("arm != 'LoRA' and other != 'LoRA'").iloc[0]
    assert (row["step"], row["seeds"]) == (3, 1)


class InterruptTheEnd(TrainerCallback):
    """Interrupts as soon as the second training has ended, again and again."""

    ends = 0

    def on_train_end(self, args, state, control, **kwargs):
        self.ends += 1
        if self.ends > 1:
            raise KeyboardInterrupt


def test_an_interrupt_at_the_end_of_a_training_loses_nothing():
    arms = {"A": allocations()["score"], "B": CONFIGS["LoRA"]}
    race = run(arms, callbacks={"B": [InterruptTheEnd()]}, seeds=3)
    assert race.interrupted
    assert {name: [each.steps for each in runs] for name, runs in race.runs.items()} == {"A": [6, 6], "B": [6, 6]}
    assert race.losses[:, :, :2].isfinite().all()
    assert race.runs["B"][1].adapter


def test_an_interrupt_before_anything_was_trained_is_raised(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("tlora.comparison.race.train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run()


@pytest.fixture
def clock(monkeypatch):
    """Half a second a step, one to prepare each training, a tenth for each evaluation; nothing is trained."""
    now, trained = [0.0], finished().runs["A"][0]

    def pass_time(seconds):
        now[0] += seconds

    def train(model, task, *, max_steps, callbacks, **arguments):
        pass_time(1)
        state, control = TrainerState(max_steps=max_steps), TrainerControl()
        for event in ("on_train_begin", *["on_optimizer_step", "on_step_end"] * max_steps, "on_train_end"):
            if event == "on_optimizer_step":
                pass_time(0.5)
                state.global_step += 1
            for callback in callbacks:
                getattr(callback, event)(None, state, control, model=model)
        return trained

    def evaluate(model, task, rows, batch_size, progress):
        pass_time(0.1)
        return np.linspace(1, 2, len(rows))

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "losses_of_samples", evaluate)


@pytest.mark.parametrize("rate", [1e-2, None])
@pytest.mark.usefixtures("clock")
def test_steps_are_planned_for_the_seconds(rate):
    options = {"steps": None, "seeds": 2, "learning_rate": rate}
    race = run({"A": allocations()["score"], "B": CONFIGS["LoRA"]}, seconds=200, **options)
    assert 0.85 * 200 < race.seconds < 0.95 * 200
    with pytest.raises(ValueError, match=r"seconds=10 .* pass at least \d+"):
        run(seconds=10, **options)


def test_without_a_rate_three_are_tried_on_the_validation_samples():
    race = run({"A": allocations()["score"], "B": CONFIGS["LoRA"]}, learning_rate={"B": 1e-2}, seeds=[0], steps=8)
    assert [(arm, rate) for arm, rate, _ in race.search] == [("A", 5e-4), ("A", 2e-3), ("A", 8e-3)]
    assert race.learning_rates == {"A": min((loss, rate) for _, rate, loss in race.search)[1], "B": 1e-2}
    assert race.runs["A"][0].steps == 8
    own = run(
        {"A": tlora.Recipe("mine", train={"learning_rate": 3e-3}), "B": "lora"}, learning_rate={"B": 1e-3}, steps=1
    )
    assert (own.search, own.learning_rates["A"]) == ([], 3e-3)


def test_the_race_is_watched():
    races = []
    race = run(watch=races.append, seeds=[0])
    assert len(races) == 3 * 4
    assert races[3].losses[:, 0].isfinite().all()
    assert races[3].losses[1:, 1:].isnan().all()
    assert races[-1].sentence == race.sentence


def some(**counts):
    splits = {name: getattr(task(), name).select(range(count)) for name, count in counts.items()}
    return dataclasses.replace(task(), **splits)


def other_allocation(family, **sizes):
    calibration = tlora.calibrate(tiny_model(family, **sizes), task().calibration(4), progress=False)
    return tlora.allocate(calibration.sensitivity, rank=2, max_rank=8)


@pytest.mark.parametrize(
    ("changes", "error", "names"),
    [
        ({"arms": {"A": "lora"}}, ValueError, "arms"),
        ({"arms": ["lora", "captured"]}, TypeError, "arms"),
        ({"arms": {"A": "lora", "B": "lorra"}}, KeyError, "lorra"),
        ({"arms": {"A": "lora", "B": 3}}, TypeError, "'B'"),
        ({"arms": {"A": "lora", "B": VeraConfig()}}, TypeError, "'B'"),
        ({"arms": {"A": "lora", "B": AdaLoraConfig(total_step=9)}}, TypeError, "'B'"),
        ({"arms": {"A": "lora", "B": LoraConfig(target_modules=["none"])}}, ValueError, "'B'"),
        *(({"arms": {"A": "lora", "B": config}}, TypeError, f"'B'.*{config.init_lora_weights}.*Recipe")
          for config in NEED_DATA),
        ({"arms": {"A": "lora", "B": lambda: other_allocation("gpt2")}}, ValueError, "'B'.*transformer"),
        ({"arms": {"A": "lora", "B": lambda: other_allocation("llama", intermediate_size=64)}}, ValueError, "'B'.*64"),
        ({"steps": None}, ValueError, "steps="),
        ({"seconds": 5}, ValueError, "steps="),
        ({"seeds": (1, 1)}, ValueError, "seeds"),
        ({"seeds": 0}, ValueError, "seeds"),
        ({"learning_rate": {"Z": 1e-3}}, ValueError, "learning_rate.*'Z'"),
        ({"callbacks": {"Z": []}}, ValueError, "callbacks.*'Z'"),
        ({"task": lambda: some(test=0, validation=0)}, ValueError, "held-out"),
        ({"task": lambda: some(test=1)}, ValueError, "held-out"),
        ({"task": lambda: some(test=0), "learning_rate": None}, ValueError, "learning_rate="),
        ({"task": lambda: some(validation=0), "learning_rate": None}, ValueError, "learning_rate="),
        ({"task": lambda: task().train}, TypeError, "load_task"),
        ({"model": lambda: alone("A", 0)[0]}, ValueError, "adapter"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(changes, error, names):
    changes = {name: value() if callable(value) else value for name, value in changes.items()}
    if isinstance(changes.get("arms"), dict):
        changes["arms"] = {name: arm() if callable(arm) else arm for name, arm in changes["arms"].items()}
    parts = {"model": base(), "task": task(), "arms": {"A": "lora", "B": "captured"}, "steps": 4, **OPTIONS} | changes
    with pytest.raises(error, match=names):
        tlora.race(**parts)


def test_recipes_that_differ_in_a_default_written_out_share_one_calibration(monkeypatch):
    made = []
    calibrate = arms.calibrate_on
    monkeypatch.setattr(arms, "calibrate_on", lambda *args, **options: made.append(args) or calibrate(*args, **options))
    named = {name: Recipe(name, calibrate={"tokens": name}) for name in ("all", "labels")} | {"default": "tlora-paper"}
    tlora.race(base(), task(), named, steps=1, seeds=1, rank=2, learning_rate=1e-3, progress=False)
    assert len(made) == 2
