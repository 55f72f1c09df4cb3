"""Was the rank used? Singular values of the update ``s B A`` of each module, against the rank that was given."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tlora.utils.reproducibility import exact_products

COLUMNS = {
    "module": "full module name",
    "rank": "rank given to the module",
    "used_rank": "directions that hold the asked share of the update's squared norm",
    "effective_rank": "participation ratio of the squared singular values of s B A",
    "use": "used_rank divided by rank",
    "update_norm": "||s B A||_F",
}


@exact_products()
def update_singular_values(a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"], scaling: float) -> Tensor:
    """Singular values of ``scaling * b @ a``, largest first, (r,) float32.

    Computed from r x r factors: ``B = Q R`` and ``A^T = Q' R'`` leave the singular values of ``s R R'^T``.
    """
    core = torch.linalg.qr(b.float()).R @ torch.linalg.qr(a.float().T).R.T
    sigma = torch.linalg.svdvals(scaling * core)
    return torch.nn.functional.pad(sigma, (0, len(a) - len(sigma)))


def rank_use(singular_values: Mapping[str, Tensor], energy: float) -> pd.DataFrame:
    """One row a module; see ``COLUMNS``. A module whose update is zero uses nothing.

    Parameters
    ----------
    singular_values : mapping of str to (r,) tensor
        As from `update_singular_values`, by module.
    energy : float
        Share of the update's squared Frobenius norm that the used directions hold, in (0, 1].

    Raises
    ------
    ValueError
        If ``energy`` is not in (0, 1].
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be a share in (0, 1], got {energy!r}: 0.99 is usual")
    rows = [(name, len(s), *_use(s.double().square(), energy)) for name, s in singular_values.items()]
    frame = pd.DataFrame(rows, columns=["module", "rank", "used_rank", "effective_rank", "update_norm"])
    return frame.assign(use=frame["used_rank"] / frame["rank"])[list(COLUMNS)]


def _use(squares: Tensor, energy: float) -> tuple[int, float, float]:
    """Used directions, participation ratio and norm, from squared singular values."""
    total = squares.sum().item()
    if total == 0:
        return 0, 0.0, 0.0
    shares = squares / total
    # The singular values are float32: a sum may end a hair below the share that it stands for.
    needed = int((shares.cumsum(0) < energy * (1 - 1e-6)).sum()) + 1
    return needed, 1 / shares.square().sum().item(), total**0.5
