"""Compare methods of adaptation: the same data, budget and training for all, and for each its own learning rate."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from benchmarks.lab.comparison import Comparison, condition_text, record_score
from benchmarks.lab.lr_search import Curve, best_rate, next_rate, parse_grid, scale_grid, search_rates
from benchmarks.lab.methods import HEAD, METHODS, Cache, Method, choose_method
from benchmarks.lab.run import Condition, Settings, Split, load_data, model_contents, other_texts, run
from benchmarks.lab.store import Record, Store, key_text
from tlora.models.loading import floating_dtype, resolve_device
from tlora.recipes import Recipe
from tlora.tasks.load import digest_task
from tlora.tasks.task import Task
from tlora.training.arguments import check_gpu
from tlora.utils.validation import list_names, require_positive_int

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
"""The grid on which a search begins."""
SEARCH_SEEDS = (1000, 1001)
"""Seeds of the search for learning rates; none of those whose results are reported."""

Tasks = str | Iterable[str] | Mapping[str, Mapping[str, Any]]

logger = logging.getLogger(__name__)


def compare(
    methods: str | Recipe | Method | Iterable[str | Recipe | Method],
    tasks: Tasks,
    model: str | os.PathLike[str],
    *,
    ranks: int | Iterable[int] = 8,
    learning_rates: float | Iterable[float] = RATES,
    seeds: Iterable[int] = (0, 1, 2),
    search_seeds: Iterable[int] = SEARCH_SEEDS,
    steps: int = 250,
    batch_size: int = 16,
    samples: int = 32,
    target_modules: str | Iterable[str] | None = None,
    forgetting: Tasks = (),
    store: str | os.PathLike[str] = "comparison.jsonl",
    device: str | None = None,
    dtype: str = "float32",
    workers: int = 1,
    retry: bool = False,
    progress: bool = True,
) -> Comparison:
    """Train every method on every task: a search for its learning rate, then the final runs.

    All methods get the same samples in the same order, the same number of steps, and the same schedule: AdamW without
    weight decay, gradients clipped at norm 1, a cosine after a warm-up of a tenth of the steps and at least ten,
    alpha = rank. Each seed trains on its own samples of the training split, if that has more than the steps use.
    Each method has its own learning rate: the one with the lowest mean loss on the validation split over the seeds of
    the search, on a log grid that is extended until the best rate is not at its edge. At that rate it is trained
    once with each of the other seeds, and evaluated on the test split. The fresh head of a classifier has one rate for
    all methods: the best one when the head alone is trained (``"head"``).

    Every run is in the store before the next one begins. An interrupted comparison resumes where it was, and the same
    call with more methods, ranks or seeds adds to it.

    Parameters
    ----------
    methods : str, Recipe, Method, or iterable of them
        Names from `benchmarks.lab.methods.METHODS`, recipes, or methods of your own.
    tasks : str, iterable of str, or mapping of dict
        Names or paths; or, for each of them, arguments of `tlora.load_task`, such as ``{"train": 4000, "test": 2000}``.
    model : str or path-like
        Name or folder of the base, which is loaded afresh for every run.
    ranks : int or iterable of int
        Nominal ranks.
    learning_rates : float or iterable of float
        The grid on which searches begin: two rates or more, each the same factor above the one before. ``"lora+"``
        and ``"tlora+"``, whose optimizers multiply the rate of ``B`` by 16, and ``"full"`` begin at a sixteenth of it.
        A single rate is used for every method without a search: only the rate of a classifier's head is searched
        then, and only runs at that rate are returned.
    seeds : iterable of int
        Seeds of the final runs: of a fresh head, the adapter, the training samples and their order.
    search_seeds : iterable of int
        Seeds of the search for learning rates: none of the final ones, so that no result has chosen its own rate.
    steps : int
        Optimizer steps of a run.
    batch_size : int
        Samples a step.
    samples : int
        Training samples that a method may calibrate on.
    target_modules : str or iterable of str, optional
        As in `tlora.target_modules`, for all methods; all linear layers of the blocks by default.
    forgetting : str, iterable of str, or mapping of dict
        Other tasks, named as ``tasks`` are, on whose test split a language model's loss is measured before and after
        the final runs.
    store : path-like
        File of runs to read and to append to.
    device : str, optional
        Where to compute; CUDA if available.
    dtype : str
        Of the base.
    workers : int
        Processes that run side by side, each on its share of the cores. They share the store safely.
    retry : bool
        Repeat failed runs.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Comparison
        Of these methods, tasks and ranks; `Comparison.read` returns everything in a store.

    Raises
    ------
    TypeError, ValueError
        If a method or task is unknown, a task has too few samples, or the store is damaged.
    KeyboardInterrupt
        If it is interrupted; finished runs are in the store.

    Warns
    -----
    UserWarning
        If a search was given up with the best rate at its edge, or no rate could be trained with.

    Notes
    -----
    Runs that fail or diverge are in the store too; a diverged one is evaluated in its last finite state, and its rate
    is never chosen. Library versions are recorded but do not identify a run. If the model or a task is a path, the
    contents of its files do: with other contents, its runs are repeated.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size), ("samples", samples), ("workers", workers)):
        require_positive_int(value, name)
    check_gpu(
        resolve_device(device, {})
    )  # refused here: as failed runs, a mistyped device or dtype would count against all rates
    floating_dtype(dtype)
    texts = _task_arguments(forgetting) if forgetting else {}
    settings = Settings(os.fspath(model), steps, batch_size, samples, dtype, device, list_names(target_modules), texts)
    conditions = _conditions(methods, tasks, settings, ranks)
    plan = Plan(tuple(parse_grid(learning_rates)), tuple(map(int, seeds)), tuple(map(int, search_seeds)), retry)
    if both := set(plan.seeds) & set(plan.search_seeds):
        raise ValueError(f"seed {min(both)} is among seeds and search_seeds: a result must not choose its own rate")
    runs = Store(store)
    runs.by_key()  # a damaged store is refused now
    runs.check_writable()
    results = _run_conditions(conditions, plan, runs, workers)
    for message in tqdm(results, total=len(conditions), desc="comparing", unit="condition", disable=not progress):
        if message:
            warnings.warn(message, stacklevel=2)
    texts_of_keys = {key_text(condition.shared_key()) for condition in conditions}
    records = [record for record in runs.read() if condition_text(record["key"]) in texts_of_keys]
    return Comparison.from_records([r for r in records if plan.fixed_rate in (None, r["key"]["learning_rate"])])


@dataclass(frozen=True)
class Plan:
    """The rates and seeds of every condition."""

    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    search_seeds: tuple[int, ...]
    retry: bool = False

    @property
    def fixed_rate(self) -> float | None:
        """The only rate, which is not searched for."""
        return self.learning_rates[0] if len(self.learning_rates) == 1 else None


def run_condition(condition: Condition, plan: Plan, store: Store) -> str:
    """Do the runs of a condition that are not in the store.

    Returns
    -------
    str
        A warning, or nothing.
    """
    key, messages = condition.shared_key(), []
    parts = ("model", "target_modules", "task", "data", "contents")
    cache = _shared_cache(key_text({name: key.get(name) for name in parts}))
    task = cache("task", lambda: load_data(condition.settings, condition.task, condition.data))
    if condition.settings.forgetting and task.kind == "classification":
        raise ValueError(f"forgetting= is for language models, and {condition.task!r} has classes: leave it out")
    other_texts(condition.settings, cache)  # refused before the first run
    records, head_rate = store.by_key(), None
    if task.kind == "classification" and condition.method.name != HEAD:
        head = replace(condition, method=METHODS[HEAD], rank=1)
        head_rate = best_rate(_search(_runner(head, task, store, records, plan.retry, cache), RATES, SEARCH_SEEDS))
        if head_rate is None:
            return f"{condition}: no learning rate was found for the head alone"
    result = _runner(condition, task, store, records, plan.retry, cache, head_rate)
    if (errors := _errors(condition, records)) and not plan.retry:
        messages.append(f"{len(errors)} runs failed before ({errors[-1]}) and count as failed, unless retry=True")
    rate = plan.fixed_rate
    if rate is None:
        grid = scale_grid(plan.learning_rates, condition.method.rate_scale)
        scores = _search(result, grid, plan.search_seeds, _earlier_rates(condition, records))
        rate = best_rate(scores)
        if rate is None:
            why = f" ({errors[-1]})" if (errors := _errors(condition, records)) else ""
            messages.append(f"no learning rate from {min(scores):g} to {max(scores):g} could be trained with{why}")
        elif next_rate(scores) is not None:
            messages.append(f"the best learning rate, {rate:g}, is at the edge of the search")
    if rate is not None:
        for seed in plan.seeds:
            result(rate, seed, "test")
    return f"{condition}: {'; '.join(messages)}" if messages else ""


Runner = Callable[[float, int, Split], Record]
"""Returns the run at a rate, with a seed, on a split, and does it if it is not in the store."""


def _runner(
    condition: Condition,
    task: Task,
    store: Store,
    records: dict[str, Record],
    retry: bool,
    cache: Cache,
    head_rate: float | None = None,
) -> Runner:
    """The runner of a condition; ``records`` are those of the store, and new runs are added to both."""

    def result(rate: float, seed: int, split: Split) -> Record:
        key = key_text(condition.key(rate, seed, split))
        if key not in records:
            records.update(store.by_key())  # another process may have done it since
        if key not in records or (retry and records[key]["status"] == "failed"):
            records[key] = run(condition, task, rate, seed, split, cache, head_rate)
            store.append(records[key])
            logger.info("%s", describe(records[key]))
        return records[key]

    return result


def _search(result: Runner, grid: Sequence[float], seeds: Sequence[int], earlier: Iterable[float] = ()) -> Curve:
    """The mean score of each rate over the seeds."""

    def score(rate: float) -> float:
        return float(np.mean([record_score(result(rate, seed, "validation")) for seed in seeds]))

    return search_rates(score, grid, earlier)


def _own_records(condition: Condition, records: Mapping[str, Record]) -> list[Record]:
    """The runs of a condition, in the order of the store."""
    text = key_text(condition.shared_key())
    return [record for record in records.values() if condition_text(record["key"]) == text]


def _errors(condition: Condition, records: Mapping[str, Record]) -> list[str]:
    return [record["error"] for record in _own_records(condition, records) if record["status"] == "failed"]


def _earlier_rates(condition: Condition, records: Mapping[str, Record]) -> set[float]:
    """Rates of earlier searches, perhaps from other grids."""
    keys = [record["key"] for record in _own_records(condition, records)]
    return {key["learning_rate"] for key in keys if key["split"] == "validation"}


def describe(record: Record) -> str:
    """A run in one line."""
    key, metrics = record["key"], record.get("metrics", {})
    outcome = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or record.get("error", "")
    where = f"{key['method']} rank {key['rank']} on {key['task']}, rate {key['learning_rate']:g}, seed {key['seed']}"
    return f"{where}: {key['split']} {outcome} ({record['status']})"


@lru_cache(maxsize=1)
def _shared_cache(scope: str) -> Cache:
    """The cache of a base and a task; each process keeps only the last one."""
    return Cache()


def _run_conditions(conditions: Sequence[Condition], plan: Plan, store: Store, workers: int) -> Iterable[str]:
    """Run the conditions, in this process or in several, and yield the warning of each."""
    if workers == 1:
        try:
            for condition in conditions:
                yield run_condition(condition, plan, store)
        finally:
            _shared_cache.cache_clear()
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (threads, logger.getEffectiveLevel())) as pool:
        futures = [pool.submit(run_condition, condition, plan, store) for condition in conditions]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(threads: int, level: int) -> None:
    """Give a worker its share of the cores, and let it report its runs on stderr."""
    torch.set_num_threads(threads)
    logger.setLevel(level)
    logger.addHandler(logging.StreamHandler())


def _conditions(methods: Any, tasks: Tasks, settings: Settings, ranks: int | Iterable[int]) -> list[Condition]:
    """Every method on every task at every rank, the conditions of a task one after the other."""
    is_single = isinstance(methods, str) or not isinstance(methods, Iterable)
    chosen = [choose_method(method) for method in ([methods] if is_single else methods)]
    names = [method.name for method in chosen]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"methods={names}: name at least one, each once")
    sizes = [require_positive_int(rank, "rank") for rank in (ranks if isinstance(ranks, Iterable) else [ranks])]
    base = model_contents(settings.model)
    return [
        Condition(settings, task, data, method, rank, contents)
        for task, data in _task_arguments(tasks).items()
        for contents in [base | digest_task(task, data)]
        for rank in sizes
        for method in chosen
    ]


def _task_arguments(tasks: Tasks) -> dict[str, dict[str, Any]]:
    """Arguments of `load_task` by task, as JSON values: they are part of the keys of runs."""
    names = [tasks] if isinstance(tasks, str | os.PathLike) else tasks
    by_task = names if isinstance(names, Mapping) else {task: {} for task in names}
    arguments = {str(task): {"seed": 0} | json.loads(json.dumps(dict(data))) for task, data in by_task.items()}
    if not arguments:
        raise ValueError("name at least one task")
    return arguments
