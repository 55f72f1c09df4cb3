"""Observe routed experts while the model runs, which rows each of them reads, or add to their outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tlora.models.experts import expert_names, expert_parameters, is_expert, parameter_name

_IMPLEMENTATION = "tlora_observed"
"""Name of our implementation in transformers' interface for experts."""


@dataclass(frozen=True, eq=False)
class RoutedRows:
    """The rows that one expert reads in a batch, or the gradients at its outputs.

    Attributes
    ----------
    rows : (n, d) tensor
        In the order of their tokens.
    tokens : (n,) int64 tensor
        The token of each row among all tokens of the batch, ascending; on the CPU.
    count : int
        Tokens of the batch, padding included.
    """

    rows: Float[Tensor, "n d"]
    tokens: Int64[Tensor, " n"]
    count: int

    requires_grad = True
    """They depend on tokens."""

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        return self.rows.device

    @property
    def _version(self) -> int:
        return self.rows._version

    def without_data(self) -> RoutedRows:
        """Rows of the same shape on the meta device."""
        return replace(self, rows=torch.empty_like(self.rows, device="meta"))

    def detach(self) -> RoutedRows:
        """The same rows without a graph."""
        return replace(self, rows=self.rows.detach())

    def scaled(self, factor: float) -> RoutedRows:
        """The same rows times a factor, in float32."""
        return replace(self, rows=self.rows.float() * factor)


Rows = Tensor | RoutedRows
"""What a target reads in one call: a row for each token of the batch, or the rows routed to an expert."""

OnGradient = Callable[[RoutedRows], None]
OnProjection = Callable[[str, Tensor, Tensor, list[int], int, Tensor], Tensor | None]
"""Called with the name of a parameter, the rows that it reads, sorted by expert, the token of each on the CPU, the
number of rows of each expert and of tokens of the batch, and its output; returns what is added to the output."""
_observed: WeakKeyDictionary[nn.Module, OnProjection] = WeakKeyDictionary()


@contextlib.contextmanager
def observe_experts(
    model: nn.Module, names: Iterable[str], record: Callable[[str, RoutedRows | None], OnGradient | None]
) -> Iterator[None]:
    """Inside the block, call ``record(name, rows)`` for each expert among these targets when the model runs it.

    ``rows`` are those that the expert reads, or None if it reads none. What ``record`` returns is called with the
    gradients at the outputs of these rows. The router chooses experts as always, and the model computes the same up to
    rounding.
    """
    parameters = dict.fromkeys(parameter_name(name) for name in names if is_expert(name))
    observers = {}
    for name in dict.fromkeys(parameter.rpartition(".")[0] for parameter in parameters):
        module = model.get_submodule(name)
        chosen = [key for key in expert_parameters(module) if f"{name}.{key}" in parameters]
        observers[module] = _recording(name, chosen, record)
    with observed_projections(observers):
        yield


@contextlib.contextmanager
def observed_projections(observers: Mapping[nn.Module, OnProjection]) -> Iterator[None]:
    """Inside the block, call the observer of a module with experts for each of its parameters when the model runs it.

    The model's implementation of experts is restored at the end, also after an error.
    """
    with contextlib.ExitStack() as undo:
        configs: dict[int, Any] = {}
        for module, observer in observers.items():
            config: Any = module.config
            configs[id(config)] = config
            _observed[module] = observer
            undo.callback(_observed.pop, module, None)
        for config in configs.values():
            undo.callback(setattr, config, "_experts_implementation", config._experts_implementation)
            config._experts_implementation = _IMPLEMENTATION
        yield


def _recording(
    module: str, chosen: list[str], record: Callable[[str, RoutedRows | None], OnGradient | None]
) -> OnProjection:
    def see(key: str, x: Tensor, tokens: Tensor, counts: list[int], count: int, output: Tensor) -> None:
        if key not in chosen:
            return
        parts = zip(expert_names(f"{module}.{key}", len(counts)), x.split(counts), tokens.split(counts), strict=True)
        waiting = [
            (record(name, RoutedRows(rows, places, count) if len(rows) else None), places)
            for name, rows, places in parts
        ]

        def collect(gradient: Tensor) -> None:
            for (on_gradient, places), rows in zip(waiting, gradient.split(counts), strict=True):
                if on_gradient is not None:
                    on_gradient(RoutedRows(rows, places, count))

        if any(on_gradient is not None for on_gradient, _ in waiting):
            output.register_hook(collect)

    return see


def _run_experts(module: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Compute what transformers' implementations do, expert by expert, and show what each of them reads."""
    see = _observed.get(module)
    experts = index.reshape(-1)
    order = torch.argsort(experts, stable=True)
    token = order // index.shape[-1]
    counts = torch.bincount(experts, minlength=module.num_experts).tolist()
    tokens = token.cpu()

    def project(key: str, x: Tensor) -> Tensor:
        stored, bias = getattr(module, key), getattr(module, f"{key}_bias") if module.has_bias else None
        outputs = []
        for expert, rows in enumerate(x.split(counts)):
            if len(rows):
                matrix = stored[expert] if module.is_transposed else stored[expert].T
                product = rows.to(matrix.dtype) @ matrix
                outputs.append(product if bias is None else product + bias[expert])
        output = torch.cat(outputs)
        added = None if see is None else see(key, x, tokens, counts, len(hidden), output)
        return output if added is None else output + added

    first, last = expert_parameters(module)
    inner = project(first, hidden[token])
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    output = project(last, inner)
    if getattr(module, "has_post_expert_norm", False):
        output = module.post_expert_norm(output)
    output = output * weights.reshape(-1)[order][:, None]
    return torch.zeros_like(hidden).index_add(0, token, output.to(hidden.dtype))


ALL_EXPERTS_FUNCTIONS.register(_IMPLEMENTATION, _run_experts)
