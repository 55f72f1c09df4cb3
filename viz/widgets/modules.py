"""What is known of a single module: its spectra by kind of subspace, and shares by rank."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tlora.calibration.spectrum import Spectrum, count_directions
from tlora.subspaces.alignment import overlap_with_neighbors
from tlora.subspaces.gradient_capture import GradientCapture
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.defaults import KINDS, Kind
from viz.widgets.panels.parts import shorten_all

ENERGY, VARIANCE = "energy", "variance"
LEVELS = (0.9, 0.95, 0.99)
"""Shares for which the number of directions is shown."""
DENSE, SPARSE = 64, 60
"""Directions from the first on of which each is drawn, and points in even steps of the logarithm after them."""


def module_shares(source: Spectrum | Subspaces) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Share of each direction of each module, by ``"energy"`` and ``"variance"``, one or both."""
    if isinstance(source, Spectrum):
        return {VARIANCE if source.kind in ("covariance", "c") else ENERGY: _spectrum_shares(source)}
    variance = {name: v.double().numpy() / (source.traces[name] or math.inf) for name, v in source.row_variance.items()}
    if source.kind in ("c", "random"):
        return {VARIANCE: variance}
    return {ENERGY: _spectrum_shares(source.spectrum()), VARIANCE: variance}


def describe_kind(kind: str) -> str:
    """What the directions of a kind are, with the method known for it."""
    if kind == "covariance":
        return "principal directions of the inputs"
    facts = KINDS[cast(Kind, kind)]
    return f"{facts.meaning}, as in {facts.method}" if facts.method else facts.meaning


def _spectrum_shares(spectrum: Spectrum) -> dict[str, NDArray[np.float64]]:
    once = {name: spectrum.curves([name])["share"].to_numpy() for name in dict.fromkeys(spectrum.inputs.values())}
    return {name: once[source] for name, source in spectrum.inputs.items()}


def spectra(label: str, source: Spectrum | Subspaces) -> dict[str, Any]:
    """What the browser draws of one kind of subspace: its curves, and by module the ``index`` of its curve.

    Modules that read the same input share a curve: ``at`` (directions, from 1), ``each`` and ``sums`` (shares) and
    ``needed`` (directions for `LEVELS`).
    """
    shares = module_shares(source)
    inputs = source.inputs if isinstance(source, Spectrum) else {name: name for name in source.names}
    own = list(dict.fromkeys(inputs.values()))
    curves: dict[str, Any] = {}
    for what, values in shares.items():
        at = {name: drawn_directions(len(values[name])) for name in own}
        sums = {name: np.cumsum(values[name]) for name in own}
        curves[what] = {
            "at": [at[name].tolist() for name in own],
            "each": [shorten_all(values[name][at[name] - 1]) for name in own],
            "sums": [shorten_all(sums[name][at[name] - 1], 4) for name in own],
            "needed": [shorten_all([count_directions(sums[name], level) for level in LEVELS], 6) for name in own],
        }
    meaning = describe_kind(source.kind)
    index = [own.index(inputs[name]) for name in source.names]
    return {"label": label, "meaning": meaning, "index": index, "curves": curves}


def drawn_directions(count: int) -> NDArray[np.intp]:
    """The directions of a curve that are drawn, from 1 on: all of the first ones, fewer of the many after them."""
    later = np.geomspace(min(DENSE, count), count, SPARSE).round().astype(int)
    return np.unique([*range(1, min(DENSE, count) + 1), *later])


def curves_by_rank(
    names: Collection[str], subspaces: Subspaces | None, capture: GradientCapture | None, most: int
) -> dict[str, list[list[float | None]]]:
    """Shares by rank from 1 on of every module: energy, variance, captured gradient, overlap with the next layers."""
    curves: dict[str, Mapping[str, Any]] = {}
    if subspaces is not None:
        for what, values in module_shares(subspaces).items():
            curves[what] = {name: shares.cumsum() for name, shares in values.items()}
        curves["neighbors"] = overlap_with_neighbors(subspaces)
    if capture is not None:
        curves["captured"] = captured_curves(capture, subspaces.kind if subspaces is not None else "", most)
    rows = {what: [shorten_all(of.get(name, ()), 4) for name in names] for what, of in curves.items()}
    return {what: row for what, row in rows.items() if any(row)}


def captured_curves(capture: GradientCapture, kind: str, most: int) -> dict[str, NDArray[np.float64]]:
    """Share of the gradient by rank from 1 on: linear between measured ranks, none beyond the last."""
    frame = capture.to_frame()
    frame = frame[frame["kind"] == (kind if kind in capture.kinds else capture.kinds[0])]
    ranks = np.arange(1, min(most, capture.ranks[-1]) + 1)
    return {
        str(name): np.interp(ranks, [0, *of["rank"]], [0.0, *of["captured"]])
        for name, of in frame.groupby("module", sort=False)
    }
