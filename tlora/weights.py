"""The weight of a linear layer, whatever it is stored as."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import align_module_device
from jaxtyping import Float
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tlora.packing import is_packed
from tlora.targets import shape

_WAY_OUT = "load the model unquantised, or quantised by bitsandbytes"


def weight(module: nn.Module, name: str = "") -> Float[Tensor, "d_out d_in"]:
    """The weight of a linear layer in `torch.nn.Linear` layout.

    Parameters
    ----------
    module : torch.nn.Module
        `torch.nn.Linear`, the ``Conv1D`` of GPT-2, a quantised layer that PEFT can dequantise (bitsandbytes
        4-bit and 8-bit), or any of these offloaded to the CPU or the disk by accelerate.
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
        If this process has no data for it: it is sharded, or on the ``meta`` device.
    """
    label = f"layer {name!r} ({type(module).__name__})" if name else f"a {type(module).__name__} layer"
    with align_module_device(module):
        found = _unpacked(module, label)
    if hasattr(found, "ds_id") or hasattr(found, "full_tensor"):
        raise ValueError(f"the weight of {label} is sharded: calibrate and save before training distributed")
    found = found.detach()
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
