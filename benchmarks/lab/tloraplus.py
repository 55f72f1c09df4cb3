"""TLoRA+: a third trained matrix between ``A`` and ``B``, and separate learning rates."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import Tensor, eye, nn
from torch.nn.utils import parametrize
from torch.optim import AdamW, Optimizer

from tlora.adapters.lora_layers import ADAPTER, adapter_layers

RATIO = 16
"""Learning rate of ``B`` and of the third matrix, divided by that of ``A``; as in LoRA+."""


class ThirdMatrix(nn.Module):
    """Replaces ``A`` by ``M A``.

    Parameters
    ----------
    a : (r, d_in) tensor
        The ``A`` to multiply.

    Attributes
    ----------
    middle : (r, r) parameter
        ``M``, initialized to the identity.
    """

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.middle = nn.Parameter(eye(len(a), device=a.device, dtype=a.dtype))

    def forward(self, a: Tensor) -> Tensor:
        """``M A``, (r, d_in)."""
        return self.middle @ a


def add_third_matrices(adapted: PeftModel) -> PeftModel:
    """Add a third matrix to every LoRA layer of a model, in place: ``W + s B M A``.

    Parameters
    ----------
    adapted : peft.PeftModel
        With a LoRA adapter named ``default``.

    Returns
    -------
    peft.PeftModel
        The same model with the same outputs.

    Notes
    -----
    This follows the paper's idea, three trained matrices with separate learning rates. That ``M`` starts as the
    identity, and that the ratio of rates is that of LoRA+, are our choices.

    References
    ----------
    TLoRA+, arXiv 2604.13368.
    """
    for layer in adapter_layers(adapted).values():
        a: nn.Module = layer.lora_A[ADAPTER]
        parametrize.register_parametrization(a, "weight", ThirdMatrix(a.get_parameter("weight")))
    return adapted


def optimizer(rank: int, model: PeftModel, rate: float) -> Optimizer:
    """AdamW with ``rate`` for ``A``, and `RATIO` times that for ``B`` and the third matrices."""
    slow: list[nn.Parameter] = []
    fast: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (fast if name.endswith(".middle") or ".lora_B." in name else slow).append(parameter)
    groups: list[dict[str, Any]] = [{"params": slow}, {"params": fast, "lr": RATIO * rate}]
    return AdamW(groups, lr=rate, weight_decay=0.0)
