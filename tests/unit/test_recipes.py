"""Recipes: what they refuse, and what they stand for."""

from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import tlora
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tlora import recipes
from tlora.calibration import calibrate as calibrate_file
from tlora.models import weights
from tlora.models.targets import target_modules
from tlora.models.weights import fingerprint
from tlora.recipes import Recipe
from tlora.utils.defaults import RecipeName

RANK = 2


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"attach": {"row": "variance"}}, "row"),
        ({"allocate": {"rank": 8}}, "rank"),
        ({"train": {"seed": 8}}, "seed"),
        ({"train": {"learning_rte": 1}}, "learning_rate"),
        ({"task_subspaces": {"model": 8}}, "model"),
        ({"train": {"lr_scheduler_kwargs": {1}}}, "JSON"),
        ({"calibrate": {"tokens": {1}}}, "tokens is a set"),
        ({"calibrate": {"sketch_size": 8.5}}, r"sketch_size is a float \(8.5\): pass a whole number"),
        ({"allocate": {"temperature": "hot"}}, "temperature is a str"),
        ({"attach": {"freeze_a": "no"}}, "freeze_a is a str"),
        ({"train": {"learning_rate": "fast"}}, "learning_rate is a str"),
        ({"allocate": 3}, "allocate is an int: pass a dict$"),
        ({"allocate": None}, "allocate is None: pass a dict$"),
    ],
)
def test_recipes_set_only_arguments_that_are_theirs(arguments, name):
    for make in (partial(Recipe, "mine"), Recipe.named("captured-trained").override):
        with pytest.raises(TypeError, match=name):
            make(**arguments)


def test_recipes_override_functions_that_they_have():
    with pytest.raises(TypeError, match=r"'nope'.* allocate"):
        Recipe.named("captured").override(nope=1)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"calibrate": {"tokens": "label"}}, "tokens must be 'all' or 'labels' or 'task', got 'label'"),
        ({"calibrate": {"statistics": "disk"}}, "statistics must be .* or None, got 'disk'"),
        ({"task_subspaces": {"kind": "wcw"}}, "kind must be .*, got 'wcw'"),
        ({"attach": {"rows": "unit"}}, "rows must be .*, got 'unit'"),
        ({"allocate": {"by": "scores"}}, "by must be 'score' or 'captured', got 'scores'"),
        ({"allocate": {"budget": "bytes"}}, "budget must be .*, got 'bytes'"),
        ({"allocate": {"temperature": -1}}, "temperature must be between 0 and 1, got -1"),
        ({"allocate": {"alpha": float("nan")}}, "alpha must be above 0"),
        ({"allocate": {"max_rank": {"q_proj": 0}}}, "max_rank"),
    ],
)
def test_a_recipe_of_no_known_word_is_refused_when_it_is_made(arguments, name):
    for make in (partial(Recipe, "mine"), Recipe.named("captured").override):
        with pytest.raises(ValueError, match=name):
            make(**arguments)


def test_recipes_take_numbers_and_arrays_of_numpy():
    names = ["q_proj", "v_proj"]
    plain = Recipe("mine", calibrate={"target_modules": names, "sketch_size": 8})
    assert Recipe("mine", calibrate={"target_modules": np.array(names), "sketch_size": np.int64(8)}) == plain


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"train": {"freeze_a_after": 0.2}}, "freeze_a_after=0.2 has no effect"),
        ({"train": {"a_learning_rate": 0.2}}, "a_learning_rate=0.2 has no effect"),
        ({"train": {"freeze_a_after": 1}, "attach": {"freeze_a": False}}, "freeze_a_after=1"),
        ({"train": {"freeze_a_after": 0}, "attach": {"freeze_a": False}}, "freeze_a_after=0"),
    ],
)
def test_recipes_do_not_train_an_a_that_they_freeze(arguments, name):
    with pytest.raises(ValueError, match=name):
        Recipe("mine", **arguments)


def test_recipes_have_names():
    assert Recipe.named("tlora-paper").arguments() == {"attach": {"rows": "orthonormal"}}
    assert Recipe.named("captured").arguments() == {
        "task_subspaces": {"kind": "fisher"},
        "allocate": {"by": "captured", "budget": "parameters", "adapt_scales": False},
    }
    assert Recipe.named("captured").needs == {"fisher": True}
    for name in ("paper", "tlora"):  # the second would be either of two
        with pytest.raises(KeyError, match=r"captured.*tlora-paper"):
            Recipe.named(name)


def test_the_command_line_knows_every_recipe():
    assert get_args(RecipeName) == tuple(recipes.RECIPES)


def test_recipes_keep_their_own_copy():
    attach = {"rows": "variance"}
    recipe = Recipe("mine", attach=attach, train={"warmup_steps": 0})
    attach["rows"] = "orthonormal"
    assert recipe.attach == {"rows": "variance"}
    assert repr(recipe) == "Recipe(mine: attach(rows='variance'), train(warmup_steps=0))"


def test_ranks_by_captured_gradient_come_after_the_directions():
    recipe = Recipe(
        "captured",
        calibrate={"gradient": True},
        task_subspaces={"kind": "g"},
        allocate={"by": "captured", "adapt_scales": False},
    )
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, task().calibration(20), **recipe.calibrate, progress=False)
    subspaces = tlora.task_subspaces(model, calibration, **recipe.task_subspaces, max_rank=4 * RANK, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, RANK, subspaces=subspaces, **recipe.allocate)
    adapted = tlora.attach(tiny_model("llama"), subspaces, allocation)
    expected = tlora.train(adapted, task(), max_steps=2, evaluation_limit=0, learning_rate=1e-2, progress=False)
    options = {"rank": RANK, "steps": 2, "seeds": [0], "learning_rate": 1e-2, "progress": False}
    race = tlora.race(model, task(), {"captured": recipe, "LoRA": "lora"}, **options)
    trained = race.runs["captured"][0].adapter
    assert all(torch.equal(trained[name], tensor) for name, tensor in expected.adapter.items())
    assert len(set(allocation.ranks.values())) > 1


@pytest.mark.parametrize("recipe", ["captured", "captured-trained", "tlora-paper", "lora"])
def test_a_plan_is_what_the_functions_make_one_by_one(recipe):
    model, samples = tiny_model("llama"), task().calibration(12)
    plan = tlora.prepare(model, task(), recipe, RANK, samples=12, progress=False)
    calibration = tlora.calibrate(model, samples, fisher=recipe.startswith("captured"), progress=False)
    options = {"max_rank": 4 * RANK, "kind": "fisher"}
    if recipe == "lora":
        subspaces = None
        allocation = tlora.allocate(calibration.sensitivity, RANK, adapt_ranks=False, adapt_scales=False)
    elif recipe == "tlora-paper":
        allocation = tlora.allocate(calibration.sensitivity, RANK)
        subspaces = tlora.task_subspaces(model, calibration, max_rank=allocation, progress=False)
    else:
        subspaces = tlora.task_subspaces(model, calibration, **options, progress=False)
        limits = {"budget": "parameters", "adapt_scales": False}
        allocation = tlora.allocate(calibration.sensitivity, RANK, by="captured", subspaces=subspaces, **limits)
    assert (plan.allocation.ranks, plan.allocation.scalings) == (allocation.ranks, allocation.scalings)
    how = {"freeze_a": recipe in ("captured", "tlora-paper")} | ({"rows": "orthonormal"} if "paper" in recipe else {})
    expected = tlora.attach(tiny_model("llama"), subspaces, allocation, **how)
    adapted = tlora.attach(model, plan)
    assert all(tensor.equal(expected.state_dict()[name]) for name, tensor in adapted.state_dict().items())
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in expected.named_parameters() if parameter.requires_grad}


def test_what_was_made_before_is_not_made_again(monkeypatch):
    model = tiny_model("llama")
    plan = tlora.prepare(model, task(), rank=RANK, samples=12, progress=False)
    monkeypatch.setattr(recipes, "calibrate", None)
    again = tlora.prepare(model, task(), "tlora-paper", RANK, calibration=plan.calibration, progress=False)
    assert again.calibration is plan.calibration
    assert again.subspaces.kind == "wc"
    edited = plan.allocation.edit({plan.allocation.names[0]: 5})
    same = tlora.prepare(model, task(), allocation=edited, calibration=plan.calibration, progress=False)
    assert same.allocation is edited
    assert same.subspaces.bases[edited.names[0]].equal(plan.subspaces.bases[edited.names[0]])
    without = replace(plan, calibration=None)
    assert same_tensors(tlora.attach(tiny_model("llama"), without), tlora.attach(model, plan))


def same_tensors(one, other):
    return all(tensor.equal(other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_weights_are_read_once_and_a_base_that_changed_is_caught(monkeypatch):
    read = []
    monkeypatch.setattr(weights, "fingerprint", lambda matrix: read.append(1) or fingerprint(matrix))
    monkeypatch.setattr(calibrate_file, "fingerprint", weights.fingerprint)
    model = tiny_model("llama")
    plan = tlora.prepare(model, task(), rank=RANK, samples=12, progress=False)
    assert len(read) == len(plan.allocation.targets)
    with torch.no_grad():
        model.get_submodule(plan.allocation.names[-1]).weight.normal_()
    for act in (
        lambda: tlora.attach(model, plan),
        lambda: tlora.prepare(model, task(), rank=RANK, calibration=plan.calibration, progress=False),
        lambda: tlora.task_subspaces(model, plan.calibration, progress=False),
    ):
        with pytest.raises(ValueError, match=plan.allocation.names[-1]):
            act()


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"recipe": "tlora"}, KeyError, "captured"),
        ({"recipe": 3}, TypeError, "recipe"),
        ({"model": "llama"}, TypeError, "str"),
        ({"recipe": Recipe("mine", allocate={"by": "captured"})}, ValueError, "kind"),
        ({"recipe": Recipe("mine", allocate={"max_rank": 1})}, ValueError, "max_rank"),
        ({"rank": 300}, ValueError, "rank"),
    ],
)
def test_what_cannot_be_prepared_is_refused_before_the_calibration(arguments, error, name, monkeypatch):
    monkeypatch.setattr(recipes, "calibrate", None)
    values = {"model": tiny_model("llama"), "task": task(), "rank": RANK} | arguments
    with pytest.raises(error, match=name):
        tlora.prepare(**values, progress=False)


def test_the_recipe_lora_is_plain_lora_to_the_bit():
    recipe, model = Recipe.named("lora"), tiny_model("llama")
    sensitivity = tlora.calibrate(model, task().calibration(12), progress=False).sensitivity
    adapted = tlora.attach(model, None, tlora.allocate(sensitivity, RANK, **recipe.allocate), **recipe.attach)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(target_modules(tiny_model("llama"))))
        expected = get_peft_model(tiny_model("llama"), config)
    theirs = expected.state_dict()
    for name, tensor in adapted.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    assert {n: p.requires_grad for n, p in adapted.named_parameters()} == {
        n: p.requires_grad for n, p in expected.named_parameters()
    }
