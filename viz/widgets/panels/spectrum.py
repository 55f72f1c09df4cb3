"""Panel "Spectra": how many directions the inputs of each projection use."""

from __future__ import annotations

from typing import Any

from tlora.utils.text import count_text
from viz.widgets.panels.parts import Column, number, panel, percent, table, whole
from viz.widgets.results import Results

ABOUT = (
    "How many directions the inputs of a module use on the samples of the task. The effective rank is the "
    "participation ratio of the eigenvalues of the input covariance."
)
COLUMNS: list[Column] = [
    ("dimension", "dimensions", whole),
    ("effective_rank", "effective rank", number),
    ("rank_90", "directions for 90 %", whole),
    ("rank_99", "for 99 %", whole),
    ("top_share", "share of the first", percent),
]


def spectrum_panel(results: Results) -> list[dict[str, Any]]:
    """Medians by projection, and all modules."""
    if results.spectrum is None:
        return []
    frame = results.spectrum.to_frame()
    keys = [key for key, _, _ in COLUMNS]
    medians = frame.groupby("projection", sort=False)[keys].median().reset_index()
    caption = f"All {count_text(len(frame), 'module')}"
    parts = [
        table(medians, "By projection, medians over layers", [("projection", "projection", str), *COLUMNS]),
        table(frame, caption, [("module", "module", str), *COLUMNS], folded=True),
    ]
    return panel("spectra", "Spectra", ABOUT, parts)
