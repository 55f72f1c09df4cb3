"""The study: what freezing `A` costs where much must be learned, and what it keeps.

    python -m benchmarks.quality.study --workers 2      # what is not in the store yet; can be stopped at any moment
    python -m benchmarks.quality.study --only counting main
    python -m benchmarks.quality.study --table          # print what the store says, and put it on the page
    python -m benchmarks.quality.study --model HuggingFaceTB/SmolLM2-1.7B     # the same of another model

Its questions and rules are in benchmarks/quality/STUDY.md, which was written before its runs. A run takes two to three
minutes on one core. Another model has a store of its own, in which it searches for all of its rates, and runs on a GPU
where there is one; with `--table` its tables are printed, and its pictures lie beside its store.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
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
from benchmarks.lab.methods import Method, choose_method
from benchmarks.lab.plot import plot_forgetting
from benchmarks.lab.store import Store
from benchmarks.quality import comparison, pilot
from tlora.recipes import Recipe
from viz import style

MODEL = pilot.PARTS["frozen"].model
STORE = Path("benchmarks/results/study.jsonl")
PAGE = Path("docs/results/comparison.md")
DEVELOPMENT = "cipher"
HELD_OUT = ("second_cipher", "codebook")
SEEDS = range(6)
MARGIN = 0.05
"""Nats within which a loss counts as no worse, and by which `full` must lead for a task to count."""
GUARD = 0.1
"""Nats by which a method may forget more than LoRA of as many parameters."""
FORGOTTEN = list(pilot.OTHER)


@dataclass(frozen=True)
class Arm:
    """A method at a rank, and where the search for its rate on the development task begins."""

    method: str | Recipe | Method
    rank: int = 8
    begin: tuple[float, ...] = (2e-3, 4e-3, 8e-3)

    @property
    def name(self) -> str:
        """As in the store."""
        return choose_method(self.method).name


LORA, AS_LARGE, WHITENED = "LoRA, rank 8", "LoRA, rank 4", "g_whitened"
ARMS = {
    LORA: Arm("lora"),
    AS_LARGE: Arm("lora", 4),
    "tlora": Arm("tlora"),
    "tlora-trained, rank 4": Arm("tlora-trained", 4),
    "tlora-freeze-late": Arm("tlora-freeze-late"),
    WHITENED: Arm(pilot.whitened(10.0, general=(pilot.GENERAL[0], pilot.GENERAL[1] | {"seed": 0}))),
}
FEWER = {
    "full": Arm("full"),
    "frozen random": Arm(pilot.frozen("random")),
    "frozen wc": Arm(pilot.frozen("wc")),
}
"""Arms with half of the seeds."""
NEIGHBOURS = {
    name: Arm(name, 4, (1e-3, 2e-3, 4e-3)) for name in ("pissa", "eva", "lora-ga", "qa-lora", "talklora", "tlora+")
}
"""With half of the seeds, on one held-out task."""
ALONE = {
    "tlora, uniform scales": Arm(Recipe("tlora, uniform scales", allocate={"adapt_scales": False})),
    "tlora, uniform ranks": Arm(Recipe("tlora, uniform ranks", allocate={"adapt_ranks": False})),
}
"""What the recipe's ranks and its scales do alone, beside `A` frozen along `wc` with neither; asked afterwards."""
SHARES = (0.5, 1.0)
"""Of the rate that was best on the development task, at which every arm runs."""
PARTS = ("rates", "counting", "main", "fewer", "alone", "neighbours")


# --- Runs ---


def ask(model: str, store: Path, threads: int | None = None) -> None:
    """From here on the study is of this model, in this store; in a worker, on so many cores."""
    global MODEL, STORE
    MODEL, STORE = model, store
    if threads:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Job:
    """Runs of one arm on one task: a search, or those at a rate."""

    arm: Arm
    task: str
    rates: float | tuple[float, ...]
    seeds: tuple[int, ...]

    def run(self) -> None:
        """Do what is not in the store yet."""
        part = pilot.PARTS["frozen"]
        compare(
            self.arm.method, {self.task: pilot.TEXT}, MODEL, ranks=self.arm.rank, learning_rates=self.rates,
            seeds=self.seeds, store=STORE, progress=False, **part.arguments,
        )  # fmt: skip


def run_all(todo: Iterable[Job], workers: int) -> None:
    """Do what is not in the store yet in so many processes, each on its part of the cores, one job after the other."""
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, ask, (MODEL, STORE, threads)) as pool:
        for _ in pool.map(Job.run, todo):
            pass


def jobs(part: str) -> Iterator[list[Job]]:
    """What a part is made of, in steps: one is worked out when those before it are done."""
    every, few = tuple(SEEDS), tuple(SEEDS)[: len(SEEDS) // 2]
    lower = {name: (0.25, *SHARES) for name in (LORA, AS_LARGE)}
    if part == "rates":
        yield searches(ARMS | FEWER)
    elif part == "counting":
        full, lora = FEWER["full"], ARMS[LORA]
        yield [job for task in HELD_OUT for job in at_shares(full, task, few) + at_shares(lora, task, every)]
    elif part == "main":
        arms = ARMS.items()
        yield [job for t in counted() for n, arm in arms for job in at_shares(arm, t, every, lower.get(n, SHARES))]
        while more := list(rates_below()):
            yield more
    elif part == "fewer":
        yield [job for task in counted() for arm in FEWER.values() for job in at_shares(arm, task, few)]
    elif part == "alone":
        frozen, shares = known_rate(FEWER["frozen wc"]), (0.25, 0.5)
        yield [Job(arm, task, s * frozen, few) for task in counted() for arm in ALONE.values() for s in shares]
    elif tasks := counted():
        yield searches(NEIGHBOURS)
        yield [job for arm in NEIGHBOURS.values() for job in at_shares(arm, tasks[-1], few)]


def searches(arms: Mapping[str, Arm]) -> list[Job]:
    """For the rates that are not known yet."""
    return [Job(arm, DEVELOPMENT, arm.begin, (0,)) for arm in arms.values() if best_rate(arm) is None]


def at_shares(arm: Arm, task: str, seeds: tuple[int, ...], shares: Iterable[float] = SHARES) -> list[Job]:
    """Runs at shares of the rate that was best on the development task."""
    return [Job(arm, task, share * known_rate(arm), seeds) for share in shares]


def rates_below() -> Iterator[Job]:
    """Half of LoRA's lowest rate, for the seeds that have learned more at that one than with whitened directions."""
    for task in counted():
        aims = at_best(ARMS[WHITENED], task)["loss"]
        for name in (LORA, AS_LARGE):
            lowest = run_by_run(ARMS[name], task).sort_values("rate").groupby("seed").first()
            ahead = lowest[(lowest["loss"] < aims) & (lowest["rate"] > known_rate(ARMS[name]) / 64)]
            for rate, found in ahead.groupby("rate"):
                yield Job(ARMS[name], task, float(rate) / 2, tuple(map(int, found.index)))


def best_rate(arm: Arm) -> float | None:
    """The rate that was best on the development task, in the pilot or in the part *rates*; None before that is known.

    A search that has ended has a run on test samples at its best rate.
    """
    for store in (pilot.STORE, STORE) if pilot.PARTS["frozen"].model == MODEL else (STORE,):
        try:
            found = Comparison.read(store, tasks=DEVELOPMENT, methods=arm.name, ranks=arm.rank)
        except (FileNotFoundError, ValueError):
            continue
        best = found.flatness()["best"]
        tested = found.runs.loc[found.runs["split"] == "test", "learning_rate"]
        if len(best) and best.iloc[0] in set(tested):
            return float(best.iloc[0])
    return None


def known_rate(arm: Arm) -> float:
    """`best_rate`, where there must be one."""
    rate = best_rate(arm)
    if rate is None:
        raise ValueError(f"no rate is known for {arm.name} at rank {arm.rank}: run the part rates first")
    return rate


# --- What the runs came to ---


def run_by_run(arm: Arm, task: str) -> pd.DataFrame:
    """Seed, rate, loss and forgetting by text of each run on the test split; NaN for what was not finished."""
    rows = []
    for record in Store(STORE).read():
        key = record["key"]
        if (key["task"], key["method"], key["rank"], key["split"]) == (task, arm.name, arm.rank, "test"):
            done = record["status"] == "done"
            found = {"loss": record["metrics"]["loss"], **record.get("forgetting_by_text", {})} if done else {}
            rows.append({"seed": key["seed"], "rate": key["learning_rate"], **found})
    return pd.DataFrame(rows, columns=["seed", "rate", "loss", *FORGOTTEN])


def runs(arm: Arm, task: str) -> pd.DataFrame:
    """`run_by_run` by seed and rate; NaN also for what was not run."""
    return run_by_run(arm, task).pivot(index="seed", columns="rate")


def at_best(arm: Arm, task: str) -> pd.DataFrame:
    """Loss and forgetting by seed at the rate that was best on the development task."""
    return runs(arm, task).xs(known_rate(arm), axis=1, level="rate")


def tuned(arm: Arm, task: str) -> pd.DataFrame:
    """Loss and forgetting by seed, each at that rate which the other seeds' mean loss chooses."""
    found = runs(arm, task)
    losses = found["loss"][[share * known_rate(arm) for share in SHARES]]
    rows = {}
    for seed in found.index:
        others = losses.drop(seed).mean(skipna=False)
        rows[seed] = found.loc[seed].xs(others.idxmin() if others.notna().any() else losses.columns[0], level="rate")
    return pd.DataFrame(rows).T


def forgotten_at(losses: Mapping[float, float], forgotten: Mapping[float, float], loss: float) -> float:
    """What a method forgets where it has come to a loss, on the line between two of its rates.

    They are the first neighbours, from the lowest rate up, between which its loss passes that one: above them a
    method may come apart, and have the loss of a lower rate with another forgetting. NaN where it has learned more at
    its lowest rate, or less at all, or comes apart before.
    """
    for low, high in pairwise(sorted(losses)):
        if not losses[low] >= max(loss, losses[high]):
            return np.nan
        if losses[high] <= loss:
            part = (losses[low] - loss) / (losses[low] - losses[high]) if losses[low] > losses[high] else 0.0
            return forgotten[low] + part * (forgotten[high] - forgotten[low])
    return np.nan


def kept(name: str, task: str, text: str) -> pd.Series:
    """By how much more of a text a LoRA forgets than whitened directions where it has their loss, by seed."""
    own, found = at_best(ARMS[WHITENED], task), {}
    for seed, lora in run_by_run(ARMS[name], task).set_index("rate").groupby("seed"):
        found[seed] = forgotten_at(dict(lora["loss"]), dict(lora[text]), own.loc[seed, "loss"]) - own.loc[seed, text]
    return pd.Series(found)


# --- The hypotheses ---


def p_value(differences: pd.Series, margin: float = 0.0, seeds: int = len(SEEDS)) -> float:
    """One-sided, of a mean above ``-margin``, over seeds: Student's t; 1 where a seed is missing."""
    if differences.count() < seeds:
        return 1.0
    return float(stats.ttest_1samp(differences + margin, 0, alternative="greater").pvalue)


def interval(task: str, differences: pd.Series) -> dict[str, object]:
    """A mean with its 95 % interval over seeds."""
    there = differences.dropna()
    mean, reach = there.mean(), stats.t.ppf(0.975, len(there) - 1) * there.sem()
    return {"task": task, "mean": mean, "low": mean - reach, "high": mean + reach, "median": there.median(),
            "seeds": len(there)}  # fmt: skip


def counted() -> list[str]:
    """The tasks on which `full` leads LoRA by the margin or more."""
    return [
        task
        for task in HELD_OUT
        if tuned(ARMS[LORA], task)["loss"].mean() - tuned(FEWER["full"], task)["loss"].mean() >= MARGIN
    ]


def hypotheses(tasks: Iterable[str]) -> pd.DataFrame:
    """Each difference with its interval; a hypothesis has the largest p of its rows, adjusted by Holm."""
    rows = []
    for task in tasks:
        for label, text in (("H1, told", "reviews"), ("H1, not told", "humaneval")):
            for name in (LORA, AS_LARGE):
                found = kept(name, task, text)
                words = f"{name} forgets more of {text} where it has the loss of {WHITENED}"
                rows.append({"hypothesis": label, "what": words, **interval(task, found), "p": p_value(found)})
        for label, name, other in (("H2", "tlora", AS_LARGE), ("H4", "tlora-freeze-late", LORA)):
            found = tuned(ARMS[other], task)["loss"] - tuned(ARMS[name], task)["loss"]
            words = f"{name} is at most {MARGIN:g} nats behind {other}"
            rows.append({"hypothesis": label, "what": words, **interval(task, found), "p": p_value(found, MARGIN)})
    columns = ["hypothesis", "what", "task", "mean", "low", "high", "median", "seeds", "p"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["hypothesis", "task"], kind="stable")
    return table.assign(holm=table["hypothesis"].map(holm_adjusted(table.groupby("hypothesis")["p"].max())))


def holm_adjusted(p: pd.Series) -> pd.Series:
    """Holm's adjusted p values."""
    ordered = p.sort_values()
    factors = np.arange(len(ordered), 0, -1)
    return (ordered * factors).cummax().clip(upper=1)[p.index]


def measured(task: str) -> dict[str, Arm]:
    """The arms that have run on a task at both of their rates."""
    found = {}
    for name, arm in (ARMS | FEWER | NEIGHBOURS).items():
        rate = best_rate(arm)
        if rate is not None and {share * rate for share in SHARES} <= set(run_by_run(arm, task)["rate"]):
            found[name] = arm
    return found


def estimates() -> pd.DataFrame:
    """What is estimated and not tested: differences from LoRA of as many parameters, in loss and in forgetting."""
    rows = []
    for task in HELD_OUT:
        arms = measured(task)
        for name, arm in arms.items():
            other = LORA if name in (LORA, "tlora-freeze-late", "full") else AS_LARGE
            if name != other and other in arms:
                difference = tuned(arm, task) - tuned(ARMS[other], task)
                for of, values in (("loss", difference["loss"]), ("forgetting", difference[FORGOTTEN].mean(axis=1))):
                    rows.append({"arm": name, "beside": other, "of": of, **interval(task, values)})
    return pd.DataFrame(rows)


def means(task: str) -> pd.DataFrame:
    """Every arm at every rate: means over the seeds, and the highest loss of one."""
    found = Comparison.read(STORE, tasks=task).runs.query("split == 'test'")
    rows = found.groupby(["method", "rank", "learning_rate"])
    table = rows[["trainable_parameters", "loss", "forgetting"]].mean()
    return table.assign(highest=rows["loss"].max(), seeds=rows["loss"].count(), runs=rows.size()).reset_index()


# --- On the page ---


def told_hypotheses() -> str:
    """The hypotheses, with what they came to."""
    lines = []
    for row in hypotheses(counted()).itertuples():
        verdict = "holds" if row.holm < 0.05 else "not shown"
        lines.append([row.hypothesis, row.what, row.task, _spanned(row), f"{row.holm:.2g}", verdict])
    return pilot.markdown(["", "hypothesis", "task", "by, nats (95 %)", "p", ""], lines)


def told_means() -> str:
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
    return pilot.markdown(heads, lines)


def told_estimates() -> str:
    """The estimates that the picture draws."""
    lines = [[row.task, row.arm, row.beside, row.of, _spanned(row), f"{row.seeds}"] for row in estimates().itertuples()]
    return pilot.markdown(["task", "arm", "beside", "of", "difference, nats (95 %)", "seeds"], lines)


def _spanned(row: Any) -> str:
    if np.isnan(row.low):
        return f"known for {row.seeds} of {len(SEEDS)} seeds"
    return f"{row.mean:+.3f} ({row.low:+.3f} to {row.high:+.3f})"


BLOCKS = {"hypotheses": told_hypotheses, "estimates": told_estimates, "means": told_means}
"""Tables on the page, by their titles."""
PICTURES = {name: Path(f"docs/study_{name}.png") for name in ("estimates", "forgetting")}


def written(text: str) -> str:
    """The page with the tables that the store makes."""
    return comparison.filled(text, "study", BLOCKS)


@style.styled
def draw_estimates(table: pd.DataFrame) -> Figure:
    """Two panels, loss and forgetting: a line for each arm, a point with its interval for each task."""
    names, tasks = list(dict.fromkeys(table["arm"])), list(dict.fromkeys(table["task"]))
    figure, panels = plt.subplots(1, 2, figsize=(8.8, 1.6 + 0.36 * len(names)), sharey=True, layout="constrained")
    looks = list(zip(tasks, style.colors(len(tasks)), style.markers(len(tasks)), strict=True))
    for ax, (of, margin) in zip(panels, {"loss": MARGIN, "forgetting": GUARD}.items(), strict=True):
        for n, (task, colour, marker) in enumerate(looks):
            mine = table[(table["of"] == of) & (table["task"] == task)]
            places = [names.index(name) + 0.3 * (n - (len(tasks) - 1) / 2) for name in mine["arm"]]
            reach = (mine["mean"] - mine["low"], mine["high"] - mine["mean"])
            ax.errorbar(
                mine["mean"], places, xerr=reach, fmt=marker, color=colour, markersize=5, linewidth=1.2, label=task
            )
        ax.axvspan(-margin, margin, color="0.88", linewidth=0, zorder=0)
        ax.axvline(0, color="0.35", linestyle="--", linewidth=1, zorder=1)
        ax.set_xscale("symlog", linthresh=2 * margin, linscale=1.5)
        ax.xaxis.set_major_locator(FixedLocator([-1, -margin, 0, margin, 1]))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.set_xlabel(f"{of} less LoRA's, nats")
        ax.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    style.headline(panels[0], "What is learned", "beside LoRA of as many parameters; left is better")
    style.headline(panels[1], "What is forgotten", "each at its best rate; left is better")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tasks))
    return figure


def drawn() -> Comparison:
    """The runs that the pictures show: arms that have run at both of their rates, on the tasks that count."""
    tasks = counted()
    methods = {arm.name for task in tasks for arm in measured(task).values()}
    return Comparison.read(STORE, tasks=tasks, methods=methods)


def draw(pictures: Mapping[str, Path]) -> None:
    """The pictures, into these files."""
    shown = drawn()
    figures = {"estimates": draw_estimates(estimates()), "forgetting": plot_forgetting(shown)}
    for name, figure in figures.items():
        comparison.save(figure, pictures[name], comparison.digest(shown))


def main() -> None:
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts that are run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model", default=MODEL, help="ask the same of another model, in a store of its own")
    parser.add_argument(
        "--table", action="store_true", help="run nothing; make tables and pictures of what is in the store"
    )
    arguments = parser.parse_args()
    page, pictures = PAGE, PICTURES
    if arguments.model != MODEL:
        own = STORE.with_name(f"study-{Path(arguments.model).name}.jsonl")
        page, pictures = None, {name: own.with_name(f"{own.stem}-{name}.png") for name in PICTURES}
        ask(arguments.model, own)
    if not arguments.table:
        for part in arguments.only:
            for todo in jobs(part):
                run_all(todo, arguments.workers)
        return
    tasks = counted()
    if tasks:
        draw(pictures)
    print(f"tasks on which full leads LoRA: {', '.join(tasks) or 'none'}\n")
    comparison.publish(page, "study", BLOCKS)


if __name__ == "__main__":
    main()
