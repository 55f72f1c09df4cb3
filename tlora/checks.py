"""Checks of values where they enter, shared by the rooms of the walk."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tlora.targets import is_linear, shape
from tlora.utils.reproducibility import exact_products
from tlora.weights import weight

BEFORE_MERGING = "_tlora_before_merging"
"""Attribute of a model that adapters were merged into: fingerprints of its weights before each of them."""

ALIKE = 0.9
"""Two fingerprints that are more alike than this are of one weight, quantised or not."""


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
        On the CPU.
    """
    generator = torch.Generator().manual_seed(matrix.shape[1])
    direction = torch.randn(matrix.shape[1], generator=generator).to(matrix.device)
    rows = torch.linspace(0, matrix.shape[0] - 1, 16, device=matrix.device).long()
    return (matrix[rows].float() @ direction).cpu()


def likeness(one: Tensor, other: Tensor) -> float:
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
    modules, before = base_modules(model), before_merging(model)
    for name, expected in shapes.items():
        if name not in modules:
            raise ValueError(f"{what} of another model: it has {name}, this one does not; {way_out}")
        if shape(modules[name]) != tuple(expected):
            sizes = f"{tuple(expected)} there, here it is {shape(modules[name])}"
            raise ValueError(f"{what} of another model: {name} was {sizes}; {way_out}")
        if name not in fingerprints:
            continue
        here, theirs = fingerprint(weight(modules[name], name)), fingerprints[name]
        if any((then[name] - theirs).norm() < (here - theirs).norm() for then in before if name in then):
            raise ValueError(f"{what} of this model as it was before an adapter was merged into it; {way_out}")
        alike = likeness(here, theirs)
        if not alike > ALIKE:
            words = f"likeness {alike:.2f} of 1"
            raise ValueError(f"{what} of another model: {name} has another weight there ({words}); {way_out}")


def base_fingerprints(model: PeftModel) -> dict[str, Tensor]:
    """Fingerprints of the weights under the LoRA layers; packed or sharded ones, which cannot be read, go without."""
    found = {}
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and is_linear(layer.get_base_layer()):
            with contextlib.suppress(TypeError, ValueError):
                found[name] = fingerprint(weight(layer.get_base_layer(), name))
    return found


def refuse_replicated(config: Mapping[str, Any]) -> None:
    """Refuse an adapter whose config repeats layers of its base: what it is of is no model that we know.

    Raises
    ------
    ValueError
        If it does.
    """
    if config.get("layer_replication"):
        raise ValueError(
            f"layer_replication={config['layer_replication']} adds layers that the base has not, which PEFT alone "
            "reads: use its own functions for this adapter"
        )


def base_of(model: Any) -> Any:
    """The model itself, or the one under its adapters.

    Raises
    ------
    TypeError
        If it is no model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: pass a model, such as tlora.load_model(...)[0]")
    return model.get_base_model() if isinstance(model, PeftModel) else model


def before_merging(model: nn.Module) -> list[dict[str, Tensor]]:
    """Fingerprints of the model's weights before each adapter that `tlora.merge` folded into it."""
    return getattr(base_of(model), BEFORE_MERGING, [])


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model by full name; of one with adapters, the layers under them."""
    base = base_of(model)
    return {n: m.get_base_layer() if isinstance(m, BaseTunerLayer) else m for n, m in base.named_modules()}
