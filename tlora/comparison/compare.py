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
from numbers import Integral
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from tlora.comparison import lr_search
from tlora.comparison.comparison import Comparison, cell_text, score_of
from tlora.comparison.methods import HEAD, METHODS, Memory, Method, chosen
from tlora.comparison.run import Cell, Split, Terms, load_data, model_contents, other_texts, run
from tlora.comparison.store import Record, Store, key_text
from tlora.models.loading import floating_dtype, resolve_device
from tlora.recipes import Recipe
from tlora.tasks.load import task_contents
from tlora.tasks.task import Task
from tlora.training.arguments import check_card
from tlora.utils.defaults import RATES
from tlora.utils.validation import list_names, positive_int

SEARCH_SEEDS = (1000, 1001)
"""Seeds that rates are searched with; none of those whose results are reported."""

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
    alpha = rank. Each seed trains on samples of its own, drawn from the training split, where that has more than the
    steps take. Each method has its own learning rate: the one with the lowest mean loss on the validation split over
    the search's seeds, on a log grid that is widened until the best rate is not at its edge. At that rate it is trained
    once with each of the other seeds, and evaluated on the test split. The fresh head of a classifier has one rate for
    all methods: that which is best where the head alone is trained (``"head"``).

    Every run is in the store before the next one begins: what was interrupted goes on where it was, and the same call
    with more methods, ranks or seeds adds to it.

    Parameters
    ----------
    methods : str, Recipe, Method, or iterable of them
        Names (``"lora"``, ``"rslora"``, ``"dora"``, ``"lora+"``, ``"pissa"``, ``"olora"``, ``"eva"``, ``"corda"``,
        ``"lora-ga"``, ``"lora-fa"``, ``"adalora"``, ``"vera"``, ``"tlora+"``, ``"qa-lora"``, ``"talklora"``;
        ``"tlora-paper"``, ``"tlora"``, ``"tlora-trained"``, ``"tlora-freeze-late"``; ``"full"``, which trains the
        weights and biases of the target modules themselves, at each rank alike: what an adapter could come to;
        ``"head"``, which trains the head of a classifier alone), or recipes of one's own.
    tasks : str, iterable of str, or mapping of dict
        Names or paths; or for each of them arguments of `tlora.load_task`, such as ``{"train": 4000, "test": 2000}``.
    model : str or path-like
        Name or folder of the base, which is loaded afresh for every run.
    ranks : int or iterable of int
        Nominal ranks.
    learning_rates : float or iterable of float
        The grid to begin with: two rates or more, from one to the next by the same factor. ``"lora+"`` and
        ``"tlora+"``, whose optimisers multiply the rate of ``B`` by 16, and ``"full"`` begin at a sixteenth of it. One
        rate alone is that of every method: only the rate of a classifier's head is searched then, and only runs at it
        are returned.
    seeds : iterable of int
        Of the final runs: of a fresh head, of the adapter, and of which samples are trained on, in which order.
    search_seeds : iterable of int
        Of the search for learning rates: none of the final ones, so that no result has chosen its own rate.
    steps : int
        Optimiser steps of a run.
    batch_size : int
        Samples a step.
    samples : int
        Training samples that a method may calibrate on.
    target_modules : str or iterable of str, optional
        As in `tlora.target_modules`, for all methods; all linear layers of the blocks by default.
    forgetting : str, iterable of str, or mapping of dict
        Other tasks, named as ``tasks`` are, on whose test split a language model's loss is measured before and after
        the final runs: what it forgets.
    store : path-like
        File of runs to read and to append to.
    device : str, optional
        Where to compute; CUDA where there is one.
    dtype : str
        Of the base.
    workers : int
        Processes that run side by side, each on its part of the cores; more than one share a store safely.
    retry : bool
        Do again what failed before.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Comparison
        Of the methods, tasks and ranks that were asked for; `Comparison.read` gives all of a store.

    Raises
    ------
    TypeError, ValueError
        If a method or task is unknown, a number is out of range, a task has too few samples, or the store is damaged.
    KeyboardInterrupt
        If it is interrupted; the runs that are done are in the store.

    Warns
    -----
    UserWarning
        If a search was given up with the best rate at its edge or no better than the others, or no rate could be
        trained with.

    Notes
    -----
    Runs that fail or diverge are rows of the store too; a diverged one is evaluated as it was before, and never chosen.
    Library versions are recorded and are not part of what identifies a run; where the model or a task is a path, the
    contents of its files are: what was run with other contents is run again.
    """
    counts = {
        "steps": steps,
        "batch_size": batch_size,
        "samples": samples,
        "workers": workers,
    }
    for name, value in counts.items():
        positive_int(value, name)
    check_card(resolve_device(device, {}))
    floating_dtype(dtype)
    others = _data(forgetting, "forgetting") if forgetting else {}
    if not isinstance(model, str | os.PathLike):
        raise TypeError(
            f"compare loads a fresh base for each run: pass its name or folder, not a {type(model).__name__}"
        )
    terms = Terms(os.fspath(model), steps, batch_size, samples, dtype, device, list_names(target_modules), others)
    cells = _cells(methods, tasks, terms, ranks)
    settings = SearchSettings(
        tuple(lr_search.checked_grid(learning_rates)),
        tuple(_whole(seeds, "seeds")),
        tuple(_whole(search_seeds, "search_seeds")),
        retry,
    )
    if both := set(settings.seeds) & set(settings.search_seeds):
        raise ValueError(f"seed {min(both)} is among seeds and search_seeds: a result must not choose its own rate")
    runs = Store(store)
    runs.find()  # a store that is damaged is found out now, and a place that cannot be written
    runs.check_place()
    for message in tqdm(
        _completed(cells, settings, runs, workers),
        total=len(cells),
        desc="comparing",
        unit="cell",
        disable=not progress,
    ):
        if message:
            warnings.warn(message, stacklevel=2)
    wanted = {key_text(cell.about()) for cell in cells}
    made = [record for record in runs.read() if cell_text(record["key"]) in wanted]
    return Comparison.of([record for record in made if settings.given in (None, record["key"]["learning_rate"])])


@dataclass(frozen=True)
class SearchSettings:
    """What is run in each cell."""

    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    search_seeds: tuple[int, ...]
    retry: bool = False

    @property
    def given(self) -> float | None:
        """The only rate, which is not searched for."""
        return self.learning_rates[0] if len(self.learning_rates) == 1 else None


def complete(cell: Cell, settings: SearchSettings, store: Store) -> str:
    """Do the runs of a cell that are not in the store.

    Returns
    -------
    str
        What there is to be warned of.
    """
    about, said = cell.about(), []
    memory = _memory(
        key_text({name: about.get(name) for name in ("model", "target_modules", "task", "data", "contents")})
    )
    task = memory("task", lambda: load_data(cell.terms, cell.task, cell.data))
    if cell.terms.forgetting and task.kind == "classification":
        raise ValueError(f"forgetting= is what a language model forgets, and {cell.task!r} has classes: leave it out")
    other_texts(cell.terms, memory)
    known, head_rate = store.find(), None
    if task.kind == "classification" and cell.method.name != HEAD:
        head = replace(cell, method=METHODS[HEAD], rank=1)
        alone = _runs(head, task, store, known, settings.retry, memory)
        head_rate = lr_search.best(_search(alone, RATES, SEARCH_SEEDS))
        if head_rate is None:
            return f"{_named(cell)}: no learning rate was found for the head alone"
    result = _runs(cell, task, store, known, settings.retry, memory, head_rate)
    if (failed := _errors(cell, known)) and not settings.retry:
        said.append(f"{len(failed)} runs failed before ({failed[-1]}) and count as failed, unless retry=True (--retry)")
    rate = settings.given
    if rate is None:
        grid = lr_search.scaled(settings.learning_rates, cell.method.rate_scale)
        scores = _search(result, grid, settings.search_seeds, _searched(cell, known))
        rate = lr_search.best(scores)
        if rate is None:
            why = f" ({errors[-1]})" if (errors := _errors(cell, known)) else ""
            said.append(f"no learning rate from {min(scores):g} to {max(scores):g} could be trained with{why}")
        elif lr_search.beyond(scores) is not None:
            said.append(f"the best learning rate, {rate:g}, is at the edge of what was searched, or no better")
    for seed in settings.seeds:
        if rate is not None:
            result(rate, seed, "test")
    return f"{_named(cell)}: {'; '.join(said)}" if said else ""


Result = Callable[[float, int, Split], Record]
"""From a rate, a seed and a split to the run, which is done if it is not in the store."""


def _runs(
    cell: Cell,
    task: Task,
    store: Store,
    known: dict[str, Record],
    retry: bool,
    memory: Memory,
    head_rate: float | None = None,
) -> Result:
    """What makes the runs of a cell; ``known`` are those in the store, and new ones are added to both."""

    def result(rate: float, seed: int, split: Split) -> Record:
        key = key_text(cell.key(rate, seed, split))
        if key not in known:
            known.update(store.find())  # another process may have done it since
        if key not in known or (retry and known[key]["status"] == "failed"):
            known[key] = run(cell, task, rate, seed, split, memory, head_rate)
            store.append(known[key])
            logger.info("%s", told(known[key]))
        return known[key]

    return result


def _search(
    result: Result, grid: Sequence[float], seeds: Sequence[int], tried: Iterable[float] = ()
) -> lr_search.Curve:
    """The mean score of each rate over the seeds."""

    def score(rate: float) -> float:
        return float(np.mean([score_of(result(rate, seed, "validation")) for seed in seeds]))

    return lr_search.search(score, grid, tried)


def _of(cell: Cell, known: Mapping[str, Record]) -> list[Record]:
    """The runs of a cell, in the order in which they are in the store."""
    about = key_text(cell.about())
    return [record for record in known.values() if cell_text(record["key"]) == about]


def _errors(cell: Cell, known: Mapping[str, Record]) -> list[str]:
    return [record["error"] for record in _of(cell, known) if record["status"] == "failed"]


def _searched(cell: Cell, known: Mapping[str, Record]) -> set[float]:
    """Rates of earlier searches, perhaps from other grids."""
    keys = [record["key"] for record in _of(cell, known)]
    return {key["learning_rate"] for key in keys if key["split"] == "validation"}


def told(record: Record) -> str:
    """A run in one line."""
    key, metrics = record["key"], record.get("metrics", {})
    found = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    where = f"{key['method']} rank {key['rank']} on {key['task']}, rate {key['learning_rate']:g}, seed {key['seed']}"
    return f"{where}: {key['split']} {found or record.get('error', '')} ({record['status']})"


def _named(cell: Cell) -> str:
    return f"{cell.method.name} at rank {cell.rank} on {cell.task}"


@lru_cache(maxsize=1)
def _memory(scope: str) -> Memory:
    """The memory of a base and a task; only that of the last is kept, in each process."""
    return Memory()


def _completed(cells: Sequence[Cell], settings: SearchSettings, store: Store, workers: int) -> Iterable[str]:
    """Complete the cells, in this process or in several, and say of each what there is to be warned of."""
    if workers == 1:
        try:
            for cell in cells:
                yield complete(cell, settings, store)
        finally:
            _memory.cache_clear()
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (threads, logger.getEffectiveLevel())) as pool:
        futures = [pool.submit(complete, cell, settings, store) for cell in cells]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(threads: int, level: int) -> None:
    """In a process of its own: its part of the cores, and what it does on stderr where it would be said here."""
    torch.set_num_threads(threads)
    logger.setLevel(level)
    logger.addHandler(logging.StreamHandler())


def _cells(methods: Any, tasks: Tasks, terms: Terms, ranks: int | Iterable[int]) -> list[Cell]:
    """Every method on every task at every rank, the cells of a task one after the other."""
    single = isinstance(methods, str) or not isinstance(methods, Iterable)
    found = [chosen(method) for method in ([methods] if single else methods)]
    names = [method.name for method in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not found:
        raise ValueError(f"{twice[0]!r} is named twice among the methods" if twice else "name at least one method")
    sizes = [positive_int(rank, "rank") for rank in (ranks if isinstance(ranks, Iterable) else [ranks])]
    base = model_contents(terms.model)
    return [
        Cell(terms, task, data, method, rank, contents)
        for task, data in _data(tasks).items()
        for contents in [base | task_contents(task, data)]
        for rank in sizes
        for method in found
    ]


def _data(tasks: Tasks, argument: str = "tasks") -> dict[str, dict[str, Any]]:
    """Arguments of `load_task` by task, of JSON values."""
    named = [tasks] if isinstance(tasks, str | os.PathLike) else tasks
    try:
        given = named if isinstance(named, Mapping) else {task: {} for task in named}
        found = {str(task): {"seed": 0} | json.loads(json.dumps(dict(data))) for task, data in given.items()}
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{argument}: pass names, or arguments of load_task by name that JSON can hold ({error})"
        ) from error
    if not found:
        raise ValueError("name at least one task (--task)")
    return found


def _whole(seeds: Iterable[int], argument: str) -> list[int]:
    found = list(dict.fromkeys(seeds)) if isinstance(seeds, Iterable) else []
    if not found or not all(isinstance(seed, Integral) and seed >= 0 for seed in found):
        raise ValueError(f"{argument}={seeds!r}: pass whole numbers, e.g. (0, 1, 2)")
    return [int(seed) for seed in found]
