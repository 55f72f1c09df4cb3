"""The weight of a linear layer, whatever it is stored as."""

from __future__ import annotations

import contextlib
import copy
import itertools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from accelerate.utils import align_module_device
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tlora.models.sharding import full_tensor, refuse_split
from tlora.models.targets import check_is_model, is_linear, shape
from tlora.utils.devices import on_host
from tlora.utils.reproducibility import exact_products

Model = TypeVar("Model", bound=nn.Module)
_WAY_OUT = "load the model unquantised, or quantised by bitsandbytes"


FINGERPRINTS_BEFORE_MERGING: weakref.WeakKeyDictionary[nn.Module, list[dict[str, Tensor]]] = weakref.WeakKeyDictionary()
"""Of each model that adapters were merged into: fingerprints of its weights before each of them."""

SIMILARITY_THRESHOLD = 0.9
"""Two fingerprints that are more alike than this are of one weight, quantised or not."""


# By this attribute a 4-bit layer of bitsandbytes asks, at every call, whether the CPU has instructions for packed
# weights, and packs its weight for good when it is first used for inference. No gradient passes through it after that,
# and nothing says so: an evaluation before training would leave the layers below without theirs.
_SWITCH = "support_avx512bf16_for_cpu"


def weight(module: nn.Module, name: str = "") -> Float[Tensor, "d_out d_in"]:
    """The weight of a linear layer in `torch.nn.Linear` layout.

    Parameters
    ----------
    module : torch.nn.Module
        `torch.nn.Linear`, the ``Conv1D`` of GPT-2, a quantised layer that PEFT can dequantise (bitsandbytes
        4-bit and 8-bit), or any of these offloaded to the CPU or the disk by accelerate, or sharded by FSDP2: then
        every process of the model has to ask for it.
    name : str
        Name of the layer, for the messages of errors.

    Returns
    -------
    (d_out, d_in) tensor
        Detached, on the layer's device; a view of the stored weight where that is possible: only to be read.

    Raises
    ------
    TypeError
        If the weight is packed in a format that cannot be unpacked (GPTQ, AWQ).
    ValueError
        If it is on the ``meta`` device, or was taken apart by tensor parallelism or ZeRO-3.
    """
    label = f"layer {name!r} ({type(module).__name__})" if name else f"a {type(module).__name__} layer"
    refuse_split(getattr(module, "weight", None), label)
    with align_module_device(module):
        found = full_tensor(_unpacked(module, label).detach())
    if found.is_meta:
        raise ValueError(f"{label} is on the meta device and has no weight: load the model with its weights")
    coded = not found.is_floating_point() or found.dtype.itemsize < 2  # eight bits have scales beside them
    if found.shape != shape(module) or coded:
        raise TypeError(f"the weight of {label} is packed as {found.dtype} {tuple(found.shape)}: {_WAY_OUT}")
    return found


def _unpacked(module: nn.Module, label: str) -> Tensor:
    layer: Any = module
    if isinstance(module, Conv1D):
        return layer.weight.T
    stored = getattr(module, "weight", None)
    if type(stored).__name__ == "Int8Params":
        # PEFT's way moves the parameter, which loses its scales on a CPU and breaks the layer.
        scales = layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
        return layer.weight.data * (scales.view(-1, 1) / 127)
    if is_packed(module):
        return _answer_to_unit_vectors(module)
    if not isinstance(stored, Tensor) and not hasattr(module, "W_q"):
        raise TypeError(f"the weight of {label} cannot be unpacked: {_WAY_OUT}")
    return dequantize_module_weight(module)


def _answer_to_unit_vectors(module: nn.Module) -> Tensor:
    """What a layer multiplies by, read off its output.

    On some CPUs bitsandbytes reorders the bytes of a 4-bit weight when the layer is first used; neither PEFT
    nor its own way back (0.50) reads them correctly then.
    """
    layer: Any = module
    with torch.no_grad():
        output = layer.forward(torch.eye(shape(module)[1]))
    return (output if layer.bias is None else output - layer.bias).T


@exact_products()
def fingerprint(matrix: Tensor) -> Tensor:
    """Sixteen rows of a weight, each projected on one fixed random direction.

    Quantisation hardly turns this vector, and weights of two models have no more of it in common than chance.

    Parameters
    ----------
    matrix : (d_out, d_in) tensor
        The weight, any float dtype and device.

    Returns
    -------
    (16,) float32 tensor
        On the matrix's device.
    """
    generator = torch.Generator().manual_seed(matrix.shape[1])
    direction = torch.randn(matrix.shape[1], generator=generator).to(matrix.device)
    rows = torch.linspace(0, matrix.shape[0] - 1, 16, device=matrix.device).long()
    return matrix[rows].float() @ direction


def fingerprint_similarity(one: Tensor, other: Tensor) -> float:
    """Cosine of two fingerprints, and 1 of the same ones: those of a weight of zeros point nowhere.

    Parameters
    ----------
    one, other : (16,) float32 tensor
        From `fingerprint`.

    Returns
    -------
    float
    """
    return 1.0 if torch.equal(one, other) else float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def check_same_model(
    model: nn.Module,
    fingerprints: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, int]],
    *,
    what: str = "these results are",
    way_out: str = "calibrate this model",
) -> None:
    """Refuse results that were computed on another model.

    Parameters
    ----------
    model : torch.nn.Module
        The model that the results are to be used with; of one with adapters, the layers under them.
    fingerprints, shapes : mapping
        Of the modules of the results, by full name; those without a fingerprint are compared by shape alone.
    what, way_out : str
        What the message says of the results, and advises.

    Raises
    ------
    ValueError
        If a module is missing, has another shape, or its weight points elsewhere; or if the results are of this model
        as it was before `tlora.merge`.
    """
    modules, before = base_modules(model), fingerprints_before_merging(model)
    for name, expected in shapes.items():
        if name not in modules:
            raise ValueError(f"{what} of another model: it has {name}, this one does not; {way_out}")
        if shape(modules[name]) != tuple(expected):
            sizes = f"{tuple(expected)} there, here it is {shape(modules[name])}"
            raise ValueError(f"{what} of another model: {name} was {sizes}; {way_out}")
    known = [name for name in shapes if name in fingerprints]
    prints = on_host(fingerprint(weight(modules[name], name)) for name in known)
    for name, here in zip(known, prints, strict=True):
        theirs = fingerprints[name]
        if any((then[name] - theirs).norm() < (here - theirs).norm() for then in before if name in then):
            raise ValueError(f"{what} of this model as it was before an adapter was merged into it; {way_out}")
        alike = fingerprint_similarity(here, theirs)
        if not alike > SIMILARITY_THRESHOLD:
            words = f"likeness {alike:.2f} of 1"
            raise ValueError(f"{what} of another model: {name} has another weight there ({words}); {way_out}")


def base_fingerprints(model: PeftModel) -> dict[str, Tensor]:
    """Fingerprints of the weights under the LoRA layers; packed ones, and others that cannot be read, go without."""
    found = {}
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and is_linear(layer.get_base_layer()):
            with contextlib.suppress(TypeError, ValueError):
                found[name] = fingerprint(weight(layer.get_base_layer(), name))
    return dict(zip(found, on_host(found.values()), strict=True))


def get_base_model(model: Any) -> Any:
    """The model itself, or the one under its adapters.

    Raises
    ------
    TypeError
        If it is not a model.
    """
    check_is_model(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def fingerprints_before_merging(model: nn.Module) -> list[dict[str, Tensor]]:
    """Fingerprints of the model's weights before each adapter that `tlora.merge` folded into it."""
    return FINGERPRINTS_BEFORE_MERGING.get(get_base_model(model), [])


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model by full name; of one with adapters, the layers under them."""
    base = get_base_model(model)
    return {n: m.get_base_layer() if isinstance(m, BaseTunerLayer) else m for n, m in base.named_modules()}


def is_packed(module: nn.Module) -> bool:
    """Whether a layer's weight was packed, which cannot be undone."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))


def refuse_packed(model: nn.Module) -> None:
    """Raise where a gradient would be lost without a word.

    Raises
    ------
    ValueError
        If a layer was packed.
    """
    for name, module in model.named_modules():
        if is_packed(module):
            raise ValueError(
                f"bitsandbytes has packed {name} for inference on this CPU, and no gradient passes through it any "
                "more: load the model again, and calibrate and train before it is evaluated or generates anything"
            )


def copy_sharing_weights(model: Model) -> Model:
    """A copy of a model with modules of its own, whose weights are those of the model itself.

    Parameters
    ----------
    model : torch.nn.Module
        Nothing of it is changed, whatever is put on the copy or frozen there.

    Returns
    -------
    torch.nn.Module
        It takes no memory for weights. Who writes into a weight in place writes into those of the model.
    """
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): _same_values(tensor) for tensor in tensors})


def _same_values(tensor: Tensor) -> Tensor:
    """A parameter of its own with the same memory; what is not a plain one, as in quantised layers, itself."""
    return nn.Parameter(tensor.data, tensor.requires_grad) if type(tensor) is nn.Parameter else tensor


@contextlib.contextmanager
def intact(model: nn.Module) -> Iterator[None]:
    """Within the block no 4-bit layer packs itself, whatever it is used for, and 8-bit ones can be moved."""
    able = [module for module in model.modules() if getattr(module, _SWITCH, False)]
    _keep_scales(model)
    try:
        for module in able:
            setattr(module, _SWITCH, False)
        yield
    finally:
        for module in able:
            setattr(module, _SWITCH, True)


def _keep_scales(model: nn.Module) -> None:
    """Give 8-bit weights their scales back: a layer that was used holds them in its state, and moving loses them."""
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        state = getattr(module, "state", None)
        if type(weight).__name__ == "Int8Params" and state is not None and weight.SCB is None:
            weight.SCB = state.SCB
