"""Attach an allocation to a model as an ordinary PEFT adapter, take it off, or merge it into the weights."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, get_args, runtime_checkable

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from tlora.adapters.config import build_config, non_default_options
from tlora.adapters.freeze import freeze_a as freeze
from tlora.adapters.lora_layers import (
    adapter_layers,
    lora_updates,
    obstacle_to_merging,
    require_one_lora,
    unwrap,
    wrappers,
)
from tlora.adapters.peft_config import trace_in_base
from tlora.allocation.allocation import Allocation
from tlora.models.experts import expert_names
from tlora.models.offloading import place_stand_ins, refuse_offloaded
from tlora.models.record import record_of
from tlora.models.sharding import refuse_split, reshard, unshard
from tlora.models.targets import Model, Target, refuse_adapted
from tlora.models.weights import (
    base_fingerprints,
    base_modules,
    check_same_model,
    copy_sharing_weights,
    get_base_model,
    has_four_bits,
    weight,
)
from tlora.numerics.quantization import LOST, surviving_product
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.defaults import ROWS, Rows
from tlora.utils.logs import without_noise
from tlora.utils.reproducibility import exact_products, temporary_seed
from tlora.utils.validation import check_arguments, require_choice

NO_VARIANCE = 1e-6
"""Variance along a row of ``A``, relative to the average direction, below which it is rounding."""


@runtime_checkable
class Decisions(Protocol):
    """What `attach` reads of a `tlora.Plan`, which is made with `attach` in mind and so cannot be imported here."""

    @property
    def subspaces(self) -> Subspaces | None:
        """The rows of ``A``."""

    @property
    def allocation(self) -> Allocation:
        """Rank and scaling of each module."""

    @property
    def recipe(self) -> Any:
        """Its ``attach`` holds further arguments of `attach`."""

    @property
    def meta(self) -> Meta:
        """Seed of a random ``A``."""


def attach(
    model: Model,
    plan: Decisions | Subspaces | None,
    allocation: Allocation | None = None,
    freeze_a: bool | None = None,
    rows: Rows | None = None,
    *,
    config: LoraConfig | None = None,
    seed: int | None = None,
    replace: bool = False,
) -> PeftModel:
    """Put an adapter on the model: ``A`` from the subspaces and frozen, ``B`` zero, rank and scaling by module.

    ``attach(model, plan)`` takes all of it from a plan, ``attach(model, subspaces, allocation)`` from two results.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model that was calibrated. Its linear layers, and modules with experts, are wrapped in place; its
        weights are not written to. It may be sharded by FSDP2, without experts.
    plan : Plan, Subspaces or None
        From `tlora.prepare`. With an ``allocation``: the rows of ``A``; None initializes ``A`` at random as plain LoRA
        does (the paper's ablation without init, there with ``freeze_a=False``).
    allocation : Allocation, optional
        Rank and scaling of each module, unless a plan has them.
    freeze_a : bool, optional
        Train ``B`` alone. ``A`` then stays frozen through ``disable_adapter()``, ``set_adapter()`` and reloading.
        Default: that of the plan's recipe, or True.
    rows : {"variance", "orthonormal"}, optional
        Length of the rows of ``A``. ``"variance"``: the inputs have the same variance along each row as along a random
        row of LoRA, ``tr(C) / (3 d_in)``, so that LoRA's learning rate is a good start; a row that the samples do not
        determine is taken to have the average variance ``tr(C) / d_in``. ``"orthonormal"``: unit length, as in the
        paper. Default: that of the plan's recipe, or ``"variance"``.
    config : peft.LoraConfig, optional
        Further options for PEFT, e.g. ``LoraConfig(lora_dropout=0.05)``; see `lora_config`.
    seed : int, optional
        Seed of a random ``A``. Default: that of the plan, or 0.
    replace : bool
        Take off an adapter that the model has instead of refusing, so that a notebook cell can be run again. Do not
        save the earlier ``PeftModel`` afterwards: it holds the new adapter.

    Returns
    -------
    peft.PeftModel
        At step 0 it computes exactly what the base computes.

    Raises
    ------
    TypeError
        If plan, subspaces or allocation have another type.
    ValueError
        If the model already has an adapter, the subspaces or the allocation are of another model, a rank exceeds the
        computed directions, or ``config`` contradicts the allocation. The model is left as it was.
    RuntimeError
        If PEFT gave a layer another rank or scaling than the allocation.

    Notes
    -----
    Experts become PEFT's ``target_parameters``. PEFT forms the weights of all experts of a layer with their updates in
    every forward pass, so that freezing ``A`` saves parameters and optimizer states there, but no activations. With
    ``rank_by_expert`` each expert has as many rows of ``A`` as its rank in `Allocation.expert_ranks`, and zeros up to
    the largest. Neither these nor their columns of ``B`` receive a gradient, whether ``A`` is frozen or not.

    Over a base that FSDP2 has sharded, the adapter is whole in every process: `train` averages its gradients and one
    process saves it. A training loop of your own has to do the same. All processes call this together.

    References
    ----------
    TLoRA, arXiv 2604.18124: ``W + s B A`` with ``A`` fixed and ``B`` starting at zero.

    Examples
    --------
    >>> plan = tlora.prepare(model, task, rank=2, samples=4, progress=False)
    >>> adapted = tlora.attach(model, plan, replace=True)
    >>> trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    >>> all("lora_B" in name for name in trainable)
    True
    """
    check_arguments(attach, locals())
    options: dict[str, Any] = {"freeze_a": True, "rows": ROWS, "seed": 0}
    subspaces: Any = plan
    if allocation is None and isinstance(plan, Decisions):
        options |= {"seed": plan.meta.seed or 0, **plan.recipe.attach}
        subspaces, allocation = plan.subspaces, plan.allocation
    if not isinstance(subspaces, Subspaces | None) or not isinstance(allocation, Allocation):
        types = f"a {type(plan).__name__} and a {type(allocation).__name__}"
        raise TypeError(f"attach takes (model, plan) or (model, subspaces, allocation), got {types} after the model")
    options |= {
        name: value for name, value in (("freeze_a", freeze_a), ("rows", rows), ("seed", seed)) if value is not None
    }
    if replace:
        model = get_base_model(model)
    else:
        refuse_adapted(model)
    initial = {} if subspaces is None else _initial_rows(model, subspaces, allocation, options["rows"])
    lora = build_config(model, allocation, {} if config is None else non_default_options(config))
    layers = base_modules(model)
    for name in allocation.ranks:
        refuse_split(getattr(layers[name], "weight", None), repr(name))
    detach(model)
    with temporary_seed(options["seed"]), restored_on_error(model), without_noise():
        with place_stand_ins(model, allocation.ranks):
            adapted = get_peft_model(model, lora)
        refuse_offloaded((n, p) for n, p in adapted.get_base_model().named_parameters() if p.requires_grad)
        for module in adapted.modules():
            if isinstance(module, ModulesToSaveWrapper):
                unshard(module.modules_to_save)
        check_ranks_and_scalings(adapted, allocation)
        updates = lora_updates(adapted)
        with torch.no_grad():
            for name, a in initial.items():
                updates[name].a.copy_(a)
            for name, ranks in allocation.expert_ranks.items():
                for expert, rank in enumerate(ranks):
                    updates[name].a[expert, rank:] = 0  # a row of zeros keeps its column of B at zero, and B that row
        if options["freeze_a"]:
            freeze(adapted)
    kind, rows = (None, None) if subspaces is None else (subspaces.kind, options["rows"])
    how = {"kind": kind, "rows": rows, "freeze_a": bool(options["freeze_a"]), "seed": int(options["seed"])}
    record_of(model).attached = (weakref.ref(_first_a(adapted)), how)
    return adapted


def attach_options(model: PeftModel) -> dict[str, Any] | None:
    """Return the options with which `attach` put the active adapter on a model: kind, rows, whether A is frozen, seed.

    None if it did not in this process, e.g. for an adapter that was loaded or copied.
    """
    attached = record_of(model.get_base_model()).attached
    if attached is None or attached[0]() is not _first_a(model):
        return None
    return attached[1]


def _first_a(model: PeftModel) -> Any:
    """Return the ``A`` of the active adapter in the first module that has one."""
    layers = [layer.lora_A for layer in adapter_layers(model).values() if model.active_adapter in layer.lora_A]
    return layers[0][model.active_adapter] if layers else None


@contextlib.contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Leave the model without adapter and with its own ``requires_grad`` if the block fails."""
    reshard(model)
    record_of(model).trainable_before = {name for name, p in model.named_parameters() if p.requires_grad}
    try:
        yield
    except BaseException:
        _take_off(model)
        raise


def _initial_rows(model: Any, subspaces: Subspaces, allocation: Allocation, rows: Rows) -> Mapping[str, Tensor]:
    """Return ``A`` of each module of the allocation, after checking that the subspaces are of this model."""
    require_choice(rows, "rows", get_args(Rows))
    parts = {name: _parts(allocation.targets[name]) for name in allocation.ranks}
    names = {part for each in parts.values() for part in each}
    missing = sorted(name for name in names if name not in subspaces.bases)
    if missing:
        raise ValueError(
            f"the allocation has {missing[0]}, the subspaces do not: make both from one calibration of this model"
        )
    shapes = {name: shape for name, shape in subspaces.shapes.items() if name in names}
    check_same_model(model, subspaces.fingerprints, shapes)
    return {
        name: torch.stack([_scaled_basis(subspaces, part, rank, rows) for part in parts[name]]).squeeze(0)
        for name, rank in allocation.stored_ranks.items()
    }


def _parts(target: Target) -> list[str]:
    """Return the names whose directions are the rows of ``A``, in PEFT's order: those of a parameter's experts."""
    return [target.name] if target.experts == 1 else expert_names(target.name, target.experts)


def _scaled_basis(subspaces: Subspaces, name: str, rank: int, rows: Rows) -> Tensor:
    basis = subspaces.basis(name, rank)
    if rows == "orthonormal":
        return basis
    relative = subspaces.row_variance[name][:rank] / subspaces.traces[name] * basis.shape[1]
    # No length evens out a row along which nothing varies; its relative variance is about 0, or NaN if no row varies.
    varies = (torch.arange(rank) < subspaces.numerical_rank[name]) & (relative > NO_VARIANCE)
    return basis / (3 * torch.where(varies, relative, 1.0)).sqrt()[:, None]


def check_ranks_and_scalings(adapted: PeftModel, allocation: Allocation) -> None:
    """Compare the rank and scaling of each layer that PEFT made with the allocation."""
    adapter, layers = adapted.active_adapter, adapter_layers(adapted)
    for name, rank in allocation.stored_ranks.items():
        layer, scaling = layers[name], allocation.scalings[name]
        if layer.r[adapter] != rank or abs(layer.scaling[adapter] - scaling) > 1e-6 * abs(scaling):
            raise RuntimeError(
                f"PEFT gave {name} rank {layer.r[adapter]} and scaling {layer.scaling[adapter]}, the allocation has "
                f"{rank} and {scaling}: please report this PEFT version"
            )


def detach(model: nn.Module) -> None:
    """Take every adapter off a model in place: the base layers and the original head come back.

    Parameters that were trainable before `attach` or `tlora.load_adapter` are trainable again.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        A model without adapters is left as it is.

    Raises
    ------
    ValueError
        If an adapter is merged into the weights, or changed the base itself (PiSSA, trained biases): load the base
        again.

    Examples
    --------
    >>> tlora.detach(tlora.attach(model, subspaces, allocation, replace=True))
    >>> any("lora" in name for name, _ in model.named_parameters())
    False
    """
    check_arguments(detach, locals())
    base = get_base_model(model)
    for adapter, config in getattr(base, "peft_config", {}).items():
        if trace := trace_in_base(config.to_dict()):
            raise ValueError(f"the adapter {adapter!r} has {trace}, which would remain: load the base model again")
    _take_off(base)


def copy_base(model: nn.Module) -> Any:
    """A copy of the base that shares its weights and has no adapter; the model keeps its own."""
    base = copy_sharing_weights(get_base_model(model))
    detach(base)
    return base


def _take_off(base: Any) -> None:
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise ValueError(f"the adapter is merged into {name}: unmerge it first, or load the base model again")
    while wrappers(base):  # a module that is saved whole may hold layers that are wrapped
        unwrap(base)
        vars(base).pop("peft_config", None)
    record = record_of(base)
    trainable, record.trainable_before = record.trainable_before, set()
    for name, parameter in base.named_parameters():
        if name in trainable:
            parameter.requires_grad_(True)


@exact_products()
def merge(model: PeftModel, *, lossy: bool = False) -> Any:
    """Fold the adapter into the weights: ``W + s B A``.

    Parameters
    ----------
    model : peft.PeftModel
        Consumed: its base layers are written to.
    lossy : bool
        Merge into a 4-bit base even if less than half of the update survives.

    Returns
    -------
    transformers.PreTrainedModel
        The base model with changed weights and no adapter.

    Raises
    ------
    ValueError
        If there is no LoRA adapter that could be merged once, a module shares its weight with another, the base is
        sharded, the merged weights are not finite, or less than half of the update survives in a base of 4 bits.

    Notes
    -----
    On a quantized base PEFT rounds the merged weight to the few levels of the format again, and warns. The weight lies
    on these levels already, so that most of an update smaller than half a step is lost: see `tlora.survival`.

    Examples
    --------
    >>> merged = tlora.merge(adapted)
    >>> type(merged).__name__
    'LlamaForCausalLM'
    """
    check_arguments(merge, locals())
    require_one_lora(model, "merge", experts=True)
    if obstacle := obstacle_to_merging(model):
        raise ValueError(f"{obstacle}: keep the adapter separate")
    if not lossy and (share := _share_after_merging(model)) < LOST:
        raise ValueError(
            f"{share:.0%} of the update would survive, since this base is in 4 bits and merging rounds it again: keep "
            "the adapter separate, merge it into the unquantized base (tlora.load_adapter with that model), or pass "
            "lossy=True"
        )
    before = [*record_of(model.get_base_model()).before_merging, base_fingerprints(model)]
    merged = model.merge_and_unload(safe_merge=True)
    record_of(merged).before_merging = before  # what was made for it does not fit it any more
    return merged


def _share_after_merging(model: PeftModel) -> float:
    """Return the share of the update that PEFT's merge leaves in the layers of 4 bits; 1 if it changes none of them."""
    product, energy, layers = 0.0, 0.0, adapter_layers(model)
    for name, update in lora_updates(model).items():
        layer: Any = layers[name]
        if not has_four_bits(layer.get_base_layer()):
            continue
        merged = copy_sharing_weights(layer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Merge lora module")
            merged.merge()
        before, after = (weight(one.get_base_layer(), name).float() for one in (layer, merged))
        parts = surviving_product(before, after, update.to(torch.float32, before.device).matrix())
        product, energy = product + parts[0], energy + parts[1]
    return product / energy if energy else 1.0
