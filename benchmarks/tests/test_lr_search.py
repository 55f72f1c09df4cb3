"""The search for a learning rate."""

import itertools
import math

import pytest

from benchmarks.lab import lr_search

GRID = (1e-3, 1e-2)


def bump(center: float):
    """A smooth objective of one peak on a log scale."""
    return lambda rate: -abs(math.log(rate / center))


@pytest.mark.parametrize("center", [1e-6, 7e-5, 1e-3, 3e-3, 0.3])
@pytest.mark.parametrize("grid", [(1e-3, 2e-3, 4e-3), (4e-3, 1e-3, 2e-3), (1e-3, 1e-2)])
def test_grid_is_widened_until_the_best_rate_is_inside(center, grid):
    values = lr_search.search_rates(bump(center), grid)
    found, factor = lr_search.best_rate(values), sorted(grid)[1] / sorted(grid)[0]
    assert values.keys() >= set(grid)
    if center > 1e-5 or factor > 2:
        assert min(values) < found < max(values)
        assert abs(math.log(found / center)) <= math.log(factor)
        assert lr_search.next_rate(values) is None
    steps = [b / a for a, b in itertools.pairwise(sorted(values))]
    assert steps == pytest.approx([factor] * len(steps), rel=0.01)


def test_a_search_that_never_ends_is_given_up():
    values = lr_search.search_rates(lambda rate: rate, GRID)
    assert len(values) == len(GRID) + lr_search.EXTENSIONS
    assert lr_search.next_rate(values) is not None


def test_a_search_that_goes_on_ends_where_one_does_that_was_never_interrupted():
    whole = lr_search.search_rates(lambda rate: rate, GRID)
    for done in range(len(GRID), len(whole) + 1):
        tried = sorted(whole)[:done]
        assert lr_search.search_rates(lambda rate: rate, GRID, tried) == whole
    inside = lr_search.search_rates(bump(2e-3), (1e-3, 4e-3), (2e-3, 3e-3))
    assert lr_search.next_rate(inside) is None


def test_what_was_tried_before_is_scored_once():
    """A rate that fails each time it is run would be run twice."""
    scored = []
    lr_search.search_rates(lambda rate: scored.append(rate) or bump(2e-3)(rate), (1e-3, 2e-3, 4e-3), (2e-3, 4e-3, 3e-3))
    assert sorted(scored) == [1e-3, 2e-3, 3e-3, 4e-3]


def test_rates_that_diverge_are_no_reason_to_go_higher():
    values = lr_search.search_rates(lambda rate: rate if rate < 3e-3 else -math.inf, (1e-3, 2e-3, 4e-3))
    assert lr_search.best_rate(values) == 2e-3
    assert len(values) == 3
    lower = lr_search.search_rates(lambda rate: -math.inf if rate > 2e-4 else -rate / 1e-4 - 1e-4 / rate, (1e-3, 2e-3))
    assert lr_search.best_rate(lower) == pytest.approx(1.25e-4)
    assert lr_search.best_rate(dict.fromkeys((1e-3, 2e-3), math.nan)) is None


@pytest.mark.parametrize("grid", [(), (0.0, 1e-3), (-1.0, 1.0), (math.inf, 1.0)])
def test_grids_must_be_positive_and_finite(grid):
    with pytest.raises(ValueError, match="learning_rates"):
        lr_search.search_rates(bump(1), grid)
