"""Panel "Alignment": how far two subspaces of each module point the same way, and the gradient that each captures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from tlora.subspaces.alignment import Alignment, align
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.text import count_text
from viz.widgets.panels.parts import (
    Column,
    Part,
    chart,
    intervals,
    line,
    panel,
    percent,
    shorten_all,
    table,
    whole,
)  # fmt: skip
from viz.widgets.results import Results

ABOUT = (
    "Overlap: the mean squared cosine of the principal angles between the first directions of two subspaces; 1 the "
    "same space, 0 orthogonal."
)
CAPTURE = "Which part of the gradient of held-out samples an adapter with a frozen A can follow, by kind and rank."


def align_pairs(sides: Mapping[str, Subspaces]) -> list[Alignment]:
    """Every pair of these subspaces, at the largest rank that all of them have."""
    if len(sides) < 2:
        return []
    rank = min(len(rows) for side in sides.values() for rows in side.bases.values())
    pairs = combinations(sides.items(), 2)
    return [align(one, other, rank, labels=(a, b)) for (a, one), (b, other) in pairs]


def alignment_panel(alignments: Sequence[Alignment], names: Sequence[str]) -> list[dict[str, Any]]:
    """Overlaps of every pair by module and rank, and what chance gives."""
    pairs = [pair_values(alignment, names) for alignment in alignments]
    return panel("alignment", "Alignment", ABOUT, [{"kind": "alignment", "pairs": pairs}] if pairs else [])


def pair_values(alignment: Alignment, names: Sequence[str]) -> dict[str, Any]:
    """What the browser draws of one pair: overlaps by rank, chance at rank 1, and three angles, in degrees."""
    degrees = {name: np.rad2deg(angles.numpy()) for name, angles in alignment.angles.items()}
    ends = {name: [values[0], np.median(values), values[-1]] for name, values in degrees.items()}
    return {
        "sides": list(alignment.sides),
        "rank": alignment.rank,
        "overlaps": [shorten_all(alignment.overlaps.get(name, ())) for name in names],
        "chance": [
            shorten_all([1 / alignment.targets[name].d_in] if name in alignment.targets else []) for name in names
        ],
        "angles": [shorten_all(ends.get(name, ())) for name in names],
    }


def capture_panel(results: Results) -> list[dict[str, Any]]:
    """Captured gradient of all modules together, by kind and rank, between chance and the best possible."""
    capture = results.capture
    if capture is None:
        return []
    frame = capture.overall()
    lines = [
        line(str(kind), rows["rank"], rows["captured"], dots=True) for kind, rows in frame.groupby("kind", sort=False)
    ]
    for label, column in (("best possible", "best"), ("by chance", "random")):
        means = frame.groupby("rank")[column].first()
        lines.append(line(label, means.index, means, dash=True))
    columns: list[Column] = [
        ("kind", "subspace", str),
        ("rank", "rank", whole),
        ("captured", "of the squared gradient", percent),
        ("interval", f"{percent(capture.confidence)} interval", str),
        ("random", "by chance", percent),
        ("best", "at best", percent),
    ]
    samples = count_text(len(capture.total), "held-out sample")
    axes = {"label": "rank", "log": True}, {"label": "share of the squared gradient", "percent": True}
    frame = frame.assign(interval=intervals(frame, "low", "high", percent))
    parts: list[Part] = [
        chart("Gradient captured", lines, *axes),
        table(frame, f"Gradient captured, {samples}", columns),
    ]
    return panel("capture", "Gradient", CAPTURE, parts)
