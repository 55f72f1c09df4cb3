"""Allocations that are refused, and what every allocation meets."""

from __future__ import annotations


def attempt(call, *values, **options):
    """What a call returns and the words of its refusal: one of the two."""
    try:
        return call(*values, **options), ""
    except ValueError as error:
        return None, str(error)


def assert_budget_is_met(allocation):
    low, high = allocation.limits.low, allocation.limits.high
    ranks = list(allocation.ranks.values())
    assert all(lo <= rank <= hi for lo, rank, hi in zip(low, ranks, high, strict=True))
    assert all(1 <= rank <= min(allocation.shapes[name]) for name, rank in allocation.ranks.items())
    if allocation.budget == "ranks":
        assert sum(ranks) == allocation.budget_used == allocation.budget_total
    else:
        rest = allocation.budget_total - allocation.budget_used
        assert rest >= 0
        below = [
            allocation.shapes[n][0] for n, hi in zip(allocation.ranks, high, strict=True) if allocation.ranks[n] < hi
        ]
        assert not below or rest < min(below)
