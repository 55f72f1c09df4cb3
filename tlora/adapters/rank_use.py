"""How much of its rank an update uses, by its singular values."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from torch import Tensor

RANK_COLUMNS = {
    "module": "full module name",
    "rank": "rank of the module",
    "used_rank": "directions that hold the given share of the update's squared norm",
    "effective_rank": "participation ratio of the squared singular values of s B A",
    "use": "used_rank divided by rank",
    "update_norm": "||s B A||_F",
}
"""Columns of `rank_use`."""


def rank_use(singular_values: Mapping[str, Tensor], energy: float) -> pd.DataFrame:
    """Compare the rank of each module with the directions that hold a share of its update's squared norm.

    ``singular_values`` are those of `LoraUpdate.singular_values`; see ``RANK_COLUMNS``. An update of zero uses nothing.
    Of experts, a direction is the sum over all: one rank of a parameter is one of each.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be a share in (0, 1], got {energy!r}: 0.99 is usual")
    squares = {name: s.double().square().reshape(-1, s.shape[-1]).sum(0) for name, s in singular_values.items()}
    rows = [(name, len(energies), *_use(energies, energy)) for name, energies in squares.items()]
    frame = pd.DataFrame(rows, columns=["module", "rank", "used_rank", "effective_rank", "update_norm"])
    return frame.assign(use=frame["used_rank"] / frame["rank"])[list(RANK_COLUMNS)]


def _use(squares: Tensor, energy: float) -> tuple[int, float, float]:
    """Return used directions, participation ratio and norm, from squared singular values."""
    total = squares.sum().item()
    if total == 0:
        return 0, 0.0, 0.0
    shares = squares / total
    # In float32, a sum may end slightly below the share that it stands for.
    needed = int((shares.cumsum(0) < energy * (1 - 1e-6)).sum()) + 1
    return needed, 1 / shares.square().sum().item(), total**0.5
