"""What holds for every result class, run over one real example of each."""

import copy
import dataclasses
import gc
import importlib
import pkgutil
import types
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import tlora
from tests.results import EXAMPLES, adapted, same
from tlora.results import Result


@pytest.fixture(params=EXAMPLES)
def result(request: pytest.FixtureRequest) -> Result:
    return EXAMPLES[request.param]()


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_every_result_class_has_an_example():
    for module in pkgutil.walk_packages(tlora.__path__, "tlora."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    ours = {cls.__name__ for cls in subclasses(Result) if cls.__module__.startswith("tlora.")}
    assert ours == EXAMPLES.keys()
    assert {type(build()).__name__ for build in EXAMPLES.values()} == ours


def test_comes_back_from_disk_equal_and_of_the_same_bytes(result, tmp_path):
    assert result.save(tmp_path / "once") == tmp_path / "once"
    loaded = type(result).load(tmp_path / "once")
    assert same(loaded, result)
    loaded.save(tmp_path / "again")
    assert content(tmp_path / "once") == content(tmp_path / "again")
    assert loaded.to_frame().equals(result.to_frame())
    assert repr(loaded) == repr(result)


def test_table_has_the_documented_columns(result):
    frame = result.to_frame()
    assert len(frame) > 0
    assert list(frame.columns) == list(result.columns)
    assert all(isinstance(meaning, str) and meaning for meaning in result.columns.values())


def test_table_is_the_callers_own(result):
    """Whatever is done to a table, the result keeps its own."""
    before = result.to_frame().copy()
    result = copy.deepcopy(result)
    frame = result.to_frame()
    frame.loc[len(frame)] = frame.iloc[0]
    frame[frame.columns[-1]] = 0
    del frame[frame.columns[0]]
    assert result.to_frame().equals(before)


def test_repr_is_one_short_line(result):
    text = repr(result)
    assert text.startswith(f"{type(result).__name__}(")
    assert len(text) < 400
    assert "\n" not in text


def test_html_is_a_short_table_and_draws_nothing(result):
    page = result._repr_html_()
    assert page.count("<table") == 1
    assert page.count("<tr") <= 11
    assert not any(tag in page for tag in ("<img", "<svg", "<script", "<canvas"))
    assert all(f"<th>{column}</th>" in page for column in result.columns)


def test_is_frozen(result):
    for field in dataclasses.fields(result):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, field.name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.something_new = 1


def test_can_be_compared(result):
    """Equality made field by field would ask a tensor for its truth, and raise."""
    assert (result == copy.deepcopy(result)) in (True, False)
    assert result != "something else"


# What leads from an object to the rest of the program rather than to its parts.
NOT_PARTS = (type, types.ModuleType, types.FunctionType)


def reachable(root: Any) -> list[Any]:
    """Every object that is kept alive by `root`."""
    seen, queue = {id(root): root}, [root]
    while queue:
        parts = gc.get_referents(queue.pop())
        fresh = [part for part in parts if id(part) not in seen and not isinstance(part, NOT_PARTS)]
        seen |= {id(part): part for part in fresh}
        queue += fresh
    return list(seen.values())


def test_search_for_models_finds_one():
    """The search itself: through a frozen dataclass, a dictionary, a list and a bound method's object."""

    @dataclasses.dataclass(frozen=True)
    class Holder:
        parts: dict[str, list[Any]]

    model = torch.nn.Linear(1, 1)
    assert model in reachable(Holder({"a": [1, [model]]}))
    assert model in reachable(Holder({"a": [model.state_dict]}))
    assert model not in reachable(Holder({"a": [torch.nn.Linear]}))


def test_holds_no_model_no_graph_and_no_more_memory_than_it_shows(result):
    parts = reachable(result)
    assert not [part for part in parts if isinstance(part, torch.nn.Module)]
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    for tensor in tensors:
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
    # A view of a larger tensor keeps the whole of it alive.
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert sum(storages.values()) <= 1.25 * sum(tensor.nbytes for tensor in tensors)


def test_does_not_change_with_the_model(result):
    """Neither weights nor adapter are shared: what is trained or merged later leaves a result alone."""
    before = copy.deepcopy(result)
    parameters = list(adapted().parameters())
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.fill_(float("nan"))
        assert same(result, before)
    finally:
        with torch.no_grad():
            for parameter, values in zip(parameters, saved, strict=True):
                parameter.copy_(values)


def test_says_where_it_comes_from(result):
    meta = result.meta
    assert meta.versions["torch"] == version("torch")
    assert meta.samples is not None
    assert isinstance(meta.recipe, dict)


def test_index_is_plain(result):
    """The keys are in columns, where CSV, HTML and joins find them."""
    assert isinstance(result.to_frame().index, pd.RangeIndex)
