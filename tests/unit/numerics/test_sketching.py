"""Gradient capture and captured energy against dense matrices in float64, sample by sample."""

import numpy as np
import pytest
import torch

from tlora.numerics.sketching import SecondMoment, sketching_matrix


@pytest.mark.parametrize("decay", [0.6, 1.5])
def test_the_sketch_is_a_lower_bound_close_to_the_exact_eigenvalues(monkeypatch, decay):
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(300, 300, generator=generator)).Q
    rows = torch.randn(500, 300, generator=generator) * torch.arange(1, 301).float() ** -decay @ turn
    expected = np.linalg.eigvalsh(rows.double().numpy().T @ rows.double().numpy())[::-1][:8].cumsum()
    exact, sketch = SecondMoment(300), SecondMoment(300, omega=sketching_matrix(300, 96))
    for part in rows.split(50):
        exact.update(part)
        sketch.update(part)
    assert sketch.total.shape == (300, 96)
    np.testing.assert_allclose(exact.energies(8), expected, rtol=1e-5)
    shares = sketch.energies(8).numpy() / expected
    assert (shares < 1 + 1e-5).all()
    assert (shares > 0.95).all()


def test_the_sketch_of_few_directions_is_exact():
    rows = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    sketch = SecondMoment(300, omega=sketching_matrix(300, 96))
    assert sketch.energies(8).tolist() == [0] * 8
    sketch.update(rows)
    expected = np.linalg.svd(rows.double().numpy(), compute_uv=False) ** 2
    np.testing.assert_allclose(sketch.energies(8), np.pad(expected, (0, 5)).cumsum(), rtol=1e-4)
