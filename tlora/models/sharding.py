"""Models whose weights FSDP2 has sharded over processes: which processes, and how to read a weight."""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed, nn

from tlora.utils.distributed import Processes

_WAY_OUT = "use ZeRO-2, or FSDP2 (torch.distributed.fsdp.fully_shard)"


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or all shards together if FSDP2 has sharded it; then every process has to call this."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def refuse_split(stored: Any, label: str) -> None:
    """Refuse a weight that is sharded other than by FSDP2: by ZeRO-3, or on a mesh with dimensions besides ``fsdp``.

    PEFT goes by that name, too. Under tensor parallelism a layer computes with its own shard alone.
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
    """Replace shards by whole parameters in a copy of a module, whose weights FSDP2 does not gather."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if hasattr(parameter, "full_tensor"):
                setattr(part, name, nn.Parameter(full_tensor(parameter.detach()), parameter.requires_grad))


def reshard(model: nn.Module) -> None:
    """Let every FSDP2 module return to its shards; the outermost keeps whole weights after a forward pass.

    Changes to parameters, such as ``requires_grad``, take effect only then.
    """
    for module in _sharded_modules(model):
        module.reshard()


def model_processes(model: nn.Module) -> Processes:
    """The processes that share a sharded model and have to run it together; this one alone for any other model."""
    return Processes.current() if is_sharded(model) else Processes()


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has sharded a model."""
    return bool(_sharded_modules(model))


def _sharded_modules(model: nn.Module) -> list[Any]:
    if not distributed.is_available():
        return []
    from torch.distributed.fsdp import FSDPModule  # some builds of torch lack it

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
