"""Picture of a Comparison: what methods are worth, how they take to learning rates, and what they cost."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from numbers import Integral
from typing import Any, Literal, NamedTuple, get_args

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.lr_search import averaged, searches
from benchmarks.lab.summary import CONDITION, BaselineRank
from tlora.utils.validation import check_type, one_of
from viz import style

MARKERS = "osD^vP*<>ph8dH"
"""None like the cross of what failed."""
WIDTH = 8.8
"""Inches of a figure."""
LINE = 0.215
"""Inches of a method's line in the first panel."""
GAP, RIGHT, EDGE = 0.78, 0.12, 0.08
"""Inches: between panels for labels beside, at the right, and between two rows of panels."""
STROKES: dict[str, Any] = {
    "solid": "-", "dashed": "--", "dotted": ":", "dash-dotted": "-.", "long-dashed": (0, (9, 3)),
    "dash-dot-dotted": (0, (5, 1.5, 1, 1.5, 1, 1.5)), "sparsely dotted": (0, (1, 4)), "dash-dash-dotted":
    (0, (5, 1.5, 5, 1.5, 1, 1.5)),
}  # fmt: skip
"""Of the curves of a rank, where there are several: that of most methods is solid."""
LONGEST = 42
"""Characters of a method's name beside the first panel."""


FULL = "full"
"""Full fine-tuning, which has no rank."""
View = Literal["tasks", "differences", "rates", "forgetting"]


class Look(NamedTuple):
    """How a method looks in all panels."""

    colour: tuple[float, float, float]
    dashes: str
    marker: str


@style.styled
def plot_comparison(
    comparison: Comparison,
    *,
    tasks: str | Sequence[str] | None = None,
    ranks: int | Sequence[int] | None = None,
    baseline: str | None = None,
    baseline_rank: BaselineRank = "same",
    metric: str | None = None,
    view: View = "tasks",
) -> Figure:
    """Methods with their intervals, their learning-rate curves, and quality by parameters; a row for each task.

    For many tasks, one panel for all of them: how far methods are from the baseline, or how many learning rates they
    tolerate. Where other texts were measured too, what was learned beside what was forgotten.

    Parameters
    ----------
    comparison : Comparison
        From ``compare(...)`` or ``Comparison.read(...)``.
    tasks : str or sequence of str, optional
        Tasks to draw; all by default.
    ranks : int or sequence of int, optional
        Ranks to draw; all by default.
    baseline, baseline_rank, metric
        As for `Comparison.summary`: what the intervals of differences, on the left, are from; the metric of the
        first and last panels.
    view : {"tasks", "differences", "rates", "forgetting"}
        What is drawn.

    Returns
    -------
    matplotlib.figure.Figure
        ``"tasks"``: a row of three panels for each model and task. Left, the value on the test
        split, best first; thin lines are its interval, thick ones that of the difference from the baseline (none where
        there are fewer than two runs, or two that both have). Dashed, for each method, is its value less its difference
        in the runs that both have: a thick line that does not touch it says that the two differ. Middle, losses on the
        validation split by learning rate, the chosen one marked, the curve thick where it is within 1 % of the best;
        crosses where training failed (means, where there are several searches with all rates).
        Where there are several ranks, each has a line style. Right, the value by trained parameters.

        ``"differences"``: a line for each method and rank, a point for each task: the difference from the baseline in
        half-widths of its 95 % interval, so that what lies outside of the grey band differs.

        ``"rates"``: by which factor the learning rate may change before the validation loss is 1 % higher than at best;
        hollow where the search ended first.

        ``"forgetting"``: a panel for each model and task, a line for each method and rank through its learning rates on
        the test split: the loss beside the increase of the loss on other texts, means over seeds, the range of the
        seeds in thin lines. The lower, the more was learned; the further left, the less was forgotten.

    Raises
    ------
    TypeError
        If ``comparison`` is not a Comparison.
    ValueError
        If nothing is left to draw.
    """
    check_type(comparison, Comparison, "the result of compare(...) or Comparison.read(store)")
    one_of("view", view, get_args(View))
    summary = _selected(comparison.summary(baseline, baseline_rank=baseline_rank, metric=metric), tasks, ranks)
    summary = summary.merge(comparison.flatness()[[*CONDITION, "lowest", "highest"]], how="left", on=list(CONDITION))
    runs = _selected(comparison.runs, tasks, ranks)
    name = baseline or "lora"
    if view == "forgetting":
        return _learned_and_forgotten(runs)
    if view != "tasks":
        chosen = comparison.flatness() if view == "rates" else summary
        return _one_panel(_selected(chosen, tasks, ranks), name, view)
    looks = _looks(list(dict.fromkeys(comparison.runs["method"])))
    strokes = _strokes(summary["rank"])
    summary = summary.assign(origin=_origins(summary, name))
    places = [(place, _order(rows)) for place, rows in summary.groupby(["model", "task"], sort=False)]
    figure, panels = _panels([rows for _, rows in places])
    for ((model, task), rows), (left, middle, right) in zip(places, panels, strict=True):
        here = runs[(runs["model"] == model) & (runs["task"] == task)]
        rows = rows.assign(instead=[_instead(here, row) for _, row in rows.iterrows()])
        _draw_values(left, rows, looks)
        failed = _draw_rates(middle, here, rows, looks, strokes)
        _draw_sizes(right, rows, looks)
        where = style.sentence(model.rpartition("/")[2], task.rpartition("/")[2])
        style.headline(left, _finding(rows, name), where)
        told = "validation loss, thick: within\u00a01\u00a0%" + (", x: failed" if failed else "")
        style.headline(middle, "Learning rates", told)
        style.headline(right, "Quality by parameters", "test, higher is better")
    note = style.sentence(_dashed(summary, name, baseline_rank), _told(strokes))
    _make_room(figure, panels, note)
    return figure


def _one_panel(rows: pd.DataFrame, baseline: str, view: View) -> Figure:
    """All tasks in one panel, a line for each method and rank."""
    if view == "differences":
        rows = rows.dropna(subset=["difference_low"])
        half = (rows["difference_high"] - rows["difference_low"]) / 2
        rows = rows.assign(x=rows["difference"] / half, hollow=False)
    else:
        rows = rows.assign(x=2.0 ** rows["doublings"], hollow=rows["edge"] != "")
    if not len(rows):
        raise ValueError("nothing to draw: no method has two runs in common with the baseline")
    rows = rows.assign(place=_places(rows))
    tasks = list(dict.fromkeys(rows["place"]))
    keys = list(dict.fromkeys(zip(rows["method"], rows["rank"], strict=True)))
    labels = _labels(keys)
    figure, ax = plt.subplots(figsize=(7.6, 1.5 + 0.28 * len(keys)), layout="constrained")
    looks = zip(tasks, style.colours(len(tasks)), islice(cycle(MARKERS), len(tasks)), strict=True)
    for n, (task, colour, marker) in enumerate(looks):
        mine = rows[rows["place"] == task]
        places = [keys.index(key) for key in zip(mine["method"], mine["rank"], strict=True)]
        apart = (n - (len(tasks) - 1) / 2) * 0.7 / len(tasks)
        faces = ["white" if hollow else colour for hollow in mine["hollow"]]
        x, y = mine["x"], np.array(places, float)
        if view == "rates":  # whole factors: points that would lie on each other stand side by side
            x = x * 2.0**apart
        else:
            y += apart
        ax.scatter(x, y, 34, faces, marker=marker, edgecolors=[colour], linewidths=1.2, zorder=3)
        ax.plot([], [], marker, color=colour, label=task)
    ax.set_yticks(range(len(keys)), labels, parse_math=False)
    ax.set_ylim(len(keys) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    for place in range(len(keys) - 1):
        ax.axhline(place + 0.5, linewidth=0.6, **style.ink(0.12))
    handles = ax.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(3, len(tasks)), handletextpad=0.3)
    if view == "differences":
        _tell_differences(ax, rows, baseline)
    else:
        _tell_rates(ax, rows)
    return figure


def _tell_differences(ax: Axes, rows: pd.DataFrame, baseline: str) -> None:
    """Band, axis and headline of the differences from the baseline."""
    ax.axvspan(-1, 1, color="0.88", linewidth=0, zorder=0)
    ax.axvline(0, color="0.35", linestyle="--", linewidth=1, zorder=1)
    ax.set_xlabel(f"difference from {baseline}, in half-widths of the difference's 95 % interval; right is better")
    ahead, behind = int((rows["x"] > 1).sum()), int((rows["x"] < -1).sum())
    equal = f"{len(rows) - ahead - behind} of {len(rows)} cannot be told from {baseline}"
    style.headline(ax, f"{equal}; {ahead} ahead, {behind} behind", "test split; grey: cannot be told from chance")


def _tell_rates(ax: Axes, rows: pd.DataFrame) -> None:
    """Axis and headline of the learning rates that do about as well."""
    ax.set_xscale("log", base=2)
    doublings = int(np.log2(max(rows["x"].max(), 1)))
    ax.xaxis.set_major_locator(FixedLocator([2.0**k for k in range(doublings + 1)]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    ax.set_xlabel("highest over lowest of the learning rates within 1 % of the best loss")
    single = int((rows["x"] == 1).sum())
    finding = f"{single} of {len(rows)} have one best learning rate; a factor of 2 costs over 1 %"
    style.headline(ax, finding, "validation split; hollow: at the edge of what was searched, perhaps more")


def _learned_and_forgotten(runs: pd.DataFrame) -> Figure:
    """Loss beside forgetting: a panel for each task, a line for each method and rank, a point for each rate."""
    tested = runs[(runs["split"] == "test") & runs["loss"].notna() & runs["forgetting"].notna()]
    if not len(tested):
        raise ValueError(
            "nothing to draw: no run on the test split has measured other texts; "
            "name some with compare(..., forgetting=)"
        )
    keys = list(dict.fromkeys(zip(tested["method"], tested["rank"], strict=True)))
    looks = dict(zip(keys, _looks([f"{key}" for key in keys]).values(), strict=True))
    places = list(tested.groupby(["model", "task"], sort=False))
    figure, grid = plt.subplots(
        1, len(places), squeeze=False, layout="constrained",
        figsize=(max(WIDTH * 0.75, 4.4 * len(places)), 3.6 + 0.2 * -(-len(keys) // 3)),
    )  # fmt: skip
    for ((model, task), rows), ax in zip(places, grid[0], strict=True):
        for key in keys:
            mine = rows[(rows["method"] == key[0]) & (rows["rank"] == key[1])].groupby("learning_rate")
            means, spread = mine[["forgetting", "loss"]].mean(), mine[["forgetting", "loss"]].agg(["min", "max"])
            look = looks[key]
            ax.plot(
                means["forgetting"], means["loss"], look.dashes, color=look.colour, marker=look.marker, linewidth=1.2,
                markeredgecolor="white", markersize=7, zorder=3,
            )  # fmt: skip
            for rate, mean in means.iterrows():
                ends = spread.loc[rate]
                ax.plot(ends["forgetting"], (mean["loss"],) * 2, color=look.colour, linewidth=0.8, alpha=0.6)
                ax.plot((mean["forgetting"],) * 2, ends["loss"], color=look.colour, linewidth=0.8, alpha=0.6)
        ax.set_xscale("symlog", linthresh=0.1, linscale=0.5)
        ax.xaxis.set_major_locator(FixedLocator([-0.1, 0, 0.1, 0.3, 1, 3, 10]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_xlabel("forgotten of other texts, nats")
        ax.set_ylabel("test loss, nats")
        style.guide_lines(ax)
        style.headline(
            ax,
            "Lower: more learned; further left: less forgotten",
            style.sentence(model.rpartition("/")[2], task.rpartition("/")[2]),
        )
    for look, label in zip(looks.values(), _labels(keys), strict=True):
        grid[0, 0].plot([], [], look.dashes, color=look.colour, marker=look.marker, label=label)
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(3, len(keys)), handletextpad=0.5)
    return figure


def _panels(tables: list[pd.DataFrame]) -> tuple[Figure, list[list[Axes]]]:
    """A figure with three panels for each table, as high as its methods need, one row below the other."""
    heights = [max(1.7, LINE * len(rows)) for rows in tables]
    figure = plt.figure(figsize=(WIDTH, sum(heights)))
    figure.set_layout_engine("none")
    left = 0.25 + 0.072 * max(rows["label"].str.len().max() for rows in tables)
    widths = (WIDTH - left - RIGHT - 2 * GAP) * np.array([0.36, 0.32, 0.32])
    starts = left + np.array([0, widths[0] + GAP, widths[0] + widths[1] + 2 * GAP])
    panels = []
    for height in heights:
        boxes = [(x / WIDTH, 0, w / WIDTH, height / sum(heights)) for x, w in zip(starts, widths, strict=True)]
        panels.append([figure.add_axes(box) for box in boxes])
    return figure, panels


def _make_room(figure: Figure, panels: list[list[Axes]], note: str) -> None:
    """Move the rows of panels apart by what is written above and below them, with a note below all."""
    edge = EDGE / WIDTH
    written = figure.text(edge, 0, "\n".join(textwrap.wrap(note, 140)), fontsize=8.5, color="0.4", parse_math=False)
    figure.canvas.draw()
    rows, height = [], EDGE + (written.get_window_extent().height / figure.dpi + EDGE if note else 0)
    for row in reversed(panels):
        inner = row[0].bbox
        drawn = Bbox.union([box for ax in row if (box := ax.get_tightbbox())])
        below, inside, above = np.array((inner.y0 - drawn.y0, inner.height, drawn.y1 - inner.y1)) / figure.dpi
        rows.append((row, height + below, inside))
        height += below + inside + above + EDGE
    figure.set_size_inches(WIDTH, height)
    written.set_position((edge, EDGE / height))
    for row, bottom, inside in rows:
        for ax in row:
            box = ax.get_position()
            ax.set_position((box.x0, bottom / height, box.width, inside / height))


def _selected(frame: pd.DataFrame, tasks: Any, ranks: Any) -> pd.DataFrame:
    for column, chosen in (("task", tasks), ("rank", ranks)):
        if chosen is not None:
            wanted = [chosen] if isinstance(chosen, str | Integral) else list(chosen)
            there = list(dict.fromkeys(frame[column]))
            missing = [each for each in wanted if each not in there]
            if missing or not wanted:
                raise ValueError(
                    f"nothing was compared with {column} {missing or wanted}: choose from {', '.join(map(str, there))}"
                )
            frame = frame[frame[column].isin(wanted)]
    return frame


def _looks(methods: list[str]) -> dict[str, Look]:
    count = len(methods)
    markers = islice(cycle(MARKERS), count)
    return dict(zip(methods, map(Look, style.colours(count), style.dashes(count), markers), strict=True))


def _strokes(ranks: pd.Series) -> dict[int, str]:
    """A line style for each rank, by its name; none where there is one rank alone."""
    counts = ranks.value_counts()
    ordered = sorted(counts.index, key=lambda rank: (-counts[rank], rank))
    return dict(zip(ordered, cycle(STROKES), strict=False)) if len(ordered) > 1 else {}


def _told(strokes: dict[int, str]) -> str:
    """What the line styles of ranks mean, for the note."""
    told = ", ".join(f"{rank} {strokes[rank]}" for rank in sorted(strokes))
    return style.sentence(f"middle: rank {told}", "right: lines join the ranks of a method") if told else ""


def _order(rows: pd.DataFrame) -> pd.DataFrame:
    """Best first, what has no value last, with what each is called: its rank too where there are several."""
    rows = rows.sort_values("value", ascending=False, kind="stable", na_position="last").reset_index(drop=True)
    return rows.assign(label=_labels(list(zip(rows["method"], rows["rank"], strict=True))))


def _places(rows: pd.DataFrame) -> list[str]:
    """The task of each row, with its model where there are several."""
    tasks = [task.rpartition("/")[2] for task in rows["task"]]
    models = [model.rpartition("/")[2] for model in rows["model"]]
    return [f"{task}, {model}" for task, model in zip(tasks, models, strict=True)] if len(set(models)) > 1 else tasks


def _labels(keys: Sequence[tuple[str, int]]) -> list[str]:
    """Methods in one panel, with their ranks where there are several."""
    several = len({rank for _, rank in keys}) > 1
    return [f"{_cut(method)}, {rank}" if several and method != FULL else _cut(method) for method, rank in keys]


def _cut(name: str) -> str:
    """A name in `LONGEST` characters: of a long one both ends, of which either may tell methods apart."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[1 - LONGEST // 2 :]}"


def _instead(runs: pd.DataFrame, row: pd.Series) -> str:
    """What is written where a method has no value."""
    mine = runs[(runs["method"] == row["method"]) & (runs["rank"] == row["rank"])]
    tested = mine[(mine["split"] == "test") & (mine["learning_rate"] == row["learning_rate"])]
    return "not tested yet" if (mine["status"] == "done").any() and not len(tested) else "failed"


def _origins(rows: pd.DataFrame, baseline: str) -> pd.Series:
    """What the baseline makes of the runs that a method shares with it; NaN where it has none."""
    own = rows["value"].where((rows["method"] == baseline) & rows["difference"].isna())
    return (rows["value"] - rows["difference"]).fillna(own)


def _draw_values(ax: Axes, rows: pd.DataFrame, looks: dict[str, Look]) -> None:
    """A line a method: its value, its interval, that of its difference from the baseline, and the baseline itself."""
    for place, row in rows.iterrows():
        look = looks[row["method"]]
        if np.isnan(row["value"]):
            ax.annotate(
                row["instead"], (0.5, place), xycoords=("axes fraction", "data"), va="center", ha="center", color="0.5"
            )
            continue
        if not np.isnan(row["low"]):
            ax.plot((row["low"], row["high"]), (place, place), color=look.colour, linewidth=1, alpha=0.6)
        if not np.isnan(row["difference_low"]):
            ends = (row["origin"] + row["difference_low"], row["origin"] + row["difference_high"])
            ax.plot(ends, (place, place), color=look.colour, linewidth=3.5, alpha=0.75, solid_capstyle="butt")
        ax.plot(row["value"], place, look.marker, color=look.colour, markeredgecolor="white", markersize=7, zorder=3)
    origins = enumerate(rows["origin"])
    across = [(x, y) for place, x in origins for x, y in ((x, place - 0.5), (x, place + 0.5), (np.nan, place))]
    ax.plot(*zip(*across, strict=True), color="0.35", linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(range(len(rows)), rows["label"], parse_math=False)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"{_worded(rows)}, test")
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _draw_rates(
    ax: Axes, runs: pd.DataFrame, rows: pd.DataFrame, looks: dict[str, Look], strokes: dict[int, str]
) -> bool:
    """Curves over the learning rate, on the validation split, thick where they are flat; says whether any failed."""
    failed = False
    searched = runs[runs["split"] == "validation"]
    means = {place: averaged(curves) for place, curves in searches(runs)}
    for _, row in rows[::-1].iterrows():
        look = looks[row["method"]]
        mean = means.get(tuple(row[list(CONDITION)]), {})
        values = pd.Series({rate: -score for rate, score in sorted(mean.items())}, dtype="float64")
        finite = np.isfinite(values)
        curve, broken = values[finite], values.index[~finite]
        dashes = STROKES[strokes[row["rank"]]] if strokes else look.dashes
        ax.plot(
            curve.index, curve, linestyle=dashes, color=look.colour, linewidth=1.2, marker=look.marker, markersize=3,
            label=row["label"],
        )  # fmt: skip
        steady = curve[(curve.index >= row["lowest"]) & (curve.index <= row["highest"])]
        ax.plot(steady.index, steady, color=look.colour, linewidth=5, alpha=0.35, solid_capstyle="round")
        if row["learning_rate"] in curve.index:
            chosen = (row["learning_rate"], curve[row["learning_rate"]])
            ax.plot(*chosen, look.marker, color=look.colour, markeredgecolor="white", markersize=7, zorder=3)
        failed |= len(broken) > 0
        if len(broken):  # a line without points that is not clipped would take room at the figure's corner
            ax.plot(
                broken, np.zeros(len(broken)), "x", color=look.colour, transform=ax.get_xaxis_transform(),
                clip_on=False, markersize=5,
            )  # fmt: skip
    _log_axis(ax, "learning rate", _thinned(searched["learning_rate"], 4), _rate)
    ax.set_ylabel("loss, nats")
    if not (searched["status"] == "done").any():
        ax.set_yticks([])
    style.guide_lines(ax)
    return failed


def _draw_sizes(ax: Axes, rows: pd.DataFrame, looks: dict[str, Look]) -> None:
    """Value by trained parameters; ranks of a method joined."""
    for method, mine in rows.dropna(subset=["value"]).groupby("method", sort=False):
        look, mine = looks[str(method)], mine.sort_values("trainable_parameters")
        ax.plot(
            mine["trainable_parameters"], mine["value"], look.dashes, color=look.colour, linewidth=0.9,
            marker=look.marker, markeredgecolor="white", markersize=7,
        )  # fmt: skip
    _log_axis(ax, "trained parameters", _thinned(rows["trainable_parameters"], 2), _size)
    ax.set_ylabel(_worded(rows))
    style.guide_lines(ax)


def _log_axis(ax: Axes, label: str, ticks: Sequence[float], text: Callable[[float], str]) -> None:
    """A logarithmic axis with few ticks, at values that there are."""
    ax.set_xscale("log")
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    if len(ticks):
        ax.set_xlim(min(ticks) / 1.4, max(ticks) * 1.4)


def _thinned(values: pd.Series, most: int) -> list[float]:
    """The least and the largest of the values, and those between them that have room on a logarithmic axis."""
    there = [float(value) for value in np.unique(values.dropna())]
    apart = 0.99 * np.log(there[-1] / there[0]) / (most - 1) if there else 0.0
    kept = there[-1:]
    for value in there[:-1]:
        if all(value == there[0] or abs(np.log(value / other)) >= apart for other in kept):
            kept.append(value)
    return sorted(kept)


def _rate(value: float) -> str:
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def _size(value: float) -> str:
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:g}"


def _worded(rows: pd.DataFrame) -> str:
    name = next(filter(None, rows["metric"]), "value").replace("_", " ")
    return f"{name}, nats" if name.endswith("loss") else name


def _dashed(summary: pd.DataFrame, baseline: str, baseline_rank: BaselineRank) -> str:
    """What the dashed line is, for the note, where that takes more words than the name of the baseline."""
    reference = summary["baseline_rank"].fillna(summary["rank"])
    origins = summary.dropna(subset=["origin"]).groupby(["model", "task", reference])["origin"]
    broken = (origins.max() - origins.min() > 1e-6 * origins.max().abs()).any()
    shared = ", in the runs that both have" if broken else ""
    which = {"same": " of equal rank", "nearest": " of about as many parameters"}.get(
        str(baseline_rank), f" of rank {baseline_rank}"
    )
    which = which if summary["rank"].nunique() > 1 or (reference != summary["rank"]).any() else ""
    return f"left: dashed is {baseline}{which}{shared}" if len(origins) and (which or shared) else ""


def _finding(rows: pd.DataFrame, baseline: str) -> str:
    """How many methods are ahead of the baseline, and how many behind, beyond the interval, of those that have one."""
    others = rows.dropna(subset=["difference_low"])
    if not len(others):
        if np.isfinite(rows.iloc[0]["value"]):
            return f"Best: {rows.iloc[0]['label']}"
        return "No method could be trained" if (rows["instead"] == "failed").all() else "Nothing has been tested yet"
    ahead, behind = int((others["difference_low"] > 0).sum()), int((others["difference_high"] < 0).sum())
    return f"{ahead} above {baseline} (dashed), {behind} below, of {len(others)}"
