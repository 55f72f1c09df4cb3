"""The map: what each of its tabs shows of every module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlora.calibration.sensitivity import Sensitivity
from tlora.models.experts import parameter_name
from viz.experts import means_by_parameter
from viz.widgets.modules import ENERGY, VARIANCE, is_of_map
from viz.widgets.panels.parts import shorten_all
from viz.widgets.results import Results
from viz.widgets.stages import ALLOCATION

CURVES = {
    ENERGY: ("Energy", "of the energy within the rank", "spectra"),
    VARIANCE: ("Variance", "of the input variance within the rank", "spectra"),
    "captured": ("Gradient captured", "of the gradient captured at this rank", "directions"),
    "neighbors": ("Neighbors", "overlap with the next layers at this rank", "directions"),
    "overlap": ("Overlap", "overlap with {} at this rank", "directions"),
}
"""Title, unit and stage of the tabs whose value depends on the rank."""


def map_tabs(
    sensitivity: Sensitivity, results: Results, curves: Mapping[str, Sequence[Sequence[float | None]]], trains: bool
) -> list[dict[str, Any]]:
    """The tabs of the map, each with its values by module, ``curves`` by module and rank, or the name of what changes.

    ``sensitivity`` has the score that decides; ``curves`` are shares by rank from 1 on, by the name of the tab. Tabs
    with ``run`` are shown while the map has the ranks of the run.
    """
    tabs = [
        _tab("rank", "Rank", "rank; red: more than uniform, blue: less", "ratio", ALLOCATION, of="ranks"),
        _tab("change", "Change", "ranks more or fewer than kept", "change", ALLOCATION, of="change"),
        _tab("sensitivity", "Sensitivity", "share of all scores", "percent", ALLOCATION, **_shares(sensitivity)),
        _tab("scaling", "Scaling", "factor of B A; white: alpha / rank", "ratio", ALLOCATION, of="scalings"),
    ]
    if results.spectrum is not None and is_of_map(results.spectrum.names, sensitivity.names):
        ranks = means_by_parameter({name: [rank] for name, rank in results.spectrum.effective_rank.items()})
        shown = {"values": shorten_all(np.concatenate(list(ranks.values())))}
        tabs.append(_tab("effective", "Effective rank", "effective rank of the inputs", "number", "spectra", **shown))
    for name, values in curves.items():
        title, unit, stage = CURVES[name]
        unit = unit.format(next(iter(results.others), ""))
        tabs.append(_tab(name, title, unit, "percent", stage, curves=values))
    if trains:
        for arm in ("uniform", "kept", "new"):
            unit = f"update of {arm} relative to the weight"
            tabs.append(_tab(f"update {arm}", f"Update, {arm}", unit, "percent", ALLOCATION, trained=arm))
    return tabs + _after_training(sensitivity.names, results)


def _after_training(names: Sequence[str], results: Results) -> list[dict[str, Any]]:
    tabs = []
    if results.run is not None:
        used = results.run.rank_use().set_index("module")["used_rank"].reindex(names)
        last = results.run.module_history.drop_duplicates("module", keep="last").set_index("module")["update_norm"]
        values = {"values": shorten_all(last.reindex(names))}
        tabs.append(
            _tab("update", "Update", "update relative to the weight", "percent", ALLOCATION, run=True, **values)
        )
        needed = {"values": shorten_all(used)}
        tabs.append(
            _tab("used", "Rank used", "directions for 99 % of the update", "number", ALLOCATION, run=True, **needed)
        )
    if results.attribution is not None:
        found = results.attribution.to_frame()
        added = found.groupby(found["module"].map(parameter_name))["contribution"].sum().reindex(names)
        shares = {"values": shorten_all(added / results.attribution.rise)}
        tabs.append(_tab("contribution", "Contribution", "of what the answers gained", "signed", ALLOCATION, **shares))
    return tabs


def _tab(name: str, title: str, unit: str, kind: str, stage: str, **source: Any) -> dict[str, Any]:
    return {"name": name, "title": title, "unit": unit, "kind": kind, "stage": stage, **source}


def _shares(sensitivity: Sensitivity) -> dict[str, Any]:
    """Shares of the scores, with the ends of their 95 % intervals if there are samples to resample."""
    shares = {"values": shorten_all(sensitivity.to_frame()["share"])}
    if len(sensitivity.per_sample) < 2:
        return shares
    intervals = sensitivity.intervals()
    total = intervals["score"].sum()
    return shares | {end: shorten_all(intervals[end] / total) for end in ("low", "high")}
