"""Recipes: what they refuse, and what they stand for."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tlora
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tlora.models.targets import target_modules
from tlora.recipes import Recipe

RANK = 2


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"attach": {"row": "variance"}}, "row"),
        ({"allocate": {"rank": 8}}, "rank"),
        ({"train": {"seed": 8}}, "seed"),
        ({"train": {"learning_rte": 1}}, "learning_rate"),
        ({"task_subspaces": {"model": 8}}, "model"),
        ({"calibrate": {"tokens": {1}}}, "JSON"),
    ],
)
def test_recipes_set_only_arguments_that_are_theirs(arguments, name):
    with pytest.raises(TypeError, match=name):
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
