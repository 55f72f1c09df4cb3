"""The study: what freezing `A` costs if much must be learned, and what it keeps.

    python -m benchmarks.quality.study --workers 2      # runs that are not in the store; can be stopped at any moment
    python -m benchmarks.quality.study --only counting main
    python -m benchmarks.quality.study --table          # print the tables of the store, and write them to the page
    python -m benchmarks.quality.study --model HuggingFaceTB/SmolLM2-1.7B     # the same with another model

Its questions and rules are in benchmarks/quality/STUDY.md, which was written before its runs. A run takes two to three
minutes on one core. Another model has its own store, searches all of its rates, and runs on a GPU if there is one; with
`--table` its tables are printed, and its pictures are written next to its store.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from operator import methodcaller
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, StrMethodFormatter
from scipy import stats

from benchmarks.lab.compare import compare
from benchmarks.lab.comparison import Comparison
from benchmarks.lab.methods import Method
from benchmarks.lab.plot import plot_forgetting
from benchmarks.lab.store import Store
from benchmarks.quality import comparison, pilot
from benchmarks.quality.pages import fill_blocks, markdown, publish, save_figure
from tlora.recipes import Recipe
from viz import style

MODEL = pilot.PARTS["frozen"].model
STORE = Path("benchmarks/results/study.jsonl")
PAGE = Path("docs/results/comparison.md")
DEVELOPMENT = "cipher"
HELD_OUT = ("second_cipher", "codebook")
SEEDS = range(6)
MARGIN = 0.05
"""Nats within which a loss counts as not worse, and by which `full` must lead for a task to count."""
GUARD = 0.1
"""Nats by which a method may forget more than LoRA of as many parameters."""
FORGOTTEN = list(pilot.OTHER)


@dataclass(frozen=True)
class Arm:
    """A method at a rank, and the grid on which the search for its rate on the development task begins."""

    method: str | Recipe | Method
    rank: int = 8
    begin: tuple[float, ...] = (2e-3, 4e-3, 8e-3)

    @property
    def name(self) -> str:
        """Name in the store."""
        return self.method if isinstance(self.method, str) else self.method.name


LORA, AS_LARGE, WHITENED = "LoRA, rank 8", "LoRA, rank 4", "g_whitened"
ARMS = {
    LORA: Arm("lora"),
    AS_LARGE: Arm("lora", 4),
    "score": Arm(pilot.EARLIER["score"]),
    "score-trained, rank 4": Arm(pilot.EARLIER["score-trained"], 4),
    "score-freeze-late": Arm(pilot.EARLIER["score-freeze-late"]),
}
FORMER = {WHITENED: Arm("frozen g_whitened, 10")}
"""Arms with runs in the store, which nothing can run anymore: the package no longer has these directions."""
FEWER = {
    "full": Arm("full"),
    "frozen random": Arm(pilot.frozen_recipe("random")),
    "frozen wc": Arm(pilot.frozen_recipe("wc")),
}
"""Arms with half of the seeds."""
NEIGHBOURS = {
    name: Arm(name, 4, (1e-3, 2e-3, 4e-3)) for name in ("pissa", "eva", "lora-ga", "qa-lora", "talklora", "tlora+")
}
"""Arms with half of the seeds, on one held-out task."""
ALONE = {
    "score, uniform scales": Arm(Recipe("score, uniform scales", allocate={"adapt_scales": False})),
    "score, uniform ranks": Arm(Recipe("score, uniform ranks", allocate={"adapt_ranks": False})),
}
"""The ranks and the scales of `score` alone, to compare with `A` frozen along `wc` with neither; asked afterwards."""
SHARES = (0.5, 1.0)
"""Multiples of the best rate on the development task, at which every arm runs."""
PARTS = ("rates", "counting", "main", "fewer", "alone", "neighbours")


# --- Runs ---


def select_model(model: str, store: Path, threads: int | None = None) -> None:
    """Use this model and this store from here on; in a worker, on so many cores."""
    global MODEL, STORE
    MODEL, STORE = model, store
    if threads:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class ArmRuns:
    """Runs of one arm on one task: a search, or the runs at a rate."""

    arm: Arm
    task: str
    rates: float | tuple[float, ...]
    seeds: tuple[int, ...]

    def run(self) -> None:
        """Do the runs that are not in the store yet."""
        part = pilot.PARTS["frozen"]
        compare(
            self.arm.method, {self.task: pilot.TEXT}, MODEL, ranks=self.arm.rank, learning_rates=self.rates,
            seeds=self.seeds, store=STORE, progress=False, **part.arguments,
        )  # fmt: skip


def run_all(todo: Iterable[Any], workers: int, start: Callable[..., None], *arguments: Any) -> None:
    """Call ``run`` of each in so many processes; ``start`` prepares one, given its number of cores last."""
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start, (*arguments, threads)) as pool:
        for _ in pool.map(methodcaller("run"), todo):
            pass


def plan(part: str) -> Iterator[list[ArmRuns]]:
    """The runs of a part, in steps: each step is planned when the runs of those before it are done."""
    every, few = tuple(SEEDS), tuple(SEEDS)[: len(SEEDS) // 2]
    lower = {name: (0.25, *SHARES) for name in (LORA, AS_LARGE)}
    if part == "rates":
        yield searches(ARMS | FEWER)
    elif part == "counting":
        full, lora = FEWER["full"], ARMS[LORA]
        yield [job for task in HELD_OUT for job in runs_at_shares(full, task, few) + runs_at_shares(lora, task, every)]
    elif part == "main":
        arms = ARMS.items()
        yield [
            job
            for t in counting_tasks()
            for n, arm in arms
            for job in runs_at_shares(arm, t, every, lower.get(n, SHARES))
        ]
    elif part == "fewer":
        yield [job for task in counting_tasks() for arm in FEWER.values() for job in runs_at_shares(arm, task, few)]
    elif part == "alone":
        frozen, shares = require_rate(FEWER["frozen wc"]), (0.25, 0.5)
        yield [
            ArmRuns(arm, task, s * frozen, few) for task in counting_tasks() for arm in ALONE.values() for s in shares
        ]
    elif tasks := counting_tasks():
        yield searches(NEIGHBOURS)
        yield [job for arm in NEIGHBOURS.values() for job in runs_at_shares(arm, tasks[-1], few)]


def searches(arms: Mapping[str, Arm]) -> list[ArmRuns]:
    """Searches for the rates that are not known yet."""
    return [ArmRuns(arm, DEVELOPMENT, arm.begin, (0,)) for arm in arms.values() if best_rate(arm) is None]


def runs_at_shares(arm: Arm, task: str, seeds: tuple[int, ...], shares: Iterable[float] = SHARES) -> list[ArmRuns]:
    """Runs at multiples of the best rate on the development task."""
    return [ArmRuns(arm, task, share * require_rate(arm), seeds) for share in shares]


def best_rate(arm: Arm) -> float | None:
    """The best rate on the development task, in the pilot or in the part *rates*; None before that is known.

    A finished search has a run on test samples at its best rate.
    """
    stores = (pilot.STORE, STORE) if pilot.PARTS["frozen"].model == MODEL else (STORE,)
    rates = (searched_rate(store, arm, DEVELOPMENT) for store in stores)
    return next((rate for rate in rates if rate is not None), None)


def searched_rate(store: Path, arm: Arm, task: str) -> float | None:
    """The best rate on a task in a store, or None before its search has ended."""
    try:
        searched = Comparison.read(store, tasks=task, methods=arm.name, ranks=arm.rank)
    except (FileNotFoundError, ValueError):
        return None
    best = searched.flatness()["best"]
    tested = searched.runs.loc[searched.runs["split"] == "test", "learning_rate"]
    return float(best.iloc[0]) if len(best) and best.iloc[0] in set(tested) else None


def require_rate(arm: Arm) -> float:
    """`best_rate`, which must be known."""
    rate = best_rate(arm)
    if rate is None:
        raise ValueError(f"no rate is known for {arm.name} at rank {arm.rank}: run the part rates first")
    return rate


# --- What the runs came to ---


def test_runs(arm: Arm, task: str) -> pd.DataFrame:
    """Seed, rate, loss and forgetting by text of each test run; NaN for runs that failed."""
    rows = []
    for record in Store(STORE).read():
        key = record["key"]
        if (key["task"], key["method"], key["rank"], key["split"]) == (task, arm.name, arm.rank, "test"):
            done = record["status"] == "done"
            values = {"loss": record["metrics"]["loss"], **record.get("forgetting_by_text", {})} if done else {}
            rows.append({"seed": key["seed"], "rate": key["learning_rate"], **values})
    return pd.DataFrame(rows, columns=["seed", "rate", "loss", *FORGOTTEN])


def runs_by_rate(arm: Arm, task: str) -> pd.DataFrame:
    """`test_runs` by seed and rate; NaN also for runs that do not exist."""
    return test_runs(arm, task).pivot(index="seed", columns="rate")


def runs_at_best_rate(arm: Arm, task: str) -> pd.DataFrame:
    """Loss and forgetting by seed at the best rate on the development task."""
    return runs_by_rate(arm, task).xs(require_rate(arm), axis=1, level="rate")


def leave_one_out(arm: Arm, task: str) -> pd.DataFrame:
    """Loss and forgetting by seed, each at the rate that is best by the mean loss of the other seeds."""
    by_rate = runs_by_rate(arm, task)
    losses = by_rate["loss"][[share * require_rate(arm) for share in SHARES]]
    rows = {}
    for seed in by_rate.index:
        others = losses.drop(seed).mean(skipna=False)
        rows[seed] = by_rate.loc[seed].xs(others.idxmin() if others.notna().any() else losses.columns[0], level="rate")
    return pd.DataFrame(rows).T


def forgetting_at(losses: Mapping[float, float], forgotten: Mapping[float, float], loss: float) -> float:
    """What a method forgets when it reaches a loss, interpolated between two of its rates.

    They are the first neighbors, from the lowest rate up, whose losses enclose that loss: at higher rates a method may
    diverge, and have the loss of a lower rate with another forgetting. NaN if it has learned more at its lowest rate,
    never learns as much, or diverges before.
    """
    for low, high in pairwise(sorted(losses)):
        if not losses[low] >= max(loss, losses[high]):
            return np.nan
        if losses[high] <= loss:
            part = (losses[low] - loss) / (losses[low] - losses[high]) if losses[low] > losses[high] else 0.0
            return forgotten[low] + part * (forgotten[high] - forgotten[low])
    return np.nan


def extra_forgetting(name: str, task: str, text: str) -> pd.Series:
    """By how much more of a text LoRA forgets than `g_whitened` at its loss, by seed."""
    own, extra = runs_at_best_rate(FORMER[WHITENED], task), {}
    for seed, lora in test_runs(ARMS[name], task).set_index("rate").groupby("seed"):
        extra[seed] = forgetting_at(dict(lora["loss"]), dict(lora[text]), own.loc[seed, "loss"]) - own.loc[seed, text]
    return pd.Series(extra)


# --- The hypotheses ---


def p_value(differences: pd.Series, margin: float = 0.0, seeds: int = len(SEEDS)) -> float:
    """One-sided p of a mean above ``-margin`` over seeds: Student's t; 1 if a seed is missing."""
    if differences.count() < seeds:
        return 1.0
    return float(stats.ttest_1samp(differences + margin, 0, alternative="greater").pvalue)


def interval(task: str, differences: pd.Series) -> dict[str, object]:
    """A mean with its 95 % interval over seeds."""
    there = differences.dropna()
    mean, reach = there.mean(), stats.t.ppf(0.975, len(there) - 1) * there.sem()
    return {"task": task, "mean": mean, "low": mean - reach, "high": mean + reach, "median": there.median(),
            "seeds": len(there)}  # fmt: skip


def counting_tasks() -> list[str]:
    """The tasks on which `full` leads LoRA by the margin or more."""
    return [
        task
        for task in HELD_OUT
        if leave_one_out(ARMS[LORA], task)["loss"].mean() - leave_one_out(FEWER["full"], task)["loss"].mean() >= MARGIN
    ]


def hypotheses(tasks: Iterable[str]) -> pd.DataFrame:
    """Each difference with its interval; a hypothesis has the largest p of its rows, adjusted by Holm."""
    rows = []
    for task in tasks:
        for label, text in (("H1, told", "reviews"), ("H1, not told", "humaneval")):
            for name in (LORA, AS_LARGE) if best_rate(FORMER[WHITENED]) else ():
                differences = extra_forgetting(name, task, text)
                words = f"{name} forgets more of {text} at the loss of {WHITENED}"
                rows.append(
                    {"hypothesis": label, "what": words, **interval(task, differences), "p": p_value(differences)}
                )
        for label, name, other in (("H2", "score", AS_LARGE), ("H4", "score-freeze-late", LORA)):
            differences = leave_one_out(ARMS[other], task)["loss"] - leave_one_out(ARMS[name], task)["loss"]
            words = f"{name} is at most {MARGIN:g} nats behind {other}"
            rows.append(
                {"hypothesis": label, "what": words, **interval(task, differences), "p": p_value(differences, MARGIN)}
            )
    columns = ["hypothesis", "what", "task", "mean", "low", "high", "median", "seeds", "p"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["hypothesis", "task"], kind="stable")
    return table.assign(holm=table["hypothesis"].map(holm_adjusted(table.groupby("hypothesis")["p"].max())))


def holm_adjusted(p: pd.Series) -> pd.Series:
    """Holm's adjusted p values."""
    ordered = p.sort_values()
    factors = np.arange(len(ordered), 0, -1)
    return (ordered * factors).cummax().clip(upper=1)[p.index]


def measured_arms(task: str) -> dict[str, Arm]:
    """The arms with runs on a task at both of their rates."""
    complete = {}
    for name, arm in (ARMS | FORMER | FEWER | NEIGHBOURS).items():
        rate = best_rate(arm)
        if rate is not None and {share * rate for share in SHARES} <= set(test_runs(arm, task)["rate"]):
            complete[name] = arm
    return complete


def estimates() -> pd.DataFrame:
    """Estimates that are not tested: differences from LoRA with as many parameters, in loss and in forgetting."""
    rows = []
    for task in HELD_OUT:
        arms = measured_arms(task)
        for name, arm in arms.items():
            other = LORA if name in (LORA, "score-freeze-late", "full") else AS_LARGE
            if name != other and other in arms:
                difference = leave_one_out(arm, task) - leave_one_out(ARMS[other], task)
                for of, values in (("loss", difference["loss"]), ("forgetting", difference[FORGOTTEN].mean(axis=1))):
                    rows.append({"arm": name, "baseline": other, "of": of, **interval(task, values)})
    return pd.DataFrame(rows)


def means(task: str) -> pd.DataFrame:
    """Every arm at every rate: means over the seeds, and the highest loss of a seed."""
    tested = Comparison.read(STORE, tasks=task).runs.query("split == 'test'")
    rows = tested.groupby(["method", "rank", "learning_rate"])
    table = rows[["trainable_parameters", "loss", "forgetting"]].mean()
    return table.assign(highest=rows["loss"].max(), seeds=rows["loss"].count(), runs=rows.size()).reset_index()


# --- On the page ---


def hypotheses_table() -> str:
    """The hypotheses and their results."""
    lines = []
    for row in hypotheses(counting_tasks()).itertuples():
        verdict = "holds" if row.holm < 0.05 else "not shown"
        lines.append([row.hypothesis, row.what, row.task, _format_interval(row), f"{row.holm:.2g}", verdict])
    return markdown(["", "hypothesis", "task", "by, nats (95 %)", "p", ""], lines)


def means_table() -> str:
    """Every arm at every rate of every held-out task."""
    lines = []
    for task in HELD_OUT:
        for row in (
            means(task).sort_values(["rank", "method", "learning_rate"], ascending=[False, True, True]).itertuples()
        ):
            failed = f", {row.runs - row.seeds} failed" if row.seeds < row.runs else ""
            lines.append([
                task, row.method, f"{row.rank}", f"{row.learning_rate:g}", f"{row.trainable_parameters / 1e6:.2f}M",
                f"{row.seeds}{failed}", f"{row.loss:.3f} ({row.highest:.3f})", f"{row.forgetting:.3f}",
            ])  # fmt: skip
    heads = ["task", "method", "rank", "rate", "trained", "seeds", "test loss (highest)", "forgotten"]
    return markdown(heads, lines)


def estimates_table() -> str:
    """The estimates that the picture draws."""
    lines = [
        [row.task, row.arm, row.baseline, row.of, _format_interval(row), f"{row.seeds}"]
        for row in estimates().itertuples()
    ]
    return markdown(["task", "arm", "compared with", "of", "difference, nats (95 %)", "seeds"], lines)


def _format_interval(row: Any) -> str:
    if np.isnan(row.low):
        return f"known for {row.seeds} of {len(SEEDS)} seeds"
    return f"{row.mean:+.3f} ({row.low:+.3f} to {row.high:+.3f})"


BLOCKS = {"hypotheses": hypotheses_table, "estimates": estimates_table, "means": means_table}
"""Tables on the page, by their titles."""
PICTURES = {name: Path(f"docs/study_{name}.png") for name in ("estimates", "forgetting")}


def render(text: str) -> str:
    """The page with the tables of the store."""
    return fill_blocks(text, "study", BLOCKS)


@style.styled
def draw_estimates(table: pd.DataFrame) -> Figure:
    """Two panels, loss and forgetting: a line for each arm, a point with its interval for each task."""
    names, tasks = list(dict.fromkeys(table["arm"])), list(dict.fromkeys(table["task"]))
    figure, panels = plt.subplots(1, 2, figsize=(8.8, 1.6 + 0.36 * len(names)), sharey=True, layout="constrained")
    looks = list(zip(tasks, style.colors(len(tasks)), style.markers(len(tasks)), strict=True))
    for ax, (of, margin) in zip(panels, {"loss": MARGIN, "forgetting": GUARD}.items(), strict=True):
        for n, (task, color, marker) in enumerate(looks):
            mine = table[(table["of"] == of) & (table["task"] == task)]
            places = [names.index(name) + 0.3 * (n - (len(tasks) - 1) / 2) for name in mine["arm"]]
            reach = (mine["mean"] - mine["low"], mine["high"] - mine["mean"])
            ax.errorbar(
                mine["mean"], places, xerr=reach, fmt=marker, color=color, markersize=5, linewidth=1.2, label=task
            )
        ax.axvspan(-margin, margin, color="0.88", linewidth=0, zorder=0)
        ax.axvline(0, color="0.35", linestyle="--", linewidth=1, zorder=1)
        ax.set_xscale("symlog", linthresh=2 * margin, linscale=1.5)
        ax.xaxis.set_major_locator(FixedLocator([-1, -margin, 0, margin, 1]))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.set_xlabel(f"{of} minus LoRA's, nats")
        ax.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    style.headline(panels[0], "What is learned", "difference from LoRA with as many parameters; left is better")
    style.headline(panels[1], "What is forgotten", "each at its best rate; left is better")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tasks))
    return figure


def shown_runs() -> Comparison:
    """The runs that the pictures show: arms with runs at both of their rates, on the tasks that count."""
    tasks = counting_tasks()
    methods = {arm.name for task in tasks for arm in measured_arms(task).values()}
    return Comparison.read(STORE, tasks=tasks, methods=methods)


def draw(pictures: Mapping[str, Path]) -> None:
    """Draw the pictures into these files."""
    shown = shown_runs()
    figures = {"estimates": draw_estimates(estimates()), "forgetting": plot_forgetting(shown)}
    for name, figure in figures.items():
        save_figure(figure, pictures[name], comparison.digest(shown))


def main() -> None:
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model", default=MODEL, help="repeat it with another model, in its own store")
    parser.add_argument("--table", action="store_true", help="run nothing; make the tables and pictures of the store")
    arguments = parser.parse_args()
    page, pictures = PAGE, PICTURES
    if arguments.model != MODEL:
        own = STORE.with_name(f"study-{Path(arguments.model).name}.jsonl")
        page, pictures = None, {name: own.with_name(f"{own.stem}-{name}.png") for name in PICTURES}
        select_model(arguments.model, own)
    if not arguments.table:
        for part in arguments.only:
            for todo in plan(part):
                run_all(todo, arguments.workers, select_model, MODEL, STORE)
        return
    tasks = counting_tasks()
    if tasks:
        draw(pictures)
    print(f"tasks on which full leads LoRA: {', '.join(tasks) or 'none'}\n")
    publish(page, "study", BLOCKS)


if __name__ == "__main__":
    main()
