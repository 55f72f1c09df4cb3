"""The panels of the workbench, in the order of their tabs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from viz.widgets.panels.alignment import AlignmentPanel
from viz.widgets.panels.allocation import AllocationPanel
from viz.widgets.panels.answer_table import AnswerTablePanel
from viz.widgets.panels.attribution import AttributionPanel
from viz.widgets.panels.capture import CapturePanel
from viz.widgets.panels.data import DataPanel
from viz.widgets.panels.effects import EffectsPanel
from viz.widgets.panels.panel import Context, Panel
from viz.widgets.panels.rank_use import RankUsePanel
from viz.widgets.panels.reads import ReadsPanel
from viz.widgets.panels.reproduce import ReproducePanel
from viz.widgets.panels.sensitivity import SensitivityPanel
from viz.widgets.panels.spectra import SpectraPanel
from viz.widgets.panels.training import TrainingPanel

PANELS: tuple[type[Panel], ...] = (
    DataPanel, SpectraPanel, AlignmentPanel, CapturePanel, ReadsPanel, SensitivityPanel, AllocationPanel, TrainingPanel,
    RankUsePanel, AnswerTablePanel, AttributionPanel, EffectsPanel, ReproducePanel,
)  # fmt: skip


def make_panels(context: Context, earlier: Iterable[Panel] = ()) -> list[Panel]:
    """The panels whose results are known, among them those ``earlier`` ones of the same results that have no texts."""
    made = {type(panel): panel for panel in earlier if not panel.has_texts()}
    return [made.get(panel) or panel(context) for panel in PANELS if panel.is_possible(context)]


def panel_values(panels: Iterable[Panel]) -> list[dict[str, Any]]:
    """What the browser draws of the panels that have something to show, as JSON values."""
    return [panel.values for panel in panels if panel.values is not None]
