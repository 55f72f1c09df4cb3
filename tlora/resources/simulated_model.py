"""Steps of a model without data: the bytes and operations of calibration and of each kind of training."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from tlora.allocation.footprint import FULL
from tlora.models.experts import SKETCHED_FROM, is_expert, parameter_name
from tlora.models.forward import has_argument
from tlora.models.hooks import ObservationError, observe_gradients
from tlora.models.targets import Target, head_modules, join_experts, output_embeddings
from tlora.resources.setup import QUANTIZED_BYTES, Setup
from tlora.resources.simulation import Blocks, Simulation, group_blocks, keep_blocks

CALIBRATION = "calibration"
"""The kind of step that is not training: a batch of the calibration."""

NEEDS_ALL_BLOCKS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What models raise that cannot run without some of their blocks."""


class Weights(NamedTuple):
    """Bytes of a model's weights: all, those outside of its blocks, and the largest block."""

    total: int
    outside: int
    block: int

    def bytes_per_gpu(self, gpus: int) -> int:
        """Return the bytes on a GPU: its shard, what is outside of blocks, and two blocks, one of them prefetched."""
        return self.total if gpus <= 1 else self.total // gpus + self.outside + 2 * self.block


class Step(NamedTuple):
    """Bytes and operations of a step, in addition to the weights.

    ``peak`` includes the adapter and its gradient, but no gradients of the base and no states of an optimizer;
    ``stored`` are the bytes of it that are there between the forward and the backward pass.
    """

    peak: int
    stored: int
    flops: int


class SimulatedModel:
    """A model without data: its sizes, and its steps, each of which is run once.

    Attributes
    ----------
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each target module.
    shared : dict of str
        For each module the first one that reads the same input, after a step of calibration was run; of an expert
        itself.
    parameters, head : int
        Parameters of the model, and of the head of a classifier.
    """

    def __init__(self, simulation: Simulation, model: Any, targets: dict[str, Target]) -> None:
        self.model = model
        model.config.use_cache = False  # as in calibration and training
        self.shapes = {name: (target.d_out, target.d_in) for name, target in targets.items()}
        self.shared: dict[str, str] = {}
        self.parameters = sum(p.numel() for p in model.parameters())
        self.head = sum(p.numel() for name in head_modules(model) for p in model.get_submodule(name).parameters())
        self._simulation, self._targets, self._groups = simulation, targets, group_blocks(model)
        self._steps: dict[Any, Step] = {}
        self._weights: dict[int | None, Weights] = {}
        self._shares: dict[str, float] = {}
        self._experts = Counter(parameter_name(name) for name in targets)

    @property
    def distinct(self) -> list[str]:
        """The first reader of each input of which there is a covariance."""
        return list(dict.fromkeys(self.shared[name] for name in self.shapes))

    def share(self, name: str) -> float:
        """Return the share of the tokens that a target reads: of one of several experts, what is routed to each."""
        return self._shares.get(parameter_name(name).rpartition(".")[0], 1.0) if is_expert(name) else 1.0

    def is_one_of_many(self, name: str) -> bool:
        """Whether it is one of so many experts that their statistics are sketched."""
        return self._experts[parameter_name(name)] >= SKETCHED_FROM

    def weights(self, bits: int | None) -> Weights:
        """Return the bytes of the weights, if linear layers are quantized to so many bits."""
        if bits not in self._weights:
            self._weights[bits] = _weights(self.model, self._groups, bits)
        return self._weights[bits]

    def run(self, setup: Setup, kind: str) -> Step:
        """Run the model's code for a calibration batch (kind ``"calibration"``), or a training step of a kind."""
        size = setup.batch_size, setup.length, setup.labels
        key = (kind, *size, setup.bits is not None, setup.gradient_checkpointing, setup.fisher and kind == CALIBRATION)
        if key not in self._steps:
            self._steps[key] = self._run(setup, kind)
        return self._steps[key]

    def _run(self, setup: Setup, kind: str) -> Step:
        model, quantized = self.model, _quantized_layers(self.model) if setup.bits and kind != FULL else []
        if setup.gradient_checkpointing and not model.supports_gradient_checkpointing:
            raise ValueError(f"gradient_checkpointing=True: {type(model).__name__} does not support it, leave it out")

        def count() -> Step:
            running = {name for name, _ in model.named_modules()}
            present = {name: target for name, target in self._targets.items() if _holder(name) in running}
            with contextlib.ExitStack() as undo:
                for layer in quantized:
                    undo.enter_context(_unpacking(layer))
                if kind == FULL:
                    return _full_step(self._simulation, model, setup)
                if kind != CALIBRATION:
                    return _adapter_step(self._simulation, model, present, setup, kind)
                step, inputs, shares = _calibration_pass(self._simulation, model, present, setup)
                self.shared, self._shares = inputs | self.shared, shares | self._shares
                return step

        try:
            step = count_all_blocks(self._groups, count)
        except ObservationError:
            raise
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"{type(model).__name__} cannot be estimated: its code depends on the values of tensors, which have no "
                "data here"
            ) from error
        if kind == CALIBRATION:
            self.shared |= {name: name for name in self._targets if is_expert(name)}
            _share_as_second_block(self._groups, self.shared, self._targets)
            share = max(self._shares.values(), default=1.0)
            self._shares = {_holder(name): self._shares.get(_holder(name), share) for name in self._targets}
        return step

    def block_peak(self, setup: Setup) -> int:
        """Return the peak, without weights and gradients, of a full step of one block of each kind."""
        with keep_blocks({blocks: 1 for blocks in self._groups}), contextlib.suppress(*NEEDS_ALL_BLOCKS):
            return _full_step(self._simulation, self.model, replace(setup, labels=1)).peak
        return 0


def count_all_blocks(groups: list[Blocks], count: Callable[[], Step]) -> Step:
    """Return the counts of the whole model, from runs with one block of each group, and with two of one.

    All counts grow equally with each block of a group. Models that do not run with fewer blocks are run completely.
    """
    repeated = [blocks for blocks in groups if len(blocks.keys) > 2]
    total, simulated = sum(len(blocks.keys) for blocks in groups), len(groups)
    if not repeated or (1 + len(repeated)) * simulated + len(repeated) >= total:
        return count()
    few = {blocks: 1 if blocks in repeated else len(blocks.keys) for blocks in groups}
    try:
        with keep_blocks(few):
            first = np.array(count())
        counts = first.copy()
        for blocks in repeated:
            with keep_blocks(few | {blocks: 2}):
                counts += (len(blocks.keys) - 1) * (np.array(count()) - first)
    except NEEDS_ALL_BLOCKS:
        return count()
    return Step(*map(int, counts))


def _share_as_second_block(groups: list[Blocks], shared: dict[str, str], targets: dict[str, Target]) -> None:
    """Let modules of blocks that were not run share inputs as those of the second block of their group."""
    for names in (blocks.names() for blocks in groups):
        for block in names[2:]:
            for name in targets:
                if name not in shared and name.startswith(f"{block}."):
                    reader = shared[names[1] + name.removeprefix(block)]
                    shared[name] = reader.replace(f"{names[1]}.", f"{block}.", 1)


def _weights(model: nn.Module, groups: list[Blocks], bits: int | None) -> Weights:
    packed = {id(layer.weight): QUANTIZED_BYTES[bits] for layer in _quantized_layers(model)} if bits else {}

    def stored_bytes(module: nn.Module) -> int:
        tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        return int(sum(tensor.numel() * packed.get(key, tensor.itemsize) for key, tensor in tensors.items()))

    names = [name for group in groups for name in group.names()]
    total, blocks = stored_bytes(model), [stored_bytes(model.get_submodule(name)) for name in names]
    return Weights(total, total - sum(blocks), max(blocks, default=0))


def _quantized_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that bitsandbytes quantizes: all linear ones except those that compute logits."""
    left_out = {id(output_embeddings(model)), *(id(model.get_submodule(name)) for name in head_modules(model))}
    return [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and id(m) not in left_out]


@contextlib.contextmanager
def _unpacking(layer: Any) -> Iterator[None]:
    """Let a layer make its weight for each product, as quantized ones do, keeping none for the backward pass."""
    shape = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]

    def forward(x: Tensor) -> Tensor:
        product: Tensor = _Unpacked.apply(x, shape)
        return product if layer.bias is None else product + layer.bias

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ gradient.new_empty(ctx.shape), None


def _calibration_pass(
    simulation: Simulation, model: Any, targets: dict[str, Target], setup: Setup
) -> tuple[Step, dict[str, str], dict[str, float]]:
    """Count a calibration batch; return the first reader of each module's input, and what experts read of the tokens.

    What is routed to which expert depends on values, so the experts run as in the model's own code. Their inputs, which
    a calibration holds until the gradients are known, are held here by a hook.
    """
    shared: dict[str, str] = {}
    shares: dict[str, float] = {}
    held: list[Tensor] = []
    first: dict[tuple[int, ...], str] = {}
    linear = {name: target for name, target in targets.items() if not is_expert(name)}
    experts = {_holder(name): model.get_submodule(_holder(name)) for name in targets if is_expert(name)}
    widths = {(parameter_name(name), target.d_in): _holder(name) for name, target in targets.items() if is_expert(name)}

    def add_inputs(name: str, inputs: list[Any], tensors: tuple[int, ...]) -> None:
        shared[name] = first.setdefault(tensors, name)

    def add_gradients(name: str, inputs: list[Any], gradients: list[Any]) -> None:
        """Make the copies that scores are computed from; without checkpointing they are little beside what is held."""
        if recorder.has_blocks:
            copies = [x.float() for x in (*inputs, *gradients)]
            if setup.fisher:
                copies.append(torch.cat(inputs).float() * 1.0)

    def hold(name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            if recorder.has_blocks:  # of one block at a time
                held.clear()
            shares[name] = args[1].shape[-1] / module.num_experts
            rows = args[1].numel()
            held.extend(args[0].new_empty(rows, width) for (_, width), holder in widths.items() if holder == name)

        return hook

    def forward() -> Tensor:
        loss = batch_loss(model, setup)
        recorder.end_forward()
        return loss

    def end() -> None:
        recorder.clear()
        held.clear()

    checkpointing = setup.gradient_checkpointing
    with (
        contextlib.ExitStack() as undo,
        observe_gradients(model, linear, add_inputs, add_gradients, checkpointing) as recorder,
    ):
        for name, module in experts.items():
            undo.callback(module.register_forward_pre_hook(hold(name)).remove)
        if recorder.has_blocks:
            with recorder.looking():
                batch_loss(model, setup)
            held.clear()
        step = _measure(simulation, forward, end)
    return step, shared, shares


def _holder(name: str) -> str:
    """Return the module that runs a target."""
    return parameter_name(name).rpartition(".")[0] if is_expert(name) else name


def _adapter_step(simulation: Simulation, model: Any, targets: dict[str, Target], setup: Setup, kind: str) -> Step:
    """Count a step with LoRA on every target, in the type of the adapter whatever that of the layer, as in PEFT."""
    model.requires_grad_(False)
    before = simulation.now
    options: dict[str, Any] = {"dtype": setup.adapter_dtype(kind), "freeze_a": kind == "B"}
    handles, parameters = [], []
    for target in join_experts(targets.values()).values():
        if target.part == "experts":
            module, _, key = target.name.rpartition(".")
            parameters.append((model.get_submodule(module), key))
            update = _ExpertsUpdate(target, setup.rank, model.get_submodule(module), **options)
            parametrize.register_parametrization(*parameters[-1], update, unsafe=True)
        else:
            handles.append(model.get_submodule(target.name).register_forward_hook(_lora(target, setup.rank, **options)))
    adapters = simulation.now - before
    try:
        with _training(model, setup):
            step = _measure(simulation, lambda: batch_loss(model, setup))
    finally:
        for handle in handles:
            handle.remove()
        for module, key in parameters:
            parametrize.remove_parametrizations(module, key, leave_parametrized=False)
    return step._replace(peak=step.peak + adapters)


class _ExpertsUpdate(nn.Module):
    """What PEFT makes of a parameter with experts in each forward pass: all of their weights with their updates."""

    def __init__(self, target: Target, rank: int, module: Any, dtype: torch.dtype, *, freeze_a: bool) -> None:
        super().__init__()
        rank, self.is_transposed = min(rank, target.d_in, target.d_out), bool(module.is_transposed)
        self.a = nn.Parameter(torch.zeros(target.experts, rank, target.d_in, dtype=dtype), requires_grad=not freeze_a)
        self.b = nn.Parameter(torch.zeros(target.experts, target.d_out, rank, dtype=dtype))

    def forward(self, stored: Tensor) -> Tensor:
        factors = (self.a.mT, self.b.mT) if self.is_transposed else (self.b, self.a)
        left, right = (factor.to(stored.dtype) for factor in factors)
        return torch.baddbmm(stored, left, right, alpha=2.0)


def _full_step(simulation: Simulation, model: Any, setup: Setup) -> Step:
    """Count a step of full fine-tuning, releasing gradients one by one: `_stage_bytes` adds them."""

    def forget(parameter: Tensor) -> None:
        parameter.grad = None

    handles = []
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(forget))
        with _training(model, setup):
            return _measure(simulation, lambda: batch_loss(model, setup))
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(False)


def _measure(simulation: Simulation, forward: Callable[[], Tensor], end: Callable[[], object] = lambda: None) -> Step:
    """Count a forward and a backward pass."""
    before, flops = simulation.now, simulation.flops
    simulation.peak = before
    loss = forward()
    stored = simulation.now - before
    loss.backward()
    end()
    return Step(simulation.peak - before, stored, simulation.flops - flops)


@contextlib.contextmanager
def _training(model: Any, setup: Setup) -> Iterator[None]:
    """Set a model to training, with gradient checkpointing if the setup has it."""
    model.train()
    if setup.gradient_checkpointing:
        switch_checkpointing(model, "enable", {"use_reentrant": False, "preserve_rng_state": False})
    try:
        yield
    finally:
        model.eval()
        if setup.gradient_checkpointing:
            switch_checkpointing(model, "disable")
            model.disable_input_require_grads()  # which enabling has set


def switch_checkpointing(model: Any, verb: str, *options: dict[str, bool]) -> None:
    """Enable or disable checkpointing of activations, as transformers names it: earlier ``gradient_checkpointing_``."""
    named = f"activation_checkpointing_{verb}"
    getattr(model, named if hasattr(model, named) else f"gradient_checkpointing_{verb}")(*options)


def _lora(target: Target, rank: int, dtype: torch.dtype, *, freeze_a: bool) -> Callable[..., Tensor]:
    rank = min(rank, target.d_in, target.d_out)
    a = torch.zeros(rank, target.d_in, dtype=dtype, requires_grad=not freeze_a)
    b = torch.zeros(target.d_out, rank, dtype=dtype, requires_grad=True)

    def update(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].to(dtype)  # held to the end, as PEFT does
        return (output + functional.linear(functional.linear(x, a), b) * 2.0).to(output.dtype)

    return update


def batch_loss(model: Any, setup: Setup) -> Tensor:
    """Return the summed loss of a batch of the given size; a causal model computes logits for labels only."""
    ids = torch.zeros(setup.batch_size, setup.length, dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.zeros(setup.batch_size, setup.labels, dtype=torch.long)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = labels  # shifting labels needs a start token, which a bare config may lack
    elif has_argument(model, "logits_to_keep"):
        inputs["logits_to_keep"] = setup.labels
    logits = model(**inputs).logits
    if logits.ndim == 2:
        return functional.cross_entropy(logits.float(), ids[:, 0], reduction="sum")
    return functional.cross_entropy(logits[:, : setup.labels].float().transpose(1, 2), labels, reduction="sum")
