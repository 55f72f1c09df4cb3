"""Values of a device on the host."""

import pytest
import torch

from tlora.utils.devices import on_host, run_coroutines

TENSORS = [
    torch.tensor(True),
    torch.arange(6, dtype=torch.float64).view(2, 3).T,
    torch.tensor([1.5, -2], dtype=torch.bfloat16),
    torch.empty(0, 3),
    torch.tensor(2**40),
]


def squared(x, times, seen):
    """Squares a number so often, as the host sees it in between."""
    for _ in range(times):
        (value,) = yield [x]
        seen.append(value.device.type)
        x = x * x
    return x


def test_all_tensors_come_with_one_copy(other):
    there = [x.to(other.device) for x in TENSORS]
    watched = other.watch(lambda: on_host([*there, TENSORS[1]]))
    assert watched.ours.total() == 1
    for found, expected in zip(watched.result, [*TENSORS, TENSORS[1]], strict=True):
        assert found.device.type == "cpu"
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_what_is_on_the_cpu_is_not_copied():
    assert all(found is x for found, x in zip(on_host(TENSORS), TENSORS, strict=True))


@pytest.mark.parametrize("times", [[0], [3, 1, 0, 2], []])
def test_computations_are_answered_together(times, other):
    seen = []
    numbers = [torch.tensor(float(n + 2), device=other.device) for n in range(len(times))]
    asking = [squared(x, n, seen) for x, n in zip(numbers, times, strict=True)]
    watched = other.watch(lambda: run_coroutines(asking))
    assert list(map(float, watched.result)) == [float((n + 2) ** 2 ** times[n]) for n in range(len(times))]
    assert watched.ours.total() == max(times, default=0)
    assert set(seen) <= {"cpu"}
