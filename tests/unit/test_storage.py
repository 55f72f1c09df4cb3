"""Saving and loading results when all goes well, and when the disk, the user or the folder is in the way."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tlora.results
import tlora.utils.files
from tests.results import META, same, sensitivity
from tlora.allocation.allocation import allocate
from tlora.calibration.sensitivity import Sensitivity
from tlora.results import RESULT, TENSORS, Meta, Result, read_head
from tlora.utils.files import replace_folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return sensitivity().save(tmp_path / "saved")


def listing(folder: Path) -> list[str]:
    """Everything in a folder, hidden files included."""
    return sorted(os.listdir(folder))


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in listing(folder)}


def test_round_trip(tmp_path):
    made = sensitivity()
    assert made.save(tmp_path / "saved") == tmp_path / "saved"
    assert listing(tmp_path / "saved") == [RESULT, TENSORS]
    assert same(Sensitivity.load(tmp_path / "saved"), made)


def test_round_trip_keeps_special_floats_and_non_contiguous_tensors(tmp_path):
    made = sensitivity()
    scores = torch.tensor([[float("nan"), float("inf"), -0.0], [5e-45, 1.1, 2.0]]).T.contiguous().T
    odd = Sensitivity(scores, made.shapes, made.layers, made.projections, META)
    odd.save(tmp_path / "saved")
    loaded = Sensitivity.load(tmp_path / "saved").per_sample
    assert loaded.view(torch.int32).equal(scores.contiguous().view(torch.int32))  # NaN and -0.0 bit by bit


def test_files_are_readable_without_tlora(saved):
    """The format that the documentation promises, read with nothing of ours: JSON and safetensors."""
    head = json.loads((saved / RESULT).read_text())
    blob = (saved / TENSORS).read_bytes()
    assert head["format"] == 4
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


@pytest.mark.parametrize("name", [RESULT, TENSORS])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file_is_refused(saved, name, kept):
    blob = (saved / name).read_bytes()
    (saved / name).write_bytes(blob[: int(kept * len(blob))])
    with pytest.raises(ValueError, match=f"{name}.* truncated"):
        Sensitivity.load(saved)


@pytest.mark.parametrize("name", [RESULT, TENSORS])
def test_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Sensitivity.load(saved)


@pytest.mark.parametrize("where", [0, 7, 8, 60, *range(-48, 0, 4), -1])
def test_flipped_byte_in_the_tensors_is_refused(saved, where):
    blob = bytearray((saved / TENSORS).read_bytes())
    blob[where] ^= 1
    (saved / TENSORS).write_bytes(blob)
    with pytest.raises(ValueError, match="changed"):
        Sensitivity.load(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *(('"samples": 4', f'"samples": {n}') for n in (5, 6, 7, 8, 9)),
        ("down_proj", "dowm_proj"),
        ('"layers"', '"lapers"'),
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
    ["[]", "3", '"text"', "{}", '{"accuracy": 0.5}', '{"format": 1, "result": "Sensitivity"}', "\xff\xfe"],
)
def test_foreign_json_is_refused(saved, text):
    (saved / RESULT).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"result\.json (is|was) (not|changed)"):
        Sensitivity.load(saved)


def test_json_of_ours_that_lacks_the_rest_is_told_from_foreign_json(saved):
    (saved / RESULT).write_text('{"format": 1, "result": "Sensitivity"}')
    with pytest.raises(ValueError, match="was changed since it was written"):
        Sensitivity.load(saved)
    (saved / RESULT).write_text('{"result": "Sensitivity"}')
    with pytest.raises(ValueError, match="names no format and no kind of result"):
        Sensitivity.load(saved)


def test_newer_format_is_refused_by_its_number(saved):
    """A newer format may have other keys: the number is what the message must be about."""
    for number in (5, 0, True, "2", 1.0, None):
        (saved / RESULT).write_text(json.dumps({"format": number, "result": "Sensitivity", "parts": []}))
        with pytest.raises(ValueError, match=rf"format {number!r}, .* reads 4 and older: upgrade tlora"):
            Sensitivity.load(saved)


def test_other_kind_of_result_is_refused_and_named(saved):
    class Other(Sensitivity):
        pass

    class Zebra(Sensitivity):
        pass

    for kind in (Other, Zebra):
        with pytest.raises(ValueError, match=rf"holds Sensitivity, not {kind.__name__}: use Sensitivity\.load\("):
            kind.load(saved)


@pytest.mark.parametrize("values", [{}, [], {"shapes": 3, "layers": {}, "projections": {}}])
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


# Saving where something stands in the way: the earlier result survives, and nothing is left behind.


def fail(error: BaseException, on_call: int):
    """A stand-in that writes as usual, but raises on the n-th call, after half of the bytes."""
    write, calls = tlora.storage.write_bytes, []

    def write_some(path: Path, blob: bytes) -> None:
        calls.append(path)
        if len(calls) < on_call:
            return write(path, blob)
        path.write_bytes(blob[: len(blob) // 2])
        raise error

    return write_some


@pytest.mark.parametrize("on_call", [1, 2], ids=["tensors", "json"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("earlier", [True, False], ids=["over-a-result", "new"])
def test_save_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, error, on_call, earlier):
    target = tmp_path / "saved"
    if earlier:
        sensitivity(samples=2).save(target)
    before = {name: content(tmp_path / name) for name in listing(tmp_path)}
    monkeypatch.setattr(tlora.storage, "write_bytes", fail(error, on_call))
    with pytest.raises(type(error)):
        sensitivity(samples=4).save(target)
    assert {name: content(tmp_path / name) for name in listing(tmp_path)} == before


def refuse_exchange(one: Path, other: Path) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


def test_two_folders_are_exchanged_at_once(tmp_path, monkeypatch):
    """A reader, or a kill, at any moment finds one of the two."""
    monkeypatch.setattr(tlora.files, "_rename_twice", None)
    sensitivity(samples=2).save(tmp_path / "saved")
    held = os.open(tmp_path / "saved", os.O_RDONLY)
    sensitivity(samples=4).save(tmp_path / "saved")
    assert not os.path.samestat(os.fstat(held), os.stat(tmp_path / "saved"))
    os.close(held)
    assert len(Sensitivity.load(tmp_path / "saved").per_sample) == 4
    assert listing(tmp_path) == ["saved"]


@pytest.mark.parametrize("on_call", [1, 2], ids=["old-aside", "new-in-place"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupt_around_a_rename_never_loses_the_result(tmp_path, monkeypatch, on_call, when):
    """Between the two renames the target does not exist: stopped there, the old result has to come back."""
    monkeypatch.setattr(tlora.files, "_rename_exchange", refuse_exchange)
    old, new = sensitivity(samples=2), sensitivity(samples=4)
    old.save(tmp_path / "saved")
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        if target.name == "saved" and not calls:  # first, that no empty folder is in the place
            return rename(self, target)
        calls.append(target)
        if len(calls) == on_call and when == "before":
            raise KeyboardInterrupt
        moved = rename(self, target)
        if len(calls) == on_call:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path / "saved")
    expected = new if (on_call, when) == (2, "after") else old
    assert same(Sensitivity.load(tmp_path / "saved"), expected)
    assert listing(tmp_path) == ["saved"]


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
        with pytest.raises(FileExistsError, match="mount point"):
            old.save(disk)
        old.save(disk / "saved")
        with pytest.raises(OSError, match="No space left") as caught:
            sensitivity(samples=20_000).save(disk / "saved")
        assert caught.value.errno == errno.ENOSPC
        assert listing(disk) == ["saved"]
        assert same(Sensitivity.load(disk / "saved"), old)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Paths of all kinds.


def test_replaces_an_earlier_result_of_any_kind_and_an_empty_folder(tmp_path):
    target = tmp_path / "saved"
    target.mkdir()
    sensitivity(samples=2).save(target)
    (target / TENSORS).write_bytes(b"damaged")
    sensitivity(samples=4).save(target)
    assert len(Sensitivity.load(target).per_sample) == 4
    assert listing(tmp_path) == ["saved"]


def test_file_in_the_place_is_refused(tmp_path):
    (tmp_path / "saved").write_text("mine")
    with pytest.raises(FileExistsError, match=r"saved is a file, and no folder: choose another path"):
        sensitivity().save(tmp_path / "saved")
    with pytest.raises(OSError, match="saved"):
        sensitivity().save(tmp_path / "saved" / "below")
    assert (tmp_path / "saved").read_text() == "mine"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"thesis.tex": "mine"}, r"also holds thesis\.tex, which would be lost"),
        ({"thesis.tex": "mine", "zoo.txt": "mine"}, r"also holds thesis\.tex, which would be lost"),
        ({RESULT: "{}", "thesis.tex": "mine"}, r"also holds thesis\.tex"),
        ({RESULT: '{"accuracy": 0.9}'}, r"is not a tlora result.*; choose another folder"),
        ({RESULT: "accuracy 0.9"}, r"is not valid JSON.*; choose another folder"),
        ({TENSORS: "weights"}, r"holds no result\.json"),
    ],
)
def test_somebody_elses_folder_is_refused_and_left_alone(tmp_path, files, message):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    before = content(folder)
    with pytest.raises(FileExistsError, match=message):
        sensitivity().save(folder)
    assert content(folder) == before
    assert listing(tmp_path) == ["theirs"]


def test_a_result_of_another_kind_is_not_replaced(saved, tmp_path):
    before = content(saved)
    allocation = allocate(sensitivity(), 4)
    with pytest.raises(FileExistsError, match="holds Allocation, which would be lost to Sensitivity"):
        sensitivity().save(allocation.save(tmp_path / "plan"))
    with pytest.raises(FileExistsError, match="holds Sensitivity, which would be lost to Allocation: choose another"):
        allocation.save(saved)
    assert content(saved) == before
    sensitivity(samples=2).save(saved)
    assert len(Sensitivity.load(saved).per_sample) == 2


def test_result_saved_inside_a_result_is_not_lost(saved):
    sensitivity(samples=2).save(saved / "half")
    with pytest.raises(FileExistsError, match="also holds half"):
        sensitivity().save(saved)
    assert len(Sensitivity.load(saved / "half").per_sample) == 2


def test_current_folder_is_refused(saved, monkeypatch):
    """Replacing it would leave the process, and the user's shell, in a folder that is gone."""
    monkeypatch.chdir(saved)
    with pytest.raises(FileExistsError, match="is the current folder"):
        sensitivity().save(".")
    assert Path(os.getcwd()).samefile(saved)


def test_behind_a_link_the_folder_is_replaced_and_the_link_stays(tmp_path):
    real = sensitivity(samples=2).save(tmp_path / "big-disk" / "saved")
    link = tmp_path / "link"
    link.symlink_to(real)
    sensitivity(samples=4).save(link)
    assert link.is_symlink()
    assert len(Sensitivity.load(link).per_sample) == 4
    assert len(Sensitivity.load(real).per_sample) == 4
    assert listing(tmp_path / "big-disk") == ["saved"]


def test_dangling_link_is_followed(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "later" / "saved")
    sensitivity().save(link)
    assert link.is_symlink()
    assert listing(tmp_path / "later" / "saved") == [RESULT, TENSORS]


@pytest.mark.parametrize("name", ["a b/c d", "тест/模型 ∂", ".hidden", "x" * 255, "./a//b", "saved/", "[1]*?"])
@pytest.mark.parametrize("as_type", [str, Path])
def test_relative_paths_of_all_kinds(tmp_path, monkeypatch, name, as_type):
    monkeypatch.chdir(tmp_path)
    for samples in (2, 4):  # the second replaces the first
        sensitivity(samples).save(as_type(name))
        assert len(Sensitivity.load(as_type(name)).per_sample) == samples
    assert listing((tmp_path / name).resolve()) == [RESULT, TENSORS]


def test_replace_folder_gives_the_folder_whole_or_not_at_all(tmp_path):
    """What adapters are saved with: any files, replaced only where the expected one is there."""
    with replace_folder(tmp_path / "adapter", expects="config.json") as folder:
        (folder / "config.json").write_text("1")
        (folder / "old").mkdir()
    with replace_folder(tmp_path / "adapter", expects="config.json") as folder:
        (folder / "config.json").write_text("2")
        assert (tmp_path / "adapter" / "config.json").read_text() == "1"
    assert content(tmp_path / "adapter") == {"config.json": b"2"}
    with (
        pytest.raises(FileExistsError, match="holds no weights"),
        replace_folder(tmp_path / "adapter", "weights"),
    ):
        pass
    assert listing(tmp_path) == ["adapter"]


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


def test_subclass_that_forgets_its_part_says_so(tmp_path):
    class Bare(Result):
        pass

    with pytest.raises(NotImplementedError):
        Bare().save(tmp_path / "saved")


# Whatever is put in comes out.

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
