"""Panel "Sensitivity": the modules that the loss is most sensitive to, and how certain that is."""

from __future__ import annotations

import pandas as pd

from tlora.allocation.stability import ranking_stability
from tlora.calibration.sensitivity import Sensitivity
from tlora.numerics.statistics import gini
from tlora.utils.text import count_text
from viz import style
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Column, Part, intervals, number, percent, table, text, whole

TOP = 15
"""Modules that are listed before the reader opens the whole table."""


class SensitivityPanel(Panel):
    """Top modules with intervals, sums by projection, and the stability of the ranking."""

    name, title = "sensitivity", "Sensitivity"
    about = (
        "How sensitive the loss is to each module: the mean of |weight × gradient| over its weights, averaged over "
        "samples. Ranks and scalings follow these scores."
    )
    needs = ("sensitivity",)

    def parts(self) -> list[Part]:
        """Nothing if all scores are zero."""
        scores: Sensitivity = self.result
        if not any(scores.scores.values()):
            return []
        frame, note = scores_with_intervals(scores)
        top = frame.nlargest(TOP, "score", keep="first")
        top = top.assign(place=top.apply(style.place, axis=1))
        columns: list[Column] = [("score", "score, nats", number), ("share", "of the total", percent)]
        if "interval" in frame:
            columns.insert(1, ("interval", "95 % interval", str))
        by_projection: list[Column] = [
            ("projection", "projection", str),
            ("modules", "modules", whole),
            ("score", "mean score, nats", number),
            ("share", "of the total", percent),
        ]
        parts = [
            text(f"{concentration(frame)} {note}"),
            table(
                top,
                f"The {len(top)} most sensitive of {count_text(len(frame), 'module')}",
                [("place", "module", str), *columns],
            ),
            table(scores.by_projection(), "By projection", by_projection),
            *_stability(scores),
        ]
        if len(frame) > len(top):
            columns.insert(0, ("module", "module", str))
            parts.append(table(frame, f"All {len(frame):,} modules", columns, folded=True))
        return parts


def scores_with_intervals(scores: Sensitivity) -> tuple[pd.DataFrame, str]:
    """The table of scores with their bootstrap intervals, and a sentence on how these were made."""
    frame = scores.to_frame()
    if len(scores.per_sample) < 2:
        return frame, "A single sample gives no intervals."
    ends = intervals(scores.intervals(), "low", "high", number)
    samples = count_text(len(scores.per_sample), "sample")
    return frame.assign(interval=ends), f"Intervals are percentile bootstrap intervals over {samples}, one score each."


def concentration(frame: pd.DataFrame) -> str:
    """How much of the total the highest tenth of the modules holds."""
    tenth = max(1, round(len(frame) / 10))
    share = frame["score"].nlargest(tenth).sum() / frame["score"].sum()
    return (
        f"{percent(tenth / len(frame))} of the modules ({tenth:,}) hold {percent(share)} of the total; the Gini "
        f"coefficient is {number(gini(frame['score'].to_numpy()))} (0: all equal)."
    )


def _stability(scores: Sensitivity) -> list[Part]:
    """Whether fewer samples would have ranked the modules alike."""
    if len(scores.per_sample) < 3 or len(scores.names) < 2:
        return []
    frame = ranking_stability(scores)
    frame = frame.assign(interval=intervals(frame, "kendall_low", "kendall_high", "{:.2f}".format))
    columns: list[Column] = [
        ("samples", "samples", whole),
        ("kendall", "Kendall's tau", "{:.2f}".format),
        ("interval", "95 % interval", str),
        ("overlap", f"of the top {frame['top'].iloc[0]} found again", percent),
    ]
    caption = f"Are fewer samples enough? Rankings by subsamples, compared with that by all {len(scores.per_sample)}"
    return [table(frame, caption, columns)]
