"""Layers that are stored in few bits."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


class QuantLinear(nn.Module):
    """What GPTQ and AWQ layers look like: sizes and packed integers, no weight."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("qweight", torch.zeros(in_features // 8, out_features, dtype=torch.int32))
