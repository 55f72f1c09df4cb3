"""Tensors without data: what is alive, what is computed, and which blocks of a model are alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.helpers.models import tiny_model
from tlora.resources.simulation import Simulation, group_blocks, keep_blocks, simulation_mode


def measure(simulation: Simulation, act: Callable[[], object]) -> tuple[int, int]:
    """The peak of bytes that ``act`` needs in addition, and the operations of its products."""
    before, flops = simulation.now, simulation.flops
    simulation.peak = before
    act()
    return simulation.peak - before, simulation.flops - flops


def test_bytes_are_counted_while_they_are_alive() -> None:
    with simulation_mode() as simulation:
        kept = torch.zeros(1000)

        def act() -> None:
            a = torch.ones(256)  # 1 kB
            b = a + 1
            del a, b
            torch.ones(512)

        assert measure(simulation, act) == (2048, 0)
        assert simulation.now == 4 * kept.numel()
        assert measure(simulation, lambda: kept.view(10, 100)) == (0, 0)  # no bytes of its own


def test_products_are_counted_forward_and_backward() -> None:
    with simulation_mode() as simulation:
        x, w = torch.zeros(8, 16), torch.zeros(32, 16, requires_grad=True)
        _, forward = measure(simulation, lambda: x @ w.T)
        _, both = measure(simulation, lambda: (x @ w.T).sum().backward())
    assert (forward, both) == (2 * 8 * 16 * 32, 2 * 2 * 8 * 16 * 32)


def test_nothing_is_computed_however_large() -> None:
    with simulation_mode() as simulation:
        size, flops = measure(simulation, lambda: torch.zeros(100_000, 100_000) @ torch.zeros(100_000, 100_000))
    assert (size, flops) == (3 * 4 * 10**10, 2 * 10**15)


def test_the_same_operation_counts_each_time_and_changes_no_other() -> None:
    with simulation_mode() as simulation:
        x = torch.zeros(4, 8)
        kept: list[torch.Tensor] = []
        assert [measure(simulation, lambda: kept.append(x @ x.T)) for _ in range(3)] == [(4 * 4 * 4, 2 * 4 * 8 * 4)] * 3
        assert [measure(simulation, lambda: x.add_(1)) for _ in range(3)] == [(0, 0)] * 3
        batched, w = torch.zeros(2, 3, 8), torch.zeros(8, 5)  # the product of a view, seen as another one
        sizes = [measure(simulation, lambda: kept.append(batched @ w))[0] for _ in range(3)]
        assert sizes == [4 * 2 * 3 * 5] * 3
        short = torch.zeros(4, 8, dtype=torch.bfloat16)
        assert (x + 1).dtype == (short + x).dtype == torch.float32
        assert (short + 1).dtype == torch.bfloat16
        assert (torch.zeros(2, dtype=torch.long) + 1).dtype == torch.long
        assert (torch.zeros(2, dtype=torch.long) + 1.0).dtype == torch.float32  # 1.0 == 1, but they are not the same


def test_what_is_asked_of_a_value_is_answered_by_zero() -> None:
    with simulation_mode():
        assert not torch.ones(3).isinf().any()
        assert torch.rand(()).item() == 0
        assert torch.tensor(5).item() == 0


@pytest.mark.parametrize("checkpointed", [False, True])
def test_attention_makes_no_matrix_of_tokens_by_tokens(checkpointed: bool) -> None:
    tokens = 10_000

    def attend(x: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    with simulation_mode() as simulation:
        x = torch.zeros(1, 1, tokens, 8, requires_grad=True)
        out = checkpoint(attend, x, use_reentrant=False) if checkpointed else None
        size, _ = measure(simulation, lambda: (attend(x) if out is None else out).sum().backward())
    assert size < 10 * x.numel() * 4 < tokens**2
    assert attend(torch.zeros(1, 1, 2, 8)).device.type == "cpu"  # outside it is torch's own again


class Kernels(TorchDispatchMode):
    """Collect the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


ATTENTIONS = {
    "equal heads": ({}, {}),
    "causal": ({}, {"is_causal": True}),
    "one key for all queries": ({"key": (2, 1, 16, 32), "value": (2, 1, 16, 32)}, {}),
    "grouped": ({"key": (2, 2, 16, 32), "value": (2, 2, 16, 32)}, {"enable_gqa": True}),
    "dropout": ({}, {"dropout_p": 0.1}),
    "mask": ({"attn_mask": (2, 1, 16, 16)}, {}),
    "values of another size": ({"value": (2, 4, 16, 8)}, {}),
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("case", ATTENTIONS)
def test_attention_takes_the_kernel_that_the_cpu_takes(case: str, trained: bool) -> None:
    """Asks a private function of torch: if it is gone, ask the one that torch itself asks in its place."""
    shapes, options = ATTENTIONS[case]
    shapes = {name: (2, 4, 16, 32) for name in ("query", "key", "value")} | shapes
    flash = "_scaled_dot_product_flash_attention_for_cpu.default"
    chosen = []
    for context in (contextlib.nullcontext(), simulation_mode()):
        with context, Kernels() as kernels:
            tensors = {
                name: torch.zeros(shape, requires_grad=trained and name != "attn_mask")
                for name, shape in shapes.items()
            }
            functional.scaled_dot_product_attention(**tensors, **options)
        chosen.append(flash in kernels.names)
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    ("family", "config", "groups"),
    [
        ("llama", {"num_hidden_layers": 5}, [["0", "1", "2", "3", "4"]]),
        ("gemma3", {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
         [["0", "2"], ["1", "3"]]),
        ("t5", {"num_layers": 3, "num_decoder_layers": 2}, [["0"], ["1", "2"], ["0"], ["1"]]),
    ],
)  # fmt: skip
def test_blocks_are_alike_by_weights_and_settings(family: str, config: dict, groups: list[list[str]]) -> None:
    """Gemma's blocks differ in what they attend to; T5's first ones alone have weights of relative positions."""
    assert [blocks.keys for blocks in group_blocks(tiny_model(family, **config))] == groups


def test_some_blocks_run_under_their_own_names_and_all_are_back() -> None:
    model = tiny_model("gemma3", num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2)
    before, ids = list(model.model.layers), torch.arange(3, 9).view(1, 6)
    ran: list[nn.Module] = []
    for block in before:
        block.register_forward_hook(lambda module, *_: ran.append(module))
    with contextlib.suppress(KeyboardInterrupt), keep_blocks({blocks: 1 for blocks in group_blocks(model)}):
        model(input_ids=ids)
        assert ran == before[:2]
        assert model.get_submodule("model.layers.1") is before[1]
        with pytest.raises(AttributeError):
            model.get_submodule("model.layers.2")
        raise KeyboardInterrupt
    assert list(model.model.layers) == before
