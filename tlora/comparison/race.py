"""Race: train adapters on one base, one after another on the same batches, and say which is better on a task.

In order: one calibration for all arms that need the same; per arm, directions and ranks; each arm attached once, so
that one that does not fit stops nothing later; the loss of the base; a search for learning rates, arm by arm; then seed
by seed all arms, each attached again and trained, with evaluations on the way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback

from tlora.adapters.lora_layers import trainable_parameters
from tlora.comparison.arms import Arm, Trainee, make_trainees
from tlora.comparison.race_result import Race
from tlora.models.targets import Model, refuse_adapted
from tlora.recipes import Recipe
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces
from tlora.tasks.evaluation import losses_of_samples
from tlora.tasks.task import Task
from tlora.training.dataset import evenly_spaced_rows
from tlora.training.run import TrainingRun
from tlora.training.train import train
from tlora.utils.defaults import BATCH_SIZE, DEFAULT_RECIPE
from tlora.utils.progress import bars_for, progress_bar
from tlora.utils.validation import check_arguments, require_confidence, require_positive, require_positive_int

Losses = NDArray[np.float64]

EVALUATIONS = 4
"""Evaluations of each training, at even distances, the last at the end."""
LEARNING_RATES = (5e-4, 2e-3, 8e-3)
"""Learning rates to try for an arm without one: in the study, the best rates of all methods but one lay between."""
SEARCH_SHARE = 0.25
"""Share of the steps for which each of them is tried."""
FEWEST_STEPS, TIMED_STEPS, PLANNED_SHARE = 8, 2, 0.9
"""Fewest steps worth a race; steps that are timed before planning; share of the remaining time to plan for."""
EVALUATION_BATCH = 16


def race(
    model: Model,
    task: Task,
    arms: Mapping[str, Arm],
    *,
    steps: int | Callable[[float, float], int] | None = None,
    seconds: float | None = None,
    seeds: int | Iterable[int] = 3,
    learning_rate: float | Mapping[str, float] | None = None,
    batch_size: int = BATCH_SIZE,
    rank: int | None = None,
    subspaces: Subspaces | None = None,
    recipe: str | Recipe = DEFAULT_RECIPE,
    margin: float = 0.02,
    confidence: float = 0.95,
    evaluation_limit: int = 128,
    progress: bool = True,
    callbacks: Mapping[str, Collection[TrainerCallback]] | None = None,
    watch: Callable[[Race], None] | None = None,
) -> Race:
    """Train adapters one after another on the same batches, and say which is better on this task, and by how much.

    Each training is that of `tlora.train`, to the last digit. All are evaluated after the same steps on the same
    held-out samples. Interrupting the cell returns what was trained so far.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base. Each adapter is put on a copy that shares its weights, so the model is not changed and takes memory
        once. An arm whose start rewrites the base's weights (PiSSA, OLoRA) gets a full copy while it is trained.
    task : Task
        From `tlora.load_task`. Results are for its test samples, or for the validation samples if it has no others.
    arms : mapping
        At least two, by name: an `Allocation`; a `Recipe` or its name, e.g. ``"captured"`` or ``"lora"``;
        or any `peft.LoraConfig`, e.g. ``LoraConfig(use_dora=True)``. Without ``target_modules`` it adapts the modules
        that the other arms adapt.
    steps : int or callable, optional
        Optimizer steps of each training; or a function that chooses them after two steps of each arm were timed, from
        the seconds that one step of all trainings takes and the seconds of everything else. Pass this or ``seconds``.
    seconds : float, optional
        Time for everything, the search for learning rates included: two steps of each arm are timed, and as many
        steps are planned as fit.
    seeds : int or iterable of int
        Number of trainings of each arm, with the seeds 0, 1, ..., or the seeds. The seed decides the order of the
        batches and what is random in an adapter. See Notes.
    learning_rate : float or mapping of float, optional
        Peak learning rate of all arms, or by arm. An arm without one has that of its recipe. If there is none either,
        5e-4, 2e-3 and 8e-3 are tried for a quarter of the steps, with a seed that is not reported, and the rate with
        the lowest loss on the validation samples is taken.
    batch_size : int
        Samples a step.
    rank : int, optional
        Nominal rank of recipes; by default that of the first allocation or config among the arms, or 8.
    subspaces : Subspaces, optional
        Subspaces that the allocations are attached with. By default they are computed from 32 training samples.
    recipe : str or Recipe
        How allocations are attached and trained.
    margin : float
        Differences up to this do not matter; nats.
    confidence : float
        Share of races in which the intervals of all pairs of arms contain the true difference.
    evaluation_limit : int
        Most held-out samples.
    progress : bool
        Show a progress bar.
    callbacks : mapping, optional
        Trainer callbacks for the trainings of an arm, by its name. One that sets ``control.should_training_stop`` ends
        that training; the others go on.
    watch : callable, optional
        Called with the race so far after each evaluation.

    Returns
    -------
    Race
        ``race.sentence`` is the answer, ``race.winner`` the run of the arm with the lowest loss, ready to be saved.

    Raises
    ------
    TypeError
        If an arm is none of these, or needs data before it can start (EVA, CorDA, LoRA-GA).
    ValueError
        If there are fewer than two arms or held-out samples, an arm does not fit the model, neither or both of steps
        and seconds are given, or the seconds do not suffice.

    Warns
    -----
    UserWarning
        As `tlora.train` if some ``B`` stayed at zero.

    Notes
    -----
    With one seed the interval is for other held-out samples: it says which of *these adapters* is better, and another
    start or another order of the batches may reverse it. Whether the *way of making one* is better takes several
    seeds: the interval is then for other seeds and samples. Subspaces and allocations are computed once, for all seeds.

    Two arms are compared once, at the last evaluation that both reached. The intervals hold for all pairs of arms
    together, by the union bound. They do not hold if you end a race because of what it has shown so far. An arm whose
    loss or gradient is not finite is out, and the others go on.

    Examples
    --------
    >>> from peft import LoraConfig
    >>> arms = {"mine": allocation, "captured": "captured", "DoRA": LoraConfig(r=4, lora_alpha=4, use_dora=True)}
    >>> race = tlora.race(model, task, arms, steps=4, seeds=2, learning_rate=1e-2, progress=False)
    >>> race.evaluated
    [0, 1, 2, 3, 4]
    >>> race.sentence
    '... (4 steps, 95 % intervals for other seeds and samples, from 2 seeds and 4 held-out samples)'
    """
    check_arguments(race, locals())
    began = time.perf_counter()
    refuse_adapted(model)
    if len(arms) < 2:
        raise ValueError(f"arms has {len(arms)}: a race takes at least two, such as {{'A': allocation, 'B': 'lora'}}")
    if (steps is None) == (seconds is None):
        raise ValueError("pass steps= or seconds=, one of them: the length of the race")
    chosen_seeds = list(range(seeds)) if isinstance(seeds, int | np.integer) else list(map(int, seeds))
    if not chosen_seeds or len(set(chosen_seeds)) < len(chosen_seeds):
        raise ValueError(f"seeds={seeds}: pass how many, or at least one seed, each once")
    rates = learning_rate if isinstance(learning_rate, Mapping) else dict.fromkeys(arms, learning_rate)
    for argument, values in {"learning_rate": rates, "callbacks": callbacks or {}}.items():
        if unknown := sorted(values.keys() - arms.keys()):
            raise ValueError(f"{argument}= names {unknown[0]!r}, which is not an arm: there are {', '.join(arms)}")
    if steps is not None and not callable(steps):
        require_positive_int(steps, "steps")
    run = RaceRun(
        model=model,
        task=task,
        seeds=chosen_seeds,
        batch_size=batch_size,
        margin=require_positive(margin, "margin"),
        confidence=require_confidence(confidence),
        evaluation_limit=require_positive_int(evaluation_limit, "evaluation_limit", 2),
        split=held_out_split(task),
        rates={name: require_positive(rate, "learning_rate") for name, rate in rates.items() if rate is not None},
        trainees=make_trainees(model, task, arms, rank, subspaces, recipe, progress),
        callbacks=callbacks or {},
        watch=watch,
        progress=progress,
        began=began,
    )
    return run.run(steps, seconds)


def held_out_split(task: Task) -> str:
    """The split that a race evaluates on; an error if it has fewer than two samples."""
    split = "test" if len(task.test) else "validation"
    if len(getattr(task, split)) < 2:
        raise ValueError(
            f"task {task.name!r} has fewer than two held-out samples: load it with test= (or validation=) of at least "
            "2, better 100"
        )
    return split


class Evaluations(TrainerCallback):
    """Evaluates an adapter after some steps of its training, and reports that; measures the time in between.

    Attributes
    ----------
    losses : dict of (N,) float64 array
        Losses of the samples by step.
    step : int
        Steps that have changed the adapter.
    seconds : list of float
        Seconds of training up to each step, evaluations not included.
    ended_by_callback : bool
        Whether training ended early because a callback asked for it.
    """

    stopped = True  # `train` need not warn that it ended early: the race says so

    def __init__(
        self,
        steps: Collection[int] = (),
        evaluate: Callable[[Any], Losses] | None = None,
        report: Callable[[], object] = lambda: None,
        bar: Any = None,
    ) -> None:
        self.losses: dict[int, Losses] = {}
        self.step = 0
        self.seconds: list[float] = []
        self.ended_by_callback = False
        self._steps, self._evaluate, self._report, self._bar = steps, evaluate, report, bar
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step, which an interrupt may keep from its end."""
        self.step += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate if it is time to, with the clock stopped."""
        now = time.perf_counter()
        self.seconds.append(now - self._began)
        if self._bar is not None:
            self._bar.update()
        if self._evaluate is not None and state.global_step in self._steps:
            self.losses[state.global_step] = self._evaluate(kwargs["model"])
            self._report()
            self._began += time.perf_counter() - now

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note why training ended; after the last step the Trainer itself asks for the end."""
        self.ended_by_callback = control.should_training_stop and state.global_step < state.max_steps


@dataclass(kw_only=True)
class RaceRun:
    """A race while it is run: the arguments of `race`, and what was measured so far."""

    model: Any
    task: Task
    seeds: list[int]
    batch_size: int
    margin: float
    confidence: float
    evaluation_limit: int
    split: str
    rates: dict[str, float]
    trainees: dict[str, Trainee]
    callbacks: Mapping[str, Collection[TrainerCallback]]
    watch: Callable[[Race], object] | None
    progress: bool
    began: float
    parameters: dict[str, int] = field(default_factory=dict)
    search: list[tuple[str, float, float]] = field(default_factory=list)
    diverged: dict[str, int] = field(default_factory=dict)
    runs: dict[str, list[TrainingRun]] = field(default_factory=dict)

    def run(self, steps: int | Callable[[float, float], int] | None, seconds: float | None) -> Race:
        """Choose steps and learning rates, train all arms and return the result."""
        self._check_arms()
        evaluation_began = time.perf_counter()
        with bars_for("of the base"):
            base = self._evaluate(self.model, self.split, self.progress)
        if not np.isfinite(base).all():
            raise ValueError("the held-out loss of the base is not finite: load the model in float32 or bfloat16")
        if isinstance(steps, int | np.integer):
            self.steps = int(steps)
        else:
            plan = steps or partial(self._fit_steps, seconds or 0)
            self.steps = plan(*self._time_steps(time.perf_counter() - evaluation_began))
        given = {"steps": None if seconds else self.steps, "seconds": seconds}
        self.arguments = given | {"batch_size": self.batch_size, "split": self.split}
        self.evaluated = [0, *sorted({math.ceil(self.steps * k / EVALUATIONS) for k in range(1, EVALUATIONS + 1)})]
        self.clock = np.full((len(self.evaluated), len(self.trainees), len(self.seeds)), np.nan)
        self.losses = np.full((*self.clock.shape, len(base)), np.nan)
        self.clock[0], self.losses[0] = 0, base  # an adapter computes what the base computes before it is trained
        searched = [name for name in self.trainees if name not in self.rates]
        total = len(self.trainees) * len(self.seeds) * self.steps
        total += len(searched) * len(LEARNING_RATES) * math.ceil(SEARCH_SHARE * self.steps)
        try:
            with progress_bar(total=total, show=self.progress, unit="step") as bar:
                for name in searched:
                    self.rates[name] = self._search_rate(name, bar)
                for i, name in product(range(len(self.seeds)), self.trainees):
                    if name not in self.diverged:
                        self._train(name, i, bar)
        except KeyboardInterrupt:
            if not self.runs:
                raise
            return self._result(interrupted=True)
        return self._result()

    def _check_arms(self) -> None:
        """Adapt each arm once, so that one that cannot be adapted does not end a race that has begun."""
        for name, trainee in self.trainees.items():
            try:
                self.parameters[name] = trainable_parameters(trainee.adapt(self.seeds[0]))
            except ValueError as error:
                raise ValueError(f"arm {name!r} does not fit the model: {error}") from error
            if "learning_rate" in trainee.training:
                self.rates.setdefault(name, trainee.training["learning_rate"])
        if len(self.rates) < len(self.trainees) and (self.split == "validation" or not len(self.task.validation)):
            raise ValueError(
                f"task {self.task.name!r} has no validation samples besides its {self.split} samples to choose "
                "learning rates on: pass learning_rate=, or load the task with validation= and test= above 0"
            )

    def _time_steps(self, evaluation: float) -> tuple[float, float]:
        """Seconds that one step of all trainings takes, and seconds of everything else that is to come.

        Two steps of each arm are timed; they are part of no training. ``evaluation`` is what an evaluation takes.
        """
        step_seconds, overheads = {}, []
        for name in progress_bar(self.trainees, desc="timing two steps", unit="arm", show=self.progress):
            began, timed = time.perf_counter(), Evaluations()
            self._fit(name, self.seeds[0], self.rates.get(name, LEARNING_RATES[0]), TIMED_STEPS, timed)
            step_seconds[name] = (timed.seconds[-1] - timed.seconds[0]) / (TIMED_STEPS - 1)
            overheads.append(time.perf_counter() - began - TIMED_STEPS * step_seconds[name])
        searches = {name: 0 if name in self.rates else len(LEARNING_RATES) for name in self.trainees}
        trainings, trials = len(self.seeds) * len(self.trainees), sum(searches.values())
        # The first training of a process takes longer to start than the others.
        fixed = (trainings + trials) * min(overheads) + (trainings * EVALUATIONS + trials) * evaluation
        step = sum(s * (len(self.seeds) + SEARCH_SHARE * searches[name]) for name, s in step_seconds.items())
        return step, fixed

    def _fit_steps(self, seconds: float, step: float, fixed: float) -> int:
        """Steps of each training that fit into the seconds that are left."""
        spent = time.perf_counter() - self.began
        steps = int((PLANNED_SHARE * (seconds - spent) - fixed) / step)
        if steps < FEWEST_STEPS:
            needed = math.ceil((FEWEST_STEPS * step + fixed) / PLANNED_SHARE + spent)
            raise ValueError(
                f"seconds={seconds:g} is too little for {FEWEST_STEPS} steps of {len(self.trainees)} arms with "
                f"{len(self.seeds)} seeds: pass at least {needed}, or fewer arms, seeds or held-out samples"
            )
        return steps

    def _search_rate(self, name: str, bar: Any) -> float:
        """The learning rate with the lowest validation loss after a part of the steps."""
        steps, seed = math.ceil(SEARCH_SHARE * self.steps), max(self.seeds) + 1000
        losses = {}
        for rate in LEARNING_RATES:
            bar.set_description(f"{name}, learning rate {rate:g}")
            trial = Evaluations([steps], partial(self._evaluate, split="validation"), bar=bar)
            self._fit(name, seed, rate, steps, trial)
            loss = float(trial.losses[steps].mean()) if steps in trial.losses else math.inf
            losses[rate] = loss if math.isfinite(loss) else math.inf
            self.search.append((name, rate, losses[rate]))
        return min(losses, key=losses.__getitem__)

    def _train(self, name: str, i: int, bar: Any) -> None:
        """Train an arm with the i-th seed and keep the run."""
        arm = list(self.trainees).index(name)

        def report() -> None:
            step, losses = list(evaluations.losses.items())[-1]
            k = self.evaluated.index(step)
            self.losses[k, arm, i], self.clock[k, arm, i] = losses, evaluations.seconds[-1]
            if self.watch is not None:
                self.watch(self._result())

        def keep(run: TrainingRun) -> None:
            done = evaluations.step
            after = {"loss": float(evaluations.losses[done].mean())} if done in evaluations.losses else {}
            if run.diverged or not np.isfinite([*after.values()]).all():
                self.diverged[name] = done
            before = {"loss": float(self.losses[0, arm, i].mean())}
            self.runs.setdefault(name, []).append(replace(run, before=before, after=after))

        bar.set_description(f"{name}, seed {self.seeds[i]}")
        evaluations = Evaluations(self.evaluated, partial(self._evaluate, split=self.split), report, bar)
        self._fit(name, self.seeds[i], self.rates[name], self.steps, evaluations, self.callbacks.get(name, ()), keep)

    def _fit(
        self,
        name: str,
        seed: int,
        rate: float,
        steps: int,
        evaluations: Evaluations,
        callbacks: Collection[TrainerCallback] = (),
        keep: Callable[[TrainingRun], object] = lambda run: None,
    ) -> None:
        """One training of an arm; one that the user interrupts is kept before that is raised again."""
        trainee = self.trainees[name]
        arguments = {
            **trainee.training,
            "learning_rate": rate,
            "max_steps": steps,
            "batch_size": self.batch_size,
            "seed": seed,
            "evaluation_limit": 0,
            "progress": False,
            "callbacks": [*callbacks, evaluations],
        }
        run = train(trainee.adapt(seed), self.task, **arguments)
        keep(run)
        if run.interrupted and not evaluations.ended_by_callback:
            raise KeyboardInterrupt

    def _evaluate(self, model: Any, split: str, progress: bool = False) -> Losses:
        rows = evenly_spaced_rows(getattr(self.task, split), self.evaluation_limit)
        return losses_of_samples(model, self.task, rows, EVALUATION_BATCH, progress)

    def _result(self, interrupted: bool = False) -> Race:
        samples = self.losses.shape[-1]
        return Race(
            arms=list(self.trainees),
            seeds=self.seeds,
            steps=self.steps,
            evaluated=self.evaluated,
            losses=torch.from_numpy(self.losses.copy()),
            clock=torch.from_numpy(self.clock.copy()),
            learning_rates=dict(self.rates),
            parameters=self.parameters,
            search=list(self.search),
            diverged=dict(self.diverged),
            interrupted=interrupted,
            margin=self.margin,
            confidence=self.confidence,
            seconds=time.perf_counter() - self.began,
            meta=Meta(self.model.config.name_or_path, self.task.name, self.arguments, self.seeds[0], samples),
            runs={name: list(runs) for name, runs in self.runs.items()},
        )
