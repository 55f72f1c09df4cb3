"""Pages to hand on: a report of a run as one HTML file, and the model card of its adapter."""

from viz.pages.card import card
from viz.pages.report import report

__all__ = ["card", "report"]
