"""The algebra of an update, against NumPy on the dense product."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power

from tlora import LoraUpdate
from tlora.adapters.update import inner_products

D_OUT, D_IN = 12, 10


def update(rank: int = 4, scaling: float = 1.7, *, seed: int = 0, experts: tuple[int, ...] = ()) -> LoraUpdate:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(*experts, rank, D_IN, generator=generator)
    return LoraUpdate("m", a, torch.randn(*experts, D_OUT, rank, generator=generator), scaling)


def dense(one: LoraUpdate) -> np.ndarray:
    return one.scaling * one.b.double().numpy() @ one.a.double().numpy()


def moment() -> torch.Tensor:
    x = torch.randn(7, D_IN, generator=torch.Generator().manual_seed(9)).double()
    return x.T @ x


def weighted(one: LoraUpdate) -> np.ndarray:
    """The dense update times a root of the moment."""
    return dense(one) @ fractional_matrix_power(moment().numpy(), 0.5).real


def close(one: LoraUpdate, expected: np.ndarray) -> bool:
    return bool(np.linalg.norm(dense(one) - expected) < 1e-5 * max(1, np.linalg.norm(expected)))


def test_the_matrix_its_shape_and_its_rank() -> None:
    whole = update()
    assert (whole.shape, whole.rank) == ((D_OUT, D_IN), 4)
    np.testing.assert_allclose(whole.matrix(), dense(whole), rtol=1e-5, atol=1e-5)


def test_a_cut_in_the_weights_is_the_truncated_singular_value_decomposition() -> None:
    whole = update()
    u, s, v = np.linalg.svd(dense(whole))
    for rank in (1, 2, 3):
        cut = whole.cut(rank)
        assert (cut.rank, cut.scaling) == (rank, 1.0)
        assert close(cut, (u[:, :rank] * s[:rank]) @ v[:rank])
        assert float(cut.a.norm()) == pytest.approx(float(cut.b.norm()))
    assert whole.cut(4) is whole.cut(9) is whole


def test_a_cut_in_the_outputs_is_the_weighted_optimum() -> None:
    whole = update()
    values = np.linalg.svd(weighted(whole), compute_uv=False)
    for rank in (1, 2, 3):
        lost = np.linalg.norm(weighted(whole) - weighted(whole.cut(rank, moment())))
        assert lost == pytest.approx(np.linalg.norm(values[rank:]), rel=1e-4)
        assert lost < np.linalg.norm(weighted(whole) - weighted(whole.cut(rank)))


def test_norm_core_and_inner_products_are_those_of_the_dense_updates() -> None:
    first, second = update(), update(3, 0.4, seed=1)
    root = torch.from_numpy(moment().numpy())
    for measure, one, other in (
        (None, dense(first), dense(second)),
        (root, weighted(first), weighted(second)),
    ):
        assert first.norm(measure) == pytest.approx(np.linalg.norm(one))
        values = np.linalg.svd(one, compute_uv=False)[: first.rank]
        np.testing.assert_allclose(np.linalg.eigvalsh(first.core(measure))[::-1], values**2, rtol=1e-5)
        expected = [[np.sum(x * y) for y in (one, other)] for x in (one, other)]
        np.testing.assert_allclose(inner_products([first, second], measure), expected, rtol=1e-5)


@pytest.mark.parametrize("rank", [4, 14])
def test_singular_values(rank: int) -> None:
    """Of a rank beyond that of the matrix, too."""
    whole = update(rank)
    expected = np.zeros(rank)
    values = np.linalg.svd(dense(whole), compute_uv=False)[:rank]
    expected[: len(values)] = values
    np.testing.assert_allclose(whole.singular_values(), expected, atol=1e-4 * values[0])


def test_a_sum_is_exact_and_keeps_the_rank_of_one_a() -> None:
    whole = update()
    first_rows = LoraUpdate("m", whole.a[:2], update(2, seed=3).b, 0.3)
    for other, rank in ((update(3, 0.4, seed=1), 7), (update(seed=1), 8), (first_rows, 4), (whole, 4)):
        for added in (whole + other, other + whole):
            assert added.rank == rank
            assert close(added, dense(whole) + dense(other))


def test_a_factor_changes_the_scaling_and_a_sign_b() -> None:
    whole = update()
    for scaled in (0.3 * whole, whole * 0.3, np.float64(0.3) * whole, whole * torch.tensor(0.3).double()):
        assert scaled.a is whole.a
        assert scaled.b is whole.b
        assert close(scaled, 0.3 * dense(whole))
    for factor in (-2, 0):
        assert close(factor * whole, factor * dense(whole))
        assert (factor * whole).scaling > 0
    assert close(whole + -1 * whole, np.zeros((D_OUT, D_IN)))


def test_the_same_update_in_other_forms() -> None:
    whole = update()
    for form in (whole.fold(), whole.to(torch.float64)):
        assert close(form, dense(whole))
    assert whole.fold().scaling == 1
    assert whole.to(torch.float64).b.dtype == torch.float64


def test_updates_of_several_experts_are_those_of_each() -> None:
    several = update(experts=(3,))
    pairs = [
        (several.cut(2), lambda one: one.cut(2)),
        (several.cut(2, moment()), lambda one: one.cut(2, moment())),
        (several + several, lambda one: one + one),
        (several.fold(), lambda one: one.fold()),
    ]
    for expert in range(3):
        single = LoraUpdate("m", several.a[expert], several.b[expert], several.scaling)
        torch.testing.assert_close(several.singular_values()[expert], single.singular_values())
        torch.testing.assert_close(inner_products([several])[expert], inner_products([single]))
        for together, alone in pairs:
            torch.testing.assert_close(together.matrix()[expert], alone(single).matrix(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("part", ["a", "b"])
def test_an_update_that_is_not_finite_is_refused_by_name(part: str) -> None:
    whole: dict[str, Any] = {**vars(update()), "module": "model.layers.3"}
    broken = LoraUpdate(**whole | {part: whole[part] * torch.nan})
    with pytest.raises(ValueError, match=r"model\.layers\.3"):
        broken.cut(1)


@pytest.mark.parametrize(
    "call",
    [
        lambda u: math.nan * u,
        lambda u: math.inf * u,
        lambda u: torch.tensor(math.nan) * u,
        lambda u: np.float32(math.inf) * u,
        lambda u: u.cut(-1),
    ],
)
def test_a_number_that_leaves_no_update_is_refused(call):
    update = LoraUpdate("model.layers.3", torch.ones(2, 3), torch.ones(4, 2), 1.0)
    with pytest.raises(ValueError, match=r"factor|rank"):
        call(update)


@pytest.mark.parametrize("measure", [lambda one, m: one.norm(m), lambda one, m: one.cut(2, m).norm()])
def test_a_moment_is_taken_in_any_type_and_refused_in_another_size(measure):
    one = update()
    assert measure(one, moment().float()) == pytest.approx(measure(one, moment()), rel=1e-5)
    with pytest.raises(ValueError, match=r"^m has 10 inputs, so its moment is \(10, 10\): got \(3, 10\)$"):
        measure(one, moment()[:3])
