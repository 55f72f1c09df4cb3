"""Panel "Spectra": how many directions the inputs of each projection use."""

from __future__ import annotations

from tlora.calibration.spectrum import Spectrum
from tlora.utils.text import count_text
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Column, Part, number, percent, table, whole

COLUMNS: list[Column] = [
    ("dimension", "dimensions", whole),
    ("effective_rank", "effective rank", number),
    ("rank_90", "directions for 90 %", whole),
    ("rank_99", "for 99 %", whole),
    ("top_share", "share of the first", percent),
]


class SpectraPanel(Panel):
    """Medians by projection, and all modules."""

    name, title = "spectra", "Spectra"
    stage = "spectra"
    about = (
        "How many directions the inputs of a module use on the samples of the task. The effective rank is the "
        "participation ratio of the eigenvalues of the input covariance."
    )
    needs = ("spectrum",)

    def parts(self) -> list[Part]:
        """A table by projection, and one of all modules."""
        spectrum: Spectrum = self.result
        frame = spectrum.to_frame()
        keys = [key for key, _, _ in COLUMNS]
        medians = frame.groupby("projection", sort=False)[keys].median().reset_index()
        caption = f"All {count_text(len(frame), 'module')}"
        return [
            table(medians, "By projection, medians over layers", [("projection", "projection", str), *COLUMNS]),
            table(frame, caption, [("module", "module", str), *COLUMNS], folded=True),
        ]
