"""Seeds are the same in every process, and the global generators are left alone."""

import zlib
from pathlib import Path

import numpy as np
import torch

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tlora.utils.defaults import Kind
from tlora.utils.reproducibility import module_seed


def test_the_seed_of_a_module_is_the_same_in_every_process() -> None:
    name = "model.layers.0.mlp.up_proj"
    assert zlib.crc32(b"a") == 0xE8B7BE43  # the check value of CRC-32, whatever computes it
    assert module_seed(0, "a") == 0xE8B7BE43
    assert module_seed(3, name) == 3 * 1_000_003 + zlib.crc32(name.encode())


def test_the_pipeline_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch(model)], gradient=True, progress=False)
    kinds: tuple[Kind, ...] = ("wc", "random", "wc_half")
    for kind in kinds:
        subspaces = tlora.task_subspaces(model, calibration, max_rank=16, kind=kind, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=4, max_rank=16)
    tlora.attach(model, subspaces, allocation)
    tlora.export(tlora.attach(model, None, allocation, replace=True), tmp_path / "served")
    tlora.load_adapter(tmp_path / "served", tiny_model("llama"))
    assert torch.get_rng_state().equal(torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
