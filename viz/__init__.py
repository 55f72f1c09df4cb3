"""Pictures of what `tlora` found: one function a stage, drawn from the results' tables.

Each ``plot_x(result, *, ax=None)`` draws on ``ax``, or on a new figure, and returns the axes. None of them
shows or closes a figure, or changes matplotlib's settings.
"""
# ruff: noqa: I001, RUF022  (the order is that of the walk)

from viz.spectrum import plot_spectrum
from viz.sensitivity import plot_sensitivity
from viz.allocation import plot_allocation
from viz.training import plot_training

__all__ = ["plot_spectrum", "plot_sensitivity", "plot_allocation", "plot_training"]
