"""The pipeline on another device than the CPU: the same numbers, results on the CPU, nothing left behind.

On the stand-in of `tests.helpers.other_device` everywhere, and on a GPU where there is one.
"""

import functools
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from gguf import GGUFReader
from safetensors.torch import load_file
from torch import Tensor

import tlora
from tests.helpers.adapted import token_rows
from tests.helpers.calibrations import SKETCH, assert_close
from tests.helpers.models import tiny_batch, tiny_model, tiny_tokenizer
from tests.helpers.other_device import trainer_on
from tlora.training.callbacks import ModuleRecorder
from tlora.utils.defaults import KINDS


@functools.cache
def calibrated(family: str) -> tlora.Calibration:
    """On the CPU."""
    return tlora.calibrate(tiny_model(family), [tiny_batch(family)], gradient=True, fisher=True, progress=False)


def places(values: Any) -> set[str]:
    """Devices of all tensors in a result."""
    if isinstance(values, Tensor):
        return {values.device.type}
    if hasattr(values, "__dataclass_fields__"):
        values = vars(values)
    if isinstance(values, dict):
        values = list(values.values())
    return set().union(*map(places, values)) if isinstance(values, list | tuple) else set()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_calibration_gives_the_numbers_of_the_cpu(family, device):
    model = tiny_model(family).to(device)
    found = tlora.calibrate(model, [tiny_batch(family)], gradient=True, fisher=True, progress=False)
    assert places(found) == {"cpu"}
    assert_close(found, calibrated(family), 1e-3)


def test_whole_sums_on_the_host_give_the_same_numbers(device):
    model, options = tiny_model("llama").to(device), {"gradient": True, "fisher": True, "progress": False}
    found = tlora.calibrate(model, [tiny_batch("llama")], statistics="host", **options)
    assert places(found) == {"cpu"}
    assert_close(found, calibrated("llama"), 1e-3)


def test_whole_sums_on_the_host_take_no_memory_of_the_device(other):
    model = tiny_model("llama", hidden_size=256, intermediate_size=512).to(other.device)
    batches, options = [tiny_batch(model)], {"sketch_size": 1024, "fisher": True, "progress": False}

    def peak(statistics: str) -> int:
        return other.watch(lambda: tlora.calibrate(model, batches, statistics=statistics, **options)).largest

    widths = [256] * 3 + [512] + [256] * 6 + [512]  # of the distinct inputs of a block, and of its modules
    whole = 2 * 4 * sum(width**2 for width in widths)
    assert 0.8 * whole < peak("device") - peak("host") < whole


@pytest.mark.parametrize("options", [SKETCH, {}], ids=str)
def test_sketches_and_resumed_sums(options, device, tmp_path):
    batches = [tiny_batch("llama", seed=seed) for seed in range(2)]
    options = options | {"gradient": True, "fisher": True, "progress": False}
    whole = tlora.calibrate(tiny_model("llama").bfloat16(), batches, **options)
    model = tiny_model("llama").bfloat16().to(device)
    tlora.calibrate(model, batches[:1], checkpoint=tmp_path, **options)
    resumed = tlora.calibrate(model, batches, checkpoint=tmp_path, **options)
    assert places(resumed) == {"cpu"}
    assert_close(resumed, whole, 3e-2)  # the model itself rounds to bfloat16


def test_packed_samples(device):
    ids = torch.randint(3, 64, (1, 12), generator=torch.Generator().manual_seed(0))
    packed = {"input_ids": ids, "labels": ids, "position_ids": torch.tensor([[*range(5), *range(7)]])}
    there = {key: value.to(device) for key, value in packed.items()}  # as a loader with a device of its own gives them
    found = tlora.calibrate(tiny_model("llama").to(device), [there], gradient=True, fisher=True, progress=False)
    assert_close(
        found, tlora.calibrate(tiny_model("llama"), [packed], gradient=True, fisher=True, progress=False), 1e-3
    )


@pytest.mark.parametrize("kind", KINDS)
def test_subspaces_are_those_of_the_cpu(kind, device):
    model, calibration = tiny_model("llama"), calibrated("llama")
    there = tlora.task_subspaces(model, calibration, max_rank=4, kind=kind, progress=False)
    found = tlora.task_subspaces(model.to(device), calibration, max_rank=4, kind=kind, progress=False)
    assert places(found) == {"cpu"}
    assert found.numerical_rank == there.numerical_rank
    for name in found.names:
        torch.testing.assert_close(found.singular_values[name], there.singular_values[name], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found.row_variance[name], there.row_variance[name], rtol=1e-2, atol=1e-5)
        overlap = (found.bases[name] @ there.bases[name].T).square().sum() / len(there.bases[name])
        assert float(overlap) == pytest.approx(1, abs=1e-3)


def test_what_subspaces_hold(device):
    model, calibration, batch = tiny_model("llama"), calibrated("llama"), tiny_batch("llama", seed=1)
    subspaces = {"wc": tlora.task_subspaces(model, calibration, max_rank=4, progress=False)}

    expected = tlora.gradient_capture(model, [batch], subspaces, [1, 4], progress=False)
    capture = tlora.gradient_capture(model.to(device), [batch], subspaces, [1, 4], progress=False)
    assert places(capture) == {"cpu"}
    torch.testing.assert_close(capture.captured, expected.captured, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(capture.best, expected.best, rtol=1e-3, atol=1e-9)


def adapted_on(device, family="llama", **options):
    """An adapted model, A and B in float32."""
    model, calibration = tiny_model(family), calibrated(family)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=2, max_rank=8)
    return tlora.attach(model.to(device), subspaces, allocation, **options)


def trained_by_hand(device, **options):
    adapted = adapted_on(device, **options)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(2):
        batch = {key: value.to(device) for key, value in tiny_batch("llama", seed=seed).items()}
        adapted(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted


@pytest.mark.parametrize("rows", ["orthonormal", "variance"])
def test_training_by_hand(rows, device):
    expected = dict(trained_by_hand("cpu", rows=rows).named_parameters())
    for name, parameter in trained_by_hand(device, rows=rows).named_parameters():
        assert parameter.device.type == device.type, name
        torch.testing.assert_close(parameter.detach().cpu(), expected[name].detach(), rtol=1e-3, atol=1e-4)


def rows_for(family: str) -> Dataset:
    return token_rows(8, classes=2 if family == "bert" else 0)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_training_saving_and_loading(family, device, tmp_path):
    options = {"learning_rate": 1e-2, "batch_size": 4, "max_steps": 3, "progress": False}
    expected = tlora.train(adapted_on("cpu", family), rows_for(family), **options)
    adapted = adapted_on(device, family)
    with trainer_on(device):
        run = tlora.train(adapted, rows_for(family), **options)
    assert {p.device.type for p in adapted.parameters()} == {device.type}
    assert places(run) == {"cpu"}
    assert run.after["train_loss"] == pytest.approx(expected.after["train_loss"], rel=1e-3)
    for name, tensor in run.adapter.items():
        torch.testing.assert_close(tensor, expected.adapter[name], rtol=1e-2, atol=1e-3)
    run.save(tmp_path / "adapter")
    loaded = tlora.load_adapter(tmp_path / "adapter", tiny_model(family).to(device)).eval()
    inputs = {key: value.to(device) for key, value in tiny_batch(family, seed=5).items()}
    with torch.no_grad():
        there, merged = loaded(**inputs).logits, tlora.merge(adapted.eval())(**inputs).logits
    torch.testing.assert_close(there.cpu(), merged.cpu(), rtol=1e-3, atol=1e-4)


def written(folder: Path) -> dict[str, Tensor]:
    """Tensors of an export, by name."""
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    for file in folder.glob("*.gguf"):
        found |= {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(file).tensors}
    return found


@pytest.mark.parametrize("format", ["peft", "gguf", "merged"])
def test_what_is_exported_is_the_same(format, device, tmp_path):
    for place in (torch.device("cpu"), device):
        tlora.export(trained_by_hand(place), tmp_path / place.type, format=format, tokenizer=tiny_tokenizer())
    found, expected = written(tmp_path / device.type), written(tmp_path / "cpu")
    assert expected
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_loading_a_model_onto_the_device(device, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, _ = tlora.load_model(tmp_path, device=device, dtype="float32")
    assert {p.device.type for p in model.parameters()} == {device.type}


def test_nothing_is_left_on_the_device(other):
    model = tiny_model("llama").to(other.device)
    gc.collect()
    weights = other.live
    calibration = tlora.calibrate(model, [tiny_batch("llama")], gradient=True, fisher=True, progress=False)
    tlora.task_subspaces(model, calibration, max_rank=4, progress=False)
    gc.collect()
    assert other.live == weights


def test_calibration_leaves_the_card_alone_from_batch_to_batch(other):
    model = tiny_model("llama").to(other.device)
    few, more = (
        other.watch(lambda n=n: tlora.calibrate(model, [tiny_batch("llama")] * n, progress=False)).ours for n in (1, 3)
    )
    assert more == few


@pytest.mark.parametrize(("lengths", "most"), [((20, 15, 25), 4), ((7, 4, 9), 30)])
def test_the_modules_of_a_group_are_looked_at_together(lengths, most, other):
    """Twice, and their fingerprints once; where tokens are few, blocks are dependent and are made with more care."""
    model = tiny_model("llama").to(other.device)
    calibration = tlora.calibrate(model, [tiny_batch("llama", lengths)], progress=False)
    watched = other.watch(lambda: tlora.task_subspaces(model, calibration, max_rank=4, progress=False))
    assert watched.ours.total() <= most


def test_a_training_step_looks_at_the_card_once(other):
    adapted = adapted_on(other.device)
    options = {"batch_size": 4, "evaluation_limit": 0, "progress": False, "callbacks": ModuleRecorder(every=100)}
    with trainer_on(other.device):
        few, more = (
            other.watch(lambda n=n: tlora.train(adapted, rows_for("llama"), max_steps=n, **options)).ours
            for n in (2, 3)
        )
    assert (more - few).total() == 1


def test_no_statistic_is_on_the_card_twice(other):
    model = tiny_model("llama", hidden_size=256, intermediate_size=512).to(other.device)
    weights = other.live
    watched = other.watch(lambda: tlora.calibrate(model, [tiny_batch("llama")], progress=False))
    covariances = sum(c.total.nbytes for c in watched.result.covariances.values())
    assert watched.largest - weights < 1.8 * covariances
