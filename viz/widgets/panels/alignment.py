"""Panel "Alignment": how far two subspaces of each module point the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from tlora.subspaces.alignment import Alignment, align
from tlora.subspaces.subspaces import Subspaces
from viz.experts import means_by_parameter
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Part, shorten_all


class AlignmentPanel(Panel):
    """Overlaps of every pair by module and rank, and what chance gives."""

    name, title = "alignment", "Alignment"
    stage = "directions"
    about = (
        "Overlap: the mean squared cosine of the principal angles between the first directions of two subspaces; 1 the "
        "same space, 0 orthogonal."
    )
    needs = ("others", "alignment")
    needs_map = True

    def parts(self) -> list[Part]:
        """One part, in which the reader chooses a pair and a rank."""
        stored = self.results.alignment
        alignments = [*self.context.alignments, *([stored] if stored is not None else [])]
        pairs = [pair_values(alignment, self.context.names) for alignment in alignments]
        return [{"kind": "alignment", "pairs": pairs}] if pairs else []


def align_pairs(sides: Mapping[str, Subspaces]) -> list[Alignment]:
    """Every pair of these subspaces, at the largest rank that all of them have."""
    if len(sides) < 2:
        return []
    rank = min(len(rows) for side in sides.values() for rows in side.bases.values())
    pairs = combinations(sides.items(), 2)
    return [align(one, other, rank, labels=(a, b)) for (a, one), (b, other) in pairs]


def pair_values(alignment: Alignment, names: Sequence[str]) -> dict[str, Any]:
    """What the browser draws of one pair: overlaps by rank, chance at rank 1, three angles in degrees.

    Those of experts are means over a parameter.
    """
    degrees = {name: np.rad2deg(angles.numpy()) for name, angles in alignment.angles.items()}
    values: dict[str, Mapping[str, Any]] = {
        "overlaps": alignment.overlaps,
        "chance": {name: [1 / target.d_in] for name, target in alignment.targets.items()},
        "angles": {name: [angles[0], np.median(angles), angles[-1]] for name, angles in degrees.items()},
    }
    means = {what: means_by_parameter(of) for what, of in values.items()}
    by_name = {what: [shorten_all(of.get(name, ())) for name in names] for what, of in means.items()}
    return {"sides": list(alignment.sides), "rank": alignment.rank} | by_name
