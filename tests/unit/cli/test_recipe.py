"""`tlora run --recipe`."""

import pytest

import tlora
from tests.helpers.commands import DATA, QUICK, RUN, done
from tlora.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("workplace", "no_pictures")


def rows_of(folder: str) -> str:
    return tlora.TrainingRun.load(folder).meta.recipe["command"]


def test_run_by_a_recipe_is_run_with_its_options():
    done(f"{RUN} {QUICK} --output one")
    done(f"{RUN} {QUICK} --recipe tlora-paper --rows variance --output two")
    done(f"{RUN} {QUICK} --recipe tlora-paper --output three")
    done(f"{RUN} {QUICK} --recipe tlora --rows orthonormal --output four")
    done(f"{RUN} {QUICK} --recipe tlora-trained --output six")
    done(f"{RUN} {QUICK} --rows variance --no-freeze-a --output seven")
    done(f"{RUN} {QUICK} --no-init --no-adapt-ranks --no-adapt-scales --output eight")  # a random A has its own length
    done(f"{RUN} {QUICK} --recipe lora --output nine")
    names = ("one", "two", "three", "four", "six", "seven", "eight", "nine")
    runs = {name: tlora.TrainingRun.load(name) for name in names}

    def same(a: str, b: str) -> bool:
        if runs[a].trainable_parameters != runs[b].trainable_parameters:
            return False
        return all(tensor.equal(runs[b].adapter[name]) for name, tensor in runs[a].adapter.items())

    assert same("one", "two")
    assert same("three", "four")
    assert same("six", "seven")
    assert same("eight", "nine")
    assert not runs["nine"].frozen_a
    assert set(runs["nine"].adapter_config["rank_pattern"].values()) == {2}
    assert not same("one", "three")
    assert not same("one", "six")
    assert "--rows variance" in rows_of("one")  # whatever may be the default later
    assert "--recipe tlora-paper" in rows_of("three")


def test_without_a_recipe_a_run_is_plain_lora_and_says_so():
    said = done(f"run {DATA} --samples 6 {QUICK} --output one").stderr
    assert "plain LoRA, because no --recipe is given" in said
    assert said.count("--recipe tlora") == 1
    assert "plain LoRA" not in done(f"run {DATA} --samples 6 {QUICK} --recipe lora --output two").stderr
    one, two = (tlora.TrainingRun.load(name) for name in ("one", "two"))
    assert not one.frozen_a
    assert all(tensor.equal(two.adapter[name]) for name, tensor in one.adapter.items())


def test_a_recipe_on_the_line_counts_more_than_the_recipe_of_a_file():
    done(f"run {DATA} --samples 6 {QUICK} --output one")
    done("run --config one/tlora/run.yaml --recipe tlora --output two")
    done(f"run {DATA} --samples 6 {QUICK} --recipe tlora --output three")
    two, three = (tlora.TrainingRun.load(name) for name in ("two", "three"))
    assert two.frozen_a
    assert two.ranks == three.ranks
    assert all(tensor.equal(three.adapter[name]) for name, tensor in two.adapter.items())


def test_every_argument_of_a_recipe_is_an_option_of_run():
    text = done("run --help").stdout
    for recipe in RECIPES.values():
        for name, value in recipe.flat().items():
            assert f"--{'no-' if value is False else ''}{name.replace('_', '-')}" in text
