"""Pictures of what `tlora` found: one function a stage, drawn from the results' tables.

Each ``plot_x(result, *, ax=None)`` draws on ``ax``, or on a new figure, and returns the axes; `plot_comparison`,
of several panels, returns a figure of its own. None of them shows or closes a figure, or changes matplotlib's
settings. The explorers are widgets of the same pictures, the monitor watches training. `report` and `card` make pages
of an adapter's folder.
"""
# ruff: noqa: I001, RUF022  (the order is that of the walk)

from viz.spectrum import plot_spectrum
from viz.sensitivity import plot_sensitivity
from viz.alignment import plot_alignment
from viz.allocation import plot_allocation
from viz.training import plot_training
from viz.comparison import plot_comparison
from viz.widgets import SpectrumExplorer, AlignmentExplorer, AllocationExplorer, TrainingMonitor
from viz.pages import card, report

__all__ = [
    "plot_spectrum",
    "plot_sensitivity",
    "plot_alignment",
    "plot_allocation",
    "plot_training",
    "plot_comparison",
    "SpectrumExplorer",
    "AlignmentExplorer",
    "AllocationExplorer",
    "TrainingMonitor",
    "report",
    "card",
]
