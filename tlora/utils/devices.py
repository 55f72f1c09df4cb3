"""The memory of devices, and copies to the host, as few as possible: each waits for all work of the device."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

HostCoroutine = Generator[list[Tensor], list[Tensor], Result]
"""A generator that yields tensors whose values it needs, and is sent them on the CPU."""


def free_bytes(device: torch.device) -> float:
    """The bytes that PyTorch can still allocate on a GPU; infinite for devices that do not say."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def on_host(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copy tensors of any shape, dtype and device to the CPU, in order, with one copy per device."""
    copies = list(tensors)
    for device in {x.device for x in copies if not x.is_cpu}:
        indices = [n for n, x in enumerate(copies) if x.device == device]
        parts = [copies[n].detach().contiguous().reshape(-1).view(torch.uint8) for n in indices]
        for n, part in zip(indices, torch.cat(parts).cpu().split([len(part) for part in parts]), strict=True):
            # cloned: a view of another dtype must start at a multiple of its size
            copies[n] = part.clone().view(copies[n].dtype).view(copies[n].shape)
    return copies


def run_coroutines(computations: list[HostCoroutine[Result]]) -> list[Result]:
    """Run computations side by side and copy the tensors that they yield in each round to the host together.

    They hold their tensors until all have ended.
    """
    results: dict[int, Result] = {}
    answers: dict[int, list[Tensor] | None] = dict.fromkeys(range(len(computations)))
    while answers:
        requests = {}
        for n, answer in answers.items():
            try:
                requests[n] = next(computations[n]) if answer is None else computations[n].send(answer)
            except StopIteration as ended:
                results[n] = ended.value
        values = iter(on_host(x for tensors in requests.values() for x in tensors))
        answers = {n: [next(values) for _ in tensors] for n, tensors in requests.items()}
    return [results[n] for n in range(len(computations))]
