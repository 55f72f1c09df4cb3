"""Files that are written whole or not at all: what a killed write and a full disk leave, and what is left alone."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from tests.helpers.disks import kills
from tlora.utils import files
from tlora.utils.files import check_place, read_json, replace_file, replace_files


def content(folder: Path) -> dict[str, str]:
    """Everything in a folder, hidden files included."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_set(folder: Path, text: str, names: tuple[str, ...], earlier: tuple[str, ...] = ()) -> None:
    with replace_files(folder, last="last", earlier=earlier) as fresh:
        for name in (*names, "last"):
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_text(text)


@pytest.mark.posix
def test_a_new_folder_is_there_whole_or_not_at_all_whenever_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for _ in kills(lambda: write_set(folder, "new", ("a", "deep/b")), lambda: shutil.rmtree(folder, True)):
        assert not folder.exists() or content(folder) == {"a": "new", "deep/b": "new", "last": "new"}
        write_set(folder, "next", ("a",))
        assert content(tmp_path) == {"set/a": "next", "set/last": "next"} | (
            {"set/deep/b": "new"} if (folder / "deep").exists() else {}
        )
        assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.posix
def test_old_and_new_files_are_never_taken_for_one_set(tmp_path: Path) -> None:
    """Whoever finds the last file finds all others as they were written with it; what is not of the set stays."""
    folder, old, new = tmp_path / "set", ("a", "deep/b", "gone"), ("a", "deep/b", "more")

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        write_set(folder, "old", old)
        (folder / "notes").write_text("mine")

    seen = set()
    for _ in kills(lambda: write_set(folder, "new", new, old), begin):
        there = content(folder)
        text = there.get("last")
        if text:
            names = old if text == "old" else new
            assert {name: there[name] for name in names} == dict.fromkeys(names, text)
        seen.add(text)
        write_set(folder, "next", new, old)
        assert content(folder) == dict.fromkeys((*new, "last"), "next") | {"notes": "mine"}
        assert not list(folder.glob(".*"))
    assert seen == {"old", "new", None}


def test_what_a_process_left_stays_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f".tlora-here-{process}-{'0' * 8}" for process in (os.getpid(), 2**22 + 1)]  # the second is none of Linux
    others = [".tlora-notes", ".tlora-there-4194305-00000000", ".tlora-here-4194305-more"]
    monkeypatch.setattr(files.socket, "gethostname", lambda: "here")
    for name in (*names, *others):
        (tmp_path / name).mkdir()
    with replace_file(tmp_path / "a") as fresh:
        fresh.touch()
    assert sorted(os.listdir(tmp_path)) == sorted([names[0], *others, "a"])


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
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
    assert content(tmp_path) == {"deep/new/page.html": "three", "link": "three"}


@pytest.mark.parametrize("there", [True, False], ids=["over", "new"])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")],
    ids=["system", "safetensors"],
)
def test_an_error_of_the_system_is_one_sentence_that_names_the_target(
    tmp_path: Path, error: Exception, there: bool
) -> None:
    def fail(path: Path) -> None:
        with replace_files(path, last="last") as fresh:
            (fresh / "last").write_text("half")
            raise error

    if there:
        write_set(tmp_path / "outer", "old", ("a",))
    before = content(tmp_path)
    told = r"No space left.*\(what was there before is as it was\): '.*/outer'"  # that is what the user asked for
    with pytest.raises(OSError, match=told) as caught, replace_files(tmp_path / "outer", last="last") as fresh:
        fail(fresh / "inner")
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value).count("as it was") == 1
    assert content(tmp_path) == before


@pytest.mark.parametrize("error", [SafetensorError("header too large"), FileExistsError("mine"), ValueError("x")])
def test_an_error_that_is_none_of_the_system_is_left_alone(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), replace_file(tmp_path / "a"):
        raise error


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "the input of the command": ("ours", {"inputs": ["owner/name", "elsewhere/../ours"]}, "ours is read"),
    "a file in place of a folder": ("ours/mark", {"marker": "mark"}, "mark is a file"),
    "a folder of others": ("theirs", {"marker": "mark"}, "theirs holds last and no mark"),
    "an earlier result": ("ours", {"marker": "mark", "overwrite": False}, "ours/mark exists"),
    "an earlier file": ("ours/mark", {"overwrite": False}, "ours/mark exists"),
    "a place below a file": ("ours/mark/below", {"marker": "mark"}, "cannot write"),
}


@pytest.mark.parametrize(("path", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_a_place_is_refused(
    path: str, options: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(Path("ours"), "text", ("mark",))
    write_set(Path("theirs"), "text", ("thesis",))
    before = content(tmp_path)
    with pytest.raises(OSError, match=words):
        check_place(path, **options)
    assert content(tmp_path) == before


def test_a_place_is_taken(tmp_path: Path) -> None:
    write_set(tmp_path / "ours", "text", ("mark",))
    (tmp_path / "empty").mkdir()
    before = content(tmp_path)
    for path, options in (
        ("ours", {"marker": "mark", "inputs": [tmp_path]}),
        ("ours/mark", {}),
        ("empty", {"marker": "mark", "overwrite": False}),
        ("new/deep", {"marker": "mark", "overwrite": False}),
        ("new/file", {"overwrite": False}),
    ):
        check_place(tmp_path / path, **options)  # type: ignore[arg-type]
    assert content(tmp_path) == before
    with pytest.raises(FileExistsError, match="a file"), replace_files(tmp_path / "ours" / "mark", last="last"):
        raise AssertionError("it is refused before anything is written")


def test_all_is_on_disk_before_it_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = files.fsync, os.replace
    monkeypatch.setattr(files, "fsync", lambda path: (order.append(path.name), fsync(path)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("move"), replace(*paths)))
    write_set(tmp_path, "new", ("a", "deep/b"))
    assert {"a", "b", "last", "deep"} < set(order[:5])
    assert order[5:8] == ["move"] * 3
    assert sorted(order[8:]) == sorted([tmp_path.name, "deep"])


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\xff"])
def test_json_that_is_none_is_refused_however_deep(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")
