"""Directions that the loss needs: what an adapter learns with `A` frozen along them, at LoRA's own learning rate.

    python -m benchmarks.quality.directions --workers 2    # runs that are not in the store; can be stopped
    python -m benchmarks.quality.directions --only rates known --tasks letter_counting
    python -m benchmarks.quality.directions --table        # print the tables of the store, and write them to the page

Its questions and rules are in benchmarks/quality/STUDY.md, which was written before its runs. A run takes one to two
minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.lab.compare import SEARCH_SEEDS, compare
from benchmarks.lab.store import Record, Store
from benchmarks.quality.pages import digest_text, markdown, publish, save_figure
from benchmarks.quality.study import Arm, holm_adjusted, run_all, searched_rate
from tlora.recipes import Recipe
from viz import style

STORE = Path("benchmarks/results/directions.jsonl")
PAGE = Path("docs/results/directions.md")
PICTURE = Path("docs/directions_rates.png")
SEEDS = tuple(range(6))
FEWER = SEEDS[:3]
SHARES = (0.5, 1.0, 2.0, 4.0)
"""Multiples of R, LoRA's best rate on the development task, at which every arm runs."""
MARGIN = 0.05
"""Part of what LoRA learns by which a loss may be higher and count as not inferior."""


@dataclass(frozen=True)
class Data:
    """A held-out task, the task on which its rate R is searched, and how both are trained."""

    name: str
    options: dict[str, Any]
    development: tuple[str, dict[str, Any]]
    model: str = "smollm2-135m"
    training: dict[str, Any] = field(default_factory=dict)
    forgetting: dict[str, dict[str, Any]] = field(default_factory=dict)


CHAT = {"steps": 30, "batch_size": 4}
CHAT_SIZES = {"train": 800, "validation": 32, "test": 64}
TEXT_SIZES = {"max_length": 48, "train": 4000, "validation": 32, "test": 64}
REVIEW_SIZES = {"max_length": 64, "train": 6000, "validation": 200, "test": 1000}
OTHER: dict[str, dict[str, Any]] = {
    "reviews": {"max_length": 48, "test": 48, "train": 0},
    "humaneval": {"max_length": 160, "test": 40},
}
SMART_HOME = ("notebooks/data/smart_home", {"validation": 32, "test": 64})
TASKS = {
    data.name: data
    for data in (
        Data("letter_counting", CHAT_SIZES, SMART_HOME, training=CHAT, forgetting=OTHER),
        Data("spell_backward", CHAT_SIZES, SMART_HOME, training=CHAT, forgetting=OTHER),
        Data(
            "second_cipher", TEXT_SIZES, ("cipher", TEXT_SIZES),
            training={"steps": 40, "batch_size": 4}, forgetting=OTHER,
        ),
        Data(
            "rotten_tomatoes", REVIEW_SIZES, ("imdb", REVIEW_SIZES), "minilm",
            training={"steps": 60, "batch_size": 16},
        ),
    )
}  # fmt: skip
KEEP = {"gradient": True, "fisher": True}


def frozen(name: str, kind: str, **allocate: Any) -> Arm:
    """`A` frozen along the directions of a kind, with uniform scales; `A` and `B` of rank 8 on average."""
    allocate = {"adapt_ranks": False} | allocate | {"adapt_scales": False}
    return Arm(Recipe(name, calibrate=KEEP, task_subspaces={"kind": kind}, allocate=allocate))


LORA, FISHER, CAPTURED = "LoRA, rank 4", "fisher", "fisher, captured ranks"
ARMS = {
    LORA: Arm("lora", 4),
    "wc": frozen("frozen wc", "wc"),
    "random": frozen("frozen random", "random"),
    "g": frozen("frozen g", "g"),
    FISHER: frozen("frozen fisher", "fisher"),
    CAPTURED: frozen("frozen fisher, captured", "fisher", adapt_ranks=True, by="captured", budget="parameters"),
}
PAPER = Arm("tlora-paper")
TEXT_TASKS = ("second_cipher",)
PARTS = ("rates", "known", "others", "best", "paper")


# --- Runs ---


@dataclass(frozen=True)
class ArmRuns:
    """Runs of one arm on one task: a search on the development task, or the runs at a rate."""

    arm: Arm
    data: Data
    rates: float | tuple[float, ...]
    seeds: tuple[int, ...]

    def run(self) -> None:
        """Do the runs that are not in the store yet."""
        is_search = isinstance(self.rates, tuple)
        task, options = self.data.development if is_search else (self.data.name, self.data.options)
        compare(
            self.arm.method, {task: options}, self.data.model, ranks=self.arm.rank, learning_rates=self.rates,
            seeds=self.seeds, samples=32, store=STORE, progress=False, **self.data.training,
            forgetting=self.data.forgetting,
        )  # fmt: skip


def plan(part: str, names: Iterable[str] = TASKS) -> Iterator[ArmRuns]:
    """The runs of a part on some tasks, which is planned when the parts before it are done."""
    arms, tasks = list(ARMS.values()), [TASKS[name] for name in names]
    by_rate = [arm for name, arm in ARMS.items() if name != CAPTURED]
    if part == "rates":
        developments = {data.development[0]: data for data in tasks}
        yield from (ArmRuns(ARMS[LORA], data, (2e-3, 4e-3, 8e-3), SEEDS[:1]) for data in developments.values())
    elif part == "known":
        yield from (ArmRuns(arm, data, known_rate(data), SEEDS) for data, arm in product(tasks, arms))
    elif part == "others":
        rates = [share for share in SHARES if share != 1]
        yield from (ArmRuns(a, d, share * known_rate(d), FEWER) for d, a, share in product(tasks, by_rate, rates))
    elif part == "best":
        for data, (name, arm) in product(tasks, ARMS.items()):
            if (rate := own_best(data.name, name)) is not None:
                yield ArmRuns(arm, data, rate, SEEDS)
    else:
        first = next(iter(TASKS))
        yield from (ArmRuns(PAPER, d, s * known_rate(d), FEWER) for d, s in product(tasks, SHARES) if d.name == first)


def known_rate(data: Data) -> float:
    """R: the best learning rate of LoRA on the development task, on validation rows."""
    rate = best_rate(data)
    if rate is None:
        raise ValueError(f"no rate is known for {data.name}: run the part rates first")
    return rate


def best_rate(data: Data) -> float | None:
    """R, or None before the search has ended."""
    return searched_rate(STORE, ARMS[LORA], data.development[0])


# --- What the runs came to ---


@cache
def test_runs() -> pd.DataFrame:
    """The test runs of the held-out tasks, one row each.

    ``loss``, ``validation`` and ``base`` are in nats: of the test rows, of the validation rows, and of the test rows
    before training; infinite for a run that diverged. ``forgotten`` is by how much the loss on other texts rose.
    """
    names = {(arm.name, arm.rank): name for name, arm in (ARMS | {"tlora-paper": PAPER}).items()}
    rows = []
    for record in Store(STORE).read():
        key = record["key"]
        name = names.get((key["method"], key["rank"]))
        if key["task"] in TASKS and key["split"] == "test" and key["seed"] not in SEARCH_SEEDS and name:
            rows.append({"task": key["task"], "arm": name, "seed": key["seed"], **_measured(record)})
    columns = ["task", "arm", "seed", "rate", "loss", "validation", "base", *OTHER, "parameters", "diverged"]
    runs = pd.DataFrame(rows, columns=columns)
    rates = {data.name: best_rate(data) or np.nan for data in TASKS.values()}
    return runs.assign(share=runs["rate"] / runs["task"].map(rates))


def _measured(record: Record) -> dict[str, Any]:
    is_done = record["status"] == "done"
    return {
        "rate": record["key"]["learning_rate"],
        "loss": record["metrics"]["loss"] if is_done else np.inf,
        "validation": record["validation_loss"] if is_done else np.inf,
        "base": record.get("base_loss", np.nan),
        "parameters": record.get("trainable_parameters", np.nan),
        "diverged": not is_done,
        **record.get("forgetting_by_text", {}),
    }


def runs_at(task: str, name: str, share: float | None) -> pd.DataFrame:
    """The runs of an arm by seed, at a multiple of R, or at its own best rate."""
    share = own_best_share(task, name) if share is None else share
    runs = test_runs()
    return runs[(runs["task"] == task) & (runs["arm"] == name) & (runs["share"] == share)].set_index("seed")


def losses_by_share(task: str, name: str) -> pd.DataFrame | None:
    """The validation losses of the first seeds, a row each, by multiple of R; None before all have run."""
    runs = test_runs()
    mine = runs[(runs["task"] == task) & (runs["arm"] == name) & runs["seed"].isin(FEWER)]
    losses = mine.pivot(index="seed", columns="share", values="validation")
    return None if losses.shape != (len(FEWER), len(SHARES)) or losses.isna().any(axis=None) else losses


def own_best_share(task: str, name: str) -> float | None:
    """The multiple of R with the lowest mean validation loss of the first seeds; None before all have run."""
    losses = losses_by_share(task, name)
    return None if losses is None else float(losses.mean().idxmin())


def own_best(task: str, name: str) -> float | None:
    """The rate with the lowest mean validation loss."""
    share = own_best_share(task, name)
    return None if share is None else share * known_rate(TASKS[task])


# --- The hypotheses ---


@dataclass(frozen=True)
class Claim:
    """That one arm's value minus another's is below a margin, in nats; one-sided t test, paired by seed."""

    hypothesis: str
    task: str
    arm: str
    other: str
    value: str = "loss"
    share: float | None = 1.0
    has_margin: bool = False

    def margin(self) -> float:
        """A part of what LoRA learns at the same rate, or at its own best; zero for a claim to be ahead."""
        if not self.has_margin:
            return 0.0
        lora = runs_at(self.task, LORA, self.share)
        return MARGIN * float((lora["base"] - lora["loss"]).mean())

    def test(self) -> dict[str, Any]:
        """The row of the table: mean difference, one-sided 95 % upper bound, margin and p."""
        one, other = (_value(runs_at(self.task, name, self.share), self.value) for name in (self.arm, self.other))
        differences = (one - other).reindex(SEEDS)
        margin = self.margin()
        row = {"hypothesis": self.hypothesis, "task": self.task, "claim": self.text(), "margin": margin}
        if not np.isfinite(differences).all() or not np.isfinite(margin):
            return row | {"mean": np.nan, "upper": np.nan, "p": 1.0, "seeds": int(np.isfinite(differences).sum())}
        test = stats.ttest_1samp(differences, margin, alternative="less")
        upper = test.confidence_interval(0.95).high
        return row | {"mean": differences.mean(), "upper": upper, "p": test.pvalue, "seeds": len(differences)}

    def text(self) -> str:
        """The claim in words."""
        where = "at R" if self.share == 1 else "each at its own best rate"
        if self.value == "forgotten":
            return f"{self.arm} forgets less than {self.other}, {where}"
        return f"{self.arm} is {'not behind' if self.has_margin else 'ahead of'} {self.other}, {where}"


def _value(runs: pd.DataFrame, value: str) -> pd.Series:
    return runs[list(OTHER)].mean(axis=1) if value == "forgotten" else runs[value]


def claims() -> list[Claim]:
    """The claims of H1, H1b, H3 and H4; each hypothesis has Holm's adjustment of its own."""
    tasks = list(TASKS)
    return [
        *(Claim("H1", task, FISHER, LORA, has_margin=True) for task in tasks),
        *(Claim("H1b", task, FISHER, other) for task in tasks for other in ("random", "wc")),
        *(Claim("H3", task, FISHER, other, "forgotten", None) for task in TEXT_TASKS for other in ("random", "wc")),
        *(Claim("H3", task, FISHER, LORA, share=None, has_margin=True) for task in TEXT_TASKS),
        *(Claim("H4", task, CAPTURED, FISHER) for task in tasks),
    ]


def hypotheses() -> pd.DataFrame:
    """Each claim with its test; p adjusted by Holm within its hypothesis."""
    table = pd.DataFrame([claim.test() for claim in claims()])
    return table.assign(holm=table.groupby("hypothesis", group_keys=False)["p"].apply(holm_adjusted))


def best_rates(resamples: int = 2000) -> pd.DataFrame:
    """H2: the best rate of each arm on each task, and how often it is within a factor of two of LoRA's.

    The seeds that ran at all rates are resampled with replacement, the same for both arms.
    """
    draws = np.random.default_rng(0).integers(len(FEWER), size=(resamples, len(FEWER)))
    rows = []
    for task in TASKS:
        best = {}
        for name in ARMS:
            losses = losses_by_share(task, name)
            if losses is not None:
                best[name] = losses.to_numpy()[draws].mean(1).argmin(1)
                near = np.abs(best[name] - best[LORA]) <= 1 if LORA in best else np.array([np.nan])
                share = float(losses.mean().idxmin())
                row = {"task": task, "arm": name, "share": share, "rate": share * known_rate(TASKS[task])}
                rows.append(row | {"within_two": near.mean()})
    return pd.DataFrame(rows, columns=["task", "arm", "share", "rate", "within_two"])


def means() -> pd.DataFrame:
    """Every arm at every rate: means over the seeds, spread, forgetting, and how many runs diverged."""
    runs = test_runs().assign(forgotten=lambda table: table[list(OTHER)].mean(axis=1))
    finite = runs[~runs["diverged"]]
    keys = ["task", "arm", "share", "rate"]
    groups = finite.groupby(keys, sort=False)
    table = groups.agg(
        loss=("loss", "mean"), deviation=("loss", "std"), **{text: (text, "mean") for text in OTHER},
        parameters=("parameters", "mean"), base=("base", "mean"),
    )  # fmt: skip
    counts = runs.groupby(keys, sort=False).agg(seeds=("seed", "size"), diverged=("diverged", "sum"))
    table = counts.join(table).reset_index()
    order = {name: n for n, name in enumerate([*ARMS, "tlora-paper"])}
    return table.sort_values(["task", "arm", "share"], key=lambda c: c.map(order) if c.name == "arm" else c)


def decision() -> pd.DataFrame:
    """What settles the recipe, one row for each arm with a frozen `A`, the lowest mean first.

    By task the loss at R minus LoRA's of the same seed, as a part of what LoRA learns there on average; ``mean`` is
    over the tasks, ``behind`` its difference from the lowest, and ``error`` the standard error of that over seeds.
    """
    gaps: dict[str, pd.DataFrame] = {name: pd.DataFrame(index=SEEDS) for name in ARMS if name != LORA}
    for task in TASKS:
        lora = runs_at(task, LORA, 1.0)
        learned = (lora["base"] - lora["loss"]).mean()
        for name, table in gaps.items():
            table[task] = (runs_at(task, name, 1.0)["loss"] - lora["loss"]).reindex(SEEDS) / learned
    by_seed = pd.DataFrame({name: table.mean(axis=1, skipna=False) for name, table in gaps.items()})
    behind = by_seed.sub(by_seed[by_seed.mean().idxmin()], axis=0)
    table = pd.DataFrame({name: table.mean() for name, table in gaps.items()}).T
    return table.assign(mean=by_seed.mean(), behind=behind.mean(), error=behind.sem()).sort_values("mean")


# --- On the page ---


def decision_table() -> str:
    """The arms with a frozen `A` by what the recipe is chosen by."""
    lines = [
        [arm, *(f"{100 * row[column]:+.1f} %" for column in (*TASKS, "mean")),
         f"{100 * row['behind']:.1f} ± {100 * row['error']:.1f}" if row["error"] else ""]
        for arm, row in decision().iterrows()
    ]  # fmt: skip
    return markdown(["arm", *TASKS, "mean", "behind the first, points ± standard error"], lines)


def hypotheses_table() -> str:
    """The hypotheses and their results."""
    lines = []
    for row in hypotheses().itertuples():
        verdict = (
            f"{row.seeds} of {len(SEEDS)} seeds" if np.isnan(row.mean) else f"{row.mean:+.3f} (< {row.upper:+.3f})"
        )
        margin = f"{row.margin:.3f}" if row.margin > 0 else ""
        holds = "holds" if row.holm < 0.05 else "not shown"
        lines.append([row.hypothesis, row.task, row.claim, verdict, margin, f"{row.holm:.2g}", holds])
    heads = ["", "task", "claim", "difference, nats (95 % bound)", "margin", "p (Holm)", ""]
    return markdown(heads, lines)


def rates_table() -> str:
    """The best rate of each arm on each task."""
    lines = [
        [row.task, row.arm, f"{row.rate:g}", f"{row.share:g}", f"{100 * row.within_two:.0f} %"]
        for row in best_rates().itertuples()
    ]
    return markdown(["task", "arm", "best rate", "of R", "resamples within a factor of two of LoRA's"], lines)


def means_table() -> str:
    """Every arm at every rate of every held-out task."""
    lines = []
    for row in means().itertuples():
        forgotten = [f"{getattr(row, text):+.3f}" if np.isfinite(getattr(row, text)) else "" for text in OTHER]
        runs = f"{row.seeds}" + (f", {row.diverged} diverged" if row.diverged else "")
        loss = f"{row.loss:.3f} ± {row.deviation:.3f}"
        trained = f"{row.parameters / 1e6:.3f}M"
        lines.append([row.task, row.arm, f"{row.rate:g} ({row.share:g} R)", trained, runs, loss, *forgotten])
    heads = ["task", "arm", "rate", "trained", "seeds", "test loss", *(f"forgotten: {text}" for text in OTHER)]
    return markdown(heads, lines)


BLOCKS = {"decision": decision_table, "hypotheses": hypotheses_table, "rates": rates_table, "means": means_table}
"""Tables on the page, by their titles."""


@style.styled
def draw_rates(table: pd.DataFrame) -> Figure:
    """A panel for each task: the mean test loss by learning rate, a line for each arm."""
    tasks = list(dict.fromkeys(table["task"]))
    figure, panels = plt.subplots(1, len(tasks), figsize=(3.3 * len(tasks), 3.9), squeeze=False, layout="constrained")
    looks = list(zip(ARMS, style.colors(len(ARMS)), style.markers(len(ARMS)), strict=True))
    for ax, task in zip(panels[0], tasks, strict=True):
        mine = table[table["task"] == task]
        for place, (name, color, marker) in enumerate(looks):
            line = mine[mine["arm"] == name].sort_values("share")
            width = 2.2 if name == FISHER else 1.2
            shares = line["share"] * 1.03 ** (place - len(looks) / 2)  # side by side where the losses are alike
            ax.errorbar(
                shares, line["loss"], yerr=line["deviation"], color=color, marker=marker, linewidth=width,
                elinewidth=0.8, label=name,
            )  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_xticks(SHARES, [f"{share:g} R" for share in SHARES])
        ax.set_xlabel(f"learning rate; R = {known_rate(TASKS[task]):g}")
        style.guide_lines(ax)
        style.headline(ax, f"{task}: {finding(task)}")
    panels[0][0].set_ylabel("test loss, nats")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ARMS))
    return figure


def digest() -> str:
    """Identifies the numbers in the picture."""
    return digest_text(means().to_csv(index=False, float_format="%.6g"))


def finding(task: str) -> str:
    """In a few words, how `fisher` compares with LoRA at R."""
    difference = float((runs_at(task, FISHER, 1.0)["loss"] - runs_at(task, LORA, 1.0)["loss"]).mean())
    return f"{FISHER} {difference:+.2f} at R" if np.isfinite(difference) else f"{FISHER} not run yet"


def main() -> None:
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="held-out tasks to run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--table", action="store_true", help="run nothing; make the tables and the picture of the store"
    )
    arguments = parser.parse_args()
    if not arguments.table:
        for part in arguments.only:
            test_runs.cache_clear()
            run_all(plan(part, arguments.tasks), arguments.workers, torch.set_num_threads)
        return
    save_figure(draw_rates(means()), PICTURE, digest())
    publish(PAGE, "directions", BLOCKS)


if __name__ == "__main__":
    main()
