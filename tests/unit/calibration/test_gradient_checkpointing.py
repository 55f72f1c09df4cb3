"""Calibration whose blocks run twice: the same numbers to the last bit, in the memory of a checkpointed step."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.quantized import needs_bitsandbytes
from tests.helpers.results import base, same, subspaces
from tests.helpers.training_steps import allocated_peak
from tlora.resources.simulated_model import switch_checkpointing


def calibrated(model: Any, batches: list[Any], **options: Any) -> tlora.Calibration:
    return tlora.calibrate(model, batches, gradient=True, fisher=True, progress=False, **options)


def packed(model: Any) -> dict[str, torch.Tensor]:
    ids = tiny_batch(model, (9,))["input_ids"]
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    return {"input_ids": ids, "labels": ids, "position_ids": positions}


class _Looped(nn.Module):
    """A list of blocks in which one block runs twice, as in models whose blocks share their weights."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.block(self.block(x, **kwargs), **kwargs)


def with_a_block_that_runs_twice() -> Any:
    model = tiny_model("llama")
    model.model.layers[1] = _Looped(model.model.layers[1])
    return model


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], list[Any]]]] = {
    "both paddings": (
        lambda: tiny_model("llama"),
        lambda model: [tiny_batch(model), tiny_batch(model, padding="left", seed=1), tiny_batch(model, (5, 5))],
    ),
    "packed rows": (lambda: tiny_model("llama"), lambda model: [packed(model)]),
    "Conv1D": (lambda: tiny_model("gpt2"), lambda model: [tiny_batch(model)]),
    "an encoder that all decoder blocks read": (lambda: tiny_model("t5"), lambda model: [tiny_batch(model)]),
    "normalization after the block": (lambda: tiny_model("bert"), lambda model: [tiny_batch(model)]),
    "a block that runs twice": (with_a_block_that_runs_twice, lambda model: [tiny_batch(model)]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_the_same_to_the_last_bit(case: str) -> None:
    make, batches = CASES[case]
    model = make()
    plain, checkpointed = (calibrated(model, batches(model), gradient_checkpointing=g) for g in (False, True))
    assert same(plain, checkpointed)


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_gives_the_same_numbers(bits: int, tmp_path: Path) -> None:
    tiny_model("llama", hidden_size=128, intermediate_size=192).save_pretrained(tmp_path)
    options = {f"load_in_{bits}bit": True}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**options)).eval()
    batches = [tiny_batch(model), tiny_batch(model, (5, 5))]
    assert same(*(calibrated(model, batches, gradient_checkpointing=g) for g in (False, True)))


def test_an_offloaded_base_gives_the_same_numbers() -> None:
    model, batches = tiny_model("llama"), [tiny_batch("llama")]
    whole = calibrated(model, batches)
    offloaded = accelerate.cpu_offload(tiny_model("llama"), execution_device=torch.device("cpu"))
    assert same(calibrated(offloaded, batches, gradient_checkpointing=True), whole)
    assert calibrated(offloaded, batches).sensitivity.per_sample.equal(whole.sensitivity.per_sample)


@pytest.mark.parametrize(
    "observe",
    [
        lambda batches, **options: tlora.gradient_capture(base(), batches, {"wc": subspaces()}, ranks=[2], **options),
        lambda batches, **options: tlora.direction_activations(base(), subspaces(), batches, need=True, **options),
    ],
)
def test_what_else_observes_gradients_finds_the_same(observe: Callable[..., Any]) -> None:
    plain, checkpointed = (
        observe([tiny_batch("llama")], gradient_checkpointing=g, progress=False) for g in (False, True)
    )
    assert same(plain, checkpointed)


def block_runs(model: Any, call: Callable[[], object]) -> int:
    """How often the last block runs."""
    runs: Counter[str] = Counter()
    handle = model.model.layers[-1].mlp.act_fn.register_forward_hook(lambda *_: runs.update(["block"]))
    call()
    handle.remove()
    return runs["block"]


def test_it_is_as_the_model_is_set_and_as_training_will_be() -> None:
    model, batch = tiny_model("llama"), tiny_batch("llama")
    recipe = tlora.Recipe.named("lora")
    options = {"rank": 2, "samples": 3, "progress": False}

    def prepared(recipe: tlora.Recipe) -> int:
        return block_runs(model, lambda: tlora.prepare(model, [batch], recipe, **options))

    once = prepared(recipe)
    twice = prepared(recipe.override(train={"gradient_checkpointing": True}))
    assert twice > once
    assert (
        block_runs(model, lambda: tlora.prepare(model, [batch], recipe, gradient_checkpointing=True, **options))
        == twice
    )
    switch_checkpointing(model, "enable")
    assert prepared(recipe) == twice
    assert block_runs(model, lambda: calibrated(model, [batch], gradient_checkpointing=False)) == once


def condition(model: nn.Module) -> list[Any]:
    modules = [(vars(m).get("forward"), m.training, len(m._forward_hooks)) for m in model.modules()]
    flags = [getattr(m, "gradient_checkpointing", None) for m in model.modules()]
    return [modules, flags, [p.requires_grad for p in model.parameters()], model.config.use_cache]


def test_an_error_in_the_second_run_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama").train()
    switch_checkpointing(model, "enable")
    before, runs = condition(model), []

    def fail(*_: object) -> None:
        runs.append(torch._C._current_graph_task_id())
        if runs[-1] != -1:  # in a backward pass
            raise RuntimeError("the second run")

    handle = model.model.layers[0].mlp.act_fn.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="the second run"):
        calibrated(model, [tiny_batch(model)])
    handle.remove()
    assert condition(model) == before


def out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("options", "ways"),
    [
        ({}, ["gradient_checkpointing=True", "covariance='sketch'", "shorter"]),
        ({"gradient_checkpointing": True, "covariance": "sketch", "sketch_size": 4}, ["shorter"]),
    ],
)
def test_out_of_memory_names_what_takes_less(options: dict[str, Any], ways: list[str]) -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp.act_fn.register_forward_hook(out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match=".*".join(ways)) as error:
        calibrated(model, [tiny_batch(model)], **options)
    taken = {"gradient_checkpointing", "covariance"} & options.keys()
    assert not [name for name in taken if f"{name}=" in str(error.value)]


@pytest.mark.parametrize("make", [lambda: tiny_model("llama"), with_a_block_that_runs_twice])
def test_an_input_that_is_changed_in_place_is_refused(make: Callable[[], Any]) -> None:
    model = make()
    mlp = model.model.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda x: (forward(y := x * 1), y.add_(1))[0]
    with pytest.raises(RuntimeError, match=r"model\.layers\.0\.mlp\.gate_proj is changed in place"):
        calibrated(model, [tiny_batch(model)], gradient_checkpointing=True)


def test_the_inputs_of_one_block_are_held() -> None:
    """Beyond what a pass with two blocks holds, each further block adds the tensor that it reads."""
    sizes = {"hidden_size": 64, "intermediate_size": 256}

    def peak(blocks: int, checkpointing: bool) -> int:
        model = tiny_model("llama", num_hidden_layers=blocks, **sizes)
        batch = tiny_batch(model, (40, 40))
        options = {"gradient_checkpointing": checkpointing, "covariance": "sketch", "sketch_size": 1, "progress": False}
        return allocated_peak(lambda: tlora.calibrate(model, [batch], **options), model.device)

    plain, checkpointed = ((peak(8, g) - peak(2, g)) / 6 for g in (False, True))
    assert checkpointed < 0.25 * plain
