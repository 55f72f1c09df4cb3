"""What is known of a single module: its spectra by kind of subspace, and shares by rank; of experts their mean."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tlora.calibration.spectrum import Spectrum, count_directions
from tlora.subspaces.alignment import overlap_with_neighbors
from tlora.subspaces.gradient_capture import GradientCapture
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.defaults import KINDS, Kind
from viz.experts import means_by_parameter, members_by_parameter, stack_known
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
    ``needed`` (directions for `LEVELS`). The curve of experts is their mean, and ``ends`` are the least and the largest
    of their sums; of a linear layer there are none.
    """
    inputs = source.inputs if isinstance(source, Spectrum) else {name: name for name in source.names}
    groups = [tuple(inputs[name] for name in members) for members in members_by_parameter(source.names).values()]
    own = list(dict.fromkeys(groups))
    curves: dict[str, Any] = {}
    for what, shares in module_shares(source).items():
        curve: dict[str, list[Any]] = {name: [] for name in ("at", "each", "sums", "needed", "ends")}
        for members in own:
            known = stack_known([shares[name] for name in members])
            values, sums = known.mean(0), np.cumsum(known, axis=1)
            at = drawn_directions(len(values))
            drawn = sums[:, at - 1]
            total = np.cumsum(values)
            ends = [drawn.min(0), drawn.max(0)] if len(members) > 1 else []
            curve["at"].append(at.tolist())
            curve["each"].append(shorten_all(values[at - 1]))
            curve["sums"].append(shorten_all(total[at - 1], 4))
            curve["needed"].append(shorten_all([count_directions(total, level) for level in LEVELS], 6))
            curve["ends"].append([shorten_all(end, 4) for end in ends])
        curves[what] = curve
    index = [own.index(group) for group in groups]
    return {"label": label, "meaning": describe_kind(source.kind), "index": index, "curves": curves}


def is_of_map(names: Iterable[str], cells: Sequence[str]) -> bool:
    """Whether these modules are all ``cells`` of the map, in its order."""
    return list(members_by_parameter(names)) == list(cells)


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
            curves[what] = {name: shares.cumsum() for name, shares in means_by_parameter(values).items()}
        curves["neighbors"] = overlap_with_neighbors(subspaces)
    if capture is not None:
        curves["captured"] = captured_curves(capture, subspaces.kind if subspaces is not None else "", most)
    rows = {what: [shorten_all(of.get(name, ()), 4) for name in names] for what, of in curves.items()}
    return {what: row for what, row in rows.items() if any(row)}


def captured_curves(capture: GradientCapture, kind: str, most: int) -> dict[str, NDArray[np.float64]]:
    """Share of the gradient by rank from 1 on: linear between measured ranks, none beyond the last.

    That of experts is the share of the squared gradient of all experts of a parameter together.
    """
    place = capture.kinds.index(kind) if kind in capture.kinds else 0
    captured, total = capture.captured[:, :, place].double().sum(0).numpy(), capture.total.double().sum(0).numpy()
    columns = {name: column for column, name in enumerate(capture.names)}
    ranks = np.arange(1, min(most, capture.ranks[-1]) + 1)
    curves = {}
    for name, members in members_by_parameter(capture.names).items():
        these = [columns[member] for member in members]
        shares = captured[these].sum(0) / (total[these].sum() or math.nan)
        curves[name] = np.interp(ranks, [0, *capture.ranks], [0.0, *shares])
    return curves
