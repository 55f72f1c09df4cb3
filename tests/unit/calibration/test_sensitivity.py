"""Scores: intervals against SciPy, concentration and groups against their definitions."""

import numpy as np
import pytest
import scipy.stats
import torch

from tests.helpers.sensitivities import sensitivity
from tlora.calibration.sensitivity import Sensitivity
from tlora.numerics.statistics import bootstrap_means, gini, subsample_means


@pytest.fixture
def source():
    generator = np.random.default_rng(1)
    return sensitivity(np.exp(generator.normal(size=7)) * generator.gamma(3, size=(24, 7)), (8, 6))


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_intervals_equal_scipys_percentile_bootstrap(source, confidence):
    mine = source.intervals(confidence=confidence, resamples=500, seed=3)
    theirs = scipy.stats.bootstrap(
        (source.per_sample.double().numpy(),),
        np.mean,
        axis=0,
        n_resamples=500,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    np.testing.assert_allclose(mine["low"], theirs.low, rtol=1e-12)
    np.testing.assert_allclose(mine["high"], theirs.high, rtol=1e-12)
    np.testing.assert_allclose(mine["score"], list(source.scores.values()))
    assert list(mine.columns) == ["module", "layer", "projection", "score", "low", "high"]


def test_a_resample_is_a_mean_of_whole_rows():
    samples = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    means = bootstrap_means(samples, 50, seed=0, draws=2)
    np.testing.assert_allclose(means[:, 1], 10 * means[:, 0])
    assert set(means[:, 0]) <= {1.0, 1.5, 2.0, 2.5, 3.0, 4.0}
    assert {1.0, 4.0} <= set(means[:, 0])  # with replacement


def test_a_subsample_has_different_rows():
    samples = np.array([[1.0], [2.0], [4.0]])
    assert set(subsample_means(samples, 50, seed=0, draws=2)[:, 0]) == {1.5, 2.5, 3.0}
    np.testing.assert_allclose(subsample_means(samples, 5, seed=0, draws=3), 7 / 3)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 10.0], [5.0, 5.0, 5.0], [0.0, 0.0, 7.0], [3.0]])
def test_gini_is_half_the_relative_mean_difference(values):
    differences = [abs(a - b) for a in values for b in values]
    expected = np.mean(differences) / (2 * np.mean(values))
    assert gini(np.array(values)) == pytest.approx(expected, abs=1e-12)


def test_gini_of_a_sensitivity(source):
    assert source.gini == gini(np.array(list(source.scores.values())))
    assert sensitivity([2.0] * 5).gini == pytest.approx(0)
    assert sensitivity([0.0, 0.0, 0.0, 1.0]).gini == pytest.approx(0.75)


def test_other_scores_count_entries_and_parameters():
    """Of (d_out, d_in) = (8, 64) and (2, 16): the mean prefers neither, the sum the larger, 16 times."""
    source = sensitivity([[1.0, 1.0], [3.0, 1.0]], [(8, 64), (2, 16)])
    assert source.rescale("mean") is source
    found = source.rescale("sum")
    np.testing.assert_allclose(found.per_sample, [[512, 32], [1536, 32]])
    assert list(found.scores.values()) == [1024, 32]
    np.testing.assert_allclose(list(source.rescale("per_parameter").scores.values()), [1024 / 72, 32 / 18], rtol=1e-6)
    assert found.meta.recipe["score"] == "sum"
    assert found.rescale("sum") is found
    with pytest.raises(ValueError, match="sum"):
        found.rescale("per_parameter")
    with pytest.raises(ValueError, match="score"):
        source.rescale("energy")


def test_by_layer_and_by_projection():
    source = sensitivity([1.0, 2.0, 3.0, 4.0, 5.0])
    layers, projections = source.by_layer(), source.by_projection()
    assert layers.to_dict("list") == {
        "layer": [0, 1],
        "modules": [3, 2],
        "score": [2.0, 4.5],
        "share": [pytest.approx(6 / 15), pytest.approx(9 / 15)],
    }
    assert projections["projection"].tolist() == ["q_proj", "k_proj", "down_proj"]
    assert projections["score"].tolist() == [2.5, 3.5, 3.0]
    assert projections["share"].sum() == pytest.approx(1)


def test_the_table_and_the_saved_file(source, tmp_path):
    frame = source.to_frame()
    assert list(frame.columns) == list(Sensitivity.columns)
    np.testing.assert_allclose(frame["deviation"], source.per_sample.double().numpy().std(0))
    np.testing.assert_allclose(frame["score"], source.per_sample.double().numpy().mean(0))
    assert frame["share"].sum() == pytest.approx(1)
    loaded = Sensitivity.load(source.save(tmp_path / "sensitivity"))
    assert torch.equal(loaded.per_sample, source.per_sample)
    assert (loaded.shapes, loaded.layers, loaded.meta) == (source.shapes, source.layers, source.meta)


def test_scores_that_are_all_zero_have_tables():
    source = sensitivity([0.0, 0.0])
    for table in (source.to_frame(), source.by_layer(), source.by_projection()):
        assert table["share"].isna().all()
        assert (table["score"] == 0).all()
    assert np.isnan(source.gini)


@pytest.mark.parametrize(
    ("scores", "arguments", "words"),
    [
        ([[1.0, 2.0]], {}, "1 sample"),
        ([[1.0, 2.0], [2.0, 1.0]], {"confidence": 95}, "confidence"),
        ([[1.0, 2.0], [2.0, 1.0]], {"resamples": 0}, "resamples"),
        ([[1.0, 2.0], [2.0, 1.0]], {"seed": -1}, "seed=-1"),
    ],
)
def test_what_cannot_be_resampled_is_refused(scores, arguments, words):
    with pytest.raises(ValueError, match=words):
        sensitivity(scores).intervals(**arguments)
