"""Observe a model while it runs, and restore everything afterwards."""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers.modeling_layers import GradientCheckpointingLayer

from tlora.models.experts import is_expert
from tlora.models.observe_experts import OnGradient, RoutedRows, Rows, observe_experts
from tlora.models.sharding import reshard
from tlora.models.targets import Target
from tlora.models.weights import intact, refuse_packed

Inputs = Callable[[str, list[Rows], tuple[int, ...]], None]
Gradients = Callable[[str, list[Rows], list[Rows]], None]


class ObservationError(RuntimeError):
    """A module cannot be observed while the model runs."""


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first argument of a call, by position or by name: a module's input."""
    return args[0] if args else next(iter(kwargs.values()))


class _Part:
    """The calls of modules in a part of a pass: one run of a checkpointed block, or all that is outside of these."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.inputs: dict[str, list[Rows]] = defaultdict(list)
        self.gradients: dict[str, dict[int, Rows]] = defaultdict(dict)
        self.is_again = False
        self._versions: dict[str, list[int]] = defaultdict(list)

    def add(self, name: str, x: Rows) -> None:
        """Hold the input of a call."""
        self.inputs[name].append(x)
        self._versions[name].append(x._version)

    def unchanged(self, name: str) -> list[Rows]:
        """The inputs of a module; refuse those that were changed in place: their values are lost."""
        if self._versions[name] != [x._version for x in self.inputs[name]]:
            raise ObservationError(
                f"the input of {name} is changed in place after the module reads it, so its values are lost: leave "
                "it out with target_modules=[...], or copy the input in the model's code"
            )
        return self.inputs[name]

    def drop(self, *names: str) -> None:
        """Let go of the inputs of modules."""
        for name in names:
            del self.inputs[name], self._versions[name]


class Recorder:
    """Record the inputs of modules in a forward pass, and their gradients in the backward pass.

    A block that is checkpointed runs a second time in the backward pass. Its inputs are handed on after its first run
    and dropped; together with gradients they come from its second run. Whichever of input and gradient is first waits
    for the other. Inputs of other modules, and of modules that run in several blocks, are held from one pass to the
    other.

    Parameters
    ----------
    names : iterable of str
        The modules, in model order.
    on_inputs : callable
        Called in the forward pass as ``on_inputs(name, inputs, tensors)``, with one entry per call: the input, and the
        number of its tensor in this pass. Modules that read the same tensor have the same numbers. An expert has an
        entry for each call in which tokens are routed to it, and may have none.
    on_gradients : callable
        Called in the backward pass as ``on_gradients(name, inputs, gradients)`` once the gradients at the outputs of
        all calls of the module are known: lists with one entry per call.

    Attributes
    ----------
    has_blocks : bool
        Whether blocks are checkpointed, so that the inputs of a pass are never held together.
    """

    def __init__(self, names: Iterable[str], on_inputs: Inputs, on_gradients: Gradients) -> None:
        self.on_inputs, self.on_gradients = on_inputs, on_gradients
        self.has_blocks = False
        self._names = list(names)
        self._in_several_blocks: set[str] = set()
        self._seen: dict[str, list[tuple[_Part, Rows]]] | None = None
        self.clear()

    def clear(self) -> None:
        """Forget the last pass."""
        self._outside = _Part()
        self._now: _Part | None = self._outside
        self._tensors: dict[int, tuple[int, Rows]] = {}
        self._count = itertools.count()
        self._read: set[str] = set()
        self._idle: set[str] = set()
        self._complete: set[str] = set()

    @property
    def inputs(self) -> Mapping[str, list[Rows]]:
        """The inputs that are held, one entry per call; of the whole pass if no block is checkpointed."""
        return self._outside.inputs

    @contextlib.contextmanager
    def looking(self) -> Iterator[dict[str, list[Rows]]]:
        """Record nothing inside; afterwards the dictionary has the inputs of each module as tensors without data.

        It is also noted which modules run in several blocks.
        """
        found: dict[str, list[Rows]] = {}
        self._seen = defaultdict(list)
        try:
            yield found
            for name, calls in self._seen.items():
                found[name] = [x for _, x in calls]
                if len({part for part, _ in calls}) > 1:
                    self._in_several_blocks.add(name)
        finally:
            self._seen = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing inside."""
        now, self._now = self._now, None
        try:
            yield
        finally:
            self._now = now

    def end_forward(self) -> None:
        """Hand on the inputs that are held, and record nothing until the backward pass."""
        self._hand_on(self._outside)
        for name in (name for name in self._names if name in self._idle - self._read):
            self._read.add(name)
            self._complete.add(name)
            self.on_inputs(name, [], ())
        if missing := [name for name in self._names if name not in self._read]:
            raise ObservationError(
                f"{missing[0]} did not run in the model's forward pass, so it has no statistics: leave it out with "
                "target_modules=[...]"
            )
        self._now = None
        self._tensors.clear()

    def backward(self, loss: Tensor) -> None:
        """Backpropagate; modules that custom checkpointing runs again meanwhile are not recorded again.

        A module without a gradient, or whose input was changed in place, is refused: its score would look valid.
        """
        loss.backward()
        if lost := [name for name in self._names if name not in self._complete]:
            raise RuntimeError(
                f"{lost[0]} receives no gradient: in at least one call its output is unused or detached; leave it out "
                "with target_modules=[...]"
            )

    def run_block(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a block checkpointed, unless it is in another one or nothing is recorded."""
        if self._now is not self._outside:
            return forward(*args, **kwargs)
        part = _Part()

        def run(*args: Any) -> Any:
            before, self._now = self._now, part
            try:
                output = forward(*args, **kwargs)
            finally:
                self._now = before
            if part.is_again:
                for name in list(part.inputs):
                    self._deliver(part, name)
            return output

        if self._seen is not None:
            return run(*args)
        # stopped early, the second run would not reach modules whose gradient needs nothing stored
        with set_checkpoint_early_stop(False):
            output = checkpoint(run, *args, use_reentrant=False)
        self._hand_on(part)
        part.is_again = True
        part.drop(*part.inputs)
        # what the block was given stays alive, so that other blocks that read it are recognized
        given = (each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))
        alive = {id(x) for x in itertools.chain(given, *self._outside.inputs.values())}
        self._tensors = {key: entry for key, entry in self._tensors.items() if key in alive}
        return output

    def hook(self, name: str) -> Callable[..., Tensor | None]:
        """Make a forward hook that records the input of module ``name`` and changes no value."""

        def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            part = self._now
            if part is None:
                return None
            x = first_argument(args, kwargs)
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
            if self._seen is not None:
                self._seen[name].append((part, torch.empty_like(x, device="meta").requires_grad_(x.requires_grad)))
            elif name not in self._in_several_blocks:
                self._record(part, name, x, output)
            elif not part.is_again:
                self._record(self._outside, name, x, output)
            return replacement

        return observe

    def record_expert(self, name: str, rows: RoutedRows | None) -> OnGradient | None:
        """Record the rows of an expert, None if it runs without any; return what takes the gradients at its outputs."""
        part = self._now
        if part is None:
            return None
        if rows is None:
            self._idle.add(name)
            return None
        if self._seen is not None:
            self._seen[name].append((part, rows.without_data()))
            return None
        if name in self._in_several_blocks:
            if part.is_again:
                return None
            part = self._outside
        part.add(name, rows)
        if part.is_again:
            return None
        call, recorded = part.calls[name], part
        part.calls[name] += 1
        return lambda gradient: self._collect(recorded, name, call, gradient)

    def _record(self, part: _Part, name: str, x: Tensor, output: Tensor) -> None:
        part.add(name, x)
        if not part.is_again:
            call = part.calls[name]
            part.calls[name] += 1
            output.register_hook(lambda gradient: self._collect(part, name, call, gradient))

    def _hand_on(self, part: _Part) -> None:
        with torch.no_grad():
            for name in self._names if part.inputs else ():
                if name not in part.inputs:
                    continue
                if name in self._read:
                    raise ObservationError(
                        f"{name} runs in one block for some samples and in several for others: calibrate with "
                        "gradient_checkpointing=False"
                    )
                self._read.add(name)
                inputs = part.unchanged(name)
                self.on_inputs(name, inputs, tuple(map(self._number, inputs)))

    def _number(self, x: Rows) -> int:
        """The number of a tensor among those of this pass; held, no other tensor can have its id."""
        if id(x) not in self._tensors:
            self._tensors[id(x)] = next(self._count), x
        return self._tensors[id(x)][0]

    def _collect(self, part: _Part, name: str, call: int, gradient: Rows) -> None:
        part.gradients[name][call] = gradient
        self._deliver(part, name)

    def _deliver(self, part: _Part, name: str) -> None:
        """Hand on a module's inputs and gradients if those of all of its calls are there."""
        calls = part.calls[name]
        if len(part.inputs.get(name, ())) < calls or len(part.gradients.get(name, ())) < calls:
            return
        inputs, gradients = part.unchanged(name), part.gradients.pop(name)
        part.drop(name)
        self._complete.add(name)
        with torch.no_grad():
            self.on_gradients(name, [x.detach() for x in inputs], [gradients[call] for call in range(calls)])


@contextlib.contextmanager
def observe_gradients(
    model: nn.Module,
    targets: Mapping[str, Target],
    on_inputs: Inputs,
    on_gradients: Gradients,
    gradient_checkpointing: bool | None = None,
) -> Iterator[Recorder]:
    """Observe ``targets`` of ``model`` with all parameters frozen, in evaluation mode; see `Recorder`.

    Inside the block no parameter requires a gradient. Dropout and the key-value cache are off, and so is the model's
    own gradient checkpointing: it depends on the training mode, and would run the hooks twice. In its place the
    recorder runs the blocks that `checkpointed_blocks` selects. The output of the token embeddings requires a gradient:
    without it a fully frozen model has no graph. Everything is restored when the block ends, also after an error.
    """
    refuse_packed(model)
    recorder = Recorder(targets, on_inputs, on_gradients)
    with contextlib.ExitStack() as undo:
        undo.enter_context(intact(model))
        undo.callback(reshard, model)
        reshard(model)
        undo.callback(recorder.clear)
        for block in checkpointed_blocks(model, gradient_checkpointing):
            recorder.has_blocks = True
            undo.enter_context(_replaced_forward(block, recorder.run_block))
        for module in model.modules():
            _set_temporarily(undo, module, "training", False)
            if getattr(module, "gradient_checkpointing", False):
                _set_temporarily(undo, module, "gradient_checkpointing", False)
            if getattr(config := getattr(module, "config", None), "use_cache", False):  # an encoder-decoder has three
                _set_temporarily(undo, config, "use_cache", False)
        if hasattr(model.config, "problem_type"):  # a classifier sets it when it computes its loss
            _set_temporarily(undo, model.config, "problem_type", model.config.problem_type)
        for parameter in model.parameters():
            if parameter.requires_grad:
                _set_temporarily(undo, parameter, "requires_grad", False)
        for embedding in token_embeddings(model):
            undo.callback(embedding.register_forward_hook(_require_grad_at_output).remove)
        for name in targets:
            if not is_expert(name):
                handle = model.get_submodule(name).register_forward_hook(recorder.hook(name), with_kwargs=True)
                undo.callback(handle.remove)
        undo.enter_context(observe_experts(model, targets, recorder.record_expert))
        undo.enter_context(torch.enable_grad())
        yield recorder


def checkpointed_blocks(model: nn.Module, gradient_checkpointing: bool | None = None) -> list[nn.Module]:
    """The blocks to run checkpointed: all that transformers checkpoints in training, or None: those that are set so.

    Warns if checkpointing is asked for, or set, and there are none: the model cannot, or does so in code of its own.
    """
    blocks: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    is_set = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    is_asked = bool(is_set) if gradient_checkpointing is None else gradient_checkpointing
    if gradient_checkpointing is None:
        blocks = [block for block in blocks if block.gradient_checkpointing]
    if is_asked and not blocks:
        warnings.warn(
            f"{type(model).__name__} has no blocks that transformers checkpoints: calibration stores all activations",
            stacklevel=2,
        )
    return blocks if is_asked else []


@contextlib.contextmanager
def _replaced_forward(module: nn.Module, run: Callable[..., Any]) -> Iterator[None]:
    """Inside the block, a call of ``module`` calls ``run(forward, ...)``, within its hooks."""
    forward = module.forward
    own = vars(module).get("forward")  # accelerate's, for an offloaded module
    module.forward = functools.wraps(forward)(functools.partial(run, forward))
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


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
