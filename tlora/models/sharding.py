"""A model whose weights are spread over processes by FSDP2: whose they are, and how to read one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed, nn

from tlora.utils.distributed import Processes

_WAY_OUT = "use ZeRO-2, or FSDP2 (torch.distributed.fsdp.fully_shard)"


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor.

    Parameters
    ----------
    tensor : Tensor
        As a module holds it.

    Returns
    -------
    Tensor
        The tensor itself; where FSDP2 has left a shard here, all shards together, for which each process has to ask.
    """
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def refuse_split(stored: Any, label: str) -> None:
    """Refuse a weight that was taken apart otherwise than by FSDP2.

    Parameters
    ----------
    stored : Tensor
        The weight, as its layer holds it.
    label : str
        Name of the layer, for the message.

    Raises
    ------
    ValueError
        If it is sharded by ZeRO-3, or on a device mesh of other dimensions than ``fsdp``. PEFT goes by that name, too:
        under tensor parallelism a layer computes with its own shard alone.
    """
    if hasattr(stored, "ds_id"):
        raise ValueError(f"the weight of {label} is sharded by DeepSpeed's ZeRO-3: {_WAY_OUT}")
    names = getattr(getattr(stored, "device_mesh", None), "mesh_dim_names", None) or ()
    if others := [name for name in names if name != "fsdp"]:
        raise ValueError(
            f"the weight of {label} is sharded over the mesh dimension {others[0]!r}, as by tensor parallelism "
            f"(tp_plan): {_WAY_OUT}, on a mesh without names or with the name 'fsdp'"
        )


def unshard(module: nn.Module) -> None:
    """Put whole parameters in the place of shards: a copy of a module is none of those whose weights FSDP2 gathers."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if hasattr(parameter, "full_tensor"):
                setattr(part, name, nn.Parameter(full_tensor(parameter.detach()), parameter.requires_grad))


def reshard(model: nn.Module) -> None:
    """Have every FSDP2 module hold its shards again: the outermost keeps its whole weights after a forward pass.

    What is changed on parameters, such as ``requires_grad``, counts only then.
    """
    for module in _sharded_modules(model):
        module.reshard()


def model_processes(model: nn.Module) -> Processes:
    """The processes that hold a model together and have to run it in step; of one that is whole, this one alone."""
    return Processes.current() if is_sharded(model) else Processes()


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has spread a model over processes."""
    return bool(_sharded_modules(model))


def _sharded_modules(model: nn.Module) -> list[Any]:
    if not distributed.is_available():
        return []
    from torch.distributed.fsdp import FSDPModule  # which some builds of torch lack

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
