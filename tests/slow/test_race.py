"""Two hundred races of two equal allocations: how often one is said to be ahead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import scipy.stats
from datasets import concatenate_datasets

import tlora
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tests.helpers.races import allocations, let_equal_arms_differ

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`is_gradient", "ignore:B is still zero")]

RACES = 200


def test_of_equal_allocations_hardly_ever_one_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 95 % confidence: false in at most 5 % of races, though any two trainings differ.

    A t test over the samples, as if there were one seed, says so far more often.
    """
    let_equal_arms_differ(monkeypatch)
    arms = {"A": allocations()["score"], "B": allocations()["score"]}
    false = naive = 0
    for n in range(RACES):
        race = tlora.race(
            tiny_model("llama"), task(), arms,
            steps=8, seeds=range(3 * n, 3 * n + 3), learning_rate=3e-2, batch_size=4, progress=False,
        )  # fmt: skip
        false += race.is_ahead
        differences = (race.losses[-1, 1, 0] - race.losses[-1, 0, 0]).numpy()
        naive += scipy.stats.ttest_1samp(differences, 0).pvalue < 0.05
    print(f"false: {false} of {RACES}, by samples of one seed alone: {naive}")  # noqa: T201
    assert false <= 0.05 * RACES
    assert naive > 2 * false


def test_a_planted_difference_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    let_equal_arms_differ(monkeypatch)
    many = replace(task(), test=concatenate_datasets([task().train, task().test]))
    arms = {"A": allocations()["score"], "B": allocations()["score"]}
    for n in range(5):
        race = tlora.race(
            tiny_model("llama"), many, arms,
            steps=16, seeds=range(3 * n, 3 * n + 3), learning_rate={"A": 3e-2, "B": 1e-4}, batch_size=4, progress=False,
        )  # fmt: skip
        assert race.sentence.startswith("A is ahead of B by ")
