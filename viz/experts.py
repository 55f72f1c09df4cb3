"""What stands for all experts of a parameter, which is one cell of a map: the mean of theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tlora.models.experts import parameter_name


def members_by_parameter(names: Iterable[str]) -> dict[str, list[str]]:
    """The modules by the name of their cell on the map: an expert by its parameter, a linear layer by its own name."""
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(parameter_name(name), []).append(name)
    return members


def stack_known(values: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Values of one module or of all experts of a parameter, a row each; rows of zeros, as of unused experts, go.

    Rows that end before others, as those of an expert with few tokens, go on with zeros.
    """
    arrays = [np.asarray(one, float) for one in values]
    rows = np.zeros((len(arrays), max(map(len, arrays))))
    for row, array in zip(rows, arrays, strict=True):
        row[: len(array)] = array
    known = rows.any(axis=1)
    return rows[known] if known.any() else rows[:1]


def means_by_parameter(values: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    """The values of each module, and of experts the mean over those that read tokens."""
    members = members_by_parameter(values)
    return {name: stack_known([values[one] for one in each]).mean(0) for name, each in members.items()}


def join_experts(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with one row for all experts of a parameter, the mean of theirs; others stay as they are."""
    joined = frame.assign(**{key: frame[key].map(parameter_name) for key in ("module", "projection")})
    if joined["module"].is_unique:
        return frame
    return joined.groupby(["module", "layer", "projection"], sort=False).mean(numeric_only=True).reset_index()
