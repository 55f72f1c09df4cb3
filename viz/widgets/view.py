"""WorkbenchView: the part in the browser, what stays in it (`about`) and what follows the state (`current`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import anywidget
import traitlets

from tlora.allocation.allocation import Allocation
from tlora.allocation.footprint import TRAINED_PARTS, Footprint
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.subspaces.subspaces import Subspaces
from viz import style
from viz.widgets.base import LOOK, SCRIPT, for_widget
from viz.widgets.map import map_tabs
from viz.widgets.modules import is_of_map, spectra
from viz.widgets.panels import registry
from viz.widgets.panels.allocation import training_bytes
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import shorten, shorten_all
from viz.widgets.results import TEXTS, Results, fields_with
from viz.widgets.stages import ALLOCATION, stage_values
from viz.widgets.state import ALLOCATION_PRESETS, AllocationState, available_presets, control_values

BY_RANK = {
    "captured": "gradient captured", "overlap": "overlap with {}", "neighbors": "overlap, next layers",
}  # fmt: skip
"""Curves of a module over the rank, and what they are called."""


class WorkbenchView(anywidget.AnyWidget):
    """The part in the browser: it draws its traits, and sends requests back.

    It has a trait for every answer of a panel, in addition to these.
    """

    _esm, _css = for_widget(SCRIPT), for_widget(LOOK)
    about: Any = traitlets.Dict().tag(sync=True)
    current: Any = traitlets.Dict().tag(sync=True)
    tab: Any = traitlets.Unicode("rank").tag(sync=True)
    stage: Any = traitlets.Unicode(ALLOCATION).tag(sync=True)
    panel: Any = traitlets.Unicode("").tag(sync=True)
    compared: Any = traitlets.Dict().tag(sync=True)
    selected: Any = traitlets.List().tag(sync=True)
    resampled: Any = traitlets.List().tag(sync=True)
    training: Any = traitlets.Dict().tag(sync=True)
    races: Any = traitlets.List().tag(sync=True)

    def __init__(self, **values: Any) -> None:
        answers = [name for panel in registry.PANELS for name in panel.answers]
        self.add_traits(**{name: traitlets.Dict().tag(sync=True) for name in answers})
        super().__init__(**values)


def about(
    sensitivity: Sensitivity,
    results: Results,
    panels: Sequence[Panel],
    *,
    curves: Mapping[str, Sequence[Sequence[float | None]]],
    most: int,
    training: Mapping[str, Any] | None,
    knows_directions: bool,
    rank: int,
) -> dict[str, Any]:
    """What stays as it is: the modules, what is known of them, stages, tabs and panels; ``rank`` is the nominal one."""
    rows = list(dict.fromkeys(sensitivity.projections.values()))
    columns = sorted(set(sensitivity.layers.values()))
    sources: dict[str, Spectrum | Subspaces | None] = {"inputs": results.spectrum, **results.others}
    if results.subspaces is not None:
        sources = {results.subspaces.kind: results.subspaces, **sources}
    other = next(iter(results.others), "")
    return {
        "title": results.title,
        "names": sensitivity.names,
        "rows": rows,
        "columns": columns,
        "row": [rows.index(projection) for projection in sensitivity.projections.values()],
        "outs": [d_out for d_out, _ in sensitivity.shapes.values()],
        "ins": [d_in for _, d_in in sensitivity.shapes.values()],
        "experts": [target.experts for target in sensitivity.targets.values()],
        "peak": results.estimate
        and [training_bytes(results.estimate, Footprint(0, 0), kind) for kind in TRAINED_PARTS],
        "column": [columns.index(layer) for layer in sensitivity.layers.values()],
        "stages": stage_values(results, curves, rank),
        "tabs": map_tabs(sensitivity, results, curves, training is not None),
        "spectra": [
            spectra(label, one) for label, one in sources.items() if one and is_of_map(one.names, sensitivity.names)
        ],
        "by_rank": {name: words.format(other) for name, words in BY_RANK.items() if name in curves},
        "panels": registry.panel_values(panels),
        "texts": any(getattr(results, name) for name in fields_with(TEXTS)),
        "presets": {name: ALLOCATION_PRESETS[name] for name in available_presets(sensitivity, knows_directions)},
        "most": most,
        "steps": 20,  # of the temperature from 0 to 1
        "run": results.run and [results.run.ranks.get(name, 0) for name in sensitivity.names],
        "training": {name: (training or {}).get(name) for name in ("steps", "seconds", "learning_rate")},
        "source": style.source(sensitivity.meta),
        "resamples": len(sensitivity.per_sample) > 1,
    }


def about_alone(results: Results, panels: Sequence[Panel]) -> dict[str, Any]:
    """What is shown of results without a map: their panels."""
    return {"title": results.title, "names": [], "panels": registry.panel_values(panels)}


def current(names: Sequence[str], allocation: Allocation, state: AllocationState, most: int) -> dict[str, Any]:
    """What follows the state: ranks, their reasons and scalings."""
    kept = state.kept or allocation
    alike = state.options.temperature == 0 or not state.options.adapt_ranks
    words = {"pinned": "by hand", "edited": "by hand", "score": "uniform" if alike else "score"}
    reasons = {name: words.get(reason, reason) for name, reason in allocation.decided_by.items()}
    limits = dict(zip(allocation.scores, allocation.limits.high, strict=True))
    values: dict[str, Any] = {}
    if allocation.options.rank_by_expert or kept.options.rank_by_expert:
        held = {"ranks": allocation.stored_ranks, "kept": kept.stored_ranks}
        values["stored"] = {which: [ranks.get(name, 0) for name in names] for which, ranks in held.items()}
    if allocation.options.rank_by_expert:
        values["experts"] = [allocation.expert_ranks.get(name, []) for name in names]
    return values | {
        "ranks": [allocation.ranks.get(name, 0) for name in names],
        "kept": [kept.ranks.get(name, 0) for name in names],
        "scalings": shorten_all([allocation.scalings.get(name, math.nan) for name in names]),
        "reasons": [reasons.get(name, "left out") for name in names],
        "ideals": shorten_all([allocation.ideals[name] if name in allocation.ranks else math.nan for name in names]),
        "most": [int(limits.get(name, 0)) for name in names],
        "rank": allocation.rank,
        "is_captured": allocation.options.is_captured,
        "middles": {"rank": allocation.rank, "scaling": shorten(allocation.alpha / allocation.rank, 3)},
        "controls": control_values(state.options, most),
    }
