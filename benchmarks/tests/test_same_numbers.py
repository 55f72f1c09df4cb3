"""What differs between two versions is found, and so is a stage that cannot differ."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from benchmarks.same_numbers.__main__ import complaints, count_equal
from benchmarks.same_numbers.stages import digest, digests

BEFORE = {"training: losses": "a", "training: adapter": "b", "export: vllm": "c"}
RESEEDED = {"training: losses": "d", "training: adapter": "b", "export: vllm": "e"}


@pytest.mark.parametrize(
    ("after", "reseeded", "named"),
    [
        (BEFORE, RESEEDED, []),
        (BEFORE | {"training: losses": "x"}, RESEEDED, ["training: losses"]),
        (BEFORE | {"export: gguf": "x"}, RESEEDED, ["export: gguf"]),
        ({name: value for name, value in BEFORE.items() if "vllm" not in name}, RESEEDED, ["export: vllm"]),
        (BEFORE, RESEEDED | {"export: vllm": "c"}, ["export"]),
    ],
)
def test_what_differs_and_what_cannot_is_named(
    after: dict[str, str], reseeded: dict[str, str], named: list[str]
) -> None:
    found = complaints(BEFORE, after, reseeded)
    assert len(found) == len(named)
    assert all(name in complaint for name, complaint in zip(named, found, strict=True))


def test_digests_are_counted_by_stage() -> None:
    assert count_equal(BEFORE, RESEEDED) == {"training": (1, 2), "export": (0, 1)}


NEXT = torch.nextafter(torch.tensor([1.0]), torch.tensor([2.0]))
"""The float32 after 1."""


@pytest.mark.parametrize(
    ("value", "changed"),
    [
        (torch.ones(1), NEXT),
        (torch.ones(1), torch.ones(1, 1)),
        (torch.zeros(1), torch.zeros(1, dtype=torch.int32)),
        (torch.zeros(1), -torch.zeros(1)),
        (pd.DataFrame({"loss": [0.1, 0.2]}), pd.DataFrame({"loss": [0.1, 0.2 + 2**-54]})),
        ({"q_proj": 1.0}, {"q_proj": 1.0 + 2**-52}),
        (b"12", b"13"),
    ],
)
def test_the_last_bit_and_the_type_count(value: object, changed: object) -> None:
    assert digest(value) != digest(changed)


def test_the_name_of_a_column_does_not_count() -> None:
    assert digest(pd.DataFrame({"loss": [0.1]})) == digest(pd.DataFrame({"change": [0.1]}))


def test_tensors_have_a_digest_each_and_numbers_one_together() -> None:
    found = digests("export", {"adapter": {"a": torch.ones(1), "config": {"r": 8}}, "ranks": {"a": 1, "b": 2}})
    assert list(found) == ["export: adapter of a", "export: adapter of config", "export: ranks"]
