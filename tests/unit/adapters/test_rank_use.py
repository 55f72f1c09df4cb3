"""How much of its rank an update uses, against constructed singular values."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.helpers.updates import run_with_singular_values


@pytest.mark.parametrize(
    ("sigma", "energy", "used"),
    [
        ([3.0, 3.0, 3.0, 3.0], 0.99, 4),
        ([3.0, 3.0, 3.0, 3.0], 0.5, 2),
        ([10.0, 0.1, 0.1, 0.1], 0.99, 1),
        ([10.0, 5.0, 0.1, 0.1], 0.99, 2),
        ([2.0, 1.0, 1.0, 1.0], 1.0, 4),
        ([2.0, 1.0, 0.0, 0.0], 1.0, 2),
        ([0.0, 0.0, 0.0, 0.0], 0.99, 0),
    ],
)
def test_rank_use_of_constructed_updates(sigma: list[float], energy: float, used: int) -> None:
    (row,) = run_with_singular_values(sigma).rank_use(energy).to_dict("records")
    squares = np.square(sigma)
    assert (row["rank"], row["used_rank"], row["use"]) == (4, used, used / 4)
    assert row["update_norm"] == pytest.approx(np.sqrt(squares.sum()), rel=1e-4)
    effective = squares.sum() ** 2 / (squares**2).sum() if squares.any() else 0
    assert row["effective_rank"] == pytest.approx(effective, rel=1e-3)


def test_rank_beyond_the_matrix_has_no_more_directions() -> None:
    run = run_with_singular_values([1.0] * 4, d_out=12, d_in=10)
    wide = dataclasses.replace(
        run,
        ranks={"m": 14},
        adapter={name: torch.ones(14, 10) if "A" in name else torch.ones(12, 14) for name in run.adapter},
    )
    assert wide.singular_values()["m"].shape == (14,)
    assert wide.rank_use()["used_rank"].item() == 1


@pytest.mark.parametrize("energy", [0.0, 1.1])
def test_refuses_energy_out_of_range(energy: float) -> None:
    with pytest.raises(ValueError, match="energy"):
        run_with_singular_values([1.0]).rank_use(energy)
