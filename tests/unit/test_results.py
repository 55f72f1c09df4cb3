"""What holds for every result class, run over one real example of each."""

import copy
import dataclasses
import errno
import gc
import hashlib
import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import threading
import types
from collections.abc import Iterator
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tlora
from tests.helpers import results
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.disks import kills
from tests.helpers.fuzzed import sign
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.results import EXAMPLES, META, adapted, same, sensitivity
from tlora.allocation.allocation import allocate
from tlora.calibration.sensitivity import Sensitivity
from tlora.results import FORMAT_VERSION, RESULT, Meta, Result, read_head
from tlora.training.callbacks import ModuleRecorder


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
    ours = {cls.__name__ for cls in subclasses(Result) if cls.__module__.startswith("tlora.")} - {"ModuleResult"}
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


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return sensitivity().save(tmp_path / "saved")


def listing(folder: Path) -> list[str]:
    """Everything in a folder, hidden files included."""
    return sorted(os.listdir(folder))


def tensors_of(folder: Path) -> Path:
    """The one file of tensors in the folder of a result."""
    (file,) = folder.glob("*.safetensors")
    return file


def test_round_trip(tmp_path):
    made = sensitivity()
    assert made.save(tmp_path / "saved") == tmp_path / "saved"
    assert listing(tmp_path / "saved") == [RESULT, tensors_of(tmp_path / "saved").name]
    assert same(Sensitivity.load(tmp_path / "saved"), made)


def test_round_trip_keeps_special_floats_and_non_contiguous_tensors(tmp_path):
    made = sensitivity()
    scores = torch.tensor([[float("nan"), float("inf"), -0.0], [5e-45, 1.1, 2.0]]).T.contiguous().T
    odd = Sensitivity(made.targets, scores, META)
    odd.save(tmp_path / "saved")
    loaded = Sensitivity.load(tmp_path / "saved").per_sample
    assert loaded.view(torch.int32).equal(scores.contiguous().view(torch.int32))  # NaN and -0.0 bit by bit


def test_files_are_readable_without_tlora(saved):
    """The format that the documentation promises, read with nothing of ours: JSON and safetensors."""
    head = json.loads((saved / RESULT).read_text())
    blob = (saved / head["tensors"].pop("file")).read_bytes()
    assert head["format"] == FORMAT_VERSION
    assert head["result"] == "Sensitivity"
    assert head["meta"]["model"] == META.model
    assert head["meta"]["seed"] == 3
    assert head["meta"]["samples"] == 4
    assert head["meta"]["versions"]["torch"] == version("torch")
    assert head["tensors"] == {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    size = int.from_bytes(blob[:8], "little")  # safetensors: length of the header, header, data
    assert json.loads(blob[8 : 8 + size])["per_sample"]["shape"] == [4, 3]


def test_new_files_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        folder = sensitivity().save(tmp_path / "saved")
    finally:
        os.umask(old)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert (folder / RESULT).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("file", [RESULT, "*.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file_is_refused(saved, file, kept):
    (path,) = saved.glob(file)
    blob = path.read_bytes()
    path.write_bytes(blob[: int(kept * len(blob))])
    with pytest.raises(ValueError, match=f"{path.name}.* truncated"):
        Sensitivity.load(saved)


@pytest.mark.parametrize("file", [RESULT, "*.safetensors"])
def test_missing_file_is_named(saved, file):
    (path,) = saved.glob(file)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        Sensitivity.load(saved)


def test_a_file_that_was_blown_up_is_not_read(saved):
    for file in saved.iterdir():
        whole = file.read_bytes()
        os.truncate(file, 2**40)  # sparse: takes no space
        with pytest.raises(ValueError, match=r"1,099,511,627,776 bytes|1099511627776 bytes of"):
            Sensitivity.load(saved)
        file.write_bytes(whole)


@pytest.mark.parametrize("name", ["../tensors.safetensors", "/etc/passwd", "thesis.tex", "", 3, None])
def test_a_result_that_names_a_file_elsewhere_reads_and_removes_nothing(saved, name):
    (saved.parent / "tensors.safetensors").write_text("mine")
    (saved / "thesis.tex").write_text("mine")
    tensors = tensors_of(saved)
    head = json.loads((saved / RESULT).read_text())
    head["tensors"]["file"] = name
    (saved / RESULT).write_text(json.dumps(head))
    with pytest.raises(ValueError, match="was changed since it was written"):
        Sensitivity.load(saved)
    sign(saved)
    head = json.loads((saved / RESULT).read_text())
    head["tensors"]["file"] = name
    (saved / RESULT).write_text(json.dumps(head | {"sha256": tlora.results._digest(head)}))
    with pytest.raises(ValueError, match=r"is damaged|was changed"):
        Sensitivity.load(saved)
    sensitivity(samples=2).save(saved)
    assert len(Sensitivity.load(saved).per_sample) == 2
    assert (saved / "thesis.tex").exists()
    assert (saved.parent / "tensors.safetensors").exists()
    assert tensors.exists()


@pytest.mark.parametrize("where", [0, 7, 8, 60, *range(-48, 0, 4), -1])
def test_flipped_byte_in_the_tensors_is_refused(saved, where):
    blob = bytearray(tensors_of(saved).read_bytes())
    blob[where] ^= 1
    tensors_of(saved).write_bytes(blob)
    with pytest.raises(ValueError, match="changed"):
        Sensitivity.load(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *(('"samples": 4', f'"samples": {n}') for n in (5, 6, 7, 8, 9)),
        ("down_proj", "dowm_proj"),
        ('"layer"', '"laper"'),
        ("12", "13"),
    ],
)
def test_changed_value_in_the_json_is_refused(saved, old, new):
    """A changed digit is still valid JSON: only the digest tells."""
    text = (saved / RESULT).read_text()
    assert old in text
    (saved / RESULT).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match="changed since it was written"):
        Sensitivity.load(saved)


@pytest.mark.parametrize(
    "text",
    ["[]", "3", '"text"', "{}", '{"accuracy": 0.5}', '{"format": 5, "result": "Sensitivity"}', "\xff\xfe"],
)
def test_foreign_json_is_refused(saved, text):
    (saved / RESULT).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"result\.json (holds no JSON object|(is|was) (not|changed))"):
        Sensitivity.load(saved)


def test_json_of_ours_that_lacks_the_rest_is_told_from_foreign_json(saved):
    (saved / RESULT).write_text('{"format": 5, "result": "Sensitivity"}')
    with pytest.raises(ValueError, match="was changed since it was written"):
        Sensitivity.load(saved)
    (saved / RESULT).write_text('{"result": "Sensitivity"}')
    with pytest.raises(ValueError, match="names no format and no kind of result"):
        Sensitivity.load(saved)


def test_another_format_is_refused_by_its_number(saved):
    """Another format may have other keys: the number is what the message must be about."""
    for number in (FORMAT_VERSION + 1, 3, 0, True, "4", 1.0, None, [4]):
        (saved / RESULT).write_text(json.dumps({"format": number, "result": "Sensitivity", "parts": []}))
        with pytest.raises(ValueError, match=rf"format {re.escape(repr(number))}, .* reads .*: use the version"):
            Sensitivity.load(saved)


def test_other_kind_of_result_is_refused_and_named(saved):
    class Other(Sensitivity):
        pass

    class Zebra(Sensitivity):
        pass

    for kind in (Other, Zebra):
        with pytest.raises(ValueError, match=rf"holds Sensitivity, not {kind.__name__}: use Sensitivity\.load\("):
            kind.load(saved)


@pytest.mark.parametrize("values", [{}, [], {"targets": 3}, {"targets": [{"name": "a"}]}])
def test_values_that_do_not_make_a_result_are_refused(saved, monkeypatch, values):
    """Well-formed and undamaged, yet nothing a Sensitivity can be made of."""
    monkeypatch.setattr(Sensitivity, "_pack", lambda self: ({"per_sample": self.per_sample}, values))
    sensitivity().save(saved)
    with pytest.raises(ValueError, match="is damaged"):
        Sensitivity.load(saved)


@pytest.mark.parametrize("make", [lambda path: path, lambda path: path.mkdir(), lambda path: path.touch()])
def test_nothing_to_load(tmp_path, make):
    path = tmp_path / "nothing"
    make(path)
    with pytest.raises(FileNotFoundError, match=r"no result in .*nothing: expected a folder with result\.json"):
        Sensitivity.load(path)


def test_recipe_keeps_what_json_keeps():
    recipe = {"ranks": (1, 2), "nested": {"dtype": "float32"}}
    meta = Meta(recipe=recipe)
    assert meta.recipe == {"ranks": [1, 2], "nested": {"dtype": "float32"}}
    recipe["nested"]["dtype"] = "bfloat16"
    assert meta.recipe["nested"]["dtype"] == "float32"


@pytest.mark.parametrize("value", [torch.float32, Path("a"), {1, 2}])
def test_recipe_refuses_what_json_cannot_hold(value):
    with pytest.raises(TypeError, match=r"JSON values only, got .*'x'"):
        Meta(recipe={"x": value})


@pytest.mark.parametrize("on_call", [1, 2], ids=["tensors", "json"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("earlier", [True, False], ids=["over-a-result", "new"])
def test_save_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, error, on_call, earlier):
    if earlier:
        sensitivity(samples=2).save(tmp_path / "saved")
    before, write, calls = content(tmp_path), Path.write_bytes, []

    def write_some(path: Path, blob: bytes) -> None:
        calls.append(path)
        if len(calls) < on_call:
            return write(path, blob)
        write(path, blob[: len(blob) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", write_some)
    with pytest.raises(type(error)):
        sensitivity(samples=4).save(tmp_path / "saved")
    monkeypatch.undo()
    assert content(tmp_path) == before
    assert listing(tmp_path) == (["saved"] if earlier else [])


def test_a_save_that_is_killed_leaves_the_earlier_result_or_the_new_one(tmp_path):
    folder, new, seen = tmp_path / "saved", sensitivity(samples=2), set()

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        sensitivity(samples=3).save(folder)
        (folder / "thesis.tex").write_text("mine")

    begin()
    old = Sensitivity.load(folder)
    for _ in kills(lambda: new.save(folder), begin):
        there = Sensitivity.load(folder)
        assert same(there, old) or same(there, new)
        seen.add(len(there.per_sample))
        sensitivity(samples=5).save(folder)
        assert len(Sensitivity.load(folder).per_sample) == 5
        assert (folder / "thesis.tex").read_text() == "mine"
        assert not list(tmp_path.rglob(".*"))
    assert len(seen) == 2


def test_a_reader_finds_a_whole_result_while_others_write(tmp_path):
    sensitivity(samples=2).save(tmp_path / "saved")
    stop = threading.Event()

    def write(start: int) -> None:
        for samples in count(start, 2):  # each time another result
            if stop.is_set():
                return
            sensitivity(samples).save(tmp_path / "saved")

    writers = [threading.Thread(target=write, args=(n,)) for n in (3, 4)]
    for writer in writers:
        writer.start()
    try:
        found = [Sensitivity.load(tmp_path / "saved") for _ in range(60)]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert all(same(result, sensitivity(len(result.per_sample))) for result in found)
    assert listing(tmp_path) == ["saved"]


@pytest.mark.parametrize("name", ["a b/c d", "тест/模型 ∂", ".hidden", "x" * 255, "./a//b", "saved/", "[1]*?"])
@pytest.mark.parametrize("as_type", [str, Path])
def test_relative_paths_of_all_kinds(tmp_path, monkeypatch, name, as_type):
    monkeypatch.chdir(tmp_path)
    for samples in (2, 4):  # the second replaces the first
        sensitivity(samples).save(as_type(name))
        assert len(Sensitivity.load(as_type(name)).per_sample) == samples
    assert len(listing((tmp_path / name).resolve())) == 2


def test_the_current_folder_is_one_like_others(saved, monkeypatch):
    monkeypatch.chdir(saved)
    sensitivity(samples=2).save(".")
    assert len(Sensitivity.load(saved).per_sample) == 2
    assert Path.cwd().samefile(saved)


def test_unwritable_place_is_an_os_error(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match="Permission denied"):
        sensitivity().save(tmp_path / "saved")
    assert listing(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_really_full_disk(tmp_path):
    """A file system of 64 KiB, a result that fits and one that does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        old = sensitivity(samples=2)
        for folder in (disk, disk / "saved"):
            old.save(folder)
            before = listing(disk)
            with pytest.raises(OSError, match="No space left") as caught:
                sensitivity(samples=20_000).save(folder)
            assert caught.value.errno == errno.ENOSPC
            assert listing(disk) == before
            assert same(Sensitivity.load(folder), old)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_replaces_an_earlier_result_of_any_kind_and_an_empty_folder(tmp_path):
    target = tmp_path / "saved"
    target.mkdir()
    sensitivity(samples=2).save(target)
    tensors_of(target).write_bytes(b"damaged")
    for samples in (2, 4):
        sensitivity(samples).save(target)
        assert len(Sensitivity.load(target).per_sample) == samples
        assert listing(target) == [RESULT, tensors_of(target).name]


def test_file_in_the_place_is_refused(tmp_path):
    (tmp_path / "saved").write_text("mine")
    with pytest.raises(FileExistsError, match=r"saved is a file, and no folder: choose another path"):
        sensitivity().save(tmp_path / "saved")
    with pytest.raises(OSError, match="saved"):
        sensitivity().save(tmp_path / "saved" / "below")
    assert (tmp_path / "saved").read_text() == "mine"


@pytest.mark.parametrize("text", ['{"accuracy": 0.9}', "accuracy 0.9"])
def test_somebody_elses_result_is_refused_and_left_alone(tmp_path, text):
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(FileExistsError, match=r"is not (a tlora result|valid JSON).*; choose another folder"):
        sensitivity().save(tmp_path)
    assert content(tmp_path) == {RESULT: text.encode()}


def test_what_else_is_in_the_folder_stays(saved):
    mine = {"thesis.tex": b"mine", "tensors.safetensors": b"weights", "tensors-0123456789abcdef.safetensors": b"more"}
    for name, blob in mine.items():
        (saved / name).write_bytes(blob)
    sensitivity(samples=2).save(saved / "half")
    sensitivity(samples=3).save(saved)
    assert len(Sensitivity.load(saved / "half").per_sample) == 2
    assert len(Sensitivity.load(saved).per_sample) == 3
    assert content(saved).items() > mine.items()
    assert len(listing(saved)) == len(mine) + 3


def test_a_result_of_another_kind_is_not_replaced(saved, tmp_path):
    before = content(saved)
    allocation = allocate(sensitivity(), 4)
    with pytest.raises(FileExistsError, match="holds Allocation, which would be lost to Sensitivity"):
        sensitivity().save(allocation.save(tmp_path / "allocation"))
    with pytest.raises(FileExistsError, match="holds Sensitivity, which would be lost to Allocation: choose another"):
        allocation.save(saved)
    assert content(saved) == before
    sensitivity(samples=2).save(saved)
    assert len(Sensitivity.load(saved).per_sample) == 2


def test_read_head_says_what_a_folder_holds(saved):
    head = read_head(saved)
    assert head["result"] == "Sensitivity"
    assert Meta(**head["meta"]) == META


@pytest.mark.parametrize(("rows", "shown", "more"), [(9, 9, ""), (10, 10, ""), (11, 10, "1 more"), (25, 10, "15 more")])
def test_the_short_table_says_how_many_rows_it_leaves_out(rows, shown, more):
    class Table(Result):
        def to_frame(self):
            return pd.DataFrame({"a": [0.123456789] * rows})

        def _summary(self):
            return "<&>"

    html = Table()._repr_html_()
    assert html.count("<tr") == shown + 1
    assert html.count("<td") == shown
    assert html.count("<th>") == 1  # one column, no index
    assert html.count("0.1235<") == shown
    assert "Table(&lt;&amp;&gt;)" in html
    assert ("more rows" in html) == bool(more)
    assert f"<p>{more} rows" in html if more else "<p></p>" not in html


def test_meta_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        META.seed = 4


def test_subclass_that_forgets_its_part_says_so():
    class Bare(Result):
        pass

    with pytest.raises(NotImplementedError):
        Bare().to_frame()


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
)


@st.composite
def tensors(draw):
    shape, dtype = draw(st.lists(st.integers(0, 4), max_size=3)), draw(dtypes)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    return noise.to(dtype).T if draw(st.booleans()) and len(shape) == 2 else noise.to(dtype)


@dataclasses.dataclass(frozen=True)
class Anything(Result):
    tensors: dict
    values: dict
    meta: Meta

    def _pack(self):
        return self.tensors, self.values

    @classmethod
    def _unpack(cls, tensors, values, meta):
        return cls(tensors, values, meta)


def equal(one, other):
    """Numbers bit by bit: NaN is NaN, and -0.0 is not 0.0."""
    return json.dumps(one) == json.dumps(other)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.dictionaries(names.filter(lambda name: name != "__metadata__"), tensors(), max_size=4),
    plain=st.dictionaries(names, values, max_size=4),
    recipe=st.dictionaries(names, values, max_size=3),
    seed=st.none() | st.integers(0, 2**63),
)
def test_whatever_is_put_in_comes_out(tmp_path, parts, plain, recipe, seed):
    made = Anything(parts, plain, Meta("m\n\"'é", "任务", recipe, seed, 3, {"torch": "2"}))
    made.save(tmp_path / "saved")
    found = Anything.load(tmp_path / "saved")
    assert found.tensors.keys() == parts.keys()
    for name, tensor in parts.items():
        assert (found.tensors[name].dtype, found.tensors[name].shape) == (tensor.dtype, tensor.shape)
        mine, theirs = (t.reshape(-1).view(torch.uint8) for t in (found.tensors[name], tensor))
        assert mine.equal(theirs)
    assert equal(found.values, plain)
    assert equal(found.meta.recipe, recipe)
    assert (found.meta.model, found.meta.task, found.meta.seed) == (made.meta.model, made.meta.task, seed)


QUIET: dict[str, Any] = {"max_steps": 3, "batch_size": 4, "progress": False}


@pytest.mark.parametrize("options", [{}, {"covariance": "sketch", "sketch_size": 16}])
def test_what_is_handed_out_is_no_part_of_the_result(options: dict[str, Any]) -> None:
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch(model, lengths=[9])], progress=False, **options)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=4, progress=False)
    name = calibration.names[0]
    covariance = calibration.covariance[name]
    ask = (covariance.eigenvalues, covariance.dense, lambda: subspaces.basis(name, 4))
    trace, before = covariance.trace, [answer().clone() for answer in ask]
    for handed in (*(answer() for answer in ask), covariance.eigenvalues(), subspaces.basis(name, 2)):
        handed.mul_(100)
    assert covariance.trace == trace
    assert all(torch.equal(answer(), values) for answer, values in zip(ask, before, strict=True))
    subspaces.targets.clear()
    assert len(calibration.to_frame()) == len(calibration.names)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    model = tiny_model("llama")
    batches, one = [tiny_batch(model, seed=seed) for seed in range(2)], np.int64(1)
    calibration = tlora.calibrate(model, batches, covariance="sketch", sketch_size=np.int64(8), progress=False)
    made = {
        "subspaces": tlora.task_subspaces(model, calibration, max_rank=np.int64(4), seed=one, progress=False),
        "ranking": tlora.ranking_stability(calibration.sensitivity, [one], seed=one),
        "allocation": tlora.allocation_stability(
            calibration.sensitivity,
            tlora.allocate(calibration.sensitivity, np.int64(2)),
            resamples=np.int64(20),
            seed=one,
        ),
    }
    for name, result in made.items():
        result.save(tmp_path / name)
        assert type(result).load(tmp_path / name).meta == result.meta
    plain = tlora.task_subspaces(model, calibration, max_rank=4, seed=1, progress=False)
    assert all(torch.equal(plain.bases[name], made["subspaces"].bases[name]) for name in plain.names)
    run = tlora.train(adapted_model(), token_rows(8), seed=np.int64(3), **QUIET | {"batch_size": np.int64(4)})
    assert (run.steps, run.meta.seed, run.meta.recipe["batch_size"]) == (3, 3, 4)
    assert ModuleRecorder(every=np.int64(5)).every == 5


WRONG: dict[str, Any] = {
    "expected a Sensitivity, got a Calibration: pass calibrate": [
        lambda r: tlora.ranking_stability(r.calibration()),
        lambda r: tlora.allocation_stability(r.calibration(), r.allocation()),
        lambda r: tlora.allocate(r.calibration(), 4),
    ],
    "expected an Allocation, got a Sensitivity: pass allocate": [
        lambda r: r.allocation().compare(r.sensitivity()),
        lambda r: tlora.allocation_stability(r.sensitivity(), r.sensitivity()),
    ],
    "expected a Subspaces, got a Calibration: pass task_subspaces": [
        lambda r: tlora.align_layers(r.calibration(), "q_proj", 4),
        lambda r: tlora.align(r.subspaces(), r.calibration(), 4),
    ],
    "expected a Calibration, got a Sensitivity": [
        lambda r: tlora.captured_energy(r.base(), r.sensitivity(), {"wc": r.subspaces()}, [2]),
    ],
    "model is a str: pass a model, such as tlora.load_model": [
        lambda r: tlora.task_subspaces("smollm2", r.calibration()),
        lambda r: tlora.attach("smollm2", r.subspaces(), r.allocation()),
        lambda r: tlora.attach("smollm2", r.subspaces(), r.allocation(), replace=True),
    ],
    "model is a NoneType": [lambda r: tlora.detach(None)],
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_passed_in_the_wrong_place_is_named(message: str) -> None:
    for call in WRONG[message]:
        with pytest.raises(TypeError, match=message):
            call(results)
