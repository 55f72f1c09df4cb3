"""The methods to compare: those of PEFT, three that PEFT does not have, and the recipes of TLoRA.

Each adapts the same modules of a fresh base model, and returns a model for `tlora.train`. Alpha equals the rank
everywhere, so that plain LoRA has a scaling of one.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar

import torch
from peft import (
    AdaLoraConfig,
    LNTuningConfig,
    LoraConfig,
    LoraGAConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
    initialize_lora_eva_weights,
)
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from peft.tuners.lora.config import CordaConfig, EvaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import get_eva_state_dict
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch.optim import AdamW, Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.lab.qalora import GROUP, pool_inputs
from benchmarks.lab.talklora import EXPERTS, add_experts
from benchmarks.lab.tloraplus import RATIO, add_third_matrices, optimizer
from tlora.adapters.attach import attach
from tlora.adapters.config import shared_config
from tlora.adapters.freeze import freeze_a
from tlora.adapters.lora_layers import head_parameters
from tlora.calibration.calibration import Calibration
from tlora.models.targets import target_modules
from tlora.recipes import RECIPES, Recipe, calibrate_on, prepare
from tlora.tasks.task import Batches, Task
from tlora.utils.defaults import BATCH_SIZE, ROWS
from tlora.utils.logs import without_noise
from tlora.utils.reproducibility import temporary_seed

Arguments = Mapping[str, Any]

LORAPLUS_RATIO = 16
"""Learning rate of B over that of A, as in the LoRA+ paper."""

VERA_RANK = 256
"""PEFT's default: VeRA's rank is that of fixed random matrices, which cost almost nothing."""

HEAD = "head"
"""The method that trains the fresh head of a classifier alone; the others train their heads at its best rate."""

T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """A way to adapt a model.

    Attributes
    ----------
    name : str
        Name in the store and the tables.
    adapt : callable
        Maps a `Job` to the adapted model; it may change the base, which is loaded for this run alone.
    arguments : dict
        What distinguishes it from another method of the same name: JSON values, part of the keys of runs.
    optimizer : callable or None
        Makes its optimizer from the job's rank, the adapted model and the peak learning rate; None for AdamW.
    callbacks : tuple of type
        Trainer callbacks that it needs.
    rate_scale : float
        Factor on the grid of learning rates on which its search begins: below 1 if its optimizer multiplies the rate
        of some matrices.
    train : dict
        Arguments of `tlora.train` that are part of the method: ``freeze_a_after``.
    """

    name: str
    adapt: Callable[[Job], PeftModel]
    arguments: Arguments = field(default_factory=dict)
    optimizer: Callable[[int, PeftModel, float], Optimizer] | None = None
    callbacks: tuple[type[TrainerCallback], ...] = ()
    rate_scale: float = 1.0
    train: Arguments = field(default_factory=dict)

    def training(self, rank: int) -> dict[str, Any]:
        """Arguments of `tlora.train` for a training by this method at a nominal ``rank``."""
        make = None if self.optimizer is None else partial(self.optimizer, rank)
        return {"optimizer": make, "callbacks": [callback() for callback in self.callbacks], **self.train}


def choose_method(method: str | Recipe | Method) -> Method:
    """A method by its name, or from a recipe.

    Parameters
    ----------
    method : str, Recipe or Method
        A key of `METHODS`; a recipe, which keeps its own name; or a method of your own.

    Returns
    -------
    Method

    Raises
    ------
    ValueError
        If there is no such method, or its name and arguments are those of another one: their runs could not be
        distinguished in the store.
    TypeError
        If a recipe changes the training.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}, or pass a recipe")
        return METHODS[method]
    if isinstance(method, Recipe):
        return _choose_recipe(method)
    known = METHODS.get(method.name, method)
    if known != method and known.arguments == method.arguments:
        raise ValueError(f"there is already a method {method.name!r}: give yours another name, or other arguments")
    return method


def _choose_recipe(recipe: Recipe) -> Method:
    name = recipe.name
    if others := recipe.train.keys() - {"freeze_a_after"}:
        raise TypeError(
            f"the recipe {name!r} sets {', '.join(sorted(others))} of train(): methods are compared with the same "
            "training, and each at its own learning rate; leave train= out"
        )
    method = METHODS[name] if recipe == RECIPES.get(name) else _recipe_method(recipe)
    if METHODS.get(name, method) is not method and METHODS[name].arguments == method.arguments:
        raise ValueError(f"the recipe {name!r} has the name of another method: call it something else")
    return method


def _recipe_method(recipe: Recipe) -> Method:
    # The keys of runs name what the calibration keeps and the length of A's rows, also if they follow from the rest.
    arguments = recipe.arguments()
    if keeps := recipe.needs | dict(recipe.calibrate):
        arguments["calibrate"] = keeps
    if recipe.task_subspaces is not None:
        arguments["attach"] = {"rows": ROWS} | dict(recipe.attach)
    return Method(recipe.name, partial(_adapt_by_recipe, recipe), arguments, train=recipe.train)


def _adapt_by_recipe(recipe: Recipe, job: Job) -> PeftModel:
    """The pipeline by a recipe, from the calibration to the adapter; recipes with the same steps share them."""
    recipe = recipe.override(calibrate={"target_modules": job.target_modules, **recipe.needs, **recipe.calibrate})
    calibration = job.calibration(**recipe.calibrate)
    plan = job.remember(
        ("plan", recipe.calibrate, recipe.task_subspaces, recipe.allocate, job.rank),
        lambda: prepare(job.model, job.task, recipe, job.rank, calibration=calibration, seed=job.seed, progress=False),
    )
    return attach(job.model, replace(plan, recipe=recipe))


def _peft(job: Job, kind: type[PeftConfig], low_cpu_mem_usage: bool = False, **config: Any) -> PeftModel:
    """The base with an adapter of PEFT on every target module."""
    names = {option.name for option in fields(kind)}
    shared = {name: value for name, value in shared_config(job.model, job.targets).items() if name in names}
    return get_peft_model(job.model, kind(**config, **shared), low_cpu_mem_usage=low_cpu_mem_usage)


def _lora(job: Job, **config: Any) -> PeftModel:
    """LoRA of PEFT, with further arguments of its config."""
    return _peft(job, LoraConfig, r=job.rank, lora_alpha=job.rank, lora_dropout=0.0, **config)


def _lora_fa(job: Job) -> PeftModel:
    adapted = _lora(job)
    freeze_a(adapted)
    return adapted


def _adalora(job: Job) -> PeftModel:
    """AdaLoRA: starts at one and a half times the rank, and prunes between a tenth and seven tenths of the steps."""
    schedule = {"tinit": job.steps // 10, "tfinal": max(1, 3 * job.steps // 10), "total_step": job.steps}
    ranks = {"init_r": round(1.5 * job.rank), "target_r": job.rank, "lora_alpha": job.rank}
    config: dict[str, Any] = ranks | schedule | {"deltaT": max(1, job.steps // 100), "lora_dropout": 0.0}
    adapted = _peft(job, AdaLoraConfig, **config)
    for name, parameter in adapted.named_parameters():
        if ".ranknum." in name:  # a count, which PEFT unfreezes if the base has fewer bits than float32
            parameter.requires_grad_(False)
    return adapted


def _vera(job: Job) -> PeftModel:
    return _peft(job, VeraConfig, r=VERA_RANK, projection_prng_key=job.seed, vera_dropout=0.0)


def _full(job: Job) -> PeftModel:
    """All weights of the targets, by PEFT's layer-norm tuning, which trains a copy of any module."""
    return _peft(job, LNTuningConfig)


def _head(job: Job) -> PeftModel:
    """The fresh head of a classifier alone; there is an adapter, which stays at zero.

    Raises
    ------
    ValueError
        If the task has no head.
    """
    adapted = _lora(replace(job, rank=1))
    heads = set(map(id, head_parameters(adapted)))
    if not heads:
        raise ValueError(f"{HEAD} trains the head of a classifier, and {job.task.name} has none: leave it out")
    for parameter in adapted.parameters():
        parameter.requires_grad_(id(parameter) in heads)
    return adapted


def _tlora_plus(job: Job) -> PeftModel:
    return add_third_matrices(_lora(job))


def _qa_lora(job: Job) -> PeftModel:
    return pool_inputs(_lora(job))


def _talk_lora(job: Job) -> PeftModel:
    return add_experts(_lora(job))


class AllocateRanks(TrainerCallback):
    """Calls AdaLoRA after each optimizer step, before gradients are dropped, as PEFT requires."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the importance of each direction and prune the least important ones."""
        kwargs["model"].base_model.update_and_allocate(state.global_step)


def _lorafa_optimizer(rank: int, model: PeftModel, rate: float) -> Optimizer:
    return create_lorafa_optimizer(model, r=rank, lora_alpha=rank, lr=rate)


def _loraplus_optimizer(rank: int, model: PeftModel, rate: float) -> Optimizer:
    return create_loraplus_optimizer(
        model, AdamW, lr=rate, loraplus_lr_ratio=LORAPLUS_RATIO, eps=1e-8, betas=(0.9, 0.999)
    )


def _lora_variant(kind: str, **config: Any) -> Method:
    return Method(kind, partial(_lora, **config), config)


def eva(job: Job) -> PeftModel:
    """Directions of the inputs' largest variance, with ranks allocated by explained variance (PEFT's defaults).

    All tokens count, as in TLoRA: PEFT advises against its mask of labels if few tokens are labeled, and loops
    forever if no batch has enough tokens left.

    Raises
    ------
    ValueError
        If no batch has as many tokens as vectors are computed.

    References
    ----------
    EVA, arXiv 2410.07170.
    """
    settings = EvaConfig(use_label_mask=False)
    # PEFT requires that factors have no values until the vectors are computed.
    adapted = _lora(job, init_lora_weights="eva", eva_config=settings, low_cpu_mem_usage=True)
    batches = _on_device(job)
    tokens, wanted = max(int(batch["attention_mask"].sum()) for batch in batches), round(settings.rho * job.rank)
    if tokens < wanted:
        raise ValueError(f"EVA needs {wanted} tokens a batch at rank {job.rank}, there are {tokens}: use a lower rank")
    state = job.remember(("eva", job.rank), lambda: get_eva_state_dict(adapted, batches, show_progress_bar=False))
    initialize_lora_eva_weights(adapted, eva_state_dict=dict(state))  # a copy: PEFT empties it
    cast_adapter_dtype(adapted, adapted.active_adapter)  # from the base's dtype, as PEFT does for all others
    return adapted


def corda(job: Job) -> PeftModel:
    """Singular vectors of ``W C``, subtracted from ``W`` (the instruction-previewed mode).

    PEFT's hooks ignore masks, so samples are processed one by one, without padding.

    References
    ----------
    CorDA, arXiv 2406.05223.
    """
    settings = CordaConfig(corda_method="ipm")
    config = LoraConfig(
        r=job.rank, init_lora_weights="corda", corda_config=settings, **shared_config(job.model, job.targets)
    )
    vectors = job.remember(("corda", job.rank), lambda: _corda_vectors(job, config))
    for name, eigens in vectors.items():
        job.model.get_submodule(name).eigens = eigens  # PEFT reads and deletes them
    return _lora(job, init_lora_weights="corda", corda_config=settings)


def _corda_vectors(job: Job, config: LoraConfig) -> dict[str, Any]:
    @torch.no_grad()
    def run_model() -> None:
        for batch in _on_device(job, batch_size=1):
            job.model(**batch)

    preprocess_corda(job.model, config, run_model)
    return {name: job.model.get_submodule(name).eigens for name in job.targets}


def lora_ga(job: Job) -> PeftModel:
    """Singular vectors of the mean gradient in ``A`` and in ``B``, and their product subtracted from ``W``.

    As in PEFT, ``B`` contains the singular values. The authors' code scales unit vectors of both by one number, so
    that its ``B`` starts much larger than here.

    References
    ----------
    LoRA-GA, arXiv 2407.05000.
    """
    settings = LoraGAConfig()
    kind: Any = "lora_ga"  # missing in PEFT's annotation
    config = LoraConfig(
        r=job.rank, init_lora_weights=kind, lora_ga_config=settings, **shared_config(job.model, job.targets)
    )

    def backward() -> None:
        for batch in _on_device(job):
            job.model(**batch).loss.backward()

    with warnings.catch_warnings():
        # PEFT counts backward passes by hooks, and the first layer's inputs need no gradient.
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        preprocess_loraga(job.model, config, backward)
    return _lora(job, init_lora_weights="lora_ga", lora_ga_config=settings)


def _on_device(job: Job, batch_size: int = BATCH_SIZE) -> list[dict[str, torch.Tensor]]:
    device = job.model.device
    return [{name: value.to(device) for name, value in batch.items()} for batch in job.batches(batch_size)]


class Cache:
    """The last few computed values by a key of JSON values, and the seconds that each of them took.

    Calibrations and decompositions depend on the base, the task and the rank, not on the learning rate: without a
    cache, a search would compute them again for each rate.

    Parameters
    ----------
    size : int
        How many values are kept.

    Attributes
    ----------
    saved : float
        Seconds that were saved so far.
    """

    def __init__(self, size: int = 12) -> None:
        self.size = size
        self.saved = 0.0
        self._values: OrderedDict[str, tuple[Any, float]] = OrderedDict()

    def __call__(self, key: Any, compute: Callable[[], T]) -> T:
        """The value under the key, computed if it is not there."""
        name = json.dumps(key, sort_keys=True)
        if name in self._values:
            self._values.move_to_end(name)
            value, seconds = self._values[name]
            self.saved += seconds
            return value
        started, saved = time.perf_counter(), self.saved
        value = compute()
        self._values[name] = value, time.perf_counter() - started + self.saved - saved
        while len(self._values) > self.size:
            self._values.popitem(last=False)
        return value


@dataclass(frozen=True)
class Job:
    """One adapter to make.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        A fresh base, for this adapter alone.
    task : Task
        The task to adapt to.
    rank : int
        Nominal rank.
    seed : int
        Seed of everything random in it.
    steps : int
        Optimizer steps that it will be trained for.
    samples : int
        Training samples to calibrate on.
    cache : Cache
        Of this base model and this task.
    target_modules : str or list of str, optional
        Modules to adapt, as in `tlora.target_modules`.
    """

    model: Any
    task: Task
    rank: int
    seed: int = 0
    steps: int = 100
    samples: int = 32
    cache: Cache = field(default_factory=Cache)
    target_modules: str | list[str] | None = None

    @property
    def targets(self) -> list[str]:
        """Full names of the modules to adapt."""
        return list(target_modules(self.model, self.target_modules))

    def batches(self, batch_size: int = BATCH_SIZE) -> Batches:
        """The samples to calibrate on."""
        return self.task.calibration(self.samples, batch_size)

    def calibration(self, **options: Any) -> Calibration:
        """The calibration on these samples with these arguments of `tlora.calibrate`, made once as by `remember`."""
        options = {"target_modules": self.target_modules, **options}
        return self.remember(
            ("calibration", options),
            lambda: calibrate_on(self.model, self.task, options, self.samples, progress=False),
        )

    def remember(self, key: tuple[Any, ...], compute: Callable[[], T]) -> T:
        """Compute a value once for all jobs with the same seed, and so with the same samples."""
        return self.cache((*key, self.samples, self.seed), compute)


METHODS = {
    method.name: method
    for method in (
        _lora_variant("lora"),
        _lora_variant("rslora", use_rslora=True),
        _lora_variant("dora", use_dora=True),
        Method("lora+", _lora, {"ratio": LORAPLUS_RATIO}, _loraplus_optimizer, rate_scale=1 / LORAPLUS_RATIO),
        _lora_variant("pissa", init_lora_weights="pissa_niter_16"),
        _lora_variant("olora", init_lora_weights="olora"),
        Method("eva", eva, {"tokens": "all"}),
        Method("corda", corda),
        Method("lora-ga", lora_ga),
        Method("lora-fa", _lora_fa, {}, _lorafa_optimizer),
        Method("adalora", _adalora, {"init": 1.5, "tinit": 0.1, "tfinal": 0.3}, callbacks=(AllocateRanks,)),
        Method("vera", _vera, {"r": VERA_RANK}),
        Method("full", _full, rate_scale=1 / 16),
        Method(HEAD, _head),
        Method("tlora+", _tlora_plus, {"ratio": RATIO}, optimizer, rate_scale=1 / RATIO),
        Method("qa-lora", _qa_lora, {"group": GROUP}),
        Method("talklora", _talk_lora, {"experts": EXPERTS}),
    )
}
METHODS |= {name: _recipe_method(recipe) for name, recipe in RECIPES.items() if name not in METHODS}  # lora is PEFT's
"""Methods by name."""


def seeded_adapt(method: Method, job: Job) -> PeftModel:
    """The adapted model, initialized with the job's seed; the random state is restored."""
    with temporary_seed(job.seed), without_noise():
        return method.adapt(job)
