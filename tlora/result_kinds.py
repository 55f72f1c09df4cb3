"""Every kind of result, by the name that its file holds, and `load_result`, which reads any of them."""

from __future__ import annotations

import os
from pathlib import Path

from tlora.utils.validation import check_arguments

from .adapters.combine import Combination
from .adapters.compression import Compression
from .adapters.files import RUN
from .allocation.allocation import Allocation
from .calibration.calibration import Calibration
from .calibration.sensitivity import Sensitivity
from .calibration.spectrum import Spectrum
from .comparison.race_result import Race
from .explanation.attribution import Attribution
from .explanation.direction_activations_result import DirectionActivations
from .explanation.interference import Interference
from .explanation.measure_scales import Rescaling
from .explanation.side_effects import SideEffects
from .recipes import Plan
from .resources.estimate import ResourceEstimate
from .results import Result, read_kind, result_file
from .serving.inspection import Inspection
from .subspaces.alignment import Alignment
from .subspaces.gradient_capture import GradientCapture
from .subspaces.subspaces import Subspaces
from .training.run import TrainingRun

LOADABLE: dict[str, type[Result]] = {
    kind.__name__: kind
    for kind in (
        ResourceEstimate,
        Calibration,
        Spectrum,
        Sensitivity,
        Subspaces,
        Alignment,
        GradientCapture,
        Allocation,
        Plan,
        TrainingRun,
        Compression,
        Combination,
        Inspection,
        DirectionActivations,
        Attribution,
        SideEffects,
        Rescaling,
        Interference,
        Race,
    )
}
"""In the order of the pipeline."""


def load_result(path: str | os.PathLike[str]) -> Result:
    """Read a result that ``save`` wrote, of whatever kind: the file names its class.

    Parameters
    ----------
    path : path-like
        The file, with or without ``.safetensors``, or the folder that a `TrainingRun` was saved in.

    Returns
    -------
    Result
        An instance of the class that was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a result, of another format, truncated or damaged.

    Examples
    --------
    >>> file = calibration.sensitivity.save("sensitivity")
    >>> tlora.load_result(file).names == calibration.names
    True
    """
    check_arguments(load_result, locals())
    if Path(path, RUN).is_file():
        return TrainingRun.load(path)
    file = result_file(path)
    kind = read_kind(file)
    if kind not in LOADABLE:
        raise ValueError(
            f"{file} holds {kind}, which this version of tlora does not know: use the version that wrote it"
        )
    return LOADABLE[kind].load(file)
