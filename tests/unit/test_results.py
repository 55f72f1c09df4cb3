"""What holds for every result class, run over one real example of each."""

import copy
import dataclasses
import gc
import importlib
import json
import os
import pkgutil
import random
import threading
import types
import zlib
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
from safetensors import safe_open
from safetensors.torch import save_file

import tlora
from tests.helpers import results
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.disks import kills
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.results import EXAMPLES, META, adapted, same, sensitivity
from tlora.allocation.allocate import allocate
from tlora.calibration.sensitivity import Sensitivity
from tlora.results import FORMAT_VERSION, Meta, Result
from tlora.training.callbacks import ModuleRecorder


@pytest.fixture(params=EXAMPLES)
def result(request: pytest.FixtureRequest) -> Result:
    return EXAMPLES[request.param]()


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else path.rglob("*")
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


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
    loaded = type(result).load(result.save(tmp_path / "once"))
    assert same(loaded, result)
    assert content(loaded.save(tmp_path / "again")) == content(result.save(tmp_path / "once"))


def test_table_has_the_documented_columns_and_is_shown_in_short(result):
    frame, text, page = result.to_frame(), repr(result), result._repr_html_()
    assert len(frame) > 0
    assert list(frame.columns) == list(result.columns)
    assert isinstance(frame.index, pd.RangeIndex)
    assert text.startswith(f"{type(result).__name__}(")
    assert len(text.splitlines()) == 1
    assert page.count("<tr") == min(len(frame), 10) + 1
    assert ("more rows" in page) == (len(frame) > 10)
    assert result.meta.versions["torch"] == version("torch")
    assert (result == copy.deepcopy(result)) in (
        True,
        False,
    )  # field by field, tensors would raise
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.meta = None


def test_table_is_the_callers_own(result):
    """Whatever is done to a table, the result keeps its own."""
    before = result.to_frame().copy()
    result = copy.deepcopy(result)
    frame = result.to_frame()
    frame.loc[len(frame)] = frame.iloc[0]
    frame[frame.columns[-1]] = 0
    del frame[frame.columns[0]]
    assert result.to_frame().equals(before)


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


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return sensitivity().save(tmp_path / "saved")


def test_the_suffix_may_be_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for samples, name in ((2, "a b/c.d"), (3, "a b/c.d.safetensors"), (4, Path("тест") / ".hidden")):
        file = sensitivity(samples).save(name)
        assert str(file) == f"{str(name).removesuffix('.safetensors')}.safetensors"
        assert len(Sensitivity.load(name).per_sample) == len(Sensitivity.load(file).per_sample) == samples
    assert sorted(content(tmp_path)) == ["a b/c.d.safetensors", "тест/.hidden.safetensors"]


def test_a_file_is_readable_without_tlora(saved):
    """The format that the documentation promises, read with safetensors and JSON alone."""
    with safe_open(saved, "pt") as file:
        head = json.loads(file.metadata()["tlora"])
        assert file.get_tensor("per_sample").equal(sensitivity().per_sample)
    assert (head["format"], head["result"]) == (FORMAT_VERSION, "Sensitivity")
    assert head["values"]["per_sample"] == "per_sample"
    assert head["values"]["meta"] == dataclasses.asdict(META)


def test_a_tensor_of_several_fields_and_half_of_a_symmetric_one_are_saved_once(tmp_path):
    calibration = tlora.calibrate(
        tiny_model("llama"), [tiny_batch("llama")], covariance="sketch", sketch_size=4, progress=False
    )
    loaded = type(calibration).load(calibration.save(tmp_path / "sketched"))
    assert len({id(covariance.omega) for covariance in loaded.covariances.values()}) == len(loaded.sketching)
    whole = results.calibration()
    with safe_open(whole.save(tmp_path / "dense"), "pt") as file:
        name = next(iter(whole.covariances))
        d = len(whole.covariances[name].total)
        assert file.get_tensor(f"covariances.{name}.total").shape == (d * (d + 1) // 2,)


def test_new_files_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        file = sensitivity().save(tmp_path / "new" / "saved")
    finally:
        os.umask(old)
    assert file.parent.stat().st_mode & 0o777 == 0o750
    assert file.stat().st_mode & 0o777 == 0o640


def replace_head(file: Path, **changes: Any) -> None:
    with safe_open(file, "pt") as opened:
        head, tensors = json.loads(opened.metadata()["tlora"]), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, {"tlora": json.dumps(head | {"crc32": "00000000"} | changes)})
    blob = file.read_bytes()
    file.write_bytes(blob.replace(b"00000000", f"{zlib.crc32(blob):08x}".encode(), 1))


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place(saved):
    with safe_open(saved, "pt") as opened:
        checksum = json.loads(opened.metadata()["tlora"])["crc32"]
    blob = saved.read_bytes().replace(checksum.encode(), b"00000000", 1)
    assert checksum == f"{zlib.crc32(blob):08x}"


@pytest.mark.parametrize("name", ["Attribution", "Sensitivity"])
def test_every_flipped_bit_is_refused(name, tmp_path):
    """In the size of the header, the header, its JSON, and the tensors."""
    result = EXAMPLES[name]()
    file = result.save(tmp_path / "saved")
    whole = file.read_bytes()
    header, bits = 8 + int.from_bytes(whole[:8], "little"), random.Random(0)
    places = [*range(8 * 150), *(bits.randrange(8 * header) for _ in range(500))]
    places += [bits.randrange(8 * header, 8 * len(whole)) for _ in range(500)]
    for place in places:
        blob = bytearray(whole)
        blob[place // 8] ^= 1 << place % 8
        file.write_bytes(blob)
        with pytest.raises(ValueError, match=r"saved\.safetensors"):
            type(result).load(file)
    file.write_bytes(whole)
    assert same(type(result).load(file), result)


def test_format_7_has_no_checksum_and_says_so(caplog):
    tlora.Allocation.load(results.STORED / "format_7" / "Allocation")
    assert "format 7" in caplog.text
    caplog.clear()
    tlora.Allocation.load(results.STORED / f"format_{FORMAT_VERSION}" / "Allocation")
    assert not caplog.text


@pytest.mark.parametrize("name", ["Allocation", "DirectionActivations", "Interference", "Spectrum", "Subspaces"])
def test_format_7_with_a_flipped_bit_is_refused_or_can_be_shown(name, tmp_path):
    whole, file = (results.STORED / "format_7" / f"{name}.safetensors").read_bytes(), tmp_path / "flipped.safetensors"
    header, bits = 8 + int.from_bytes(whole[:8], "little"), random.Random(0)
    for place in [bits.randrange(8 * header) for _ in range(200)]:
        blob = bytearray(whole)
        blob[place // 8] ^= 1 << place % 8
        file.write_bytes(blob)
        try:
            result = tlora.load_result(file)
        except ValueError:
            continue
        assert set(result.columns) <= set(result.to_frame().columns)
        assert repr(result)


def cut(file: Path, kept: float) -> None:
    blob = file.read_bytes()
    file.write_bytes(blob[: int(kept * len(blob))])


@pytest.mark.parametrize(
    ("damage", "words"),
    {
        "empty": (lambda file: cut(file, 0.0), "copy it"),
        "half": (lambda file: cut(file, 0.5), "copy it"),
        "last bytes": (lambda file: cut(file, 0.99), "copy it"),
        "blown up": (lambda file: os.truncate(file, 2**40), "copy it"),
        "weights": (lambda file: save_file({"a": torch.ones(1)}, file), "is not a tlora result"),
        "newer": (lambda file: replace_head(file, format=FORMAT_VERSION + 1), f"format {FORMAT_VERSION + 1}"),
        "no values": (lambda file: replace_head(file, values={}), "copy it"),
        "other values": (lambda file: replace_head(file, values={"per_sample": "nix"}), "copy it"),
        "another kind": (lambda file: replace_head(file, result="Allocation"), r"holds Allocation, not Sensitivity"),
    }.values(),
)
def test_a_damaged_or_foreign_file_is_refused_with_a_way_out(saved, damage, words):
    damage(saved)
    with pytest.raises(ValueError, match=f"{saved.name}.*{words}"):
        Sensitivity.load(saved)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sensitivity().save(None),
        lambda: Sensitivity.load(None),
        lambda: results.run().save(None),
        lambda: type(results.run()).load(None),
        lambda: tlora.load_result(None),
    ],
)
def test_a_path_that_is_none_is_named(call):
    with pytest.raises(TypeError, match="path is None: pass a string or a path"):
        call()


def test_nothing_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no result at .*nothing\.safetensors"):
        Sensitivity.load(tmp_path / "nothing")


def test_what_is_not_a_result_of_this_kind_is_not_replaced(saved, tmp_path):
    (tmp_path / "thesis.safetensors").write_text("mine")
    save_file({"a": torch.ones(1)}, tmp_path / "weights.safetensors")
    allocate(sensitivity(), 4).save(tmp_path / "allocation")
    before = content(tmp_path)
    for name in ("thesis", "weights", "allocation"):
        with pytest.raises(FileExistsError, match=f"{name}.safetensors"):
            sensitivity().save(tmp_path / name)
    assert content(tmp_path) == before
    sensitivity(samples=2).save(saved)
    assert len(Sensitivity.load(saved).per_sample) == 2


@pytest.mark.posix
def test_a_save_that_is_killed_leaves_the_earlier_result_or_the_new_one(tmp_path):
    folder, new, seen = tmp_path / "results", sensitivity(samples=2), set()
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    for _ in kills(lambda: new.save(folder / "saved"), lambda: sensitivity(samples=3).save(folder / "saved")):
        there = Sensitivity.load(folder / "saved")
        assert same(there, sensitivity(len(there.per_sample)))
        seen.add(len(there.per_sample))
        sensitivity(samples=5).save(folder / "saved")
        assert sorted(os.listdir(folder)) == ["saved.safetensors", "thesis.tex"]
    assert seen == {2, 3}


def test_a_reader_gets_a_whole_result_while_others_write(tmp_path):
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
        read = [Sensitivity.load(tmp_path / "saved") for _ in range(60)]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert all(same(one, sensitivity(len(one.per_sample))) for one in read)
    assert os.listdir(tmp_path) == ["saved.safetensors"]


@pytest.mark.parametrize("value", [torch.float32, Path("a"), {1, 2}])
def test_recipe_refuses_what_json_cannot_hold(value):
    with pytest.raises(TypeError, match="recipe"):
        Meta(recipe={"x": value})


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
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
class Part:
    tensor: torch.Tensor
    place: tuple[int, str]


@dataclasses.dataclass(frozen=True)
class SpecialPart(Part):
    more: float | None = None


@dataclasses.dataclass(frozen=True)
class Anything(Result):
    tensors: dict[str, torch.Tensor]
    parts: list[Part]
    table: pd.DataFrame
    plain: dict[str, Any]
    meta: Meta


def equal(one, other):
    """Numbers bit by bit: NaN is NaN, and -0.0 is not 0.0."""
    return json.dumps(one) == json.dumps(other)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.dictionaries(texts, tensors(), max_size=4),
    plain=st.dictionaries(texts, values, max_size=4),
    recipe=st.dictionaries(texts, values, max_size=3),
    rows=st.lists(st.tuples(st.integers(-9, 9), st.floats(), texts, st.booleans()), max_size=4),
    seed=st.none() | st.integers(0, 2**63),
)
def test_whatever_is_put_in_comes_out(tmp_path, parts, plain, recipe, rows, seed):
    table = pd.DataFrame(rows, columns=list("abcd")).astype({"a": "int64", "b": "float64", "c": "str", "d": "bool"})
    pieces = [
        (SpecialPart if place % 2 else Part)(one, (place, name)) for place, (name, one) in enumerate(parts.items())
    ]
    whole = Anything(parts, pieces, table[::-1], plain, Meta("m\n\"'é", "任务", recipe, seed, 3, {"torch": "2"}))
    loaded = Anything.load(whole.save(tmp_path / "saved"))
    assert loaded.tensors.keys() == parts.keys()
    for name, tensor in parts.items():
        assert (loaded.tensors[name].dtype, loaded.tensors[name].shape) == (tensor.dtype, tensor.shape)
        mine, theirs = (t.reshape(-1).view(torch.uint8) for t in (loaded.tensors[name], tensor))
        assert mine.equal(theirs)
    assert [type(one) for one in loaded.parts] == [type(one) for one in pieces]
    assert [one.place for one in loaded.parts] == [one.place for one in pieces]
    pd.testing.assert_frame_equal(loaded.table, whole.table)
    assert equal(loaded.plain, plain)
    assert equal(dataclasses.asdict(loaded.meta), dataclasses.asdict(whole.meta))


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
    allocation = tlora.allocate(calibration.sensitivity, np.int64(2))
    for result in (
        allocation.edit({allocation.names[0]: one}),
        tlora.task_subspaces(model, calibration, max_rank=np.int64(4), seed=one, progress=False),
    ):
        file = result.save(tmp_path / type(result).__name__)
        assert type(result).load(file).meta == result.meta
    tlora.ranking_stability(calibration.sensitivity, [one], seed=one)
    tlora.allocation_stability(calibration.sensitivity, allocation, [one], resamples=np.int64(20), seed=one)
    numbers = {"batch_size": np.int64(4), "max_steps": np.int64(3), "warmup_steps": np.float32(0.5)}
    numbers |= {"learning_rate": np.float32(1e-3), "weight_decay": torch.tensor(0.5), "evaluation_limit": np.int64(2)}
    run = tlora.train(
        adapted_model(), token_rows(8), seed=np.int64(3), output_dir=tmp_path / "steps", **QUIET | numbers
    )
    assert (run.steps, run.meta.seed) == (3, 3)
    assert {name: run.meta.recipe[name] for name in numbers} == {name: value.item() for name, value in numbers.items()}
    assert ModuleRecorder(every=np.int64(5)).every == 5


WRONG: dict[str, Any] = {
    "is a Calibration: pass a Sensitivity, such as calibration.sensitivity": [
        lambda r: tlora.ranking_stability(r.calibration()),
        lambda r: tlora.allocation_stability(r.calibration(), r.allocation()),
        lambda r: tlora.allocate(r.calibration(), 4),
    ],
    "is a Sensitivity: pass an Allocation, such as tlora.allocate": [
        lambda r: r.allocation().compare(r.sensitivity()),
        lambda r: tlora.allocation_stability(r.sensitivity(), r.sensitivity()),
    ],
    "is a Calibration: pass a Subspaces, such as tlora.task_subspaces": [
        lambda r: tlora.align(r.subspaces(), r.calibration(), 4),
    ],
    r"model is a str \('smollm2'\): pass a model, such as tlora.load_model": [
        lambda r: tlora.task_subspaces("smollm2", r.calibration()),
        lambda r: tlora.attach("smollm2", r.subspaces(), r.allocation()),
        lambda r: tlora.attach("smollm2", r.subspaces(), r.allocation(), replace=True),
    ],
    "model is None": [lambda r: tlora.detach(None)],
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_passed_in_the_wrong_place_is_named(message: str) -> None:
    for call in WRONG[message]:
        with pytest.raises(TypeError, match=message):
            call(results)


@pytest.mark.parametrize("path", sorted(results.STORED.glob("format_*/*")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_result_that_was_stored_stays_readable(path: Path):
    cls = {cls.__name__: cls for cls in subclasses(Result)}[path.stem]
    again = cls.load(path)
    table = again.to_frame()
    assert list(table.columns) == [*cls.columns]
    assert len(table)
    assert again.meta.versions["tlora"]


def test_every_result_is_stored_in_todays_format():
    stored = {path.stem for path in results.STORED.glob(f"format_{FORMAT_VERSION}/*")}
    assert stored == EXAMPLES.keys() - results.LARGE
