"""The library in several threads and processes at once: each gets what it would get alone."""

import os
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.results import same, sensitivity
from tlora.adapters.lora_layers import adapter_layers
from tlora.calibration.sensitivity import Sensitivity

pytestmark = pytest.mark.rest
THREADS = 4


def at_once(deed: Callable[[int], Any]) -> list[Any]:
    """What each of several threads gets, all of which begin at the same time."""
    barrier = threading.Barrier(THREADS)

    def begin(number: int) -> Any:
        barrier.wait()
        return deed(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def run_pipeline(model: Any, number: int) -> tuple[Any, ...]:
    """The pipeline on a model and samples of one's own, up to the adapter, once planned and once at random."""
    batch = tiny_batch("llama", seed=number)
    calibration = tlora.calibrate(model, [batch], gradient=True, progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=4, seed=number, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=2, max_rank=4)
    parts = {}
    for name, start in (("planned", subspaces), ("random", None)):
        adapted = tlora.attach(model, start, allocation, seed=number, replace=True)
        layers = adapter_layers(adapted).items()
        parts |= {f"{name}.{module}": layer.lora_A["default"].weight.detach().clone() for module, layer in layers}
    covariances = {name: c.dense() for name, c in calibration.covariances.items()}
    return covariances, calibration.sensitivity.per_sample, subspaces.bases, allocation.ranks, parts


def test_the_pipeline_in_threads_equals_the_pipeline_alone() -> None:
    alone = [run_pipeline(tiny_model("llama", seed=number), number) for number in range(THREADS)]
    models = [tiny_model("llama", seed=number) for number in range(THREADS)]
    before = torch.get_rng_state()
    for one, other in zip(at_once(lambda number: run_pipeline(models[number], number)), alone, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert same(mine, theirs)
    assert torch.get_rng_state().equal(before)


def test_what_is_read_while_it_is_written_is_whole(tmp_path: Path) -> None:
    """As a notebook does that reads what a command writes: each time it is one result or the other."""
    folder = tmp_path / "saved"
    sensitivity(2).save(folder)
    writer, *readers = [forked(deed) for deed in (lambda: write(folder), lambda: read(folder), lambda: read(folder))]
    for child in (writer, *readers):
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["saved.safetensors"]


def write(folder: Path) -> None:
    for number in range(60):
        sensitivity(2 + number % 3).save(folder)


def read(folder: Path) -> None:
    for _ in range(60):
        found = Sensitivity.load(folder)
        assert same(found, sensitivity(len(found.per_sample)))


def forked(deed: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which have no part in this
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        deed()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)
