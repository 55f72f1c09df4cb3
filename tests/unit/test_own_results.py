"""Results in the hands of a notebook: tables that were sorted, tensors that were normalised, numbers of NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tlora
import viz
from tests import results
from tests.adapted import adapted_model, token_rows
from tests.helpers import tiny_batch, tiny_model
from tlora.training.callbacks import ModuleRecorder

QUIET: dict[str, Any] = {"max_steps": 3, "batch_size": 4, "progress": False}


def recorded() -> tlora.TrainingRun:
    return tlora.train(adapted_model(), token_rows(8), callbacks=ModuleRecorder(every=1), **QUIET)


IN_PLACE = pytest.mark.filterwarnings("ignore:The inplace keyword")  # which pandas goes on having for a while


@IN_PLACE
@pytest.mark.parametrize("change", ["sorted", "without failures"])
def test_a_comparison_that_was_changed_in_place_is_saved_as_it_is(change: str, tmp_path: Path) -> None:
    found = results.comparison()
    if change == "sorted":
        found.runs.sort_values("value", ascending=False, inplace=True)
    else:
        found.runs.drop(found.runs[found.runs["status"] == "failed"].index, inplace=True)
    kept = found.summary().set_index("method")
    found.save(tmp_path)
    again = tlora.Comparison.load(tmp_path).summary().set_index("method")
    assert again.loc[kept.index].equals(kept)


@IN_PLACE
@pytest.mark.parametrize("column", ["update_norm", "module"])
def test_a_run_whose_table_was_sorted_is_read_again_with_each_module_in_its_row(column: str, tmp_path: Path) -> None:
    run = recorded()
    run.module_history.sort_values(column, ascending=False, inplace=True)
    run.module_history["log"] = np.log1p(run.module_history["update_norm"])
    kept = run.module_history.set_index(["module", "step"]).sort_index()
    run.save(tmp_path / "run")
    again = tlora.TrainingRun.load(tmp_path / "run").module_history.set_index(["module", "step"]).sort_index()
    assert again.equals(kept.drop(columns="log"))


def test_a_run_without_numbers_of_its_rows_is_read_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recorded()
    pack = tlora.TrainingRun._pack

    def earlier(self: tlora.TrainingRun) -> Any:
        tensors, values = pack(self)
        return {name: tensor for name, tensor in tensors.items() if name != "module_rows"}, values

    monkeypatch.setattr(tlora.TrainingRun, "_pack", earlier)
    run.save(tmp_path / "run")
    assert tlora.TrainingRun.load(tmp_path / "run").module_history.equals(run.module_history)


@pytest.mark.parametrize(("table", "column"), [("history", "step"), ("module_history", "update_norm")])
def test_a_run_that_could_not_be_read_again_is_not_saved(table: str, column: str, tmp_path: Path) -> None:
    run = recorded()
    del getattr(run, table)[column]
    with pytest.raises(ValueError, match=rf"no column '{column}' any more: change a copy"):
        run.save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_beside_an_adapter_are_not_removed_with_it(tmp_path: Path) -> None:
    run = tlora.train(adapted_model(), token_rows(8), **QUIET)
    run.save(tmp_path)
    tlora.train(adapted_model(), token_rows(8), output_dir=tmp_path, save_steps=2, **QUIET)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="also holds checkpoint-2, which would be lost"):
        run.save(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("options", [{}, {"covariance": "sketch", "sketch_size": 16}])
def test_what_is_handed_out_is_no_part_of_the_result(options: dict[str, Any]) -> None:
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch(model, lengths=[9])], progress=False, **options)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=4, progress=False)
    name = calibration.names[0]
    covariance = calibration.covariance[name]
    ask = (covariance.eigenvalues, covariance.dense, lambda: subspaces.basis(name, 4))
    trace, before = covariance.trace, [answer().clone() for answer in ask]
    for handed in (*(answer() for answer in ask), covariance.eigenvalues(3), subspaces.basis(name, 2)):
        handed.mul_(100)
    assert covariance.trace == trace
    assert all(torch.equal(answer(), values) for answer, values in zip(ask, before, strict=True))
    subspaces.layers.clear()
    assert len(calibration.to_frame()) == len(calibration.names)


def test_pinned_ranks_of_an_explorer_are_its_own() -> None:
    sensitivity = results.sensitivity()
    pinned = {sensitivity.names[0]: 2}
    explorer = viz.AllocationExplorer(None, sensitivity, rank=4, pinned=pinned)
    explorer.knobs["pinned"].clear()
    assert explorer.state.pinned == pinned


def test_a_calibration_of_ones_own_is_no_checkpoint(tmp_path: Path) -> None:
    """Saved by hand under names that begin as those of checkpoints do."""
    model = tiny_model("llama")
    samples = [tiny_batch(model, lengths=[6], seed=seed) for seed in range(5)]
    for count in (2, 3):
        tlora.calibrate(model, samples[:count], progress=False).save(tmp_path / f"samples-{count}")
    tlora.calibrate(model, samples, checkpoint=tmp_path, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples-000000005", "samples-2", "samples-3"]
    assert len(tlora.Calibration.load(tmp_path / "samples-000000005").sample_fingerprints) == 5


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    model = tiny_model("llama")
    batches, one = [tiny_batch(model, seed=seed) for seed in range(2)], np.int64(1)
    calibration = tlora.calibrate(model, batches, covariance="sketch", sketch_size=np.int64(8), progress=False)
    made = {
        "subspaces": tlora.task_subspaces(model, calibration, max_rank=np.int64(4), seed=one, progress=False),
        "ranking": tlora.ranking_stability(calibration.sensitivity, [one], seed=one),
        "plan": tlora.plan_stability(
            calibration.sensitivity,
            tlora.allocate(calibration.sensitivity, np.int64(2)),
            resamples=np.int64(20),
            seed=one,
        ),
    }
    for name, result in made.items():
        result.save(tmp_path / name)
        assert type(result).load(tmp_path / name).meta == result.meta
    plain = tlora.task_subspaces(model, calibration, max_rank=4, seed=1, progress=False)
    assert all(torch.equal(plain.bases[name], made["subspaces"].bases[name]) for name in plain.names)
    run = tlora.train(adapted_model(), token_rows(8), seed=np.int64(3), **QUIET | {"batch_size": np.int64(4)})
    assert (run.steps, run.meta.seed, run.meta.recipe["batch_size"]) == (3, 3, 4)
    assert ModuleRecorder(every=np.int64(5)).every == 5


def test_a_single_test_sample_says_nothing_of_others() -> None:
    records = [
        results.record(method, rate, seed, split, [value])
        for method, value in (("lora", 0.0), ("tlora", 1.0))
        for split, rates, seeds in (("validation", (1e-3, 2e-3), (0,)), ("test", (2e-3,), (0, 1)))
        for rate in rates
        for seed in seeds
    ]
    row = tlora.Comparison.of(records).summary().set_index("method").loc["tlora"]
    assert row["difference"] == 1.0
    assert np.isnan(row["difference_low"])
    assert np.isnan(row["difference_high"])


def test_a_notebook_without_gradients_trains_all_the_same() -> None:
    usual = tlora.train(adapted_model(), token_rows(8), **QUIET).history["loss"]
    for off in (torch.no_grad(), torch.inference_mode()):
        model = adapted_model()
        with off:
            run = tlora.train(model, token_rows(8), **QUIET)
        assert run.history["loss"].equals(usual)


def test_an_adapter_that_was_taken_off_is_not_blamed_on_what_is_left() -> None:
    model = adapted_model()
    tlora.detach(model)
    with pytest.raises(ValueError, match="the adapter was taken off this model: attach one to its base, or load it"):
        tlora.train(model, token_rows(8), **QUIET)


WRONG: dict[str, Any] = {
    "expected a Sensitivity, got a Calibration: pass calibrate": [
        lambda r: tlora.ranking_stability(r.calibration()),
        lambda r: tlora.plan_stability(r.calibration(), r.allocation()),
        lambda r: tlora.allocate(r.calibration(), 4),
    ],
    "expected an Allocation, got a Sensitivity: pass allocate": [
        lambda r: r.allocation().compare(r.sensitivity()),
        lambda r: tlora.plan_stability(r.sensitivity(), r.sensitivity()),
    ],
    "expected a Subspaces, got a Calibration: pass task_subspaces": [
        lambda r: tlora.align_layers(r.calibration(), "q_proj", 4),
        lambda r: tlora.align(r.subspaces(), r.calibration(), 4),
    ],
    "expected a Calibration, got a Sensitivity": [
        lambda r: tlora.captured_energy(r.base(), r.sensitivity(), {"wc": r.subspaces()}, [2]),
    ],
    "model is a str: pass a model, such as tlora.load_model": [
        lambda r: tlora.task_subspaces("smollm2", r.calibration()),
        lambda r: tlora.attach("smollm2", r.subspaces(), r.allocation()),
        lambda r: tlora.attach("smollm2", r.subspaces(), r.allocation(), replace=True),
    ],
    "model is a NoneType": [lambda r: tlora.detach(None)],
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_passed_in_the_wrong_place_is_named(message: str) -> None:
    for call in WRONG[message]:
        with pytest.raises(TypeError, match=message):
            call(results)
