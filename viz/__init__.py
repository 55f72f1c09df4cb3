"""Pictures of what `tlora` found: one function a stage, drawn from the results' tables.

Each ``plot_x(result, *, ax=None)`` draws on ``ax``, or on a new figure, and returns the axes; `plot_comparison`,
of several panels, returns a figure of its own. None of them shows or closes a figure, or changes matplotlib's
settings. The explorers are widgets of the same pictures, the monitor watches training. `report` and `card` make pages
of an adapter's folder.
"""
# ruff: noqa: I001, RUF022  (the order is that of the walk)

from viz.plots.spectrum import plot_spectrum
from viz.plots.sensitivity import plot_sensitivity
from viz.plots.alignment import plot_alignment
from viz.plots.allocation import plot_allocation
from viz.plots.training import plot_training
from viz.plots.comparison import plot_comparison
from viz.widgets.spectrum import SpectrumExplorer
from viz.widgets.alignment import AlignmentExplorer
from viz.widgets.allocation import AllocationExplorer
from viz.widgets.workbench import Workbench, explore
from viz.widgets.training import TrainingMonitor
from viz.reports.model_card import card
from viz.reports.report import report

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
    "Workbench",
    "explore",
    "TrainingMonitor",
    "report",
    "card",
]
