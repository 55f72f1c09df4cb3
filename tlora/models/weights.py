"""The weight of a linear layer, in any storage format."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import align_module_device
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tlora.models.experts import Layers
from tlora.models.record import record_of
from tlora.models.sharding import full_tensor, refuse_split
from tlora.models.targets import is_adapted, is_linear, shape
from tlora.utils.devices import on_host
from tlora.utils.reproducibility import exact_products

if TYPE_CHECKING:
    from peft import PeftModel

Model = TypeVar("Model", bound=nn.Module)
_WAY_OUT = "load the model unquantized, or quantized by bitsandbytes"

SIMILARITY_THRESHOLD = 0.9
"""Fingerprints more similar than this belong to the same weight, quantized or not."""

# A 4-bit layer of bitsandbytes reads this attribute at every call. If the CPU has instructions for packed weights, it
# packs its weight for good when it is first used for inference. No gradient passes through it afterwards, without any
# message: after an evaluation, training would leave the layers below without gradients.
_SWITCH = "support_avx512bf16_for_cpu"


def weight(module: nn.Module, name: str = "") -> Float[Tensor, "d_out d_in"]:
    """Read the weight of a linear layer in `torch.nn.Linear` layout.

    Parameters
    ----------
    module : torch.nn.Module
        `torch.nn.Linear`, the ``Conv1D`` of GPT-2, a quantized layer that PEFT can dequantize (bitsandbytes
        4-bit and 8-bit), or any of these offloaded to the CPU or the disk by accelerate, or sharded by FSDP2: then
        every process of the model has to call this.
    name : str
        Name of the layer, for error messages.

    Returns
    -------
    (d_out, d_in) tensor
        Detached, on the layer's device; a view of the stored weight if possible, so do not write into it.
    """
    label = f"layer {name!r} ({type(module).__name__})" if name else f"a {type(module).__name__} layer"
    refuse_split(getattr(module, "weight", None), label)
    with align_module_device(module):
        matrix = full_tensor(_unpack(module, label).detach())
    if matrix.is_meta:
        raise ValueError(f"{label} is on the meta device and has no weight: load the model with its weights")
    is_coded = not matrix.is_floating_point() or matrix.dtype.itemsize < 2  # eight bits come with scales
    if matrix.shape != shape(module) or is_coded:
        raise TypeError(f"the weight of {label} is packed as {matrix.dtype} {tuple(matrix.shape)}: {_WAY_OUT}")
    return matrix


def _unpack(module: nn.Module, label: str) -> Tensor:
    layer: Any = module
    if isinstance(module, Conv1D):
        return layer.weight.T
    stored = getattr(module, "weight", None)
    if type(stored).__name__ == "Int8Params":
        # PEFT would move the parameter, which loses its scales on a CPU and breaks the layer.
        scales = layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
        return layer.weight.data * (scales.view(-1, 1) / 127)
    if is_packed(module):
        return _multiply_identity(module)
    if not isinstance(stored, Tensor) and not hasattr(module, "W_q"):
        raise TypeError(f"the weight of {label} cannot be unpacked: {_WAY_OUT}")
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(module)


def _multiply_identity(module: nn.Module) -> Tensor:
    """Read a weight off the layer's output for unit vectors.

    On some CPUs bitsandbytes reorders the bytes of a 4-bit weight when the layer is first used; then neither PEFT
    nor bitsandbytes itself (0.50) dequantizes them correctly.
    """
    layer: Any = module
    with torch.no_grad():
        output = layer.forward(torch.eye(shape(module)[1]))
    return (output if layer.bias is None else output - layer.bias).T


def parameter(model: nn.Module, name: str) -> Tensor:
    """Read a parameter by its full name, detached, wherever accelerate keeps it; do not write into it."""
    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    with align_module_device(module):
        return full_tensor(module.get_parameter(key).detach())


@exact_products()
def fingerprint(matrix: Tensor) -> Tensor:
    """Project sixteen rows of a weight (d_out, d_in) on one fixed random direction, in float32 on its device.

    Quantization hardly changes the direction of this vector, and those of two models are as similar as random ones.
    """
    generator = torch.Generator().manual_seed(matrix.shape[1])
    direction = torch.randn(matrix.shape[1], generator=generator).to(matrix.device)
    rows = torch.linspace(0, matrix.shape[0] - 1, 16, device=matrix.device).long()
    return matrix[rows].float() @ direction


def fingerprint_similarity(one: Tensor, other: Tensor) -> float:
    """Cosine of two fingerprints; 1 for equal ones, also if they are zero because the weight is; 0 for other shapes."""
    if one.shape != other.shape:
        return 0.0
    return 1.0 if torch.equal(one, other) else float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def check_same_model(
    model: nn.Module,
    fingerprints: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, int]],
    *,
    what: str = "these results are",
    way_out: str = "calibrate this model",
) -> None:
    """Refuse results that were computed on another model; if the model has adapters, the layers under them count.

    ``fingerprints`` and ``shapes`` are those of the modules of the results; modules without a fingerprint are compared
    by shape alone. The error message begins with ``what`` and ends with ``way_out``.
    """
    modules, before = base_modules(model), record_of(get_base_model(model)).before_merging
    for name, expected in shapes.items():
        if name not in modules:
            raise ValueError(f"{what} of another model: it has {name}, this one does not; {way_out}")
        if shape(modules[name]) != tuple(expected):
            sizes = f"{tuple(expected)} there, here it is {shape(modules[name])}"
            raise ValueError(f"{what} of another model: {name} was {sizes}; {way_out}")
    known = [name for name in shapes if name in fingerprints]
    for name, here in weight_fingerprints(model, known).items():
        theirs = fingerprints[name]
        if any((past[name] - theirs).norm() < (here - theirs).norm() for past in before if name in past):
            raise ValueError(f"{what} of this model as it was before an adapter was merged into it; {way_out}")
        similarity = fingerprint_similarity(here, theirs)
        if not similarity > SIMILARITY_THRESHOLD:
            words = f"likeness {similarity:.2f} of 1"
            raise ValueError(f"{what} of another model: {name} has another weight there ({words}); {way_out}")


def weight_fingerprints(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Fingerprints of the weights of these modules on the CPU; inside `fixed_weights` each weight is read once."""
    modules, names = base_modules(model), list(names)
    kept = record_of(get_base_model(model)).fingerprints
    known = {} if kept is None else kept
    unread = [name for name in names if name not in known]
    known.update(zip(unread, on_host(fingerprint(weight(modules[name], name)) for name in unread), strict=True))
    return {name: known[name] for name in names}


def base_fingerprints(model: PeftModel) -> dict[str, Tensor]:
    """Fingerprints of the weights under the LoRA layers; unreadable weights, such as packed ones, have none.

    That of a parameter with experts is the fingerprint of the first.
    """
    from peft.tuners.lora import LoraLayer

    fingerprints, modules = {}, base_modules(model)
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        parameter = getattr(layer, "parameter_name", None)
        name = name if parameter is None else f"{name.replace('.base_layer', '')}.{parameter}"
        if name in modules and is_linear(modules[name]):
            with contextlib.suppress(TypeError, ValueError):
                fingerprints[name] = fingerprint(weight(modules[name], name))
    return dict(zip(fingerprints, on_host(fingerprints.values()), strict=True))


def get_base_model(model: Any) -> Any:
    """The model itself, or the one under its adapters."""
    return model.get_base_model() if is_adapted(model) else model


def model_name(base: Any) -> str:
    """The name or path that a base model was loaded by, for a result's `Meta`; its class if it has none."""
    return str(base.config.name_or_path or type(base).__name__)


def base_modules(model: nn.Module) -> Layers:
    """The modules of a model by full name, and the layers of its experts; if it has adapters, those under them."""
    base = get_base_model(model)
    return Layers({n: m.get_base_layer() if is_adapted(m) else m for n, m in base.named_modules()})


def has_four_bits(module: nn.Module) -> bool:
    """Whether bitsandbytes holds a layer's weight in 4 bits."""
    return _quant_state(module) is not None


def is_packed(module: nn.Module) -> bool:
    """Whether bitsandbytes packed a layer's weight, which cannot be undone."""
    return bool(getattr(_quant_state(module), "packing_format_for_cpu", False))


def _quant_state(module: nn.Module) -> Any:
    return getattr(getattr(module, "weight", None), "quant_state", None)


def refuse_packed(model: nn.Module) -> None:
    """Refuse a model with packed layers, which would lose gradients without a message."""
    for name, module in model.named_modules():
        if is_packed(module):
            raise ValueError(
                f"bitsandbytes packed the 4-bit weight of {name} when the model was used for inference on this CPU, "
                "and no gradient passes through it any more: load the model again, and run it by functions of tlora "
                "alone before this one (task.predict packs nothing, model.generate does)"
            )


def copy_sharing_weights(model: Model) -> Model:
    """Copy the modules of a model, but share its weights: adapters and hooks on the copy, or freezing it, are its own.

    It needs no memory for weights. Writing into its weights in place changes those of the model.
    """
    tensors = itertools.chain(model.parameters(), model.buffers(), _plain_attributes(model))
    return copy.deepcopy(model, {id(tensor): _share_values(tensor) for tensor in tensors})


def _plain_attributes(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that layers hold beside parameters and buffers.

    8-bit layers of bitsandbytes move some from their weight into their state at the first use; PEFT's layers keep the
    adapter of an embedding that they are tied to.
    """
    for module in model.modules():
        state, options = vars(module).get("state"), vars(module).get("kwargs")
        if type(state).__name__ == "MatmulLtState":
            yield from (value for value in vars(state).values() if isinstance(value, Tensor))
        if isinstance(options, dict):
            yield from options.get("tied_adapter", {}).values()


def _share_values(tensor: Tensor) -> Tensor:
    """A new parameter of the same class with the same memory; tensors that are no parameters are returned themselves.

    A quantized one has its own attributes: a layer of bitsandbytes changes them when it is first used.
    """
    if not issubclass(type(tensor), nn.Parameter):
        return tensor
    copied = torch.Tensor._make_subclass(type(tensor), tensor.data, tensor.requires_grad)
    for name, value in vars(tensor).items():
        setattr(copied, name, value if isinstance(value, Tensor | nn.Module) else copy.copy(value))
    return copied


@contextlib.contextmanager
def intact(model: nn.Module) -> Iterator[None]:
    """Inside the block no 4-bit layer packs itself, and 8-bit layers can be moved."""
    layers = [module for module in model.modules() if getattr(module, _SWITCH, False)]
    _keep_scales(model)
    try:
        for module in layers:
            setattr(module, _SWITCH, False)
        yield
    finally:
        for module in layers:
            setattr(module, _SWITCH, True)


def _keep_scales(model: nn.Module) -> None:
    """Give 8-bit weights their scales back: a used layer holds them in its state, and moving it would lose them."""
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        state = getattr(module, "state", None)
        if type(weight).__name__ == "Int8Params" and state is not None and weight.SCB is None:
            weight.SCB = state.SCB
