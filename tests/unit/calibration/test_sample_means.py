"""The second moment of what modules read, against its definition from captured inputs in float64."""

import numpy as np
import pytest
import torch

import tlora
from tests.helpers.calibrations import SKETCH, batches
from tests.helpers.models import singles, tiny_model
from tests.helpers.results import same
from tlora.calibration.covariance import CovarianceSum
from tlora.numerics.sketching import sketching_matrix

D, SIZE = 24, 10


def definition(samples):
    """Tokens are summed, samples averaged; nothing is subtracted."""
    return sum(x.double().numpy().T @ x.double().numpy() for x in samples) / len(samples)


def tokens(n, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 6, n)  # without a token, or with one, too
    parts = (rng.normal(size=(k, D)) + 3 * rng.normal(size=D) for k in lengths)
    return [torch.tensor(part, dtype=torch.float32) for part in parts]


def summed(samples, sketch):
    omega = sketching_matrix(D, SIZE) if sketch else None
    total = CovarianceSum(D, omega=omega)
    for start in range(0, len(samples), 4):
        total.update(samples[start : start + 4])
    return total.finish(len(samples), omega)


@pytest.mark.parametrize("count", [5, 90], ids=["rows", "folded"])
@pytest.mark.parametrize("sketch", [False, True])
def test_the_second_moment_is_that_of_the_inputs_as_they_are(sketch, count):
    samples = tokens(count)
    covariance, m = summed(samples, sketch), definition(samples)
    found = covariance.second_moment()
    expected = m @ sketching_matrix(D, SIZE).double().numpy() if sketch else m
    np.testing.assert_allclose(found.total / count, expected, rtol=1e-4, atol=1e-4 * np.abs(m).max())
    assert found.trace == pytest.approx(np.trace(m), rel=1e-5)
    assert found.rank_bound == sum(map(len, samples))
    assert covariance.trace < 0.9 * found.trace, "the covariance leaves the means out"
    assert (covariance.means.folded is None) == (count == 5)
    assert len(covariance.means.rows) <= (SIZE if sketch else D)


@pytest.mark.parametrize("sketch", [False, True])
@pytest.mark.parametrize("counts", [(3, 4), (4, 60), (60, 70)])
def test_means_of_both_are_merged(sketch, counts):
    parts = [tokens(n, seed) for seed, n in enumerate(counts)]
    one, other = (summed(part, sketch) for part in parts)
    whole = summed(parts[0] + parts[1], sketch).second_moment()
    both = one.merge(other).second_moment()
    torch.testing.assert_close(both.total, whole.total, rtol=1e-4, atol=1e-3)
    assert both.trace == pytest.approx(whole.trace, rel=1e-5)
    assert both.rank_bound == whole.rank_bound


def captured(model, given, name):
    """What a module reads of each sample alone."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for batch in given:
            for single in singles(batch):
                model(**single)
    handle.remove()
    return seen


@pytest.mark.parametrize("padding", ["left", "right"])
def test_of_a_model_from_its_padded_batches(padding):
    model = tiny_model("llama")
    given = batches(model, 2, padding=padding)
    found = tlora.calibrate(model, given, progress=False)
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        m = definition(captured(model, given, name))
        np.testing.assert_allclose(
            found.covariance[name].second_moment().dense(), m, rtol=1e-3, atol=1e-4 * np.abs(m).max()
        )
    rows = {name: c.means.rows.shape for name, c in found.covariances.items()}
    assert list(rows.values()) == [(6, 32), (6, 32), (6, 32), (6, 48)] * 2, "once for each distinct input"


@pytest.mark.parametrize("options", [{}, SKETCH], ids=["dense", "sketch"])
def test_many_means_are_saved_and_loaded(options, tmp_path):
    model = tiny_model("llama")
    found = tlora.calibrate(model, batches(model, 18), progress=False, **options)
    assert all(c.means.folded is not None for c in found.covariances.values())
    assert same(tlora.Calibration.load(found.save(tmp_path)), found)
