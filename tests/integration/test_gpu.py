"""The same numbers on a GPU as on the CPU; skipped where there is no GPU."""

import pytest
import torch

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tests.unit.adapters.test_attach import saved_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: run on a machine with a GPU"),
]


def results(family, device):
    model = tiny_model(family).to(device)
    calibration = tlora.calibrate(model, [tiny_batch(family)], gradient=True, progress=False)
    return model, calibration


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_calibration_on_the_gpu_equals_the_cpu(family):
    _, cpu = results(family, "cpu")
    _, gpu = results(family, "cuda")
    for name in cpu.names:
        here, there = gpu.covariance[name].dense(), cpu.covariance[name].dense()
        assert here.device.type == "cpu"
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4 * float(there.abs().max()))
        torch.testing.assert_close(gpu.gradient[name].dense(), cpu.gradient[name].dense(), rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(gpu.sensitivity.per_sample, cpu.sensitivity.per_sample, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("options", [{"covariance": "sketch", "sketch_size": 12}, {"products": "model"}])
def test_sketches_and_resumed_sums_live_on_the_gpu(options, tmp_path):
    model = tiny_model("llama").to("cuda", torch.bfloat16)
    batches = [tiny_batch("llama", seed=seed) for seed in range(3)]
    options = options | {"gradient": True, "progress": False}
    tlora.calibrate(model, batches[:2], checkpoint=tmp_path, **options)
    resumed = tlora.calibrate(model, batches, checkpoint=tmp_path, **options)
    whole = tlora.calibrate(model, batches, **options)
    for name in whole.names:
        torch.testing.assert_close(
            resumed.covariance[name].dense(), whole.covariance[name].dense(), rtol=1e-3, atol=1e-4
        )
    torch.testing.assert_close(resumed.sensitivity.per_sample, whole.sensitivity.per_sample, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["wc", "w", "c", "wc_half", "g", "random"])
def test_subspaces_on_the_gpu_capture_what_those_on_the_cpu_do(kind):
    model, cpu = results("llama", "cpu")
    cuda_model, gpu = results("llama", "cuda")
    here = tlora.task_subspaces(cuda_model, gpu, max_rank=4, kind=kind, progress=False)
    there = tlora.task_subspaces(model, cpu, max_rank=4, kind=kind, progress=False)
    for name in here.names:
        m = model.get_submodule(name).weight.detach() @ cpu.covariance[name].dense()
        energy = [float((m @ s.basis(name, 4).T).square().sum()) for s in (here, there)]
        assert energy[0] == pytest.approx(energy[1], rel=1e-3)


def test_the_walk_runs_on_the_gpu(tmp_path):
    model, calibration = results("llama", "cuda")
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    adapted = tlora.attach(model, subspaces, tlora.allocate(calibration.sensitivity, rank=2, max_rank=8))
    assert all(p.device.type == "cuda" for p in adapted.parameters())
    run = saved_run(adapted)
    assert all(t.device.type == "cpu" for t in run.adapter.values())
    run.save(tmp_path / "adapter")
    tlora.load(tmp_path / "adapter", tiny_model("llama"))
