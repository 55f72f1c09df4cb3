"""What an adapter adds to the base, ``s B A``, by its config and its factors alone, without a model or PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tlora.utils.reproducibility import exact_products

EXPERTS = "which PEFT alone reads: use its own functions for this adapter"
_REWRITE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
RANK_COLUMNS = {
    "module": "full module name",
    "rank": "rank of the module",
    "used_rank": "directions that hold the given share of the update's squared norm",
    "effective_rank": "participation ratio of the squared singular values of s B A",
    "use": "used_rank divided by rank",
    "update_norm": "||s B A||_F",
}
"""Columns of `rank_use`."""


def rewrites_base(config: Mapping[str, Any]) -> bool:
    """Whether the initialization that a config asks for rewrites the base weights, as PiSSA does."""
    return str(config.get("init_lora_weights", "")).lower().startswith(_REWRITE_BASE)


def trace_in_base(config: Mapping[str, Any]) -> str:
    """Describe what an adapter changed in the base itself, whichever adapter is active; empty if nothing."""
    if rewrites_base(config):
        return f"changed the base weights (init_lora_weights={config['init_lora_weights']!r})"
    bias = config.get("bias", "none")
    return "" if bias == "none" else f"trained biases of the base (bias={bias!r})"


@exact_products()
def update_singular_values(a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"], scaling: float) -> Tensor:
    """Return the singular values of ``scaling * b @ a``, largest first, (r,) float32.

    With ``B = Q R`` and ``A^T = Q' R'`` they are those of ``s R R'^T``, which is r x r.
    """
    core = torch.linalg.qr(b.float()).R @ torch.linalg.qr(a.float().T).R.T
    sigma = torch.linalg.svdvals(scaling * core)
    return torch.nn.functional.pad(sigma, (0, len(a) - len(sigma)))


def rank_use(singular_values: Mapping[str, Tensor], energy: float) -> pd.DataFrame:
    """Compare the rank of each module with the directions that hold a share of its update's squared norm.

    ``singular_values`` are those of `update_singular_values`; see ``RANK_COLUMNS``. An update of zero uses nothing.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be a share in (0, 1], got {energy!r}: 0.99 is usual")
    rows = [(name, len(s), *_use(s.double().square(), energy)) for name, s in singular_values.items()]
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
