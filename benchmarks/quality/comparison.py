"""The tables and pictures of the first comparison of methods, from its runs.

    python -m benchmarks.quality.comparison
    tlora compare --store benchmarks/results/comparison.jsonl --list

Its runs are of the first protocol, which was unfair to some methods (docs/results/pilot.md says how): none are
added. The pilot, `benchmarks.quality.pilot`, is of the protocol that `tlora.compare` has now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.methods import METHODS
from benchmarks.lab.plot import plot_differences, plot_rate_ranges
from benchmarks.lab.store import Store
from benchmarks.lab.summary import CONDITION, BaselineRank
from tlora.comparison.interval import mean_squares
from tlora.recipes import RECIPES, Recipe

STORE = Path("benchmarks/results/comparison.jsonl")
PAGE = Path("docs/results/first_comparison.md")
PICTURES = {view: Path(f"docs/comparison_{view}.png") for view in ("differences", "rates")}
BEGIN, END = "<!-- comparison: python -m benchmarks.quality.comparison -->", "<!-- end of comparison -->"
SEEDS = (0, 1, 2)
CURVES = (("lora", 8), ("tlora", 8))
"""Whose rates were run with three seeds: how wide the range of good ones is, one run a rate does not say."""
ASTRAY = ("pissa", "tlora+")
"""Of whose runs some went astray at the rate that was chosen: they would be all the spread there is."""
CEILING = "full"
"""No adapter, but what one could come to: how far adapters lie apart, it does not say."""
SHARES = (0.01, 0.05)
"""Of the best value, within which a rate is a good one."""
REFERENCE = 8
"""Rank of LoRA that the others are compared with, whatever theirs."""
LORA = ("lora", REFERENCE)


# A method that trains B alone has at rank 8 about the parameters of LoRA at 4, at rank 16 those of LoRA at 8.
COMMON = ("lora", "tlora", "tlora-trained", "tlora-paper", "lora-fa", "pissa", CEILING)
PEERS = tuple(method for method in METHODS if method not in COMMON)
# The paper's ablation: the start, the ranks and the scales, each switched off. Without the start, A is random: trained,
# which is plain LoRA where ranks and scales are off as well, or frozen, which tells the directions from the freezing.
STARTS: dict[str, dict[str, Any]] = {
    "lora": {"task_subspaces": None, "attach": {"freeze_a": False}},
    "random and frozen": {"task_subspaces": None},
    "tlora-paper": {"attach": RECIPES["tlora-paper"].attach},
    "tlora": {},
}
PARTS = {"ranks and scales": (True, True), "ranks": (True, False), "scales": (False, True), "neither": (False, False)}
COMPLETE = {"lora": "neither", "tlora-paper": "ranks and scales", "tlora": "ranks and scales"}


def ablated(start: str, parts: str) -> str:
    """The method that has these parts, by its name in the store."""
    return start if COMPLETE.get(start) == parts else f"{start} with {parts}"


ABLATIONS = {
    name: Recipe(name, allocate={"adapt_ranks": ranks, "adapt_scales": scales}, **arguments)
    for start, arguments in STARTS.items()
    for parts, (ranks, scales) in PARTS.items()
    if (name := ablated(start, parts)) not in METHODS
}
# Other directions in place of W C's, everything else as in `tlora`.
KINDS = {
    name: Recipe(name, calibrate={"gradient": True} if kind == "g" else {}, task_subspaces={"kind": kind})
    for kind in ("g", "c", "w", "wc_half", "random")
    for name in [f"tlora of kind {kind}"]
}
TRIED = ABLATIONS | KINDS
"""What is no method of the comparison but takes one apart."""
HELD_OUT = {"letter_counting", "syllogism", "imdb"}
"""Tasks on which no recipe was chosen."""


def whole(
    comparison: Comparison, baseline_rank: BaselineRank = REFERENCE, baseline: str = "lora", **options: Any
) -> pd.DataFrame:
    """The summary, less what has not been run with three seeds; runs that failed are runs."""
    summary = comparison.summary(baseline, baseline_rank=baseline_rank, **options)
    runs = comparison.runs.query("best_rate").groupby(list(CONDITION)).size()
    summary = summary.assign(runs=[runs.get(place, 0) for place in _places(summary)])
    return summary[summary["runs"] >= len(SEEDS)]


def _places(rows: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(rows[list(CONDITION)].itertuples(index=False, name=None))


def _no_ablations(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[~rows["method"].isin(TRIED)]


def tables(comparison: Comparison) -> dict[str, str]:
    """The tables of docs/results/first_comparison.md in Markdown, by their titles."""
    summary = whole(comparison)
    shown = _no_ablations(summary)
    losses = whole(comparison, metric="loss").set_index(list(CONDITION))["value"]
    found = {
        f"Better than LoRA of rank {REFERENCE} by": overview(shown),
        "Every method, rank and task": _alike(shown, -losses, flat_ranges(comparison)),
    }
    sized = _no_ablations(as_large(whole(comparison, baseline_rank="nearest")))
    found["Beside LoRA of another rank, with as many trained parameters"] = _sized(sized)
    if summary["method"].isin(ABLATIONS).any():
        found["The ablation: starts, ranks and scales, each switched off"] = ablation(-losses)
    if summary["method"].isin(KINDS).any():
        found["The ablation: other directions for `A`, better than `tlora` by"] = directions(comparison)
    found["How far methods lie apart, and runs of one method"] = spread(comparison)
    found["Learning rates from which to which the mean of three runs is near its best"] = steady(comparison)
    return {title: text for title, text in found.items() if len(text.splitlines()) > 2}


def written(comparison: Comparison) -> str:
    """The tables as they are on the page: the first to be seen, the others to be opened."""
    (_, first), *others = tables(comparison).items()
    folded = [f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>" for title, text in others]
    return "\n\n".join([first, *folded])


def overview(summary: pd.DataFrame, first: tuple[str, int] = LORA) -> str:
    """What the first method, the baseline, measured, and by how much each other is better: one column a task."""
    tasks = sorted(set(zip(summary["model"], summary["task"], strict=True)), key=lambda at: (at[1] in HELD_OUT, *at))
    heads = [f"{task} (held out)" if task in HELD_OUT else task for _, task in tasks]
    lines = [f"| | rank | trained | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    rows = {(row.model, row.task, row.method, row.rank): row for row in summary.itertuples()}
    methods = {(row.method, row.rank) for row in rows.values()}
    for method in sorted(methods, key=lambda method: (method != first, *_order(*method))):
        found = {task: rows[*task, *method] for task in tasks if (*task, *method) in rows}
        sizes = {task: rows[*task, *first].trainable_parameters for task in found if (*task, *first) in rows}
        shares = [found[task].trainable_parameters / size for task, size in sizes.items()]
        cells = [_cell(found[task], first) if task in found else "" for task in tasks]
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


def _cell(row: Any, first: tuple[str, int]) -> str:
    if (row.method, row.rank) == first:
        return f"{-row.value:.3f}" if "loss" in row.metric else f"{100 * row.value:.1f} %"
    if pd.isna(row.difference):
        return ""
    found = _signed(row, row.difference)
    if not pd.isna(row.difference_low):
        found += f" ± {_signed(row, (row.difference_high - row.difference_low) / 2)[1:]}"
    return f"**{found}**" if row.difference_low > 0 or row.difference_high < 0 else found


def flat_ranges(comparison: Comparison, share: float = SHARES[0]) -> dict[tuple[Any, ...], str]:
    """From which rate to which a method is within a share of its best, marked where the search ended there."""
    flat, found = comparison.flatness(share), {}
    for place, row in zip(_places(flat), flat.itertuples(), strict=True):
        below, above = ("≤ " if "low" in row.edge else ""), ("≥ " if "high" in row.edge else "")
        found[place] = f"{below}{row.lowest:g} to {above}{row.highest:g}"
    return found


def as_large(nearest: pd.DataFrame) -> pd.DataFrame:
    """What another rank of LoRA than the reference has the parameters of, within a quarter."""
    here = ["task", "model"]
    sizes = nearest[nearest["method"] == "lora"].set_index([*here, "rank"])["trainable_parameters"].to_dict()
    rows = nearest[
        nearest["difference"].notna() & (nearest["baseline_rank"] != REFERENCE) & (nearest["method"] != "lora")
    ]
    theirs = rows[[*here, "baseline_rank"]].apply(tuple, axis=1).map(sizes)
    return rows[(rows["trainable_parameters"] / theirs).between(0.8, 1.25)]


def _alike(summary: pd.DataFrame, losses: pd.Series, ranges: dict[tuple[Any, ...], str]) -> str:
    lines = [
        "| task | method | rank | trained | rate (within 1 %) | runs | test "
        f"| better than LoRA of rank {REFERENCE} by |",
        "|---" * 8 + "|",
    ]
    for row in _ordered(summary):
        place = tuple(getattr(row, name) for name in CONDITION)
        failed = f", {row.runs - row.seeds} failed" if row.seeds < row.runs else ""
        measured = "" if "loss" in row.metric else f"{row.metric} {100 * row.value:.1f} %, "
        rate = f"{row.learning_rate:g} ({ranges[place]})"
        lines.append(
            f"| {row.task} | {row.method} | {row.rank} | {_count(row)} | {rate} | {row.runs}{failed} | "
            f"{measured}loss {losses[place]:.3f} | {difference(row)} |"
        )
    return "\n".join(lines)


def _sized(summary: pd.DataFrame) -> str:
    lines = ["| task | method | rank | trained | LoRA of as many | better than it by |", "|---" * 6 + "|"]
    for row in _ordered(summary):
        as_many = f"rank {row.baseline_rank:g}"
        lines.append(f"| {row.task} | {row.method} | {row.rank} | {_count(row)} | {as_many} | {difference(row)} |")
    return "\n".join(lines)


def ablation(losses: pd.Series) -> str:
    """Test loss by what is by sensitivity (columns) and where A starts from (rows)."""
    (task,) = {place[0] for place in losses.index if place[2] in ABLATIONS}
    found = {(method, rank): value for (place, _, method, rank), value in losses.items() if place == task}
    lines = [f"| test loss on {task} | {' | '.join(PARTS)} |", "|---" * (1 + len(PARTS)) + "|"]
    for start in STARTS:
        names = [ablated(start, parts) for parts in PARTS]
        values = [f"{found[name, 8]:.3f}" if (name, 8) in found else "" for name in names]
        lines.append(f"| {start} | {' | '.join(values)} |")
    return "\n".join(lines)


def directions(comparison: Comparison) -> str:
    """`tlora`, and the same with `A` along the directions of another kind."""
    summary = whole(comparison, baseline="tlora")
    tasks = set(summary.loc[summary["method"].isin(KINDS), "task"])
    first = ("tlora", REFERENCE)
    known = summary["method"].isin(KINDS) | (summary["method"].eq(first[0]) & summary["rank"].eq(first[1]))
    return overview(summary[known & summary["task"].isin(tasks)], first)


def spread(comparison: Comparison) -> str:
    """Standard deviations of methods and of runs at the reference rank, from a two-way layout of methods and seeds."""
    runs = _no_ablations(comparison.runs.query("best_rate and rank == @REFERENCE and seed in @SEEDS"))
    runs = runs[~runs["method"].isin((*ASTRAY, CEILING))]
    left_out = f"adapters of rank {REFERENCE} but {' and '.join(ASTRAY)}"
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


def steady(comparison: Comparison) -> str:
    """Between which rates the mean of the searches is near its best, where both were searched with all seeds."""
    near = [flat_ranges(comparison, share) for share in SHARES]
    flat = comparison.flatness()
    places = _places(flat[flat["seeds"] >= len(SEEDS)])
    heads = [f"{method}, within {100 * share:g} %" for share in SHARES for method, _ in CURVES]
    lines = [f"| task | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for task, model in dict.fromkeys(place[:2] for place in places):
        if all((task, model, *method) in places for method in CURVES):
            cells = [each[task, model, *method] for each in near for method in CURVES]
            lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ordered(rows: pd.DataFrame) -> list[Any]:
    return list(rows.sort_values(["model", "task", "rank", "value"], ascending=[True, True, True, False]).itertuples())


def _count(row: Any) -> str:
    return f"{row.trainable_parameters:,.0f}"


def difference(row: Any) -> str:
    """A difference with its interval; nothing for the baseline itself."""
    if pd.isna(row.difference):
        return ""
    found = [_signed(row, value) for value in (row.difference, row.difference_low, row.difference_high)]
    return found[0] if pd.isna(row.difference_low) else f"{found[0]} ({found[1]} to {found[2]})"


def _signed(row: Any, difference: float) -> str:
    """Nats, or points of a hundred."""
    factor, digits = (1, 3) if "loss" in row.metric else (100, 1)
    return f"{round(factor * difference, digits) + 0.0:+.{digits}f}"  # no zero with a minus


def digest(comparison: Comparison) -> str:
    """What tells the picture of one store from that of another."""
    return hashed(whole(comparison).to_csv(index=False, float_format="%.6g"))


def hashed(text: str) -> str:
    """What tells one text from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finished(comparison: Comparison) -> Comparison:
    """What has been run with every seed, for the picture: what is not finished has not failed."""
    places = set(_places(_no_ablations(whole(comparison))))
    records = Store(STORE).read()
    return Comparison.from_records([r for r in records if tuple(r["key"][name] for name in CONDITION) in places])


def between(begin: str, end: str, block: str, text: str) -> str:
    """The text of a page with a block in place of what is between two marks."""
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{block}\n\n{end}{rest.split(end)[1]}"


def filled(text: str, name: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """The text of a page with the tables of a program here, by their titles, each between its marks."""
    for title, table in blocks.items():
        begin = f"<!-- {name}, {title}: python -m benchmarks.quality.{name} --table -->"
        text = between(begin, f"<!-- end of {name}, {title} -->", table(), text)
    return text


def publish(page: Path | None, name: str, blocks: Mapping[str, Callable[[], str]]) -> None:
    """Put tables on their page, where they have one, and print them; each is made once."""
    once = {title: cache(table) for title, table in blocks.items()}
    if page is not None:
        page.write_text(filled(page.read_text(), name, once))
    print(*(f"{title}\n{table()}\n" for title, table in once.items()), sep="\n")


def save(figure: Figure, path: Path, of: str) -> None:
    """Write a picture, with what tells of which numbers it is: `digest` of a store, or `hashed`."""
    figure.savefig(path, dpi=110, metadata={"Description": of})


def write() -> None:
    """Put the table and the pictures that the store makes in place."""
    comparison = Comparison.read(STORE)
    PAGE.write_text(between(BEGIN, END, written(comparison), PAGE.read_text()))
    runs = finished(comparison)
    save(plot_differences(runs, baseline_rank=REFERENCE), PICTURES["differences"], digest(comparison))
    save(plot_rate_ranges(runs), PICTURES["rates"], digest(comparison))


if __name__ == "__main__":
    write()
