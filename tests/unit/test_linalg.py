"""Pure tensor functions against NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tlora.numerics import linalg


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix_with(values, d_out, d_in, seed=0):
    """A matrix with these singular values."""
    g = np.random.default_rng(seed)
    u = np.linalg.qr(g.normal(size=(d_out, len(values))))[0]
    v = np.linalg.qr(g.normal(size=(d_in, len(values))))[0]
    return torch.tensor((u * values) @ v.T, dtype=torch.float32)


def leading(m, k, seed=0, **kwargs):
    return linalg.leading_right_singular_vectors(
        lambda x: m @ x, lambda y: m.T @ y, m.shape[1], k, seeded(seed), **kwargs
    )


@pytest.mark.parametrize("d", [1, 2, 3, 4, 9, 17, 200])
def test_gram_by_blocks(d):
    x, y = torch.randn(50, d, generator=seeded()), torch.randn(20, d, generator=seeded(1))
    total = torch.zeros(d, d)
    linalg.add_gram_(total, x)
    linalg.add_gram_(total, y)
    linalg.mirror_(total)
    assert torch.equal(total, total.T)
    both = np.concatenate([x.numpy(), y.numpy()]).astype(np.float64)
    np.testing.assert_allclose(total.numpy(), both.T @ both, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.95])
@pytest.mark.parametrize(("d_out", "d_in"), [(40, 90), (90, 40), (64, 64)])
def test_captured_energy_is_the_optimum(decay, d_out, d_in):
    values = decay ** np.arange(min(d_out, d_in))
    m = matrix_with(values, d_out, d_in)
    found = leading(m, 12)
    rows = found.rows.numpy().astype(np.float64)
    np.testing.assert_allclose(rows @ rows.T, np.eye(12), atol=2e-6)
    energy = np.cumsum(((m.numpy().astype(np.float64) @ rows.T) ** 2).sum(0))
    assert (energy / np.cumsum(values[:12] ** 2)).min() >= 0.9999
    np.testing.assert_allclose(found.singular_values.numpy(), values[:12], rtol=2e-2, atol=1e-6)


def test_a_flat_spectrum_takes_more_iterations():
    steep, flat = matrix_with(0.5 ** np.arange(80.0), 80, 80), matrix_with(np.linspace(1, 0.7, 80), 80, 80)
    assert leading(flat, 20, oversampling=4).iterations > leading(steep, 20, oversampling=4).iterations


def test_one_seed_gives_the_same_bytes():
    m = matrix_with(0.7 ** np.arange(30.0), 30, 50)
    assert torch.equal(leading(m, 8, seed=3).rows, leading(m, 8, seed=3).rows)


def test_rank_one_and_zero_matrices():
    one = torch.outer(torch.arange(1.0, 6.0), torch.arange(1.0, 9.0))
    found = leading(one, 4)
    expected = np.arange(1.0, 9.0) / np.linalg.norm(np.arange(1.0, 9.0))
    np.testing.assert_allclose(found.rows[0].numpy(), expected, atol=1e-6)
    assert found.singular_values[1] < 1e-4 * found.singular_values[0]
    for seed in range(5):  # eigenvalues that rounding takes below zero have no root
        assert torch.isfinite(leading(matrix_with([1.0, 0.5], 40, 30, seed), 30, seed).singular_values).all()
    zero = leading(torch.zeros(5, 8), 3)
    assert torch.isfinite(zero.rows).all()
    assert not zero.singular_values.any()


def test_fixed_signs():
    rows = linalg.fix_signs(torch.tensor([[1.0, -3.0, 2.0], [0.5, 0.1, -0.2], [-1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(rows.numpy(), [[-1, 3, -2], [0.5, 0.1, -0.2], [1, -1, 0]])


def test_completion_keeps_the_given_rows_and_is_orthonormal():
    given = linalg.orthonormal_rows(5, 20, seeded())
    rows = linalg.complete_rows(given, 17, seeded(1))
    assert torch.equal(rows[:5], given)
    np.testing.assert_allclose((rows @ rows.T).numpy(), np.eye(17), atol=1e-6)
    assert torch.equal(rows, linalg.complete_rows(given, 17, seeded(1)))


def test_orthonormalise_survives_dependent_columns():
    y = torch.randn(30, 6, generator=seeded())
    y[:, 3] = y[:, 1] * 2
    q = linalg.orthonormalise(y)
    np.testing.assert_allclose((q.T @ q).numpy(), np.eye(6), atol=1e-5)
    plain = linalg.orthonormalise(y[:, :3])
    reference = np.linalg.qr(y[:, :3].numpy())[0]
    np.testing.assert_allclose(np.abs(plain.numpy()), np.abs(reference), atol=1e-5)


def test_symmetric_powers_against_scipy():
    from scipy.linalg import fractional_matrix_power

    x = torch.randn(40, 6, generator=seeded())
    c = x.T @ x
    root, inverse = linalg.symmetric_powers(c, 0.1)
    shrunk = 0.9 * c.double().numpy() + 0.1 * float(c.trace()) / 6 * np.eye(6)
    np.testing.assert_allclose(root.numpy(), fractional_matrix_power(shrunk, 0.5), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(inverse.numpy(), fractional_matrix_power(shrunk, -0.5), rtol=1e-4, atol=1e-4)
