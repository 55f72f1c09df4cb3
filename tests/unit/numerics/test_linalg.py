"""Pure tensor functions against NumPy and SciPy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tlora.numerics import linalg
from tlora.numerics.linalg import overlap_by_rank, principal_angles
from tlora.utils.devices import run_coroutines


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix_with(values, d_out, d_in, seed=0):
    """A matrix with these singular values."""
    g = np.random.default_rng(seed)
    u = np.linalg.qr(g.normal(size=(d_out, len(values))))[0]
    v = np.linalg.qr(g.normal(size=(d_in, len(values))))[0]
    return torch.tensor((u * values) @ v.T, dtype=torch.float32)


def leading(m, k, seed=0, **kwargs):
    steps = linalg.leading_right_singular_vectors(
        lambda x: m @ x, lambda y: m.T @ y, m.shape[1], k, seeded(seed), **kwargs
    )
    return run_coroutines([steps])[0]


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


SEEDS = st.integers(0, 2**31)
few = settings(max_examples=40, deadline=None)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x: torch.Tensor) -> np.ndarray:
    return x.numpy().astype(np.float64)


@few
@given(rows=st.integers(1, 60), columns=st.integers(1, 40), side=st.integers(1, 70))
def test_tiles_cover_each_entry_once_and_are_alike(rows: int, columns: int, side: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linalg, "TILE", side)
        found = list(linalg.tiles(rows, columns))
    seen = np.zeros((rows, columns), int)
    for tile in found:
        seen[tile] += 1
        assert 0 < max(seen[tile].shape) <= side
    assert (seen == 1).all()
    # as few as there can be, but where a last one would be empty: 5 in steps of ceil(5 / 4) are three
    assert len(found) <= -(-rows // side) * -(-columns // side)


def test_tiles_on_an_accelerator_are_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    assert linalg.TILE**2 * 4 < 2**21  # bytes of float32: under 2 MB
    assert linalg.DEVICE_TILE**2 * 4 == 2**26
    monkeypatch.setattr(linalg, "TILE", 10)
    monkeypatch.setattr(linalg, "DEVICE_TILE", 40)
    for device, height in ((None, 10), (torch.device("cpu"), 10), (torch.device("cuda"), 34)):
        assert next(iter(linalg.tiles(100, 5, device))) == (slice(0, height), slice(0, 5))


@few
@given(seed=SEEDS, n=st.integers(1, 30), d=st.integers(1, 40))
def test_the_gram_matrix_grows_above_the_diagonal_alone(seed: int, n: int, d: int) -> None:
    x, total = normal(seed, n, d), torch.zeros(d, d)
    linalg.add_gram_(total, x)
    expected = exact(x).T @ exact(x)
    step = -(-d // 8)
    block = np.arange(d) // step
    above = block[:, None] <= block[None, :]
    np.testing.assert_allclose(exact(total)[above], expected[above], rtol=1e-4, atol=1e-4)
    assert not exact(total)[~above].any()
    linalg.mirror_(total)
    np.testing.assert_allclose(exact(total), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(total, total.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_added_in_float32_and_multiplied_as_they_are(dtype: torch.dtype) -> None:
    a, b, total = normal(0, 5, 7).to(dtype), normal(1, 7, 3).to(dtype), normal(2, 5, 3)
    expected = total + (a @ b).float()
    linalg.add_product_(total, a, b)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
    assert total.dtype == torch.float32


@few
@given(seed=SEEDS, k=st.integers(1, 8), d=st.integers(1, 12))
def test_signs_are_fixed_once(seed: int, k: int, d: int) -> None:
    rows = normal(seed, k, d)
    fixed = linalg.fix_signs(rows)
    assert not torch.signbit(linalg.fix_signs(torch.zeros(1, d))).any()
    assert torch.equal(fixed.abs(), rows.abs())
    pivots = fixed.gather(1, fixed.abs().argmax(1, keepdim=True))
    assert bool((pivots >= 0).all())
    assert torch.equal(linalg.fix_signs(fixed), fixed)
    assert torch.equal(linalg.fix_signs(-rows), fixed)


@few
@given(seed=SEEDS, d=st.integers(1, 24), data=st.data())
def test_completions_are_orthonormal_and_keep_what_they_complete(seed: int, d: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, d))
    k = data.draw(st.integers(0, rank))
    rows = linalg.orthonormal_rows(k, d, torch.Generator().manual_seed(seed))
    whole = linalg.complete_rows(rows, rank, torch.Generator().manual_seed(seed + 1))
    assert whole.shape == (rank, d)
    assert torch.equal(whole[:k], rows)
    np.testing.assert_allclose(exact(whole) @ exact(whole).T, np.eye(rank), atol=3e-6)
    again = linalg.complete_rows(rows, rank, torch.Generator().manual_seed(seed + 1))
    assert torch.equal(whole, again)


def orthonormal_columns(y: torch.Tensor) -> torch.Tensor:
    return run_coroutines([linalg.orthonormalize(y)])[0]


@few
@given(seed=SEEDS, d=st.integers(2, 30), data=st.data())
def test_orthonormal_columns_span_the_same_nested_from_the_left(seed: int, d: int, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, d))
    y = normal(seed, d, width) * torch.logspace(0, data.draw(st.floats(-8, 0)), width)
    q = exact(orthonormal_columns(y))
    np.testing.assert_allclose(q.T @ q, np.eye(width), atol=1e-4)
    reference = np.linalg.qr(exact(y))[0]
    first = min(width, 2)  # those after are not determined to float32 where y is nearly dependent
    np.testing.assert_allclose(q[:, :first] @ q[:, :first].T, reference[:, :first] @ reference[:, :first].T, atol=1e-3)


def test_well_conditioned_columns_take_the_fast_way_and_others_householder(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda y: (used.append(1), qr(y))[1])
    fine = normal(0, 40, 3) * torch.tensor([1.0, 1.0, 1e-4])
    orthonormal_columns(fine)
    assert not used
    orthonormal_columns(normal(0, 40, 3) * torch.tensor([1.0, 1.0, 1e-6]))
    assert used == [1]
    orthonormal_columns(torch.ones(40, 3))
    assert used == [1, 1]


def falling(seed: int, d_out: int, d_in: int, decay: float) -> torch.Tensor:
    """A matrix whose singular values are the powers of ``decay``, from 1 on."""
    return matrix_with(decay ** np.arange(min(d_out, d_in)), d_out, d_in, seed)


@few
@given(seed=SEEDS, d_out=st.integers(1, 40), d_in=st.integers(1, 40), decay=st.floats(0.1, 0.99), data=st.data())
def test_captured_energy_is_the_optimum_at_every_rank(
    seed: int, d_out: int, d_in: int, decay: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, min(d_out, d_in)))
    m = falling(seed, d_out, d_in, decay)
    found = leading(m, k, seed)
    sigma = np.linalg.svd(exact(m), compute_uv=False)[:k] ** 2
    energy = ((exact(m) @ exact(found.rows).T) ** 2).sum(0)
    assert (np.cumsum(energy) >= 0.9999 * np.cumsum(sigma) - 1e-9).all()
    np.testing.assert_allclose(np.cumsum(exact(found.singular_values) ** 2), np.cumsum(energy), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(exact(found.rows) @ exact(found.rows).T, np.eye(k), atol=1e-5)
    assert torch.equal(linalg.fix_signs(found.rows), found.rows)
    assert bool((found.singular_values[:-1] >= found.singular_values[1:]).all())
    assert bool((found.singular_values >= 0).all())


def counted(m: torch.Tensor, k: int, **options: object) -> tuple[linalg.LeadingVectors, list[int], list[int]]:
    """What was found, and the columns of each product with the matrix and with its transpose."""
    forth, back = [], []
    steps = linalg.leading_right_singular_vectors(
        lambda x: (forth.append(x.shape[1]), m @ x)[1],
        lambda y: (back.append(y.shape[1]), m.T @ y)[1],
        m.shape[1],
        k,
        torch.Generator().manual_seed(0),
        **options,
    )
    return run_coroutines([steps])[0], forth, back


@pytest.mark.parametrize(("k", "extra", "width"), [(3, 16, 19), (3, 0, 3), (20, 16, 30), (30, 5, 30)])
def test_a_block_is_as_wide_as_asked_and_no_wider_than_the_matrix(k: int, extra: int, width: int) -> None:
    assert counted(normal(0, 50, 30), k, oversampling=extra)[1][0] == width


def test_by_default_eight_columns_more_are_carried_and_thirty_iterations_run_at_most() -> None:
    flat = torch.diag(torch.linspace(1, 0, 2500))
    found, forth, back = counted(flat, 4, tolerance=0.0)
    assert forth == [12] * 30
    assert back == [12] * 29
    assert found.iterations == 30
    assert leading(flat, 4, max_iterations=3, tolerance=0.0).iterations == 3
    assert leading(flat, 4, max_iterations=1).iterations == 1


@pytest.mark.parametrize(
    ("shape", "forth", "back"),
    [
        ((50, 30), [12, 12, 6], [12, 12]),  # of the last products with the transpose six columns were new
        ((30, 50), [12, 12, 12], [12, 12, 6]),
        ((30, 30), [12, 12, 6], [12, 12]),
        ((50, 12), [12], []),
        ((5, 50), [12], [5]),
    ],
)
def test_it_ends_where_a_basis_spans_everything(shape: tuple[int, int], forth: list[int], back: list[int]) -> None:
    m = normal(0, *shape)
    found, *products = counted(m, min(4, *shape), tolerance=0.0)
    assert products == [forth, back]
    sigma = np.linalg.svd(exact(m), compute_uv=False)
    np.testing.assert_allclose(exact(found.singular_values), sigma[: len(found.rows)], rtol=1e-5)


def test_products_that_came_before_are_not_lost() -> None:
    """The space of a Krylov iteration holds that of a subspace iteration of as many products, and more."""
    m = normal(0, 300, 300)
    start = normal(1, 300, 12)
    plain = np.linalg.qr(exact(start))[0]
    for _ in range(3):
        plain = np.linalg.qr(exact(m).T @ (exact(m) @ plain))[0]
    krylov = [exact(start)]
    for _ in range(3):
        krylov.append(exact(m).T @ (exact(m) @ np.linalg.qr(krylov[-1])[0]))
    whole = np.linalg.qr(np.concatenate(krylov, axis=1))[0]
    best = [np.linalg.svd(exact(m) @ space, compute_uv=False)[:4] for space in (plain, whole)]
    found = leading(m, 4, tolerance=0.0, max_iterations=4, warm=lambda x: start)
    np.testing.assert_allclose(exact(found.singular_values), best[1], rtol=1e-4)
    assert (best[1] > 1.02 * best[0]).all()


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, d=st.integers(1, 20), data=st.data())
def test_what_goes_beyond_a_basis_is_orthonormal_and_spans_the_image_with_it(
    seed: int, d: int, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(0, d - 1))
    basis = linalg.orthonormal_rows(d, d, torch.Generator().manual_seed(seed)).T[:, :kept]
    image = normal(seed + 1, d, data.draw(st.integers(1, d)))
    if data.draw(st.booleans()):  # nearly within the basis
        image = basis @ (basis.T @ image) + 1e-5 * image
    new = run_coroutines([linalg.extend_basis(basis, image)])[0]
    both = np.concatenate([exact(basis), exact(new)], axis=1)
    np.testing.assert_allclose(both.T @ both, np.eye(both.shape[1]), atol=3e-6)
    if image.shape[1] <= d - kept:
        np.testing.assert_allclose(both @ (both.T @ exact(image)), exact(image), atol=2e-5)
    else:
        assert both.shape == (d, d)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_wherever_it_stops_the_values_are_those_of_the_rows(iterations: int) -> None:
    m = normal(0, 60, 50)
    found = leading(m, 6, tolerance=0.0, oversampling=4, max_iterations=iterations)
    products = exact(m) @ exact(found.rows).T
    np.testing.assert_allclose(products.T @ products, np.diag(exact(found.singular_values) ** 2), atol=1e-3)


def test_by_default_a_fifty_thousandth_of_the_energy_may_be_missing() -> None:
    m = torch.diag(0.95 ** torch.arange(80.0))
    found = [leading(m, 10, oversampling=4, **asked).iterations for asked in ({}, {"tolerance": 2e-5})]
    assert found[0] == found[1] < leading(m, 10, oversampling=4, tolerance=0.0).iterations


def test_a_warm_start_is_used() -> None:
    m = torch.diag(0.9 ** torch.arange(60.0))
    warm = leading(m, 3, warm=lambda x: torch.linalg.matrix_power(m, 40) @ x, max_iterations=1)
    cold = leading(m, 3, max_iterations=1)
    energies = [float(((m @ found.rows.T) ** 2).sum()) for found in (warm, cold)]
    assert energies[0] > energies[1]
    assert energies[0] == pytest.approx(float((0.9 ** torch.arange(3.0)).square().sum()), rel=1e-5)


def naively_converged(captured: list[list[float]], tolerance: float) -> bool:
    """What is still to come of the geometric series with the last two growths, for each rank by itself."""
    if len(captured) < 3:
        return False
    for before, middle, last in zip(*captured[-3:], strict=True):
        earlier, growth = abs(middle - before), abs(last - middle)
        if growth <= last * 1e-6:
            continue
        if growth >= earlier or growth / (1 / max(growth / earlier, 0.3) - 1) > tolerance * last:
            return False
    return True


growths = st.lists(st.sampled_from([0.0, 1e-9, 1e-7, 1e-6, 1e-5, 3e-5, 1e-4, 1e-2, 0.3]), min_size=4, max_size=4)


@settings(max_examples=400, deadline=None)
@given(steps=st.lists(growths, min_size=1, max_size=3), tolerance=st.sampled_from([0.0, 1e-6, 2e-5, 1e-3, 0.1]))
def test_the_iteration_settles_as_the_series_says(steps: list[list[float]], tolerance: float) -> None:
    captured = np.cumsum([[1.0, 1.5, 2.0, 7.0], *steps], axis=0)
    energies = [torch.tensor(row, dtype=torch.float64) for row in captured]
    assert linalg.has_converged(energies, tolerance) == naively_converged(captured.tolist(), tolerance)


@pytest.mark.parametrize(
    ("seed", "d_out", "d_in", "decay", "k"),
    [(0, 10, 23, 0.875, 1), (486851, 23, 46, 0.9941336860283312, 7), (731163, 11, 59, 0.9806232077863731, 1)],
)
def test_an_iteration_that_pauses_is_not_taken_for_settled(
    seed: int, d_out: int, d_in: int, decay: float, k: int
) -> None:
    """Found by chance: a half step that added little was followed by one that added a hundredth."""
    m = falling(seed, d_out, d_in, decay)
    energy = np.cumsum(((exact(m) @ exact(leading(m, k, seed).rows).T) ** 2).sum(0))
    assert (energy >= 0.9999 * np.cumsum(decay ** (2.0 * np.arange(k)))).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("seed", range(3))
def test_nystrom_is_the_definition(seed: int, size: float) -> None:
    x, omega = size * exact(normal(seed, 60, 20)), normal(seed + 10, 20, 8)
    matrix = x.T @ x
    y = matrix @ exact(omega)
    expected = y @ np.linalg.inv(exact(omega).T @ y) @ y.T
    values, vectors = linalg.nystrom(torch.tensor(y, dtype=torch.float32), omega)
    found = (vectors.numpy() * values.numpy()) @ vectors.numpy().T
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.linalg.norm(matrix))
    np.testing.assert_allclose(vectors.numpy().T @ vectors.numpy(), np.eye(8), atol=1e-4)


@few
@given(seed=SEEDS, d=st.integers(2, 30), data=st.data())
def test_nystrom_stays_below_the_matrix_whatever_its_rank(seed: int, d: int, data: st.DataObject) -> None:
    s = data.draw(st.integers(1, d))
    factor = exact(normal(seed, d, data.draw(st.integers(1, d))))
    matrix = factor @ factor.T
    omega = normal(seed + 1, d, s)
    values, vectors = linalg.nystrom(torch.tensor(matrix @ exact(omega), dtype=torch.float32), omega)
    kept = values.numpy() > 0
    assert (values.numpy()[~kept] == 0).all()
    assert not vectors.numpy()[:, ~kept].any()
    assert (np.diff(values.numpy()) <= 0).all()
    eigenvalues = np.linalg.eigvalsh(matrix)[::-1][:s]
    assert (values.numpy() <= eigenvalues + 1e-3 * np.linalg.norm(matrix)).all()


@pytest.mark.parametrize("seed", range(3))
def test_rounding_of_the_sketch_adds_no_energy(seed: int) -> None:
    """A sketch nearly as wide as the matrix, of few directions: what is left of it is the rounding of float32."""
    factor, omega = normal(seed, 400, 5), normal(seed + 1, 400, 380)
    values, _ = linalg.nystrom(factor @ (factor.T @ omega), omega)
    trace = float((exact(factor) ** 2).sum())
    assert 0.99998 * trace < float(values.sum()) < trace


@pytest.mark.parametrize("gap", [1e-2, 1e-3])
def test_nystrom_takes_columns_that_nearly_depend_on_each_other(gap: float) -> None:
    """As those of a square Gaussian matrix may: the core of one direction is rounding in all the others."""
    factor, omega = normal(0, 10, 1), normal(1, 10, 10)
    omega[:, 9] = omega[:, :9].sum(1) + gap * omega[:, 9]
    matrix = exact(factor) @ exact(factor).T
    for seed in range(20):
        noise = 1 + 2**-24 * exact(normal(seed + 2, 10, 10))
        z = torch.tensor(matrix @ exact(omega) * noise, dtype=torch.float32)
        values, vectors = linalg.nystrom(z, omega)
        found = (vectors.numpy() * values.numpy()) @ vectors.numpy().T
        np.testing.assert_allclose(found, matrix, atol=1e-2 * np.trace(matrix))


def test_nystrom_of_zeros_is_zero() -> None:
    values, vectors = linalg.nystrom(torch.zeros(5, 2), normal(0, 5, 2))
    assert (values.tolist(), vectors.tolist()) == ([0, 0], [[0, 0]] * 5)


@pytest.mark.parametrize("matrix", [torch.full((5, 5), torch.nan), -torch.eye(5)])
def test_a_sketch_of_what_has_no_square_root_is_refused(matrix: torch.Tensor) -> None:
    omega = normal(0, 5, 3)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        linalg.nystrom(matrix @ omega, omega)


@few
@given(seed=SEEDS, d=st.integers(1, 20), n=st.integers(1, 30), shrinkage=st.floats(0.001, 1.0))
def test_powers_of_a_shrunk_covariance(seed: int, d: int, n: int, shrinkage: float) -> None:
    x = normal(seed, n, d)
    c = x.T @ x
    root, inverse = linalg.symmetric_powers(c, shrinkage)
    shrunk = (1 - shrinkage) * exact(c) + shrinkage * np.trace(exact(c)) / d * np.eye(d)
    scale = np.linalg.norm(shrunk)
    np.testing.assert_allclose(exact(root) @ exact(root), shrunk, atol=1e-4 * scale)
    np.testing.assert_allclose(exact(root) @ exact(inverse), np.eye(d), atol=5e-3)


def test_rounding_below_zero_is_no_part_of_a_covariance() -> None:
    c = torch.diag(torch.tensor([4.0, -1e-3, 0.0, 0.0]))
    root, _ = linalg.symmetric_powers(c, 0.5)
    np.testing.assert_allclose(exact(root.diagonal()) ** 2, [2.5, 0.5, 0.5, 0.5], rtol=1e-6)


def orthonormal(rows, d, seed):
    return torch.from_numpy(scipy.linalg.orth(np.random.default_rng(seed).normal(size=(d, rows))).T.copy())


@pytest.mark.parametrize("size", [1.5, 1e-3, 1e-9, 1e-12])
def test_principal_angles_are_those_by_which_rows_were_turned(size):
    """Rows turned by known angles into directions of their own, small ones not lost to the cosine; mixed afterwards."""
    a, away = torch.eye(3, 10).double(), torch.eye(10).double()[3:6]
    angles = torch.tensor([0.2, 0.5, 1.0]).double() * size
    mixing = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [0.0, 0.0, 3.0]]).double()
    b = mixing @ (angles.cos()[:, None] * a + angles.sin()[:, None] * away)
    np.testing.assert_allclose(principal_angles(a, b), angles, rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(principal_angles(a, b[:1]), principal_angles(b[:1], a), rtol=1e-6)


def test_the_same_space_in_other_coordinates_has_angle_zero_and_an_orthogonal_one_a_right_angle():
    a = orthonormal(4, 20, 0)
    turned = torch.from_numpy(scipy.linalg.expm(np.triu(np.ones((4, 4)), 1) - np.tril(np.ones((4, 4)), -1))) @ a
    assert principal_angles(a, turned).max() < 1e-14
    torch.testing.assert_close(overlap_by_rank(a, turned)[-1].item(), 1.0)
    rest = torch.from_numpy(scipy.linalg.null_space(a.numpy()).T[:4].copy())
    torch.testing.assert_close(principal_angles(a, rest), torch.full((4,), np.pi / 2, dtype=torch.float64))
    assert overlap_by_rank(a, rest).max() < 1e-28


def test_float32_rows_are_one_with_themselves():
    a = orthonormal(6, 50, 0).float()
    assert principal_angles(a, a).max() < 1e-14
    assert overlap_by_rank(a, a).tolist() == pytest.approx([1.0] * 6, abs=1e-14)
