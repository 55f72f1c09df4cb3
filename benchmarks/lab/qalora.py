"""QA-LoRA: an adapter that reads groups of input features, so that it merges into a base quantised by groups."""

from __future__ import annotations

import math

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tlora.adapters.lora_layers import ADAPTER, adapter_layers

GROUP = 32
"""Neighbouring input features that are averaged, as in the authors' code."""


class Pooled(nn.Module):
    """Makes an ``A`` of groups into one of features: ``A P``, with ``P x`` the means of groups of features.

    Parameters
    ----------
    group : int
        Features of a group.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, a: Tensor) -> Tensor:
        """(r, d_in) of (r, d_in / group)."""
        return a.repeat_interleave(self.group, dim=1) / self.group

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What `forward` makes this of, or the nearest."""
        return weight.unflatten(1, (-1, self.group)).sum(2)


def pool_inputs(adapted: PeftModel, group: int = GROUP) -> PeftModel:
    """Let every LoRA layer of a model read means of groups of its input features, in place: ``W + s B A P``.

    Parameters
    ----------
    adapted : peft.PeftModel
        With a LoRA adapter that is called ``default``, whose ``B`` is zero.
    group : int
        Neighbouring features that are averaged, or the largest divisor of this that divides ``d_in``.

    Returns
    -------
    peft.PeftModel
        The same model, which computes what it computed; ``A`` is drawn anew, (r, d_in / group), as LoRA's is.

    Notes
    -----
    The update is the same for all columns of a group, so that on a base with one zero point a row and group it merges
    into these, and the merged model stays quantised. Here it is run on any base.

    References
    ----------
    QA-LoRA, arXiv 2309.14717.
    """
    for layer in adapter_layers(adapted).values():
        linear = layer.lora_A[ADAPTER]
        weight = linear.get_parameter("weight")
        pooled = Pooled(math.gcd(group, weight.shape[1]))
        drawn = torch.empty(weight.shape[0], weight.shape[1] // pooled.group, dtype=weight.dtype, device=weight.device)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        parametrize.register_parametrization(linear, "weight", pooled)
        linear.weight = pooled(drawn)
    return adapted
