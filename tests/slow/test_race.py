"""Two hundred races of two equal allocations: how often one is said to be ahead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import scipy.stats
from datasets import concatenate_datasets

import tlora
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tests.helpers.races import allocations, started_elsewhere

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`is_gradient", "ignore:B is still zero")]

RACES = 200


def test_of_equal_allocations_hardly_ever_one_is_ahead() -> None:
    """At 95 % confidence: false of at most 5 % of races, all looks included, though any two trainings differ.

    A t test over the samples of the last look alone, as if there were one seed, says so far more often.
    """
    one = allocations()["score"]
    arms = {"A": started_elsewhere("A", one, 0), "B": started_elsewhere("B", one, 100_000)}
    false = naive = 0
    for n in range(RACES):
        found = tlora.race(
            tiny_model("llama"), task(), arms,
            steps=8, seeds=range(3 * n, 3 * n + 3), learning_rate=3e-2, batch_size=4, progress=False,
        )  # fmt: skip
        false += bool(found.differences()["verdict"].isin(["ahead", "behind"]).any())
        paired = (found.losses[-1, 1, 0] - found.losses[-1, 0, 0]).numpy()
        naive += scipy.stats.ttest_1samp(paired, 0).pvalue < 0.05
    print(f"false: {false} of {RACES}, by samples of one seed alone: {naive}")  # noqa: T201
    assert false <= 0.05 * RACES
    assert naive > 2 * false


def test_a_planted_difference_is_found() -> None:
    one, few = allocations()["score"], task()
    many = replace(few, test=concatenate_datasets([few.train, few.test]))
    arms = {"A": started_elsewhere("A", one, 0), "B": started_elsewhere("B", one, 100_000)}
    for n in range(5):
        found = tlora.race(
            tiny_model("llama"), many, arms,
            steps=16, seeds=range(3 * n, 3 * n + 3), learning_rate={"A": 3e-2, "B": 1e-4}, batch_size=4, progress=False,
        )  # fmt: skip
        assert found.sentence.startswith("A is ahead of B by ")
