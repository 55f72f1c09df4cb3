"""Sections on what was measured before training: data, spectra, alignment, sensitivity."""

from __future__ import annotations

import pandas as pd

from tlora.allocation.stability import ranking_stability
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.numerics.statistics import gini
from tlora.subspaces.alignment import Alignment
from tlora.subspaces.gradient_capture import GradientCapture
from viz import style
from viz.reports import formatting
from viz.reports.components import Cell, Column, Interval, Part, Section, Table, Text, bar, facts, table
from viz.reports.contents import Findings
from viz.reports.rendering import alignment_picture, sensitivity_picture, spectrum_pictures

TOP = 15
"""Modules that are listed before the reader asks for all."""

MODULE = Column("module", "module")


def data(found: Findings) -> Section:
    """What went in."""
    about = "What the adapter was made for and what it was made from."
    calibrated = found.calibrated
    values = {"base model": found.model, "task": found.task}
    if calibrated and calibrated.samples:
        values["calibration"] = formatting.several(calibrated.samples, "sample")
        tokens = found.calibration_recipe.get("tokens", "")
        values["tokens that count"] = {"all": "all real ones", "labels": "those that are trained on"}.get(tokens, "")
    if found.run and found.run.meta.samples:
        values["training"] = formatting.several(found.run.meta.samples, "sample")
    return Section("data", "Data", about, [facts("Model and data", values | _options(found))])


def _options(found: Findings) -> dict[str, str]:
    """What else was asked for on the command line."""
    options = found.run.meta.recipe.get("data", {}) if found.run else {}
    shown = {
        name: value for name, value in options.items() if value is not None and name not in ("task", "train_samples")
    }
    return {formatting.worded(name): f"{v:,}" if isinstance(v, int) else str(v) for name, v in shown.items()}


def spectra(found: Findings) -> Section:
    """How many directions of their inputs the modules use."""
    about = (
        "Each module reads vectors; on the samples of the task they lie close to a few directions. The effective rank "
        "(participation ratio of the eigenvalues of the input covariance) counts these directions."
    )
    spectrum = found.spectrum
    missing = f'calibration.spectrum().save("{found.folder}/tlora/spectrum")'
    parts: list[Part] = []
    if spectrum is not None:
        frame = spectrum.to_frame()
        parts = [*spectrum_pictures(spectrum), _spectra_by_projection(frame), _spectra_by_module(spectrum, frame)]
    return Section("spectra", "Spectra", about, parts, missing)


SPECTRUM_COLUMNS = [
    Column("dimension", "dimensions", formatting.whole),
    Column("effective_rank", "effective rank", formatting.number),
    Column("rank_90", "directions for 90 %", formatting.whole),
    Column("rank_99", "for 99 %", formatting.whole),
    Column("top_share", "share of the first", formatting.percent),
]


def _spectra_by_projection(frame: pd.DataFrame) -> Table:
    keys = [column.key for column in SPECTRUM_COLUMNS]
    rows = frame.groupby("projection", sort=False)[keys].median().reset_index()
    return table(rows, "By projection, medians over layers", [Column("projection", "projection"), *SPECTRUM_COLUMNS])


def _spectra_by_module(spectrum: Spectrum, frame: pd.DataFrame) -> Table:
    caption = f"All {formatting.several(len(spectrum.names), 'module')}"
    return table(frame, caption, [MODULE, *SPECTRUM_COLUMNS], folded=True)


def alignment(found: Findings) -> Section:
    """Whether subspaces agree, and what they hold."""
    about = (
        "How alike two subspaces are (overlap: 1 the same, 0 orthogonal), how much of the layers' response a subspace "
        "holds, and which part of the true gradient an adapter with a frozen A can follow."
    )
    missing = f'tlora.align(subspaces, other_subspaces, rank=8).save("{found.folder}/tlora/alignment")'
    parts: list[Part] = []
    if found.alignment is not None:
        parts += [alignment_picture(found.alignment), _overlaps(found.alignment)]
    if found.capture is not None:
        parts += [alignment_picture(found.capture), _captured_gradient(found.capture)]
    return Section("alignment", "Alignment", about, parts, missing)


def _overlaps(alignment: Alignment) -> Table:
    keys = ["overlap", "random", "first_angle", "median_angle", "last_angle"]
    rows = alignment.to_frame().groupby("projection", sort=False)[keys].mean().reset_index()
    columns = [
        Column("projection", "projection"),
        Column("overlap", "overlap", bar),
        Column("random", "by chance", formatting.percent),
        Column("first_angle", "smallest angle, degrees", formatting.number),
        Column("median_angle", "median", formatting.number),
        Column("last_angle", "largest", formatting.number),
    ]
    one, other = alignment.sides
    return table(rows, f"Overlap of {one} and {other} at rank {alignment.rank}, means over layers", columns)


def _captured_gradient(capture: GradientCapture) -> Table:
    frame = capture.overall()
    columns = [
        Column("kind", "subspace"),
        Column("rank", "rank", formatting.whole),
        Column("captured", "of the squared gradient", bar),
        Column("interval", f"{formatting.percent(capture.confidence)} interval"),
        Column("random", "by chance", formatting.percent),
        Column("best", "at best", formatting.percent),
    ]
    samples = formatting.several(len(capture.total), "held-out sample")
    return table(frame.assign(interval=_spans(frame)), f"Gradient captured, {samples}", columns)


def _spans(frame: pd.DataFrame, low: str = "low", high: str = "high", form: str = "") -> list[str]:
    """The interval of each row in words."""
    say = form.format if form else formatting.percent
    return [f"{say(a)} to {say(b)}" for a, b in zip(frame[low], frame[high], strict=True)]


def sensitivity(found: Findings) -> Section:
    """Which modules the loss is most sensitive to, and how sure that is."""
    about = (
        "How sensitive the loss is to each module: the mean of |weight × gradient| over its weights, averaged over "
        "samples. Ranks and scales follow these scores."
    )
    scores = found.sensitivity
    missing = f'calibration.sensitivity.save("{found.folder}/tlora/sensitivity")'
    if scores is None:
        return Section("sensitivity", "Sensitivity", about, missing=missing)
    frame, note = _with_intervals(scores)
    parts: list[Part] = [sensitivity_picture(scores), Text(f"{_concentration(frame)} {note}")]
    top = frame.nlargest(TOP, "score", keep="first")
    top = top.assign(place=top.apply(style.place, axis=1))
    caption = f"The {len(top)} most sensitive of {formatting.several(len(frame), 'module')}"
    parts.append(table(top, caption, [Column("place", "module"), *_score_columns(top)]))
    parts += [_scores_by_projection(scores), *_stability(scores)]
    if len(frame) > len(top):
        parts.append(table(frame, f"All {len(frame):,} modules", [MODULE, *_score_columns(frame)], folded=True))
    return Section("sensitivity", "Sensitivity", about, parts, missing)


def _with_intervals(scores: Sensitivity) -> tuple[pd.DataFrame, str]:
    """The table of scores with bootstrap intervals, and what is to be said of them: that there are none, and why."""
    frame = scores.to_frame()
    try:
        intervals = scores.intervals()
    except ValueError as error:  # a single sample, or scores of zero
        return frame.assign(low=frame["score"], high=frame["score"]), f"No intervals: {error}."
    samples = formatting.several(len(scores.per_sample), "sample")
    note = f"Intervals are percentile bootstrap intervals over {samples}, each of one score alone."
    return frame.assign(low=intervals["low"], high=intervals["high"]), note


def _score_columns(frame: pd.DataFrame) -> list[Column]:
    furthest = frame["high"].max() or 1.0

    def interval(module: str) -> Cell:
        row = rows.loc[module]
        low, value, high = (row[key] / furthest for key in ("low", "score", "high"))
        return Interval(low, value, high, f"{formatting.number(row['low'])} to {formatting.number(row['high'])}")

    rows = frame.set_index("module")
    spread = [Column("module", "95 % interval", interval)] if (frame["low"] < frame["high"]).any() else []
    return [
        Column("score", "score, nats", formatting.number),
        *spread,
        Column("share", "of the total", formatting.percent),
    ]


def _concentration(frame: pd.DataFrame) -> str:
    if not frame["score"].any():
        return "Every score is zero."
    tenth = max(1, len(frame) // 10)
    held = frame["share"].nlargest(tenth).sum()
    return (
        f"{formatting.percent(tenth / len(frame))} of the modules ({tenth:,}) hold {formatting.percent(held)} of the "
        f"total; the Gini coefficient is {formatting.number(gini(frame['score'].to_numpy()))} (0: all alike)."
    )


def _scores_by_projection(scores: Sensitivity) -> Table:
    columns = [
        Column("projection", "projection"),
        Column("modules", "modules", formatting.whole),
        Column("score", "mean score, nats", formatting.number),
        Column("share", "of the total", bar),
    ]
    return table(scores.by_projection(), "By projection", columns)


def _stability(scores: Sensitivity) -> list[Part]:
    """Whether fewer samples would have ranked the modules alike."""
    if len(scores.per_sample) < 3 or len(scores.names) < 2 or not any(scores.scores.values()):
        return []
    stability = ranking_stability(scores)
    frame = stability.to_frame()
    frame = frame.assign(interval=_spans(frame, "kendall_low", "kendall_high", "{:.2f}"))
    columns = [
        Column("samples", "samples", formatting.whole),
        Column("kendall", "Kendall's tau", lambda tau: f"{tau:.2f}"),
        Column("interval", f"{formatting.percent(stability.confidence)} interval"),
        Column("overlap", f"of the top {stability.top} found again", bar),
    ]
    caption = f"Would fewer samples have done? Rankings by subsamples against that by all {len(scores.per_sample)}"
    return [table(frame, caption, columns)]
