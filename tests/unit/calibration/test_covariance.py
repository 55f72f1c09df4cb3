"""Covariances dense and sketched against NumPy; a sketch answers like the whole, and says what it misses."""

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tlora.calibration.covariance import Covariance, CovarianceSum
from tlora.models.weights import weight
from tlora.numerics.sketching import sketching_matrix

D, SIZE = 120, 40


def tokens(decay: float, seed: int = 0, n: int = 4) -> list[torch.Tensor]:
    """Samples whose principal components fall as a power of their number, along random directions."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(D, D)))[0]
    scale = np.arange(1, D + 1.0) ** -decay
    parts = (rng.normal(size=(60 + i, D)) * scale @ directions + rng.normal(size=D) for i in range(n))
    return [torch.tensor(part, dtype=torch.float32) for part in parts]


def definition(samples: list[torch.Tensor]) -> np.ndarray:
    centered = [x.double().numpy() - x.double().numpy().mean(0) for x in samples]
    return sum(x.T @ x for x in centered) / len(samples)


def kept(samples: list[torch.Tensor], sketch: bool) -> Covariance:
    omega = sketching_matrix(D, SIZE) if sketch else None
    total = CovarianceSum(D, omega=omega)
    for half in (samples[: len(samples) // 2], samples[len(samples) // 2 :]):
        total.update(half)
    return total.finish(len(samples), omega)


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
def test_a_sketch_is_the_nystrom_approximation_and_knows_its_error(decay):
    samples = tokens(decay)
    c, omega = definition(samples), sketching_matrix(D, SIZE).double().numpy()
    y = c @ omega
    expected = y @ np.linalg.pinv(omega.T @ y) @ y.T
    found = kept(samples, sketch=True)
    assert found.total.shape == (D, SIZE)
    assert np.linalg.norm(found.dense().numpy() - expected) < 1e-3 * np.linalg.norm(expected)
    assert found.trace == pytest.approx(np.trace(c), rel=1e-5)
    assert found.error == pytest.approx(np.linalg.norm(c - expected, "nuc") / np.trace(c), abs=1e-3)
    assert found.rank_bound == sum(len(x) - 1 for x in samples)
    values = np.linalg.eigvalsh(c)[::-1]
    assert (found.eigenvalues()[:8].numpy() <= values[:8] * (1 + 1e-4)).all()
    x = torch.randn(D, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found @ x, found.dense() @ x, rtol=1e-4, atol=1e-4)


def test_a_sketch_of_nothing():
    found = kept([torch.ones(1, D)] * 2, sketch=True)
    assert (found.trace, found.error, found.rank_bound) == (0, 0, 0)
    assert not (found @ torch.ones(D, 1)).any()


@pytest.mark.parametrize("sketch", [False, True])
def test_powers_are_those_of_the_shrunk_matrix(sketch):
    found = kept(tokens(1.5), sketch)
    c = found.dense().double().numpy()
    shrunk = 0.9 * c + 0.1 * found.trace / D * np.eye(D)
    x = torch.randn(D, 3, generator=torch.Generator().manual_seed(0))
    for product, exponent in zip(found.powers(0.1), (0.5, -0.5), strict=True):
        expected = fractional_matrix_power(shrunk, exponent) @ x.double().numpy()
        np.testing.assert_allclose(product(x), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def calibrated(model, **options):
    lengths = (30, 25, 28, 40)
    return tlora.calibrate(model, [tiny_batch(model, lengths=lengths)], progress=False, **options)


@pytest.mark.parametrize("kind", ["wc", "c", "wc_half", "w"])
def test_subspaces_from_a_sketch(kind):
    model = tiny_model("llama", hidden_size=64, intermediate_size=96)
    dense, sketch = calibrated(model), calibrated(model, covariance="sketch", sketch_size=24)
    assert all(c.total.shape[1] == 24 for c in sketch.covariances.values())
    assert 0 < sketch.to_frame()["error"].max() < 0.6  # random weights: flat spectra
    assert not dense.to_frame()["error"].any()
    found = {
        name: tlora.task_subspaces(model, each, max_rank=8, kind=kind, progress=False)
        for name, each in (("dense", dense), ("sketch", sketch))
    }
    shares = []
    for name in dense.names:
        product = weight(model.get_submodule(name)) @ dense.covariance[name].dense()
        energy = {label: (product @ each.bases[name].T).square().sum() for label, each in found.items()}
        shares.append(float(energy["sketch"] / energy["dense"]))
    assert np.median(shares) > 0.9


def test_modules_of_one_width_share_what_they_are_sketched_with():
    model = tiny_model("llama")
    found = calibrated(model, covariance="sketch", sketch_size=12)
    assert set(found.sketching) == {"32.12", "48.12"}
    assert {id(c.omega) for c in found.covariances.values()} == {id(m) for m in found.sketching.values()}


def test_narrow_inputs_are_kept_whole():
    found = calibrated(tiny_model("llama"), covariance="sketch", sketch_size=20)
    widths = {c.total.shape for c in found.covariances.values()}
    assert widths == {(32, 32), (48, 20)}


@pytest.mark.parametrize(("option", "value"), [("covariance", "sparse"), ("sketch_size", 0), ("tokens", "some")])
def test_options_are_checked(option, value):
    with pytest.raises(ValueError, match=option):
        calibrated(tiny_model("llama"), **{option: value})
