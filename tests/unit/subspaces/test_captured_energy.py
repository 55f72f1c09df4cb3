"""Gradient capture and captured energy against dense matrices in float64, sample by sample."""

import numpy as np
import pytest

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.subspaces import KINDS, RANKS, prepared
from tlora.models.weights import weight


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_energy_equals_dense_products(family):
    model, calibration, subspaces, _ = prepared(family)
    found = tlora.captured_energy(model, calibration, subspaces, RANKS, progress=False)
    assert found.names == calibration.names
    for row in found.to_frame().itertuples():
        w = weight(model.get_submodule(row.module)).double().numpy()
        m = w @ calibration.covariance[row.module].dense().double().numpy()
        a = subspaces[row.kind].basis(row.module, row.rank).double().numpy()
        energy = np.linalg.norm(m @ a.T) ** 2
        best = (np.linalg.svd(m, compute_uv=False)[: row.rank] ** 2).sum()
        assert row.captured == pytest.approx(energy / best, rel=1e-3)
        assert row.total == pytest.approx(energy / np.linalg.norm(m) ** 2, rel=1e-3)
        expected = row.rank / m.shape[1] * np.linalg.norm(m) ** 2 / best
        assert row.random == pytest.approx(expected, rel=1e-3)
        assert row.captured <= 1
        if row.kind == "wc":
            assert row.captured > 0.9999


def test_energy_over_all_modules_is_the_median_and_quartiles(llama):
    model, calibration, subspaces, _ = llama
    found = tlora.captured_energy(model, calibration, subspaces, RANKS, progress=False)
    table, frame = found.overall(), found.to_frame()
    assert table[["kind", "rank"]].to_numpy().tolist() == [[k, r] for k in KINDS for r in RANKS]
    row = table.query("kind == 'g' and rank == 4").iloc[0]
    shares = frame.query("kind == 'g' and rank == 4")["captured"]
    assert row[["low", "captured", "high"]].tolist() == pytest.approx(np.quantile(shares, [0.25, 0.5, 0.75]).tolist())


def test_random_subspaces_hold_the_energy_that_chance_gives_them(llama):
    model, calibration, _, _ = llama
    draws = {
        str(seed): tlora.task_subspaces(model, calibration, max_rank=4, kind="random", seed=seed, progress=False)
        for seed in range(60)
    }
    frame = tlora.captured_energy(model, calibration, draws, [4], progress=False).to_frame()
    by_module = frame.groupby("module")[["captured", "random"]].agg(["mean", "std"])
    error = 4 * by_module["captured", "std"] / 60**0.5
    assert (abs(by_module["captured", "mean"] - by_module["random", "mean"]) < error).all()


def test_energy_on_another_model_or_of_another_models_subspaces_is_refused(llama):
    model, calibration, subspaces, _ = llama
    other = tiny_model("llama", seed=1)
    with pytest.raises(ValueError, match="another model"):
        tlora.captured_energy(other, calibration, subspaces, [2], progress=False)
    foreign = tlora.calibrate(other, [tiny_batch(other)], progress=False)
    foreign = {"wc": tlora.task_subspaces(other, foreign, max_rank=4, progress=False)}
    with pytest.raises(ValueError, match="another model"):
        tlora.captured_energy(model, calibration, foreign, [2], progress=False)
