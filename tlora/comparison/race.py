"""A race: adapters on one base, trained in turns on the same batches, and compared with an interval as they go."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import TrainerCallback

from tlora.adapters.attach import attach
from tlora.adapters.lora_layers import head_parameters, lora_modules, trainable_parameters
from tlora.allocation.allocation import Allocation
from tlora.calibration.calibrate import calibrate
from tlora.comparison.lr_search import Curve, best, scaled
from tlora.comparison.methods import Job, Method, chosen, seeded_adapt
from tlora.comparison.race_result import Race
from tlora.comparison.sequential import error_at_looks
from tlora.models.targets import refuse_adapted
from tlora.models.weights import check_same_model, copy_sharing_weights
from tlora.recipes import Recipe
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces
from tlora.subspaces.task_subspaces import task_subspaces
from tlora.tasks.evaluation import losses_of_samples
from tlora.tasks.task import Task
from tlora.training.dataset import evenly_spaced_rows
from tlora.training.run import TrainingRun
from tlora.training.stepwise import Stepwise
from tlora.training.train import train
from tlora.utils.defaults import BATCH_SIZE
from tlora.utils.validation import check_mapping, confidence_level, positive, positive_int

Arm = Allocation | str | Recipe | Method
Rates = float | Mapping[str, float]

UNIFORM = replace(Recipe.named("tlora"), name="uniform", allocate={"adapt_ranks": False, "adapt_scales": False})
"""The same rank and scale for every module, and all else as by the recipe ``tlora``."""
LOOKS = 4
"""Looks at the held-out samples, at even distances, the last at the end."""
FIRST = 0.5
"""Part of the steps before which no race is decided: there, who learns quickly is ahead of who ends better."""
LADDER = (5e-4, 2e-3, 8e-3)
"""Learning rates that are tried where none is given: in the comparisons the best of all methods but one lay between."""
PART = 0.25
"""Part of the steps that each of them is tried for."""
SAMPLES = 32
"""Training samples to calibrate on, as for `tlora run`."""
LEAST, TRIED, HASTE = 8, 4, 0.9
"""Fewest steps that a race in seconds is worth; steps that are timed before; part of the time that is planned."""
EVALUATED_AT_ONCE = 16


def race(
    model: Any,
    task: Task,
    arms: Mapping[str, Arm],
    *,
    subspaces: Subspaces | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    seeds: Iterable[int] = (0, 1, 2),
    learning_rate: Rates | None = None,
    batch_size: int = BATCH_SIZE,
    rank: int | None = None,
    recipe: str | Recipe = "tlora",
    margin: float = 0.02,
    confidence: float = 0.95,
    evaluation_limit: int = 128,
    progress: bool = True,
    callbacks: Mapping[str, Collection[TrainerCallback]] | None = None,
    watch: Callable[[Race], None] | None = None,
) -> Race:
    """Train adapters in turns, and say which is better on this task, and by how much.

    Each takes a step of `tlora.train`, with its settings and the same batches in the same order, then the next one
    does; all are evaluated at the same steps on the same held-out samples. From the middle on the race ends as soon as
    one is ahead of all others, else when the steps or the seconds are spent. Interrupting the cell ends it too, and
    returns what was trained.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base. Each adapter is put on a copy that shares its weights: the memory is that of one base and the
        adapters, and the model itself is not changed.
    task : Task
        From `tlora.load_task`. Results are of its test samples, or of the validation samples where it has no others;
        learning rates are chosen on the validation samples.
    arms : mapping
        At least two, by name: an `Allocation`; a recipe or its name; ``"uniform"``, the recipe ``tlora`` with one rank
        for all; or the name of any other method of `tlora.compare`, such as ``"lora"``.
    subspaces : Subspaces, optional
        Where the ``A`` of allocations come from. By default 32 training samples are calibrated on.
    steps : int, optional
        Optimiser steps of each training; or else
    seconds : float, optional
        Time for everything, the search for learning rates included: as many steps are planned as fit.
    seeds : iterable of int
        Each arm is trained once for each: with other batches, and another start where it is random. See Notes.
    learning_rate : float or mapping of float, optional
        For all arms, or by arm. Where none is given, 5e-4, 2e-3 and 8e-3 are tried for a quarter of the steps, with a
        seed that is not reported.
    batch_size : int
        Samples a step.
    rank : int, optional
        Nominal rank of recipes and methods; by default that of the first allocation, or 8.
    recipe : str or Recipe
        How allocations are attached and trained.
    margin : float
        Differences up to this do not matter: nats.
    confidence : float
        Share of races in which all intervals, at all looks and of all pairs of arms, hold the true difference.
    evaluation_limit : int
        Most held-out samples.
    progress : bool
        Show a progress bar.
    callbacks : mapping, optional
        Trainer callbacks for the first training of an arm, by its name. One that sets ``control.should_training_stop``
        ends all trainings of that arm; the others go on.
    watch : callable, optional
        Called with the race so far after each look.

    Returns
    -------
    Race
        ``race.sentence`` is the answer, ``race.winner`` the run of the arm with the lowest loss, ready to be saved.

    Raises
    ------
    TypeError
        If an argument is of another type.
    ValueError
        If there are fewer than two arms; an arm is of another model; there are fewer than two held-out samples; neither
        or both of steps and seconds are given, or the seconds do not suffice; or a number is out of range.

    Warns
    -----
    UserWarning
        As `tlora.train`, where some ``B`` stayed at zero.

    Notes
    -----
    With one seed the interval is for other held-out samples: it says which of *these adapters* is better, and another
    start or another order of the batches may turn that round. Whether the *allocation* is better takes several seeds:
    the interval is then for other seeds and samples, and contains the variance between seeds. The sentence says which
    it is. What is computed before training, such as subspaces, is the same for all seeds.

    Intervals hold at all looks and for all pairs of arms together, by the union bound: see
    ``tlora.comparison.sequential``. An arm may be declared ahead at each look, with the part of the error that this
    look may spend: of the adapters as they then are, which is why the race goes on to the middle at least. That there
    is no difference is said of the last look only, because at the beginning there never is one.
    An arm whose loss or gradient is not finite is out, and the others go on.
    """
    plan = _Plan(model, task, steps, seconds, tuple(seeds), batch_size, margin, confidence, evaluation_limit)
    entered = _entered(plan, arms, subspaces, rank, recipe)
    rates = _given_rates(learning_rate, entered)
    plan.check_ladder(searched=len(rates) < len(entered))
    if strange := sorted(set(callbacks or {}) - set(entered)):
        raise ValueError(f"callbacks for {strange[0]!r}, which is not an arm: there are {', '.join(entered)}")
    return _Course(plan, entered, rates, callbacks or {}, watch).run(progress)


@dataclass
class _Plan:
    """What holds for all arms."""

    model: Any
    task: Task
    steps: int | None
    seconds: float | None
    seeds: tuple[int, ...]
    batch_size: int
    margin: float
    confidence: float
    limit: int
    started: float = field(default_factory=time.perf_counter)
    split: str = ""

    def __post_init__(self) -> None:
        refuse_adapted(self.model)
        if not hasattr(self.task, "test"):
            raise TypeError(f"race takes a task from tlora.load_task(), got a {type(self.task).__name__}")
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("pass steps= or seconds=, one of them: how long the race may be")
        if self.steps is not None:
            positive_int(self.steps, "steps", 2)
        else:
            positive("seconds", self.seconds)  # type: ignore[arg-type]
        positive_int(self.batch_size, "batch_size")
        positive_int(self.limit, "evaluation_limit", 2)
        positive("margin", self.margin)
        confidence_level(self.confidence)
        self.seeds = tuple(positive_int(seed, "a seed", 0) for seed in self.seeds)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: pass at least one, each once")
        self._check_samples()

    def _check_samples(self) -> None:
        name = self.task.name
        if not len(self.task.train):
            raise ValueError(f"task {name!r} has no training samples: pass at least one")
        self.split = "test" if len(self.task.test) else "validation"
        if not (count := len(getattr(self.task, self.split))):
            raise ValueError(f"task {name!r} has no held-out samples: load it with test= or validation= above 0")
        if count < 2:
            raise ValueError(
                f"the {self.split} split of {name!r} has one sample, and of one nobody knows how far others differ: "
                f"load the task with {self.split}= of at least 2, better 100"
            )

    def check_ladder(self, searched: bool) -> None:
        """Refuse to choose learning rates on the samples that results are of."""
        if searched and (self.split == "validation" or not len(self.task.validation)):
            raise ValueError(
                f"task {self.task.name!r} has no validation samples beside its {self.split} samples to choose "
                "learning rates on: pass learning_rate=, or load the task with validation= and test= above 0"
            )

    @property
    def rows(self) -> Dataset:
        """The held-out samples."""
        return evenly_spaced_rows(getattr(self.task, self.split), self.limit)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return math.inf if self.seconds is None else self.seconds - (time.perf_counter() - self.started)

    def recipe(self) -> dict[str, Any]:
        """What a result says of the call."""
        names = ("steps", "seconds", "batch_size", "margin", "confidence", "split")
        return {name: getattr(self, name) for name in names} | {"seeds": self.seeds, "evaluation_limit": self.limit}


@dataclass(frozen=True)
class _Entered:
    """An arm that can be started with any seed."""

    method: Method
    job: Job

    def start(self, seed: int, steps: int) -> PeftModel:
        """A fresh adapter for so many steps, on a copy of the base that shares its weights."""
        job = replace(self.job, seed=seed, steps=steps, model=copy_sharing_weights(self.job.model))
        return seeded_adapt(self.method, job)


class _SharedJob(Job):
    """A job that has what is computed before training in common with those of other seeds."""

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        return self.memory((*key, self.samples), make)


def _entered(
    plan: _Plan, arms: Mapping[str, Arm], subspaces: Subspaces | None, rank: int | None, recipe: str | Recipe
) -> dict[str, _Entered]:
    check_mapping("arms", arms, {"A": "tlora", "B": "lora"})
    if len(arms) < 2:
        raise ValueError(f"arms has {len(arms)}: a race takes at least two, such as {{'A': allocation, 'B': 'lora'}}")
    allocations = {name: arm for name, arm in arms.items() if isinstance(arm, Allocation)}
    rank = positive_int(rank, "rank") if rank is not None else next((a.rank for a in allocations.values()), 8)
    for name, allocation in allocations.items():
        what, way_out = f"arm {str(name)!r} is", "allocate for this model"
        check_same_model(plan.model, {}, allocation.shapes, what=what, way_out=way_out)
    targets = list(dict.fromkeys(module for a in allocations.values() for module in a.targets)) or None
    made = recipe if isinstance(recipe, Recipe) else Recipe.named(recipe)
    bases = _Bases(subspaces, made, allocations)
    samples = min(SAMPLES, len(plan.task.train))
    job = _SharedJob(plan.model, plan.task, rank, samples=samples, target_modules=targets)
    return {str(name): _Entered(_method(str(name), arm, bases), job) for name, arm in arms.items()}


def _method(name: str, arm: Arm, bases: _Bases) -> Method:
    if not isinstance(arm, Allocation):
        return chosen(UNIFORM if arm == UNIFORM.name else arm)
    return Method(name, partial(bases.attached, name, arm), train=bases.recipe.train)


@dataclass(frozen=True)
class _Bases:
    """Where the ``A`` of allocations come from."""

    given: Subspaces | None
    recipe: Recipe
    allocations: Mapping[str, Allocation]

    def attached(self, name: str, allocation: Allocation, job: Job) -> PeftModel:
        """An allocation on a base."""
        try:
            return attach(job.model, self._of(job), allocation, seed=job.seed, **self.recipe.attach)
        except ValueError as error:
            raise ValueError(f"arm {name!r} does not fit the model: {error}") from error

    def _of(self, job: Job) -> Subspaces | None:
        options = self.recipe.task_subspaces
        if self.given is not None or options is None:
            return self.given
        return job.once(("subspaces of allocations",), lambda: self._computed(job, options))

    def _computed(self, job: Job, options: Mapping[str, Any]) -> Subspaces:
        most = max(max(allocation.ranks.values()) for allocation in self.allocations.values())
        more = {"target_modules": job.target_modules} | dict(self.recipe.calibrate)
        calibration = calibrate(job.model, job.batches(), progress=False, **more)
        return task_subspaces(job.model, calibration, **({"max_rank": most} | dict(options)), progress=False)


def _given_rates(given: Rates | None, entered: Mapping[str, _Entered]) -> dict[str, float]:
    if given is None:
        return {}
    rates = given if isinstance(given, Mapping) else dict.fromkeys(entered, given)
    if strange := [name for name in rates if name not in entered]:
        raise ValueError(f"learning_rate= names {strange[0]!r}, which is not an arm: there are {', '.join(entered)}")
    return {name: float(positive(f"learning_rate of {name}", rate)) for name, rate in rates.items()}


class _Lane:
    """One training of an arm."""

    def __init__(
        self,
        arm: _Entered,
        plan: _Plan,
        steps: int,
        rate: float,
        seed: int,
        start: int,
        callbacks: Iterable[TrainerCallback] = (),
    ) -> None:
        began = time.perf_counter()
        self.model = arm.start(start, steps)
        self.preparation = time.perf_counter() - began
        own = arm.method.training(arm.job.rank)
        self._plan = plan
        self.training = Stepwise(
            lambda turns: train(
                self.model,
                plan.task,
                learning_rate=rate,
                max_steps=steps,
                batch_size=plan.batch_size,
                seed=seed,
                evaluation_limit=0,
                progress=False,
                **own | {"callbacks": [*callbacks, *own["callbacks"], turns]},
            )
        )

    def losses(self, rows: Dataset) -> np.ndarray:
        """Loss of each sample, weighted by its tokens."""
        return losses_of_samples(self.model, self._plan.task, rows, EVALUATED_AT_ONCE)

    @property
    def trouble(self) -> str:
        """Why it has ended before the others; empty where it has not."""
        run = self.training.run
        if run is None or not (run.diverged or run.interrupted):
            return ""
        rate = run.meta.recipe["learning_rate"]
        how = "diverged" if run.diverged else "was stopped"
        return f"{how} after {self.training.steps} steps at learning rate {rate:g}"


class _Course:
    """The race as it goes."""

    def __init__(
        self,
        plan: _Plan,
        entered: Mapping[str, _Entered],
        rates: dict[str, float],
        callbacks: Mapping[str, Collection[TrainerCallback]],
        watch: Callable[[Race], None] | None,
    ) -> None:
        self.plan, self.entered, self.rates = plan, entered, rates
        self.callbacks, self.watch = callbacks, watch
        self.rows = plan.rows
        self.unreported = evenly_spaced_rows(plan.task.validation, plan.limit)
        self.lanes: dict[str, list[_Lane]] = {}
        self.ladder: list[tuple[str, float, float]] = []
        self.out: dict[str, str] = {}
        self.steps = 0
        self.of_base: np.ndarray | None = None
        self.looks: list[int] = []
        self.errors: list[float] = []
        self.losses: list[np.ndarray] = []
        self.clock: list[np.ndarray] = []

    def run(self, progress: bool) -> Race:
        """All of it."""
        ending = "interrupted"
        try:
            self._prepare(progress)
            ending = self._go(progress)
        except KeyboardInterrupt:
            if not self.looks:
                raise
        finally:
            for lane in self._all():
                lane.training.end()
        return self._result(ending)

    def _all(self) -> list[_Lane]:
        return [lane for lanes in self.lanes.values() for lane in lanes]

    def _prepare(self, progress: bool) -> None:
        """Choose steps and rates, and start all trainings."""
        plan = self.plan
        self.steps = self._affordable() if plan.steps is None else plan.steps
        searched = [name for name in self.entered if name not in self.rates]
        trials = len(searched) * len(LADDER)
        with tqdm(total=trials, disable=not (progress and trials), desc="learning rates", unit="training") as bar:
            for name in searched:
                curve = self._curve(name, bar)
                self.rates[name] = best(curve) or min(curve)
        for name, arm in self.entered.items():
            for seed in plan.seeds:
                more = self.callbacks.get(name, ()) if seed == plan.seeds[0] else ()
                lane = _Lane(arm, plan, self.steps, self.rates[name], seed, seed, more)
                self.lanes.setdefault(name, []).append(lane)
        for lane in self._all():
            lane.training.advance()
        self._look(0, 0.0)

    def _curve(self, name: str, bar: Any) -> Curve:
        """Negative validation loss by learning rate."""
        steps = max(2, math.ceil(PART * self.steps))
        curve: Curve = {}
        for rate in scaled(LADDER, self.entered[name].method.rate_scale):
            lane = self._tried(name, rate, steps)
            loss = math.inf if lane.trouble else float(lane.losses(self.unreported).mean())
            curve[rate] = -loss
            self.ladder.append((name, rate, loss))
            bar.update()
        return curve

    def _tried(self, name: str, rate: float, steps: int) -> _Lane:
        """A training that is thrown away."""
        unseen = max(self.plan.seeds) + 1000
        lane = _Lane(self.entered[name], self.plan, steps, rate, unseen, self.plan.seeds[0])
        try:
            while lane.training.advance():
                pass
        finally:
            lane.training.end()
        return lane

    def _affordable(self) -> int:
        """Steps that fit into the seconds that are left, after a few steps of each arm."""
        plan, arms = self.plan, len(self.entered)
        tried = {name: self._tried(name, self.rates.get(name, LADDER[0]), TRIED) for name in self.entered}
        began = time.perf_counter()
        next(iter(tried.values())).losses(self.rows)
        looking = (time.perf_counter() - began) / len(self.rows)
        rates = {name: 0 if name in self.rates else len(LADDER) for name in tried}
        trainings = len(plan.seeds) * arms + sum(rates.values())
        # the least: the first of a process prepares for all
        fixed = trainings * min(lane.preparation + lane.training.preparation for lane in tried.values())
        fixed += looking * len(self.rows) * (len(plan.seeds) * arms * LOOKS + 1)
        fixed += looking * len(self.unreported) * sum(rates.values())
        a_step = sum(lane.training.seconds / TRIED * (len(plan.seeds) + PART * rates[n]) for n, lane in tried.items())
        steps = int(HASTE * (plan.left - fixed) / a_step)
        if steps < LEAST:
            needed = math.ceil(LEAST * a_step / HASTE + fixed + plan.seconds - plan.left)  # type: ignore[operator]
            raise ValueError(
                f"seconds={plan.seconds:g} is too little for {LEAST} steps of {arms} arms with {len(plan.seeds)} "
                f"seeds: pass at least {needed}, or fewer arms, seeds or held-out samples"
            )
        return steps

    def _go(self, progress: bool) -> str:
        """Train in turns; returns how it ended."""
        steps = self.steps
        planned = sorted({math.ceil(steps * k / LOOKS) for k in range(1, LOOKS + 1)})
        errors = dict(zip(planned, error_at_looks(len(planned), 1 - self.plan.confidence), strict=True))
        left = sum(errors.values())
        with tqdm(total=steps, disable=not progress, desc="race", unit="step") as bar:
            for step in range(1, steps + 1):
                self._round()
                bar.update()
                last = step == steps or self.plan.left < 0
                if not (last or step in planned):
                    continue
                # Time does not look at the data, so that a race that it ends early may spend all that is left.
                error = left if last else errors[step]
                left -= error
                self._look(step, error)
                so_far = self._result("")
                bar.set_postfix_str(_standing(so_far))
                if self.watch is not None:
                    self.watch(so_far)
                if FIRST * steps <= step < steps and so_far.is_ahead:
                    return "decided"
                if last or len(self.out) == len(self.lanes):
                    return "done" if step == steps else "time" if last else "out"
        return "done"

    def _round(self) -> None:
        """A step of each training."""
        for i in range(len(self.plan.seeds)):
            for name, lanes in self.lanes.items():
                if name not in self.out:
                    lanes[i].training.advance()
                    if lanes[i].trouble:
                        self._leaves(name, lanes[i].trouble)

    def _leaves(self, name: str, why: str) -> None:
        self.out[name] = why
        for lane in self.lanes[name]:
            lane.training.end()

    def _look(self, step: int, error: float) -> None:
        """Evaluate every arm that is still there."""
        shape = len(self.lanes), len(self.plan.seeds)
        losses, clock = np.full((*shape, len(self.rows)), np.nan), np.full(shape, np.nan)
        for a, (name, lanes) in enumerate(self.lanes.items()):
            for i, lane in enumerate(lanes):
                if name not in self.out:
                    losses[a, i], clock[a, i] = self._evaluated(lane, step), lane.training.seconds
            if name not in self.out and not np.isfinite(losses[a]).all():
                self._leaves(name, f"diverged after {step} steps at learning rate {self.rates[name]:g}")
                losses[a], clock[a] = np.nan, np.nan
        self.looks.append(step)
        self.errors.append(error)
        self.losses.append(losses)
        self.clock.append(clock)

    def _evaluated(self, lane: _Lane, step: int) -> np.ndarray:
        """The losses of a training; before it, those of the base, once for all adapters that change nothing yet."""
        if step or not _changes_nothing(lane.model):
            return lane.losses(self.rows)
        if self.of_base is None:
            self.of_base = lane.losses(self.rows)
        return self.of_base

    def _result(self, ending: str) -> Race:
        plan, model = self.plan, self.plan.model
        meta = Meta(model.config._name_or_path, plan.task.name, plan.recipe(), plan.seeds[0], len(self.rows))
        return Race(
            arms=list(self.lanes),
            seeds=list(plan.seeds),
            steps=self.steps,
            looks=list(self.looks),
            errors=list(self.errors),
            losses=torch.from_numpy(np.stack(self.losses)),
            clock=torch.from_numpy(np.stack(self.clock)),
            learning_rates=dict(self.rates),
            parameters={name: trainable_parameters(lanes[0].model) for name, lanes in self.lanes.items()},
            ladder=list(self.ladder),
            out=dict(self.out),
            ending=ending,
            margin=plan.margin,
            seconds=time.perf_counter() - plan.started,
            runs={name: self._runs(a, lanes) for a, (name, lanes) in enumerate(self.lanes.items())} if ending else {},
            meta=meta,
        )

    def _runs(self, a: int, lanes: Sequence[_Lane]) -> list[TrainingRun]:
        """What was trained, with the held-out losses before and after."""
        found = []
        for i, lane in enumerate(lanes):
            assert lane.training.run is not None  # each has been ended
            before, after = ({"loss": float(self.losses[k][a, i].mean())} for k in (0, -1))
            done = lane.training.steps == self.looks[-1] and np.isfinite(after["loss"])
            found.append(replace(lane.training.run, before=before, after=after if done else {}))
        return found


def _changes_nothing(model: PeftModel) -> bool:
    """Whether an adapter computes what its base computes: ``B`` is zero, and there is no new head."""
    modules = lora_modules(model).values()
    return bool(modules) and not head_parameters(model) and not any(module.b.any() for module in modules)


def _standing(found: Race) -> str:
    """Held-out losses at the last look, in one line."""
    means = found.losses[-1].mean((1, 2)).tolist()
    return ", ".join(f"{name} {mean:.4g}" for name, mean in zip(found.arms, means, strict=True) if mean == mean)
