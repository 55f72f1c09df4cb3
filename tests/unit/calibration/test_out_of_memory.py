"""A batch that runs out of memory is run again in smaller parts, with the numbers of samples alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tlora
from tests.helpers.models import singles, tiny_batch, tiny_model
from tests.helpers.results import base, subspaces

LENGTHS = (9, 4, 6, 3, 9, 5, 4)


def fail_in_forward(output: torch.Tensor, most: int) -> None:
    if len(output) > most:
        raise torch.OutOfMemoryError("CUDA out of memory")


def fail_in_backward(output: torch.Tensor, most: int) -> None:
    if output.requires_grad:
        output.register_hook(lambda gradient: fail_in_forward(gradient, most))


WHERE: dict[str, tuple[Callable[[torch.Tensor, int], None], int]] = {
    "forward, last block": (fail_in_forward, -1),
    "backward, last block": (fail_in_backward, -1),
    "backward, first block": (fail_in_backward, 0),
}


def limited(model: Any, most: int, where: str = "forward, last block") -> list[int]:
    """Let a model run out of memory with more than so many samples; the list gets the sizes of what it runs."""
    fail, block = WHERE[where]
    sizes: list[int] = []

    def hook(module: Any, args: Any, output: torch.Tensor) -> None:
        if torch._C._current_graph_task_id() == -1 and torch.is_grad_enabled():
            sizes.append(len(output))
        fail(output, most)

    model.model.layers[block].mlp.act_fn.register_forward_hook(hook)
    return sizes


def close(one: Any, other: Any) -> None:
    """All tensors of two results, up to rounding."""
    if isinstance(one, torch.Tensor):
        rounding = 1e-3 if one.dtype == torch.float16 else 1e-5
        scale = float(other.double().abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=rounding * scale)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key])
    elif dataclasses.is_dataclass(one) and not isinstance(one, tlora.results.Meta):
        for field in dataclasses.fields(one):
            close(getattr(one, field.name), getattr(other, field.name))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    "observe",
    [
        lambda model, batches, **options: tlora.calibrate(
            model, batches, gradient=True, fisher=True, sketch_size=8, **options
        ),
        lambda model, batches, **options: tlora.gradient_capture(
            model, batches, {"wc": subspaces()}, ranks=[2], **options
        ),
        lambda model, batches, **options: tlora.direction_activations(
            model, subspaces(), batches, need=True, **options
        ),
    ],
    ids=["calibrate", "gradient_capture", "direction_activations"],
)
def test_the_numbers_are_those_of_samples_alone(observe: Callable[..., Any], where: str, checkpointing: bool) -> None:
    options = {"gradient_checkpointing": checkpointing, "progress": False}
    batches = [tiny_batch("llama", LENGTHS), tiny_batch("llama", (5, 5, 5), seed=1)]
    alone = observe(base(), [single for batch in batches for single in singles(batch)], **options)
    model = tiny_model("llama")
    sizes = limited(model, 2, where)
    close(observe(model, batches, **options), alone)
    assert max(sizes) > 2
    assert min(sizes) <= 2


def test_later_batches_of_that_size_are_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    sizes = limited(model, 2)
    with caplog.at_level("INFO", logger="tlora"):
        tlora.calibrate(model, [tiny_batch(model, LENGTHS[:4], seed=seed) for seed in range(3)], progress=False)
    assert sizes == [4, 2, 2, 2, 2, 2, 2]
    assert len([line for line in caplog.messages if "out of memory" in line]) == 1


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    model = tiny_model("llama")
    sizes = limited(model, 0)
    with pytest.raises(torch.OutOfMemoryError, match="gradient_checkpointing=True"):
        tlora.calibrate(model, [tiny_batch(model, LENGTHS)], progress=False)
    assert sizes == [7, 4, 2, 1]
