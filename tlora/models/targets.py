"""Find the modules that an adapter can be attached to, by the structure of the model, not by its family."""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

from torch import nn
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.pytorch_utils import Conv1D

from tlora.models.experts import (
    expert_modules,
    expert_names,
    expert_parameters,
    expert_shape,
    parameter_name,
    refuse_part_of_experts,
    refuse_unknown_experts,
    refuse_unreadable,
)
from tlora.models.record import record_of
from tlora.utils.validation import check_arguments, list_names

logger = logging.getLogger(__name__)

_EXPERT_NAMES = "PEFT would adapt the routed experts instead, which used to have these names"

Part = Literal["attention", "mlp", "experts"]
Model = Annotated[Any, nn.Module]
"""A base model: its class, which has a config and more, depends on the family."""


@dataclass(frozen=True)
class Target:
    """A linear layer inside one of the repeated blocks of a model, or the weight of one routed expert.

    Attributes
    ----------
    name : str
        Full module name, as in ``model.named_modules()``; of an expert the name of the parameter that holds it, and its
        number: ``"model.layers.0.mlp.experts.down_proj[3]"``.
    layer : int
        Index of the block, counted within its stack.
    projection : str
        Role within the block, e.g. ``"q_proj"``: the shortest suffix of the name that is unique in the block;
        prefixed with ``"encoder."`` or ``"decoder."`` if the model has both stacks.
    part : {"attention", "mlp", "experts"}
        Part of the block; every linear layer that is not attention counts as MLP.
    d_out, d_in : int
        Size of its weight in `torch.nn.Linear` layout, however it is stored.
    stack : {"", "encoder", "decoder"}
        Stack of an encoder-decoder model; ``""`` if there is only one stack.
    experts : int
        In an `Allocation`, whose ranks are by parameter: how many experts of this size it holds. Otherwise 1.

    Examples
    --------
    >>> target = tlora.target_modules(model)["model.layers.1.self_attn.q_proj"]
    >>> target.layer, target.projection, target.part
    (1, 'q_proj', 'attention')
    """

    name: str
    layer: int
    projection: str
    part: Part
    d_out: int
    d_in: int
    stack: Literal["", "encoder", "decoder"] = ""
    experts: int = 1


@dataclass(frozen=True)
class _Place:
    """A linear layer and its position: ``path`` is its name from the block's index on."""

    name: str
    block: str
    path: tuple[str, ...]
    module: nn.Module
    parents: tuple[nn.Module, ...]


def target_modules(model: nn.Module, select: str | Iterable[str] | None = None) -> dict[str, Target]:
    """Find the linear layers inside the model's repeated blocks, in model order.

    These are `torch.nn.Linear`, the ``Conv1D`` of GPT-2, and quantized linear layers, but never output and
    classification heads, embeddings, poolers, routers, or modules that read images or sound. Routed experts are
    targets only if ``select`` names them; otherwise a warning in the log says so. Layers that PEFT takes for experts by
    their names (shared experts and dense layers of DeepSeek) are skipped: its adapter would be on the routed ones.

    Parameters
    ----------
    model : torch.nn.Module
        A model without an adapter; it is not changed, and may be on the ``meta`` device.
    select : str or iterable of str, optional
        None or ``"all"``: all linear layers, without experts; ``"attention"``; ``"mlp"``; ``"experts"``; any other
        string is a regular expression that must match the full name, as in PEFT. An iterable holds these words,
        projections, full names, or suffixes of names: ``["attention", "experts"]``. Experts are selected by parameter,
        all of them or none: ``["experts.down_proj"]``.

    Returns
    -------
    dict of Target
        By full module name.

    Raises
    ------
    ValueError
        If the model carries an adapter already or has no target, or an entry of ``select`` matches none; if experts are
        selected that are quantized or sharded, or that transformers does not run through its interface for experts.
    TypeError
        If ``model`` is not a model.

    Examples
    --------
    >>> list(tlora.target_modules(model, ["q_proj", "v_proj"]))[:2]
    ['model.layers.0.self_attn.q_proj', 'model.layers.0.self_attn.v_proj']
    >>> len(tlora.target_modules(model, "mlp"))
    6
    """
    check_arguments(target_modules, locals())
    refuse_adapted(model)
    select = list_names(select)
    entries = [] if select is None else [select] if isinstance(select, str) else list(select)
    names_experts = any(re.search(r"\bexperts", entry) for entry in entries)
    places = _places(model, warn=not names_experts)
    targets = _targets(places)
    if names_experts:
        targets = _with_experts(model, targets)
    if not targets:
        raise ValueError(
            f"{type(model).__name__} has no target module: expected linear layers inside a "
            "torch.nn.ModuleList of blocks; pass a transformer language model, encoder or encoder-decoder"
        )
    if select is None or select == "all":
        return targets
    roles = ", ".join(dict.fromkeys(parameter_name(target.projection) for target in targets.values()))
    selected: set[str] = set()
    for entry in entries:
        names = _match_word(targets, entry)
        if names is None:
            names = _match_pattern(targets, entry) if isinstance(select, str) else _match_name(targets, entry)
        if not names:
            reason = _explain(model, entry, is_pattern=isinstance(select, str))
            raise ValueError(f"target_modules: {entry!r} selects nothing: {reason}; there is {roles}")
        selected.update(names)
    if not selected:
        raise ValueError(f"target_modules={select!r} selects nothing: leave it out to take {roles}")
    refuse_part_of_experts(selected, targets)
    return {name: target for name, target in targets.items() if name in selected}


def join_experts(targets: Iterable[Target]) -> dict[str, Target]:
    """The targets by the module or parameter that gets a rank: all experts of a parameter are one."""
    joined: dict[str, Target] = {}
    for target in targets:
        name = parameter_name(target.name)
        if name == target.name:
            joined[name] = target
        elif name in joined:
            joined[name] = replace(joined[name], experts=joined[name].experts + 1)
        else:
            joined[name] = replace(target, name=name, projection=parameter_name(target.projection))
    return joined


def _with_experts(model: nn.Module, targets: dict[str, Target]) -> dict[str, Target]:
    """The targets and all experts of the model, in its order."""
    experts: dict[str, Target] = {}
    for name, module in expert_modules(model).items():
        parts = name.split(".")
        depth = next((d for d, part in enumerate(parts) if part.isdecimal()), None)
        if depth is None or re.search("vision|visual|audio|image", ".".join(parts[:depth])):
            continue
        refuse_unreadable(name, module)
        for key in expert_parameters(module):
            for number, expert in enumerate(expert_names(f"{name}.{key}", len(getattr(module, key)))):
                projection = f"{parts[-1]}.{key}[{number}]"
                experts[expert] = Target(expert, int(parts[depth]), projection, "experts", *expert_shape(module, key))
    if not experts:
        refuse_unknown_experts(model)
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    both = targets | experts
    return {name: both[name] for name in sorted(both, key=lambda name: order[_module_name(name)])}


def _module_name(name: str) -> str:
    return name if "[" not in name else parameter_name(name).rpartition(".")[0]


def is_adapted(module: nn.Module) -> bool:
    """Whether PEFT put this module on a model; without an adapter PEFT is not imported, which takes seconds."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(module, peft.PeftModel | peft.tuners.tuners_utils.BaseTunerLayer)


def refuse_adapted(model: nn.Module) -> None:
    """Refuse a model that carries adapter layers already, or is wrapped, so that its modules have other names."""
    is_data_parallel = not hasattr(model, "config") and hasattr(getattr(model, "module", None), "config")
    if is_data_parallel or hasattr(model, "_orig_mod"):
        raise ValueError(
            f"the model is wrapped in a {type(model).__name__}, which changes the names of its modules: pass "
            f"model.{'module' if is_data_parallel else '_orig_mod'} (model.compile() compiles in place)"
        )
    for name, module in model.named_modules():
        if is_adapted(module):
            raise ValueError(
                f"the model already has an adapter (at {name or 'the top'!r}): load a fresh base model, or "
                "remove the adapter with tlora.detach(model) first (attach does so with replace=True)"
            )


def head_modules(model: nn.Module) -> list[str]:
    """The modules that must be trained and saved whole next to an adapter, in model order; none in language models.

    These are the modules of a classifier outside its base model (``"classifier"``, ``"score"``), and modules that the
    checkpoint had no weights for (a missing pooler), as recorded by `load_model`. For a copy, or a model that was
    loaded otherwise, a pooler whose biases are all zero counts as missing.
    """
    heads = _outside_base(model)
    names = {*heads, *(name for name in _newly_initialized(model) if not is_within(name, heads))}
    return [name for name, _ in model.named_modules() if name in names]


def _newly_initialized(model: nn.Module) -> Iterable[str]:
    """Modules without weights in the checkpoint: as recorded by `load_model`, or poolers with zero biases."""
    if (known := record_of(model).newly_initialized) is not None:
        return known
    poolers = [(name, module) for name, module in model.named_modules() if name.endswith(".pooler")]
    biases = {name: [p for key, p in module.named_parameters() if key.endswith("bias")] for name, module in poolers}
    return [name for name, each in biases.items() if each and not any(bias.is_meta or bias.any() for bias in each)]


def _outside_base(model: nn.Module) -> list[str]:
    prefix = getattr(model, "base_model_prefix", "")
    is_base = not prefix or getattr(model, prefix, model) is model
    if is_base or output_embeddings(model) is not None:
        return []
    children = model.named_children()
    return [name for name, child in children if name != prefix and any(True for _ in child.parameters())]


def is_causal(model: nn.Module) -> bool:
    """Whether the model writes text and has no encoder; a masked language model does not write."""
    writes = getattr(model, "can_generate", bool)() or getattr(model, "loss_type", None) == "ForCausalLM"
    return bool(writes) and not getattr(model.config, "is_encoder_decoder", False)


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """The layer that maps hidden states to the vocabulary; None if there is none."""
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter is not None else None


def is_linear(module: nn.Module) -> bool:
    """Whether the module is linear: `torch.nn.Linear`, ``Conv1D``, or a quantized layer by its class name."""
    if isinstance(module, nn.Linear | Conv1D):
        return True
    has_size = hasattr(module, "in_features") and hasattr(module, "out_features")
    return has_size and "Linear" in type(module).__name__


def shape(module: nn.Module) -> tuple[int, int]:
    """``(d_out, d_in)`` of a linear layer; never the size of packed bytes."""
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_out, d_in
    layer: Any = module
    return int(layer.out_features), int(layer.in_features)


def _places(model: nn.Module, warn: bool) -> list[_Place]:
    """All linear layers that can be targets, in model order; may log a warning of experts that are left out."""
    heads = _outside_base(model)
    output = output_embeddings(model)
    places: list[_Place] = []
    experts: list[str] = []
    for place in _linears_in_blocks(model):
        is_head = place.module is output or is_within(place.name, heads)
        if is_head or _is_router(place) or re.search("vision|visual|audio|image", place.block):
            continue
        if "experts" in place.path:
            experts.append(place.name)
        else:
            places.append(place)
    namesakes = _expert_namesakes(model, [place.name for place in places])
    if warn:
        _warn_of_experts(model, experts, namesakes)
    return [place for place in places if place.name not in namesakes]


def _expert_namesakes(model: nn.Module, names: list[str]) -> list[str]:
    """Layers whose names routed experts once had, so that PEFT would adapt the experts instead."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None or get_checkpoint_conversion_mapping(model_type) is None:
        return []  # as PEFT decides
    by_role: dict[str, list[str]] = {}
    for name in names:
        by_role.setdefault(name.rpartition(".")[2], []).append(name)
    return [name for members in by_role.values() if _is_namesake(model, members[0]) for name in members]


def _is_namesake(model: nn.Module, name: str) -> bool:
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of several that are fused
        return True
    return bool(config.target_parameters)


def _linears_in_blocks(model: nn.Module) -> Iterator[_Place]:
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not is_linear(module):
            continue
        parts = name.split(".")
        parents = [modules[".".join(parts[:depth])] for depth in range(len(parts))]
        depth = next((d for d, parent in enumerate(parents) if isinstance(parent, nn.ModuleList)), None)
        if depth is not None and depth + 1 < len(parts):  # inside an element of the list, not an element itself
            yield _Place(name, ".".join(parts[: depth + 1]), tuple(parts[depth:]), module, tuple(parents[depth + 1 :]))


def _warn_of_experts(model: nn.Module, experts: list[str], namesakes: list[str]) -> None:
    """Log the routed experts, which are linear layers or stacked in 3-D parameters, and the layers named like them."""
    stacked = [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if "expert" in f"{name} {type(module).__name__}".lower()
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]
    if routed := experts + stacked:
        logger.warning(
            '%d weights of routed experts (e.g. %s) are not target modules: target_modules="experts" selects them, '
            '["attention", "experts"] both',
            *(len(routed), routed[0]),
        )
    if namesakes:
        logger.warning("%d layers (e.g. %s) are not target modules: %s", len(namesakes), namesakes[0], _EXPERT_NAMES)


def _is_router(place: _Place) -> bool:
    """Whether it is a router by its class or name, or a gate next to experts, or inside one."""
    by_class = any("Router" in type(module).__name__ for module in (*place.parents, place.module))
    by_name = any("router" in part for part in place.path)
    steps = zip(place.parents, place.path[1:], strict=True)
    is_gate = any(part.endswith("gate") and hasattr(parent, "experts") for parent, part in steps)
    return by_class or by_name or is_gate


def is_within(name: str, parents: Iterable[str]) -> bool:
    """Whether a module is one of these, or inside one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def _targets(places: list[_Place]) -> dict[str, Target]:
    sides = ("encoder", "decoder")
    stacks = {p.name: next((part for part in p.block.split(".") if part in sides), "") for p in places}
    if not set(sides) <= set(stacks.values()):
        stacks = dict.fromkeys(stacks, "")
    suffixes: dict[str, Counter[tuple[str, ...]]] = {}
    for place in places:
        inner = place.path[1:]
        suffixes.setdefault(place.block, Counter()).update(inner[i:] for i in range(len(inner)))
    return {
        place.name: Target(
            place.name,
            int(place.path[0]),
            _projection(place, suffixes[place.block], stacks[place.name]),
            _part(place),
            *shape(place.module),
            stacks[place.name],  # type: ignore[arg-type]
        )
        for place in places
    }


def _projection(place: _Place, suffixes: Counter[tuple[str, ...]], stack: str) -> str:
    inner = place.path[1:]
    candidates = (inner[i:] for i in range(len(inner) - 1, -1, -1))
    shortest = next((suffix for suffix in candidates if suffixes[suffix] == 1), inner)
    return ".".join((stack, *shortest) if stack else shortest)


def _part(place: _Place) -> Part:
    # The block's own class is left out: "AttentionBlock" would make its MLP attention.
    names = [*place.path, *(type(parent).__name__ for parent in place.parents[1:])]
    return "attention" if re.search(r"att(entio)?n", " ".join(names), re.IGNORECASE) else "mlp"


def _match_word(targets: dict[str, Target], word: str) -> list[str] | None:
    """Targets of a part, or all linear layers; None if the word is neither."""
    if word == "all":
        return [name for name, target in targets.items() if target.part != "experts"]
    return [name for name, target in targets.items() if target.part == word] if word in get_args(Part) else None


def _match_pattern(targets: dict[str, Target], pattern: str) -> list[str]:
    """Targets whose full name, without the number of an expert, matches a regular expression."""
    return [name for name in targets if re.fullmatch(pattern, parameter_name(name))]


def _match_name(targets: dict[str, Target], entry: str) -> list[str]:
    """Targets of a projection, or else those whose full name is, or ends in, the entry, with or without a number."""
    if entry in targets:
        return [entry]
    by_projection = [name for name, target in targets.items() if parameter_name(target.projection) == entry]
    return by_projection or [name for name in targets if _ends_in(name, entry) or _ends_in(parameter_name(name), entry)]


def _ends_in(name: str, suffix: str) -> bool:
    return f".{name}".endswith(f".{suffix}")


def _explain(model: nn.Module, entry: str, is_pattern: bool) -> str:
    """Explain why an entry matches no target, by the first module that it names."""
    for name, module in model.named_modules():
        if re.fullmatch(entry, name) if is_pattern else _ends_in(name, entry):
            return f"{name!r} is {_describe(model, name, module)}"
    return "a string is a regular expression that must match the full name" if is_pattern else "no module has this name"


def _describe(model: nn.Module, name: str, module: nn.Module) -> str:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if module is output_embeddings(model):
        is_tied = embeddings is not None and getattr(module, "weight", None) is embeddings.weight
        more = " (its weight is tied to the embeddings: merging would change both)" if is_tied else ""
        return f"the output head, never a target{more}"
    if is_within(name, head_modules(model)):
        return "part of the classification head, which is trained and saved whole"
    if isinstance(module, nn.Embedding) or module is embeddings:
        return "an embedding, never a target"
    if re.search(r"router|gate\b|expert", f"{type(module).__name__} {name}", re.IGNORECASE):
        return "a router, never a target, or part of an expert"
    if is_linear(module) and _expert_namesakes(model, [name]):
        return f"no target: {_EXPERT_NAMES}"
    return f"a {type(module).__name__} " + ("outside the blocks" if is_linear(module) else "and no linear layer")
