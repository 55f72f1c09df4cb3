"""Sizes, counts, ranges, durations and tables as users read them."""

from collections.abc import Callable
from typing import Any

import pytest

from tlora.utils.text import (
    count_text,
    duration_text,
    facts_text,
    metrics_text,
    range_text,
    ranks_text,
    rough_duration_text,
    size_text,
    table_text,
)


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (size_text, 999, "999 bytes"), (size_text, 999.6, "1 kB"), (size_text, 13.5e9, "13.5 GB"),
        (size_text, 2.5e12, "2.5e+03 GB"),
        (range_text, (2.0, 0.5), "0.5 to 2"), (range_text, (1.0001, 1), "1"),
        (ranks_text, [8, 8], "rank 8"), (ranks_text, iter([21, 2]), "ranks 2 to 21"),
        (duration_text, 42.4, "42 s"), (duration_text, 431.2, "7 min 11 s"), (duration_text, 7500, "2 h 5 min"),
        (rough_duration_text, 3, "about 10 seconds"), (rough_duration_text, 100, "about 2 minutes"),
    ],
)  # fmt: skip
def test_values(write: Callable[[Any], str], value: Any, text: str) -> None:
    assert write(value) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 samples"), (1, "1 sample"), (1200, "1,200 samples")])
def test_a_noun_agrees_with_its_number(number: int, text: str) -> None:
    assert count_text(number, "sample") == text


def test_columns_are_aligned_and_empty_facts_left_out() -> None:
    assert table_text([["", "rank"], ["q_proj", "8"]]) == "        rank\nq_proj     8"
    assert facts_text({"a": "1", "empty": "", "longer": "2"}) == "a       1\nlonger  2"


def test_shares_are_in_percent_and_losses_are_not() -> None:
    text = metrics_text({"before": {"exact_match": 0.25, "loss": 0.5}, "after": {"loss": 0.12344}})
    assert [line.split() for line in text.splitlines()] == [
        ["before", "after"], ["exact", "match", "25.0", "%", "-"], ["loss", "0.5", "0.1234"],
    ]  # fmt: skip
