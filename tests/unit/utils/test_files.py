"""Files and folders that are replaced as a whole: what stays of a killed write, of a full disk, and for a reader."""

import errno
import fcntl
import os
import shutil
import signal
import threading
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from safetensors import SafetensorError

import tlora.utils.files
from tests.helpers.results import same, sensitivity
from tlora.calibration.sensitivity import Sensitivity
from tlora.results import RESULT, TENSORS
from tlora.utils.files import LARGEST_JSON, digest, flush, read_json, replace_file, replace_folder, undisturbed


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
    module = os if before == "open" else tlora.utils.files.fcntl
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

    monkeypatch.setattr(tlora.utils.files.fcntl, "flock", no_locks)
    left = tmp_path / f".tlora-{'0' * 32}"
    left.mkdir()
    sensitivity().save(tmp_path / "a")
    sensitivity().save(tmp_path / "a")
    assert listing(tmp_path) == [left.name, "a"]


def test_the_lock_of_a_folder_is_waited_for_and_nobody_elses(tmp_path, monkeypatch):
    flock, asked = tlora.utils.files.fcntl.flock, []
    monkeypatch.setattr(tlora.utils.files.fcntl, "flock", lambda file, how: (asked.append(how), flock(file, how))[1])
    (tmp_path / f".tlora-{'0' * 32}").mkdir()
    with replace_file(tmp_path / "a") as fresh:
        fresh.touch()
    assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]


def test_an_exchange_that_fails_says_why(tmp_path):
    with pytest.raises(FileNotFoundError):
        tlora.utils.files._rename_exchange(tmp_path / "a", tmp_path / "b")


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


def test_all_is_on_disk_before_it_is_in_place(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(tlora.files, "fsync", lambda path: order.append(path.name))
    put = tlora.utils.files._put_in_place
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


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return sensitivity().save(tmp_path / "saved")


def listing_storage(folder: Path) -> list[str]:
    """Everything in a folder, hidden files included."""
    return sorted(os.listdir(folder))


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in listing_storage(folder)}


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
    assert listing_storage(tmp_path) == ["saved"]


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
    assert listing_storage(tmp_path) == ["saved"]


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
    assert listing_storage(tmp_path / "big-disk") == ["saved"]


def test_dangling_link_is_followed(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "later" / "saved")
    sensitivity().save(link)
    assert link.is_symlink()
    assert listing_storage(tmp_path / "later" / "saved") == [RESULT, TENSORS]


@pytest.mark.parametrize("name", ["a b/c d", "тест/模型 ∂", ".hidden", "x" * 255, "./a//b", "saved/", "[1]*?"])
@pytest.mark.parametrize("as_type", [str, Path])
def test_relative_paths_of_all_kinds(tmp_path, monkeypatch, name, as_type):
    monkeypatch.chdir(tmp_path)
    for samples in (2, 4):  # the second replaces the first
        sensitivity(samples).save(as_type(name))
        assert len(Sensitivity.load(as_type(name)).per_sample) == samples
    assert listing_storage((tmp_path / name).resolve()) == [RESULT, TENSORS]


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
    assert listing_storage(tmp_path) == ["adapter"]
