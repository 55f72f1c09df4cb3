"""Picture of a Comparison: what methods are worth, how they take to learning rates, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tlora.compared import Comparison
from tlora.paired import PLACE, BaselineRank
from viz import style

MARKERS = "osD^vPX*<>ph8d"
WIDTH = 8.8
"""Inches of a figure."""
LINE = 0.215
"""Inches of a method's line in the first panel."""
ABOVE, BELOW, GAP, RIGHT = 0.78, 0.52, 0.78, 0.12
"""Inches: for headlines, for labels below, between panels for labels beside, and at the right."""


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
) -> Figure:
    """Methods with their intervals, their learning-rate curves, and quality by parameters; a row for each task.

    Parameters
    ----------
    comparison : Comparison
        From ``tlora.compare(...)`` or ``tlora.Comparison.read(...)``.
    tasks : str or sequence of str, optional
        Tasks to draw; all by default.
    ranks : int or sequence of int, optional
        Ranks to draw; all by default.
    baseline, baseline_rank, metric
        As for `tlora.Comparison.summary`: what the intervals of differences, on the left, are from; the metric of the
        first and last panels.

    Returns
    -------
    matplotlib.figure.Figure
        A row of three panels for each model and task. Left, the value on the test split, best first; thin lines are
        its interval, thick ones that of the difference from the baseline, which is the dashed line: a thick line that
        does not touch it says that the two differ. Middle, values on the validation split by learning rate, the chosen
        one marked, the curve thick where it is within 1 % of the best; crosses where training failed. Right, the
        value by trained parameters.

    Raises
    ------
    TypeError
        If ``comparison`` is no Comparison.
    ValueError
        If nothing is left to draw.
    """
    style.check_type(comparison, Comparison, "the result of tlora.compare(...) or tlora.Comparison.read(store)")
    whole = comparison.summary(baseline, baseline_rank=baseline_rank, metric=metric)
    summary = _selected(whole, tasks, ranks)
    summary = summary.merge(comparison.flatness()[[*PLACE, "lowest", "highest"]], how="left", on=list(PLACE))
    runs = _selected(comparison.to_frame(), tasks, ranks)
    looks = _looks(list(dict.fromkeys(comparison.to_frame()["method"])))
    name = baseline or "lora"
    places = [(place, _order(rows)) for place, rows in summary.groupby(["model", "task"], sort=False)]
    figure, panels = _panels([rows for _, rows in places])
    for ((model, task), rows), (left, middle, right) in zip(places, panels, strict=True):
        here = runs[(runs["model"] == model) & (runs["task"] == task)]
        baselines = whole[(whole["model"] == model) & (whole["task"] == task) & (whole["method"] == name)]
        _draw_values(left, rows, looks, _references(rows, baselines))
        _draw_rates(middle, here, rows, looks)
        _draw_sizes(right, rows, looks)
        _headlines((left, middle, right), rows, name, baseline_rank)
    return figure


def _panels(tables: list[pd.DataFrame]) -> tuple[Figure, list[list[Axes]]]:
    """A figure with three panels for each table, as high as its methods need."""
    heights = [max(1.7, LINE * len(rows)) for rows in tables]
    height = sum(heights) + (ABOVE + BELOW) * len(heights)
    figure = plt.figure(figsize=(WIDTH, height))
    left = 0.25 + 0.072 * max(rows["label"].str.len().max() for rows in tables)
    widths = (WIDTH - left - RIGHT - 2 * GAP) * np.array([0.36, 0.32, 0.32])
    panels, top = [], height
    for rows_height in heights:
        top -= ABOVE + rows_height
        starts = left + np.array([0, widths[0] + GAP, widths[0] + widths[1] + 2 * GAP])
        boxes = [
            (x / WIDTH, top / height, w / WIDTH, rows_height / height) for x, w in zip(starts, widths, strict=True)
        ]
        panels.append([figure.add_axes(box) for box in boxes])
        top -= BELOW
    return figure, panels


def _selected(frame: pd.DataFrame, tasks: Any, ranks: Any) -> pd.DataFrame:
    for column, chosen in (("task", tasks), ("rank", ranks)):
        if chosen is not None:
            wanted = [chosen] if isinstance(chosen, str | int) else list(chosen)
            if not frame[column].isin(wanted).any():
                there = ", ".join(map(str, dict.fromkeys(frame[column])))
                raise ValueError(f"nothing was compared with {column} {wanted}: choose from {there}")
            frame = frame[frame[column].isin(wanted)]
    return frame


def _looks(methods: list[str]) -> dict[str, Look]:
    count = len(methods)
    markers = islice(cycle(MARKERS), count)
    return dict(zip(methods, map(Look, style.colours(count), style.dashes(count), markers), strict=True))


def _order(rows: pd.DataFrame) -> pd.DataFrame:
    """Best first, what has no value last, with what each is called: its rank too where there are several."""
    rows = rows.sort_values("value", ascending=False, kind="stable", na_position="last").reset_index(drop=True)
    several = rows["rank"].nunique() > 1
    labels = [f"{row.method}, {row.rank}" if several else row.method for row in rows.itertuples()]
    return rows.assign(label=labels)


def _draw_values(ax: Axes, rows: pd.DataFrame, looks: dict[str, Look], references: pd.Series) -> None:
    """A line a method: its value, its interval, and that of its difference from the baseline."""
    for place, row in rows.iterrows():
        look = looks[row["method"]]
        if np.isnan(row["value"]):
            ax.annotate("failed", (0.5, place), xycoords=("axes fraction", "data"), va="center", color="0.5")
            continue
        ax.plot((row["low"], row["high"]), (place, place), color=look.colour, linewidth=1, alpha=0.6)
        if not np.isnan(row["difference"]):
            origin = row["value"] - row["difference"]
            ends = (origin + row["difference_low"], origin + row["difference_high"])
            ax.plot(ends, (place, place), color=look.colour, linewidth=3.5, alpha=0.75, solid_capstyle="butt")
        ax.plot(row["value"], place, look.marker, color=look.colour, markeredgecolor="white", markersize=7, zorder=3)
    for value in references:
        ax.axvline(value, color="0.35", linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(range(len(rows)), rows["label"])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(_worded(rows))
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _references(rows: pd.DataFrame, baselines: pd.DataFrame) -> pd.Series:
    """Values of the baseline at the ranks that something is held against; at those drawn, where nothing is."""
    used = baselines["rank"].isin(rows["baseline_rank"])
    return baselines[used if used.any() else baselines["rank"].isin(rows["rank"])]["value"].dropna()


def _draw_rates(ax: Axes, runs: pd.DataFrame, rows: pd.DataFrame, looks: dict[str, Look]) -> None:
    """Curves over the learning rate, on the validation split, thick where they are flat."""
    searched = runs[runs["split"] == "validation"]
    several = rows["rank"].nunique() > 1
    for _, row in rows[::-1].iterrows():
        look = looks[row["method"]]
        mine = searched[(searched["method"] == row["method"]) & (searched["rank"] == row["rank"])]
        curve = mine[mine["status"] == "done"].groupby("learning_rate")["value"].mean()
        thin = several and row["rank"] != rows["rank"].max()
        ax.plot(
            curve.index, curve, look.dashes, color=look.colour, linewidth=0.8 if thin else 1.4, marker=look.marker,
            markersize=3, label=row["label"],
        )  # fmt: skip
        steady = curve[(curve.index >= row["lowest"]) & (curve.index <= row["highest"])]
        ax.plot(steady.index, steady, color=look.colour, linewidth=5, alpha=0.35, solid_capstyle="round")
        if row["learning_rate"] in curve.index:
            chosen = (row["learning_rate"], curve[row["learning_rate"]])
            ax.plot(*chosen, look.marker, color=look.colour, markeredgecolor="white", markersize=7, zorder=3)
        broken = mine.loc[mine["status"] != "done", "learning_rate"]
        ax.plot(
            broken, np.zeros(len(broken)), "x", color=look.colour, transform=ax.get_xaxis_transform(), clip_on=False,
            markersize=5,
        )  # fmt: skip
    _log_axis(ax, "learning rate", _thinned(searched["learning_rate"], 4), _rate)
    ax.set_ylabel(f"{next(filter(None, searched['metric']), 'value').replace('_', ' ')}, validation")
    if not (searched["status"] == "done").any():
        ax.set_yticks([])
    style.guide_lines(ax)


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
    """The least and the largest of the values, and as many between them as have room."""
    there = np.unique(values.dropna())
    return [
        float(there[i]) for i in np.unique(np.linspace(0, len(there) - 1, min(most, len(there))).round().astype(int))
    ]


def _rate(value: float) -> str:
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def _size(value: float) -> str:
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:g}"


def _worded(rows: pd.DataFrame) -> str:
    names = [name.replace("_", " ") for name in dict.fromkeys(rows["metric"]) if name]
    return f"{names[0] if names else 'value'}, test"


def _headlines(panels: tuple[Axes, Axes, Axes], rows: pd.DataFrame, baseline: str, baseline_rank: BaselineRank) -> None:
    """What each panel shows, and above the first where it comes from and what came out."""
    first = rows.iloc[0]
    at = {"same": "at equal rank", "nearest": "at equal parameters"}.get(
        str(baseline_rank), f"from rank {baseline_rank}"
    )
    where = style.sentence(first["model"].rpartition("/")[2], first["task"].rpartition("/")[2])
    style.headline(panels[0], _finding(rows, baseline), where)
    style.headline(panels[1], "Learning rates", "thick: within 1 %, x: failed")
    style.headline(panels[2], "Quality by parameters", f"differences: {at}")


def _finding(rows: pd.DataFrame, baseline: str) -> str:
    """How many methods are ahead of the baseline, and how many behind, beyond the interval."""
    others = rows.dropna(subset=["difference"])
    if not len(others):
        return f"Best: {rows.iloc[0]['label']}" if np.isfinite(rows.iloc[0]["value"]) else "No method could be trained"
    ahead, behind = int((others["difference_low"] > 0).sum()), int((others["difference_high"] < 0).sum())
    return f"{ahead} above {baseline} (dashed), {behind} below, of {len(others)}"
