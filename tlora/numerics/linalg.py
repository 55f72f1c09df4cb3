"""Pure tensor functions: orthonormal bases, randomized decompositions, tiled products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from tlora.utils.devices import HostCoroutine

Product = Callable[[Tensor], Tensor]

TILE = 640
"""Side of a product's tile on a CPU: at most 1.6 MB of float32, which fits a core's cache."""

DEVICE_TILE = 4096
"""The same on an accelerator: 64 MB, because small products would leave it idle."""

FASTEST_DECAY = 0.3
"""Steepest ratio of successive growths used to extrapolate: the two sides alternate, and one may grow by less."""

CHECKED_STEPS = (3, 5, 8, 12, 18, 27, 40)
"""Half steps after which convergence is checked on an accelerator; most iterations have converged at the first."""

OVERSAMPLING = 8
"""Columns of a block beyond the vectors wanted: at least as fast as 4 or 16 on measured covariances."""


def tiles(rows: int, columns: int, device: torch.device | None = None) -> Iterator[tuple[slice, slice]]:
    """Yield slices for tiles of nearly equal size, at most `TILE` on a side, or `DEVICE_TILE` on an accelerator."""
    side = TILE if device is None or device.type == "cpu" else DEVICE_TILE
    for band in _bands(rows, -(-rows // side)):
        for across in _bands(columns, -(-columns // side)):
            yield band, across


def add_gram_(total: Float[Tensor, "d d"], x: Float[Tensor, "n d"]) -> None:
    """Add ``x^T x`` to the upper block triangle of ``total``, in place.

    Only blocks on and above the diagonal are computed, 0.56 of the work of the full product; `mirror_` fills in the
    rest at the end.
    """
    for rows in _bands(len(total), 8):
        add_product_(total[rows, rows.start :], x[:, rows].T, x[:, rows.start :])


def add_product_(total: Float[Tensor, "m k"], a: Float[Tensor, "m n"], b: Float[Tensor, "n k"]) -> None:
    """Add ``a @ b`` to the float32 ``total``, in place; it may be on another device.

    Factors in half precision are multiplied in half precision, which is twice as fast on machines that support it:
    the machine accumulates the product in float32 and rounds it once, and it is added in float32.
    """
    if a.dtype == total.dtype and a.device == total.device:
        total.addmm_(a, b)
    else:
        total += (a @ b).to(total.device)


def mirror_(total: Float[Tensor, "d d"]) -> None:
    """Copy the upper triangle over the lower one, in place."""
    # bands of 64 columns: wide ones access distant memory and are eight times as slow
    for rows in _bands(len(total), -(-len(total) // 64)):
        total[rows.stop :, rows].copy_(total[rows, rows.stop :].T)
        square = total[rows, rows]
        square.copy_(square.triu() + square.triu(1).T)


def _bands(d: int, count: int) -> Iterator[slice]:
    """Yield at most ``count`` slices over ``d``, equal except for the last."""
    step = -(-d // count)
    for start in range(0, d, step):
        yield slice(start, min(start + step, d))


def orthonormal_rows(rows: int, d: int, generator: torch.Generator) -> Float[Tensor, "rows d"]:
    """Seeded orthonormal rows that span a uniformly random subspace of dimension ``rows``."""
    gaussian = torch.randn(d, rows, generator=generator)
    return torch.linalg.qr(gaussian).Q.T.contiguous()


def fix_signs(rows: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """Flip rows so that the entry of largest magnitude is positive."""
    pivot = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * torch.where(pivot < 0, -1.0, 1.0)


def complete_rows(rows: Float[Tensor, "k d"], rank: int, generator: torch.Generator) -> Float[Tensor, "rank d"]:
    """Extend orthonormal rows to ``rank`` orthonormal rows with seeded random directions; the given rows come first.

    The generator is one of the CPU; ``k <= rank <= d``.
    """
    k, d = rows.shape
    fresh = torch.randn(rank - k, d, generator=generator).to(rows)
    for _ in range(2):  # the second projection removes the rounding error of the first
        fresh = fresh - (fresh @ rows.T) @ rows
        fresh = torch.linalg.qr(fresh.T).Q.T
    return torch.cat([rows, fresh])


@dataclass(frozen=True)
class LeadingVectors:
    """Leading right singular vectors of a matrix, with singular values.

    Attributes
    ----------
    rows : (k, d_in) float32 tensor
        Orthonormal, by descending singular value, signs fixed; on the device of the products.
    singular_values : (k,) float32 tensor
        Estimates, descending; on the CPU.
    iterations : int
        Number of products with the matrix.
    """

    rows: Tensor
    singular_values: Tensor
    iterations: int


def leading_right_singular_vectors(
    product: Product,
    transposed: Product,
    d_in: int,
    k: int,
    generator: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    warm: Product | None = None,
    oversampling: int = OVERSAMPLING,
    tolerance: float = 2e-5,
    max_iterations: int = 30,
) -> HostCoroutine[LeadingVectors]:
    """Leading right singular vectors of ``M`` from products with ``M`` and ``M^T`` alone.

    A randomized block Krylov iteration, as a block bidiagonalization with full reorthogonalization: products with
    ``M`` and ``M^T`` alternately extend an orthonormal basis on either side, and the small core ``left^T M right`` is
    decomposed. The energy it captures, known at every rank up to ``k`` after each half step, grows by steps that
    decrease about geometrically. The iteration stops when the remaining growth, extrapolated from the last two steps,
    is at most ``tolerance`` of the energy at every rank, or when there is none.

    Parameters
    ----------
    product : callable
        Maps (d_in, j) to ``M @ x`` of shape (d_out, j).
    transposed : callable
        Maps (d_out, j) to ``M.T @ y`` of shape (d_in, j).
    d_in : int
        Number of columns of ``M``.
    k : int
        Vectors wanted, at most ``min(d_in, d_out)``.
    generator : torch.Generator
        CPU generator of the start.
    device : device
        Device of the products.
    warm : callable, optional
        Maps the random start (d_in, j) to a better one of the same shape, e.g. by a cheap symmetric factor of ``M``.
    oversampling : int
        Columns of a block beyond ``k``.
    tolerance : float
        Share of the captured energy that may be missing, as estimated. The estimate can be wrong: for one of 66,000
        matrices of up to 40 columns, half with almost flat spectra, it took the second direction for the first.
    max_iterations : int
        Upper bound on the products with ``M``; those with ``M^T`` are as many or one less.

    Returns
    -------
    HostCoroutine of LeadingVectors
        Run it with `tlora.utils.devices.run_coroutines`. The core is decomposed on the host: on the CPU after each
        half step, elsewhere after those of `CHECKED_STEPS`.

    References
    ----------
    Musco & Musco (2015), Randomized block Krylov methods for stronger and faster approximate singular value
    decomposition, algorithm 2; Golub, Luk & Overton (1981), A block Lanczos method, for the bidiagonal core.
    """
    width = min(k + oversampling, d_in)
    random = torch.randn(d_in, width, generator=generator).to(device)
    start = random if warm is None else warm(random)
    arguments = (product, transposed, start, k, tolerance, max_iterations)
    result = None if random.device.type == "cpu" else (yield from _bidiagonalize(*arguments, failures=[]))
    if result is None:
        result = yield from _bidiagonalize(*arguments)
    assert result is not None
    right, core, steps = result
    energies, mixing = torch.linalg.eigh(core.T @ core)
    rows = (right @ mixing.flip(1)[:, :k].to(right)).T
    return LeadingVectors(fix_signs(rows), energies.flip(0)[:k].clamp(min=0).sqrt().float(), 1 + steps // 2)


def _bidiagonalize(
    product: Product,
    transposed: Product,
    start: Tensor,
    k: int,
    tolerance: float,
    max_iterations: int,
    failures: list[Tensor] | None = None,
) -> HostCoroutine[tuple[Tensor, Tensor, int] | None]:
    """The right basis, the core on the CPU, and half steps taken.

    Without ``failures`` the host checks every block. With this list blocks are assumed to be well conditioned, and
    tensors that are true for those that are not are appended; the host reads them at `CHECKED_STEPS` alone, and the
    result is None if one is true.
    """
    d_in = len(start)
    right = new = yield from orthonormalize(start, failures)
    image = product(new)
    left = new = yield from orthonormalize(image, failures)
    core = (new.T @ image).double()  # left^T M right, block bidiagonal
    captured: list[Tensor] = []
    steps, sizes = 0, [core.shape]
    while True:
        if steps % 2:
            at_end = left.shape[1] == len(left)
        else:
            at_end = 1 + steps // 2 >= max_iterations or right.shape[1] >= d_in
        if at_end or failures is None or steps in CHECKED_STEPS:
            seen, *has_failed = yield [core, *([torch.stack(failures).any()] if failures else [])]
            if any(has_failed):
                return None
            captured += [_captured_energies(seen[:rows, :columns], k) for rows, columns in sizes[len(captured) :]]
            if at_end or has_converged(captured, tolerance):
                return right, seen, steps
        if steps % 2:
            image = product(new)
            new = yield from extend_basis(left, image, failures)
            left, core = torch.cat([left, new], 1), _extend_core(core, new.T @ image)
        else:
            image = transposed(new)
            new = yield from extend_basis(right, image, failures)
            right, core = torch.cat([right, new], 1), _extend_core(core.T, new.T @ image).T
        steps += 1
        sizes.append(core.shape)


def extend_basis(basis: Tensor, image: Tensor, failures: list[Tensor] | None = None) -> HostCoroutine[Tensor]:
    """Orthonormal columns, orthogonal to the basis, that together with it span the image."""
    new = image[:, : len(basis) - basis.shape[1]]
    for again in range(4):  # each projection removes the rounding error of the one before
        inside = basis.T @ new
        if again and failures is None:
            (is_clean,) = yield [(inside.abs() < 1e-6).all()]
            if bool(is_clean):
                break
        if again == 2 and failures is not None:  # almost always enough
            failures.append((inside.abs() >= 1e-6).any())
            break
        new = yield from orthonormalize(new - basis @ inside, failures)
    return new


def _extend_core(core: Tensor, block: Tensor) -> Tensor:
    """Append rows to the core: zeros, with the block at their end."""
    rows = torch.nn.functional.pad(block.double(), (core.shape[1] - block.shape[1], 0))
    return torch.cat([core, rows])


def _captured_energies(core: Tensor, k: int) -> Tensor:
    """Energy captured at ranks 1 to ``k`` by a core with no more rows than columns."""
    return torch.linalg.eigvalsh(core @ core.T).flip(0)[:k].cumsum(0)


def has_converged(captured: list[Tensor], tolerance: float) -> bool:
    """Whether the growth of the captured energies that remains is below a share of them at each rank.

    It is the rest of a geometric series through the growths of the last two half steps, with a ratio of at least
    `FASTEST_DECAY`.
    """
    if len(captured) < 3:
        return False
    earlier, growth = (captured[-2] - captured[-3]).abs(), (captured[-1] - captured[-2]).abs()
    ratio = (growth / earlier).clamp(min=FASTEST_DECAY)  # NaN for zero by zero, which has converged
    remaining = torch.where(ratio < 1, growth * ratio / (1 - ratio), torch.inf)
    rounding = captured[-1] * 1e-6  # of float32 products
    return bool(((remaining <= tolerance * captured[-1]) | (growth <= rounding)).all())


def gram(y: Tensor) -> Tensor:
    """``y^T y`` in float64."""
    wide = y.double()
    return wide.T @ wide


def orthonormalize(y: Tensor, failures: list[Tensor] | None = None) -> HostCoroutine[Tensor]:
    """Orthonormal columns with the span of ``y``, nested from the left.

    Cholesky QR in float64, several times as fast as Householder QR for tall matrices; Householder QR if the columns
    are too close to dependent. With ``failures`` the host is not asked, and a tensor is appended: true if the result is
    invalid.
    """
    factor, failed = torch.linalg.cholesky_ex(gram(y))
    diagonal = factor.diagonal()
    is_well_conditioned = diagonal.min() > 1e-5 * diagonal.max()
    if failures is None:
        has_failed, is_sound = yield [failed, is_well_conditioned]
        if has_failed or not is_sound:
            return torch.linalg.qr(y).Q
    else:
        failure = (failed != 0) | ~is_well_conditioned
        failures.append(failure)
        factor = torch.where(failure, torch.eye(len(factor), device=y.device, dtype=factor.dtype), factor)
    return torch.linalg.solve_triangular(factor, y.double().T, upper=False).T.to(y.dtype)


def nystrom(z: Float[Tensor, "d s"], omega: Float[Tensor, "d s"]) -> tuple[Float[Tensor, " s"], Float[Tensor, "d s"]]:
    """Eigenvalues and vectors of the Nyström approximation of a positive semi-definite ``S`` from ``z = S @ omega``.

    Returns
    -------
    (s,) float64 tensor
        Descending and not negative: each is a lower bound of the eigenvalue of ``S`` that it approximates.
    (d, s) float64 tensor
        Orthonormal columns; zero if the eigenvalue is zero.

    References
    ----------
    Tropp, Yurtsever, Udell & Cevher (2017), Fixed-rank approximation of a positive-semidefinite matrix from
    streaming data, algorithm 3.
    """
    z, omega = z.double(), omega.double()
    # the size of float32 rounding errors: with this shift the core has a Cholesky factor at any rank
    shift = len(z) ** 0.5 * torch.finfo(torch.float32).eps * z.norm()
    if shift == 0:
        return z.new_zeros(z.shape[1]), torch.zeros_like(z)
    shifted, factor, shift = _factor_of_core(z, omega, shift)
    half = torch.linalg.solve_triangular(factor, shifted.T, upper=False)
    squares, mixing = torch.linalg.eigh(half @ half.T)
    squares, mixing = squares.flip(0), mixing.flip(1)
    values = (squares - shift).clamp(min=0)
    scale = torch.where(values > 0, squares, torch.inf).rsqrt()
    return values, half.T @ (mixing * scale)


def _factor_of_core(z: Tensor, omega: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``z + shift * omega``, the Cholesky factor of its core, and the shift, as large as the factor requires.

    If columns of ``omega`` are almost dependent, rounding weighs more in the core than in ``z``.
    """
    for _ in range(5):
        shifted = z + shift * omega
        core = omega.T @ shifted
        factor, failed = torch.linalg.cholesky_ex((core + core.T) / 2)
        if not failed:
            return shifted, factor, shift
        shift = 10 * shift
    raise ValueError("the sketch is not finite, or of a matrix that is not positive semi-definite: calibrate again")


def symmetric_powers(c: Float[Tensor, "d d"], shrinkage: float) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """``C^(1/2)`` and ``C^(-1/2)`` of a covariance shrunk toward ``tr(C)/d * I``, computed in float64.

    ``shrinkage`` is the weight of the identity, in (0, 1]; it keeps the inverse finite if ``C`` lacks full rank.
    """
    d = c.shape[0]
    values, vectors = torch.linalg.eigh(c.double())
    values = (1 - shrinkage) * values.clamp(min=0) + shrinkage * values.clamp(min=0).sum() / d
    root = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors * values.rsqrt()) @ vectors.T
    return root.to(c.dtype), inverse.to(c.dtype)


def principal_angles(a: Float[Tensor, "p d"], b: Float[Tensor, "q d"]) -> Float[Tensor, " k"]:
    """Principal angles between the spans of linearly independent rows: radians, ascending, float64."""
    angles = scipy.linalg.subspace_angles(*(rows.double().cpu().numpy().T for rows in (a, b)))
    return torch.from_numpy(angles[::-1].copy())


def overlap_by_rank(a: Float[Tensor, "r d"], b: Float[Tensor, "r d"]) -> Float[Tensor, " r"]:
    """Overlap of the spans of the first 1, 2, ... r rows, linearly independent: ``||A B^T||_F^2 / r``, in float64.

    This is the mean squared cosine of the principal angles: 1 for the same subspace, 0 for orthogonal ones; the
    expectation for two random ones is ``r / d``.
    """
    return nested_overlap(orthonormal(a), orthonormal(b))


def nested_overlap(a: Float[Tensor, "r d"], b: Float[Tensor, "r d"]) -> Float[Tensor, " r"]:
    """`overlap_by_rank` for rows that are orthonormal already."""
    squares = (a @ b.T).square()
    ranks = torch.arange(1, len(squares) + 1, device=squares.device)
    return (squares.cumsum(0).cumsum(1).diagonal() / ranks).clamp(max=1)


def orthonormal(rows: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    """Orthonormalize rows in float64, with nested spans; float32 rows are orthonormal only up to rounding."""
    return torch.linalg.qr(rows.double().T).Q.T
