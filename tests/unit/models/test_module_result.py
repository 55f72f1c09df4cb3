"""A result of modules: what each is, and how it is saved."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers.results import same
from tests.helpers.targets import named, target
from tlora.models.module_result import ModuleResult
from tlora.results import Meta

# Neither in alphabetical order nor in the order of their names' lengths.
TARGETS = named(
    target("layers.2.q_proj", 2, "q_proj", (4, 6)),
    target("layers.10.down_proj", 10, "down_proj", (6, 8)),
    target("layers.1.q_proj", 1, "q_proj", (4, 6)),
)


@dataclass(frozen=True, repr=False, eq=False)
class Example(ModuleResult):
    whole: torch.Tensor
    each: dict[str, torch.Tensor]
    counts: dict[str, int]
    kind: str
    meta: Meta


def example(**changes) -> Example:
    parts = {
        "targets": TARGETS,
        "whole": torch.arange(3),
        "each": {name: torch.full((2,), float(i)) for i, name in enumerate(TARGETS)},
        "counts": {name: i for i, name in enumerate(TARGETS)},
        "kind": "made by hand",
        "meta": Meta(),
    }
    return Example(**parts | changes)


def test_what_a_module_is_by_its_name():
    result = example()
    assert result.names == ["layers.2.q_proj", "layers.10.down_proj", "layers.1.q_proj"]
    assert list(result.shapes.items()) == list(zip(result.names, [(4, 6), (6, 8), (4, 6)], strict=True))
    assert list(result.layers.items()) == list(zip(result.names, [2, 10, 1], strict=True))
    assert list(result.projections.items()) == list(zip(result.names, ["q_proj", "down_proj", "q_proj"], strict=True))


@pytest.mark.parametrize("changes", [{}, {"counts": {}}, {"each": {}}])
def test_comes_back_equal_in_model_order(tmp_path: Path, changes):
    made = example(**changes)
    loaded = Example.load(made.save(tmp_path / "found"))
    assert same(loaded, made)
    for part in ("targets", "each", "counts"):
        assert list(getattr(loaded, part)) == list(getattr(made, part))
