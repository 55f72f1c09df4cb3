"""How ``A`` lay before training: what `tlora.attach` was asked for, as far as the adapter shows it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from tlora.adapters.lora_layers import LoraModule
from tlora.utils.reproducibility import exact_products

# Above the rounding of bfloat16, below the cosines of rows that are drawn.
TOLERANCE = 1e-2


@exact_products()
def start_of_a(modules: Iterable[LoraModule]) -> str | None:
    """Tell the rows of a subspace from rows that were drawn.

    Parameters
    ----------
    modules : iterable of LoraModule
        All of an adapter, before it is trained.

    Returns
    -------
    str or None
        ``"orthonormal"`` or ``"variance"``: of subspaces, with the ``rows`` of `tlora.attach`. ``"random"``: without
        them. None where it cannot be told: there is no module, some ``B`` is not zero any more, or all ranks are one.
    """
    modules = list(modules)
    if not modules or any(module.b.any() for module in modules):
        return None
    grams = [a @ a.T for a in (module.a.detach().float() for module in modules)]
    if all(_is_identity(gram) for gram in grams):
        return "orthonormal"
    if not all(_is_identity(_cosines(gram)) for gram in grams):
        return "random"
    return "variance" if any(len(gram) > 1 for gram in grams) else None


def _cosines(gram: Float[Tensor, "r r"]) -> Float[Tensor, "r r"]:
    lengths = gram.diagonal().sqrt()
    return gram / lengths / lengths[:, None]


def _is_identity(gram: Float[Tensor, "r r"]) -> bool:
    return bool(((gram - torch.eye(len(gram), device=gram.device)).abs() <= TOLERANCE).all())
