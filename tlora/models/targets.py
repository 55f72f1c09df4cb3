"""Find the modules that an adapter can be attached to, by the structure of the model and not by its name."""

from __future__ import annotations

import logging
import re
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

logger = logging.getLogger(__name__)

NEWLY_INITIALIZED: weakref.WeakKeyDictionary[nn.Module, tuple[str, ...]] = weakref.WeakKeyDictionary()
"""Modules of each model that `load_model` had to initialise: the checkpoint had no weights for them."""

_TAKEN = "by their names PEFT would adapt the routed experts in their place"

Part = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Target:
    """A linear layer inside one of the repeated blocks of a model.

    Attributes
    ----------
    name : str
        Full module name, as in ``model.named_modules()``.
    layer : int
        Index of the block, counted within its stack.
    projection : str
        Role within the block, e.g. ``"q_proj"``: the shortest suffix of the name that no other target of the
        block ends in; after ``"encoder."`` or ``"decoder."`` where the model has both stacks.
    part : {"attention", "mlp"}
        What of the block it belongs to; everything that is not attention counts as MLP.
    d_out, d_in : int
        Size of its weight in `torch.nn.Linear` layout.
    stack : {"", "encoder", "decoder"}
        Stack of an encoder-decoder model; ``""`` where there is one stack only.
    """

    name: str
    layer: int
    projection: str
    part: Part
    d_out: int
    d_in: int
    stack: Literal["", "encoder", "decoder"] = ""


@dataclass(frozen=True)
class _Place:
    """A linear layer and where it stands: ``path`` is its name from the block's index on."""

    name: str
    block: str
    path: tuple[str, ...]
    module: nn.Module
    parents: tuple[nn.Module, ...]


def target_modules(model: nn.Module, select: str | Iterable[str] | None = None) -> dict[str, Target]:
    """The linear layers inside the model's repeated blocks, in model order.

    Found are `torch.nn.Linear`, the ``Conv1D`` of GPT-2, and quantised linear layers. Output and
    classification heads, embeddings, poolers, routers, and what reads images or sound are never among them.
    Experts that see only the tokens routed to them are skipped with a warning in the log: the attention mask
    cannot be followed there. So are layers of such models that PEFT takes for experts by their names (shared experts
    and dense layers of DeepSeek): its adapter would be on the routed ones.

    Parameters
    ----------
    model : torch.nn.Module
        A model without an adapter; it is only looked at, and may be on the ``meta`` device.
    select : str or iterable of str, optional
        None or ``"all"``; ``"attention"``; ``"mlp"``; any other string is a regular expression that must
        match the full name, as in PEFT; an iterable holds projections, full names, or suffixes of names.

    Returns
    -------
    dict of Target
        By full module name.

    Raises
    ------
    ValueError
        If the model carries an adapter already or has no target; if ``select``, or one of its entries,
        matches nothing, or asks for a head, an embedding or a router.
    TypeError
        If it is not a model, or ``select`` is neither a string nor an iterable of strings.
    """
    refuse_adapted(model)
    places = _places(model)
    if not places:
        raise ValueError(
            f"{type(model).__name__} has no target module: expected linear layers inside a "
            "torch.nn.ModuleList of blocks; pass a transformer language model, encoder or encoder-decoder"
        )
    targets = _targets(places)
    return {name: targets[name] for name in _selected(model, targets, select)}


def check_is_model(model: object) -> None:
    """Refuse what is not a model.

    Raises
    ------
    TypeError
        If it is something else, such as the name of one.
    """
    if not isinstance(model, nn.Module):
        named = repr(model) if isinstance(model, str) else "..."
        raise TypeError(f"model is a {type(model).__name__}: pass a model, such as tlora.load_model({named})[0]")


def refuse_adapted(model: nn.Module) -> None:
    """Raise if the model carries adapter layers already.

    Raises
    ------
    TypeError
        If it is not a model.
    ValueError
        If any module is a PEFT layer, or the model is inside a wrapper, such as that which ``torch.compile`` returns.
    """
    check_is_model(model)
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "the model is a wrapper of torch.compile, whose names no other model has: pass model._orig_mod, or compile "
            "in place with model.compile()"
        )
    if not hasattr(model, "config") and hasattr(getattr(model, "module", None), "config"):
        raise ValueError(
            f"the model is wrapped in a {type(model).__name__}, whose names no other model has: pass model.module"
        )
    for name, module in model.named_modules():
        if isinstance(module, PeftModel | BaseTunerLayer):
            raise ValueError(
                f"the model already has an adapter (at {name or 'the top'!r}): load a fresh base model, or "
                "take the adapter off with tlora.detach(model) first (attach does so with replace=True)"
            )


def head_modules(model: nn.Module) -> list[str]:
    """The modules that must be trained and saved whole next to an adapter: the classification head.

    That is whatever a classifier has outside its base model (``"classifier"``, ``"score"``), and modules that the
    checkpoint had no weights for (a missing pooler): as `load_model` has seen, or, of a copy and of a model that was
    loaded otherwise, a pooler whose biases are all zero.

    Parameters
    ----------
    model : torch.nn.Module
        The base model.

    Returns
    -------
    list of str
        Full module names, in model order; empty for language models.
    """
    heads = _outside_base(model)
    wanted = {*heads, *(name for name in _newly_initialized(model) if not _is_within(name, heads))}
    return [name for name, _ in model.named_modules() if name in wanted]


def _newly_initialized(model: nn.Module) -> Iterable[str]:
    """What the checkpoint had no weights for: as `load_model` has seen, or poolers whose biases are still zero."""
    if model in NEWLY_INITIALIZED:
        return NEWLY_INITIALIZED[model]
    poolers = [(name, module) for name, module in model.named_modules() if name.endswith(".pooler")]
    biases = {name: [p for key, p in module.named_parameters() if key.endswith("bias")] for name, module in poolers}
    return [name for name, found in biases.items() if found and not any(bias.is_meta or bias.any() for bias in found)]


def _outside_base(model: nn.Module) -> list[str]:
    prefix = getattr(model, "base_model_prefix", "")
    is_whole = not prefix or getattr(model, prefix, model) is model
    if is_whole or output_embeddings(model) is not None:
        return []
    children = model.named_children()
    return [name for name, child in children if name != prefix and any(True for _ in child.parameters())]


def is_causal(model: nn.Module) -> bool:
    """Whether the model writes text, without an encoder: a masked language model fills gaps."""
    writes = getattr(model, "can_generate", bool)() or getattr(model, "loss_type", None) == "ForCausalLM"
    return bool(writes) and not getattr(model.config, "is_encoder_decoder", False)


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """The layer that maps hidden states to the vocabulary, or None where there is none."""
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter is not None else None


def is_linear(module: nn.Module) -> bool:
    """Whether the module is linear: `torch.nn.Linear`, ``Conv1D``, or a quantised layer by its class name."""
    if isinstance(module, nn.Linear | Conv1D):
        return True
    sized = hasattr(module, "in_features") and hasattr(module, "out_features")
    return sized and "Linear" in type(module).__name__


def shape(module: nn.Module) -> tuple[int, int]:
    """``(d_out, d_in)`` of a linear layer; never the size of packed bytes."""
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_out, d_in
    layer: Any = module
    return int(layer.out_features), int(layer.in_features)


def _places(model: nn.Module) -> list[_Place]:
    """All targets, in model order; says how many routed experts were passed over."""
    heads = _outside_base(model)
    output = output_embeddings(model)
    found: list[_Place] = []
    skipped: list[_Place] = []
    for place in _linears_in_blocks(model):
        is_head = place.module is output or _is_within(place.name, heads)
        if is_head or _is_router(place) or re.search("vision|visual|audio|image", place.block):
            continue
        (skipped if "experts" in place.path else found).append(place)
    taken = _taken_for_experts(model, [place.name for place in found])
    _say_skipped(model, [place.name for place in skipped], taken)
    return [place for place in found if place.name not in taken]


def _taken_for_experts(model: nn.Module, names: list[str]) -> list[str]:
    """Those whose names were once those of experts, so that PEFT would adapt the routed experts in their place."""
    by_role: dict[str, list[str]] = {}
    for name in names:
        by_role.setdefault(name.rpartition(".")[2], []).append(name)
    return [name for members in by_role.values() if _is_taken_for_expert(model, members[0]) for name in members]


def _is_taken_for_expert(model: nn.Module, name: str) -> bool:
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
        if depth is not None and depth + 1 < len(parts):  # in an element of the list, and not one itself
            yield _Place(name, ".".join(parts[: depth + 1]), tuple(parts[depth:]), module, tuple(parents[depth + 1 :]))


def _say_skipped(model: nn.Module, linears: list[str], taken: list[str]) -> None:
    """Log the routed experts, linear layers of their own or stacked in 3-D parameters, and what is taken for them."""
    stacked = [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if "expert" in f"{name} {type(module).__name__}".lower()
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]
    if linears or stacked:
        logger.warning(
            "%d weights of routed experts (e.g. %s) are not target modules: an expert sees only the tokens "
            "routed to it, and the attention mask cannot be followed there",
            len(linears) + len(stacked),
            (linears + stacked)[0],
        )
    if taken:
        logger.warning(
            "%d layers (e.g. %s) are not target modules: %s",
            len(taken),
            taken[0],
            _TAKEN,
        )


def _is_router(place: _Place) -> bool:
    """Whether it is called one, or is, or stands in, a gate beside experts."""
    by_class = any("Router" in type(module).__name__ for module in (*place.parents, place.module))
    by_name = any("router" in part for part in place.path)
    steps = zip(place.parents, place.path[1:], strict=True)
    is_gate = any(part.endswith("gate") and hasattr(parent, "experts") for parent, part in steps)
    return by_class or by_name or is_gate


def _is_within(name: str, parents: Iterable[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def _targets(places: list[_Place]) -> dict[str, Target]:
    stacks = {place.name: _stack(place) for place in places}
    if not {"encoder", "decoder"} <= set(stacks.values()):
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


def _stack(place: _Place) -> str:
    return next((part for part in place.block.split(".") if part in ("encoder", "decoder")), "")


def _projection(place: _Place, suffixes: Counter[tuple[str, ...]], stack: str) -> str:
    inner = place.path[1:]
    candidates = (inner[i:] for i in range(len(inner) - 1, -1, -1))
    shortest = next((suffix for suffix in candidates if suffixes[suffix] == 1), inner)
    return ".".join((stack, *shortest) if stack else shortest)


def _part(place: _Place) -> Part:
    # The block's own class is left out: "AttentionBlock" would make its MLP attention.
    names = [*place.path, *(type(parent).__name__ for parent in place.parents[1:])]
    return "attention" if re.search(r"att(entio)?n", " ".join(names), re.IGNORECASE) else "mlp"


def _selected(model: nn.Module, targets: dict[str, Target], select: str | Iterable[str] | None) -> list[str]:
    if select is None or select == "all":
        return list(targets)
    if isinstance(select, str):
        return _by_word(model, targets, select)
    entries = list(select) if isinstance(select, Iterable) else [select]
    if not all(isinstance(entry, str) for entry in entries):
        raise TypeError(
            f"target_modules={select!r}: expected 'all', 'attention', 'mlp', a regular expression, "
            "or a list of names or suffixes"
        )
    if not entries:
        raise ValueError(f"target_modules={select!r} selects nothing: leave it out to take {_existing(targets)}")
    chosen = {name for entry in entries for name in _by_entry(model, targets, entry)}
    return [name for name in targets if name in chosen]


def _by_word(model: nn.Module, targets: dict[str, Target], word: str) -> list[str]:
    """Targets of a part, or those whose full name matches a regular expression."""
    if word in ("attention", "mlp"):
        chosen = [name for name, target in targets.items() if target.part == word]
        hint = "the model's targets have other parts only"
    else:
        pattern = _compiled(word)
        _refuse_head_in_pattern(model, word, pattern)
        chosen = [name for name in targets if pattern.fullmatch(name)]
        excluded = [name for name, _ in model.named_modules() if pattern.fullmatch(name)]
        hint = _why_not(model, excluded) or "a string is a regular expression that must match the full name"
    if not chosen:
        raise ValueError(f"target_modules={word!r} selects nothing: {hint}; there is {_existing(targets)}")
    return chosen


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"target_modules={pattern!r} is not a valid regular expression: {error}") from error


def _refuse_head_in_pattern(model: nn.Module, word: str, pattern: re.Pattern[str]) -> None:
    """Refuse a pattern that spells out the output head; one that merely covers it, like ``.*``, is fine."""
    output = output_embeddings(model)
    for name, module in model.named_modules():
        if module is output and pattern.fullmatch(name) and name.rsplit(".", 1)[-1] in word:
            raise ValueError(f"target_modules={word!r}: {_why_not(model, [name])}; leave it out")


def _by_entry(model: nn.Module, targets: dict[str, Target], entry: str) -> list[str]:
    """Targets of a projection, or else those whose full name is, or ends in, the entry."""
    chosen = [name for name, target in targets.items() if target.projection == entry]
    chosen = chosen or [name for name in targets if _ends_in(name, entry)]
    if not chosen:
        excluded = [name for name, _ in model.named_modules() if _ends_in(name, entry)]
        hint = _why_not(model, excluded) or "no module has this name or suffix"
        raise ValueError(f"target_modules: {entry!r} selects nothing: {hint}; there is {_existing(targets)}")
    return chosen


def _ends_in(name: str, suffix: str) -> bool:
    return f".{name}".endswith(f".{suffix}")


def _existing(targets: dict[str, Target]) -> str:
    return ", ".join(dict.fromkeys(target.projection for target in targets.values()))


def _why_not(model: nn.Module, names: list[str]) -> str:
    """Why the first of these modules is not a target; ``""`` where there is none."""
    if not names:
        return ""
    module = model.get_submodule(names[0])
    return f"{names[0]!r} is {_description(model, names[0], module)}"


def _description(model: nn.Module, name: str, module: nn.Module) -> str:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if module is output_embeddings(model):
        tied = embeddings is not None and getattr(module, "weight", None) is embeddings.weight
        more = " (its weight is tied to the embeddings: merging would change both)" if tied else ""
        return f"the output head, never a target{more}"
    if _is_within(name, head_modules(model)):
        return "part of the classification head, which is trained and saved whole"
    if isinstance(module, nn.Embedding) or module is embeddings:
        return "an embedding, never a target"
    if re.search(r"router|gate\b|expert", f"{type(module).__name__} {name}", re.IGNORECASE):
        return "a router or an expert behind one, never a target"
    if is_linear(module) and _taken_for_experts(model, [name]):
        return f"no target: {_TAKEN.replace('their', 'its')}"
    return f"a {type(module).__name__} " + ("outside the blocks" if is_linear(module) else "and no linear layer")
