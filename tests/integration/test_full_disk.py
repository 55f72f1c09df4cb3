"""No room for a file, one file after the other: the last good state stays, one sentence says so, nothing is left over.

The limit on the size of files (RLIMIT_FSIZE) is what a full disk looks like to a process, and needs no root.
"""

import errno
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.models import tiny_model, tiny_tokenizer
from tests.helpers.results import EXAMPLES, run
from tlora.cli.errors import error_text
from tlora.cli.trained import save_run
from tlora.serving.export import save_model
from tlora.training.train import train
from tlora.utils.files import replace_file

pytestmark = pytest.mark.rest
Write = Callable[[Path], Any]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder: Path) -> dict[str, bytes]:
    """All that is in a folder, hidden files included; an empty lock is nothing."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: blob for name, blob in files.items() if blob}


@cache
def exported() -> Any:
    return adapted_model()


@cache
def example(name: str) -> Any:
    return EXAMPLES[name]()


def picture(path: Path) -> None:
    with replace_file(path) as fresh:
        fresh.write_bytes(b"x" * 3000)


WRITES: dict[str, Write] = {
    **{name: lambda path, name=name: example(name).save(path) for name in EXAMPLES},
    "export": lambda path: tlora.export(exported(), path),
    "gguf": lambda path: tlora.export(exported(), path, format="gguf"),
    "merged model": lambda path: save_model(tiny_model("llama"), tiny_tokenizer(), path),
    "run with results": lambda path: save_run(run(), {"allocation": example("Allocation")}, path),
    "file": picture,
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("earlier", [True, False], ids=["over", "new"])
def test_each_write(name: str, earlier: bool, tmp_path: Path) -> None:
    write, place = WRITES[name], tmp_path / "disk"
    place.mkdir()
    write(tmp_path / "whole")
    sizes = {len(blob) for blob in content(tmp_path).values()}
    if earlier:
        write(place / "saved")
    before = content(place)
    for size in sorted({0, 1, *(size - 1 for size in sizes if size), *(size // 2 for size in sizes)}):
        with room_for(size), pytest.raises(OSError, match=r"as (it was|they were)") as caught:
            write(place / "saved")
        assert caught.value.errno in (errno.EFBIG, errno.ENOSPC), size
        text = error_text(caught.value)
        assert text.startswith(str(place / "saved")), text
        assert "\n" not in text
        assert {file: blob for file, blob in content(place).items() if blob} == before, size
        assert {path.name for path in place.rglob("*") if path.name.startswith(".")} == set(), size
    write(place / "saved")


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.9])
def test_checkpoints(share: float, tmp_path: Path) -> None:
    """Training goes on without them, and ends with the same adapter."""
    options: dict[str, Any] = {
        "learning_rate": 1e-2, "batch_size": 4, "save_steps": 1, "progress": False, "evaluation_limit": 0
    }  # fmt: skip
    whole = train(adapted_model(), token_rows(), output_dir=tmp_path / "whole", **options)
    largest = max(len(blob) for blob in content(tmp_path / "whole").values())
    with warnings.catch_warnings(record=True) as told, room_for(int(share * largest)):
        warnings.simplefilter("always", UserWarning)
        found = train(adapted_model(), token_rows(), output_dir=tmp_path / "full", **options)
    assert all(found.adapter[name].equal(tensor) for name, tensor in whole.adapter.items())
    sentences = [str(warning.message) for warning in told if "could not be written" in str(warning.message)]
    assert len(sentences) == 4
    assert all("could not be written" in sentence for sentence in sentences)
    assert content(tmp_path / "full") == {}
