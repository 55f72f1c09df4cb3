"""Keys of PEFT's ``adapter_config.json``: ranks and scalings of modules, and what computes more than ``W + s B A``.

PEFT itself is not imported, which takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

COMPUTES_MORE = ("lora_bias", "use_qalora", "alora_invocation_tokens", "arrow_config", "layer_replication")
"""Keys with which the update is not ``s B A``."""
_EXPERT_PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")
"""Parameters with experts, in the order of their modules in transformers."""
_REWRITE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_DEFAULT = 8
"""PEFT's rank and alpha of a config that names none."""


def module_ranks(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Return the rank of each module by a config."""
    return {name: _value(config, "rank_pattern", "r", name) for name in names}


def module_scalings(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Return the scaling of each module by a config, as PEFT computes it."""
    exponent = rank_exponent(config)
    return {
        name: _value(config, "alpha_pattern", "lora_alpha", name) / rank**exponent
        for name, rank in module_ranks(config, names).items()
    }


def rank_exponent(config: Mapping[str, Any]) -> float:
    """Return the power of the rank that alpha is divided by: one half with rsLoRA."""
    return 0.5 if config.get("use_rslora") else 1.0


def _value(config: Mapping[str, Any], pattern: str, default: str, name: str) -> float:
    # As PEFT's get_pattern_key.
    values = (value for key, value in (config.get(pattern) or {}).items() if re.match(rf"(.*\.)?({key})$", name))
    return float(next(values, config.get(default, _DEFAULT)))


def patterns(ranks: Mapping[str, int], scalings: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return ``rank_pattern`` and ``alpha_pattern`` of a config, by anchored full names."""
    anchored = {name: f"^{re.escape(name)}$" for name in ranks}
    return {
        "rank_pattern": {anchored[name]: rank for name, rank in ranks.items()},
        "alpha_pattern": {anchored[name]: scalings[name] * rank for name, rank in ranks.items()},
    }


def pattern_config(
    config: Mapping[str, Any], ranks: Mapping[str, int], scalings: Mapping[str, float], parameters: Collection[str]
) -> dict[str, Any]:
    """Return a config with other ranks and scalings, by full names of the modules, and of parameters with experts."""
    largest = max(ranks.values())
    return {
        **config,
        "r": largest,
        "lora_alpha": largest,
        **patterns(ranks, scalings),
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": sorted(name for name in ranks if name not in parameters),
        "target_parameters": sorted(parameters) or None,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def expert_parameter(stem: str, config: Mapping[str, Any]) -> str | None:
    """Return the parameter with experts whose factors PEFT saves under ``stem``; None if it is a module's.

    PEFT wraps a module once for each parameter, in the order in which the module has them: what the experts compute
    first is inside, under ``experts.base_layer``, and their output outside.
    """
    module = stem.replace(".base_layer", "")
    adapted = [
        f"{module}.{key}"
        for key in _EXPERT_PARAMETERS
        if any(f".{module}.{key}".endswith(f".{target}") for target in config.get("target_parameters") or ())
    ]
    depth = stem.count(".base_layer")
    return adapted[::-1][depth] if depth < len(adapted) else None


def expert_stem(parameter: str, adapted: Collection[str]) -> str:
    """Return the stem under which PEFT saves the factors of a parameter with experts; see `expert_parameter`.

    ``adapted`` are the names of all parameters that the adapter changes.
    """
    module, _, own = parameter.rpartition(".")
    keys = [key for key in _EXPERT_PARAMETERS if f"{module}.{key}" in adapted]
    return module + ".base_layer" * (len(keys) - 1 - keys.index(own))


def refuse_experts(parameters: Iterable[str], function: str) -> None:
    """Refuse an adapter with LoRA of experts, for a function that does not take it."""
    if (name := next(iter(parameters), None)) is not None:
        raise ValueError(
            f"{name} has LoRA of experts (target_parameters), which {function}() does not take: tlora.merge puts it "
            "into the weights of the base"
        )


def rewrites_base(config: Mapping[str, Any]) -> bool:
    """Whether the initialization that a config asks for rewrites the base weights, as PiSSA does."""
    return str(config.get("init_lora_weights", "")).lower().startswith(_REWRITE_BASE)


def trace_in_base(config: Mapping[str, Any]) -> str:
    """Describe what an adapter changed in the base itself, whichever adapter is active; empty if nothing."""
    if rewrites_base(config):
        return f"changed the base weights (init_lora_weights={config['init_lora_weights']!r})"
    bias = config.get("bias", "none")
    return "" if bias == "none" else f"trained biases of the base (bias={bias!r})"


def refuse_more_than_lora(config: Mapping[str, Any], way_out: str) -> None:
    """Refuse, by name, an adapter that is not ``W + s B A``; ``way_out`` is what its owner can do."""
    if rewrites_base(config):
        start = config["init_lora_weights"]
        raise ValueError(
            f"init_lora_weights={start!r} has changed the base's own weights, A and B lack that: {way_out}"
        )
    for key in ("use_dora", *COMPUTES_MORE):
        if config.get(key):
            raise ValueError(f"{key}={config[key]!r} computes more than W + s B A: {way_out}")
    for parameter in config.get("target_parameters") or ():
        if parameter.rpartition(".")[2] not in _EXPERT_PARAMETERS:
            raise ValueError(f"target_parameters names {parameter!r}, which does not hold experts: {way_out}")
