"""The arms of a race: what can be compared, and how each is put on a copy of the base."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Any

from peft import LoraConfig, PeftModel, PeftType, get_peft_model

from tlora.adapters.attach import attach
from tlora.adapters.config import shared_config
from tlora.allocation.allocation import Allocation
from tlora.calibration.calibrate import calibrate
from tlora.calibration.calibration import Calibration
from tlora.models.targets import target_modules
from tlora.models.weights import check_same_model, copy_sharing_weights
from tlora.recipes import Plan, Recipe, calibrate_on, decompose, prepare
from tlora.subspaces.subspaces import Subspaces
from tlora.tasks.task import Task
from tlora.utils.defaults import RANK, SAMPLES
from tlora.utils.logs import without_noise
from tlora.utils.reproducibility import temporary_seed

Arm = Allocation | Recipe | LoraConfig | str

KEEP_THE_BASE = (True, False, "gaussian", "orthogonal")
"""Values of PEFT's ``init_lora_weights`` that leave the base's weights as they are."""
NEED_DATA = {"eva": "c", "corda": "wc_half", "lora_ga": "g"}
"""Values that need data before training, and the kind of subspaces that is closest to each."""


_DEFAULTS = {name: parameter.default for name, parameter in signature(calibrate).parameters.items()}
"""Options of a calibration, so that one that names a default is the same as one that does not."""


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
    """Makes trainees of arms; a calibration that several arms need is made once, with all that they need of it."""

    def __init__(
        self,
        model: Any,
        task: Task,
        arms: Mapping[str, Arm],
        recipes: Iterable[Recipe],
        rank: int | None,
        progress: bool,
    ) -> None:
        self.model, self.task, self.progress = model, task, progress
        for name, arm in arms.items():
            if isinstance(arm, Allocation):
                check_same_model(model, {}, arm.shapes, what=f"arm {name!r} is", way_out="allocate for this model")
        self.allocations = [arm for arm in arms.values() if isinstance(arm, Allocation)]
        ranks = [arm.rank for arm in self.allocations] + [arm.r for arm in arms.values() if isinstance(arm, LoraConfig)]
        self.rank = rank or next(iter(ranks), RANK)
        targets = [name for allocation in self.allocations for name in allocation.targets] or target_modules(model)
        self.targets = list(dict.fromkeys(targets))
        self.needs: dict[str, bool] = {}
        self.gradient_checkpointing: bool | None = None
        for recipe in recipes:
            self.needs |= recipe.needs
            self.gradient_checkpointing = recipe.train.get("gradient_checkpointing") or self.gradient_checkpointing
        self._calibrations: dict[str, Calibration] = {}

    def from_allocation(self, arm: Allocation, subspaces: Subspaces | None, recipe: Recipe) -> Trainee:
        """Return the allocation with these subspaces, attached and trained as the recipe says."""
        return Trainee(partial(self._attach, Plan(recipe, arm, subspaces, None, arm.meta)), recipe.train)

    def from_recipe(self, recipe: Recipe) -> Trainee:
        """Return what `prepare` decides by the recipe."""
        known = self._calibration(recipe)
        plan = prepare(self.model, self.task, recipe, self.rank, calibration=known, progress=self.progress)
        # The calibration is large, and not needed to attach.
        return Trainee(partial(self._attach, replace(plan, calibration=None)), recipe.train)

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

    def subspaces(self, recipe: Recipe) -> Subspaces | None:
        """Return the subspaces of the recipe, up to the largest rank of the allocations among the arms."""
        if recipe.kind is None:
            return None
        largest = max(rank for allocation in self.allocations for rank in allocation.stored_ranks.values())
        return decompose(self.model, self._calibration(recipe), recipe, largest, progress=self.progress)

    def _calibration(self, recipe: Recipe) -> Calibration:
        options = {"target_modules": self.targets} | self.needs | dict(recipe.calibrate)
        key = json.dumps(_DEFAULTS | options, sort_keys=True, default=str)
        if key not in self._calibrations:
            samples = min(SAMPLES, len(self.task.train))
            self._calibrations[key] = calibrate_on(
                self.model,
                self.task,
                options,
                samples,
                gradient_checkpointing=self.gradient_checkpointing,
                progress=self.progress,
            )
        return self._calibrations[key]

    def _attach(self, plan: Plan, seed: int) -> PeftModel:
        return attach(copy_sharing_weights(self.model), plan, seed=seed)

    def _adapt(self, config: LoraConfig, seed: int) -> PeftModel:
        shares = config.init_lora_weights in KEEP_THE_BASE
        base = copy_sharing_weights(self.model) if shares else copy.deepcopy(self.model)
        with temporary_seed(seed), without_noise():
            return get_peft_model(base, copy.deepcopy(config))


def make_trainees(
    model: Any,
    task: Task,
    arms: Mapping[str, Arm],
    rank: int | None,
    subspaces: Subspaces | None,
    recipe: str | Recipe,
    progress: bool,
) -> dict[str, Trainee]:
    """Return each arm as a trainee; subspaces and recipe are those of allocations.

    In the order of the arms: a calibration unless an earlier arm had the same, then the directions and ranks of the
    arm, which hold for all its seeds.
    """
    recipe = Recipe.named(recipe) if isinstance(recipe, str) else recipe
    arms = {name: Recipe.named(arm) if isinstance(arm, str) else arm for name, arm in arms.items()}
    recipes = [arm for arm in arms.values() if isinstance(arm, Recipe)]
    if subspaces is None and any(isinstance(arm, Allocation) for arm in arms.values()):
        recipes.append(recipe)
    preparation = Preparation(model, task, arms, recipes, rank, progress)
    if preparation.allocations and subspaces is None:
        subspaces = preparation.subspaces(recipe)
    trainees = {}
    for name, arm in arms.items():
        if isinstance(arm, Allocation):
            trainees[name] = preparation.from_allocation(arm, subspaces, recipe)
        elif isinstance(arm, LoraConfig):
            trainees[name] = preparation.from_config(name, arm)
        elif isinstance(arm, Recipe):
            trainees[name] = preparation.from_recipe(arm)
        else:
            kinds = "an Allocation, a Recipe or its name, or a peft.LoraConfig"
            raise TypeError(f"arm {name!r} is a {type(arm).__name__}: pass {kinds}")
    return trainees
