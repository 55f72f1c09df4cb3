"""Observe a model while it runs, and restore everything afterwards."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tlora.models.sharding import reshard
from tlora.models.targets import Target
from tlora.models.weights import intact, refuse_packed

Gradients = Callable[[str, list[Tensor], list[Tensor]], None]


class ObservationError(RuntimeError):
    """A module cannot be observed while the model runs."""


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first argument of a call, by position or by name: a module's input."""
    return args[0] if args else next(iter(kwargs.values()))


class Recorder:
    """Record the inputs of the target modules in a forward pass, and call back when a module's gradients are known.

    Parameters
    ----------
    on_gradient : callable
        Called in the backward pass as ``on_gradient(name, inputs, gradients)`` once the gradients at the outputs of
        all calls of the module are known: lists with one entry per call.

    Attributes
    ----------
    inputs : dict of list of Tensor
        Inputs by module name since the last `clear`, one entry per call. The tensors are held, not copied: modules
        that read the same tensor are recognized by identity, which is safe only while the tensors are held.
    """

    def __init__(self, on_gradient: Gradients) -> None:
        self.on_gradient = on_gradient
        self.inputs: dict[str, list[Tensor]] = defaultdict(list)
        self._versions: dict[str, list[int]] = defaultdict(list)
        self._gradients: dict[str, dict[int, Tensor]] = defaultdict(dict)
        self._complete: set[str] = set()
        self._forward = True

    def clear(self) -> None:
        """Forget the last pass."""
        self.inputs.clear()
        self._versions.clear()
        self._gradients.clear()
        self._complete.clear()
        self._forward = True

    def inputs_of(self, name: str) -> list[Tensor]:
        """The inputs of module ``name`` in this pass."""
        if name not in self.inputs:
            raise ObservationError(
                f"{name} did not run in the model's forward pass, so it has no statistics: leave it out with "
                "target_modules=[...]"
            )
        return self.inputs[name]

    def pause(self) -> None:
        """Record nothing until the next `clear`."""
        self._forward = False

    def backward(self, loss: Tensor) -> None:
        """Backpropagate; modules that custom checkpointing runs again meanwhile are not recorded again.

        A module without a gradient, or whose input was changed in place, is refused: its score would look valid.
        """
        self.pause()
        loss.backward()
        for name, inputs in self.inputs.items():
            if self._versions[name] != [x._version for x in inputs]:
                raise RuntimeError(
                    f"the input of {name} is changed in place after the module reads it, so its values are lost: leave "
                    "it out with target_modules=[...], or copy the input in the model's code"
                )
        if lost := [name for name in self.inputs if name not in self._complete]:
            raise RuntimeError(
                f"{lost[0]} receives no gradient: in at least one call its output is unused or detached; leave it out "
                "with target_modules=[...]"
            )

    def hook(self, name: str) -> Callable[..., Tensor | None]:
        """Make a forward hook that records the input of module ``name`` and changes no value."""

        def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if not self._forward:
                return None
            x = first_argument(args, kwargs)
            call = len(self.inputs[name])
            self.inputs[name].append(x)
            if not isinstance(output, Tensor):
                raise ObservationError(
                    f"{name} returns a {type(output).__name__}, not a tensor, so its gradient is unknown: leave it "
                    "out with target_modules=[...]"
                )
            replacement = None
            if not x.requires_grad and not output.requires_grad and torch.is_grad_enabled():
                replacement = _require_grad(output)  # e.g. an output computed from positions
            if not output.requires_grad:
                # its score would be zero, and look valid
                raise ObservationError(
                    f"no gradient can reach {name}, which runs without a graph in the model's forward pass (as under "
                    "torch.no_grad): change the model's code, or leave the module out with target_modules=[...]"
                )
            self._versions[name].append(x._version)
            output.register_hook(lambda gradient: self._collect(name, call, gradient))
            return replacement

        return observe

    def _collect(self, name: str, call: int, gradient: Tensor) -> None:
        waiting = self._gradients[name]
        waiting[call] = gradient
        if len(waiting) == len(self.inputs[name]):
            gradients = [waiting[i] for i in range(len(waiting))]
            del self._gradients[name]
            self._complete.add(name)
            self.on_gradient(name, [x.detach() for x in self.inputs[name]], gradients)


@contextlib.contextmanager
def observe_gradients(model: nn.Module, targets: Mapping[str, Target], on_gradient: Gradients) -> Iterator[Recorder]:
    """Observe ``targets`` of ``model`` with all parameters frozen, in evaluation mode.

    Inside the block no parameter requires a gradient. Dropout, gradient checkpointing (it would run the hooks twice)
    and the key-value cache are off. The output of the token embeddings requires a gradient: without it a fully frozen
    model has no graph. Everything is restored when the block ends, also after an error.
    """
    refuse_packed(model)
    recorder = Recorder(on_gradient)
    with contextlib.ExitStack() as undo:
        undo.enter_context(intact(model))
        undo.callback(reshard, model)
        reshard(model)
        undo.callback(recorder.clear)
        for module in model.modules():
            _set_temporarily(undo, module, "training", False)
            if getattr(module, "gradient_checkpointing", False):
                _set_temporarily(undo, module, "gradient_checkpointing", False)
        if getattr(model.config, "use_cache", False):
            _set_temporarily(undo, model.config, "use_cache", False)
        if hasattr(model.config, "problem_type"):  # a classifier sets it when it computes its loss
            _set_temporarily(undo, model.config, "problem_type", model.config.problem_type)
        for parameter in model.parameters():
            if parameter.requires_grad:
                _set_temporarily(undo, parameter, "requires_grad", False)
        for embedding in token_embeddings(model):
            undo.callback(embedding.register_forward_hook(_require_grad_at_output).remove)
        for name in targets:
            handle = model.get_submodule(name).register_forward_hook(recorder.hook(name), with_kwargs=True)
            undo.callback(handle.remove)
        undo.enter_context(torch.enable_grad())
        yield recorder


@contextlib.contextmanager
def observe_inputs(model: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside the block, call ``see(name, input)`` for every call of each of these modules."""
    with contextlib.ExitStack() as undo:
        for name in names:

            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                see(name, first_argument(args, kwargs))

            handle = model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
            undo.callback(handle.remove)
        yield


def _set_temporarily(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def token_embeddings(model: Any) -> list[nn.Module]:
    """The token embeddings of a model, and of its encoder and decoder if it has both; each table once."""
    owners = [model]
    if getattr(model.config, "is_encoder_decoder", False):
        owners += [model.get_encoder(), model.get_decoder()]
    return list({id(table): table for table in map(_token_embedding, owners)}.values())


def _token_embedding(owner: Any) -> nn.Module:
    try:
        table = owner.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = None
    if not isinstance(table, nn.Module) or getattr(getattr(table, "weight", None), "ndim", 0) != 2:
        raise TypeError(
            f"{type(owner).__name__} has no table of token embeddings (get_input_embeddings), at which gradients end: "
            "only models that read token ids through one can be calibrated"
        )
    return table


def _require_grad_at_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
    """Forward hook that gives everything computed from the embeddings a graph."""
    if not isinstance(output, Tensor):
        raise ObservationError(
            f"the table of token embeddings returns a {type(output).__name__}, not a tensor, so no gradient can pass: "
            "only models that read token ids through a plain table can be calibrated"
        )
    return None if output.requires_grad else _require_grad(output)


def _require_grad(output: Tensor) -> Tensor:
    """Return a copy with a graph back to the tensor: some models change their inputs in place."""
    return output.requires_grad_(True).clone()
