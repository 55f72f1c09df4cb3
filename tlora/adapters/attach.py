"""Attach an allocation to a model as an ordinary PEFT adapter; take it off; merge it."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from tlora.adapters.config import check_config, checked_config, given
from tlora.adapters.freeze import freeze_a as freeze
from tlora.adapters.lora_layers import (
    ADAPTER,
    adapter_layers,
    check_name,
    kind_of_adapter,
    part_in_the_base,
    refuse_experts,
    unwrap,
    why_not_merged,
    without_noise,
    wrappers,
)
from tlora.allocation.allocation import Allocation
from tlora.models.offloading import place_stand_ins, refuse_offloaded
from tlora.models.sharding import refuse_split, reshard, unshard
from tlora.models.targets import refuse_adapted
from tlora.models.weights import (
    FINGERPRINTS_BEFORE_MERGING,
    base_fingerprints,
    check_same_model,
    fingerprints_before_merging,
    get_base_model,
)
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.defaults import Rows, default_rows
from tlora.utils.reproducibility import exact_products, temporary_seed

NO_VARIANCE = 1e-6
"""Of a row of A, as a share of the average: what is below is rounding."""

_TRAINABLE_BEFORE: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
"""Of each base that carries an adapter: names of the parameters that were trainable before."""

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, dict[str, Any]] = weakref.WeakKeyDictionary()
"""Of each A that `attach` has put on a model: how it began."""


def attach(
    model: Any,
    subspaces: Subspaces | None,
    allocation: Allocation,
    freeze_a: bool = True,
    rows: Rows | None = None,
    *,
    config: LoraConfig | None = None,
    adapter_name: str = ADAPTER,
    seed: int = 0,
    replace: bool = False,
) -> PeftModel:
    """Put an adapter on the model: A from the subspaces and frozen, B zero, rank and scaling by layer.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model that was calibrated. Its linear layers are wrapped in place, its weights are not written to. It
        may be sharded by FSDP2.
    subspaces : Subspaces or None
        Where A comes from. None initializes A at random as plain LoRA does (the paper's ablation without
        init, there with ``freeze_a=False``).
    allocation : Allocation
        Rank and scaling of each module.
    freeze_a : bool
        Train B alone. A then stays frozen through ``disable_adapter()``, ``set_adapter()`` and reloading.
    rows : {"variance", "whitened", "orthonormal"}, optional
        Length of the rows of A: such that the inputs' variance along each row is that of a random LoRA row,
        ``tr(C) / (3 d_in)`` (where the samples do not determine a row, its variance is taken to be the average,
        ``tr(C) / d_in``), so that LoRA's learning rate is a good start; of subspaces of kind ``"g_whitened"`` such that
        ``A K A^T = I``: what A reads has unit second moment, and no two of its rows read the same; or one, as in the
        paper. By default ``"whitened"`` of that kind and ``"variance"`` of all others.
    config : peft.LoraConfig, optional
        What PEFT is told beside the allocation, e.g. ``LoraConfig(lora_dropout=0.05)``; see `lora_config`.
    adapter_name : str
        What the model calls the adapter.
    seed : int
        Seed of a random A.
    replace : bool
        Take off an adapter that the model carries, instead of refusing, so that a notebook cell can be run again. The
        ``PeftModel`` that had it has the new one then, and is not to be saved.

    Returns
    -------
    peft.PeftModel
        At step 0 it computes exactly what the base computes.

    Raises
    ------
    TypeError
        If the subspaces, the allocation or the config is of another type.
    ValueError
        If the model already has an adapter (with ``replace``: a merged one, or one with parts in the base), is
        sharded by tensor parallelism or ZeRO-3, or has an offloaded part that is to be trained whole, the subspaces are
        of another model or the allocation of other modules, a rank is beyond the directions that were computed,
        ``rows`` is unknown, or ``config`` contradicts the allocation. The model is then as it was.
    RuntimeError
        If PEFT has given a layer another rank or scaling than the allocation has.

    Notes
    -----
    Over a base that FSDP2 has sharded the adapter, which is small, is whole in every process: its parameters are plain
    ones, `train` averages their gradients as it does for a base that is not sharded, and one process saves it. In a
    loop of one's own that is for the loop to do. All processes call this together.

    References
    ----------
    TLoRA, arXiv 2604.18124: ``W + s B A`` with A fixed and B starting at zero.
    """
    if not isinstance(subspaces, Subspaces | None) or not isinstance(allocation, Allocation):
        got = f"a {type(subspaces).__name__} and a {type(allocation).__name__}"
        raise TypeError(f"attach takes (model, subspaces, allocation), got {got} after the model")
    if rows is not None and rows not in get_args(Rows):
        raise ValueError(f"rows={rows!r}: choose one of {', '.join(get_args(Rows))}")
    check_name(adapter_name, ())
    if replace:
        model = get_base_model(model)
    else:
        refuse_adapted(model)
    kind = None if subspaces is None else subspaces.kind
    rows = rows or default_rows(kind)
    initial = _rows_of_a(model, subspaces, allocation, rows)
    overrides = {} if config is None else given(config)
    check_config(model, allocation, overrides)
    for name in allocation.ranks:
        refuse_split(getattr(model.get_submodule(name), "weight", None), repr(name))
    detach(model)
    check_name(adapter_name, (name for name, _ in model.named_parameters()))
    with temporary_seed(seed), back_on_error(model), without_noise():
        config = checked_config(model, allocation, overrides)
        with place_stand_ins(model, allocation.ranks):
            adapted = get_peft_model(model, config, adapter_name=adapter_name)
        refuse_offloaded((n, p) for n, p in adapted.get_base_model().named_parameters() if p.requires_grad)
        for module in adapted.modules():
            if isinstance(module, ModulesToSaveWrapper):
                unshard(module.modules_to_save)
        _apply(adapted, allocation, initial)
        if freeze_a:
            freeze(adapted)
    for layer in adapter_layers(adapted).values():
        _ATTACHED[layer.lora_A[adapter_name]] = {"kind": kind, "rows": rows, "freeze_a": freeze_a, "seed": int(seed)}
    return adapted


def attached_with(model: PeftModel) -> dict[str, Any] | None:
    """How the active adapter of a model began.

    Parameters
    ----------
    model : peft.PeftModel
        Any.

    Returns
    -------
    dict, optional
        ``kind`` and ``rows`` of the subspaces (None of a random A), ``freeze_a`` and ``seed`` of `attach`; None of an
        adapter that was not attached by it in this process, such as one that was loaded, or that is a copy.
    """
    layers = [layer.lora_A for layer in adapter_layers(model).values() if model.active_adapter in layer.lora_A]
    return _ATTACHED.get(layers[0][model.active_adapter]) if layers else None


@contextlib.contextmanager
def back_on_error(model: nn.Module) -> Iterator[None]:
    """Leave the model without adapter and with its own ``requires_grad`` if the block fails."""
    reshard(model)
    _TRAINABLE_BEFORE[model] = {name for name, p in model.named_parameters() if p.requires_grad}
    try:
        yield
    except BaseException:
        _take_off(model)
        raise


def _rows_of_a(
    model: Any, subspaces: Subspaces | None, allocation: Allocation, rows: Rows | None
) -> Mapping[str, Tensor]:
    """A of each module of the allocation, checked against the model; empty where A is random."""
    if subspaces is None:
        if rows is not None:
            raise ValueError(f"rows={rows!r} rescales the rows of a subspace, and subspaces=None has none")
        return {}
    missing = [name for name in allocation.ranks if name not in subspaces.bases]
    if missing:
        raise ValueError(
            f"the allocation has {missing[0]}, the subspaces do not: make both from one calibration of this model"
        )
    if rows == "whitened" and not subspaces.inner:
        raise ValueError(f"rows='whitened' is for subspaces of kind 'g_whitened', and these are of {subspaces.kind!r}")
    shapes = {name: shape for name, shape in subspaces.shapes.items() if name in allocation.ranks}
    check_same_model(model, subspaces.fingerprints, shapes)
    return {name: _scaled_basis(subspaces, name, rank, rows) for name, rank in allocation.ranks.items()}


def _scaled_basis(subspaces: Subspaces, name: str, rank: int, rows: Rows | None) -> Tensor:
    basis = subspaces.basis(name, rank)
    if rows == "orthonormal":
        return basis
    if rows == "whitened":
        factor = torch.linalg.cholesky(subspaces.inner[name][:rank, :rank].double())
        return torch.linalg.solve_triangular(factor, basis.double(), upper=False).float()
    relative = subspaces.row_variance[name][:rank] / subspaces.traces[name] * basis.shape[1]
    # A row along which nothing varies, to rounding, has no length that would even it out; NaN where nothing varies.
    known = (torch.arange(rank) < subspaces.numerical_rank[name]) & (relative > NO_VARIANCE)
    return basis / (3 * torch.where(known, relative, 1.0)).sqrt()[:, None]


def _apply(adapted: PeftModel, allocation: Allocation, initial: Mapping[str, Tensor]) -> None:
    """Compare what PEFT has made with the allocation, and set A."""
    adapter, layers = adapted.active_adapter, adapter_layers(adapted)
    for name, rank in allocation.ranks.items():
        layer, scaling = layers[name], allocation.scalings[name]
        if layer.r[adapter] != rank or abs(layer.scaling[adapter] - scaling) > 1e-6 * abs(scaling):
            raise RuntimeError(
                f"PEFT gave {name} rank {layer.r[adapter]} and scaling {layer.scaling[adapter]}, the allocation has "
                f"{rank} and {scaling}: please report this PEFT version"
            )
        if name in initial:
            with torch.no_grad():
                linear: nn.Module = layer.lora_A[adapter]
                linear.get_parameter("weight").copy_(initial[name])


def detach(model: nn.Module) -> None:
    """Take every adapter off a model, in place; the base layers and the original head come back.

    What was trainable before `attach` or `tlora.load` is so again; PEFT itself keeps no note of that.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        A model without adapters is left as it is.

    Raises
    ------
    ValueError
        If an adapter is merged into the weights, or has parts in the base itself (PiSSA, trained biases): it cannot be
        taken off again; load the base afresh.
    """
    base = get_base_model(model)
    for adapter, config in getattr(base, "peft_config", {}).items():
        if part := part_in_the_base(config.to_dict()):
            raise ValueError(
                f"the adapter {adapter!r} has {part}, which would stay behind: load the base model again in place of "
                "taking it off"
            )
    _take_off(base)


def _take_off(base: Any) -> None:
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise ValueError(f"the adapter is merged into {name}: unmerge it first, or load the base model again")
    while wrappers(base):  # a module that is saved whole may hold layers that are wrapped
        unwrap(base)
        vars(base).pop("peft_config", None)
    trainable = _TRAINABLE_BEFORE.pop(base, set())
    for name, parameter in base.named_parameters():
        if name in trainable:
            parameter.requires_grad_(True)


@exact_products()
def merge(model: PeftModel) -> Any:
    """Fold the adapter into the weights: ``W + s B A``.

    Parameters
    ----------
    model : peft.PeftModel
        Consumed: its base layers are written to.

    Returns
    -------
    transformers.PreTrainedModel
        The base model with changed weights and no adapter.

    Raises
    ------
    TypeError
        If it is not a PEFT model.
    ValueError
        If the adapter is merged already, there is none, a module shares its weight with another or lacks the
        bias that was trained beside it, the base is sharded, or merging gives
        weights that are not finite.

    Notes
    -----
    On a quantized base PEFT rounds the merged weight to the few levels of the format again, and warns: merge into the
    unquantized base instead.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"merge takes the PeftModel of attach or load, not a {type(model).__name__}")
    layers = adapter_layers(model)
    if not layers:
        if kind := kind_of_adapter(model):
            raise ValueError(f"merge is for LoRA, and this adapter is {kind}: PEFT merges it, model.merge_and_unload()")
        raise ValueError("the model has no adapter left to merge: it was merged or taken off before")
    refuse_experts(layers)
    for name, layer in layers.items():
        if layer.merged:
            raise ValueError(f"the adapter is merged into {name} already: merging twice would add it twice")
    if why := why_not_merged(model):
        raise ValueError(f"{why}: keep the adapter apart")
    before = [*fingerprints_before_merging(model), base_fingerprints(model)]
    merged = model.merge_and_unload(safe_merge=True)
    FINGERPRINTS_BEFORE_MERGING[merged] = before  # what was made for it does not fit it any more
    return merged
