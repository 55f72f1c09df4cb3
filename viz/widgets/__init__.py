"""Widgets: every decision of the method, to be turned and looked at in a notebook."""

from viz.widgets.alignment_explorer import AlignmentExplorer, AlignmentState
from viz.widgets.allocation_explorer import AllocationExplorer, AllocationState
from viz.widgets.spectrum_explorer import SpectrumExplorer, SpectrumReading, SpectrumState
from viz.widgets.training_monitor import MonitorState, TrainingMonitor

__all__ = [
    "AlignmentExplorer",
    "AlignmentState",
    "AllocationExplorer",
    "AllocationState",
    "MonitorState",
    "SpectrumExplorer",
    "SpectrumReading",
    "SpectrumState",
    "TrainingMonitor",
]
