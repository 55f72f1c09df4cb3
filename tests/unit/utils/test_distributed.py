"""Loops that several processes go through in step."""

from __future__ import annotations

from typing import Any

import pytest

from tlora.utils.distributed import Processes


class OneOfTwo(Processes):
    """One of two processes; the other contributes these values to each gather."""

    def __init__(self, others: list[Any]) -> None:
        super().__init__(0, 2)
        object.__setattr__(self, "others", iter(others))

    def gather(self, value: Any) -> list[Any]:
        return [value, next(self.others)]


def test_one_process_goes_through_its_items():
    assert list(Processes().synchronized_items("ab")) == [("a", True), ("b", True)]


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ("ab", ["x", None, None], [("a", True), ("b", True)]),
        ("a", ["x", "y", None], [("a", True), ("y", False)]),
        ("", ["x", "y", None], [("x", False), ("y", False)]),
        ("", [None], []),
    ],
)
def test_who_has_nothing_left_takes_what_another_has(own, others, expected):
    assert list(OneOfTwo(others).synchronized_items(own)) == expected


def test_it_is_so_in_one_of_them():
    assert Processes().any(True)
    assert not Processes().any(False)
    assert OneOfTwo([True]).any(False)
    assert not OneOfTwo([False]).any(False)
