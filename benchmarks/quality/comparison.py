"""The tables and pictures of the first comparison of methods, from its runs.

    python -m benchmarks.quality.comparison
    python -m benchmarks.lab --store benchmarks/results/comparison.jsonl --list

Its runs follow the first protocol, which was unfair to some methods (docs/results/pilot.md explains how); none will be
added. The pilot, `benchmarks.quality.pilot`, follows the protocol of `benchmarks.lab` today.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.methods import METHODS
from benchmarks.lab.plot import plot_differences, plot_rate_ranges
from benchmarks.lab.store import Store
from benchmarks.lab.summary import CONDITION, BaselineRank
from benchmarks.quality.pages import digest_text, replace_block, save_figure
from tlora.comparison.interval import mean_squares
from tlora.recipes import RECIPES, Recipe

STORE = Path("benchmarks/results/comparison.jsonl")
PAGE = Path("docs/results/first_comparison.md")
PICTURES = {view: Path(f"docs/comparison_{view}.png") for view in ("differences", "rates")}
BEGIN, END = "<!-- comparison: python -m benchmarks.quality.comparison -->", "<!-- end of comparison -->"
SEEDS = (0, 1, 2)
CURVES = (("lora", 8), ("score", 8))
"""Methods whose rates were searched with three seeds: one run a rate does not show how wide the good range is."""
UNSTABLE = ("pissa", "tlora+")
"""Methods some of whose runs diverged at the chosen rate: these runs would dominate the spread."""
CEILING = "full"
"""Full fine-tuning, the best that an adapter could reach; left out of the spread of adapters."""
SHARES = (0.01, 0.05)
"""Parts of the best value within which a rate is a good one."""
REFERENCE = 8
"""Rank of LoRA that all others are compared with."""
LORA = ("lora", REFERENCE)


# A method that trains B alone has at rank 8 about the parameters of LoRA at 4, at rank 16 those of LoRA at 8.
COMMON = ("lora", "score", "score-trained", "tlora-paper", "lora-fa", "pissa", CEILING)
PEERS = tuple(method for method in METHODS if method not in COMMON and method not in RECIPES)
# The paper's ablation: the start, the ranks and the scales, each switched off. Without the start, A is random: trained
# (plain LoRA if ranks and scales are off too), or frozen (which separates the directions from the freezing).
STARTS: dict[str, dict[str, Any]] = {
    "lora": {"task_subspaces": None, "attach": {"freeze_a": False}},
    "random and frozen": {"task_subspaces": None},
    "tlora-paper": {"attach": RECIPES["tlora-paper"].attach},
    "score": {},
}
PARTS = {"ranks and scales": (True, True), "ranks": (True, False), "scales": (False, True), "neither": (False, False)}
COMPLETE = {"lora": "neither", "tlora-paper": "ranks and scales", "score": "ranks and scales"}


def ablation_name(start: str, parts: str) -> str:
    """The name in the store of the method with these parts."""
    return start if COMPLETE.get(start) == parts else f"{start} with {parts}"


ABLATIONS = {
    name: Recipe(name, allocate={"adapt_ranks": ranks, "adapt_scales": scales}, **arguments)
    for start, arguments in STARTS.items()
    for parts, (ranks, scales) in PARTS.items()
    if (name := ablation_name(start, parts)) != start
}
# Other directions in place of W C's, everything else as in `score`.
KINDS = {
    name: Recipe(name, task_subspaces={"kind": kind})
    for kind in ("g", "c", "w", "wc_half", "random")
    for name in [f"score of kind {kind}"]
}
VARIANTS = ABLATIONS | KINDS
"""Variants of the recipes, which only the ablation tables show."""
HELD_OUT = {"letter_counting", "syllogism", "imdb"}
"""Tasks on which no recipe was developed."""


def finished_summary(
    comparison: Comparison, baseline_rank: BaselineRank = REFERENCE, baseline: str = "lora", **options: Any
) -> pd.DataFrame:
    """The summary of the conditions that were run with three seeds; failed runs count."""
    summary = comparison.summary(baseline, baseline_rank=baseline_rank, **options)
    runs = comparison.runs.query("best_rate").groupby(list(CONDITION)).size()
    summary = summary.assign(runs=[runs.get(place, 0) for place in _conditions(summary)])
    return summary[summary["runs"] >= len(SEEDS)]


def _conditions(rows: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(rows[list(CONDITION)].itertuples(index=False, name=None))


def _without_variants(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[~rows["method"].isin(VARIANTS)]


def tables(comparison: Comparison) -> dict[str, str]:
    """The tables of docs/results/first_comparison.md in Markdown, by their titles."""
    summary = finished_summary(comparison)
    shown = _without_variants(summary)
    losses = finished_summary(comparison, metric="loss").set_index(list(CONDITION))["value"]
    by_title = {
        f"Better than LoRA of rank {REFERENCE} by": overview_table(shown),
        "Every method, rank and task": _full_table(shown, -losses, flat_ranges(comparison)),
    }
    sized = _without_variants(equal_size_rows(finished_summary(comparison, baseline_rank="nearest")))
    by_title["Compared with LoRA of another rank and as many trained parameters"] = _size_table(sized)
    if summary["method"].isin(ABLATIONS).any():
        by_title["The ablation: starts, ranks and scales, each switched off"] = ablation_table(-losses)
    if summary["method"].isin(KINDS).any():
        by_title["The ablation: other directions for `A`, better than `score` by"] = directions_table(comparison)
    by_title["Spread of methods, and of runs of one method"] = spread_table(comparison)
    by_title["Learning rates at which the mean of three runs is near its best"] = rate_range_table(comparison)
    return {title: text for title, text in by_title.items() if len(text.splitlines()) > 2}


def render(comparison: Comparison) -> str:
    """The tables as they are on the page: the first visible, the others folded."""
    (_, first), *others = tables(comparison).items()
    folded = [f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>" for title, text in others]
    return "\n\n".join([first, *folded])


def overview_table(summary: pd.DataFrame, first: tuple[str, int] = LORA) -> str:
    """The values of the first method, the baseline, and by how much each other is better: one column a task."""
    tasks = sorted(set(zip(summary["model"], summary["task"], strict=True)), key=lambda at: (at[1] in HELD_OUT, *at))
    heads = [f"{task} (held out)" if task in HELD_OUT else task for _, task in tasks]
    lines = [f"| | rank | trained | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    rows = {(row.model, row.task, row.method, row.rank): row for row in summary.itertuples()}
    methods = {(row.method, row.rank) for row in rows.values()}
    for method in sorted(methods, key=lambda method: (method != first, *_order(*method))):
        mine = {task: rows[*task, *method] for task in tasks if (*task, *method) in rows}
        sizes = {task: rows[*task, *first].trainable_parameters for task in mine if (*task, *first) in rows}
        shares = [mine[task].trainable_parameters / size for task, size in sizes.items()]
        cells = [_format_cell(mine[task], first) if task in mine else "" for task in tasks]
        lines.append(f"| {method[0]} | {method[1]} | {_percent(shares)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _order(method: str, rank: int) -> tuple[int, str, int]:
    known = [*COMMON, *PEERS]
    return known.index(method) if method in known else len(known), method, rank


def _percent(shares: list[float]) -> str:
    if not shares:
        return ""
    ends = dict.fromkeys(f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{' to '.join(ends)} %"


def _format_cell(row: Any, first: tuple[str, int]) -> str:
    if (row.method, row.rank) == first:
        return f"{-row.value:.3f}" if "loss" in row.metric else f"{100 * row.value:.1f} %"
    if pd.isna(row.difference):
        return ""
    text = _format_signed(row, row.difference)
    if not pd.isna(row.difference_low):
        text += f" ± {_format_signed(row, (row.difference_high - row.difference_low) / 2)[1:]}"
    return f"**{text}**" if row.difference_low > 0 or row.difference_high < 0 else text


def flat_ranges(comparison: Comparison, share: float = SHARES[0]) -> dict[tuple[Any, ...], str]:
    """The range of rates within a share of the best, marked if the search ended there."""
    flat, ranges = comparison.flatness(share), {}
    for place, row in zip(_conditions(flat), flat.itertuples(), strict=True):
        below, above = ("≤ " if "low" in row.edge else ""), ("≥ " if "high" in row.edge else "")
        ranges[place] = f"{below}{row.lowest:g} to {above}{row.highest:g}"
    return ranges


def equal_size_rows(nearest: pd.DataFrame) -> pd.DataFrame:
    """The rows whose trained parameters are within a quarter of those of LoRA at another rank than the reference."""
    here = ["task", "model"]
    sizes = nearest[nearest["method"] == "lora"].set_index([*here, "rank"])["trainable_parameters"].to_dict()
    rows = nearest[
        nearest["difference"].notna() & (nearest["baseline_rank"] != REFERENCE) & (nearest["method"] != "lora")
    ]
    theirs = rows[[*here, "baseline_rank"]].apply(tuple, axis=1).map(sizes)
    return rows[(rows["trainable_parameters"] / theirs).between(0.8, 1.25)]


def _full_table(summary: pd.DataFrame, losses: pd.Series, ranges: dict[tuple[Any, ...], str]) -> str:
    lines = [
        "| task | method | rank | trained | rate (within 1 %) | runs | test "
        f"| better than LoRA of rank {REFERENCE} by |",
        "|---" * 8 + "|",
    ]
    for row in _sort_rows(summary):
        place = tuple(getattr(row, name) for name in CONDITION)
        failed = f", {row.runs - row.seeds} failed" if row.seeds < row.runs else ""
        measured = "" if "loss" in row.metric else f"{row.metric} {100 * row.value:.1f} %, "
        rate = f"{row.learning_rate:g} ({ranges[place]})"
        lines.append(
            f"| {row.task} | {row.method} | {row.rank} | {_count(row)} | {rate} | {row.runs}{failed} | "
            f"{measured}loss {losses[place]:.3f} | {format_difference(row)} |"
        )
    return "\n".join(lines)


def _size_table(summary: pd.DataFrame) -> str:
    lines = ["| task | method | rank | trained | LoRA of as many | better than it by |", "|---" * 6 + "|"]
    for row in _sort_rows(summary):
        as_many = f"rank {row.baseline_rank:g}"
        lines.append(
            f"| {row.task} | {row.method} | {row.rank} | {_count(row)} | {as_many} | {format_difference(row)} |"
        )
    return "\n".join(lines)


def ablation_table(losses: pd.Series) -> str:
    """Test loss by the parts that sensitivity decides (columns) and the start of A (rows)."""
    (task,) = {place[0] for place in losses.index if place[2] in ABLATIONS}
    by_method = {(method, rank): value for (place, _, method, rank), value in losses.items() if place == task}
    lines = [f"| test loss on {task} | {' | '.join(PARTS)} |", "|---" * (1 + len(PARTS)) + "|"]
    for start in STARTS:
        names = [ablation_name(start, parts) for parts in PARTS]
        values = [f"{by_method[name, 8]:.3f}" if (name, 8) in by_method else "" for name in names]
        lines.append(f"| {start} | {' | '.join(values)} |")
    return "\n".join(lines)


def directions_table(comparison: Comparison) -> str:
    """`score`, and the same with `A` along the directions of another kind."""
    summary = finished_summary(comparison, baseline="score")
    tasks = set(summary.loc[summary["method"].isin(KINDS), "task"])
    first = ("score", REFERENCE)
    known = summary["method"].isin(KINDS) | (summary["method"].eq(first[0]) & summary["rank"].eq(first[1]))
    return overview_table(summary[known & summary["task"].isin(tasks)], first)


def spread_table(comparison: Comparison) -> str:
    """Standard deviations of methods and of runs at the reference rank, from a two-way layout of methods and seeds."""
    runs = _without_variants(comparison.runs.query("best_rate and rank == @REFERENCE and seed in @SEEDS"))
    runs = runs[~runs["method"].isin((*UNSTABLE, CEILING))]
    left_out = f"adapters of rank {REFERENCE} but {' and '.join(UNSTABLE)}"
    lines = [f"| task | {left_out} | standard deviation between them | between runs of one |", "|---" * 4 + "|"]
    for task, rows in runs.groupby("task", sort=False):
        values = rows.pivot(index="seed", columns="method", values="value").dropna(axis="columns")
        if len(values) < len(SEEDS) or values.shape[1] < 3:
            continue
        (_, methods, of_runs), _ = mean_squares(values.to_numpy())
        of_methods = max(0.0, methods - of_runs) / len(values)
        unit, factor, digits = ("", 1, 3) if "loss" in rows["metric"].iloc[0] else (" points", 100, 1)
        cells = [f"{factor * part**0.5:.{digits}f}{unit}" for part in (of_methods, of_runs)]
        lines.append(f"| {task} | {values.shape[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rate_range_table(comparison: Comparison) -> str:
    """The rates at which the mean of the searches is near its best, for tasks searched with all seeds."""
    near = [flat_ranges(comparison, share) for share in SHARES]
    flat = comparison.flatness()
    places = _conditions(flat[flat["seeds"] >= len(SEEDS)])
    heads = [f"{method}, within {100 * share:g} %" for share in SHARES for method, _ in CURVES]
    lines = [f"| task | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for task, model in dict.fromkeys(place[:2] for place in places):
        if all((task, model, *method) in places for method in CURVES):
            cells = [each[task, model, *method] for each in near for method in CURVES]
            lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _sort_rows(rows: pd.DataFrame) -> list[Any]:
    return list(rows.sort_values(["model", "task", "rank", "value"], ascending=[True, True, True, False]).itertuples())


def _count(row: Any) -> str:
    return f"{row.trainable_parameters:,.0f}"


def format_difference(row: Any) -> str:
    """A difference with its interval; empty for the baseline itself."""
    if pd.isna(row.difference):
        return ""
    numbers = [_format_signed(row, value) for value in (row.difference, row.difference_low, row.difference_high)]
    return numbers[0] if pd.isna(row.difference_low) else f"{numbers[0]} ({numbers[1]} to {numbers[2]})"


def _format_signed(row: Any, difference: float) -> str:
    """Nats, or percentage points."""
    factor, digits = (1, 3) if "loss" in row.metric else (100, 1)
    return f"{round(factor * difference, digits) + 0.0:+.{digits}f}"  # no zero with a minus


def digest(comparison: Comparison) -> str:
    """Identifies the numbers that a picture shows."""
    return digest_text(finished_summary(comparison).to_csv(index=False, float_format="%.6g"))


def finished_runs(comparison: Comparison) -> Comparison:
    """The runs of the conditions that were run with every seed."""
    places = set(_conditions(_without_variants(finished_summary(comparison))))
    records = Store(STORE).read()
    return Comparison.from_records([r for r in records if tuple(r["key"][name] for name in CONDITION) in places])


def main() -> None:
    """Write the tables and the pictures of the store to their places."""
    comparison = Comparison.read(STORE)
    PAGE.write_text(replace_block(BEGIN, END, render(comparison), PAGE.read_text()))
    runs = finished_runs(comparison)
    save_figure(plot_differences(runs, baseline_rank=REFERENCE), PICTURES["differences"], digest(comparison))
    save_figure(plot_rate_ranges(runs), PICTURES["rates"], digest(comparison))


if __name__ == "__main__":
    main()
