"""All that the browser shows: what stays (`about`) and what follows the state (`current`), as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tlora.allocation.allocation import Allocation
from tlora.allocation.footprint import TRAINED_PARTS, Footprint
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.subspaces.alignment import Alignment
from tlora.subspaces.subspaces import Subspaces
from viz import style
from viz.widgets.panels.alignment import alignment_panel, capture_panel
from viz.widgets.panels.allocation import training_bytes
from viz.widgets.panels.attribution import attribution_panel
from viz.widgets.panels.data import data_panel
from viz.widgets.panels.effects import effects_panel
from viz.widgets.panels.map import map_tabs
from viz.widgets.panels.modules import spectra
from viz.widgets.panels.parts import shorten, shorten_all
from viz.widgets.panels.rank_use import rank_use_panel
from viz.widgets.panels.reads import reads_panel
from viz.widgets.panels.reproduce import reproduce_panel
from viz.widgets.panels.sensitivity import sensitivity_panel
from viz.widgets.panels.spectrum import spectrum_panel
from viz.widgets.panels.training import training_panel
from viz.widgets.results import Results
from viz.widgets.state import ALLOCATION_PRESETS, AllocationState, available_presets, control_values

BY_RANK = {
    "captured": "gradient captured", "overlap": "overlap with {}", "neighbors": "overlap, next layers",
}  # fmt: skip
"""Curves of a module over the rank, and what they are called."""
ALLOCATION = {
    "name": "allocation", "title": "Allocation", "parts": [],
    "about": "Ranks follow the scores, or the captured gradient, under a fixed budget.",
}  # fmt: skip
"""The panel whose parts follow the state."""


def about(
    sensitivity: Sensitivity,
    results: Results,
    *,
    curves: Mapping[str, Sequence[Sequence[float | None]]],
    alignments: Sequence[Alignment],
    most: int,
    training: Mapping[str, Any] | None,
    live: bool,
    knows_directions: bool,
) -> dict[str, Any]:
    """What stays as it is: the modules, what is known of them, tabs and panels."""
    rows = list(dict.fromkeys(sensitivity.projections.values()))
    columns = sorted(set(sensitivity.layers.values()))
    sources: dict[str, Spectrum | Subspaces | None] = {"inputs": results.spectrum, **results.others}
    if results.subspaces is not None:
        sources = {results.subspaces.kind: results.subspaces, **sources}
    other = next(iter(results.others), "")
    return {
        "names": sensitivity.names,
        "rows": rows,
        "columns": columns,
        "row": [rows.index(projection) for projection in sensitivity.projections.values()],
        "outs": [d_out for d_out, _ in sensitivity.shapes.values()],
        "ins": [d_in for _, d_in in sensitivity.shapes.values()],
        "peak": results.estimate
        and [training_bytes(results.estimate, Footprint(0, 0), kind) for kind in TRAINED_PARTS],
        "column": [columns.index(layer) for layer in sensitivity.layers.values()],
        "tabs": map_tabs(sensitivity, results, curves, training is not None),
        "spectra": [spectra(label, one) for label, one in sources.items() if one and one.names == sensitivity.names],
        "by_rank": {name: words.format(other) for name, words in BY_RANK.items() if name in curves},
        "panels": panels(results, alignments, sensitivity.names, live),
        "presets": {name: ALLOCATION_PRESETS[name] for name in available_presets(sensitivity, knows_directions)},
        "most": most,
        "steps": 20,  # of the temperature from 0 to 1
        "run": results.run and [results.run.ranks.get(name, 0) for name in sensitivity.names],
        "training": {name: (training or {}).get(name) for name in ("steps", "seconds", "learning_rate")},
        "source": style.source(sensitivity.meta),
        "resamples": len(sensitivity.per_sample) > 1,
    }


def panels(
    results: Results, alignments: Sequence[Alignment], names: Sequence[str], live: bool = False
) -> list[dict[str, Any]]:
    """The panels that have something to show, in the order of the pipeline; ``live`` if an adapted model answers."""
    more = [] if results.alignment is None else [results.alignment]
    return [
        *data_panel(results),
        *spectrum_panel(results),
        *alignment_panel([*alignments, *more], names),
        *capture_panel(results),
        *reads_panel(results, names),
        *sensitivity_panel(results),
        *([ALLOCATION] if names else []),
        *training_panel(results),
        *rank_use_panel(results),
        *attribution_panel(results, live),
        *effects_panel(results),
        *(reproduce_panel(results) if results.run or results.allocation else []),
    ]


def current(names: Sequence[str], allocation: Allocation, state: AllocationState, most: int) -> dict[str, Any]:
    """What follows the state: ranks, their reasons and scalings."""
    kept = state.kept or allocation
    frame = allocation.to_frame().set_index("module")
    ideals, decided_by = frame["ideal"].to_dict(), frame["decided_by"].to_dict()
    alike = state.options.temperature == 0 or not state.options.adapt_ranks
    words = {"pinned": "by hand", "edited": "by hand", "score": "uniform" if alike else "score"}
    reasons = {name: words.get(reason, reason) for name, reason in decided_by.items()}
    limits = dict(zip(allocation.scores, allocation.limits.high, strict=True))
    return {
        "ranks": [allocation.ranks.get(name, 0) for name in names],
        "kept": [kept.ranks.get(name, 0) for name in names],
        "scalings": shorten_all([allocation.scalings.get(name, float("nan")) for name in names]),
        "reasons": [reasons.get(name, "left out") for name in names],
        "ideals": shorten_all([ideals.get(name, float("nan")) for name in names]),
        "most": [int(limits.get(name, 0)) for name in names],
        "rank": allocation.rank,
        "is_captured": allocation.options.is_captured,
        "middles": {"rank": allocation.rank, "scaling": shorten(allocation.alpha / allocation.rank, 3)},
        "controls": control_values(state.options, most),
    }
