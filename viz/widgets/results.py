"""Results: everything known about an allocation and its adapter, for the workbench, its page and the model card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch

from tlora.allocation.allocation import Allocation
from tlora.calibration.expert_use import ExpertUse
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.explanation.attribution import Attribution
from tlora.explanation.compare_answers import AnswerTable
from tlora.explanation.direction_activations_result import DirectionActivations
from tlora.explanation.measure_scales import Rescaling
from tlora.explanation.side_effects import SideEffects
from tlora.models.experts import expert_names, parameter_name
from tlora.resources.estimate import ResourceEstimate
from tlora.results import Meta, result_file
from tlora.subspaces.alignment import Alignment
from tlora.subspaces.gradient_capture import GradientCapture
from tlora.subspaces.subspaces import Subspaces
from tlora.training.run import TrainingRun
from tlora.utils.file_names import ADAPTER_CONFIG

IN_FOLDER, OF_ADAPTER, TEXTS = {"in_folder": True}, {"of_adapter": True}, {"texts": True}
"""What may be true of a result: it is in the folder of an adapter; it is of an adapter, whose modules need not be those
of the map; it holds the text of samples."""


@dataclass(frozen=True)
class Results:
    """One result of each kind, in the order of the pipeline; None if unknown.

    ``others`` are subspaces to compare, by label; ``folder`` is the adapter's folder as the reader of a page knows it.
    Without an ``attribution`` it is that of the rows which the ``answers`` have taken apart.
    """

    sensitivity: Sensitivity | None = field(default=None, metadata=IN_FOLDER)
    expert_use: ExpertUse | None = field(default=None, metadata=IN_FOLDER)
    spectrum: Spectrum | None = field(default=None, metadata=IN_FOLDER)
    subspaces: Subspaces | None = None
    alignment: Alignment | None = field(default=None, metadata=IN_FOLDER)
    capture: GradientCapture | None = field(default=None, metadata=IN_FOLDER)
    activations: DirectionActivations | None = field(default=None, metadata=TEXTS)
    allocation: Allocation | None = field(default=None, metadata=IN_FOLDER)
    run: TrainingRun | None = field(default=None, metadata=IN_FOLDER)
    estimate: ResourceEstimate | None = None
    answers: AnswerTable | None = field(default=None, metadata=OF_ADAPTER | TEXTS)
    attribution: Attribution | None = field(default=None, metadata=OF_ADAPTER | TEXTS)
    effects: SideEffects | None = field(default=None, metadata=OF_ADAPTER | TEXTS)
    rescaling: Rescaling | None = field(default=None, metadata=OF_ADAPTER)
    others: Mapping[str, Subspaces] = field(default_factory=dict)
    folder: str = "adapter"

    def __post_init__(self) -> None:
        if self.attribution is None and self.answers is not None:
            object.__setattr__(self, "attribution", self.answers.attribution)

    @property
    def metas(self) -> dict[str, Meta]:
        """Where each result comes from, in the order of the pipeline."""
        results = {name: getattr(self, name) for name in RESULT_CLASSES}
        return {name: result.meta for name, result in results.items() if result is not None}

    @property
    def calibrated(self) -> Meta | None:
        """Where the calibration comes from; None if no result is from one."""
        sources = (self.sensitivity, self.spectrum, self.allocation)
        return next((result.meta for result in sources if result is not None), None)

    @property
    def calibration_recipe(self) -> dict[str, Any]:
        """Arguments of the calibration; an allocation keeps them within its own."""
        recipe = self.calibrated.recipe if self.calibrated else {}
        return recipe.get("sensitivity", recipe)

    @property
    def model(self) -> str:
        """Name of the base model: that of the latest stage that has one."""
        return next((meta.model for meta in reversed(self.metas.values()) if meta.model), "")

    @property
    def task(self) -> str:
        """Name of the task: that of the latest stage that has one."""
        return next((meta.task for meta in reversed(self.metas.values()) if meta.task), "")

    @property
    def title(self) -> str:
        """What a page is about: ``"family_relationships on smollm2-135m"``."""
        return " on ".join(part for part in (self.task, PurePath(self.model).name) if part) or "An adapter"

    @property
    def places(self) -> tuple[dict[str, int], dict[str, str]] | None:
        """Layer and projection of each module, if a result knows them."""
        source = self.sensitivity or self.allocation or self.spectrum
        return (source.layers, source.projections) if source else None

    def check_modules(self) -> None:
        """Refuse results of another class, or of modules that the sensitivity does not have."""
        assert self.sensitivity is not None
        known = set(module_names(self.sensitivity))
        for name, target in self.sensitivity.targets.items():
            if target.part == "experts":
                known.update(expert_names(name.rpartition(".")[0], target.experts))
        parts: dict[str, Any] = {name: getattr(self, name) for name in RESULT_CLASSES}
        parts |= {f"other[{label!r}]": one for label, one in self.others.items()}
        for name, part in parts.items():
            if part is None:
                continue
            kind = RESULT_CLASSES.get(name, Subspaces)
            if type(part) is not kind:
                raise TypeError(f"{name} is a {type(part).__name__}: pass a {kind.__name__}")
            if name in fields_with(OF_ADAPTER):
                continue
            if unknown := [module for module in module_names(part) if module not in known]:
                raise ValueError(f"{name} is of another model: {unknown[0]} is not in the calibration")


RESULT_CLASSES: dict[str, Any] = {
    name: get_args(hint)[0] for name, hint in get_type_hints(Results).items() if NoneType in get_args(hint)
}
"""Class of each result, by the name of its field and of its file."""


def module_names(result: Any) -> list[str]:
    """The modules that a result is of; of experts the parameter, and of their use each with its number."""
    if isinstance(result, ExpertUse):
        return [f"{module}[{expert}]" for module, expert in zip(result.modules, result.experts, strict=True)]
    return list(map(parameter_name, result.ranks if isinstance(result, TrainingRun) else result.shapes))


def fields_with(trait: Mapping[str, bool]) -> list[str]:
    """The results of which this is true, by field."""
    return [one.name for one in fields(Results) if trait.items() <= one.metadata.items()]


def load_results(folder: str | os.PathLike[str]) -> Results:
    """Read the results in the folder of an adapter, as ``tlora run`` or ``run.save`` wrote it.

    Raises
    ------
    FileNotFoundError
        If the folder holds no adapter, or no result of this package.
    """
    path = Path(folder)
    if not (path / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(
            f"{path} holds no adapter (there is no {ADAPTER_CONFIG}): name the folder that `tlora run` or run.save() "
            "wrote"
        )
    results: dict[str, Any] = {}
    for name in fields_with(IN_FOLDER):
        if result_file(path / "tlora" / name).is_file():
            results[name] = RESULT_CLASSES[name].load(path if name == "run" else path / "tlora" / name)
    if not results:
        raise FileNotFoundError(
            f"{path} holds an adapter without results ({path / 'tlora'}): train it with `tlora run`, or save what you "
            f"have there, e.g. allocation.save({str(path / 'tlora' / 'allocation')!r})"
        )
    # A page is passed on: do not reveal where the folder is on this machine.
    return Results(**results, folder=path.resolve().name if path.is_absolute() else path.as_posix())


def scores_to_show(results: Results) -> Sensitivity:
    """The sensitivity, or if there is none the scores of the allocation as those of a single sample."""
    if results.sensitivity is not None:
        return results.sensitivity
    if (allocation := results.allocation) is None:
        raise ValueError("there is neither a sensitivity nor an allocation, whose scores the map shows: save it again")
    scores = [[allocation.scores.get(name, 0.0) for name in allocation.names]]
    by_score = not allocation.options.is_captured
    experts = {name: gains[:, 0].tolist() for name, gains in allocation.expert_gains.items() if by_score}
    return Sensitivity(dict(allocation.targets), torch.tensor(scores), allocation.meta, experts)
