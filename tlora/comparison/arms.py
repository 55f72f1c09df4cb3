"""The arms of a race: what can be compared, and how each is put on a copy of the base."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from peft import LoraConfig, PeftModel, PeftType, get_peft_model

from tlora.adapters.attach import attach
from tlora.adapters.config import shared_config
from tlora.adapters.lora_layers import without_noise
from tlora.allocation.allocation import Allocation
from tlora.calibration.calibrate import calibrate
from tlora.calibration.calibration import Calibration
from tlora.models.targets import target_modules
from tlora.models.weights import check_same_model, copy_sharing_weights
from tlora.recipes import Recipe, allocate_and_decompose
from tlora.subspaces.subspaces import Subspaces
from tlora.subspaces.task_subspaces import task_subspaces
from tlora.tasks.task import Task
from tlora.utils.defaults import RANK, SAMPLES
from tlora.utils.reproducibility import temporary_seed

Arm = Allocation | Recipe | LoraConfig | str

KEEP_THE_BASE = (True, False, "gaussian", "orthogonal")
"""Values of PEFT's ``init_lora_weights`` that leave the base's weights as they are."""
NEED_DATA = {"eva": "c", "corda": "wc_half", "lora_ga": "g"}
"""Values that need data before training, and the kind of subspaces that is closest to each."""


@dataclass(frozen=True)
class Trainee:
    """An arm that can be trained with any seed.

    Attributes
    ----------
    adapt : callable
        From a seed to an adapter on a copy of the base.
    training : dict
        Arguments of `tlora.train` that belong to the arm.
    """

    adapt: Callable[[int], PeftModel]
    training: Mapping[str, Any] = field(default_factory=dict)


class Preparation:
    """Makes trainees of arms; what several arms need before training is computed once."""

    def __init__(self, model: Any, task: Task, arms: Mapping[str, Arm], rank: int | None, progress: bool) -> None:
        self.model, self.task, self.progress = model, task, progress
        for name, arm in arms.items():
            if isinstance(arm, Allocation):
                check_same_model(model, {}, arm.shapes, what=f"arm {name!r} is", way_out="allocate for this model")
        self.allocations = [arm for arm in arms.values() if isinstance(arm, Allocation)]
        ranks = [arm.rank for arm in self.allocations] + [arm.r for arm in arms.values() if isinstance(arm, LoraConfig)]
        self.rank = rank or next(iter(ranks), RANK)
        targets = [name for allocation in self.allocations for name in allocation.targets] or target_modules(model)
        self.targets = list(dict.fromkeys(targets))
        self._calibrations: dict[str, Calibration] = {}

    def from_allocation(self, arm: Allocation, subspaces: Subspaces | None, recipe: Recipe) -> Trainee:
        """The allocation with these subspaces, attached and trained as the recipe says."""
        return Trainee(partial(self._attach, subspaces, arm, recipe), recipe.train)

    def from_recipe(self, recipe: Recipe) -> Trainee:
        """The pipeline as the recipe says, from the calibration to the allocation."""
        arguments = {"rank": self.rank, **recipe.allocate}
        allocation, subspaces = allocate_and_decompose(
            self._calibration(recipe).sensitivity, arguments, partial(self.subspaces, recipe)
        )
        return self.from_allocation(allocation, subspaces, recipe)

    def from_config(self, name: str, config: LoraConfig) -> Trainee:
        """The config of PEFT, with target modules, task type and head of this model if it does not name its own."""
        start = str(config.init_lora_weights).lower()
        if start in NEED_DATA:
            raise TypeError(
                f"arm {name!r} needs data before training (init_lora_weights={start!r}): the closest recipe is "
                f"tlora.Recipe({name!r}, task_subspaces={{'kind': {NEED_DATA[start]!r}}}, attach={{'freeze_a': False}})"
            )
        if config.peft_type != PeftType.LORA:
            raise TypeError(f"arm {name!r} is a {type(config).__name__}: pass a peft.LoraConfig")
        config = copy.deepcopy(config)
        for key, value in shared_config(self.model, self.targets).items():
            if not getattr(config, key):
                setattr(config, key, value)
        return Trainee(partial(self._adapt, config))

    def subspaces(self, recipe: Recipe, ranks: Allocation | int) -> Subspaces | None:
        """The subspaces of the recipe, up to these ranks."""
        if recipe.task_subspaces is None:
            return None
        options = {"max_rank": ranks} | dict(recipe.task_subspaces)
        return task_subspaces(self.model, self._calibration(recipe), **options, progress=self.progress)

    def _calibration(self, recipe: Recipe) -> Calibration:
        options = {"target_modules": self.targets} | dict(recipe.calibrate)
        key = json.dumps(options)
        if key not in self._calibrations:
            batches = self.task.calibration(min(SAMPLES, len(self.task.train)))
            self._calibrations[key] = calibrate(self.model, batches, **options, progress=self.progress)
        return self._calibrations[key]

    def _attach(self, subspaces: Subspaces | None, allocation: Allocation, recipe: Recipe, seed: int) -> PeftModel:
        return attach(copy_sharing_weights(self.model), subspaces, allocation, seed=seed, **recipe.attach)

    def _adapt(self, config: LoraConfig, seed: int) -> PeftModel:
        shares = config.init_lora_weights in KEEP_THE_BASE
        base = copy_sharing_weights(self.model) if shares else copy.deepcopy(self.model)
        with temporary_seed(seed), without_noise():
            return get_peft_model(base, copy.deepcopy(config))


def make_trainees(
    preparation: Preparation, arms: Mapping[str, Arm], subspaces: Subspaces | None, recipe: str | Recipe
) -> dict[str, Trainee]:
    """Each arm as a trainee; subspaces and recipe are those of allocations."""
    recipe = Recipe.named(recipe) if isinstance(recipe, str) else recipe
    if preparation.allocations and subspaces is None:
        most = max(rank for allocation in preparation.allocations for rank in allocation.ranks.values())
        subspaces = preparation.subspaces(recipe, most)
    trainees = {}
    for name, arm in arms.items():
        if isinstance(arm, Allocation):
            trainees[name] = preparation.from_allocation(arm, subspaces, recipe)
        elif isinstance(arm, LoraConfig):
            trainees[name] = preparation.from_config(name, arm)
        elif isinstance(arm, Recipe | str):
            trainees[name] = preparation.from_recipe(Recipe.named(arm) if isinstance(arm, str) else arm)
        else:
            kinds = "an Allocation, a Recipe or its name, or a peft.LoraConfig"
            raise TypeError(f"arm {name!r} is a {type(arm).__name__}: pass {kinds}")
    return trainees
