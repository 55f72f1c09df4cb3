"""An adapter taken apart, from a folder or a model: ``A``, ``B`` and scaling of each module, and what comes with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from tlora.adapters.config import patterns
from tlora.adapters.files import (
    PREFIX,
    AdapterLayout,
    read_tensors,
    read_training_record,
    refuse_more_than_lora,
    split_factors,
    validate_adapter,
)
from tlora.adapters.hub import adapter_folder
from tlora.adapters.lora_layers import adapter_config, adapter_tensors, require_one_lora, warn_resized_vocabulary
from tlora.adapters.updates import rewrites_base
from tlora.calibration.calibration import Calibration
from tlora.calibration.covariance import Covariance
from tlora.models.weights import SIMILARITY_THRESHOLD, base_fingerprints, fingerprint_similarity

UNNAMED = "an unnamed model"


class FactoredAdapter(NamedTuple):
    """``A``, ``B`` and scaling of each module by full name, and everything else as it is in the adapter's files."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, int]]
    factors: dict[str, tuple[Tensor, Tensor]]
    others: dict[str, Tensor]
    scalings: dict[str, float]
    fingerprints: dict[str, Tensor]
    base: str

    @property
    def ranks(self) -> dict[str, int]:
        """Rows of ``A`` of each module."""
        return {name: len(a) for name, (a, _) in self.factors.items()}


def read_adapter(adapter: str | os.PathLike[str] | PeftModel, function: str) -> FactoredAdapter:
    """Take an adapter apart, refusing what is not ``W + s B A``; ``function`` is the caller's name, for the message."""
    if isinstance(adapter, PeftModel):
        require_one_lora(adapter, function)
        warn_resized_vocabulary(adapter)
        tensors = {key: tensor.detach().cpu() for key, tensor in adapter_tensors(adapter).items()}
        return _take_apart(adapter_config(adapter), tensors, "the model's adapter", base_fingerprints(adapter))
    folder = adapter_folder(adapter)
    config, _ = validate_adapter(folder, function)
    record = read_training_record(folder)
    return _take_apart(config, read_tensors(folder), str(folder), dict(record.fingerprints or {}))


def _take_apart(
    config: dict[str, Any], tensors: dict[str, Tensor], where: str, prints: dict[str, Tensor]
) -> FactoredAdapter:
    convert = "model.save_pretrained(folder, path_initial_model_for_weight_conversion=...)"
    refuse_more_than_lora(
        config,
        f"convert it to LoRA by {convert} and use that"
        if rewrites_base(config)
        else "serve it as it is, or train LoRA",
    )
    factors, others = split_factors(tensors, where)
    ranks = {name: len(a) for name, (a, _) in factors.items()}
    return FactoredAdapter(
        config=config,
        shapes={name: (len(b), a.shape[1]) for name, (a, b) in factors.items()},
        factors=factors,
        others=others,
        scalings=AdapterLayout(config, ranks | embedding_ranks(others)).scalings,
        fingerprints=prints,
        base=config.get("base_model_name_or_path") or UNNAMED,
    )


def embedding_ranks(others: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the rank of embeddings with LoRA, by full module name."""
    end = ".lora_embedding_A"
    return {key.removesuffix(end).removeprefix(PREFIX): len(a) for key, a in others.items() if key.endswith(end)}


def pattern_config(
    config: Mapping[str, Any], ranks: Mapping[str, int], scalings: Mapping[str, float]
) -> dict[str, Any]:
    """Return an adapter's config with other ranks and scalings, by full names of the modules."""
    largest = max(ranks.values())
    return {
        **config,
        "r": largest,
        "lora_alpha": largest,
        **patterns(ranks, scalings),
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def factor_tensors(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return ``A`` and ``B`` of each module under the names that PEFT saves them by."""
    return {
        f"{PREFIX}{name}.lora_{part}.weight": factor
        for name, pair in factors.items()
        for part, factor in zip("AB", pair, strict=True)
    }


def have_same_a(rows: Sequence[Tensor]) -> bool:
    """Whether several ``A`` are equal, or the first rows of the one with the most."""
    longest = max(rows, key=len)
    return all(torch.equal(a, longest[: len(a)]) for a in rows)


def check_calibration(calibration: Calibration, adapter: FactoredAdapter, what: str) -> None:
    """Refuse a calibration of another model than the adapter's base, as far as shapes and fingerprints tell."""
    for name, here in adapter.shapes.items():
        if name not in calibration.targets:
            raise ValueError(
                f"{what} has no {name}, which the adapter changes: calibrate its base with target_modules=[...] that "
                "include it"
            )
        if here != (there := calibration.sensitivity.shapes[name]):
            raise ValueError(f"{what} is of another model: {name} is {there} there, in the adapter it is {here}")
        if name in adapter.fingerprints:
            similarity = fingerprint_similarity(adapter.fingerprints[name], calibration.fingerprints[name])
            if not similarity > SIMILARITY_THRESHOLD:
                raise ValueError(
                    f"{what} is of another model than the adapter's base: {name} has another weight there (similarity "
                    f"{similarity:.2f} of 1); calibrate the base that it was trained on"
                )


def second_moments(calibration: Calibration) -> Callable[[str], Covariance]:
    """Return a function from a module to its second moment, which keeps the last two: neighbors share them."""
    second_moment = lru_cache(maxsize=2)(lambda name: calibration.covariance[name].second_moment())
    return lambda name: second_moment(calibration.shared[name])


def difference_of_bases(one: FactoredAdapter, other: FactoredAdapter) -> str:
    """Say in a clause why two adapters are not of one base; empty if nothing tells them apart.

    Weights are compared by their fingerprints, if both adapters recorded them, and else names.
    """
    both = [name for name in one.shapes if name in other.shapes]
    for name in both:
        if one.shapes[name] != other.shapes[name]:
            return f"{name} is {one.shapes[name]} in the one and {other.shapes[name]} in the other"
    known = [name for name in both if name in one.fingerprints and name in other.fingerprints]
    for name in known:
        if not fingerprint_similarity(one.fingerprints[name], other.fingerprints[name]) > SIMILARITY_THRESHOLD:
            return f"{name} had another weight when the other was trained"
    if not known and len({one.base, other.base, UNNAMED}) == 3:
        return f"the one names {one.base}, the other {other.base}"
    return ""
