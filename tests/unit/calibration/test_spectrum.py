"""Spectra against constructed ones, NumPy's eigenvalues and the definitions written naively."""

import numpy as np
import pytest
import torch

from tests.helpers.spectra import covariance, naive_ranks, single_spectrum, spectrum_of, truncated
from tlora.calibration.covariance import DenseCovariance


def figures(spectrum):
    """What the table says of the only module."""
    return spectrum.to_frame().iloc[0]


def test_constructed_spectrum():
    """Shares 0.5, 0.25, 0.15, 0.06, 0.04."""
    row = figures(single_spectrum([50.0, 25, 15, 6, 4]))
    assert row.effective_rank == pytest.approx(1 / (0.25 + 0.0625 + 0.0225 + 0.0036 + 0.0016))
    assert (row.rank_90, row.rank_99) == (3, 5)
    assert row.covered == pytest.approx(1)


def test_two_equal_halves_by_the_entropy():
    """Half the trace in one direction, half spread over n: exp(H) = 2 sqrt(n), in closed form."""
    assert figures(single_spectrum([16.0] + [1.0] * 16)).entropy_rank == pytest.approx(2 * 4)


def test_eigenvalues_equal_numpys_and_the_figures_their_definitions():
    covariances = {"a.q": covariance(0), "a.o": covariance(1, d=9, decay=2.0)}
    found = spectrum_of(covariances)
    frame = found.to_frame().set_index("module")
    for name, c in covariances.items():
        expected = np.linalg.eigvalsh(c.dense().double().numpy())[::-1]
        np.testing.assert_allclose(found.eigenvalues[name], expected, rtol=1e-5)
        assert found.eigenvalues[name].dtype == torch.float32
        assert (frame.effective_rank[name], frame.entropy_rank[name]) == pytest.approx(naive_ranks(expected))
        assert frame.trace[name] == pytest.approx(np.trace(c.dense()))
        assert frame.numerical_rank[name] == np.linalg.matrix_rank(c.dense())
        assert frame.rank_90[name] == 1 + next(
            i for i in range(len(expected)) if expected[: i + 1].sum() >= 0.9 * expected.sum()
        )


def test_a_covariance_of_few_tokens_is_singular_and_says_so():
    c = covariance(3, d=12, tokens=5, decay=0.0)
    found = spectrum_of({"a": c})
    row = figures(found)
    assert row.numerical_rank == 5
    assert row.dimension == 5
    assert len(found.eigenvalues["a"]) == 5  # the other seven are zero but for rounding


def test_a_truncated_spectrum_keeps_its_shares_through_the_trace():
    whole = spectrum_of({"a": covariance(5, d=40, tokens=200)})
    part = truncated(whole, 6)
    expected = whole.curves().iloc[:6]
    np.testing.assert_allclose(part.curves().cumulative, expected.cumulative, rtol=1e-6)
    row, known = figures(part), figures(whole)
    assert row.rank_90 == known.rank_90
    assert row.top_share == pytest.approx(known.top_share)
    assert row.covered == pytest.approx(float(expected.cumulative.iloc[-1]))
    assert np.isnan(row.rank_99)


def test_the_rest_of_a_truncated_spectrum_bounds_the_effective_ranks_from_above():
    values = np.linalg.eigvalsh(covariance(5, d=40, tokens=200).dense().double().numpy())[::-1]
    for k in (1, 4, 10, 30):
        part = single_spectrum(values[:k].copy(), trace=values.sum(), dimension=40)
        filled = np.concatenate([values[:k], np.full(40 - k, values[k:].sum() / (40 - k))])
        row = figures(part)
        assert (row.effective_rank, row.entropy_rank) == pytest.approx(naive_ranks(filled), rel=1e-4)
        assert row.effective_rank >= naive_ranks(values)[0] - 1e-4
        assert row.entropy_rank >= naive_ranks(values)[1] - 1e-4
    assert row.effective_rank == pytest.approx(naive_ranks(values)[0], rel=1e-3)


def test_modules_that_share_an_input_are_decomposed_once():
    calls = []

    class Counted(DenseCovariance):
        def eigenvalues(self):
            calls.append(id(self))
            return super().eigenvalues()

    shared = Counted(covariance(0).dense(), 40)
    other = Counted(covariance(1).dense(), 40)
    found = spectrum_of({"q": shared, "k": shared, "o": other})
    assert calls == [id(shared), id(other)]
    assert found.inputs == {"q": "q", "k": "q", "o": "o"}
    assert found.eigenvalues["q"] is found.eigenvalues["k"]
    assert found.effective_rank["q"] == found.effective_rank["k"] != found.effective_rank["o"]


def test_curves():
    found = spectrum_of({"a.q": covariance(0), "a.o": covariance(1, d=9)})
    curves = found.curves(["a.o"])
    assert curves.direction.tolist() == list(range(1, 10))
    assert set(curves.module) == {"a.o"}
    assert set(curves.projection) == {"o"}
    np.testing.assert_allclose(curves.eigenvalue, found.eigenvalues["a.o"])
    np.testing.assert_allclose(curves.share.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(curves.cumulative.diff().dropna(), curves.share[1:])
    assert len(found.curves()) == 21
    assert found.curves("a.o").equals(curves)
    with pytest.raises(KeyError, match=r"nowhere.*a\.q"):
        found.curves(["nowhere"])
    with pytest.raises(ValueError, match="modules is empty"):
        found.curves([])


def test_a_module_that_saw_nothing_has_rank_zero():
    row = figures(single_spectrum([0.0, 0.0]))
    assert (row.effective_rank, row.entropy_rank, row.rank_90, row.numerical_rank) == (0, 0, 0, 0)
