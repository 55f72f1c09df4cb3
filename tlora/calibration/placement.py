"""Where the sums of a calibration are kept: beside the model, or on the host if they do not fit there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from tlora.utils.defaults import StatisticsPlacement

SHARE = 0.5
"""Largest share of a device's free memory for sums; the rest is for activations."""


def choose_placement(
    needed: Mapping[torch.device, int], free_bytes: Callable[[torch.device], float]
) -> StatisticsPlacement:
    """Choose the host if, on any device, the needed bytes are more than `SHARE` of the free ones."""
    fits = all(size <= SHARE * free_bytes(device) for device, size in needed.items())
    return "device" if fits else "host"
