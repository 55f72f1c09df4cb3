"""Values of a device on the host. Each copy makes the host wait until the device has done all its work."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

HostCoroutine = Generator[list[Tensor], list[Tensor], Result]
"""A computation that needs values on the host now and then: it yields tensors, and is sent these on the CPU."""


def on_host(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, by one copy for all that are on one device.

    Parameters
    ----------
    tensors : iterable of Tensor
        Of any shapes, types and devices; those on the CPU are returned as they are.

    Returns
    -------
    list of Tensor
        In the same order.
    """
    found = list(tensors)
    for device in {x.device for x in found if not x.is_cpu}:
        there = [n for n, x in enumerate(found) if x.device == device]
        parts = [found[n].detach().contiguous().reshape(-1).view(torch.uint8) for n in there]
        for n, part in zip(there, torch.cat(parts).cpu().split([len(part) for part in parts]), strict=True):
            # cloned: a view of another dtype must start at a multiple of its size
            found[n] = part.clone().view(found[n].dtype).view(found[n].shape)
    return found


def run_coroutines(computations: list[HostCoroutine[Result]]) -> list[Result]:
    """What the computations return, run side by side: what they ask for at one time is copied to the host together.

    Parameters
    ----------
    computations : list of HostCoroutine
        They hold their tensors until all have ended.

    Returns
    -------
    list
        In the same order.
    """
    results: dict[int, Result] = {}
    answers: dict[int, list[Tensor] | None] = dict.fromkeys(range(len(computations)))
    while answers:
        asked = {}
        for n, answer in answers.items():
            try:
                asked[n] = next(computations[n]) if answer is None else computations[n].send(answer)
            except StopIteration as ended:
                results[n] = ended.value
        values = iter(on_host(x for tensors in asked.values() for x in tensors))
        answers = {n: [next(values) for _ in tensors] for n, tensors in asked.items()}
    return [results[n] for n in range(len(computations))]
