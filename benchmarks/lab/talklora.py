"""TalkLoRA: low-rank experts that exchange their inputs before each token is routed."""

from __future__ import annotations

import math
import re

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from tlora.adapters.lora_layers import ADAPTER, adapter_layers

EXPERTS = 4
"""Number of experts, as in the authors' runs."""


class Experts(nn.Module):
    """Replaces a layer's ``B``: computes ``sum_i w_i B_i M_i h_i`` from the heads ``h_i`` of ``h = A x``.

    Parameters
    ----------
    weight : (d_out, r) parameter
        The ``B_i`` side by side, shared by all layers of one projection.
    experts : int
        ``E``, a divisor of the rank.

    Attributes
    ----------
    mixers : (E, r / E, r / E) parameter
        ``M_i``.
    talk : (E, E) parameter
        ``T``, which mixes the heads for the router.
    router : (E, r) parameter
        ``R``: the weights of a token are ``softmax(R T h)``.
    """

    def __init__(self, weight: nn.Parameter, experts: int) -> None:
        super().__init__()
        rank = weight.shape[1]
        shapes = {
            "mixers": (experts, rank // experts, rank // experts),
            "talk": (experts, experts),
            "router": (experts, rank),
        }
        self.weight = weight
        for name, shape in shapes.items():
            bound = shape[-1] ** -0.5  # Kaiming's uniform distribution with a = sqrt(5)
            values = torch.empty(shape, device=weight.device, dtype=weight.dtype).uniform_(-bound, bound)
            self.register_parameter(name, nn.Parameter(values))

    def forward(self, h: Float[Tensor, "*tokens r"]) -> Float[Tensor, "*tokens d_out"]:
        """The outputs of the experts, weighted by the router."""
        mixers, talk, router = (self.get_parameter(name) for name in ("mixers", "talk", "router"))
        heads = h.unflatten(-1, (len(mixers), -1))
        mixed_heads = torch.einsum("ij,...jk->...ik", talk, heads).flatten(-2)
        weights = (mixed_heads @ router.T).softmax(-1)
        mixed = torch.einsum("ijk,...ik->...ij", mixers, heads) * weights[..., None]
        return mixed.flatten(-2) @ self.weight.T


def add_experts(adapted: PeftModel, experts: int = EXPERTS) -> PeftModel:
    """Make every LoRA layer of a model a mixture of experts that talk, in place.

    Parameters
    ----------
    adapted : peft.PeftModel
        With a LoRA adapter named ``default``, whose ``B`` is zero.
    experts : int
        Heads of ``A x``, or the largest divisor of this that divides the rank.

    Returns
    -------
    peft.PeftModel
        The same model with the same outputs. It can be trained and evaluated, but not merged or exported: its routing
        depends on the input.

    References
    ----------
    TalkLoRA, arXiv 2604.06291.
    """
    shared: dict[str, nn.Parameter] = {}
    for name, layer in adapter_layers(adapted).items():
        b = layer.lora_B[ADAPTER].get_parameter("weight")
        projection = re.sub(r"\.\d+\.", ".", name)  # the name, without the number of the block
        weight = shared.setdefault(projection, nn.Parameter(b.detach().clone()))
        layer.lora_B[ADAPTER] = Experts(weight, math.gcd(experts, b.shape[1]))
    return adapted
