"""Files and folders that are replaced as a whole: what stays of a killed write, of a full disk, and for a reader."""

import errno
import fcntl
import json
import os
import shutil
import signal
import threading
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

import tlora.utils.files
from tests.helpers import tiny_batch, tiny_model
from tests.results import same, sensitivity
from tlora.allocation.allocation import Allocation
from tlora.calibration.calibration import Calibration
from tlora.calibration.sensitivity import Sensitivity
from tlora.models.targets import target_modules
from tlora.results import RESULT, _digest, migrated
from tlora.training.run import TrainingRun
from tlora.utils.files import LARGEST_JSON, digest, flush, read_json, replace_file, replace_folder, undisturbed

ROOT = Path(__file__).parents[2]
FORMAT_1 = ROOT / "tests" / "data" / "format-1"
FORMAT_2 = ROOT / "tests" / "data" / "format-2"
FORMAT_3 = ROOT / "tests" / "data" / "format-3"


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def killed(write: AbstractContextManager[Path]) -> None:
    """Write in a process of its own, which does not survive it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which have no part in this
        child = os.fork()
    if child == 0:
        with write as fresh:
            (fresh / "x").mkdir(parents=True)
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


# What a killed process leaves.


def test_what_a_killed_process_left_goes_with_the_next_write_and_what_is_being_written_stays(tmp_path):
    killed(replace_file(tmp_path / "b"))
    left = listing(tmp_path)
    killed(replace_folder(tmp_path / "a", expects="x"))
    assert len(listing(tmp_path)) == 1
    assert listing(tmp_path) != left
    theirs = tmp_path / ".tlora-notes"
    theirs.mkdir()
    aside = tmp_path / f".tlora-{'0' * 32}.old"
    aside.mkdir()
    assert len(listing(tmp_path)) == 3
    with replace_folder(tmp_path / "c", expects="x") as busy:
        with replace_file(tmp_path / "d") as file:
            file.write_text("whole")
        assert listing(tmp_path) == sorted([theirs.name, aside.name, busy.name, "d"])
        (busy / "x").touch()
    assert listing(tmp_path) == [aside.name, theirs.name, "c", "d"]


@pytest.mark.parametrize("before", ["open", "flock"])
def test_a_folder_that_is_taken_for_abandoned_before_it_is_locked_is_made_again(tmp_path, monkeypatch, before):
    module = os if before == "open" else tlora.files.fcntl
    function, taken = getattr(module, before), []

    def late(*arguments):
        if not taken:
            taken.extend(tmp_path.glob(".tlora-*"))
            taken[0].rmdir()
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, before, late)
        with replace_folder(tmp_path / "a", expects="x") as fresh:
            assert fresh != taken[0]
            (fresh / "x").mkdir()
    assert listing(tmp_path) == ["a"]


def test_without_locks_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(tlora.files.fcntl, "flock", no_locks)
    left = tmp_path / f".tlora-{'0' * 32}"
    left.mkdir()
    sensitivity().save(tmp_path / "a")
    sensitivity().save(tmp_path / "a")
    assert listing(tmp_path) == [left.name, "a"]


def test_the_lock_of_a_folder_is_waited_for_and_nobody_elses(tmp_path, monkeypatch):
    flock, asked = tlora.files.fcntl.flock, []
    monkeypatch.setattr(tlora.files.fcntl, "flock", lambda file, how: (asked.append(how), flock(file, how))[1])
    (tmp_path / f".tlora-{'0' * 32}").mkdir()
    with replace_file(tmp_path / "a") as fresh:
        fresh.touch()
    assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]


def test_an_exchange_that_fails_says_why(tmp_path):
    with pytest.raises(FileNotFoundError):
        tlora.files._rename_exchange(tmp_path / "a", tmp_path / "b")


# One file.


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "deep" / "new" / "page.html"
    with replace_file(file) as fresh:
        assert fresh.name == "page.html"
        fresh.write_text("one")
    with pytest.raises(UnicodeEncodeError), replace_file(file) as fresh:
        fresh.write_text("tw" * 100_000 + "\ud800")
    assert file.read_text() == "one"
    link = tmp_path / "link"
    link.symlink_to(file)
    with replace_file(link) as fresh:
        fresh.write_text("three")
    assert link.is_symlink()
    assert file.read_text() == "three"
    assert listing(tmp_path / "deep" / "new") == ["page.html"]


# What an error says.


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")],
    ids=["system", "safetensors"],
)
def test_an_error_of_the_system_is_one_sentence_that_names_the_target(tmp_path, error):
    def fail(path: Path) -> None:
        with replace_folder(path, expects="x") as fresh:
            (fresh / "x").write_text("half")
            raise error

    told = r"No space left.*\(what was there before is as it was\): '.*/outer'"  # that is what the user asked for
    with pytest.raises(OSError, match=told) as caught, replace_folder(tmp_path / "outer", expects="x") as fresh:
        fail(fresh / "inner")
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value).count("as it was") == 1
    assert listing(tmp_path) == []


def test_an_error_that_is_none_of_the_system_is_left_alone(tmp_path):
    for error in (SafetensorError("header too large"), FileExistsError("mine"), ValueError("x")):
        with pytest.raises(type(error), match=str(error)), replace_file(tmp_path / "a"):
            raise error


def test_somebody_elses_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(FileExistsError, match="holds no x"), replace_folder(tmp_path / "a", expects="x"):
        (tmp_path / "a" / "thesis").mkdir(parents=True)
    assert listing(tmp_path / "a") == ["thesis"]


# On disk before it is in place.


def test_all_is_on_disk_before_it_is_in_place(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(tlora.files, "fsync", lambda path: order.append(path.name))
    put = tlora.files._put_in_place
    monkeypatch.setattr(tlora.files, "_put_in_place", lambda *paths: (order.append("in place"), put(*paths)))
    with replace_folder(tmp_path / "a", expects="x") as fresh:
        (fresh / "inner").mkdir()
        (fresh / "inner" / "deep").touch()
        (fresh / "x").touch()
    assert sorted(order[:4]) == sorted(["x", "deep", "inner", fresh.name])
    assert order[4:] == ["in place", tmp_path.name]


def test_a_folder_that_cannot_be_flushed_is_no_error_and_a_file_is(tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    flush(tmp_path)
    (tmp_path / "x").touch()
    with pytest.raises(OSError, match="Invalid"):
        flush(tmp_path)
    with pytest.raises(OSError, match="Invalid"):
        flush(tmp_path / "x")


# Reading.


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "\xff", '{"a": ' * 50_000, "1" * 5000])
def test_json_that_is_none_is_refused_however_deep(tmp_path, text):
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_a_file_that_was_blown_up_is_not_read(tmp_path):
    folder = sensitivity().save(tmp_path / "saved")
    for file in folder.iterdir():
        whole = file.read_bytes()
        os.truncate(file, 2**40)  # sparse: takes no space
        with pytest.raises(ValueError, match=r"1,099,511,627,776 bytes|1099511627776 bytes of"):
            Sensitivity.load(folder)
        file.write_bytes(whole)
    os.truncate(tmp_path / "saved" / RESULT, LARGEST_JSON + 1)
    with pytest.raises(ValueError, match="far more than"):
        read_json(folder / RESULT)


def test_digest_is_that_of_sha256sum(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_is_replaced_while_it_is_read_is_read_again(tmp_path):
    folder = sensitivity(samples=2).save(tmp_path / "saved")
    tries = []

    def read() -> int:
        tries.append(1)
        if len(tries) == 1:
            sensitivity(samples=4).save(folder)
            raise ValueError("two halves")
        return 3

    assert undisturbed(folder, read) == 3
    with pytest.raises(ZeroDivisionError):
        undisturbed(folder, lambda: 1 // 0)

    def gone() -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        shutil.rmtree(folder)
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError):
        undisturbed(folder, lambda: gone() if folder.exists() else (folder / "x").read_bytes())


def test_a_reader_finds_a_whole_result_while_others_write(tmp_path):
    sensitivity(samples=2).save(tmp_path / "saved")
    stop, wrong = threading.Event(), []

    def write(samples: int) -> None:
        while not stop.is_set():
            sensitivity(samples).save(tmp_path / "saved")

    writers = [threading.Thread(target=write, args=(n,)) for n in (2, 4)]
    for writer in writers:
        writer.start()
    try:
        found = [Sensitivity.load(tmp_path / "saved") for _ in range(60)]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    wrong = [result for result in found if not same(result, sensitivity(len(result.per_sample)))]
    assert not wrong
    assert listing(tmp_path) == ["saved"]


# Older formats.


def test_results_of_format_1_are_read_and_saved_as_the_present_format(tmp_path):
    """Files that version 0.1.0 wrote."""
    assert same(Sensitivity.load(FORMAT_1 / "sensitivity"), sensitivity_of_format_1())
    run = TrainingRun.load(FORMAT_1 / "run")
    file = load_file(FORMAT_1 / "run" / "adapter_model.safetensors")
    assert same(run.adapter, file)
    assert run.adapter_config == json.loads((FORMAT_1 / "run" / "adapter_config.json").read_bytes())
    assert list(run.ranks.values()) == [3, 1]
    run.save(tmp_path / "run")
    head = json.loads((tmp_path / "run" / "tlora" / "run" / RESULT).read_bytes())
    assert head["format"] == 4
    assert head["values"]["files"].keys() == {"adapter_model.safetensors", "adapter_config.json"}
    assert same(TrainingRun.load(tmp_path / "run"), run)


def sensitivity_of_format_1() -> Sensitivity:
    made = sensitivity()
    versions = json.loads((FORMAT_1 / "sensitivity" / RESULT).read_bytes())["meta"]["versions"]
    meta = type(made.meta)(**{**vars(made.meta), "versions": versions})
    return Sensitivity(made.per_sample, made.shapes, made.layers, made.projections, meta)


def test_an_adapter_of_format_1_is_checked_too(tmp_path):
    copy = shutil.copytree(FORMAT_1 / "run", tmp_path / "run")
    blob = (copy / "adapter_model.safetensors").read_bytes()
    (copy / "adapter_model.safetensors").write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(ValueError, match="is not what this run trained"):
        TrainingRun.load(copy)


def test_an_older_head_that_lacks_what_it_had_is_refused():
    for values in ({}, None, 3):
        with pytest.raises(ValueError, match="a result of format 1 is damaged"):
            migrated({"format": 1, "result": "TrainingRun", "values": values})
    head = {"format": 1, "result": "Sensitivity", "values": {"adapter": 1}}
    assert migrated(head) == head | {"format": 4}


def test_a_plan_of_format_3_finds_the_places_of_what_it_leaves_out(tmp_path):
    """A file that version 0.1.0 wrote: it holds a name and a shape of each such module, and no more."""
    plan = Allocation.load(FORMAT_3 / "allocation")
    targets = target_modules(tiny_model("llama"))
    assert plan.shapes.keys() == targets.keys() == plan.ranks.keys() | set(plan.excluded)
    assert plan.layers == {name: target.layer for name, target in targets.items()}
    gone = {name for name in targets if name.endswith("down_proj")}
    assert set(plan.excluded) == gone | {"model.layers.0.self_attn.q_proj"}
    roles = {name: "left out" if name in gone else target.projection for name, target in targets.items()}
    assert plan.projections == roles
    assert plan.edit({}).ranks == plan.ranks
    assert plan.budget_used == plan.budget_total == 3 * 14
    assert same(Allocation.load(plan.save(tmp_path / "plan")), plan)


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_layers_are_the_first_number_in_a_name(family):
    targets = target_modules(tiny_model(family))
    out, *kept = targets
    old = {
        "shapes": dict.fromkeys(kept, (4, 4)),
        "excluded": {out: (4, 4)},
        "layers": {name: targets[name].layer for name in kept},
        "projections": {name: targets[name].projection for name in kept},
    }
    values = migrated({"format": 3, "result": "Allocation", "values": old})["values"]
    assert values["layers"] == {name: target.layer for name, target in targets.items()}
    assert values["projections"] == {name: target.projection for name, target in targets.items()}
    assert (values["modules"], list(values["shapes"])) == (kept, [*kept, out])


def test_a_calibration_of_means_is_refused_by_what_it_is(tmp_path):
    """A file that version 0.1.0 wrote before covariances became sums: read as sums, it would be N times too small."""
    words = "holds a calibration of an earlier layout, .* remove it and calibrate again"
    with pytest.raises(ValueError, match=words):
        Calibration.load(FORMAT_2 / "calibration")
    model, steps = tiny_model("llama"), tmp_path / "steps"
    shutil.copytree(FORMAT_2 / "calibration", steps / "samples-000000003")
    with pytest.raises(ValueError, match=words):
        tlora.calibrate(model, [tiny_batch(model)], checkpoint=steps, progress=False)


def test_a_calibration_of_sums_that_says_format_2_is_read(tmp_path):
    model = tiny_model("llama")
    made = tlora.calibrate(model, [tiny_batch(model)], progress=False)
    file = made.save(tmp_path / "calibration") / RESULT
    head = json.loads(file.read_bytes()) | {"format": 2}
    head["sha256"] = _digest(head)
    file.write_text(json.dumps(head))
    assert same(Calibration.load(tmp_path / "calibration"), made)
