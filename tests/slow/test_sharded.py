"""A base that FSDP2 has spread over two and four processes: the numbers of one process, one block at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.multiprocessing.reductions import StorageWeakRef

import tlora
from tests.helpers.adapted import token_rows
from tests.helpers.launched import in_processes
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.pages import DOCS, blocks
from tests.helpers.results import same
from tests.helpers.trainings import HeldOut, held_out

pytestmark = pytest.mark.slow

BATCHES = 9  # which neither two nor four processes share evenly

SCRIPT = """
import sys
from tests.slow.test_sharded import in_this_process
in_this_process(sys.argv[1])
"""


def llama() -> Any:
    return tiny_model("llama", num_hidden_layers=12)


def sharded(model: Any) -> Any:
    for block in model.model.layers:
        fully_shard(block)
    return fully_shard(model)


def prepared(model: Any, **options: Any) -> tuple[tlora.Calibration, tlora.Allocation, tlora.Subspaces]:
    lengths = [(7, 4, 9), (5, 5), (3, 8, 6, 4)]  # padded, not padded: what is checked differs from process to process
    batches = [tiny_batch(model, lengths[n % 3], seed=n) for n in range(BATCHES)]
    calibration = tlora.calibrate(model, batches, gradient=True, fisher=True, progress=False, **options)
    allocation = tlora.allocate(calibration.sensitivity, rank=4)
    return calibration, allocation, tlora.task_subspaces(model, calibration, max_rank=allocation, progress=False)


def trained(model: Any, allocation: Any, subspaces: Any, batch_size: int, **options: Any) -> Any:
    logits(model)  # after which the outermost module holds its weights whole
    adapted = tlora.attach(model, subspaces, allocation, rows="variance")
    arguments = {"learning_rate": 1e-2, "batch_size": batch_size, "max_steps": 10, "logging_steps": 1}
    run = tlora.train(adapted, token_rows(40), progress=False, evaluation_limit=4, **arguments, **options)
    return adapted, run


def logits(model: Any) -> torch.Tensor:
    batch = tiny_batch("llama", seed=99)
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def save(folder: Path, calibration: tlora.Calibration, subspaces: tlora.Subspaces) -> None:
    calibration.save(folder / "calibration")
    subspaces.save(folder / "subspaces")


def results(folder: Path) -> tuple[tlora.Calibration, tlora.Subspaces]:
    return tlora.Calibration.load(folder / "calibration"), tlora.Subspaces.load(folder / "subspaces")


class Gathered:
    """Bytes of whole weights in this process, and the most there were; of blocks and by `full_tensor` alike."""

    def __init__(self) -> None:
        self.most = 0
        self._blocks: dict[int, int] = {}
        self._tensors: list[tuple[StorageWeakRef, int]] = []

    def _look(self) -> None:
        self._tensors = [(kept, size) for kept, size in self._tensors if not kept.expired()]
        self.most = max(self.most, sum(self._blocks.values()) + sum(size for _, size in self._tensors))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

        unsharded, again, full = FSDPParam.to_unsharded, FSDPParam.to_sharded, DTensor.full_tensor

        def to_unsharded(parameter: Any) -> None:
            unsharded(parameter)
            self._blocks[id(parameter)] = parameter.unsharded_param.nbytes
            self._look()

        def to_sharded(parameter: Any) -> None:
            again(parameter)
            self._blocks.pop(id(parameter), None)

        def full_tensor(tensor: Any) -> torch.Tensor:
            found = full(tensor)
            self._tensors.append((StorageWeakRef(found.untyped_storage()), found.nbytes))
            self._look()
            return found

        with (
            patch.object(FSDPParam, "to_unsharded", to_unsharded),
            patch.object(FSDPParam, "to_sharded", to_sharded),
            patch.object(DTensor, "full_tensor", full_tensor),
        ):
            yield


class Samples(HeldOut):
    def calibration(self, samples: int, batch_size: int = 1) -> list[dict[str, torch.Tensor]]:
        return [tiny_batch("llama", seed=seed) for seed in range(samples)]


def follow_the_guide(folder: str) -> None:
    """Run the code of the page as it stands, which connects the processes, too."""
    page = (DOCS / "howto" / "several_gpus.md").read_text()
    (code,) = (text for language, text in blocks(page) if language == "{code-block} python")
    with contextlib.chdir(folder):
        exec(code, {"model": tiny_model("llama"), "task": held_out(Samples)})


def in_this_process(folder: str) -> None:
    """The pipeline twice, what a tensor parallel layer is told, and what was gathered."""
    from accelerate import PartialState

    torch.set_num_threads(1)
    follow_the_guide(folder)
    state = PartialState(cpu=True)
    place, facts = Path(folder, str(state.process_index)), {}
    gathered = Gathered()
    with gathered.watched():
        model = sharded(llama())
        calibration, allocation, subspaces = prepared(model)
        facts["most of calibration and subspaces"] = gathered.most
        adapted, run = trained(model, allocation, subspaces, 4 // state.num_processes, output_dir=f"{folder}/steps")
        facts["most"] = gathered.most
    save(place / "results", calibration, subspaces)
    torch.save(logits(adapted), place / "logits.pt")
    if state.is_main_process:
        run.save(place / "adapter")
    calibration, _, subspaces = prepared(sharded(llama()), checkpoint=f"{folder}/calibrating", checkpoint_every=0)
    save(place / "again", calibration, subspaces)
    with gathered.watched():
        calibration, _, subspaces = prepared(sharded(llama()), gradient_checkpointing=True)
        facts["most, checkpointed"] = gathered.most
    save(place / "checkpointed", calibration, subspaces)
    split = parallelize_module(
        nn.Linear(4, 4), init_device_mesh("cpu", (state.num_processes,), mesh_dim_names=("tp",)), ColwiseParallel()
    )
    model = llama()
    model.model.layers[3].self_attn.o_proj.weight = nn.Parameter(split.weight)
    try:
        tlora.calibrate(model, [tiny_batch(model)] * 4, progress=False)
    except ValueError as error:
        facts["tensor parallel"] = str(error)
    try:
        tlora.merge(adapted)
    except ValueError as error:
        facts["merge"] = str(error)
    (place / "facts.json").write_text(json.dumps(facts))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> tuple[tlora.Calibration, tlora.Subspaces, tlora.TrainingRun, torch.Tensor]:
    model = llama()
    calibration, allocation, subspaces = prepared(model)
    adapted, run = trained(model, allocation, subspaces, 4)
    return calibration, subspaces, run, logits(adapted)


@pytest.fixture(scope="module", params=[2, 4])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What each process has left."""
    folder = tmp_path_factory.mktemp(f"{request.param}-processes")
    (folder / "script.py").write_text(SCRIPT)
    in_processes(request.param, folder / "script.py", folder)
    return [folder / str(rank) for rank in range(request.param)]


def facts(folders: list[Path]) -> list[dict[str, Any]]:
    return [json.loads((folder / "facts.json").read_text()) for folder in folders]


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_statistics_are_those_of_one_process(folders: list[Path], alone: Any) -> None:
    found, expected = results(folders[0] / "results")[0], alone[0]
    assert found.names == expected.names
    assert found.shared == expected.shared
    assert found.sample_fingerprints.equal(expected.sample_fingerprints)
    close(found.sensitivity.per_sample, expected.sensitivity.per_sample)
    for name, covariance in expected.covariances.items():
        close(found.covariances[name].total, covariance.total)
        moments = (each.covariance[name].second_moment().total for each in (found, expected))
        close(*moments)
    for name in expected.names:
        close(found.gradient[name].dense(), expected.gradient[name].dense())


def test_subspaces_are_those_of_one_process(folders: list[Path], alone: Any) -> None:
    found, expected = results(folders[0] / "results")[1], alone[1]
    assert list(found.bases) == list(expected.bases)
    for name, rows in expected.bases.items():
        apart = rows - rows @ found.bases[name].T @ found.bases[name]
        assert apart.norm(dim=1).max() < 1e-3, name
        close(found.singular_values[name], expected.singular_values[name], 1e-3)


def test_all_processes_and_all_runs_have_the_same_bytes(folders: list[Path]) -> None:
    runs = ("results", "again", "checkpointed")
    first, *others = [results(folder / run) for folder in folders for run in runs]
    assert all(same(other, first) for other in others)


def test_training_is_that_of_one_process(folders: list[Path], alone: Any) -> None:
    run, expected = tlora.TrainingRun.load(folders[0] / "adapter"), alone[2]
    assert run.ranks == expected.ranks
    assert len(run.history["loss"].dropna()) == 10
    for column in ("loss", "grad_norm"):
        numbers = [torch.tensor(each.history[column].dropna().to_numpy()) for each in (run, expected)]
        torch.testing.assert_close(*numbers, rtol=1e-4, atol=0)
    updates = [torch.tensor(each.module_history["update_norm"].to_numpy()) for each in (run, expected)]
    torch.testing.assert_close(*updates, rtol=1e-3, atol=1e-5)
    for name, tensor in expected.adapter.items():
        torch.testing.assert_close(run.adapter[name], tensor, rtol=1e-3, atol=1e-4)
    assert max(tensor.abs().max() for name, tensor in run.adapter.items() if "lora_B" in name) > 1e-3


def test_peft_reads_the_adapter_on_a_base_that_is_whole(folders: list[Path], alone: Any) -> None:
    """Each process has computed the logits of the sharded model; the adapter is saved once."""
    assert [folder.name for folder in folders if (folder / "adapter").exists()] == ["0"]
    found = logits(PeftModel.from_pretrained(llama(), folders[0] / "adapter"))
    for folder in folders:
        torch.testing.assert_close(torch.load(folder / "logits.pt"), found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, alone[3], rtol=1e-2, atol=1e-2)


def test_one_block_is_gathered_at_a_time(folders: list[Path]) -> None:
    """Beside what FSDP2 keeps at the root: embeddings, head and the last norm."""
    model = llama()
    block = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    root = sum(parameter.nbytes for parameter in model.parameters()) - 12 * block
    for fact in facts(folders):
        assert block < fact["most of calibration and subspaces"] <= root + block
        assert block < fact["most"] <= root + block
        assert block < fact["most, checkpointed"] <= root + block


def test_a_sharded_base_is_not_merged_into(folders: list[Path]) -> None:
    assert {fact["merge"] for fact in facts(folders)} == {
        "the base is sharded over processes: keep the adapter separate"
    }


def test_the_guide_saves_an_adapter(folders: list[Path]) -> None:
    assert len(tlora.TrainingRun.load(folders[0].parent / "adapter").history) == 2


def test_tensor_parallel_layers_are_refused_with_the_way_out(folders: list[Path]) -> None:
    for fact in facts(folders):
        assert (
            "layer 'model.layers.3.self_attn.o_proj' (Linear) is sharded over the mesh dimension 'tp'"
            in fact["tensor parallel"]
        )
        assert "use ZeRO-2, or FSDP2" in fact["tensor parallel"]
