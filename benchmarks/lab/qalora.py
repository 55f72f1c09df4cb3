"""QA-LoRA: an adapter on groups of input features, which merges into a base that is quantized by groups."""

from __future__ import annotations

import math

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tlora.adapters.lora_layers import ADAPTER, adapter_layers

GROUP = 32
"""Neighboring input features that are averaged, as in the authors' code."""


class Pooled(nn.Module):
    """Expands an ``A`` on groups to one on features: ``A P``, with ``P x`` the means of groups of features.

    Parameters
    ----------
    group : int
        Features of a group.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, a: Tensor) -> Tensor:
        """Expand (r, d_in / group) to (r, d_in)."""
        return a.repeat_interleave(self.group, dim=1) / self.group

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The ``A`` on groups that `forward` expands to this one, or the nearest."""
        return weight.unflatten(1, (-1, self.group)).sum(2)


def pool_inputs(adapted: PeftModel, group: int = GROUP) -> PeftModel:
    """Let every LoRA layer of a model read means of groups of its input features, in place: ``W + s B A P``.

    Parameters
    ----------
    adapted : peft.PeftModel
        With a LoRA adapter named ``default``, whose ``B`` is zero.
    group : int
        Neighboring features to average, or the largest divisor of this number that divides ``d_in``.

    Returns
    -------
    peft.PeftModel
        The same model with the same outputs; ``A`` is randomly initialized again, (r, d_in / group), as in LoRA.

    Notes
    -----
    The update is the same for all columns of a group. A base with one zero point for each row and group absorbs it in
    the zero points, and stays quantized. Here it is run on any base.

    References
    ----------
    QA-LoRA, arXiv 2309.14717.
    """
    for layer in adapter_layers(adapted).values():
        linear = layer.lora_A[ADAPTER]
        weight = linear.get_parameter("weight")
        pooled = Pooled(math.gcd(group, weight.shape[1]))
        values = torch.empty(weight.shape[0], weight.shape[1] // pooled.group, dtype=weight.dtype, device=weight.device)
        nn.init.kaiming_uniform_(values, a=math.sqrt(5))
        parametrize.register_parametrization(linear, "weight", pooled)
        linear.weight = pooled(values)
    return adapted
