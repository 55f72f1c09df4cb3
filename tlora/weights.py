"""The weight of a linear layer, whatever it is stored as."""

from __future__ import annotations

from accelerate.utils import align_module_device
from jaxtyping import Float
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

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
        If the layer's weight is packed in a format that cannot be unpacked (GPTQ, AWQ).
    ValueError
        If this process has no data for it: it is sharded, or on the ``meta`` device.
    """
    label = f"layer {name!r} ({type(module).__name__})" if name else f"a {type(module).__name__} layer"
    with align_module_device(module):
        stored = _stored(module, label)
    if hasattr(stored, "ds_id") or hasattr(stored, "full_tensor"):
        raise ValueError(f"the weight of {label} is sharded: calibrate and save before training distributed")
    if stored.is_meta:
        raise ValueError(f"{label} is on the meta device and has no weight: load the model with its weights")
    if stored.shape != shape(module) or not stored.is_floating_point():
        raise TypeError(
            f"the weight of {label} is packed as {stored.dtype} {tuple(stored.shape)}: {_WAY_OUT}"
        )
    return stored


def _stored(module: nn.Module, label: str) -> Tensor:
    if isinstance(module, Conv1D):
        return module.weight.detach().T
    if not isinstance(getattr(module, "weight", None), Tensor) and not hasattr(module, "W_q"):
        raise TypeError(f"the weight of {label} cannot be unpacked: {_WAY_OUT}")
    return dequantize_module_weight(module).detach()
