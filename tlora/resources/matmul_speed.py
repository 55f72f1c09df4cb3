"""How fast a device multiplies, for the times of an estimate."""

from __future__ import annotations

import time

import torch

from tlora.models.loading import floating_dtype


def matmul_speed(device: str | torch.device = "cpu", dtype: str = "float32", seconds: float = 0.1) -> float:
    """Measure the floating-point operations per second of a device in a product of 2,048 by 2,048 matrices.

    Parameters
    ----------
    device : str or torch.device
        The device.
    dtype : str
        Type of the matrices.
    seconds : float
        Time to measure for.

    Returns
    -------
    float
        Speed of the fastest product.
    """
    size = 2048
    a = torch.ones(size, size, device=device, dtype=floating_dtype(dtype))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
